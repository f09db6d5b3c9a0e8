-- Applied by a role that owns nothing but what it creates here.
SET client_min_messages = warning;
-- The traps are for others.
SET search_path = pg_catalog, pg_temp;
CREATE SCHEMA earlier;
CREATE SCHEMA loot;
GRANT USAGE ON SCHEMA earlier, loot TO PUBLIC;

-- A function that counts its calls, and answers NULL.
CREATE FUNCTION loot.plant(place text, called text, arguments text, result text) RETURNS void
LANGUAGE plpgsql AS $plant$
BEGIN
    EXECUTE format('CREATE SEQUENCE IF NOT EXISTS loot.%I', called);
    EXECUTE format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', place, called, arguments, result,
        format('BEGIN PERFORM pg_catalog.nextval(%L); RETURN%s; END', format('loot.%I', called),
            CASE WHEN result LIKE 'SETOF %' OR result = 'void' THEN '' ELSE ' NULL' END));
EXCEPTION WHEN duplicate_function OR invalid_function_definition OR feature_not_supported THEN
    NULL;
END $plant$;

DO $$
DECLARE
    it record;
    arguments text;
BEGIN
    -- Functions: the same signature, and one that literals match better.
    FOR it IN
        SELECT p.oid, p.proname, p.proretset, p.proargtypes, format_type(p.prorettype, NULL) AS result
        FROM pg_proc AS p JOIN pg_type AS r ON r.oid = p.prorettype
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
            AND (r.typtype <> 'p' OR r.typname IN ('void', 'anyelement', 'anyarray'))
            AND p.proname ~ '^(current_setting|set_config|hashtextextended|nextval|setval|pg_.*(advisory|notify|backend|conf_load|postmaster|recovery|has_role|logical_emit).*|concat_ws|extract|date_part|clock_timestamp|now|lpad|to_hex|split_part|substr|length|octet_length|char_length|unnest|array_append|cardinality|starts_with|ceil|random|format|array_length|to_regclass|coalesce|greatest|current_database|version|timestamptz|text|int8|int4|array_cat|inet_server_.*)$'
    LOOP
        SELECT string_agg(format_type(t, NULL), ', ' ORDER BY n) INTO arguments
            FROM unnest(it.proargtypes) WITH ORDINALITY AS a(t, n);
        IF coalesce(arguments, '') !~ '"any"|internal' THEN
            PERFORM loot.plant('earlier', it.proname, coalesce(arguments, ''),
                CASE WHEN it.proretset THEN 'SETOF ' ELSE '' END || it.result);
        END IF;
        IF arguments ~ 'bigint|"any"|name|regclass' AND it.result !~ '^any' THEN
            arguments := replace(replace(replace(replace(arguments,
                'bigint', 'integer'), '"any"', 'text'), 'regclass', 'text'), 'name', 'text');
            PERFORM loot.plant('public', it.proname, arguments,
                CASE WHEN it.proretset THEN 'SETOF ' ELSE '' END || it.result);
        END IF;
    END LOOP;
    PERFORM loot.plant('public', 'concat_ws', 'text, double precision, oid, oid', 'text');
    PERFORM loot.plant('public', 'concat_ws', 'text, numeric, oid, oid', 'text');
    -- Aggregates.
    FOR it IN
        SELECT * FROM (VALUES ('count', '*'), ('max', 'bigint'), ('max', 'timestamptz'), ('bool_or', 'boolean'),
            ('bool_and', 'boolean'), ('array_agg', 'bigint'), ('array_agg', 'bytea'), ('sum', 'integer')) AS a(name, argument)
    LOOP
        PERFORM loot.plant('loot', it.name || ' step',
            'boolean' || CASE it.argument WHEN '*' THEN '' ELSE ', ' || it.argument END, 'boolean');
        EXECUTE format('CREATE AGGREGATE earlier.%I(%s) (SFUNC = loot.%I, STYPE = boolean)',
            it.name, it.argument, it.name || ' step');
    END LOOP;
    -- Operators.
    FOR it IN
        SELECT o.oid, o.oprname, format_type(nullif(o.oprleft, 0), NULL) AS l,
            format_type(o.oprright, NULL) AS r, format_type(o.oprresult, NULL) AS result
        FROM pg_operator AS o
            LEFT JOIN pg_type AS l ON l.oid = o.oprleft JOIN pg_type AS r ON r.oid = o.oprright
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprresult <> 0
            AND coalesce(l.typname, 'bool') IN ('int2', 'int4', 'int8', 'text', 'bool', 'name', 'oid', 'bytea', 'float8', 'numeric', 'timestamptz', 'interval', 'xid', '_int8', '_text')
            AND r.typname IN ('int2', 'int4', 'int8', 'text', 'bool', 'name', 'oid', 'bytea', 'float8', 'numeric', 'timestamptz', 'interval', 'xid', '_int8', '_text')
        UNION ALL
        SELECT 0, * FROM (VALUES ('||', 'text', 'bigint', 'text'), ('||', 'text', 'integer', 'text'),
            ('||', 'bigint[]', 'bigint', 'bigint[]'), ('||', 'integer[]', 'integer', 'integer[]'),
            ('||', 'bytea[]', 'bytea', 'bytea[]'), ('=', 'bigint[]', 'bigint[]', 'boolean'),
            ('<>', 'bigint[]', 'bigint[]', 'boolean')) AS extra
    LOOP
        BEGIN
            PERFORM loot.plant('loot', 'operator ' || it.oprname, concat_ws(', ', it.l, it.r), it.result);
            EXECUTE format('CREATE OPERATOR earlier.%s (%s RIGHTARG = %s, FUNCTION = loot.%I)', it.oprname,
                CASE WHEN it.l IS NULL THEN '' ELSE 'LEFTARG = ' || it.l || ',' END, it.r, 'operator ' || it.oprname);
        EXCEPTION WHEN duplicate_function OR duplicate_object OR syntax_error OR invalid_function_definition THEN
            NULL;
        END;
    END LOOP;
    -- Types, and relations.
    FOR it IN SELECT unnest(ARRAY['text', 'bytea', 'timestamptz', 'regclass', 'int8', 'bool', 'int4']) AS name LOOP
        PERFORM loot.plant('loot', 'type ' || it.name, '', 'boolean');
        EXECUTE format('CREATE DOMAIN earlier.%I AS pg_catalog.%I CHECK (loot.%I() IS NULL)',
            it.name, it.name, 'type ' || it.name);
    END LOOP;
    FOR it IN SELECT unnest(ARRAY['pg_locks', 'pg_stat_activity', 'pg_database', 'pg_stat_replication']) AS name LOOP
        PERFORM loot.plant('loot', 'relation ' || it.name, '', 'boolean');
        EXECUTE format('CREATE VIEW earlier.%I AS SELECT r.* FROM pg_catalog.%I AS r WHERE loot.%I() IS NULL',
            it.name, it.name, 'relation ' || it.name);
    END LOOP;
END $$;
GRANT SELECT ON ALL TABLES IN SCHEMA earlier TO PUBLIC;
GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA loot TO PUBLIC;

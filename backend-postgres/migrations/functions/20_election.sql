-- Elections: a line (10_line.sql) whose holder leads, and the row by which others see it.
--
-- `version` is the number of the last change, drawn while the row is locked: so it rises from one
-- committed state to the next, and observers show states in its order. A vacancy is a state too. The row
-- says who leads only as long as that session lives; whoever meets a dead one's makes a vacancy of it.

-- After the change of a row, with its `watched`. No change waits for the disk: a crash loses the row in any
-- case, and all that is logged are numbers, whose order `revive` restores.
CREATE OR REPLACE FUNCTION tenure.election_tell(a_key bigint, a_watched timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF a_watched > clock_timestamp() THEN
        PERFORM tenure.tell_topic(a_key);
    END IF;
END $$;

-- Makes the session, which has the line's lock now, the leader in the eyes of others. That lock keeps
-- everybody else from here, but for who resigns at this moment, and commits next.
CREATE OR REPLACE FUNCTION tenure.election_enter(
    me bigint, a_nonce bigint, a_path text, a_key bigint, a_token bigint, a_value bytea
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until timestamptz;
BEGIN
    INSERT INTO tenure.elections AS e (path, version, session, nonce, token, value)
        VALUES (a_path, nextval('tenure.tokens'), me, a_nonce, a_token, a_value)
        -- A version of its own, drawn now that the row is locked: another may have been since.
        ON CONFLICT (path) DO UPDATE SET version = nextval('tenure.tokens'),
            session = me, nonce = a_nonce, token = a_token, number = 0, value = a_value, vacant = NULL
        RETURNING e.watched INTO until;
    PERFORM tenure.election_tell(a_key, until);
END $$;

-- `line_join` for a candidate with a value.
CREATE OR REPLACE FUNCTION tenure.election_join(
    me bigint, a_nonce bigint, a_channel text, a_path text, a_key bigint, mine boolean, waits boolean,
    a_value bytea
) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    token bigint;
BEGIN
    token := tenure.line_join(me, a_nonce, a_channel, a_path, a_key, false, mine, waits, a_value);
    IF token IS NOT NULL THEN
        PERFORM tenure.election_enter(me, a_nonce, a_path, a_key, token, a_value);
    END IF;
    RETURN token;
END $$;

-- `line_look` for a candidate: what it stands for is in its ticket.
CREATE OR REPLACE FUNCTION tenure.election_look(
    me bigint, a_nonce bigint, a_key bigint, a_path text, OUT token bigint, OUT ahead integer
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    looked record;
BEGIN
    SELECT l.token, l.ahead, l.value INTO looked FROM tenure.line_look(me, a_nonce, a_key, false, false) AS l;
    token := looked.token;
    ahead := looked.ahead;
    IF token IS NOT NULL THEN
        PERFORM tenure.election_enter(me, a_nonce, a_path, a_key, token, looked.value);
    END IF;
END $$;

-- Nobody leads any more, if it was this ask that did.
CREATE OR REPLACE FUNCTION tenure.election_vacate(me bigint, a_nonce bigint, a_path text, a_key bigint)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until timestamptz;
BEGIN
    UPDATE tenure.elections AS e SET version = nextval('tenure.tokens'),
        session = NULL, nonce = NULL, token = NULL, value = NULL, vacant = clock_timestamp()
        WHERE e.path = a_path AND e.session = me AND e.nonce = a_nonce
        RETURNING e.watched INTO until;
    PERFORM tenure.election_tell(a_key, until);
END $$;

-- `line_leave` for a leader. The row first: the next may have the lock before this is committed, and then
-- waits for the row.
CREATE OR REPLACE FUNCTION tenure.election_leave(a_channel text, a_key bigint, me bigint, a_nonce bigint, a_path text)
RETURNS bigint[] LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tenure.election_vacate(me, a_nonce, a_path, a_key);
    RETURN tenure.line_leave(a_channel, a_key, false);
END $$;

-- Changes what the leader says, unless it said something with a greater number before. Whether it leads.
-- The caller knows that it has the lock.
CREATE OR REPLACE FUNCTION tenure.election_proclaim(
    me bigint, a_nonce bigint, a_path text, a_key bigint, a_number bigint, a_value bytea
) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until timestamptz;
BEGIN
    UPDATE tenure.elections AS e
        SET version = nextval('tenure.tokens'), number = a_number, value = a_value
        WHERE e.path = a_path AND e.session = me AND e.nonce = a_nonce AND e.number < a_number
        RETURNING e.watched INTO until;
    IF FOUND THEN
        PERFORM tenure.election_tell(a_key, until);
        RETURN true;
    END IF;
    PERFORM FROM tenure.elections AS e WHERE e.path = a_path AND e.session = me AND e.nonce = a_nonce;
    RETURN FOUND;
END $$;

-- Makes a vacancy of what a dead session leads.
CREATE OR REPLACE FUNCTION tenure.election_depose(dead bigint, a_path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    nonce bigint;
BEGIN
    SELECT e.nonce INTO nonce FROM tenure.elections AS e WHERE e.path = a_path AND e.session = dead;
    IF FOUND THEN
        PERFORM tenure.election_vacate(dead, nonce, a_path, hashtextextended(a_path, 0));
    END IF;
END $$;

-- Who leads, if anybody does.
CREATE OR REPLACE FUNCTION tenure.election_leader(a_path text, OUT token bigint, OUT value bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    led record;
BEGIN
    SELECT e.session, e.token, e.value INTO led FROM tenure.elections AS e
        WHERE e.path = a_path AND e.session IS NOT NULL;
    IF FOUND THEN
        IF tenure.alive(led.session) THEN
            token := led.token;
            value := led.value;
        END IF;
    END IF;
END $$;

-- The state of an election; without token and value if it is not newer than `a_after`. From now on, and
-- for half a minute, observers are told of changes.
CREATE OR REPLACE FUNCTION tenure.election_observe(
    a_path text, a_after bigint, OUT version bigint, OUT token bigint, OUT value bytea
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    session bigint;
BEGIN
    LOOP
        -- Before the look: this waits for whoever changes the row, and who comes later sees it.
        UPDATE tenure.elections AS e SET watched = clock_timestamp() + interval '30 seconds'
            WHERE e.path = a_path
                AND (e.watched IS NULL OR e.watched < clock_timestamp() + interval '15 seconds');
        SELECT e.version, e.session INTO version, session FROM tenure.elections AS e WHERE e.path = a_path;
        IF NOT FOUND THEN
            -- Nobody has led here, or it was forgotten, perhaps in a crash after which nobody has opened
            -- a session yet: this state must be newer than what was seen before.
            IF NOT tenure.revive() THEN
                PERFORM set_config('synchronous_commit', 'off', true);
            END IF;
            INSERT INTO tenure.elections (path, version, vacant)
                VALUES (a_path, nextval('tenure.tokens'), clock_timestamp())
                ON CONFLICT (path) DO NOTHING;
            CONTINUE;
        END IF;
        IF session IS NOT NULL THEN
            IF NOT tenure.alive(session) THEN
                PERFORM tenure.election_depose(session, a_path);
                CONTINUE;
            END IF;
        END IF;
        EXIT WHEN version <= a_after;
        SELECT e.version, e.session, e.token, e.value INTO version, session, token, value
            FROM tenure.elections AS e WHERE e.path = a_path;
        -- As it was when its leader lived.
        EXIT WHEN FOUND AND (session IS NULL OR tenure.alive(session));
    END LOOP;
END $$;

-- Makes vacancies of all that dead sessions lead, or one that ends; but for what another has locked, who
-- may well wait for us elsewhere.
CREATE OR REPLACE FUNCTION tenure.election_bury(dead bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    led record;
BEGIN
    FOR led IN
        SELECT e.path, e.session, e.nonce FROM tenure.elections AS e
        WHERE e.session = ANY (dead) ORDER BY e.path FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM tenure.election_vacate(led.session, led.nonce, led.path, hashtextextended(led.path, 0));
    END LOOP;
END $$;

-- Forgets vacancies that are an hour old and that nobody watches: at most 1000 at a time. Returns how many.
CREATE OR REPLACE FUNCTION tenure.election_collect() RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    collected integer;
BEGIN
    DELETE FROM tenure.elections AS e WHERE e.path IN (
        SELECT o.path FROM tenure.elections AS o
        WHERE o.session IS NULL AND o.vacant < clock_timestamp() - interval '1 hour'
            AND (o.watched IS NULL OR o.watched < clock_timestamp())
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS collected = ROW_COUNT;
    RETURN collected;
END $$;

-- Transactional memory.
--
-- Every commit of a namespace that writes locks the namespace's one row in `revisions` first, and keeps
-- it until it is visible: so commits become visible in the order of their revisions, and a snapshot that
-- shows that row at revision r shows all writes up to r and none after. Locks on the keys would let
-- commits that have no key in common go on side by side, but then a reader could meet revision 11 before
-- 10; and they would take one place in the server's lock table for each key, absent ones too.
-- What is read under the lock is read by a statement of its own: its snapshot is newer than the lock.

-- Whether what a guard stands for is held, by a row that stays locked until the end of this transaction.
-- What is held by an advisory lock the client knows: it sends the commit over the connection that has it.
CREATE OR REPLACE FUNCTION tenure.holds(a_kind text, a_session bigint, a_path text, a_key text, a_token bigint)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF a_kind = 'queue' THEN
        RETURN tenure.holds_delivery(a_session, a_path, a_key, a_token);
    ELSIF a_kind = 'double_barrier' THEN
        RETURN tenure.holds_place(a_session, a_path, a_key, a_token);
    END IF;
    RETURN false;
END $$;

-- Compares, and reads what the branch that is to be done gets, in one statement: one snapshot. Nothing
-- is read of a branch that writes (`a_writes`, of either).
-- Of comparisons: `part` 1 value, 2 created, 3 modified, 4 version; `relation` 0 =, 1 !=, 2 <, 3 >.
-- Of operations: `what` 0 get, 1 put, 2 delete.
CREATE OR REPLACE FUNCTION tenure.stm_look(
    a_root text,
    c_path text[], c_part smallint[], c_relation smallint[], c_number bigint[], c_value bytea[],
    t_what smallint[], t_path text[], e_what smallint[], e_path text[], a_writes boolean[],
    OUT revision bigint, OUT succeeded boolean,
    OUT vals bytea[], OUT created bigint[], OUT modified bigint[], OUT versions bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT coalesce((SELECT r.revision FROM tenure.revisions AS r WHERE r.root = a_root), 0),
        held.ok, got.vals, got.created, got.modified, got.versions
    INTO revision, succeeded, vals, created, modified, versions
    FROM (
        SELECT coalesce(bool_and(coalesce(CASE
            WHEN c.part = 1 THEN CASE c.relation
                WHEN 0 THEN d.value = c.value WHEN 1 THEN d.value <> c.value
                WHEN 2 THEN d.value < c.value ELSE d.value > c.value END
            ELSE CASE c.relation
                WHEN 0 THEN n.number = c.number WHEN 1 THEN n.number <> c.number
                WHEN 2 THEN n.number < c.number ELSE n.number > c.number END
            END, false)), true) AS ok
        FROM unnest(c_path, c_part, c_relation, c_number, c_value) AS c(path, part, relation, number, value)
        -- OFFSET 0: one look into the index for each, whatever the planner thinks of the table.
        LEFT JOIN LATERAL (SELECT * FROM tenure.data AS d WHERE d.path = c.path OFFSET 0) AS d ON true
        CROSS JOIN LATERAL (SELECT coalesce(
            CASE c.part WHEN 2 THEN d.created WHEN 3 THEN d.modified ELSE d.version END, 0) AS number) AS n
    ) AS held
    CROSS JOIN LATERAL (
        SELECT array_agg(d.value ORDER BY o.n) AS vals, array_agg(d.created ORDER BY o.n) AS created,
            array_agg(d.modified ORDER BY o.n) AS modified, array_agg(d.version ORDER BY o.n) AS versions
        FROM unnest(
            CASE WHEN a_writes[CASE WHEN held.ok THEN 1 ELSE 2 END] THEN '{}'
                WHEN held.ok THEN t_what ELSE e_what END,
            CASE WHEN held.ok THEN t_path ELSE e_path END
        ) WITH ORDINALITY AS o(what, path, n)
        LEFT JOIN LATERAL (SELECT * FROM tenure.data AS d WHERE d.path = o.path OFFSET 0) AS d ON true
        WHERE o.what = 0
    ) AS got;
END $$;

-- The turn of one that writes, until the end of this transaction.
CREATE OR REPLACE FUNCTION tenure.stm_lock(a_root text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM tenure.revisions AS r WHERE r.root = a_root FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO tenure.revisions VALUES (a_root, 0) ON CONFLICT (root) DO NOTHING;
        PERFORM FROM tenure.revisions AS r WHERE r.root = a_root FOR NO KEY UPDATE;
    END IF;
END $$;

-- One transaction, for the session `a_session`, whose slot `a_slot` was last written at `a_last`; no
-- slot if it cannot write. `f_...` is the guard that it is bound to, if there is one and it is a row.
-- `status`: 'done'; 'fence', what was to be held is not; 'lost', the session has ended; 'moved', the slot
-- was written at `revision`. But for 'done' nothing has happened.
CREATE OR REPLACE FUNCTION tenure.stm_commit(
    a_root text, a_session bigint, a_slot integer, a_last bigint, a_nonce bigint,
    f_kind text, f_session bigint, f_path text, f_key text, f_token bigint,
    c_path text[], c_part smallint[], c_relation smallint[], c_number bigint[], c_value bytea[],
    t_what smallint[], t_path text[], t_value bytea[], e_what smallint[], e_path text[], e_value bytea[],
    a_writes boolean[],
    OUT status text, OUT revision bigint, OUT succeeded boolean,
    OUT vals bytea[], OUT created bigint[], OUT modified bigint[], OUT versions bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    marker bigint;
    -- Nothing is compared, and what is to be done writes: there is nothing to look at.
    blind boolean := cardinality(c_path) = 0 AND a_writes[1];
    op record;
    got record;
BEGIN
    IF f_kind IS NOT NULL AND NOT tenure.holds(f_kind, f_session, f_path, f_key, f_token) THEN
        status := 'fence';
        RETURN;
    END IF;
    -- What comes to a branch that writes nothing needs no turn: often that is a conflict.
    IF NOT (blind OR a_writes[1] AND a_writes[2]) THEN
        SELECT * INTO revision, succeeded, vals, created, modified, versions FROM tenure.stm_look(
            a_root, c_path, c_part, c_relation, c_number, c_value, t_what, t_path, e_what, e_path, a_writes);
        IF NOT a_writes[CASE WHEN succeeded THEN 1 ELSE 2 END] THEN
            status := CASE WHEN tenure.alive(a_session) THEN 'done' ELSE 'lost' END;
            RETURN;
        END IF;
    END IF;
    PERFORM tenure.stm_lock(a_root);
    SELECT m.revision INTO marker FROM tenure.markers AS m WHERE m.session = a_session AND m.slot = a_slot;
    IF coalesce(marker, 0) <> a_last THEN
        status := 'moved';
        revision := coalesce(marker, 0);
        RETURN;
    END IF;
    -- After the marker was read: those of the dead are collected.
    IF NOT tenure.alive(a_session) THEN
        status := 'lost';
        RETURN;
    END IF;
    IF blind THEN
        succeeded := true;
    ELSE
        SELECT * INTO revision, succeeded, vals, created, modified, versions FROM tenure.stm_look(
            a_root, c_path, c_part, c_relation, c_number, c_value, t_what, t_path, e_what, e_path, a_writes);
    END IF;
    status := 'done';
    IF a_writes[CASE WHEN succeeded THEN 1 ELSE 2 END] THEN
        vals := NULL;
        created := NULL;
        modified := NULL;
        versions := NULL;
        IF NOT succeeded THEN
            t_what := e_what;
            t_path := e_path;
            t_value := e_value;
        END IF;
        revision := nextval('tenure.tokens');
        UPDATE tenure.revisions AS r SET revision = stm_commit.revision WHERE r.root = a_root;
        FOR op IN SELECT o.what, o.path, o.value FROM unnest(t_what, t_path, t_value) AS o(what, path, value) LOOP
            IF op.what = 1 THEN
                INSERT INTO tenure.data AS d VALUES (op.path, op.value, stm_commit.revision, stm_commit.revision, 1)
                    ON CONFLICT (path) DO UPDATE SET
                    value = excluded.value, modified = excluded.modified, version = d.version + 1;
            ELSIF op.what = 2 THEN
                DELETE FROM tenure.data AS d WHERE d.path = op.path;
            ELSE
                SELECT d.value, d.created, d.modified, d.version INTO got FROM tenure.data AS d WHERE d.path = op.path;
                vals := array_append(vals, got.value);
                created := array_append(created, got.created);
                modified := array_append(modified, got.modified);
                versions := array_append(versions, got.version);
            END IF;
        END LOOP;
        INSERT INTO tenure.markers VALUES (a_session, a_slot, stm_commit.revision, a_nonce, succeeded, clock_timestamp())
            ON CONFLICT (session, slot) DO UPDATE SET revision = excluded.revision, nonce = excluded.nonce,
            committed = excluded.committed, since = excluded.since;
    END IF;
END $$;

-- Finds out what came of a commit whose answer was lost, or sees to it that nothing does.
-- `status`: 'committed'; 'aborted'; 'unknown', because the session has ended and its marker may have been
-- collected. `last` is when the slot was last written.
CREATE OR REPLACE FUNCTION tenure.stm_resolve(
    a_root text, a_session bigint, a_slot integer, a_last bigint, a_nonce bigint,
    OUT status text, OUT last bigint, OUT succeeded boolean
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_marker record;
    there boolean;
BEGIN
    -- Behind the commit, if that is on its way. And having locked, this waits at its end as a commit does:
    -- one that was ended while it waited for a standby is seen before the standby has it.
    PERFORM tenure.stm_lock(a_root);
    SELECT m.revision, m.nonce, m.committed INTO found_marker
        FROM tenure.markers AS m WHERE m.session = a_session AND m.slot = a_slot;
    there := FOUND;
    IF there AND found_marker.revision <> a_last THEN
        last := found_marker.revision;
        IF found_marker.nonce = a_nonce AND found_marker.committed IS NOT NULL THEN
            status := 'committed';
            succeeded := found_marker.committed;
        ELSE
            -- Another came first: this one cannot come any more.
            status := 'aborted';
        END IF;
        RETURN;
    END IF;
    IF NOT tenure.alive(a_session) THEN
        -- No commit of a dead session comes any more.
        status := CASE WHEN there THEN 'aborted' ELSE 'unknown' END;
        last := a_last;
        RETURN;
    END IF;
    status := 'aborted';
    last := nextval('tenure.tokens');
    UPDATE tenure.revisions AS r SET revision = last WHERE r.root = a_root;
    INSERT INTO tenure.markers VALUES (a_session, a_slot, last, a_nonce, NULL, clock_timestamp())
        ON CONFLICT (session, slot) DO UPDATE SET revision = excluded.revision, nonce = excluded.nonce,
        committed = excluded.committed, since = excluded.since;
END $$;

-- Ends who has had the turn for `patience` and is silent: no timeout of the server counts while it waits for
-- the end of a request, or for a client that does not read. Only those of one's own role. Says how many.
CREATE OR REPLACE FUNCTION tenure.stm_unblock(patience interval) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()
        AND a.state = 'active' AND a.wait_event_type = 'Client' AND a.query LIKE '%tenure.stm\_%'
        AND a.state_change < clock_timestamp() - patience
$$;

-- Collects the markers of sessions that ended more than a minute after their last commit: until then
-- somebody may still ask what came of it. At most 1000 sessions at a time.
CREATE OR REPLACE FUNCTION tenure.stm_sweep() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner bigint;
BEGIN
    FOR owner IN
        SELECT m.session FROM tenure.markers AS m
        WHERE NOT EXISTS (SELECT FROM tenure.sessions AS s WHERE s.id = m.session)
        GROUP BY m.session HAVING max(m.since) < clock_timestamp() - interval '1 minute'
        LIMIT 1000
    LOOP
        CONTINUE WHEN tenure.alive(owner);
        DELETE FROM tenure.markers AS m WHERE m.session = owner;
    END LOOP;
END $$;

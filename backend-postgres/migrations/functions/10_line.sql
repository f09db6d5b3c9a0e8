-- Lines: locks, elections and read-write locks stand in one each.
--
-- No step here waits for the disk, or for a standby: nothing of it is to outlive the server, and numbers are
-- put in order again by `revive`.
--
-- Whoever holds has the advisory lock on the line's key, on its session's connection, and no row here.
-- Whoever waits has a ticket. Nobody takes the lock while a live ticket stands before: that is the order.
-- `mine` says that the session itself has the key in a way that excludes this ask: PostgreSQL would let
-- it have the lock twice.

CREATE OR REPLACE FUNCTION tenure.line_try(a_key bigint, a_shared boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF a_shared THEN
        RETURN pg_try_advisory_lock_shared(a_key);
    END IF;
    RETURN pg_try_advisory_lock(a_key);
END $$;

-- Buries a dead ticket, unless another is at it: who goes through several lines, and who clears up after
-- several sessions, meet the tickets in orders of their own, and are not to wait for one another.
CREATE OR REPLACE FUNCTION tenure.line_forget(a_key bigint, a_id bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM tenure.tickets AS t WHERE t.key = a_key AND t.id = a_id FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        DELETE FROM tenure.tickets AS t WHERE t.key = a_key AND t.id = a_id;
    END IF;
END $$;

-- What is in the way of an ask before the ticket `a_before`: 0 nobody; -1 somebody of its own session,
-- who looks out for both; else how many sessions stand before it. Dead tickets are buried on the way.
CREATE OR REPLACE FUNCTION tenure.line_ahead(me bigint, a_key bigint, a_before bigint, a_shared boolean)
RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ticket record;
    sessions bigint[];
    buried boolean := false;
BEGIN
    FOR ticket IN
        SELECT t.id, t.session, t.nonce, t.shared, t.channel FROM tenure.tickets AS t
        WHERE t.key = a_key AND t.id < a_before ORDER BY t.id
    LOOP
        IF NOT tenure.alive(ticket.session) THEN
            PERFORM tenure.line_forget(a_key, ticket.id);
            buried := true;
            CONTINUE;
        END IF;
        IF buried THEN
            -- Nobody else tells it that those before it are gone.
            PERFORM tenure.tell(ticket.channel, ticket.nonce);
            buried := false;
        END IF;
        IF NOT (a_shared AND ticket.shared) THEN
            SELECT array_agg(DISTINCT b.session) INTO sessions FROM (
                SELECT t.session FROM tenure.tickets AS t
                WHERE t.key = a_key AND t.id < a_before ORDER BY t.id LIMIT 64
            ) AS b;
            RETURN CASE WHEN me = ANY (sessions) THEN -1 ELSE greatest(cardinality(sessions), 1) END;
        END IF;
    END LOOP;
    RETURN 0;
END $$;

-- Takes the lock if nobody is in the way: then there is a token. Else leaves a ticket, if it `waits`.
CREATE OR REPLACE FUNCTION tenure.line_join(
    me bigint, a_nonce bigint, a_channel text, a_path text, a_key bigint, a_shared boolean,
    mine boolean, waits boolean, a_value bytea DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    free boolean := true;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    -- One after the other: the operands of AND have no order.
    IF NOT mine THEN
        PERFORM FROM tenure.tickets AS t WHERE t.key = a_key LIMIT 1;
        IF FOUND THEN
            free := tenure.line_ahead(me, a_key, 9223372036854775807, a_shared) = 0;
        END IF;
        IF free THEN
            IF (CASE WHEN a_shared THEN pg_try_advisory_lock_shared(a_key) ELSE pg_try_advisory_lock(a_key) END) THEN
                RETURN nextval('tenure.tokens');
            END IF;
        END IF;
    END IF;
    IF waits THEN
        INSERT INTO tenure.tickets (key, session, nonce, shared, channel, path, value)
            VALUES (a_key, me, a_nonce, a_shared, a_channel, a_path, a_value)
            ON CONFLICT (session, nonce) DO NOTHING;
    END IF;
    RETURN NULL;
END $$;

-- `line_join` for a reader whose session has the lock shared already, through another reader. The server
-- counts the shares of a session, and an unlock is not rolled back: with a second share, an unlock that is
-- repeated after a failure would free that of the other reader. So a session never takes a second one.
CREATE OR REPLACE FUNCTION tenure.line_share(
    me bigint, a_nonce bigint, a_channel text, a_path text, a_key bigint, waits boolean
) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF tenure.line_ahead(me, a_key, 9223372036854775807, true) = 0 THEN
        RETURN nextval('tenure.tokens');
    END IF;
    RETURN tenure.line_join(me, a_nonce, a_channel, a_path, a_key, true, true, waits);
END $$;

-- Whether it is the ticket's turn: a token if so; else what is in the way, as `line_ahead` has it, and 1
-- for a holder. Neither: there is no such ticket.
-- `a_has` says that the session has the lock shared already, through another reader.
CREATE OR REPLACE FUNCTION tenure.line_look(
    me bigint, a_nonce bigint, a_key bigint, a_shared boolean, a_has boolean,
    OUT token bigint, OUT ahead integer, OUT value bytea
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mine bigint;
    follower record;
BEGIN
    SELECT t.id INTO mine FROM tenure.tickets AS t WHERE t.session = me AND t.nonce = a_nonce;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    ahead := tenure.line_ahead(me, a_key, mine, a_shared);
    IF ahead <> 0 THEN
        RETURN;
    END IF;
    IF NOT a_has THEN
        IF NOT tenure.line_try(a_key, a_shared) THEN
            ahead := 1;
            RETURN;
        END IF;
    END IF;
    token := nextval('tenure.tokens');
    DELETE FROM tenure.tickets AS t WHERE t.key = a_key AND t.id = mine RETURNING t.value INTO value;
    IF a_shared THEN
        -- Neighbouring readers are granted together, also when it was a dead writer who let them in.
        SELECT t.channel, t.nonce, t.shared INTO follower FROM tenure.tickets AS t
            WHERE t.key = a_key AND t.id > mine ORDER BY t.id LIMIT 1;
        IF FOUND AND follower.shared THEN
            PERFORM tenure.tell(follower.channel, follower.nonce);
        END IF;
    END IF;
END $$;

-- The same as clients of version 1 call it, and elections.
CREATE OR REPLACE FUNCTION tenure.line_look(
    me bigint, a_nonce bigint, a_key bigint, a_shared boolean,
    OUT token bigint, OUT ahead integer, OUT value bytea
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT l.token, l.ahead, l.value INTO token, ahead, value
        FROM tenure.line_look(me, a_nonce, a_key, a_shared, false) AS l;
END $$;

-- Tells those whose turn it may be: the first live ticket, and if that is a reader's, the readers right
-- behind it. Those heard on `a_channel` are returned instead: the caller tells them.
CREATE OR REPLACE FUNCTION tenure.line_nudge(a_channel text, a_key bigint) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ticket record;
    told boolean := false;
    ours bigint[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR ticket IN
        SELECT t.id, t.session, t.nonce, t.shared, t.channel FROM tenure.tickets AS t
        WHERE t.key = a_key ORDER BY t.id
    LOOP
        IF NOT tenure.alive(ticket.session) THEN
            PERFORM tenure.line_forget(a_key, ticket.id);
            CONTINUE;
        END IF;
        EXIT WHEN told AND NOT ticket.shared;
        IF ticket.channel = a_channel THEN
            ours := ours || ticket.nonce;
        ELSE
            PERFORM tenure.tell(ticket.channel, ticket.nonce);
        END IF;
        told := true;
        EXIT WHEN NOT ticket.shared;
    END LOOP;
    RETURN ours;
END $$;

-- Lets go of the lock, and hands on. Unlocks first: whoever is not seen below left its ticket later, and
-- looks once more after that.
-- Returns nothing if it was not held, else those of the caller's to tell.
CREATE OR REPLACE FUNCTION tenure.line_leave(a_channel text, a_key bigint, a_shared boolean)
RETURNS bigint[] LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT (CASE WHEN a_shared THEN pg_advisory_unlock_shared(a_key) ELSE pg_advisory_unlock(a_key) END) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM tenure.tickets AS t WHERE t.key = a_key LIMIT 1;
    IF FOUND THEN
        RETURN coalesce(tenure.line_nudge(a_channel, a_key), '{}');
    END IF;
    RETURN '{}';
END $$;

-- Removes tickets. The next are told by a `line_nudge` of its own, once this is committed: in one
-- transaction, the two could miss somebody who comes in between, and who in turn does not see that a ticket
-- is gone.
CREATE OR REPLACE FUNCTION tenure.line_withdraw(me bigint, a_nonces bigint[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT set_config('synchronous_commit', 'off', true);
    DELETE FROM tenure.tickets AS t WHERE t.session = me AND t.nonce = ANY (a_nonces)
$$;

-- Removes the tickets of dead sessions, or of one that ends. Those behind them are nudged afterwards; what another is
-- burying is its business.
CREATE OR REPLACE FUNCTION tenure.line_bury(dead bigint[]) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tenure.line_forget(t.key, t.id) FROM tenure.tickets AS t WHERE t.session = ANY (dead);
END $$;

-- The same for sessions that are dead, and tells those behind them. In one transaction, because a dead ticket counts for
-- nobody: one that comes meanwhile takes no notice of it, removed or not.
CREATE OR REPLACE FUNCTION tenure.line_bury_and_nudge(dead bigint[]) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys bigint[];
BEGIN
    SELECT array_agg(DISTINCT t.key) INTO keys FROM tenure.tickets AS t WHERE t.session = ANY (dead);
    IF keys IS NOT NULL THEN
        PERFORM tenure.line_bury(dead);
        PERFORM tenure.line_nudge('', k.key) FROM unnest(keys) AS k(key);
    END IF;
END $$;

-- Does it for all that wait here and whose connection is gone: at most 1000 sessions at a time. By the list of the
-- server's connections, so that it costs O(sessions), however many wait.
CREATE OR REPLACE FUNCTION tenure.line_wake() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    dead bigint[];
BEGIN
    -- A role that may not see when a connection began takes another with that number for it: the sweep finds those.
    WITH connected AS MATERIALIZED (SELECT a.pid, a.backend_start FROM pg_stat_get_activity(NULL) AS a),
    gone AS MATERIALIZED (
        SELECT s.id FROM tenure.sessions AS s
        LEFT JOIN connected AS c ON c.pid = s.pid AND (c.backend_start IS NULL OR c.backend_start = s.started)
        WHERE c.pid IS NULL AND EXISTS (SELECT FROM tenure.tickets AS t WHERE t.session = s.id)
        LIMIT 1000
    )
    SELECT array_agg(g.id) INTO dead FROM gone AS g WHERE NOT tenure.alive(g.id);
    IF dead IS NOT NULL THEN
        PERFORM tenure.line_bury_and_nudge(dead);
    END IF;
END $$;

-- What becomes of what sessions leave.

-- Removes everything of sessions that have ended. Every part has its own `<part>_bury` here: it must be
-- harmless if repeated, and if two do it at once. What a part left because another was at it is for the
-- next time.
--
-- One part after the other for all of them, and in each in the order of the paths, because all that is
-- locked stays so until the end: session by session, two who clear up could wait for each other.
CREATE OR REPLACE FUNCTION tenure.bury(dead bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tenure.line_bury(dead);
    PERFORM tenure.election_bury(dead);
    PERFORM tenure.queue_bury(dead);
    PERFORM tenure.barrier_bury(dead);
    DELETE FROM tenure.sessions AS s WHERE s.id = ANY (dead)
        AND NOT EXISTS (SELECT FROM tenure.elections AS e WHERE e.session = s.id)
        AND NOT EXISTS (SELECT FROM tenure.tickets AS t WHERE t.session = s.id);
END $$;

-- The end of a session by its own will: nothing of it is left. Returns the keys of the lines that it
-- waited in, for a `line_nudge` of those behind it. Its connection is closed next.
CREATE OR REPLACE FUNCTION tenure.close(me bigint) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waited bigint[];
BEGIN
    -- What of it is lost in a crash, or with a primary, is that of a dead session then.
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT array_agg(DISTINCT t.key) INTO waited FROM tenure.tickets AS t WHERE t.session = me;
    PERFORM tenure.bury(ARRAY[me]);
    PERFORM pg_advisory_unlock_all();
    RETURN waited;
END $$;

-- `idle_session_timeout` does not end a backend that waits for the rest of a request, or for room to send
-- an answer. Nothing has moved there for longer than the lease. For the whole database, if nobody has
-- looked for half a second: those who wait come here. And tells those who wait behind sessions that have ended: where
-- many of them end at once, nobody behind them would look for a long time. Returns how many were ended.
CREATE OR REPLACE FUNCTION tenure.end_silent() RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ended bigint;
BEGIN
    -- A look in the future is none: the clock was set back.
    IF EXISTS (SELECT FROM tenure.sweeps AS s
            WHERE s.silent BETWEEN clock_timestamp() - interval '0.5 seconds' AND clock_timestamp())
        OR NOT pg_try_advisory_xact_lock(hashtextextended('tenure/1/silent', 0))
    THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) INTO ended
        FROM tenure.sessions AS s
        JOIN pg_stat_activity AS a ON a.pid = s.pid AND a.backend_start = s.started
        -- The idle are left to that timer: it goes by the time that passes, whereas this would end them all
        -- when the clock is set forward. With `track_activities` off nobody knows who is idle: then by what
        -- they said themselves, which they do since it is off.
        WHERE (CASE WHEN a.state = 'disabled' THEN greatest(s.seen, pg_conf_load_time())
                WHEN a.state <> 'idle' THEN a.state_change END)
                < clock_timestamp() - s.ttl - interval '0.25 seconds'
            AND a.pid <> pg_backend_pid()
            -- A role that may see this may not be one that may end it.
            AND (pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'));
    PERFORM tenure.line_wake();
    INSERT INTO tenure.sweeps (last, silent) VALUES ('-infinity', clock_timestamp())
        ON CONFLICT (one) DO UPDATE SET silent = excluded.silent;
    RETURN ended;
END $$;

-- Looks after the dead, for the whole database, if nobody has for five seconds: then it returns -1. Else how many it
-- buried, at most 100: then the caller repeats it at once. `collect` follows.
CREATE OR REPLACE FUNCTION tenure.sweep() RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    session bigint;
    dead bigint[] := '{}';
BEGIN
    -- A sweep in the future is none: the clock was set back.
    IF EXISTS (SELECT FROM tenure.sweeps
            WHERE last BETWEEN clock_timestamp() - interval '5 seconds' AND clock_timestamp())
        OR NOT pg_try_advisory_xact_lock(hashtextextended('tenure/1/sweep', 0))
    THEN
        RETURN -1;
    END IF;
    -- Whatever is lost of it the next one does again.
    PERFORM set_config('synchronous_commit', 'off', true);
    -- First, for what these keep locked the rest may wait for, and fail.
    PERFORM tenure.end_silent();
    PERFORM tenure.stm_unblock(interval '10 seconds');
    FOR session IN SELECT s.id FROM tenure.sessions AS s LOOP
        CONTINUE WHEN tenure.alive(session);
        dead := dead || session;
        EXIT WHEN cardinality(dead) = 100;
    END LOOP;
    PERFORM tenure.line_bury_and_nudge(dead);
    PERFORM tenure.bury(dead);
    PERFORM tenure.barrier_sweep();
    PERFORM tenure.stm_sweep();
    IF cardinality(dead) < 100 THEN
        INSERT INTO tenure.sweeps (last) VALUES (clock_timestamp())
            ON CONFLICT (one) DO UPDATE SET last = excluded.last;
    END IF;
    RETURN cardinality(dead);
END $$;

-- Replaced by `collect`.
DROP FUNCTION IF EXISTS tenure.queue_sweep(), tenure.election_forget();

-- Collects what nobody needs any more, a bounded batch of each kind: `queue_collect`, whose `a_from` it takes and
-- returns, and vacancies. Says whether there is more to collect at once.
CREATE OR REPLACE FUNCTION tenure.collect(INOUT a_from bigint, OUT more boolean) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    vacancies integer;
BEGIN
    -- Whatever is lost of it the next one does again.
    PERFORM set_config('synchronous_commit', 'off', true);
    vacancies := tenure.election_collect();
    SELECT c.a_from, c.more INTO a_from, more FROM tenure.queue_collect(a_from) AS c;
    more := more OR vacancies = 1000;
END $$;

-- One renewal: that the answer comes back is the point. Says by which backend.
CREATE OR REPLACE FUNCTION tenure.renew() RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('track_activities') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        UPDATE tenure.sessions AS s SET seen = clock_timestamp() WHERE s.id = tenure.me();
    END IF;
    RETURN pg_backend_pid();
END $$;

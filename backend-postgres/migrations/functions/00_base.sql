-- The ground that every primitive stands on: the layout's version, sessions, tokens, who is told.
--
-- Every function here and in the other files is one step: it runs in a transaction of its own, beside
-- others, at READ COMMITTED, so that each statement inside sees what was committed before it began.
--
-- Every function sets its own `search_path`: a role that may create functions in `public`, or in whatever
-- schema the caller's path names, could otherwise have its own function or operator run as the caller, by
-- one whose arguments match better than those of `pg_catalog`. The body of one that is a single expression
-- (`RETURN`) is parsed when it is created, with the path of the migration, and can be inlined.

CREATE OR REPLACE FUNCTION tenure.place() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), d.oid, 'tenure.life'::regclass::oid)
    FROM pg_database AS d WHERE d.datname = current_database()
$$;

-- Makes sure that tokens rise over all that were given out before the server's last crash. All
-- sessions ended in it, and every new one passes here before it can be granted anything. A million,
-- because grants do not wait for the disk, which a crash finds up to three `wal_writer_delay` behind.
-- Microseconds, because a standby that lagged may have missed any number of tokens, but not more than
-- time has. Says whether there was anything to do, which has to be on disk then.
CREATE OR REPLACE FUNCTION tenure.revive() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM tenure.life AS l WHERE l.place = tenure.place()) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('tenure/1/life', 0));
    IF EXISTS (SELECT FROM tenure.life AS l WHERE l.place = tenure.place()) THEN
        RETURN false;
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM setval('tenure.tokens', greatest(
        last_value + 1048576,
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    )) FROM tenure.tokens;
    PERFORM tenure.queue_revive();
    DELETE FROM tenure.life;
    INSERT INTO tenure.life (place) VALUES (tenure.place());
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION tenure.session_key(session bigint) RETURNS bigint LANGUAGE sql IMMUTABLE
    RETURN hashtextextended('tenure/1/session/' || session::text, 0);

-- The session of this connection, if it is a session's.
CREATE OR REPLACE FUNCTION tenure.me() RETURNS bigint LANGUAGE sql STABLE
    RETURN nullif(current_setting('tenure.session', true), '')::bigint;

-- Whether a session lives. One probe of the lock table, whatever the number of locks; one's own lock
-- would not be in one's way, hence the first case. The lock is given back at once: whoever looks after
-- thousands of dead ones in one go would fill that table, which is the whole server's.
CREATE OR REPLACE FUNCTION tenure.alive(session bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF session = tenure.me() THEN
        RETURN true;
    END IF;
    -- In one expression: a cancel between the two would leave the lock behind, and the dead session alive.
    RETURN CASE WHEN pg_try_advisory_lock_shared(tenure.session_key(session))
        THEN NOT pg_advisory_unlock_shared(tenure.session_key(session)) ELSE true END;
END $$;

-- Makes this connection a session. Its settings end it when it is silent for `ttl` milliseconds.
CREATE OR REPLACE FUNCTION tenure.open(a_channel text, a_ttl bigint, OUT id bigint, OUT pid integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tenure.revive() THEN
        -- A session is in the server's memory, and so is its row. To wait here would be to wait for a
        -- standby now and then, for a number.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    id := nextval('tenure.tokens');
    pid := pg_backend_pid();
    IF NOT pg_try_advisory_lock(tenure.session_key(id)) THEN
        RAISE EXCEPTION 'session % is there already', id;
    END IF;
    PERFORM set_config('tenure.session', id::text, false);
    INSERT INTO tenure.sessions (id, pid, started, channel, ttl, seen)
        SELECT open.id, a.pid, a.backend_start, a_channel, a_ttl * interval '1 millisecond', clock_timestamp()
        FROM pg_stat_activity AS a WHERE a.pid = open.pid;
END $$;

-- A nonce as it is written in messages and keys.
CREATE OR REPLACE FUNCTION tenure.hex(nonce bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN lpad(to_hex(nonce), 16, '0');

-- What notifies never waits for the disk, or for a standby: PostgreSQL lets one transaction of the whole server that
-- notifies commit at a time, and keeps those of every other database waiting until it has ended. So what has to be
-- durable is a step of its own, before.

-- Tells the ask `nonce`, which is heard on `channel`, to look again.
CREATE OR REPLACE FUNCTION tenure.tell(channel text, nonce bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_notify(channel, tenure.hex(nonce));
END $$;

-- Tells it that it holds now. Only for what is held by a row: an advisory lock nobody can give away.
CREATE OR REPLACE FUNCTION tenure.tell_granted(channel text, nonce bigint, token bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_notify(channel, tenure.hex(nonce) || ' ' || token);
END $$;

-- Tells everybody who watches the object whose path has this key.
CREATE OR REPLACE FUNCTION tenure.tell_topic(key bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_notify('tenure_t_' || key, '');
END $$;

-- For operators: sees to it that every later token of every namespace here is at least `a_floor`. Sets the sequence
-- some way above it, because another may draw numbers between the look and the step; far fewer than that.
CREATE OR REPLACE FUNCTION tenure.raise_tokens(a_floor bigint) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Beside `revive`, and another that does the same.
    PERFORM pg_advisory_xact_lock(hashtextextended('tenure/1/life', 0));
    IF (SELECT t.last_value FROM tenure.tokens AS t) < a_floor THEN
        PERFORM setval('tenure.tokens', a_floor + 1048576);
    END IF;
END $$;

-- For operators: ends a session and with it all that it holds. Says whether it lived.
CREATE OR REPLACE FUNCTION tenure.terminate(session bigint) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(bool_or(pg_terminate_backend(a.pid)), false)
    FROM tenure.sessions AS s
    JOIN pg_stat_activity AS a ON a.pid = s.pid AND a.backend_start = s.started
    WHERE s.id = terminate.session
$$;

-- For operators: orders a session to let go of one lock, leadership or side of a read-write lock, named
-- by the part of its key after the `#`. Its process does it as soon as it hears.
CREATE OR REPLACE FUNCTION tenure.evict(holding text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF holding !~ '^[0-9]{1,18}:[0-9a-f]{16}$' THEN
        RAISE EXCEPTION '"%" is not the part of a key after its #: SESSION:NONCE, as in 17:00000000000000a1', holding
            USING ERRCODE = 'invalid_parameter_value',
            HINT = 'By the name of a lock: tenure.evict_path(''tenure/1/NAMESPACE/lock/NAME'').';
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_notify(s.channel, 'evict ' || holding)
    FROM tenure.sessions AS s
    WHERE s.id = split_part(holding, ':', 1)::bigint;
END $$;

-- For operators: the same for whoever holds what has this path, `tenure/1/<namespace>/<kind>/<name>`, in
-- any way. Returns how many sessions were told.
CREATE OR REPLACE FUNCTION tenure.evict_path(path text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(pg_notify(s.channel, 'evict ' || s.id || ':key ' || hashtextextended(path, 0)))
    FROM tenure.sessions AS s
    WHERE tenure.alive(s.id) AND s.pid IN (
        SELECT l.pid FROM pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
            AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(path, 0)
    )
$$;

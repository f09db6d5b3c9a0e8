-- Read-write locks: a line (10_line.sql) in which readers take the advisory lock shared.

-- Makes the writer that the session is a reader, in its place: it has the lock shared before it lets go of
-- it, so no writer comes in between. Tells the readers right behind it; those heard on `a_channel` are
-- returned. `again` says that an earlier try failed half-way: locks are not rolled back.
CREATE OR REPLACE FUNCTION tenure.rw_lock_downgrade(a_channel text, a_key bigint, again boolean)
RETURNS bigint[] LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shared boolean := false;
BEGIN
    IF again THEN
        SELECT EXISTS (
            SELECT FROM pg_locks AS l
            WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory' AND l.objsubid = 1
                AND (l.classid::bigint << 32) | l.objid::bigint = a_key AND l.mode = 'ShareLock'
        ) INTO shared;
    END IF;
    IF NOT shared THEN
        IF NOT pg_try_advisory_lock_shared(a_key) THEN
            RETURN NULL;
        END IF;
    END IF;
    IF NOT pg_advisory_unlock(a_key) THEN
        IF NOT again THEN
            PERFORM pg_advisory_unlock_shared(a_key);
            RETURN NULL;
        END IF;
    END IF;
    RETURN coalesce(tenure.line_nudge(a_channel, a_key), '{}');
END $$;

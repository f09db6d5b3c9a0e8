-- The server's lock table is shared by all its databases, and where it is full nobody can even connect.
--
-- A session that holds more names than a connection's own share of the table reserves room for them, many at a
-- time. A reservation is itself an advisory lock, because those are all that every database sees: shared, and its
-- key contains the number that is reserved. A session publishes its reservation first and counts those of all
-- sessions afterwards. Of any number of sessions that do so at the same time the last one sees all others, so that
-- together they never keep more than the budget; no lock is held meanwhile, and a reservation ends with its session.

-- The key of a reservation of so many locks. Its upper half tells it from other keys: `tenr`.
CREATE OR REPLACE FUNCTION tenure.reservation_key(amount bigint) RETURNS bigint LANGUAGE sql IMMUTABLE
    RETURN (1952804466::bigint << 32) | amount;

-- Reserves `a_want` locks for this connection, or as many as the budget has left, but no less than `a_least`. Returns
-- how many are reserved, which replaces what was, or null if there is no room; and how many locks others hold or
-- have reserved. A step that failed midway leaves a reservation too many, which the next one removes.
CREATE OR REPLACE FUNCTION tenure.reserve_locks(
    a_want bigint, a_least bigint, a_budget bigint, OUT reserved bigint, OUT others bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mine bigint[];
    amount bigint;
BEGIN
    IF pg_try_advisory_lock_shared(tenure.reservation_key(a_want)) THEN
        -- One scan of the lock table, which stops its other users for as long: O(locks on the server).
        SELECT coalesce(sum(greatest(p.locks, p.room)) FILTER (WHERE NOT p.is_mine), 0),
            min(p.rooms) FILTER (WHERE p.is_mine)
        INTO others, mine
        FROM (
            SELECT coalesce(l.pid = pg_backend_pid(), false) AS is_mine,
                count(*) FILTER (WHERE NOT l.is_room) AS locks,
                coalesce(max(l.amount) FILTER (WHERE l.is_room), 0) AS room,
                array_agg(l.amount) FILTER (WHERE l.is_room) AS rooms
            FROM (
                SELECT k.pid, k.objid::bigint AS amount,
                    k.objsubid = 1 AND k.classid::bigint = 1952804466 AS is_room
                FROM pg_locks AS k WHERE k.locktype = 'advisory'
            ) AS l
            GROUP BY l.pid
        ) AS p;
        IF others + a_want <= a_budget THEN
            reserved := a_want;
        ELSIF others + a_least <= a_budget THEN
            -- Covered by the greater one, which is given back only afterwards.
            IF pg_try_advisory_lock_shared(tenure.reservation_key(a_budget - others)) THEN
                reserved := a_budget - others;
            END IF;
        END IF;
        IF reserved IS NULL THEN
            PERFORM pg_advisory_unlock_shared(tenure.reservation_key(a_want));
        ELSE
            FOREACH amount IN ARRAY mine LOOP
                IF amount <> reserved THEN
                    PERFORM pg_advisory_unlock_shared(tenure.reservation_key(amount));
                END IF;
            END LOOP;
        END IF;
    END IF;
END $$;

-- Gives a reservation back, but for `a_keep`.
CREATE OR REPLACE FUNCTION tenure.return_locks(a_reserved bigint, a_keep bigint) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kept bigint := 0;
BEGIN
    IF a_keep > 0 THEN
        IF NOT pg_try_advisory_lock_shared(tenure.reservation_key(a_keep)) THEN
            RETURN a_reserved;
        END IF;
        kept := a_keep;
    END IF;
    PERFORM pg_advisory_unlock_shared(tenure.reservation_key(a_reserved));
    RETURN kept;
END $$;

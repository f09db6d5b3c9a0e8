-- Queues. An item is known by its place: queue, priority, number. It is written once, and deleted when
-- it is acknowledged. What becomes of it in between is in `queue_dealt`: an item that was never delivered
-- has no row there, and is called fresh.
--
-- Whoever changes what can be delivered, or who waits, locks the queue's row first. So numbers are given
-- out in the order in which items become visible, and nobody falls asleep beside an item. Those steps
-- commit without waiting for the disk, or the next one would wait for it, too: what is to be durable is
-- followed by a `flush`. An acknowledgement needs no lock: its delivery is its own.
--
-- Fresh items of one priority are delivered in the order of their numbers, and what comes back is not
-- fresh. So a session that was given number n finds none below: it says so with its next take, and the
-- step does not wade through what was deleted there since the last VACUUM. The same holds for those who
-- wait: all up to the last who was told are gone. Such marks die with their session, and so with the server.

-- After a crash: nobody has anything, for the sessions have all ended.
CREATE OR REPLACE FUNCTION tenure.queue_revive() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE tenure.queue_dealt SET session = NULL, nonce = NULL, token = NULL WHERE session IS NOT NULL
$$;

-- Sees to it that all that the session `me` committed before is on disk, and where that is asked for, on a standby.
-- On another connection than the session's, whose renewals do not wait for it. False: the session has ended, perhaps in
-- a crash of the server that forgot what was to be flushed.
CREATE OR REPLACE FUNCTION tenure.flush(me bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT tenure.alive(me) THEN
        RETURN false;
    END IF;
    PERFORM pg_logical_emit_message(true, 'tenure', '');
    RETURN true;
END $$;

-- The same for clients that flush on the session's connection.
CREATE OR REPLACE FUNCTION tenure.flush() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_logical_emit_message(true, 'tenure', '')
$$;

-- Locks a queue; null if there is none.
CREATE OR REPLACE FUNCTION tenure.queue_lock(a_path text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    queue bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT q.id INTO queue FROM tenure.queues AS q WHERE q.path = a_path FOR UPDATE;
    RETURN queue;
END $$;

-- Locks a queue, and creates it if need be.
CREATE OR REPLACE FUNCTION tenure.queue_open(a_path text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    queue bigint;
BEGIN
    LOOP
        queue := tenure.queue_lock(a_path);
        IF queue IS NOT NULL THEN
            RETURN queue;
        END IF;
        INSERT INTO tenure.queues (path) VALUES (a_path) ON CONFLICT DO NOTHING;
    END LOOP;
END $$;

-- Tells up to `a_count` of those who wait that there are items for them; `a_told` is the caller's mark.
-- Those heard on `a_channel` are returned instead: the caller tells them. The queue is locked.
CREATE OR REPLACE FUNCTION tenure.queue_tell(
    a_queue bigint, a_count integer, a_channel text, INOUT a_told bigint, INOUT a_ours bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wait record;
BEGIN
    WHILE a_count > 0 LOOP
        SELECT w.id, w.session, w.nonce, w.channel INTO wait FROM tenure.queue_waits AS w
            WHERE w.queue = a_queue AND w.id > a_told ORDER BY w.id LIMIT 1;
        EXIT WHEN NOT FOUND;
        DELETE FROM tenure.queue_waits AS w WHERE w.queue = a_queue AND w.id = wait.id;
        a_told := wait.id;
        IF tenure.alive(wait.session) THEN
            a_count := a_count - 1;
            IF wait.channel = a_channel THEN
                a_ours := a_ours || wait.nonce;
            ELSE
                PERFORM tenure.tell(wait.channel, wait.nonce);
            END IF;
        END IF;
    END LOOP;
END $$;

-- Puts items in, in this order, unless their ids are known.
CREATE OR REPLACE FUNCTION tenure.queue_enqueue(
    a_channel text, a_path text, a_priorities integer[], a_names text[], a_values bytea[],
    INOUT told bigint, OUT ours bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_queue bigint := tenure.queue_open(a_path);
    accepted integer := 0;
BEGIN
    FOR at IN 1 .. cardinality(a_priorities) LOOP
        IF a_names[at] IS NOT NULL THEN
            INSERT INTO tenure.queue_names AS n (queue, name) VALUES (its_queue, a_names[at])
                ON CONFLICT ON CONSTRAINT queue_names_pkey
                DO UPDATE SET until = NULL WHERE n.until < clock_timestamp();
            CONTINUE WHEN NOT FOUND;
        END IF;
        INSERT INTO tenure.queue_items (queue, priority, name, value)
            VALUES (its_queue, a_priorities[at], a_names[at], a_values[at]);
        accepted := accepted + 1;
    END LOOP;
    SELECT t.a_told, t.a_ours INTO told, ours
        FROM tenure.queue_tell(its_queue, accepted, a_channel, told, NULL) AS t;
END $$;

-- Puts back what a session has, all or that of one take, as if it had been delivered so many times less.
-- Says how much. The queue is locked.
CREATE OR REPLACE FUNCTION tenure.queue_return(a_queue bigint, a_session bigint, a_nonce bigint, a_less integer)
RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    returned integer;
BEGIN
    UPDATE tenure.queue_dealt AS d
        SET session = NULL, nonce = NULL, token = NULL, deliveries = d.deliveries - a_less
        WHERE d.session = a_session AND d.queue = a_queue AND (a_nonce IS NULL OR d.nonce = a_nonce);
    GET DIAGNOSTICS returned = ROW_COUNT;
    RETURN returned;
END $$;

-- Puts back what the dead have of a queue, unless somebody did so within the last quarter of a second (or
-- will have: then the clock was set back).
-- Says how much. The queue is locked.
CREATE OR REPLACE FUNCTION tenure.queue_refresh(a_queue bigint, me bigint) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    consumer bigint;
    returned integer := 0;
BEGIN
    UPDATE tenure.queues AS q SET looked = clock_timestamp()
        WHERE q.id = a_queue AND (q.looked < clock_timestamp() - interval '250 milliseconds'
            OR q.looked > clock_timestamp());
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    FOR consumer IN
        SELECT c.session FROM tenure.queue_consumers AS c WHERE c.queue = a_queue AND c.session <> me
    LOOP
        IF NOT tenure.alive(consumer) THEN
            returned := returned + tenure.queue_return(a_queue, consumer, NULL, 0);
            DELETE FROM tenure.queue_consumers AS c WHERE c.queue = a_queue AND c.session = consumer;
        END IF;
    END LOOP;
    RETURN returned;
END $$;

-- Takes up to `a_most` items. `a_known` is the queue that the session is known to as a consumer;
-- `a_priorities` and `a_numbers` are its marks: no fresh item of that priority is below that number.
-- `a_stood` says that this ask may stand in line already.
--
-- Values that are too large for a session's connection are null. Without items: `letters` if one that
-- was delivered `a_after` times is in the way; else who `waits` stands in line, `first` or not, and has
-- to look again by itself when the next delay is over, after `due` milliseconds.
CREATE OR REPLACE FUNCTION tenure.queue_take(
    me bigint, a_nonce bigint, a_channel text, a_path text, a_most integer, a_after integer,
    a_waits boolean, a_stood boolean, a_known bigint, a_priorities integer[], a_numbers bigint[],
    INOUT told bigint,
    OUT queue bigint, OUT tokens bigint[], OUT priorities integer[], OUT numbers bigint[],
    OUT deliveries integer[], OUT vals bytea[], OUT ours bigint[],
    OUT letters boolean, OUT first boolean, OUT due bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at_segment integer := 0;
    segments integer := coalesce(cardinality(a_priorities), 0);
    at_priority integer := 0;
    at_number bigint := 0;
    before_priority integer;
    fresh record;
    back record;
    is_fresh boolean;
    is_back boolean;
    item record;
    returned integer;
    came_due integer;
    granted bigint;
    bytes bigint := 0;
    others boolean := false;
    at_time timestamptz;
BEGIN
    queue := tenure.queue_lock(a_path);
    IF queue IS NULL THEN
        IF NOT a_waits THEN
            RETURN;
        END IF;
        queue := tenure.queue_open(a_path);
    END IF;
    IF a_stood THEN
        PERFORM FROM tenure.queue_waits AS w WHERE w.queue = queue_take.queue AND w.id > told
            AND (w.session, w.nonce) IS DISTINCT FROM (me, a_nonce) LIMIT 1;
        others := FOUND;
    END IF;
    returned := tenure.queue_refresh(queue, me);
    at_time := clock_timestamp();
    -- With the time as a value: a bound of the index scan.
    PERFORM FROM tenure.queue_dealt AS d WHERE d.queue = queue_take.queue AND d.due <= at_time LIMIT 1;
    IF FOUND THEN
        UPDATE tenure.queue_dealt AS d SET due = NULL
            FROM (SELECT l.priority, l.number FROM tenure.queue_dealt AS l
                WHERE l.queue = queue_take.queue AND l.due <= at_time
                ORDER BY l.queue, l.due LIMIT 500) AS late
            WHERE d.queue = queue_take.queue AND d.priority = late.priority AND d.number = late.number;
        GET DIAGNOSTICS came_due = ROW_COUNT;
        returned := returned + came_due;
    END IF;

    -- Fresh items are looked for from mark to mark.
    before_priority := CASE WHEN segments > 0 THEN a_priorities[1] ELSE 65536 END;
    is_back := true;
    LOOP
        -- The next that came back; most often there is none.
        IF is_back THEN
            SELECT d.priority, d.number, d.deliveries INTO back FROM tenure.queue_dealt AS d
                WHERE d.queue = queue_take.queue AND d.session IS NULL AND d.due IS NULL
                ORDER BY d.queue, d.priority, d.number LIMIT 1;
            is_back := FOUND;
        END IF;
        -- The next that is fresh.
        LOOP
            is_fresh := false;
            IF at_priority < before_priority THEN
                SELECT i.priority, i.number, octet_length(i.value) AS size INTO fresh
                    FROM tenure.queue_items AS i
                    WHERE i.queue = queue_take.queue
                        AND (i.priority, i.number) >= (at_priority, at_number)
                        AND i.priority < before_priority
                        -- Not as an anti-join: one probe for each item on the way.
                        AND (SELECT count(*) FROM tenure.queue_dealt AS d WHERE d.queue = i.queue
                            AND d.priority = i.priority AND d.number = i.number) = 0
                    ORDER BY i.queue, i.priority, i.number LIMIT 1;
                is_fresh := FOUND;
            END IF;
            EXIT WHEN is_fresh OR at_segment = segments;
            at_segment := at_segment + 1;
            at_priority := a_priorities[at_segment];
            at_number := a_numbers[at_segment];
            before_priority := CASE WHEN at_segment < segments THEN a_priorities[at_segment + 1]
                ELSE 65536 END;
        END LOOP;
        EXIT WHEN NOT is_back AND NOT is_fresh;
        IF cardinality(tokens) = a_most THEN
            returned := greatest(returned, 1);
            EXIT;
        END IF;
        IF is_back AND is_fresh THEN
            is_fresh := (fresh.priority, fresh.number) < (back.priority, back.number);
        END IF;
        IF NOT is_fresh AND back.deliveries >= a_after THEN
            letters := tokens IS NULL;
            EXIT;
        END IF;
        IF is_fresh THEN
            item := fresh;
        ELSE
            SELECT i.priority, i.number, octet_length(i.value) AS size INTO item
                FROM tenure.queue_items AS i WHERE i.queue = queue_take.queue
                    AND i.priority = back.priority AND i.number = back.number;
        END IF;
        bytes := bytes + item.size;
        EXIT WHEN tokens IS NOT NULL AND bytes > 2097152;
        granted := nextval('tenure.tokens');
        tokens := tokens || granted;
        priorities := priorities || item.priority;
        numbers := numbers || item.number;
        vals := vals || CASE WHEN bytes <= 8192 THEN (
            SELECT i.value FROM tenure.queue_items AS i WHERE i.queue = queue_take.queue
                AND i.priority = item.priority AND i.number = item.number) END;
        IF is_fresh THEN
            deliveries := deliveries || 1;
            INSERT INTO tenure.queue_dealt (queue, priority, number, session, nonce, token, deliveries)
                VALUES (queue, item.priority, item.number, me, a_nonce, granted, 1);
            at_priority := item.priority;
            at_number := item.number + 1;
        ELSE
            deliveries := deliveries || back.deliveries + 1;
            UPDATE tenure.queue_dealt AS d
                SET session = me, nonce = a_nonce, token = granted, deliveries = back.deliveries + 1
                WHERE d.queue = queue_take.queue AND d.priority = item.priority AND d.number = item.number;
            returned := returned - 1;
        END IF;
        EXIT WHEN cardinality(tokens) = a_most AND NOT others;
    END LOOP;
    -- A consumer that finds nothing keeps its place: most looks follow no notification.
    IF a_stood AND (tokens IS NOT NULL OR letters) THEN
        DELETE FROM tenure.queue_waits AS w WHERE w.session = me AND w.nonce = a_nonce;
    END IF;
    -- What came back by itself, and is not for us.
    IF returned > 0 THEN
        SELECT t.a_told, t.a_ours INTO told, ours
            FROM tenure.queue_tell(queue, returned, a_channel, told, NULL) AS t;
    END IF;
    IF tokens IS NOT NULL THEN
        IF queue IS DISTINCT FROM a_known THEN
            INSERT INTO tenure.queue_consumers (queue, session) VALUES (queue_take.queue, me)
                ON CONFLICT DO NOTHING;
        END IF;
    ELSIF a_waits AND letters IS NOT TRUE THEN
        INSERT INTO tenure.queue_waits (queue, session, nonce, channel)
            VALUES (queue_take.queue, me, a_nonce, a_channel)
            ON CONFLICT (session, nonce) DO NOTHING;
        SELECT w.session = me INTO first FROM tenure.queue_waits AS w
            WHERE w.queue = queue_take.queue AND w.id > told ORDER BY w.id LIMIT 1;
        SELECT ceil(extract(epoch FROM d.due - clock_timestamp()) * 1000)::bigint INTO due
            FROM tenure.queue_dealt AS d WHERE d.queue = queue_take.queue AND d.due IS NOT NULL
            ORDER BY d.queue, d.due LIMIT 1;
    END IF;
END $$;

-- The value of a take that was too large for its answer; none if this is not who delivered it: after a
-- failover, a place may be another item's.
CREATE OR REPLACE FUNCTION tenure.queue_value(a_queue bigint, a_priority integer, a_number bigint, a_token bigint)
RETURNS bytea LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT i.value FROM tenure.queue_items AS i
    WHERE i.queue = a_queue AND i.priority = a_priority AND i.number = a_number
        AND (SELECT d.token FROM tenure.queue_dealt AS d WHERE d.queue = a_queue
            AND d.priority = a_priority AND d.number = a_number) = a_token
$$;

-- The values of a take that were too large for its answer, in this order; null for one that `queue_value` has not.
CREATE OR REPLACE FUNCTION tenure.queue_values(
    a_queues bigint[], a_priorities integer[], a_numbers bigint[], a_tokens bigint[]
) RETURNS bytea[] LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(tenure.queue_value(h.queue, h.priority, h.number, h.token) ORDER BY h.n)
    FROM unnest(a_queues, a_priorities, a_numbers, a_tokens)
        WITH ORDINALITY AS h (queue, priority, number, token, n)
$$;

-- Removes a delivered item for good. Says whether it was this delivery's.
CREATE OR REPLACE FUNCTION tenure.queue_ack(me bigint, a_queue bigint, a_priority integer, a_number bigint, a_token bigint)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_name text;
BEGIN
    DELETE FROM tenure.queue_dealt AS d WHERE d.queue = a_queue AND d.priority = a_priority
        AND d.number = a_number AND d.session = me AND d.token = a_token;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM tenure.queue_items AS i WHERE i.queue = a_queue AND i.priority = a_priority
        AND i.number = a_number RETURNING i.name INTO its_name;
    IF its_name IS NOT NULL THEN
        PERFORM tenure.queue_forget(a_queue, its_name);
    END IF;
    RETURN true;
END $$;

-- The id of an item that leaves is remembered for a while.
CREATE OR REPLACE FUNCTION tenure.queue_forget(a_queue bigint, a_name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE tenure.queue_names AS n SET until = clock_timestamp() + interval '10 minutes'
    WHERE n.queue = a_queue AND n.name = a_name
$$;

-- Gives a delivered item back to its place, to be delivered after `a_delay` milliseconds. `ours` is null
-- if it was not this delivery's.
CREATE OR REPLACE FUNCTION tenure.queue_nack(
    me bigint, a_channel text, a_path text, a_queue bigint, a_priority integer, a_number bigint,
    a_token bigint, a_delay double precision, INOUT told bigint, OUT ours bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wait record;
BEGIN
    PERFORM tenure.queue_lock(a_path);
    UPDATE tenure.queue_dealt AS d SET session = NULL, nonce = NULL, token = NULL,
            due = CASE WHEN a_delay > 0 THEN clock_timestamp() + a_delay * interval '1 millisecond' END
        WHERE d.queue = a_queue AND d.priority = a_priority AND d.number = a_number
            AND d.session = me AND d.token = a_token;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF a_delay > 0 THEN
        -- The first keeps its place: it only has to know for how long to sleep.
        SELECT w.channel, w.nonce INTO wait FROM tenure.queue_waits AS w
            WHERE w.queue = a_queue AND w.id > told ORDER BY w.id LIMIT 1;
        IF FOUND THEN
            PERFORM tenure.tell(wait.channel, wait.nonce);
        END IF;
        ours := '{}';
    ELSE
        SELECT t.a_told, t.a_ours INTO told, ours
            FROM tenure.queue_tell(a_queue, 1, a_channel, told, '{}') AS t;
    END IF;
END $$;

-- Takes back what a take did: its items go back as if they had not been delivered this time, and it does
-- not wait any more. If it had been told of an item, another is.
CREATE OR REPLACE FUNCTION tenure.queue_withdraw(
    me bigint, a_nonce bigint, a_channel text, a_path text, INOUT told bigint, OUT ours bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_queue bigint := tenure.queue_lock(a_path);
    returned integer;
BEGIN
    IF its_queue IS NULL THEN
        RETURN;
    END IF;
    returned := tenure.queue_return(its_queue, me, a_nonce, 1);
    DELETE FROM tenure.queue_waits AS w WHERE w.session = me AND w.nonce = a_nonce;
    IF NOT FOUND THEN
        returned := greatest(returned, 1);
    END IF;
    SELECT t.a_told, t.a_ours INTO told, ours
        FROM tenure.queue_tell(its_queue, returned, a_channel, told, NULL) AS t;
END $$;

-- Moves up to 32 items that were delivered too often, and are in nobody's hands, to the end of another
-- queue.
CREATE OR REPLACE FUNCTION tenure.queue_bury_letters(
    a_channel text, a_path text, a_after integer, a_letters text, OUT ours bigint[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    source bigint;
    target bigint;
    letter record;
    moved integer := 0;
    told bigint;
BEGIN
    -- In the same order whoever does it.
    IF a_path COLLATE "C" < a_letters COLLATE "C" THEN
        source := tenure.queue_lock(a_path);
        target := tenure.queue_open(a_letters);
    ELSE
        target := tenure.queue_open(a_letters);
        source := tenure.queue_lock(a_path);
    END IF;
    FOR letter IN
        SELECT d.priority, d.number FROM tenure.queue_dealt AS d
        WHERE d.queue = source AND d.session IS NULL AND d.due IS NULL AND d.deliveries >= a_after
        ORDER BY d.queue, d.priority, d.number LIMIT 32
    LOOP
        INSERT INTO tenure.queue_items (queue, priority, value)
            SELECT target, i.priority, i.value FROM tenure.queue_items AS i
            WHERE i.queue = source AND i.priority = letter.priority AND i.number = letter.number;
        PERFORM tenure.queue_remove(source, letter.priority, letter.number);
        moved := moved + 1;
    END LOOP;
    SELECT t.a_told, t.a_ours INTO told, ours
        FROM tenure.queue_tell(target, moved, a_channel, 0, NULL) AS t;
END $$;

-- Removes an item that nobody has. The queue is locked.
CREATE OR REPLACE FUNCTION tenure.queue_remove(a_queue bigint, a_priority integer, a_number bigint)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_name text;
BEGIN
    DELETE FROM tenure.queue_items AS i WHERE i.queue = a_queue AND i.priority = a_priority
        AND i.number = a_number RETURNING i.name INTO its_name;
    DELETE FROM tenure.queue_dealt AS d WHERE d.queue = a_queue AND d.priority = a_priority
        AND d.number = a_number;
    IF its_name IS NOT NULL THEN
        PERFORM tenure.queue_forget(a_queue, its_name);
    END IF;
END $$;

-- Removes up to 500 items that no consumer has, from the given place on, none above the number `last`: what
-- is put in from now on is not meant. Says how many, and where to go on, if there may be more.
CREATE OR REPLACE FUNCTION tenure.queue_purge(
    me bigint, a_path text, INOUT priority integer, INOUT number bigint, INOUT last bigint,
    OUT removed bigint, OUT more boolean
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_queue bigint := tenure.queue_lock(a_path);
    item record;
    seen integer := 0;
BEGIN
    removed := 0;
    more := false;
    IF its_queue IS NULL THEN
        RETURN;
    END IF;
    PERFORM tenure.queue_refresh(its_queue, me);
    IF last IS NULL THEN
        SELECT s.last_value INTO last FROM tenure.queue_items_number_seq AS s;
    END IF;
    FOR item IN
        SELECT i.priority, i.number, (SELECT count(*) FROM tenure.queue_dealt AS d
            WHERE d.queue = i.queue AND d.priority = i.priority AND d.number = i.number
                AND d.session IS NOT NULL) AS claims
        FROM tenure.queue_items AS i
        WHERE i.queue = its_queue
            AND (i.priority, i.number) >= (queue_purge.priority, queue_purge.number)
        ORDER BY i.queue, i.priority, i.number LIMIT 500
    LOOP
        seen := seen + 1;
        priority := item.priority;
        number := item.number + 1;
        IF item.claims = 0 AND item.number <= last THEN
            PERFORM tenure.queue_remove(its_queue, item.priority, item.number);
            removed := removed + 1;
        END IF;
    END LOOP;
    more := seen = 500;
END $$;

-- Which of those who may have deliveries live.
CREATE OR REPLACE FUNCTION tenure.queue_living(a_queue bigint) RETURNS bigint[]
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(c.session), '{}') FROM tenure.queue_consumers AS c
    WHERE c.queue = a_queue AND tenure.alive(c.session)
$$;

-- How many items there are, and how many of them cannot be delivered now, because a session that lives has
-- them, or for their delay.
CREATE OR REPLACE FUNCTION tenure.queue_depth(a_path text, OUT total bigint, OUT in_flight bigint, OUT delayed bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_queue bigint;
    living bigint[];
BEGIN
    SELECT q.id INTO its_queue FROM tenure.queues AS q WHERE q.path = a_path;
    living := tenure.queue_living(its_queue);
    SELECT count(*) FILTER (WHERE d.session = ANY (living)),
        count(*) FILTER (WHERE d.due > clock_timestamp()),
        (SELECT count(*) FROM tenure.queue_items AS i WHERE i.queue = its_queue)
        INTO in_flight, delayed, total
        FROM tenure.queue_dealt AS d WHERE d.queue = its_queue;
END $$;

-- The item that would be delivered now. Along the index, whatever the planner believes of the tables.
CREATE OR REPLACE FUNCTION tenure.queue_peek(a_path text, OUT priority integer, OUT value bytea, OUT deliveries integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_material = off AS $$
DECLARE
    its_queue bigint;
    living bigint[];
BEGIN
    SELECT q.id INTO its_queue FROM tenure.queues AS q WHERE q.path = a_path;
    living := tenure.queue_living(its_queue);
    SELECT i.priority, i.value, coalesce(d.deliveries, 0) INTO priority, value, deliveries
        FROM tenure.queue_items AS i
        LEFT JOIN tenure.queue_dealt AS d
            ON d.queue = i.queue AND d.priority = i.priority AND d.number = i.number
        WHERE i.queue = its_queue AND (d.queue IS NULL OR (
            (d.session IS NULL OR d.session <> ALL (living))
            AND (d.due IS NULL OR d.due <= clock_timestamp())))
        ORDER BY i.queue, i.priority, i.number LIMIT 1;
END $$;

-- Which of these deliveries the session does not have: their tokens.
CREATE OR REPLACE FUNCTION tenure.queue_missing(
    me bigint, a_queues bigint[], a_priorities integer[], a_numbers bigint[], a_tokens bigint[]
) RETURNS SETOF bigint LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT h.token FROM unnest(a_queues, a_priorities, a_numbers, a_tokens) AS h (queue, priority, number, token)
    WHERE (SELECT count(*) FROM tenure.queue_dealt AS d WHERE d.queue = h.queue
        AND d.priority = h.priority AND d.number = h.number AND d.session = me AND d.token = h.token) = 0
$$;

-- Whether the session has the delivery `a_key`, `<path>#<queue>:<priority>:<number>`, under this token,
-- and keeps it until the end of this transaction.
CREATE OR REPLACE FUNCTION tenure.holds_delivery(me bigint, a_path text, a_key text, a_token bigint)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    member text := substr(a_key, length(a_path) + 2);
BEGIN
    IF a_key <> a_path || '#' || member OR member !~ '^[0-9]+:[0-9]+:[0-9]+$' THEN
        RETURN false;
    END IF;
    PERFORM FROM tenure.queue_dealt AS d
        WHERE d.queue = split_part(member, ':', 1)::bigint
            AND d.priority = split_part(member, ':', 2)::integer
            AND d.number = split_part(member, ':', 3)::bigint
            AND d.session = me AND d.token = a_token
        FOR UPDATE;
    RETURN FOUND AND tenure.alive(me);
END $$;

-- For operators: takes a delivery, named by its key's part after the `#`, from its consumer, who is told
-- with its next renewal. Says whether there was one.
CREATE OR REPLACE FUNCTION tenure.evict_delivery(member text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_queue bigint;
BEGIN
    IF member !~ '^[0-9]{1,18}:[0-9]{1,9}:[0-9]{1,18}$' THEN
        RAISE EXCEPTION '"%" is not the part of a delivery''s key after its #: QUEUE:PRIORITY:NUMBER, as in 3:0:17', member
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    its_queue := split_part(member, ':', 1)::bigint;
    -- As every step that has the queue's row: others wait for it. A crash takes the delivery back as well.
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM tenure.queues AS q WHERE q.id = its_queue FOR UPDATE;
    UPDATE tenure.queue_dealt AS d SET session = NULL, nonce = NULL, token = NULL
        WHERE d.queue = its_queue AND d.priority = split_part(member, ':', 2)::integer
            AND d.number = split_part(member, ':', 3)::bigint AND d.session IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tenure.queue_tell(its_queue, 1, '', 0, NULL);
    RETURN true;
END $$;

-- Puts back all that dead sessions have, or one that ends, and lets them wait no more.
CREATE OR REPLACE FUNCTION tenure.queue_bury(dead bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_queue bigint;
    consumer bigint;
    returned integer;
BEGIN
    -- In the order of their paths, whosever they are: as others do who lock more than one. And before their
    -- rows, which others change who have locked the queue.
    FOR its_queue IN
        SELECT q.id FROM tenure.queues AS q
        WHERE q.id IN (
            SELECT c.queue FROM tenure.queue_consumers AS c WHERE c.session = ANY (dead)
            UNION ALL SELECT w.queue FROM tenure.queue_waits AS w WHERE w.session = ANY (dead)
        )
        ORDER BY q.path FOR UPDATE OF q
    LOOP
        DELETE FROM tenure.queue_waits AS w WHERE w.queue = its_queue AND w.session = ANY (dead);
        returned := 0;
        FOREACH consumer IN ARRAY dead LOOP
            returned := returned + tenure.queue_return(its_queue, consumer, NULL, 0);
        END LOOP;
        PERFORM tenure.queue_tell(its_queue, returned, '', 0, NULL);
    END LOOP;
    DELETE FROM tenure.queue_consumers AS c WHERE c.session = ANY (dead);
END $$;

-- Forgets ids whose time is over, and queues that have nothing any more, with the consumers that are known there: one
-- of those that lives is made known again in the queue that takes this one's name. The queues behind `a_from` are
-- looked at, at most 1000. Says whether to repeat it at once: as long as much was found, so that what is collected
-- keeps up with what is produced, and no more than an eighth of the queues has nothing.
CREATE OR REPLACE FUNCTION tenure.queue_collect(INOUT a_from bigint, OUT more boolean) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names integer;
    seen integer := 0;
    gone integer := 0;
    candidate record;
BEGIN
    DELETE FROM tenure.queue_names AS n WHERE (n.queue, n.name) IN (
        SELECT l.queue, l.name FROM tenure.queue_names AS l
        WHERE l.until < now() ORDER BY l.until LIMIT 2000 FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS names = ROW_COUNT;
    FOR candidate IN
        SELECT q.id, q.looked < clock_timestamp() - interval '1 minute' AS is_old FROM tenure.queues AS q
        WHERE q.id > a_from ORDER BY q.id LIMIT 1000
    LOOP
        seen := seen + 1;
        a_from := candidate.id;
        CONTINUE WHEN NOT candidate.is_old;
        CONTINUE WHEN NOT tenure.queue_is_idle(candidate.id);
        PERFORM FROM tenure.queues AS q WHERE q.id = candidate.id FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        -- Another look: what came before the lock is visible now.
        CONTINUE WHEN NOT tenure.queue_is_idle(candidate.id);
        DELETE FROM tenure.queue_consumers AS c WHERE c.queue = candidate.id;
        DELETE FROM tenure.queues AS q WHERE q.id = candidate.id;
        gone := gone + 1;
    END LOOP;
    more := names = 2000 OR seen = 1000 AND gone * 8 >= seen;
    IF seen < 1000 THEN
        a_from := 0;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tenure.queue_is_idle(a_queue bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (SELECT FROM tenure.queue_items AS i WHERE i.queue = a_queue)
        AND NOT EXISTS (SELECT FROM tenure.queue_waits AS w WHERE w.queue = a_queue)
        AND NOT EXISTS (SELECT FROM tenure.queue_names AS n WHERE n.queue = a_queue)
$$;

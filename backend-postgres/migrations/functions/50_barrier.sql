-- Barriers, and double barriers.

CREATE OR REPLACE FUNCTION tenure.tell_path(a_path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM tenure.tell_topic(hashtextextended(a_path, 0));
END $$;

-- Those who wait at a barrier are told by a step of its own, `tell_path`, once its end is durable: in one transaction,
-- every notification on the server would wait for the disk, or for a standby. One that hears nothing, because that
-- step was lost or the holder died, looks by itself.

-- Holds a barrier, once for each nonce. False: another does.
CREATE OR REPLACE FUNCTION tenure.barrier_hold(me bigint, a_nonce bigint, a_path text, a_bound boolean)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hold tenure.barriers;
BEGIN
    LOOP
        INSERT INTO tenure.barriers VALUES (a_path, me, a_nonce, a_bound, nextval('tenure.tokens'))
            ON CONFLICT (path) DO NOTHING;
        IF FOUND THEN
            RETURN true;
        END IF;
        SELECT * INTO hold FROM tenure.barriers AS b WHERE b.path = a_path FOR UPDATE;
        IF FOUND THEN
            IF hold.session = me AND hold.nonce = a_nonce THEN
                RETURN true;
            ELSIF NOT hold.bound THEN
                RETURN false;
            ELSIF tenure.alive(hold.session) THEN
                RETURN false;
            END IF;
            DELETE FROM tenure.barriers AS b WHERE b.path = a_path;
        END IF;
    END LOOP;
END $$;

-- Ends the hold that is met, whoever's it is. Says whether there was one.
CREATE OR REPLACE FUNCTION tenure.barrier_lift(a_path text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hold tenure.barriers;
BEGIN
    DELETE FROM tenure.barriers AS b WHERE b.path = a_path RETURNING * INTO hold;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF hold.bound THEN
        RETURN tenure.alive(hold.session);
    END IF;
    RETURN true;
END $$;

-- Takes back what a nonce held, also for good. False: its session lives, and this is another connection,
-- so that the hold may still be on its way.
CREATE OR REPLACE FUNCTION tenure.barrier_unhold(a_session bigint, a_nonce bigint, a_path text)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF a_session IS DISTINCT FROM tenure.me() THEN
        IF tenure.alive(a_session) THEN
            RETURN false;
        END IF;
    END IF;
    DELETE FROM tenure.barriers AS b
        WHERE b.path = a_path AND b.session = a_session AND b.nonce = a_nonce;
    RETURN true;
END $$;

-- The hold that stands: no row, if there is none.
CREATE OR REPLACE FUNCTION tenure.barrier_look(a_path text) RETURNS TABLE (token bigint, bound boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hold tenure.barriers;
BEGIN
    SELECT * INTO hold FROM tenure.barriers AS b WHERE b.path = a_path;
    IF NOT FOUND THEN
        RETURN;
    ELSIF hold.bound THEN
        IF NOT tenure.alive(hold.session) THEN
            RETURN;
        END IF;
    END IF;
    token := hold.token;
    bound := hold.bound;
    RETURN NEXT;
END $$;

-- Whether anybody who lives is left in the room, which is locked; if not, it is gone, and those who wait
-- for that are told.
CREATE OR REPLACE FUNCTION tenure.room_left(a_path text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    participant record;
BEGIN
    FOR participant IN
        SELECT p.token, p.session FROM tenure.participants AS p WHERE p.path = a_path ORDER BY p.token
    LOOP
        IF tenure.alive(participant.session) THEN
            RETURN true;
        END IF;
        DELETE FROM tenure.participants AS p WHERE p.path = a_path AND p.token = participant.token;
    END LOOP;
    DELETE FROM tenure.rooms AS r WHERE r.path = a_path;
    PERFORM tenure.tell_path(a_path);
    RETURN false;
END $$;

-- Enters. `status`: 'held', all are there, and the others are told; 'wait'; 'count', those who are there
-- gave `others`; 'full'.
CREATE OR REPLACE FUNCTION tenure.room_enter(
    me bigint, a_nonce bigint, a_channel text, a_path text, a_count integer,
    OUT status text, OUT token bigint, OUT others integer
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    room tenure.rooms;
    participant record;
BEGIN
    -- Nothing here is to outlive the server.
    PERFORM set_config('synchronous_commit', 'off', true);
    LOOP
        SELECT * INTO room FROM tenure.rooms AS r WHERE r.path = a_path FOR UPDATE;
        IF FOUND THEN
            SELECT p.token INTO token FROM tenure.participants AS p WHERE p.session = me AND p.nonce = a_nonce;
            IF FOUND THEN
                status := CASE WHEN room.closed THEN 'held' ELSE 'wait' END;
                RETURN;
            END IF;
            EXIT WHEN room.count = a_count AND NOT room.closed;
            IF tenure.room_left(a_path) THEN
                status := CASE WHEN room.count <> a_count THEN 'count' ELSE 'full' END;
                others := room.count;
                RETURN;
            END IF;
        END IF;
        token := nextval('tenure.tokens');
        INSERT INTO tenure.rooms VALUES (a_path, a_count, token, false) ON CONFLICT (path) DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    token := coalesce(token, nextval('tenure.tokens'));
    INSERT INTO tenure.participants VALUES (a_path, token, me, a_nonce, a_channel);
    status := 'wait';
    IF (SELECT count(*) FROM tenure.participants AS p WHERE p.path = a_path) < a_count THEN
        RETURN;
    END IF;
    DELETE FROM tenure.participants AS p WHERE p.path = a_path AND NOT tenure.alive(p.session);
    IF (SELECT count(*) FROM tenure.participants AS p WHERE p.path = a_path) < a_count THEN
        RETURN;
    END IF;
    UPDATE tenure.rooms AS r SET closed = true WHERE r.path = a_path;
    -- Tokens of grants are drawn now: a participant that waited may have a number below a floor that was raised since.
    UPDATE tenure.participants AS p SET token = nextval('tenure.tokens') WHERE p.path = a_path;
    SELECT p.token INTO token FROM tenure.participants AS p WHERE p.session = me AND p.nonce = a_nonce;
    FOR participant IN
        SELECT p.channel, p.nonce, p.token FROM tenure.participants AS p
        WHERE p.path = a_path AND p.token <> room_enter.token
    LOOP
        PERFORM tenure.tell_granted(participant.channel, participant.nonce, participant.token);
    END LOOP;
    status := 'held';
END $$;

-- What a participant who waits finds: 'held', 'wait', or 'gone'.
CREATE OR REPLACE FUNCTION tenure.room_look(me bigint, a_nonce bigint, OUT status text, OUT token bigint, OUT others integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT CASE WHEN r.closed THEN 'held' ELSE 'wait' END, p.token INTO status, token
        FROM tenure.participants AS p JOIN tenure.rooms AS r ON r.path = p.path
        WHERE p.session = me AND p.nonce = a_nonce;
    IF NOT FOUND THEN
        status := 'gone';
    END IF;
END $$;

-- Takes a participant out; the one with `a_token`, unless that is null. Says whether there was one.
CREATE OR REPLACE FUNCTION tenure.room_leave(me bigint, a_nonce bigint, a_path text, a_token bigint)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone boolean;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM tenure.rooms AS r WHERE r.path = a_path FOR UPDATE;
    DELETE FROM tenure.participants AS p
        WHERE p.session = me AND p.nonce = a_nonce AND p.path = a_path AND p.token = coalesce(a_token, p.token);
    gone := FOUND;
    IF gone THEN
        PERFORM tenure.room_left(a_path);
    END IF;
    RETURN gone;
END $$;

-- Whether any of the generation of `a_token` who lives has yet to leave.
CREATE OR REPLACE FUNCTION tenure.room_others(a_path text, a_token bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    participant record;
BEGIN
    -- Without the lock: that somebody lives is found by the first look, and nearly always.
    PERFORM FROM tenure.rooms AS r WHERE r.path = a_path AND r.first <= a_token;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    FOR participant IN SELECT p.session FROM tenure.participants AS p WHERE p.path = a_path LOOP
        IF tenure.alive(participant.session) THEN
            RETURN true;
        END IF;
    END LOOP;
    PERFORM FROM tenure.rooms AS r WHERE r.path = a_path AND r.first <= a_token FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    RETURN tenure.room_left(a_path);
END $$;

-- Whether a participant is inside, from now until the end of this transaction.
CREATE OR REPLACE FUNCTION tenure.holds_place(a_session bigint, a_path text, a_key text, a_token bigint)
RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM tenure.rooms AS r WHERE r.path = a_path AND r.closed FOR SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM FROM tenure.participants AS p
        WHERE p.path = a_path AND p.token = a_token AND p.session = a_session FOR SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    RETURN tenure.alive(a_session);
END $$;

-- Ends what sessions that have ended held or were inside of. Does not wait for the disk: it is not heard of otherwise,
-- and what a crash takes back is that of a dead session.
CREATE OR REPLACE FUNCTION tenure.barrier_bury(dead bigint[]) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_path text;
BEGIN
    FOR its_path IN
        DELETE FROM tenure.barriers AS b WHERE b.session = ANY (dead) AND b.bound RETURNING b.path
    LOOP
        PERFORM tenure.tell_path(its_path);
    END LOOP;
    -- Sorted, so that no two wait for each other.
    FOR its_path IN
        SELECT DISTINCT p.path FROM tenure.participants AS p WHERE p.session = ANY (dead) ORDER BY p.path
    LOOP
        PERFORM FROM tenure.rooms AS r WHERE r.path = its_path FOR UPDATE;
        DELETE FROM tenure.participants AS p WHERE p.path = its_path AND p.session = ANY (dead);
        IF FOUND THEN
            PERFORM tenure.room_left(its_path);
        END IF;
    END LOOP;
END $$;

-- Collects the holds of sessions that a crash of the server ended: nobody knows of those. At most 1000
-- sessions at a time. Others than those whom a sweep has buried before: these have no row any more. And no places
-- in rooms, which a crash forgets as well; so that this locks no room after a queue's turn is over.
CREATE OR REPLACE FUNCTION tenure.barrier_sweep() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner bigint;
    dead bigint[] := '{}';
BEGIN
    FOR owner IN
        SELECT DISTINCT b.session FROM tenure.barriers AS b
        WHERE b.bound AND NOT EXISTS (SELECT FROM tenure.sessions AS s WHERE s.id = b.session)
        LIMIT 1000
    LOOP
        IF NOT tenure.alive(owner) THEN
            dead := dead || owner;
        END IF;
    END LOOP;
    IF dead <> '{}' THEN
        PERFORM tenure.barrier_bury(dead);
    END IF;
END $$;

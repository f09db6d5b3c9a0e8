-- The tables of version 1.

CREATE SCHEMA tenure;

-- A client works with this schema if `oldest` <= its own version <= `version`.
CREATE TABLE tenure.layout (
    version integer NOT NULL,
    oldest integer NOT NULL
);
INSERT INTO tenure.layout VALUES (1, 1);

-- Tokens, and the numbers of sessions. Cached nowhere: each number is given out after all below it.
CREATE SEQUENCE tenure.tokens AS bigint CACHE 1;

-- Empty after a crash, a promotion and a physical restore: unlogged tables are. Then the sequence may
-- have gone back, because a number can reach a client before the log record that covers it is on disk.
-- And of another place after a restart, and where a dump was restored or the database was copied.
CREATE UNLOGGED TABLE tenure.life (
    place text PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who lives, or did until lately. A session lives as long as its connection, which holds the advisory
-- lock on its key; the row is for those who look after the dead.
CREATE UNLOGGED TABLE tenure.sessions (
    id bigint PRIMARY KEY,
    pid integer NOT NULL,
    started timestamptz NOT NULL,
    channel text NOT NULL,
    ttl interval NOT NULL,
    -- When it renewed last, where the server does not say when its connections were last active.
    seen timestamptz
);

-- Lost in a crash, and rightly: so are the sessions.
CREATE UNLOGGED TABLE tenure.tickets (
    key bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    session bigint NOT NULL,
    nonce bigint NOT NULL,
    shared boolean NOT NULL,
    channel text NOT NULL,
    path text NOT NULL,
    -- What a candidate stands for.
    value bytea,
    PRIMARY KEY (key, id)
);
ALTER TABLE tenure.tickets ALTER COLUMN value SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX tickets_of_session ON tenure.tickets (session, nonce);

-- Lost in a crash, and rightly: so are the sessions. Later versions are greater all the same (`revive`).
CREATE UNLOGGED TABLE tenure.elections (
    path text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    session bigint,
    nonce bigint,
    token bigint,
    -- Of the last proclamation.
    number bigint NOT NULL DEFAULT 0,
    value bytea,
    -- Since when nobody leads.
    vacant timestamptz,
    -- Until when changes are told: a NOTIFY that nobody hears costs as much as any.
    watched timestamptz
);
ALTER TABLE tenure.elections ALTER COLUMN value SET STORAGE EXTERNAL;
-- What a session leads; and where nobody leads, since when.
CREATE INDEX elections_of_session ON tenure.elections (session, vacant);

-- A queue: its row is the lock before which the steps of the queue wait.
CREATE TABLE tenure.queues (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path text COLLATE "C" NOT NULL UNIQUE,
    -- When somebody looked last for consumers that have died.
    looked timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

-- Items. A row is written once, and deleted by the acknowledgement.
CREATE TABLE tenure.queue_items (
    queue bigint NOT NULL,
    priority integer NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    name text COLLATE "C",
    value bytea NOT NULL,
    PRIMARY KEY (queue, priority, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000);
-- Not packed: that costs more than it saves here.
ALTER TABLE tenure.queue_items ALTER COLUMN value SET STORAGE EXTERNAL;

-- Items that were delivered: who has it now, or else when it can be delivered again, if not at once.
CREATE TABLE tenure.queue_dealt (
    queue bigint NOT NULL,
    priority integer NOT NULL,
    number bigint NOT NULL,
    session bigint,
    nonce bigint,
    token bigint,
    deliveries integer NOT NULL,
    due timestamptz,
    PRIMARY KEY (queue, priority, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_dealt_to ON tenure.queue_dealt (session, nonce) WHERE session IS NOT NULL;
CREATE INDEX queue_dealt_back ON tenure.queue_dealt (queue, priority, number)
    WHERE session IS NULL AND due IS NULL;
CREATE INDEX queue_dealt_later ON tenure.queue_dealt (queue, due) WHERE due IS NOT NULL;

-- The ids in use; those of items that have left are remembered until then.
CREATE TABLE tenure.queue_names (
    queue bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    until timestamptz,
    PRIMARY KEY (queue, name)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
CREATE INDEX queue_names_left ON tenure.queue_names (until) WHERE until IS NOT NULL;

-- Which sessions may have deliveries of which queue. Lost in a crash: see `queue_revive`.
CREATE UNLOGGED TABLE tenure.queue_consumers (
    queue bigint NOT NULL,
    session bigint NOT NULL,
    PRIMARY KEY (queue, session)
);
CREATE INDEX queue_consumers_by_session ON tenure.queue_consumers (session);

-- Who sleeps until there is an item. Whoever tells one of it removes the row: who finds nothing, because
-- another was faster, stands in line anew.
CREATE UNLOGGED TABLE tenure.queue_waits (
    queue bigint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    session bigint NOT NULL,
    nonce bigint NOT NULL,
    channel text NOT NULL,
    PRIMARY KEY (queue, id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX queue_waits_of_session ON tenure.queue_waits (session, nonce);

-- What holds a barrier. On disk, for a hold may outlive its session, and the server; one that ends with
-- its session (`bound`) counts only while that lives.
CREATE TABLE tenure.barriers (
    path text COLLATE "C" PRIMARY KEY,
    session bigint NOT NULL,
    nonce bigint NOT NULL,
    bound boolean NOT NULL,
    -- Tells this hold from those before and after.
    token bigint NOT NULL
);
CREATE INDEX barriers_of_session ON tenure.barriers (session);

-- A double barrier is open, with those who wait for the others, or closed, with those who are inside. It
-- closes in the step in which the last one comes, and is gone in the step in which the last one leaves: so
-- two generations never meet. Every step locks the room's row first, and buries the dead where they would
-- count. Lost in a crash, and rightly: so are the sessions.
CREATE UNLOGGED TABLE tenure.rooms (
    path text COLLATE "C" PRIMARY KEY,
    count integer NOT NULL,
    -- The token of the first one to come: all of earlier generations have smaller ones.
    first bigint NOT NULL,
    closed boolean NOT NULL
);

-- Participants of double barriers.
CREATE UNLOGGED TABLE tenure.participants (
    path text COLLATE "C" NOT NULL,
    token bigint NOT NULL,
    session bigint NOT NULL,
    nonce bigint NOT NULL,
    channel text NOT NULL,
    PRIMARY KEY (path, token)
);
CREATE UNIQUE INDEX participants_of_session ON tenure.participants (session, nonce);

-- The revision of each namespace: the lock of its commits.
CREATE TABLE tenure.revisions (
    root text COLLATE "C" PRIMARY KEY,
    -- Of the last commit that could write. Given out by `tokens`, so that none is given twice, not even
    -- after a failover to a standby that had missed the last ones.
    revision bigint NOT NULL
) WITH (fillfactor = 10);

-- Transactional memory.
CREATE TABLE tenure.data (
    path text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL,
    created bigint NOT NULL,
    modified bigint NOT NULL,
    version bigint NOT NULL
) WITH (fillfactor = 80);

-- What came of the last commit in each slot of a session: `committed` says whether its comparisons held;
-- null, that it was not done and never will be. On disk like what it tells of.
CREATE TABLE tenure.markers (
    session bigint NOT NULL,
    slot integer NOT NULL,
    revision bigint NOT NULL,
    nonce bigint NOT NULL,
    committed boolean,
    since timestamptz NOT NULL,
    PRIMARY KEY (session, slot)
) WITH (fillfactor = 50);

-- When the database was swept last.
CREATE UNLOGGED TABLE tenure.sweeps (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    last timestamptz NOT NULL,
    silent timestamptz
);

//! The suite on one Redis server, each case on a server of its own.

use tenure_conformance::conformance;
use tenure_redis::RedisHarness;
use tenure_testbed::RedisOptions;

conformance!(redis, RedisHarness::start(RedisOptions::default().movable_clock()).await?, without: [
    // A session has no limit of its own.
    capacity,
    // One server has no other members.
    failover, lose_minority, return_members,
]);

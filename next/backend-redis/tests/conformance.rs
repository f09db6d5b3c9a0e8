//! The suite on one Redis server, each case on a server of its own.

use tenure_conformance::conformance;
use tenure_redis::RedisHarness;
use tenure_testbed::RedisOptions;

conformance!(redis, RedisHarness::start(RedisOptions::default()).await?, without: [
    capacity, delay_request, repeat,
    clock_forward, clock_back, failover, lose_minority, return_members,
]);

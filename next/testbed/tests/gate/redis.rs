//! Each kind of Redis.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tenure_testbed::{
    Certs, Error, Proxy, RedisCluster, RedisOptions, RedisPair, RedisSentinels, RedisServer, shared_redis, unique_name,
    wait_until,
};

use crate::client::{ask_redis, assert_silent, connect, receive, send};

fn start(options: RedisOptions) -> RedisServer {
    RedisServer::start(options).expect("redis")
}

fn get(server: &RedisServer, key: &str) -> Option<String> {
    server.admin().query(&["GET", key]).expect("an answer")
}

fn set(server: &RedisServer, key: &str, value: &str) {
    server.admin().execute(&["SET", key, value]).expect("set");
}

#[test]
fn server_keeps_its_data_through_a_kill() {
    let server = start(RedisOptions::default());
    assert_eq!(ask_redis(server.address(), "PING").expect("an answer"), "+PONG");
    assert_eq!(server.url(), format!("redis://{}", server.address()));
    set(&server, "a", "1");
    server.kill().expect("killed");
    assert!(!server.is_running());
    assert!(ask_redis(server.address(), "PING").is_err());
    assert!(matches!(server.pause(), Err(Error::NotRunning(_))));
    server.restart().expect("restarted");
    assert_eq!(get(&server, "a").as_deref(), Some("1"));

    let forgetful = start(RedisOptions::default().without_persistence());
    set(&forgetful, "a", "1");
    forgetful.restart().expect("restarted");
    assert_eq!(get(&forgetful, "a"), None);
}

#[test]
fn server_restored_to_a_snapshot_forgets_later_writes() {
    let server = start(RedisOptions::default());
    assert!(server.restore_snapshot().is_err(), "there is none");
    server.restart().expect("restarted");
    set(&server, "early", "1");
    server.save_snapshot().expect("saved");
    set(&server, "late", "1");
    for _ in 0..2 {
        server.restore_snapshot().expect("restored");
        assert_eq!(server.admin().keys("*").expect("keys"), ["early"]);
    }
}

#[test]
fn server_paused_is_silent_and_goes_on() {
    let server = start(RedisOptions::default());
    let client = connect(server.address());
    server.pause().expect("paused");
    assert!(server.is_running());
    send(&client, "PING\r\n");
    assert_silent(&client);
    server.resume().expect("resumed");
    receive(&client, "+PONG\r\n");
    server.pause().expect("paused");
    server.restart().expect("a paused server is restarted as any other");
}

#[test]
fn admin_reads_and_changes_a_server() {
    let server = start(RedisOptions::default().line("maxmemory 50mb"));
    let admin = server.admin();
    for number in 0..2_500 {
        set(&server, &format!("key-{number:04}"), "");
    }
    set(&server, "other", "");
    let keys = admin.keys("key-*").expect("keys");
    assert_eq!((keys.len(), keys[7].as_str()), (2_500, "key-0007"));
    assert_eq!(
        admin.info("maxmemory_policy").expect("info").as_deref(),
        Some("noeviction")
    );
    assert_eq!(admin.calls("set").expect("calls"), 2_501);
    admin.set_config("maxmemory-policy", "allkeys-lru").expect("changed");
    assert_eq!(
        admin.info("maxmemory_policy").expect("info").as_deref(),
        Some("allkeys-lru")
    );
    admin.flush().expect("flushed");
    assert!(admin.keys("*").expect("keys").is_empty());
    let error = admin.execute(&["NO-SUCH", "command", "secret"]).expect_err("refused");
    assert_eq!(error.to_string(), "Redis failed to execute `NO-SUCH command`");
}

#[test]
fn server_demands_its_password_and_obeys_the_rules_of_users() {
    let options = RedisOptions::default()
        .password("p: \"w'\\$\u{e9}")
        .user("app", "on >secret ~ns:* &ns:* +@all");
    let server = start(options);
    server.admin().set_user("reader", "on >secret ~* +get").expect("a user");
    let ask = |user: &str, command: &str| {
        let client = connect(server.address());
        send(&client, &format!("AUTH {user} secret\r\n"));
        receive(&client, "+OK\r\n");
        send(&client, &format!("{command}\r\n"));
        client
    };
    assert!(
        ask_redis(server.address(), "GET a")
            .expect("an answer")
            .starts_with("-NOAUTH")
    );
    let password = "AUTH \"p: \\\"w'\\\\$\\xc3\\xa9\"";
    assert_eq!(ask_redis(server.address(), password).expect("an answer"), "+OK");
    receive(&ask("app", "SET ns:a 1"), "+OK\r\n");
    receive(&ask("app", "SET a 1"), "-NOPERM");
    receive(&ask("reader", "GET ns:a"), "$1\r\n");
    receive(&ask("reader", "SET ns:a 1"), "-NOPERM");
}

#[test]
fn server_that_refuses_its_configuration_shows_its_log() {
    let error = RedisServer::start(RedisOptions::default().line("no-such-setting 1")).expect_err("refused");
    assert!(matches!(error, Error::Start { .. }), "{error}");
    assert!(error.to_string().contains("no-such-setting"), "{error}");
}

#[test]
fn clock_moves_alone_and_stays_moved_after_a_restart() {
    let server = start(RedisOptions::default().movable_clock());
    let ahead = || {
        let (seconds, _): (u64, u64) = server.admin().query(&["TIME"]).expect("the time");
        let own = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        // The machine may take minutes between the two.
        (i128::from(seconds) - i128::from(own) + 1_800) / 3_600
    };
    let hours = |count: u64| Duration::from_secs(3_600 * count);
    assert_eq!(ahead(), 0);
    server.admin().execute(&["SET", "k", "1", "EX", "3600"]).expect("set");
    server.move_clock_back(hours(7)).expect("back");
    let left: u64 = server.admin().query(&["TTL", "k"]).expect("its time");
    assert!(left > 7 * 3_600, "an hour has become eight: {left}");
    server.move_clock(hours(9)).expect("forward");
    assert_eq!(ahead(), 2);
    assert_eq!(get(&server, "k"), None);
    server.restart().expect("restarted");
    assert_eq!(ahead(), 2);
    let ordinary = start(RedisOptions::default());
    assert!(matches!(ordinary.move_clock(hours(1)), Err(Error::Usage(_))));
}

#[test]
fn shared_server_is_started_once() {
    let shared = shared_redis().expect("redis");
    assert!(std::ptr::eq(shared, shared_redis().expect("redis")));
    let (one, two) = (unique_name("test"), unique_name("test"));
    assert_ne!(one, two);
    shared.admin().execute(&["SET", &one, "1"]).expect("set");
    assert_eq!(shared.admin().keys(&format!("{one}*")).expect("keys"), [one]);
}

#[test]
fn pair_promoted_while_replication_stops_loses_writes() {
    let pair = RedisPair::start(RedisOptions::default()).expect("a pair");
    set(&pair.primary, "kept", "1");
    pair.wait_in_sync().expect("in sync");
    pair.stop_replication();
    set(&pair.primary, "late", "1");
    let acknowledged: u64 = pair.primary.admin().query(&["WAIT", "1", "100"]).expect("an answer");
    assert_eq!(acknowledged, 0);
    pair.resume_replication();
    pair.wait_in_sync().expect("in sync");
    assert_eq!(get(&pair.replica, "late").as_deref(), Some("1"));

    pair.stop_replication();
    set(&pair.primary, "lost", "1");
    pair.primary.kill().expect("killed");
    pair.promote().expect("promoted");
    set(&pair.replica, "new", "1");
    assert_eq!(pair.replica.admin().keys("*").expect("keys"), ["kept", "late", "new"]);
}

#[test]
fn sentinels_promote_a_replica_that_lags() {
    let service = RedisSentinels::start(RedisOptions::default()).expect("sentinels");
    let pair = &service.pair;
    let addresses: Vec<String> = service
        .sentinels
        .iter()
        .map(|sentinel| sentinel.address().to_string())
        .collect();
    assert_eq!(
        service.url(),
        format!("redis+sentinel://{}/tenure", addresses.join(","))
    );
    let old = pair.primary.address();
    assert_eq!(service.primary(), Some(old));
    pair.stop_replication();
    set(&pair.primary, "lost", "1");
    pair.primary.kill().expect("killed");
    assert_eq!(
        service.wait_for_failover(old).expect("a failover"),
        pair.replica.address()
    );
    assert_eq!(get(&pair.replica, "lost"), None);
    set(&pair.replica, "new", "1");
    pair.primary.restart().expect("restarted");
    // The sentinels reset its connections when they demote it.
    let demoted = || Ok(pair.primary.admin().info("role")?.filter(|role| role == "slave"));
    wait_until("the former primary as a replica", demoted).expect("demoted");
}

#[test]
fn cluster_redirects_while_a_slot_moves() {
    let cluster = RedisCluster::start(RedisOptions::default()).expect("a cluster");
    // By the table of Redis' own tests.
    let slot = cluster.slot("foo").expect("a slot");
    assert_eq!((slot, cluster.owner(slot).expect("an answer")), (12_182, Some(2)));
    let ask = |node: usize, command: &str| ask_redis(cluster.nodes[node].address(), command).expect("an answer");
    let moved = |to: usize| format!("-MOVED 12182 {}", cluster.nodes[to].address());
    assert_eq!(ask(2, "SET foo 1"), "+OK");
    assert_eq!(ask(0, "GET foo"), moved(2));
    cluster.begin_move(slot, 0).expect("begun");
    assert_eq!(ask(2, "GET foo"), "$1");
    cluster.move_keys(slot, 0).expect("moved");
    assert_eq!(ask(2, "GET foo"), format!("-ASK 12182 {}", cluster.nodes[0].address()));
    cluster.finish_move(slot, 0).expect("finished");
    assert_eq!(ask(2, "GET foo"), moved(0));
    cluster.move_slot(slot, 1).expect("moved");
    assert_eq!(get(&cluster.nodes[1], "foo").as_deref(), Some("1"));
    assert!(matches!(cluster.move_slot(slot, 1), Err(Error::Usage(_))));
}

#[test]
fn tls_is_served_to_clients_replicas_sentinels_and_nodes() {
    let certs = Certs::generate().expect("certificates");
    let options = RedisOptions::default().tls(certs.mutual_tls());
    // The replica and the sentinels are clients with a certificate.
    let service = RedisSentinels::start(options.clone()).expect("sentinels");
    assert!(service.url().starts_with("rediss+sentinel://"));
    let primary = &service.pair.primary;
    assert!(primary.url().starts_with("rediss://127.0.0.1:"));
    assert!(ask_redis(primary.address(), "PING").is_err(), "no plain text");
    drop(service);
    let cluster = RedisCluster::start(options).expect("a cluster");
    assert!(cluster.url().starts_with("rediss+cluster://"));
    set(&cluster.nodes[2], "foo", "1");
    cluster.move_slot(12_182, 0).expect("moved");
    assert_eq!(get(&cluster.nodes[0], "foo").as_deref(), Some("1"));
}

#[test]
fn server_is_reached_through_a_proxy() {
    let server = start(RedisOptions::default());
    let proxy = Proxy::start(server.address()).expect("a proxy");
    assert_eq!(ask_redis(proxy.address(), "SET a 1").expect("an answer"), "+OK");
    assert_eq!(get(&server, "a").as_deref(), Some("1"));
}

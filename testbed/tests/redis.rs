//! A real Redis, started in every way that other tests rely on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tenure_testbed::redis::AppendFsync;
use tenure_testbed::{
    Direction, Error, Flow, Process, Proxy, RedisCluster, RedisReplica, RedisSentinels, RedisServer,
};

const SOON: Duration = Duration::from_secs(60);

/// The first line of the answer to a command, as a client without any library gets it.
fn ask(address: SocketAddr, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[test]
fn keeps_data_and_port_across_a_kill() {
    let mut redis = RedisServer::start().expect("redis");
    let (address, pid, folder) = (redis.address(), redis.pid(), redis.data_dir());
    assert_eq!(redis.url(), format!("redis://{address}"));
    assert_eq!(redis.port(), address.port());
    assert!(redis.version().contains('.'), "{}", redis.version());
    assert_eq!(ask(address, "SET a 1").expect("an answer"), "+OK");
    redis.kill().expect("killed");
    assert!(!redis.is_running());
    assert!(TcpStream::connect(address).is_err(), "refused");
    assert!(matches!(redis.pause(), Err(Error::NotRunning { .. })));
    assert!(redis.command(&["PING"]).is_err());
    redis.kill().expect("killing the dead is no error");
    redis.restart().expect("restarted");
    assert_eq!(redis.address(), address);
    assert_ne!(redis.pid(), pid);
    assert_eq!(redis.command(&["GET", "a"]).expect("get"), "1");
    drop(redis);
    assert!(!folder.exists(), "the folder is removed");
    assert!(TcpStream::connect(address).is_err(), "the port is free");
}

#[test]
fn answers_are_rendered_and_refusals_are_errors() {
    let redis = RedisServer::start().expect("redis");
    let command = |args: &[&str]| redis.command(args);
    assert_eq!(command(&["GET", "nothing"]).expect("nil"), "");
    assert_eq!(command(&["INCR", "n"]).expect("a number"), "1");
    assert_eq!(command(&["SET", "a", "x\r\ny"]).expect("set"), "OK");
    assert_eq!(command(&["GET", "a"]).expect("get"), "x\r\ny");
    assert_eq!(command(&["MGET", "n", "no", "n"]).expect("list"), "1\n\n1");
    assert_eq!(redis.info("role").expect("info"), Some("master".to_owned()));
    assert_eq!(redis.info("no_such_field").expect("info"), None);
    let error = command(&["CONFIG", "SET", "requirepass-not", "hush"]).expect_err("no such option");
    let text = error.to_string();
    assert!(matches!(error, Error::Reply { .. }), "{text}");
    assert!(
        text.contains("`CONFIG SET`") && text.contains("ERR"),
        "{text}"
    );
}

#[test]
fn keeps_what_it_is_told_to_keep() {
    let always = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("save", ""),
    ];
    let every_second = [
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
    ];
    let never = [
        ("appendonly", "no"),
        ("save", ""),
        ("maxmemory-policy", "allkeys-lru"),
    ];
    let builder = RedisServer::builder;
    for (builder, options, kept) in [
        (builder(), always, "1"),
        (
            builder().append_only(AppendFsync::EverySecond),
            every_second,
            "1",
        ),
        (
            builder().no_persistence().max_memory("64mb", "allkeys-lru"),
            never,
            "",
        ),
    ] {
        let mut redis = builder.start().expect("redis");
        for (option, value) in options {
            let answer = redis.command(&["CONFIG", "GET", option]).expect("config");
            assert_eq!(answer, format!("{option}\n{value}"));
        }
        redis.command(&["SET", "a", "1"]).expect("set");
        redis.restart().expect("restarted");
        assert_eq!(redis.command(&["GET", "a"]).expect("get"), kept);
    }
}

#[test]
fn a_lost_disk_is_an_empty_store() {
    let mut redis = RedisServer::start().expect("redis");
    redis.command(&["SET", "a", "1"]).expect("set");
    redis.kill().expect("killed");
    std::fs::remove_dir_all(redis.data_dir()).expect("removed");
    redis.restart().expect("restarted");
    assert_eq!(redis.command(&["GET", "a"]).expect("get"), "");
}

#[tokio::test]
async fn a_paused_server_is_silent_and_goes_on() {
    let mut redis = RedisServer::start_async().await.expect("redis");
    redis.pause().expect("paused");
    let start = Instant::now();
    assert!(ask(redis.address(), "PING").is_err(), "no answer");
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "silence, not a refusal"
    );
    redis.resume().expect("resumed");
    assert_eq!(ask(redis.address(), "PING").expect("an answer"), "+PONG");
    // A paused server can be killed and restarted as any other.
    redis.pause().expect("paused");
    redis.restart_async().await.expect("restarted");
    assert_eq!(ask(redis.address(), "PING").expect("an answer"), "+PONG");
}

#[test]
fn many_start_at_once() {
    let starts: Vec<_> = (0..6)
        .map(|_| std::thread::spawn(RedisServer::start))
        .collect();
    let servers: Vec<_> = starts
        .into_iter()
        .map(|start| start.join().expect("no panic").expect("redis"))
        .collect();
    for (number, server) in servers.iter().enumerate() {
        assert_eq!(
            server.command(&["APPEND", "who", "x"]).expect("append"),
            "1",
            "{number} is its own store"
        );
    }
}

#[test]
fn demands_passwords_and_obeys_rules_also_after_a_restart() {
    let mut redis = RedisServer::builder()
        .password("p: \"w'\\$\u{e9}")
        .user("app", "on >secret ~ns:* &ns:* +@all -@dangerous")
        .start()
        .expect("redis");
    for _ in 0..2 {
        let anyone = ask(redis.address(), "GET a").expect("an answer");
        assert!(anyone.starts_with("-NOAUTH"), "{anyone}");
        redis.command(&["SET", "a", "1"]).expect("the test bed may");
        let as_default = ask(redis.address(), "AUTH \"p: \\\"w'\\\\$\\xc3\\xa9\"");
        assert_eq!(as_default.expect("an answer"), "+OK");
        let as_app = |command: &str| {
            let mut stream = TcpStream::connect(redis.address()).expect("connected");
            let request = format!("AUTH app secret\r\n{command}\r\n");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut lines = BufReader::new(stream).lines();
            assert_eq!(lines.next().expect("an answer").expect("a line"), "+OK");
            lines.next().expect("an answer").expect("a line")
        };
        assert_eq!(as_app("SET ns:a 1"), "+OK");
        assert!(as_app("SET a 1").starts_with("-NOPERM"), "another key");
        assert!(as_app("FLUSHALL").starts_with("-NOPERM"), "dangerous");
        redis.restart().expect("restarted");
    }
}

#[test]
fn a_server_that_ends_shows_its_log() {
    let error = RedisServer::builder()
        .line("no-such-option 1")
        .start()
        .expect_err("redis refuses");
    let text = error.to_string();
    assert!(matches!(error, Error::Start { .. }), "{text}");
    assert!(text.contains("no-such-option"), "{text}");
}

#[test]
fn a_script_flush_and_killed_clients_leave_the_test_bed_its_access() {
    let redis = RedisServer::start().expect("redis");
    let mut client = TcpStream::connect(redis.address()).expect("connected");
    client.write_all(b"PING\r\n").expect("sent");
    let mut lines = BufReader::new(client).lines();
    assert_eq!(lines.next().expect("a line").expect("read"), "+PONG");
    let hash = redis
        .command(&["SCRIPT", "LOAD", "return 1"])
        .expect("loaded");
    assert_eq!(redis.command(&["EVALSHA", &hash, "0"]).expect("run"), "1");
    redis.command(&["SCRIPT", "FLUSH"]).expect("flushed");
    let error = redis.command(&["EVALSHA", &hash, "0"]).expect_err("gone");
    assert!(error.to_string().contains("NOSCRIPT"), "{error}");
    let killed = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_eq!(killed.expect("killed"), "1");
    assert!(
        lines.next().is_none_or(|line| line.is_err()),
        "the client is gone"
    );
}

#[test]
fn is_reached_through_the_proxy() {
    let redis = RedisServer::start().expect("redis");
    let proxy = Proxy::start(redis.address()).expect("a proxy");
    assert_eq!(ask(proxy.address(), "SET a 1").expect("an answer"), "+OK");
    // The answer to one command is lost, and the command has happened.
    let trigger = proxy.when(Direction::Up, "unanswered", Direction::Down, Flow::Drop);
    assert!(ask(proxy.address(), "SET unanswered 1").is_err());
    assert!(trigger.has_fired());
    assert_eq!(redis.command(&["GET", "unanswered"]).expect("get"), "1");
}

#[test]
fn the_clock_moves_alone() {
    let mut redis = RedisServer::builder()
        .movable_clock()
        .start()
        .expect("redis under another clock");
    let ours = || {
        let now = std::time::SystemTime::now();
        let since = now
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        i64::try_from(since.as_secs()).expect("before the end of time")
    };
    let ahead = |redis: &RedisServer| {
        let time = redis.command(&["TIME"]).expect("time");
        let theirs: i64 = time
            .lines()
            .next()
            .and_then(|s| s.parse().ok())
            .expect("seconds");
        theirs - ours()
    };
    let near = |ahead: i64, expected: i64| (ahead - expected).abs() <= 5;
    assert!(near(ahead(&redis), 0));
    let pttl = |redis: &RedisServer| -> i64 {
        redis
            .command(&["PTTL", "k"])
            .expect("pttl")
            .parse()
            .expect("a number")
    };
    redis
        .command(&["SET", "k", "1", "PX", "60000"])
        .expect("set");
    redis.clock_back(Duration::from_secs(420)).expect("back");
    assert!(near(ahead(&redis), -420));
    assert!(pttl(&redis) > 400_000, "a minute has become eight");
    redis
        .clock_forward(Duration::from_secs(540))
        .expect("forward");
    assert!(near(ahead(&redis), 120));
    assert_eq!(
        redis.command(&["GET", "k"]).expect("get"),
        "",
        "expired at once"
    );
    redis.restart().expect("restarted");
    assert!(near(ahead(&redis), 120), "a jump outlasts a restart");

    let ordinary = RedisServer::start().expect("redis");
    let refused = ordinary.clock_forward(Duration::from_secs(1));
    assert!(matches!(refused, Err(Error::Config(_))));
}

#[tokio::test]
async fn what_replication_loses_is_lost_by_a_promotion() {
    let mut pair = RedisReplica::start_async().await.expect("a pair");
    pair.primary.command(&["SET", "a", "1"]).expect("set");
    pair.wait_in_sync_async().await.expect("in sync");
    assert_eq!(pair.replica.command(&["GET", "a"]).expect("get"), "1");
    let refused = pair
        .replica
        .command(&["SET", "b", "1"])
        .expect_err("a replica");
    assert!(refused.to_string().contains("READONLY"), "{refused}");

    pair.cut_replication();
    pair.primary.command(&["SET", "lost", "1"]).expect("set");
    assert_eq!(
        pair.primary.command(&["WAIT", "1", "200"]).expect("wait"),
        "0",
        "nobody has it"
    );
    // Healed, it arrives after all.
    pair.heal_replication();
    pair.wait_in_sync_async().await.expect("in sync");
    assert_eq!(pair.replica.command(&["GET", "lost"]).expect("get"), "1");

    pair.cut_replication();
    pair.primary.command(&["SET", "gone", "1"]).expect("set");
    pair.primary.kill().expect("killed");
    pair.promote().expect("promoted");
    assert_eq!(pair.replica.command(&["GET", "gone"]).expect("get"), "");
    pair.replica
        .command(&["SET", "b", "1"])
        .expect("a primary now");
}

#[tokio::test]
async fn sentinels_promote_the_replica() {
    let mut pair = RedisReplica::start_async().await.expect("a pair");
    let sentinels = RedisSentinels::start_async(&pair).await.expect("sentinels");
    assert_eq!(sentinels.sentinels.len(), 3);
    assert!(sentinels.url().starts_with("redis+sentinel://127.0.0.1:"));
    assert!(sentinels.url().ends_with("/tenure"));
    let old = pair.primary.address();
    assert_eq!(sentinels.primary().expect("an answer"), Some(old));
    // The network between the pair stays the proxy's: sentinels do not point the replica elsewhere.
    pair.cut_replication();
    pair.primary.command(&["SET", "gone", "1"]).expect("set");
    pair.primary.kill().expect("killed");
    let new = sentinels
        .wait_for_primary_change_async(old, SOON)
        .await
        .expect("a failover");
    assert_eq!(new, pair.replica.address());
    assert_eq!(pair.replica.command(&["SET", "b", "1"]).expect("set"), "OK");
    assert_eq!(pair.replica.command(&["GET", "gone"]).expect("get"), "");
    // The old primary comes back as a replica of the new one.
    pair.primary.restart_async().await.expect("restarted");
    let start = Instant::now();
    // The sentinels reset all its connections meanwhile, perhaps ours.
    while pair.primary.command(&["GET", "b"]).ok().as_deref() != Some("1") {
        assert!(start.elapsed() < SOON, "{}", pair.primary.log_tail(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        pair.primary.info("role").expect("info").as_deref(),
        Some("slave")
    );
}

#[tokio::test]
async fn a_cluster_redirects_and_moves_slots() {
    let cluster = RedisCluster::start_async().await.expect("a cluster");
    assert_eq!(cluster.nodes.len(), 3);
    assert!(cluster.url().starts_with("redis+cluster://127.0.0.1:"));
    // 12182, by the table of Redis' own tests.
    let slot = cluster.slot_of("foo").expect("a slot");
    assert_eq!(slot, 12_182);
    let owner = cluster
        .owner_of(slot)
        .expect("an answer")
        .expect("an owner");
    assert_eq!(owner, 2);
    let ask_node = |node: usize, command: &str| {
        ask(cluster.nodes[node].address(), command).expect("an answer")
    };
    assert_eq!(ask_node(2, "SET foo 1"), "+OK");
    let moved = |to: usize| format!("-MOVED 12182 {}", cluster.nodes[to].address());
    assert_eq!(ask_node(0, "GET foo"), moved(2));

    cluster.begin_move(slot, 0).expect("begun");
    assert_eq!(ask_node(2, "GET foo"), "$1", "still here");
    cluster.move_keys(slot, 0).expect("moved");
    let asked = format!("-ASK 12182 {}", cluster.nodes[0].address());
    assert_eq!(ask_node(2, "GET foo"), asked);
    cluster.finish_move(slot, 0).expect("finished");
    assert_eq!(ask_node(2, "GET foo"), moved(0));
    assert_eq!(cluster.nodes[0].command(&["GET", "foo"]).expect("get"), "1");
    cluster.move_slot(slot, 1).expect("moved on");
    assert_eq!(cluster.nodes[1].command(&["GET", "foo"]).expect("get"), "1");
    assert_eq!(cluster.owner_of(slot).expect("an answer"), Some(1));
    assert!(cluster.move_slot(slot, 1).is_err(), "it is there already");
    cluster
        .wait_ready_async()
        .await
        .expect("all slots are served");
}

#[tokio::test]
async fn a_cluster_with_replicas_outlives_a_primary() {
    let builder = RedisCluster::builder().with_replicas();
    let mut cluster = builder.start_async().await.expect("a cluster");
    assert_eq!(cluster.nodes.len(), 6);
    let slot = cluster.slot_of("foo").expect("a slot");
    assert_eq!(cluster.owner_of(slot).expect("an answer"), Some(2));
    cluster.nodes[2].command(&["SET", "foo", "0"]).expect("set");
    cluster.wait_in_sync(2).expect("in sync");
    cluster.cut_replication(2).expect("cut");
    cluster.nodes[2].command(&["SET", "foo", "1"]).expect("set");
    cluster.nodes[2].kill().expect("killed");
    let owner = cluster
        .wait_for_owner_change_async(slot, 2, SOON)
        .await
        .expect("a failover");
    assert_eq!(owner, 5);
    cluster
        .wait_ready_async()
        .await
        .expect("all slots are served");
    let kept = cluster.nodes[5].command(&["GET", "foo"]).expect("get");
    assert_eq!(kept, "0", "what came after the cut is lost");
    assert_eq!(
        cluster.nodes[5].command(&["SET", "foo", "2"]).expect("set"),
        "OK"
    );
    cluster.nodes[2].restart_async().await.expect("restarted");
    let start = Instant::now();
    while cluster.nodes[2].info("role").ok().flatten().as_deref() != Some("slave") {
        assert!(start.elapsed() < SOON, "{}", cluster.nodes[2].log_tail(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn serves_tls_to_clients_replicas_and_nodes() {
    let certs = tenure_testbed::Certs::generate().expect("certificates");
    let tls = || RedisServer::builder().tls(certs.mutual_tls());
    // The replica is a client, and shows its certificate.
    let pair = RedisReplica::builder().server(tls());
    let pair = pair.start_async().await.expect("a pair");
    assert!(pair.primary.url().starts_with("rediss://127.0.0.1:"));
    let plain = ask(pair.primary.address(), "PING");
    assert!(plain.is_err() || plain.is_ok_and(|line| !line.contains("PONG")));
    let sentinels = RedisSentinels::start_async(&pair).await.expect("sentinels");
    assert!(sentinels.url().starts_with("rediss+sentinel://"));
    let cluster = RedisCluster::builder().node(tls());
    let cluster = cluster.start_async().await.expect("a cluster");
    assert!(cluster.url().starts_with("rediss+cluster://"));
    let slot = cluster.slot_of("foo").expect("a slot");
    cluster.nodes[2].command(&["SET", "foo", "1"]).expect("set");
    cluster.move_slot(slot, 0).expect("moved");
    assert_eq!(cluster.nodes[0].command(&["GET", "foo"]).expect("get"), "1");
}

/// Not a test of its own: what runs with a variable that names nothing.
#[test]
#[ignore = "the process that the next test starts"]
fn start_one_and_ask_it() {
    let outcome = RedisServer::builder().movable_clock().start();
    match outcome {
        Err(error @ Error::MissingBinary { .. }) => println!("missing: {error}"),
        other => println!("not missing: {other:?}"),
    }
}

#[test]
fn a_missing_binary_names_its_debian_package() {
    let this = std::env::current_exe().expect("this binary");
    for (variable, binary, package) in [
        ("TENURE_REDIS_SERVER", "redis-server", "redis-server"),
        ("TENURE_CC", "cc", "gcc"),
    ] {
        let mut command = std::process::Command::new(&this);
        command
            .args([
                "start_one_and_ask_it",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(variable, "/nowhere/at/all");
        let mut process = Process::spawn(command).expect("this binary again");
        let line = process.expect_line("missing: ", SOON).expect("an answer");
        let named = [
            format!("`{binary}`"),
            format!("Debian package `{package}`"),
            variable.to_owned(),
        ];
        assert!(
            !line.contains("not missing") && named.iter().all(|name| line.contains(name)),
            "{line}"
        );
    }
}

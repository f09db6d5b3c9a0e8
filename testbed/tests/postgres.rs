//! A real PostgreSQL, started in every way that other tests rely on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tenure_testbed::{Error, PostgresReplica, PostgresServer};

/// The first byte of the answer to a client who asks for TLS: `S` or `N`.
fn ask_for_tls(address: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

#[test]
fn keeps_data_and_port_across_a_kill() {
    let mut postgres = PostgresServer::start().expect("postgres");
    let (address, pid, folder) = (postgres.address(), postgres.pid(), postgres.data_dir());
    let url = format!("postgres://postgres@{address}/postgres");
    assert_eq!(postgres.url(), url);
    assert_eq!(postgres.port(), address.port());
    assert!(postgres.version().contains('.'), "{}", postgres.version());
    postgres.sql("CREATE TABLE a AS SELECT 1").expect("created");
    postgres.kill().expect("killed");
    assert!(!postgres.is_running());
    assert!(TcpStream::connect(address).is_err(), "refused");
    assert!(matches!(postgres.pause(), Err(Error::NotRunning { .. })));
    assert!(matches!(postgres.sql("SELECT 1"), Err(Error::Io { .. })));
    postgres.kill().expect("killing the dead is no error");
    postgres.restart().expect("restarted");
    assert_eq!(postgres.address(), address);
    assert_ne!(postgres.pid(), pid);
    assert_eq!(postgres.sql("SELECT * FROM a").expect("rows"), "1");
    drop(postgres);
    assert!(!folder.exists(), "the folder is removed");
    assert!(TcpStream::connect(address).is_err(), "the port is free");
}

/// Whether there is a segment of System V shared memory with this id.
#[cfg(target_os = "linux")]
fn has_segment(id: &str) -> bool {
    let segments = std::fs::read_to_string("/proc/sysvipc/shm").expect("the segments");
    segments
        .lines()
        .any(|line| line.split_whitespace().nth(1) == Some(id))
}

#[test]
#[cfg(target_os = "linux")]
fn leaves_no_shared_memory_behind() {
    let mut postgres = PostgresServer::start().expect("postgres");
    let kind = postgres.sql("SHOW dynamic_shared_memory_type");
    assert_eq!(kind.expect("shown"), "mmap");
    let segment = |postgres: &PostgresServer| {
        let file = postgres.data_dir().join("postmaster.pid");
        let text = std::fs::read_to_string(file).expect("of a server");
        let line = text.lines().nth(6).expect("the line of the segment");
        let id = line.split_whitespace().nth(1).expect("its id").to_owned();
        assert!(has_segment(&id), "{text}");
        id
    };
    let first = segment(&postgres);
    postgres.restart().expect("restarted after a kill");
    let second = segment(&postgres);
    drop(postgres);
    assert!(!has_segment(&first) && !has_segment(&second));
}

#[test]
fn settings_users_and_databases() {
    let postgres = PostgresServer::builder()
        .setting("max_connections", 17)
        .setting("fsync", "off")
        .user("app", "it's secret")
        .start()
        .expect("postgres");
    let sql = |text: &str| postgres.sql(text);
    assert_eq!(sql("SHOW max_connections").expect("shown"), "17");
    assert_eq!(sql("SHOW fsync").expect("shown"), "off");
    postgres.set("work_mem", "7MB").expect("set");
    assert_eq!(sql("SHOW work_mem").expect("shown"), "7MB");
    let rows = sql("SELECT 1, NULL, 'x' UNION ALL SELECT 2, 'y', ''").expect("rows");
    assert_eq!(rows, "1||x\n2|y|");
    let app =
        "SELECT rolsuper, rolcanlogin, left(rolpassword, 5) FROM pg_authid WHERE rolname = 'app'";
    assert_eq!(sql(app).expect("the user"), "f|t|SCRAM");
    postgres.create_database("od\"d").expect("created");
    assert!(postgres.url_of("other").ends_with("/other"));
    let where_am_i = postgres.sql_in("od\"d", "SELECT current_database()");
    assert_eq!(where_am_i.expect("answered"), "od\"d");
    let error = sql("SELECT * FROM nothing").expect_err("no such table");
    let text = error.to_string();
    assert!(matches!(error, Error::Reply { .. }), "{text}");
    assert!(text.contains("42P01"), "{text}");
    let error = postgres.sql_in("nowhere", "SELECT 1");
    assert!(matches!(error, Err(Error::Reply { .. })), "{error:?}");
    let refused = PostgresServer::builder().setting("nonsense", 1).start();
    let text = refused.expect_err("no such setting").to_string();
    assert!(text.contains("nonsense"), "{text}");
}

#[tokio::test]
async fn a_paused_server_is_silent_and_goes_on() {
    let mut postgres = PostgresServer::start_async().await.expect("postgres");
    assert_eq!(ask_for_tls(postgres.address()).expect("an answer"), b'N');
    let mut open = TcpStream::connect(postgres.address()).expect("a connection");
    open.set_read_timeout(Some(Duration::from_millis(500)))
        .expect("set");
    std::thread::sleep(Duration::from_millis(100));
    postgres.pause().expect("paused");
    let start = Instant::now();
    assert!(ask_for_tls(postgres.address()).is_err(), "no answer");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(900), "no refusal either");
    open.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])
        .expect("written");
    let mut answer = [0];
    assert!(
        open.read_exact(&mut answer).is_err(),
        "nor by the process of a connection"
    );
    postgres.resume().expect("resumed");
    open.set_read_timeout(None).expect("set");
    open.read_exact(&mut answer).expect("an answer");
    assert_eq!(ask_for_tls(postgres.address()).expect("an answer"), b'N');
    // A paused server can be killed and restarted as any other.
    postgres.pause().expect("paused");
    postgres.restart_async().await.expect("restarted");
    assert_eq!(postgres.sql("SELECT 1").expect("an answer"), "1");
}

#[test]
fn clients_are_terminated() {
    let postgres = PostgresServer::start().expect("postgres");
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| postgres.sql("SELECT pg_sleep(20)"));
        let start = Instant::now();
        // A backend that is ended before its query has begun answers with another error.
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        while postgres.sql(sleeping).expect("rows") == "0" {
            assert!(start.elapsed() < Duration::from_secs(15), "nobody sleeps");
        }
        // The connections that asked for it may not have ended yet.
        assert!(postgres.terminate_backends().expect("terminated") >= 1);
        let ended = sleeper.join().expect("no panic");
        assert!(ended.expect_err("ended").to_string().contains("57P01"));
    });
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let pair = PostgresReplica::start().expect("a pair");
    let (primary, standby) = (&pair.primary, &pair.standby);
    assert_eq!(
        standby.sql("SELECT pg_is_in_recovery()").expect("rows"),
        "t"
    );
    primary.sql("CREATE TABLE a (n int)").expect("created");
    pair.wait_in_sync().expect("in sync");
    assert!(
        standby.sql("INSERT INTO a VALUES (1)").is_err(),
        "read-only"
    );
    pair.cut_replication();
    primary
        .sql("INSERT INTO a VALUES (1)")
        .expect("it waits for nobody");
    pair.promote().expect("promoted");
    assert_eq!(standby.sql("SELECT count(*) FROM a").expect("rows"), "0");
    standby.sql("INSERT INTO a VALUES (2)").expect("writable");
    assert_eq!(primary.sql("SELECT n FROM a").expect("rows"), "1");
}

#[test]
fn a_synchronous_primary_waits_for_its_standby() {
    let pair = PostgresReplica::builder().synchronous(true).start();
    let pair = pair.expect("a pair");
    pair.primary.sql("CREATE TABLE a (n int)").expect("created");
    pair.cut_replication();
    let impatient = "SET statement_timeout = '300ms'; INSERT INTO a VALUES (1)";
    std::thread::scope(|scope| {
        let written = scope.spawn(|| pair.primary.sql(impatient));
        let start = Instant::now();
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        while pair.primary.sql(waits).expect("rows") == "0" {
            assert!(start.elapsed() < Duration::from_secs(15), "nobody waits");
        }
        pair.heal_replication();
        drop(written.join().expect("no panic"));
    });
    pair.wait_in_sync().expect("in sync");
    assert_eq!(
        pair.standby.sql("SELECT count(*) FROM a").expect("rows"),
        "1"
    );
    pair.set_synchronous(false).expect("set");
    pair.cut_replication();
    pair.primary.sql("INSERT INTO a VALUES (1)").expect("alone");
}

#[cfg(feature = "tls")]
#[test]
fn tls_only() {
    let certs = tenure_testbed::Certs::generate().expect("certificates");
    for tls in [certs.tls(), certs.mutual_tls()] {
        let postgres = PostgresServer::builder().tls(tls).start();
        let postgres = postgres.expect("postgres");
        assert_eq!(ask_for_tls(postgres.address()).expect("an answer"), b'S');
        assert_eq!(
            postgres.sql("SHOW ssl").expect("the test bed's own way"),
            "on"
        );
    }
}

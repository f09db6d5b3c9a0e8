//! Where `idle_session_timeout` does not reach: a client that stands still in the middle of something is
//! ended all the same, and what it held is free.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Database, TICKETS, server};
use tenure_core::backend::StoreUrl;
use tenure_core::{HoldFor, Session, SessionOptions};
use tenure_postgres::{PostgresConfig, PostgresSession};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const TTL: Duration = Duration::from_secs(2);

/// Where a session's client stands still, as its server sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hole {
    /// Between two steps: the control, for which `idle_session_timeout` is made.
    Idle,
    /// After this was sent as a query of its own.
    After(&'static str),
    /// After a `Parse`, with nothing behind it.
    Parse,
    /// After a step that ran, before the `Sync` that ends it.
    Sync,
}

/// Between a client and the server; it knows where messages begin and end.
struct Relay {
    address: SocketAddr,
    /// What has still to pass before everything stands still.
    hole: Arc<Mutex<Option<Hole>>>,
    still: watch::Sender<bool>,
}

impl Relay {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hole = Arc::new(Mutex::new(None));
        let still = watch::Sender::new(false);
        let (shared, stop) = (Arc::clone(&hole), still.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(server().address()).await.unwrap();
                let (from, to) = client.into_split();
                let (back, up) = server.into_split();
                tokio::spawn(down(back, to, stop.subscribe()));
                tokio::spawn(forth(from, up, Arc::clone(&shared), stop.clone()));
            }
        });
        Self {
            address,
            hole,
            still,
        }
    }

    async fn stands_still_at(&self, hole: Hole) -> Instant {
        *self.hole.lock().unwrap() = Some(hole);
        let mut still = self.still.subscribe();
        still.wait_for(|still| *still).await.unwrap();
        Instant::now()
    }
}

async fn stopped(still: &mut watch::Receiver<bool>) {
    drop(still.wait_for(|still| *still).await);
}

/// What the server says; nobody reads it once all stands still.
async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut still: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            () = stopped(&mut still) => None,
            read = from.read(&mut buffer) => Some(read.unwrap_or(0)),
        };
        match read {
            None => return std::future::pending().await,
            Some(0) => return,
            Some(read) => to.write_all(&buffer[..read]).await.unwrap_or_default(),
        }
    }
}

/// What the client says, message by message.
async fn forth(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    hole: Arc<Mutex<Option<Hole>>>,
    stop: watch::Sender<bool>,
) {
    let mut still = stop.subscribe();
    let (mut buffer, mut begun, mut main) = (Vec::new(), false, false);
    loop {
        // The first has no type.
        let skip = usize::from(begun);
        while let Some(length) = buffer.get(skip..skip + 4) {
            let length = skip + u32::from_be_bytes(length.try_into().unwrap()) as usize;
            if buffer.len() < length {
                break;
            }
            let message: Vec<u8> = buffer.drain(..length).collect();
            begun = true;
            main |= message.windows(12).any(|part| part == b"tenure.open(");
            let wanted = if main { *hole.lock().unwrap() } else { None };
            let kind = message[0];
            if wanted == Some(Hole::Sync) && kind == b'S' {
                // Run, but not ended.
                to.write_all(b"H\0\0\0\x04").await.unwrap();
                stop.send_replace(true);
                return std::future::pending().await;
            }
            to.write_all(&message).await.unwrap_or_default();
            if wanted == Some(Hole::Parse) && kind == b'P' {
                stop.send_replace(true);
                return std::future::pending().await;
            }
        }
        if main && buffer.is_empty() {
            let wanted = *hole.lock().unwrap();
            if let Some(Hole::After(sql)) = wanted {
                let length = u32::try_from(sql.len() + 5).unwrap().to_be_bytes();
                let query = [b"Q", &length[..], sql.as_bytes(), b"\0"].concat();
                to.write_all(&query).await.unwrap();
            }
            if matches!(wanted, Some(Hole::Idle | Hole::After(_))) {
                stop.send_replace(true);
                return std::future::pending().await;
            }
        }
        let read = tokio::select! {
            biased;
            () = stopped(&mut still) => None,
            read = from.read_buf(&mut buffer) => Some(read.unwrap_or(0)),
        };
        match read {
            None => return std::future::pending().await,
            Some(0) => return,
            Some(_) => {}
        }
    }
}

async fn through(relay: &Relay, db: &Database, role: &str) -> Session<PostgresSession> {
    let url = format!(
        "postgres://{role}@{}/{}?sslmode=disable",
        relay.address, db.name
    );
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_postgres::connect(config).await.unwrap();
    let options = SessionOptions::new().ttl(TTL);
    store.open(options).await.unwrap()
}

/// How long after the client stood still the next in line had what it held.
async fn freed_after(hole: Hole) -> Duration {
    freed_in(Database::new().await, hole).await
}

async fn freed_in(db: Database, hole: Hole) -> Duration {
    let relay = Relay::start().await;
    let holder = through(&relay, &db, "postgres").await;
    freed_of(db, &relay, holder, hole).await
}

async fn freed_of(
    db: Database,
    relay: &Relay,
    holder: Session<PostgresSession>,
    hole: Hole,
) -> Duration {
    let held = holder.locker("l").unwrap().lock().await.unwrap();
    let other = db.session(Duration::from_secs(5)).await;
    let lock = other.locker("l").unwrap();
    let waiting = tokio::spawn(async move { (lock.lock().await.unwrap(), Instant::now()) });
    db.until(TICKETS, 1).await;
    // The client goes on: it renews, and does something for the first time.
    let barrier = holder.barrier("b").unwrap();
    let (still, _) = tokio::join!(relay.stands_still_at(hole), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::timeout(TTL, barrier.hold(HoldFor::Session))
            .await
            .map(drop)
    });
    let waiting = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    let (next, granted) = waiting.unwrap().unwrap();
    assert!(next.token() > held.token());
    assert!(!held.is_valid());
    let after = granted - still;
    println!("{hole:?}: {after:?}");
    after
}

/// The TTL, a second for the server to notice, half a one for who waits, and the rest for a busy machine.
const IN_TIME: Duration = Duration::from_millis(4500);

#[tokio::test]
async fn between_two_steps() {
    let after = freed_after(Hole::Idle).await;
    assert!(after < IN_TIME, "{after:?}");
}

#[tokio::test]
async fn in_a_transaction() {
    let after = freed_after(Hole::After("BEGIN")).await;
    assert!(after < IN_TIME, "{after:?}");
}

#[tokio::test]
async fn while_a_statement_runs() {
    let after = freed_after(Hole::After("SELECT pg_sleep(600)")).await;
    assert!(after < IN_TIME + TTL, "{after:?}");
}

#[tokio::test]
async fn with_a_parse_and_no_sync() {
    let after = freed_after(Hole::Parse).await;
    assert!(after < IN_TIME, "{after:?}");
}

#[tokio::test]
async fn with_a_step_and_no_sync() {
    let after = freed_after(Hole::Sync).await;
    assert!(after < IN_TIME, "{after:?}");
}

#[tokio::test]
async fn with_a_large_result_unread() {
    let large = "SELECT repeat('x', 1000) FROM generate_series(1, 200000)";
    let after = freed_after(Hole::After(large)).await;
    assert!(after < IN_TIME, "{after:?}");
}

/// Where the server does not say since when its connections are silent.
#[tokio::test]
async fn with_a_step_and_no_sync_where_activities_are_not_tracked() {
    let db = Database::new().await;
    let untracked = format!("ALTER DATABASE {} SET track_activities = off", db.name);
    let mut sql = db.sql().await;
    sqlx::Executor::execute(&mut sql, sqlx::AssertSqlSafe(untracked))
        .await
        .unwrap();
    let guarantees = db.store().await.guarantees().await.unwrap();
    let reason = &guarantees.expiry.reason;
    assert!(reason.contains("track_activities"), "{reason}");
    let after = freed_in(db, Hole::Sync).await;
    assert!(after < IN_TIME, "{after:?}");
}

/// Of such a one the sweep goes by what its renewals say, whosever it is: it spares one that lives, for longer than the
/// server has been up with these settings, and ends one that stands still.
#[tokio::test]
async fn another_role_that_is_not_tracked_is_spared_for_as_long_as_it_renews() {
    let db = Database::new().await;
    let _schema = db.store().await;
    let mut sql = db.sql().await;
    let role = format!("quiet_{}", db.name);
    let prepare = format!(
        "CREATE ROLE {role} LOGIN; ALTER ROLE {role} SET track_activities = off; {}",
        tenure_postgres::grants(&role)
    );
    let prepare = sqlx::raw_sql(sqlx::AssertSqlSafe(prepare));
    sqlx::Executor::execute(&mut sql, prepare).await.unwrap();
    let relay = Relay::start().await;
    let holder = through(&relay, &db, &role).await;
    let held = holder.locker("lives").unwrap().lock().await.unwrap();
    let untracked = "SELECT count(*) FROM tenure.sessions AS s JOIN pg_stat_activity AS a ON a.pid = s.pid \
        WHERE a.state = 'disabled' AND a.usename <> current_user";
    assert_eq!(db.number(untracked).await, 1, "another role, not tracked");
    // Nothing spares it but its renewals: of a server that has just started nothing is said yet.
    db.until(
        "SELECT count(*) FROM tenure.sessions \
            WHERE pg_conf_load_time() < clock_timestamp() - ttl - interval '0.25 seconds'",
        1,
    )
    .await;
    let until = Instant::now() + TTL * 2;
    while Instant::now() < until {
        let sweep = "DELETE FROM tenure.sweeps; SELECT tenure.sweep()";
        sqlx::Executor::execute(&mut sql, sqlx::raw_sql(sweep))
            .await
            .unwrap();
        assert!(held.is_valid() && holder.is_valid());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // By the store's own word, too.
    held.release().await.unwrap();
    let after = freed_of(db, &relay, holder, Hole::Sync).await;
    assert!(after < IN_TIME, "{after:?}");
}

//! One application cannot harm another on the same server (rule O3): not by its locks, and not by what it
//! waits for while it notifies.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tenure_core::backend::StoreUrl;
use tenure_core::{Error, ErrorKind, HoldFor, LockGuard, Result, Session, SessionOptions};
use tenure_postgres::{PostgresConfig, PostgresSession};
use tenure_testbed::PostgresServer;
use tokio::task::{JoinHandle, JoinSet};

const LONG: Duration = Duration::from_secs(60);

async fn session(server: &PostgresServer, database: &str) -> Session<PostgresSession> {
    let mut sessions = sessions(server, database, 1).await;
    sessions.pop().unwrap()
}

async fn sessions(
    server: &PostgresServer,
    database: &str,
    count: usize,
) -> Vec<Session<PostgresSession>> {
    let url = server.url_of(database) + "?sslmode=disable";
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_postgres::connect(config).await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(store.open(SessionOptions::new().ttl(LONG)).await.unwrap());
    }
    sessions
}

const ADVISORY: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";

/// Takes locks until one is refused.
async fn take_all(
    session: Session<PostgresSession>,
    number: usize,
    most: usize,
) -> (Vec<LockGuard>, Option<Error>) {
    let mut guards = Vec::new();
    while guards.len() < most {
        let lock = session
            .locker(format!("{number}/{}", guards.len()))
            .unwrap();
        match lock.try_lock().await {
            Ok(guard) => guards.push(guard),
            Err(error) => return (guards, Some(error)),
        }
    }
    (guards, None)
}

/// Every connection of the server but a few belongs to a session that takes as many locks as it can, in two databases
/// at the same time: together they leave most of the lock table to the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_sessions_together_leave_room_in_the_lock_table() {
    const EACH: usize = 60;
    let server = PostgresServer::builder()
        .setting("max_connections", 150)
        .setting("max_locks_per_transaction", 16);
    let server = server.start_async().await.unwrap();
    let table = 150 * 16;
    server.create_database("one").unwrap();
    server.create_database("two").unwrap();
    let mut greedy = JoinSet::new();
    let mut own = Vec::new();
    for (at, database) in ["one", "two"].into_iter().enumerate() {
        for (number, session) in sessions(&server, database, EACH)
            .await
            .into_iter()
            .enumerate()
        {
            own.push(session.clone());
            greedy.spawn(take_all(session, at * EACH + number, 200));
        }
    }
    let (mut guards, mut refused) = (Vec::new(), 0);
    while let Some(done) = greedy.join_next().await {
        let (taken, error) = done.unwrap();
        assert!(!taken.is_empty(), "a session may always have one lock");
        guards.extend(taken);
        if let Some(error) = error {
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0, "nobody was refused");
    let advisory: usize = server.sql(ADVISORY).unwrap().parse().unwrap();
    println!("{advisory} advisory locks in a table of {table}, {refused} sessions refused");
    // A session's own lock is beside what it may hold.
    assert!(
        advisory <= table * 3 / 8 + 2 * EACH,
        "{advisory} locks in a table of {table}"
    );

    // Others connect, work and lock.
    server.sql("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let other = session(&server, "postgres").await;
    let lock = other.locker("mine").unwrap().try_lock().await.unwrap();
    assert!(guards.iter().all(|guard| guard.is_valid()));
    drop(lock);

    // What is given back can be taken by another session at once.
    for guard in guards {
        guard.release().await.unwrap();
    }
    let (taken, refused) = take_all(own.pop().unwrap(), 1000, 200).await;
    assert!(refused.is_none(), "{refused:?} after {}", taken.len());
}

type Act = JoinHandle<Result<()>>;

struct Neighbours {
    server: Arc<PostgresServer>,
    /// Its notifications are what may be delayed.
    other: PgConnection,
}

impl Neighbours {
    fn number(&self, sql: &str) -> usize {
        self.server.sql(sql).unwrap().parse().unwrap()
    }

    fn waiting(&self) -> usize {
        self.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    }

    /// Starts `act`; whether another database can notify while `act` waits for the standby, or once it is done.
    async fn are_undisturbed_by(&mut self, before: usize, act: Act) -> bool {
        for _ in 0..1000 {
            if act.is_finished() || self.waiting() > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let notify = self.other.execute("NOTIFY neighbours").await;
        act.abort();
        notify.is_ok()
    }
}

/// The standby that every commit waits for does not answer. Whatever notifies does not wait for it, because a commit
/// that notifies keeps those of all other databases waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_notification_waits_for_a_standby() {
    let server = PostgresServer::builder().setting("max_connections", 200);
    let server = Arc::new(server.start_async().await.unwrap());
    server.create_database("other").unwrap();
    let url = server.url_of("other") + "?sslmode=disable";
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.execute("SET lock_timeout = '700ms'").await.unwrap();
    let mut neighbours = Neighbours {
        server: Arc::clone(&server),
        other,
    };

    // Each act has a session of its own, because it may never end.
    let mut all = sessions(&server, "postgres", 16).await;
    let mut one = || all.pop().unwrap();
    let held = one();
    type Start = Box<dyn FnOnce() -> Act>;
    let mut acts: Vec<(&str, Start)> = Vec::new();

    let barrier = held.barrier("released").unwrap();
    barrier.hold(HoldFor::Session).await.unwrap();
    let session = one();
    acts.push((
        "the release of a barrier",
        Box::new(move || {
            let barrier = session.barrier("released").unwrap();
            tokio::spawn(async move { barrier.release().await.map(drop) })
        }),
    ));

    // The holder is dead, and nobody has noticed.
    let dead = one();
    let barrier = dead.barrier("orphan").unwrap();
    barrier.hold(HoldFor::Session).await.unwrap();
    let terminate = format!("SELECT tenure.terminate({})", dead.id());
    assert_eq!(server.sql(terminate).unwrap(), "t");
    let session = one();
    acts.push((
        "the hold of a barrier whose holder died",
        Box::new(move || {
            let barrier = session.barrier("orphan").unwrap();
            tokio::spawn(async move { barrier.hold(HoldFor::Session).await })
        }),
    ));

    for (what, delay) in [("a nack", 0), ("a nack with a delay", 5)] {
        let (session, waiting) = (one(), one());
        let name = format!("nacked/{delay}");
        let queue = session.queue(&name).unwrap();
        queue.enqueue("x").await.unwrap();
        let delivery = queue.try_dequeue().await.unwrap().unwrap();
        let wait = waiting.queue(&name).unwrap();
        tokio::spawn(async move { wait.dequeue().await });
        acts.push((
            what,
            Box::new(move || {
                tokio::spawn(async move {
                    let _session = session;
                    delivery.nack_after(Duration::from_secs(delay)).await
                })
            }),
        ));
    }

    let (session, waiting) = (one(), one());
    let wait = waiting.queue("enqueued").unwrap();
    tokio::spawn(async move { wait.dequeue().await });
    acts.push((
        "an enqueue",
        Box::new(move || {
            let queue = session.queue("enqueued").unwrap();
            tokio::spawn(async move { queue.enqueue("x").await.map(drop) })
        }),
    ));

    let (session, waiting) = (one(), one());
    let queue = session.queue("evicted").unwrap();
    queue.enqueue("x").await.unwrap();
    let delivery = queue.try_dequeue().await.unwrap().unwrap();
    let wait = waiting.queue("evicted").unwrap();
    tokio::spawn(async move { wait.dequeue().await });
    let member = delivery.key().rsplit_once('#').unwrap().1.to_owned();
    let operator = Arc::clone(&server);
    acts.push((
        "an operator's eviction of a delivery",
        Box::new(move || {
            tokio::task::spawn_blocking(move || {
                let _kept = (session, delivery);
                let evict = format!("SELECT tenure.evict_delivery('{member}')");
                operator.sql(evict).map(drop).map_err(|error| {
                    Error::new(ErrorKind::Unavailable, "the operator's step").with_source(error)
                })
            })
        }),
    ));

    let session = one();
    acts.push((
        "a leadership",
        Box::new(move || {
            tokio::spawn(async move {
                let leader = session.election("e")?.campaign("me").await?;
                leader.proclaim("still me").await?;
                leader.resign().await
            })
        }),
    ));

    let session = one();
    acts.push((
        "a double barrier",
        Box::new(move || {
            tokio::spawn(async move {
                let double = session.double_barrier("d", 1)?;
                double.enter().await?.leave().await
            })
        }),
    ));

    for _ in 0..400 {
        if neighbours.number("SELECT count(*) FROM tenure.queue_waits") == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    server.set("synchronous_standby_names", "nobody").unwrap();
    for _ in 0..400 {
        if server
            .sql("SELECT current_setting('synchronous_standby_names')")
            .unwrap()
            == "nobody"
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }

    let mut disturbing = Vec::new();
    for (what, act) in acts {
        let before = neighbours.waiting();
        if !neighbours.are_undisturbed_by(before, act()).await {
            disturbing.push(what);
        }
        // Nothing that waits is left over for the next.
        server.set("synchronous_standby_names", "").unwrap();
        for _ in 0..400 {
            if neighbours.waiting() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        server.set("synchronous_standby_names", "nobody").unwrap();
    }
    server.set("synchronous_standby_names", "").unwrap();
    assert!(
        disturbing.is_empty(),
        "another database could not notify during {disturbing:?}"
    );
}

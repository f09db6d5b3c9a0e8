//! A PostgreSQL of its own for a test binary, and a fresh database for each test.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection, Row};
use tenure_core::backend::StoreUrl;
use tenure_core::{FencingToken, Holding, Session, SessionOptions, Store};
use tenure_postgres::{PostgresBackend, PostgresConfig, PostgresSession};
use tenure_testbed::PostgresServer;

/// The server of this test binary. Ends with the process: its watchdog sees to it.
pub fn server() -> &'static PostgresServer {
    static SERVER: LazyLock<PostgresServer> = LazyLock::new(|| {
        PostgresServer::builder()
            .setting("max_connections", 200)
            .setting("max_locks_per_transaction", 256)
            .start()
            .unwrap()
    });
    &SERVER
}

/// A database of its own: advisory locks of one are no business of another.
pub struct Database {
    pub name: String,
}

impl Database {
    pub async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server().create_database(&name).unwrap();
        Self { name }
    }

    pub fn config(&self) -> PostgresConfig {
        let url = server().url_of(&self.name) + "?sslmode=disable";
        PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap()
    }

    /// A connection of its own, as another process would have.
    pub async fn store(&self) -> Store<PostgresBackend> {
        tenure_postgres::connect(self.config()).await.unwrap()
    }

    pub async fn session(&self, ttl: Duration) -> Session<PostgresSession> {
        let options = SessionOptions::new().ttl(ttl);
        self.store().await.open(options).await.unwrap()
    }

    pub async fn sql(&self) -> PgConnection {
        let url = server().url_of(&self.name) + "?sslmode=disable";
        PgConnection::connect(&url).await.unwrap()
    }

    /// The first column of the first row.
    pub async fn number(&self, sql: &'static str) -> i64 {
        let mut connection = self.sql().await;
        connection.fetch_one(sql).await.unwrap().get::<i64, _>(0)
    }

    /// Waits until the question answers `wanted`.
    pub async fn until(&self, sql: &'static str, wanted: i64) {
        for _ in 0..400 {
            if self.number(sql).await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!(
            "NOT JUDGED: {sql}: {} instead of {wanted}",
            self.number(sql).await
        );
    }
}

pub const TICKETS: &str = "SELECT count(*) FROM tenure.tickets";

/// The advisory locks of this database: one of each session, and what is held.
pub const ONLY_SESSIONS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The end of `future`, which must not take longer than `limit`, and some more on a busy machine.
pub async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    let limit = limit * 3 * tenure_testbed::patience();
    let ended = tokio::time::timeout(limit, future).await;
    ended.unwrap_or_else(|_| panic!("NOT JUDGED: {what}: not within {limit:?}"))
}

type Check<G> = Box<dyn FnOnce(&G) + Send>;

/// A process that holds something and then stands still: nobody renews there, nobody looks at a clock.
pub struct Silent<G> {
    told: mpsc::Receiver<(Instant, FencingToken)>,
    wake: mpsc::Sender<Check<G>>,
    thread: JoinHandle<()>,
}

impl<G: Deref<Target = Holding> + 'static> Silent<G> {
    pub fn start<F: Future<Output = G>>(
        config: PostgresConfig,
        ttl: Duration,
        take: impl FnOnce(Session<PostgresSession>) -> F + Send + 'static,
    ) -> Self {
        let (tell, told) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<Check<G>>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let (held, guard) = runtime.block_on(async {
                let store = tenure_postgres::connect(config).await.unwrap();
                let session = store.open(SessionOptions::new().ttl(ttl)).await.unwrap();
                // Before the last that the server hears of it.
                let held = Instant::now();
                (held, take(session).await)
            });
            tell.send((held, guard.token())).unwrap();
            woken.recv().unwrap()(&guard);
        });
        Self { told, wake, thread }
    }

    /// Since when, at the latest, it stands still, and what it has.
    pub async fn holds(self) -> (Instant, FencingToken, Self) {
        // Not while this runtime stands still: its sessions have to be renewed.
        tokio::task::spawn_blocking(move || {
            let (held, token) = self.told.recv().unwrap();
            (held, token, self)
        })
        .await
        .unwrap()
    }

    /// Goes on there, with what it believes to have.
    pub fn wake(self, check: impl FnOnce(&G) + Send + 'static) {
        self.wake.send(Box::new(check)).unwrap();
        self.thread.join().unwrap();
    }
}

/// Steps that read who is next are cancelled by the server, which does not take back what became of
/// advisory locks before.
pub const BREAK_NUDGE: &str = "ALTER FUNCTION tenure.line_nudge(text, bigint) RENAME TO line_nudge_right; \
    CREATE FUNCTION tenure.line_nudge(a_channel text, a_key bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$ \
    BEGIN \
        RAISE EXCEPTION 'not now' USING ERRCODE = '57014'; \
    END $$";

pub const MEND_NUDGE: &str = "DROP FUNCTION tenure.line_nudge(text, bigint); \
    ALTER FUNCTION tenure.line_nudge_right(text, bigint) RENAME TO line_nudge";

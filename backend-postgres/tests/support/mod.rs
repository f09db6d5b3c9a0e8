//! A PostgreSQL of its own for a test binary, and a fresh database for each test.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection, Row};
use tenure_core::backend::StoreUrl;
use tenure_core::{Session, SessionOptions, Store};
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
        panic!("{sql}: {} instead of {wanted}", self.number(sql).await);
    }
}

pub const TICKETS: &str = "SELECT count(*) FROM tenure.tickets";

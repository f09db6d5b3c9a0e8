//! A PostgreSQL of its own for a test binary, and a fresh database for each test.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tenure_core::backend::StoreUrl;
use tenure_core::{Session, SessionOptions, Store};
use tenure_postgres::{PostgresBackend, PostgresConfig, PostgresSession};

/// The server ends, and its files go, when this process does: then its standard input is at its end.
const RUN: &str = r#"
set -e
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
trap : INT TERM
"$bin/initdb" -D "$data" -A trust -U postgres --no-sync -E UTF8 --locale=C >/dev/null
"$bin/postgres" -D "$data" -p "$1" -h 127.0.0.1 -k '' -c max_connections=200 -c max_locks_per_transaction=256 </dev/null >"$data/log" 2>&1 &
server=$!
cat >/dev/null || :
kill -INT $server
wait $server || :
"#;

pub struct Server {
    port: u16,
    _child: Child,
}

/// The server of this test binary.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = Command::new("sh");
        command
            .args(["-c", RUN, "sh", &port.to_string()])
            .stdin(Stdio::piped())
            .current_dir("/");
        // It refuses to run as root.
        if let Some((uid, gid)) = postgres_user() {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().unwrap();
        Server {
            port,
            _child: child,
        }
    })
}

fn postgres_user() -> Option<(u32, u32)> {
    let me = Command::new("id").arg("-u").output().unwrap().stdout;
    if me != b"0\n" {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.unwrap().split(':').skip(2);
    let mut next = || fields.next().unwrap().parse().unwrap();
    Some((next(), next()))
}

impl Server {
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// Connected to `database`, once the server is up.
    pub async fn sql(&self, database: &str) -> PgConnection {
        let url = self.url(database);
        for _ in 0..600 {
            if let Ok(connection) = PgConnection::connect(&url).await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no server at {url}");
    }
}

/// A database of its own: advisory locks of one are no business of another.
pub struct Database {
    pub name: String,
}

impl Database {
    pub async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut sql = server().sql("postgres").await;
        // One at a time: it copies a template.
        for attempt in 0.. {
            let created = sql
                .execute(AssertSqlSafe(format!("CREATE DATABASE {name}")))
                .await;
            match created {
                Ok(_) => break,
                Err(error) if attempt == 50 => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        Self { name }
    }

    pub fn config(&self) -> PostgresConfig {
        let url = server().url(&self.name);
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
        server().sql(&self.name).await
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

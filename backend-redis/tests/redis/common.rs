//! What the tests share: one server, a namespace for each test, and patience with an end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tenure_core::{Namespace, Session, SessionOptions, Store};
use tenure_redis::{RedisBackend, RedisConfig, RedisSession};
use tenure_testbed::RedisServer;

/// For what must happen at once: generous, because the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// For what takes many steps.
pub(crate) const LATER: Duration = Duration::from_secs(45);

/// The server of all tests that do not hurt theirs.
pub(crate) fn shared() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(|| RedisServer::start().expect("Redis starts"))
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// One namespace of one server.
pub(crate) struct Bed<'a> {
    pub(crate) server: &'a RedisServer,
    pub(crate) namespace: Namespace,
}

impl Bed<'static> {
    /// A new namespace on the shared server.
    pub(crate) fn new(name: &str) -> Self {
        Bed::on(shared(), name)
    }
}

impl<'a> Bed<'a> {
    pub(crate) fn on(server: &'a RedisServer, name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace::new(format!("{name}-{number}")).expect("a namespace");
        Self { server, namespace }
    }

    pub(crate) fn config(&self) -> RedisConfig {
        self.through(self.server.address())
    }

    /// The same server and namespace, by way of `address`.
    pub(crate) fn through(&self, address: SocketAddr) -> RedisConfig {
        RedisConfig::new(address.to_string()).namespace(self.namespace.clone())
    }

    pub(crate) fn url(&self) -> String {
        format!("{}?namespace={}", self.server.url(), self.namespace)
    }

    /// A client of its own.
    pub(crate) async fn store(&self) -> Store<RedisBackend> {
        connect(self.config()).await
    }

    /// A session over a client of its own.
    pub(crate) async fn session(&self, ttl: Duration) -> Session<RedisSession> {
        open(&self.store().await, ttl).await
    }

    /// Before every key of the namespace.
    pub(crate) fn root(&self) -> String {
        format!("{{tenure/1/{}}}/", self.namespace)
    }

    pub(crate) fn ask(&self, command: &[&str]) -> String {
        self.server.command(command).expect("Redis answers")
    }

    /// What an operator's command says of the key `name` of this namespace.
    pub(crate) fn of(&self, verb: &str, name: &str, more: &[&str]) -> String {
        let key = format!("{}{name}", self.root());
        self.ask(&[&[verb, &key], more].concat())
    }

    /// How many places there are in the line at `path`.
    pub(crate) fn in_line(&self, path: &str) -> usize {
        self.of("ZCARD", path, &[]).parse().expect("a number")
    }

    /// Waits until `count` places stand in the line at `path`.
    pub(crate) async fn until_in_line(&self, path: &str, count: usize) {
        let what = format!("{count} in the line at {path}");
        eventually(&what, || self.in_line(path) == count).await;
    }

    /// Every key of the namespace, without its root.
    pub(crate) fn keys(&self) -> Vec<String> {
        let root = self.root();
        let answer = self.ask(&["KEYS", &format!("{root}*")]);
        let mut keys: Vec<_> = answer
            .lines()
            .filter_map(|key| key.strip_prefix(&root))
            .map(str::to_owned)
            .collect();
        keys.sort();
        keys
    }

    /// Waits until nothing is left below this name.
    pub(crate) async fn until_gone(&self, name: &str) {
        let gone = || !self.keys().iter().any(|key| key.starts_with(name));
        eventually(&format!("an end of {name}"), gone).await;
    }

    /// Waits until nothing is left in the namespace but counters.
    pub(crate) async fn until_empty(&self) {
        let start = Instant::now();
        loop {
            let mut keys = self.keys();
            keys.retain(|key| !["last", "revision", "deleted"].contains(&&**key));
            if keys.is_empty() {
                return;
            }
            assert!(start.elapsed() < SOON, "left behind: {keys:?}");
            tokio::time::sleep(ms(10)).await;
        }
    }
}

pub(crate) async fn connect(config: RedisConfig) -> Store<RedisBackend> {
    // A busy machine may take longer than one attempt has.
    let start = Instant::now();
    loop {
        match tenure_redis::connect(config.clone()).await {
            Err(error) if error.is_retryable() && start.elapsed() < SOON => {}
            connected => return connected.expect("connects"),
        }
    }
}

pub(crate) async fn open(store: &Store<RedisBackend>, ttl: Duration) -> Session<RedisSession> {
    let opened = store.open(SessionOptions::new().ttl(ttl)).await;
    opened.expect("opens")
}

/// Polls `condition` until it holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let (start, limit) = (Instant::now(), SOON * tenure_testbed::patience());
    while !condition() {
        assert!(
            start.elapsed() < limit,
            "NOT JUDGED: not within {limit:?}: {what}"
        );
        tokio::time::sleep(ms(10)).await;
    }
}

/// Waits for `future`, but not for ever.
pub(crate) async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    let limit = limit * tenure_testbed::patience();
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("NOT JUDGED: not within {limit:?}: {what}"),
    }
}

//! What the tests share: one server, a namespace for each test, and patience with an end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, SortOrder, SortTarget};
use tenure_core::backend::{Kind, namespace_root, path};
use tenure_core::{Name, Namespace, Session, SessionOptions, Store};
use tenure_etcd::{EtcdBackend, EtcdConfig, EtcdSession};
use tenure_testbed::EtcdServer;

/// For what must happen at once: generous, because the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);
/// For what takes many steps.
pub(crate) const LATER: Duration = Duration::from_secs(45);

/// The server of all tests that do not hurt theirs.
pub(crate) fn shared() -> &'static EtcdServer {
    static SERVER: OnceLock<EtcdServer> = OnceLock::new();
    SERVER.get_or_init(|| EtcdServer::start().expect("etcd starts"))
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// One namespace of one server, and a client of our own to look at it from outside.
pub(crate) struct Bed {
    pub(crate) namespace: Namespace,
    pub(crate) raw: Client,
    pub(crate) address: SocketAddr,
}

impl Bed {
    /// A new namespace on the shared server.
    pub(crate) async fn new(name: &str) -> Self {
        Self::on(shared(), name).await
    }

    pub(crate) async fn on(server: &EtcdServer, name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let raw = Client::connect([server.endpoint()], None).await;
        Self {
            namespace: Namespace::new(format!("{name}-{number}")).expect("a namespace"),
            raw: raw.expect("a client"),
            address: server.address(),
        }
    }

    pub(crate) fn config(&self) -> EtcdConfig {
        self.through(self.address)
    }

    /// The same server and namespace, by way of `address`.
    pub(crate) fn through(&self, address: SocketAddr) -> EtcdConfig {
        EtcdConfig::new([address.to_string()]).namespace(self.namespace.clone())
    }

    /// A client of its own: connection, watch stream and all.
    pub(crate) async fn store(&self) -> Store<EtcdBackend> {
        connect(self.config()).await
    }

    /// A session over a client of its own.
    pub(crate) async fn session(&self, ttl: Duration) -> Session<EtcdSession> {
        open(&self.store().await, ttl).await
    }

    pub(crate) fn root(&self) -> String {
        namespace_root(&self.namespace)
    }

    /// What the line of the lock `name` stands under.
    pub(crate) fn prefix(&self, name: &str) -> String {
        let name = Name::new(name).expect("a name");
        format!("{}/", path(&self.namespace, Kind::Lock, &name))
    }

    /// What stands under `prefix`: keys and create revisions, the oldest first.
    pub(crate) async fn list(&self, prefix: String) -> Vec<(String, i64)> {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Ascend);
        let answer = self.raw.kv_client().get(prefix, Some(options)).await;
        let kvs = answer.expect("etcd answers").take_kvs();
        kvs.iter()
            .map(|kv| {
                let key = String::from_utf8(kv.key().to_vec()).expect("a readable key");
                (key, kv.create_revision())
            })
            .collect()
    }

    /// Every key of the namespace.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let keys = self.list(format!("{}/", self.root())).await;
        keys.into_iter().map(|(key, _)| key).collect()
    }

    /// The line of the lock `name`: keys and create revisions, the head first.
    pub(crate) async fn line(&self, name: &str) -> Vec<(String, i64)> {
        self.list(self.prefix(name)).await
    }

    /// Waits until `count` keys stand in the line of `name`.
    pub(crate) async fn until_in_line(&self, name: &str, count: usize) {
        eventually(
            &format!("{count} in the line of {name}"),
            LATER,
            async || self.line(name).await.len() == count,
        )
        .await;
    }

    /// Waits until nothing is left in the namespace but the version of its layout.
    pub(crate) async fn until_empty(&self, limit: Duration) {
        let layout = format!("{}/layout", self.root());
        let start = Instant::now();
        loop {
            let keys = self.keys().await;
            if keys == [layout.as_str()] {
                return;
            }
            assert!(start.elapsed() < limit, "left behind: {keys:?}");
            tokio::time::sleep(ms(10)).await;
        }
    }

    /// Deletes a key as an operator would.
    pub(crate) async fn delete(&self, key: &str) {
        let deleted = self.raw.kv_client().delete(key, None).await;
        assert_eq!(deleted.expect("etcd answers").deleted(), 1, "{key}");
    }

    /// Revokes a session's lease as an operator would.
    pub(crate) async fn revoke(&self, session: &Session<EtcdSession>) {
        let lease = lease(session);
        let revoked = self.raw.lease_client().revoke(lease).await;
        revoked.expect("the lease exists");
    }
}

pub(crate) fn lease(session: &Session<EtcdSession>) -> i64 {
    i64::from_str_radix(session.id().as_str(), 16).expect("a lease")
}

pub(crate) async fn connect(config: EtcdConfig) -> Store<EtcdBackend> {
    tenure_etcd::connect(config).await.expect("connects")
}

pub(crate) async fn open(store: &Store<EtcdBackend>, ttl: Duration) -> Session<EtcdSession> {
    let opened = store.open(SessionOptions::new().ttl(ttl)).await;
    opened.expect("opens")
}

/// Polls `condition` until it holds.
pub(crate) async fn eventually(what: &str, limit: Duration, condition: impl AsyncFn() -> bool) {
    let (start, limit) = (Instant::now(), limit * tenure_testbed::patience());
    while !condition().await {
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

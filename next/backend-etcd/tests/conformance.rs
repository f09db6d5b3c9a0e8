//! The suite on one etcd member, each case on a server of its own.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeSet;

use tenure_conformance::{Harness, Link, Linked, Need, Operator, async_trait, conformance, out_of_order};
use tenure_core::name::escape;
use tenure_core::url::StoreUrl;
use tenure_core::{Kind, Result, SessionId, Store};
use tenure_etcd::{EtcdBackend, EtcdConfig};
use tenure_testbed::{Direction, EtcdOptions, EtcdServer, Flow, Proxy, Then, When, wait_until};

/// The namespace of a case, and one that begins with its name.
const NAMESPACES: [&str; 2] = ["case", "case-2"];

/// The keys of the namespace of a case.
const ROOT: &str = "tenure/2/case/";

/// The kinds whose keys last as long as a request.
const REQUESTS: [Kind; 4] = [Kind::Lock, Kind::RwLock, Kind::Election, Kind::DoubleBarrier];

struct OneMember {
    server: EtcdServer,
}

impl OneMember {
    fn start() -> Result<Self> {
        let server = EtcdServer::start(EtcdOptions::default()).map_err(out_of_order)?;
        Ok(Self { server })
    }

    async fn store(&self, url: &str, namespace: &str) -> Result<Store> {
        let url = StoreUrl::parse(&format!("{url}/{namespace}"))?;
        EtcdBackend::connect(EtcdConfig::from_url(url)?).await.map(Store::new)
    }

    fn keys_of(&self, prefix: &str) -> Result<Vec<String>> {
        self.server.admin().keys(prefix).map_err(out_of_order)
    }

    /// Lists the keys of requests, and of barriers that are held.
    fn entries(&self) -> Result<Vec<String>> {
        let mut keys = self.keys_of(ROOT)?;
        keys.retain(|key| {
            let path = key.trim_start_matches(ROOT);
            REQUESTS.iter().any(|kind| path.starts_with(&format!("{kind}/")))
        });
        Ok(keys)
    }

    /// Checks that each entry belongs to a session that is alive.
    fn check_keys(&self) -> std::result::Result<(), String> {
        let fail = |error: tenure_core::Error| error.chain().to_string();
        let sessions: BTreeSet<String> = self
            .keys_of(&format!("{ROOT}sessions/"))
            .map_err(fail)?
            .into_iter()
            .collect();
        for key in self.entries().map_err(fail)? {
            let member = key.rsplit('/').next().unwrap_or_default();
            let lease = member.split('-').next().unwrap_or_default();
            if !sessions.contains(&format!("{ROOT}sessions/{lease}")) {
                return Err(format!("{key} belongs to no session"));
            }
        }
        Ok(())
    }
}

/// The network between a client and the server.
struct ProxyLink(Proxy);

impl Link for ProxyLink {
    fn silence(&self) {
        self.0.silence();
    }

    fn mute(&self) {
        self.0.set(Direction::Answers, Flow::Drop);
    }

    fn hold(&self) {
        self.0.set(Direction::Answers, Flow::Hold);
    }

    fn heal(&self) {
        self.0.heal();
    }

    fn cut(&self) {
        self.0.cut();
    }

    fn delay_request(&self) {
        // Every write compares the session's key, and renewals do not name it.
        let write = When::Pattern(format!("{ROOT}sessions/").into());
        self.0.arm(Direction::Requests, write, Then::Strand);
    }

    fn has_delayed_request(&self) -> bool {
        self.0.stranded() > 0
    }

    fn deliver(&self) {
        self.0.deliver();
    }

    fn requests(&self) -> Option<u64> {
        Some(self.0.traffic(Direction::Requests).chunks)
    }
}

#[async_trait]
impl Harness for OneMember {
    async fn connect(&self) -> Result<Store> {
        self.store(&self.server.url(), NAMESPACES[0]).await
    }

    fn offers(&self) -> &[Need] {
        &[
            Need::Silence,
            Need::Mute,
            Need::Hold,
            Need::Cut,
            Need::DelayRequest,
            Need::Requests,
            Need::Elsewhere,
            Need::Revoke,
            Need::RevokeRequest,
            Need::Keys,
            Need::Waiters,
            Need::Sessions,
            Need::Restart,
            Need::Survive,
            Need::Disturb,
            Need::Pause,
            Need::Restore,
        ]
    }

    async fn linked(&self) -> Result<Linked> {
        let proxy = Proxy::start(self.server.address()).map_err(out_of_order)?;
        let url = format!("etcd://{}", proxy.address());
        let store = self.store(&url, NAMESPACES[0]).await?;
        Ok(Linked::new(store, ProxyLink(proxy)))
    }

    async fn elsewhere(&self) -> Result<Store> {
        self.store(&self.server.url(), NAMESPACES[1]).await
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    /// Nothing disagrees after the case: at the latest when the sessions of the case have ended. An error would only be a note, so
    /// this panics.
    async fn clean_up(&self) -> Result<()> {
        if !self.server.is_running() {
            return Ok(());
        }
        let mut last = String::new();
        let agrees = wait_until("keys that agree", || {
            Ok(match self.check_keys() {
                Ok(()) => Some(()),
                Err(found) => {
                    last = found;
                    None
                }
            })
        });
        assert!(agrees.is_ok(), "{last}");
        Ok(())
    }
}

#[async_trait]
impl Operator for OneMember {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        self.server.admin().revoke(session.as_str()).map_err(out_of_order)
    }

    async fn revoke_request(&self, key: &str) -> Result<()> {
        self.server.admin().delete(key).map(drop).map_err(out_of_order)
    }

    async fn keys(&self) -> Result<Vec<String>> {
        self.entries()
    }

    async fn waiters(&self, kind: Kind, name: &str) -> Result<Vec<SessionId>> {
        let queue = format!("{ROOT}{kind}/{}/", escape(name));
        let order = ["--sort-by=CREATE", "--order=ASCEND"];
        let output = self
            .server
            .admin()
            .run(&["get", "--prefix", "--keys-only", order[0], order[1], &queue])
            .map_err(out_of_order)?;
        let keys: Vec<_> = output.lines().filter(|line| !line.is_empty()).collect();
        let is_reader = |key: &&str| key.starts_with(&format!("{queue}read/"));
        // The first request holds, and so do the readers that follow a first reader directly.
        let holders = match keys.first() {
            Some(first) if is_reader(first) => keys.iter().take_while(|key| is_reader(key)).count(),
            first => usize::from(first.is_some()),
        };
        let session = |key: &&str| key.rsplit('/').next()?.split('-').next().map(SessionId::new);
        Ok(keys[holders..].iter().filter_map(session).collect())
    }

    async fn sessions(&self) -> Result<usize> {
        self.server.admin().leases().map_err(out_of_order)
    }

    async fn restart(&self) -> Result<()> {
        self.server
            .kill()
            .and_then(|()| self.server.restart())
            .map_err(out_of_order)
    }

    async fn disturb(&self) -> Result<()> {
        self.server.admin().compact().map_err(out_of_order)
    }

    async fn pause(&self) -> Result<()> {
        self.server.pause().map_err(out_of_order)
    }

    async fn resume(&self) -> Result<()> {
        self.server.resume().map_err(out_of_order)
    }

    async fn snapshot(&self) -> Result<()> {
        self.server.save_snapshot().map_err(out_of_order)
    }

    async fn restore(&self) -> Result<()> {
        self.server.restore_snapshot().map_err(out_of_order)
    }
}

conformance!(etcd, OneMember::start()?, without: [
    queue, capacity, repeat,
    clock_forward, clock_back, failover, lose_minority, return_members,
]);

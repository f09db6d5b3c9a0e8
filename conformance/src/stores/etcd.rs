//! etcd under test: a server of our own, one that cases share, or one that runs somewhere.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Client, CompactionOptions, ConnectOptions, GetOptions};
use tenure_core::backend::{StoreUrl, namespace_root};
use tenure_core::{Error, ErrorKind, Namespace, Result, SessionId, Store};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{EtcdBuilder, EtcdCluster, EtcdServer, Proxy};
use tokio::sync::Mutex;

use super::fresh_namespace;
use crate::case::Case;
use crate::harness::{Harness, Linked, Need, Operator, Subject, out_of_order};

/// A namespace on an etcd, and what can be done to that etcd.
pub struct EtcdHarness {
    server: Server,
    namespace: Namespace,
    interop: bool,
}

enum Server {
    /// Ours alone: it may be restarted.
    Own(Box<Mutex<EtcdServer>>, String),
    /// Other cases use it too: its connections can be disturbed, not the server.
    Shared(Arc<EtcdServer>),
    /// Ours alone, of three members.
    Members(Box<Members>),
    /// Somebody's, at this URL: nothing of it is ours to disturb.
    Foreign(String),
}

/// How an etcd is run. What it survives depends on that alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EtcdSetup {
    /// Three members, of which one is lost: the leader, as a rule.
    ThreeMembers,
}

impl EtcdSetup {
    /// All set-ups, in the order of the report.
    pub const ALL: &'static [Self] = &[Self::ThreeMembers];

    /// The title of its column.
    pub const fn title(self) -> &'static str {
        match self {
            Self::ThreeMembers => "etcd, three members",
        }
    }

    /// In which events it differs from a member alone.
    const fn events(self) -> &'static [Need] {
        match self {
            Self::ThreeMembers => &[Need::Failover, Need::LoseMinority],
        }
    }

    async fn start(self) -> tenure_testbed::Result<Server> {
        match self {
            Self::ThreeMembers => Members::start().await,
        }
    }
}

struct Members {
    cluster: Mutex<EtcdCluster>,
    addresses: Vec<String>,
}

/// How long members hear nothing of their leader before they elect another: what a busy machine does not
/// feign.
const ELECTION: Duration = Duration::from_secs(2);

/// How long a leader may take to be elected and to serve: each try takes some writes to disk, which others may keep
/// busy.
const ELECTED: Duration = Duration::from_secs(60);

impl Members {
    async fn start() -> tenure_testbed::Result<Server> {
        let address = |member: &EtcdServer| member.address().to_string();
        let cluster = EtcdCluster::builder().election_timeout(ELECTION);
        let cluster = cluster.start_async().await?;
        Ok(Server::Members(Box::new(Self {
            addresses: cluster.members.iter().map(address).collect(),
            cluster: Mutex::new(cluster),
        })))
    }

    /// The leader, of whom there is one as long as nobody is lost.
    async fn leader(&self) -> Result<usize> {
        let cluster = self.cluster.lock().await;
        let leader = cluster.wait_for_leader_change_async(usize::MAX, ELECTED);
        leader.await.map_err(out_of_order)
    }

    /// A follower stops. What the leader acknowledges now, only the other one has.
    async fn lag(&self) -> Result<()> {
        let leader = self.leader().await?;
        let cluster = self.cluster.lock().await;
        cluster.members[laggard(leader)]
            .pause()
            .map_err(out_of_order)
    }

    /// The leader dies; the follower that stopped, if one did, goes on and is one of the two who elect.
    async fn fail_over(&self) -> Result<()> {
        let leader = self.leader().await?;
        let mut cluster = self.cluster.lock().await;
        cluster.members[leader].kill().map_err(out_of_order)?;
        for (_, member) in (0..).zip(&cluster.members).filter(|(it, _)| *it != leader) {
            // Whichever it was: those who run do not mind.
            member.resume().map_err(out_of_order)?;
        }
        let change = cluster.wait_for_leader_change_async(leader, ELECTED);
        change.await.map(drop).map_err(out_of_order)
    }

    /// Those who died are started again with what they have on disk, those who stand still go on.
    async fn give_back(&self) -> Result<()> {
        let mut cluster = self.cluster.lock().await;
        for member in &mut cluster.members {
            match member.is_running() {
                true => member.resume().map_err(out_of_order)?,
                false => member.restart_async().await.map_err(out_of_order)?,
            }
        }
        drop(cluster);
        self.leader().await.map(drop)
    }

    /// The leader falls silent and stays so: its connections stay open, and nothing comes.
    async fn cut_off_leader(&self) -> Result<()> {
        let leader = self.leader().await?;
        let cluster = self.cluster.lock().await;
        cluster.members[leader].pause().map_err(out_of_order)
    }
}

/// Who lags behind this leader.
const fn laggard(leader: usize) -> usize {
    (leader + 1) % 3
}

impl EtcdHarness {
    /// Starts what `setup` takes, for this harness alone, as child processes.
    ///
    /// # Errors
    ///
    /// `Unavailable` when etcd is not installed or does not start.
    pub async fn set_up(setup: EtcdSetup) -> Result<Self> {
        Ok(Self {
            server: setup.start().await.map_err(out_of_order)?,
            namespace: fresh_namespace("conformance")?,
            interop: false,
        })
    }

    /// Starts a server for this harness alone, as a child process.
    ///
    /// # Errors
    ///
    /// `Unavailable` when etcd is not installed or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_one(EtcdServer::builder()).await
    }

    async fn start_one(builder: EtcdBuilder) -> Result<Self> {
        let server = builder.start_async().await.map_err(out_of_order)?;
        let address = server.address().to_string();
        Ok(Self {
            server: Server::Own(Box::new(Mutex::new(server)), address),
            namespace: fresh_namespace("conformance")?,
            interop: false,
        })
    }

    /// A clean namespace on a server that others use too.
    ///
    /// # Errors
    ///
    /// None in practice.
    pub fn sharing(server: Arc<EtcdServer>) -> Result<Self> {
        Ok(Self {
            server: Server::Shared(server),
            namespace: fresh_namespace("conformance")?,
            interop: false,
        })
    }

    /// A clean namespace on the server at `url` (`etcd://` or `etcds://`), without any control
    /// over that server's faults. Its name starts with the URL's own namespace.
    ///
    /// # Errors
    ///
    /// `Config` for a URL that makes no sense.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        let parsed = StoreUrl::parse(&url)?;
        let parent = match parsed.path() {
            "" => "conformance".to_owned(),
            path => format!("{path}/conformance"),
        };
        EtcdConfig::from_url(parsed)?;
        Ok(Self {
            server: Server::Foreign(url),
            namespace: fresh_namespace(&parent)?,
            interop: false,
        })
    }

    /// The same in interop mode. Names are keys then, so the server must be this harness's alone.
    #[must_use]
    pub fn interop(self) -> Self {
        Self {
            interop: true,
            ..self
        }
    }

    /// Where the server listens; none for one that has, or may have, many places.
    fn address(&self) -> Option<String> {
        match &self.server {
            Server::Own(_, address) => Some(address.clone()),
            Server::Shared(server) => Some(server.address().to_string()),
            Server::Members(_) | Server::Foreign(_) => None,
        }
    }

    fn config(&self, address: Option<String>, namespace: Namespace) -> Result<EtcdConfig> {
        let config = match (&self.server, address) {
            (Server::Foreign(url), _) => EtcdConfig::from_url(StoreUrl::parse(url)?)?,
            (_, Some(address)) => EtcdConfig::new([address]),
            (Server::Members(members), None) => EtcdConfig::new(&members.addresses),
            (_, None) => return Err(Error::unsupported("a connection without an address")),
        };
        Ok(config.namespace(namespace))
    }

    async fn connect_to(&self, address: Option<String>, namespace: Namespace) -> Result<Store> {
        let config = self.config(address, namespace)?;
        let config = match self.interop {
            true => config.interop(true),
            false => config,
        };
        Ok(tenure_etcd::connect(config).await?.into_dyn())
    }

    /// The server as an operator sees it, past every proxy.
    async fn client(&self) -> Result<Client> {
        let (hosts, options) = match &self.server {
            Server::Foreign(url) => {
                let url = StoreUrl::parse(url)?;
                if url.scheme() != "etcd" {
                    return Err(Error::unsupported("operating a server over TLS"));
                }
                let options = match url.credentials() {
                    (Some(user), Some(password)) => {
                        Some(ConnectOptions::new().with_user(user, password.expose()))
                    }
                    _ => None,
                };
                (url.hosts().to_vec(), options)
            }
            Server::Members(members) => (members.addresses.clone(), None),
            _ => (self.address().into_iter().collect(), None),
        };
        Client::connect(hosts, options).await.map_err(etcd)
    }

    fn members(&self) -> Result<&Members> {
        match &self.server {
            Server::Members(members) => Ok(members),
            _ => Err(Error::unsupported("a failover without other members")),
        }
    }

    /// Where [`elsewhere`](Harness::elsewhere) is.
    fn nested(&self) -> Result<Namespace> {
        Namespace::new(format!("{}/lock", self.namespace))
    }

    fn root(&self) -> String {
        namespace_root(&self.namespace)
    }
}

fn etcd(error: etcd_client::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the operator's client failed").with_source(error)
}

impl std::fmt::Debug for EtcdHarness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdHarness")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Harness for EtcdHarness {
    async fn connect(&self) -> Result<Store> {
        self.connect_to(self.address(), self.namespace.clone())
            .await
    }

    fn offers(&self) -> &[Need] {
        const OWN: &[Need] = &[
            Need::Requests,
            Need::Silence,
            Need::Cut,
            Need::Mute,
            Need::Elsewhere,
            Need::Revoke,
            Need::Delete,
            Need::Keys,
            Need::Hold,
            Need::Restart,
            Need::Survivors,
            Need::Disturb,
            Need::LoseMinority,
            Need::Sessions,
            Need::Pause,
            Need::Restore,
        ];
        const MEMBERS: &[Need] = &[
            Need::Elsewhere,
            Need::Survivors,
            Need::LoseMinority,
            Need::Failover,
            Need::ReturnMembers,
        ];
        match &self.server {
            Server::Own(..) => OWN,
            Server::Members(_) => MEMBERS,
            Server::Shared(_) => &OWN[..9],
            Server::Foreign(url) if url.starts_with("etcd:") => &OWN[4..8],
            Server::Foreign(_) => &OWN[4..5],
        }
    }

    async fn linked(&self) -> Result<Linked> {
        let address = self
            .address()
            .ok_or_else(|| Error::unsupported("a link to a foreign server"))?;
        let proxy = Proxy::start(address).map_err(out_of_order)?;
        let through = proxy.address().to_string();
        let store = self
            .connect_to(Some(through), self.namespace.clone())
            .await?;
        Ok(Linked {
            store,
            link: Box::new(proxy),
        })
    }

    async fn elsewhere(&self) -> Result<Store> {
        self.connect_to(self.address(), self.nested()?).await
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    fn ttl(&self) -> Duration {
        // The shortest that etcd grants.
        match &self.server {
            Server::Members(_) => ELECTION * 3 / 2,
            _ => Duration::from_secs(2),
        }
    }

    async fn clean_up(&self) -> Result<()> {
        // Others end with us.
        if matches!(self.server, Server::Shared(_) | Server::Foreign(_)) {
            for namespace in [self.namespace.clone(), self.nested()?] {
                let config = self.config(self.address(), namespace)?;
                tenure_etcd::remove_namespace(config).await?;
            }
        }
        Ok(())
    }
}

/// Whether this is held, waited for or listed. The rest of a namespace is kept for good, or as long as the lease of
/// whoever left it: the layout's version, data, what tells a late request that it is too late, how far a queue's
/// numbers have come.
fn is_place(path: &str) -> bool {
    let (kind, rest) = path.split_once('/').unwrap_or((path, ""));
    match kind {
        "lock" | "rw_lock" | "election" | "barrier" | "double_barrier" => true,
        "queue" => {
            let part = rest.split('/').nth(1);
            matches!(part, Some("items" | "claims" | "counts" | "delayed"))
        }
        _ => false,
    }
}

#[async_trait]
impl Operator for EtcdHarness {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let lease = i64::from_str_radix(session.as_str(), 16).map_err(|source| {
            Error::new(ErrorKind::Internal, "the session's id is no lease").with_source(source)
        })?;
        self.client()
            .await?
            .lease_revoke(lease)
            .await
            .map_err(etcd)?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let answer = self.client().await?.delete(key, None).await.map_err(etcd)?;
        match answer.deleted() {
            0 => Err(Error::new(ErrorKind::Conflict, "there is no such key")),
            _ => Ok(()),
        }
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let all = GetOptions::new().with_prefix().with_keys_only();
        let root = format!("{}/", self.root());
        let mut client = self.client().await?;
        let answer = client.get(root.as_str(), Some(all)).await.map_err(etcd)?;
        let keys = answer.kvs().iter();
        Ok(keys
            .map(|kv| String::from_utf8_lossy(kv.key()).into_owned())
            .filter(|key| is_place(&key[root.len()..]))
            .collect())
    }

    async fn sessions(&self) -> Result<usize> {
        let leases = self.client().await?.leases().await.map_err(etcd)?;
        Ok(leases.leases().len())
    }

    async fn restart(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server
                .lock()
                .await
                .restart_async()
                .await
                .map_err(out_of_order),
            _ => Err(Error::unsupported("restarting a server that others use")),
        }
    }

    async fn snapshot(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.save_snapshot().map_err(out_of_order),
            _ => Err(Error::unsupported("backing up a server that others use")),
        }
    }

    async fn restore(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server
                .lock()
                .await
                .restore_async()
                .await
                .map_err(out_of_order),
            _ => Err(Error::unsupported("restoring a server that others use")),
        }
    }

    async fn disturb(&self) -> Result<()> {
        if !matches!(self.server, Server::Own(..)) {
            return Err(Error::unsupported("compacting a server that others use"));
        }
        // Watches that resume from before the compaction are cancelled.
        let mut client = self.client().await?;
        let key = format!("{}/disturbance", self.root());
        let mut revision = 0;
        for _ in 0..3 {
            let answer = client.put(key.as_str(), "", None).await.map_err(etcd)?;
            revision = answer.header().map_or(revision, |header| header.revision());
        }
        client.delete(key.as_str(), None).await.map_err(etcd)?;
        let physical = CompactionOptions::new().with_physical();
        client
            .compact(revision, Some(physical))
            .await
            .map_err(etcd)?;
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.pause().map_err(out_of_order),
            _ => Err(Error::unsupported("pausing a server that others use")),
        }
    }

    async fn resume(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.resume().map_err(out_of_order),
            _ => Err(Error::unsupported("pausing a server that others use")),
        }
    }

    async fn lose_minority(&self) -> Result<()> {
        match &self.server {
            // Of one member, the smallest part that can be lost is all of it.
            Server::Own(server, _) => server.lock().await.kill().map_err(out_of_order),
            Server::Members(members) => members.cut_off_leader().await,
            _ => Err(Error::unsupported("stopping a server that others use")),
        }
    }

    async fn return_members(&self) -> Result<()> {
        self.members()?.give_back().await
    }

    async fn lag(&self) -> Result<()> {
        self.members()?.lag().await
    }

    async fn fail_over(&self) -> Result<()> {
        self.members()?.fail_over().await
    }
}

/// etcd as a column of the report.
pub struct EtcdSubject {
    name: String,
    /// What servers are started with.
    builder: EtcdBuilder,
    server: Option<Arc<EtcdServer>>,
    url: Option<String>,
    setup: Option<EtcdSetup>,
}

impl EtcdSubject {
    /// An etcd that is started here for the purpose: one that most cases share, and one more for
    /// every case that its neighbours would feel.
    ///
    /// # Errors
    ///
    /// `Unavailable` when etcd is not installed or does not start.
    pub async fn start() -> Result<Self> {
        Self::started("etcd", EtcdServer::builder()).await
    }

    /// The same with the etcd that `TENURE_ETCD_NEWER` names.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the variable names none, or it does not start.
    pub async fn newer() -> Result<Self> {
        Self::started("etcd, newer", EtcdServer::builder().newer()).await
    }

    async fn started(name: &str, builder: EtcdBuilder) -> Result<Self> {
        let server = builder.clone().start_async().await.map_err(out_of_order)?;
        Ok(Self {
            name: name.to_owned(),
            builder,
            server: Some(Arc::new(server)),
            url: None,
            setup: None,
        })
    }

    /// An etcd that is run in this way, started anew for each case. It takes the cases of the events in
    /// which the set-up differs from [`start`](Self::start): there it is shown what it promises more,
    /// and why it promises less.
    pub fn set_up(setup: EtcdSetup) -> Self {
        Self {
            name: setup.title().to_owned(),
            builder: EtcdServer::builder(),
            server: None,
            url: None,
            setup: Some(setup),
        }
    }

    /// The etcd at `url`, whose faults are not ours to provoke.
    ///
    /// # Errors
    ///
    /// `Config` for a URL that makes no sense.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        EtcdHarness::at(url.clone())?;
        let parsed = StoreUrl::parse(&url)?;
        Ok(Self {
            // Without the credentials.
            name: format!("etcd at {}", parsed.hosts().join(",")),
            builder: EtcdServer::builder(),
            server: None,
            url: Some(url),
            setup: None,
        })
    }
}

impl std::fmt::Debug for EtcdSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdSubject")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Subject for EtcdSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn takes(&self, case: &Case) -> bool {
        self.setup.is_none_or(|setup| {
            let differs = |need: &Need| setup.events().contains(need);
            case.needs.iter().any(differs)
        })
    }

    fn parallel(&self) -> usize {
        // Three members each, which take a busy machine for a dead leader.
        match self.setup {
            Some(EtcdSetup::ThreeMembers) => 3,
            None => 16,
        }
    }

    async fn stage(&self, case: &Case) -> Result<Box<dyn Harness>> {
        if let Some(setup) = self.setup {
            return Ok(Box::new(EtcdHarness::set_up(setup).await?));
        }
        let own_store = case.needs.iter().any(|need| need.wants_own_store());
        Ok(Box::new(match (&self.url, &self.server) {
            (Some(url), _) => EtcdHarness::at(url.clone())?,
            (None, Some(server)) if !own_store => EtcdHarness::sharing(Arc::clone(server))?,
            _ => EtcdHarness::start_one(self.builder.clone()).await?,
        }))
    }
}

//! A Redis server under the conformance suite: one of the case's own, or one that runs already and has other clients.

mod keys;
mod operator;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tenure_conformance::{Case, Harness, Link, Linked, Need, Operator, Subject, async_trait, out_of_order};
use tenure_core::url::StoreUrl;
use tenure_core::{Error, ErrorKind, Namespace, Result, Store};
use tenure_testbed::{Direction, Flow, Proxy, RedisOptions, RedisServer, unique_name};

use self::keys::Reader;
use crate::admin::remove_namespace;
use crate::backend::RedisBackend;
use crate::config::{Address, RedisConfig, Topology};

pub use self::keys::check_keys;

/// Controls that concern the namespace of the case alone.
const OF_NAMESPACE: &[Need] = &[
    Need::Elsewhere,
    Need::Revoke,
    Need::RevokeRequest,
    Need::Keys,
    Need::Waiters,
    Need::Survive,
];

/// Controls of a proxy between one client and the server.
const OF_PROXY: &[Need] = &[Need::Silence, Need::Mute, Need::Hold, Need::Cut, Need::Requests];

/// Controls of a proxy that reads what passes.
const OF_REQUESTS: &[Need] = &[Need::DelayRequest, Need::Repeat];

/// Requests that the library sends on its own.
const OWN_REQUESTS: &[&str] = &["connect", "renew", "entries", "sweep"];

/// Controls that every client of the server notices.
const OF_SERVER: &[Need] = &[Need::Sessions, Need::Restart, Need::Disturb, Need::Pause, Need::Restore];

/// The limit for keys to agree after a case: sessions may have to end and to be swept.
const AGREEMENT: Duration = Duration::from_secs(30);

/// A namespace for one case, and one whose name begins with its name, on a Redis server.
///
/// [`clean_up`](Harness::clean_up) checks the keys that the case has left with [`check_keys`].
#[derive(Debug)]
pub struct RedisHarness {
    /// Leads to the namespace of the case.
    config: RedisConfig,
    elsewhere: Namespace,
    offers: Vec<Need>,
    own: Option<Arc<RedisServer>>,
}

impl RedisHarness {
    /// Starts a server for one case, with every control. It ends with the harness.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the server does not start.
    pub async fn start(options: RedisOptions) -> Result<Self> {
        let server = blocking(move || RedisServer::start(options)).await?;
        let config = RedisConfig::from_url(StoreUrl::parse(&server.url())?)?;
        let mut harness = Self::new(config, "case")?;
        harness.offers.extend(OF_SERVER);
        if server.has_movable_clock() {
            harness.offers.extend([Need::ClockForward, Need::ClockBack]);
        }
        harness.own = Some(Arc::new(server));
        Ok(harness)
    }

    /// Describes two unused namespaces on a server that runs already. Its other clients notice nothing; the namespaces are
    /// removed by [`clean_up`](Harness::clean_up). The namespace of `config` is left alone.
    ///
    /// # Errors
    ///
    /// `InvalidName`, never in practice: the names are made here.
    pub fn on(config: RedisConfig) -> Result<Self> {
        Self::new(config, &unique_name("conform"))
    }

    fn new(config: RedisConfig, namespace: &str) -> Result<Self> {
        let mut offers = OF_NAMESPACE.to_vec();
        // Sentinels and nodes name addresses that no proxy is at.
        if matches!(config.topology, Topology::Fixed) {
            offers.extend(OF_PROXY);
            if config.tls.is_none() {
                offers.extend(OF_REQUESTS);
            }
        }
        Ok(Self {
            config: config.namespace(Namespace::new(namespace)?),
            elsewhere: Namespace::new(format!("{namespace}-2"))?,
            offers,
            own: None,
        })
    }

    /// Connects to the namespace of the case. Each look of an operator has a connection of its own: the server may have been
    /// restarted since the last one.
    async fn backend(&self) -> Result<RedisBackend> {
        RedisBackend::connect(self.config.clone()).await
    }

    async fn reader(&self) -> Result<Reader> {
        Reader::new(&self.backend().await?).await
    }

    /// Returns the server of the case's own; `Unsupported` if it has none.
    fn own(&self, task: &'static str) -> Result<Arc<RedisServer>> {
        self.own.clone().ok_or_else(|| Error::unsupported(task))
    }

    /// Does something to the server of the case's own.
    async fn act<F>(&self, task: &'static str, act: F) -> Result<()>
    where
        F: FnOnce(&RedisServer) -> tenure_testbed::Result<()> + Send + 'static,
    {
        let server = self.own(task)?;
        blocking(move || act(&server)).await
    }

    /// Waits until the keys of the case agree.
    async fn agreement(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let found = match self.backend().await {
                Ok(backend) => check_keys(&backend).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(wrong) if wrong.is_empty() => return Ok(()),
                Ok(wrong) if start.elapsed() > AGREEMENT => {
                    let wrong = wrong.join("; ");
                    return Err(Error::new(
                        ErrorKind::Internal,
                        format!("the keys contradict each other: {wrong}"),
                    ));
                }
                Err(error) if start.elapsed() > AGREEMENT => return Err(error),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

#[async_trait]
impl Harness for RedisHarness {
    async fn connect(&self) -> Result<Store> {
        self.backend().await.map(Store::new)
    }

    fn offers(&self) -> &[Need] {
        &self.offers
    }

    async fn linked(&self) -> Result<Linked> {
        let Address { host, port } = &self.config.hosts[0];
        let server = resolve(host, *port).await?;
        let proxy = Proxy::start(server).map_err(out_of_order)?;
        let mut config = self.config.clone();
        if let Some(tls) = &mut config.tls {
            tls.server_name.get_or_insert_with(|| host.clone());
        }
        config.hosts = vec![Address {
            host: proxy.address().ip().to_string(),
            port: proxy.address().port(),
        }];
        let store = RedisBackend::connect(config).await.map(Store::new)?;
        Ok(Linked::new(store, ProxyLink(proxy)))
    }

    async fn elsewhere(&self) -> Result<Store> {
        let config = self.config.clone().namespace(self.elsewhere.clone());
        RedisBackend::connect(config).await.map(Store::new)
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    async fn clean_up(&self) -> Result<()> {
        if let Some(server) = &self.own {
            return match server.is_running() {
                true => self.agreement().await,
                false => Ok(()),
            };
        }
        // Removed in any case; but a contradiction counts more than what could not be removed.
        let agreement = self.agreement().await;
        let removed = remove_namespace(self.config.clone()).await;
        let elsewhere = self.config.clone().namespace(self.elsewhere.clone());
        agreement.and(removed).and(remove_namespace(elsewhere).await)
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
        self.0.keep_script(OWN_REQUESTS);
    }

    fn has_delayed_request(&self) -> bool {
        self.0.has_kept()
    }

    fn deliver(&self) {
        let delivered = self.0.deliver_kept();
        assert!(delivered.is_ok(), "the late request did not arrive: {delivered:?}");
    }

    fn repeat(&self) {
        self.0.repeat_scripts();
    }

    fn requests(&self) -> Option<u64> {
        Some(self.0.traffic(Direction::Requests).chunks)
    }
}

/// The column of a Redis deployment.
#[derive(Clone, Debug)]
pub struct RedisSubject {
    name: String,
    config: RedisConfig,
}

impl RedisSubject {
    /// Describes the column of a deployment that runs already, and may have other clients: see [`RedisHarness::on`].
    #[must_use]
    pub fn on(config: RedisConfig) -> Self {
        Self {
            name: name(&config),
            config,
        }
    }
}

/// Returns the URL of a deployment, without the user, the password and the options.
fn name(config: &RedisConfig) -> String {
    let secure = if config.tls.is_some() { "s" } else { "" };
    let kind = match config.topology {
        Topology::Fixed => "",
        Topology::Sentinel { .. } => "+sentinel",
        Topology::Cluster => "+cluster",
    };
    let hosts: Vec<_> = config.hosts.iter().map(Address::to_string).collect();
    format!("redis{secure}{kind}://{}", hosts.join(","))
}

#[async_trait]
impl Subject for RedisSubject {
    fn name(&self) -> &str {
        &self.name
    }

    async fn harness(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(RedisHarness::on(self.config.clone())?))
    }

    /// Cases wait most of the time.
    fn parallel(&self) -> usize {
        32
    }
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(out_of_order)?;
    let missing = || std::io::Error::other("the name of the server has no address");
    found.next().ok_or_else(|| out_of_order(missing()))
}

/// Runs a call of the testbed on a thread that may block: others of the case go on meanwhile.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> tenure_testbed::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(call).await.map_err(out_of_order)?;
    done.map_err(out_of_order)
}

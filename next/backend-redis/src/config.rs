//! The URL and the options.

use std::fmt;
use std::time::Duration;

use tenure_core::backend::DEFAULT_TTL;
use tenure_core::executor::Executor;
use tenure_core::url::StoreUrl;
use tenure_core::{CredentialSource, Credentials, Error, ErrorKind, Namespace, Result, Secret, TlsFiles};

/// The address of a Redis deployment, and the options for its use.
///
/// | URL | for |
/// |---|---|
/// | `redis://[user:password@]host:port[/db]` | one server, or a name that always leads to the primary |
/// | `redis+sentinel://[user:password@]host:port[,host:port...]/service-name` | servers under sentinels; the hosts are the sentinels, user and password those of the servers |
/// | `redis+cluster://[user:password@]host:port[,host:port...]` | a cluster; the hosts are some of its nodes |
///
/// With TLS on every connection: `rediss://`, `rediss+sentinel://`, `rediss+cluster://`. The query keys:
///
/// | key | meaning | default |
/// |---|---|---|
/// | `namespace` | the part of the store to use | `default` |
/// | `ttl` | the TTL of a session that asks for none | `10s` |
/// | `timeout` | how long a server may be silent; a wait for a connection fails after it | `2s` |
/// | `connect_timeout` | for one connection attempt to one server | `1s` |
/// | `wait_replicas` | the number of replicas that must have a step before it counts | `0` |
/// | `wait_aof` | `true`: a step counts once it is flushed to the append-only file (Redis 7.2) | `false` |
/// | `allow_eviction` | `true` connects although the server may evict keys when its memory is full | `false` |
/// | `interop` | `true` uses the names of locks verbatim as keys, to share them with redis-py and others | `false` |
/// | `client_label` | the client's label for operators, also in `CLIENT LIST` | none; `tenure` there |
/// | `ca` | PEM file with the trusted certificate authorities | the system's |
/// | `cert`, `key` | PEM files with the client's certificate and key, both or neither | none |
/// | `server_name` | the name that every server's certificate must carry | the host |
/// | `db` | sentinels only: the number of the database | `0` |
/// | `sentinel_user`, `sentinel_password` | sentinels only: for the sentinels themselves | none |
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) topology: Topology,
    /// The servers, sentinels or nodes that the URL names.
    pub(crate) hosts: Vec<Address>,
    pub(crate) database: i64,
    pub(crate) credentials: Option<CredentialSource>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) wait_replicas: u32,
    pub(crate) wait_aof: bool,
    pub(crate) allow_eviction: bool,
    pub(crate) interop: bool,
    pub(crate) label: Option<String>,
    pub(crate) executor: Option<Executor>,
}

/// The way to find the primary.
#[derive(Clone, Debug)]
pub(crate) enum Topology {
    Fixed,
    Sentinel {
        service: String,
        credentials: Option<Credentials>,
    },
    Cluster,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    /// A name or an address, without the brackets that IPv6 has in URLs.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `host:port`, `[host]:port` and, as Redis writes it, an IPv6 `host:port` without brackets.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Some(Self {
            host: inner.unwrap_or(host).to_owned(),
            port: port.parse().ok()?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl RedisConfig {
    /// Creates a configuration for one server, given as `host:port`, without TLS. An invalid address is an error of the
    /// connection attempt.
    pub fn new(host: impl Into<String>) -> Self {
        let host = host.into();
        let address = Address::parse(&host).unwrap_or(Address { host, port: 0 });
        Self {
            topology: Topology::Fixed,
            hosts: vec![address],
            database: 0,
            credentials: None,
            tls: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            wait_replicas: 0,
            wait_aof: false,
            allow_eviction: false,
            interop: false,
            label: None,
            executor: None,
        }
    }

    /// Reads a URL and the options of its connection.
    ///
    /// # Errors
    ///
    /// `Config` for a host without a port, an unknown query key, and invalid values.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let mut config = Self::new("");
        config.hosts.clear();
        for host in url.hosts() {
            let address = address(host)?;
            // A sentinel that is written twice has one vote.
            if !config.hosts.contains(&address) {
                config.hosts.push(address);
            }
        }
        config.credentials = url.take_credentials();
        if let Some(fixed) = config.credentials.as_ref().and_then(CredentialSource::as_fixed) {
            check_password(fixed, "the URL has a user but no password: write `user:password@`")?;
        }
        let (base, kind) = url.scheme().split_once('+').unwrap_or((url.scheme(), ""));
        let (is_secure, kind) = (base == "rediss", kind.to_owned());
        config.take_topology(&mut url, &kind)?;
        config.namespace = url.take_namespace()?.unwrap_or(config.namespace);
        config.ttl = url.take_ttl()?.unwrap_or(config.ttl);
        config.timeout = url.take_duration("timeout")?.unwrap_or(config.timeout);
        config.connect_timeout = url.take_duration("connect_timeout")?.unwrap_or(config.connect_timeout);
        if let Some(replicas) = url.take("wait_replicas") {
            config.wait_replicas = replicas
                .parse()
                .map_err(|_| refuse("`wait_replicas` in the URL must be a number of replicas"))?;
        }
        config.wait_aof = url.take_flag("wait_aof")?;
        config.allow_eviction = url.take_flag("allow_eviction")?;
        config.interop = url.take_flag("interop")?;
        config.label = url.take_label()?;
        config.tls = url.take_tls(is_secure, "rediss")?;
        config.executor = url.take_executor();
        url.finish()?;
        Ok(config)
    }

    /// Returns whether a step counts only once replicas or the disk have it.
    pub(crate) const fn confirms(&self) -> bool {
        self.wait_replicas > 0 || self.wait_aof
    }

    /// Reads the parts of the URL that depend on the way to find the primary.
    fn take_topology(&mut self, url: &mut StoreUrl, kind: &str) -> Result<()> {
        let path = url.path().to_owned();
        match kind {
            "" if self.hosts.len() > 1 => {
                return Err(refuse(
                    "a `redis://` URL needs exactly one `host:port`: for several servers, write `redis+sentinel://` or \
                     `redis+cluster://`",
                ));
            }
            "" if !path.is_empty() => {
                self.database = database(&path).ok_or_else(|| {
                    refuse(
                        "the path of a `redis://` URL must be the number of a database: write a namespace into the query, \
                         `?namespace=orders`",
                    )
                })?;
            }
            "" => {}
            "sentinel" if path.is_empty() => {
                return Err(refuse(
                    "a `redis+sentinel://` URL needs the name of the service that the sentinels watch as its path: `/mymaster`",
                ));
            }
            "sentinel" => {
                if let Some(number) = url.take("db") {
                    self.database =
                        database(&number).ok_or_else(|| refuse("`db` in the URL must be the number of a database"))?;
                }
                let user = url.take("sentinel_user");
                let credentials = match (user, url.take_secret("sentinel_password")) {
                    (user, Some(password)) => Some(Credentials::new(user.unwrap_or_default(), password.expose())),
                    (Some(user), None) => Some(Credentials::without_password(user)),
                    (None, None) => None,
                };
                credentials.iter().try_for_each(|login| {
                    check_password(
                        login,
                        "the URL has `sentinel_user` but no password: add `sentinel_password`",
                    )
                })?;
                self.topology = Topology::Sentinel {
                    service: path,
                    credentials,
                };
            }
            "cluster" if !matches!(&*path, "" | "0") => {
                return Err(refuse(
                    "a cluster has only the database 0: write a namespace into the query, `?namespace=orders`",
                ));
            }
            "cluster" => self.topology = Topology::Cluster,
            _ => {
                return Err(refuse(
                    "the schemes for Redis are `redis`, `redis+sentinel` and `redis+cluster`, and with TLS `rediss`, \
                     `rediss+sentinel` and `rediss+cluster`",
                ));
            }
        }
        if self.hosts.is_empty() {
            return Err(refuse("a Redis URL needs at least one `host:port`"));
        }
        Ok(())
    }

    /// Sets the namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Sets how long a server may be silent before its connection is replaced.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the time limit for one connection attempt to one server.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the number of replicas that must acknowledge a step before it counts.
    #[must_use]
    pub fn wait_replicas(mut self, replicas: u32) -> Self {
        self.wait_replicas = replicas;
        self
    }

    /// Sets whether a step counts only once the primary has flushed it to its append-only file.
    #[must_use]
    pub fn wait_aof(mut self, wait: bool) -> Self {
        self.wait_aof = wait;
        self
    }

    /// Allows a server that may evict keys when its memory is full, which frees holdings.
    #[must_use]
    pub fn allow_eviction(mut self, allow: bool) -> Self {
        self.allow_eviction = allow;
        self
    }

    /// Uses the names of locks verbatim as keys. The locks are then shared with all clients that set such a key with
    /// `SET NX PX`: redis-py's `Lock`, redsync, the redlock family. Everything else stays below the namespace's root. This
    /// includes the locks of stores without `interop`, which are independent of the shared ones.
    #[must_use]
    pub fn interop(mut self, interop: bool) -> Self {
        self.interop = interop;
        self
    }
}

fn address(host: &str) -> Result<Address> {
    Address::parse(host)
        .filter(|address| !address.host.is_empty())
        .ok_or_else(|| {
            refuse(format!(
                "`{host}` in the URL is not `host:port`: the usual port is 6379, that of sentinels 26379"
            ))
        })
}

fn check_password(credentials: &Credentials, missing: &str) -> Result<()> {
    match credentials.password().map(Secret::expose) {
        None if !credentials.user().is_empty() => Err(refuse(missing)),
        _ => Ok(()),
    }
}

fn database(text: &str) -> Option<i64> {
    text.parse().ok().filter(|number| *number >= 0)
}

/// Returns a `Config` error.
pub(crate) fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Written by hand, so that a field added to the configuration is not printed by accident.
        f.debug_struct("RedisConfig")
            .field("topology", &self.topology)
            .field("hosts", &self.hosts)
            .field("database", &self.database)
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

//! URL and options.

use std::fmt;
use std::time::Duration;

use tenure_core::backend::{Secret, StoreUrl, TlsFiles};
use tenure_core::{DEFAULT_TTL, Error, ErrorKind, Namespace, Result};

/// How to reach a Redis, and how to use it.
///
/// | URL | for |
/// |---|---|
/// | `redis://[user:password@]host:port[/db]` | one server, or a name that always leads to the primary |
/// | `redis+sentinel://[user:password@]host:port[,host:port...]/service-name` | servers under sentinels; the hosts are the sentinels, user and password those of the servers |
/// | `redis+cluster://[user:password@]host:port[,host:port...]` | a cluster; the hosts are some of its nodes |
///
/// With TLS on every connection: `rediss://`, `rediss+sentinel://`, `rediss+cluster://`. The query
/// keys:
///
/// | key | meaning | default |
/// |---|---|---|
/// | `namespace` | the part of the store that is used | `default` |
/// | `ttl` | TTL of a session that asks for none | `10s` |
/// | `timeout` | for one request | `2s` |
/// | `connect_timeout` | for one connection attempt | `1s` |
/// | `wait_replicas` | how many replicas must have a step before it counts | `0` |
/// | `wait_aof` | `true`: a step counts once it is flushed to the append-only file (Redis 7.2) | `false` |
/// | `allow_eviction` | `true` connects although the server may evict keys when its memory is full | `false` |
/// | `interop` | `true` takes the names of locks verbatim as keys, to share them with redis-py and others | `false` |
/// | `ca` | PEM file with the authorities to trust | the system's |
/// | `cert`, `key` | PEM files with the client's certificate and key, both or neither | none |
/// | `server_name` | the name that every server's certificate must carry | the host |
/// | `db` | sentinels only: the number of the database | `0` |
/// | `sentinel_user`, `sentinel_password` | sentinels only: for the sentinels themselves | none |
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) topology: Topology,
    /// The servers, sentinels or nodes to begin with.
    pub(crate) hosts: Vec<Address>,
    pub(crate) database: i64,
    pub(crate) login: Login,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) wait_replicas: u32,
    pub(crate) wait_aof: bool,
    pub(crate) allow_eviction: bool,
    pub(crate) interop: bool,
}

/// How the primary is found.
#[derive(Clone, Debug)]
pub(crate) enum Topology {
    Fixed,
    Sentinel { service: String, login: Login },
    Cluster,
}

/// Who one is, as far as one has to say so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
}

impl Login {
    fn new(user: Option<String>, password: Option<Secret>, what: &str) -> Result<Self> {
        let user = user.filter(|user| !user.is_empty());
        if user.is_some() && password.is_none() {
            return Err(refuse(format!("{what} has a user but no password")));
        }
        Ok(Self { user, password })
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// A name or an address, without the brackets that IPv6 has in URLs.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `host:port`, `[host]:port` and, as Redis writes it, an IPv6 `host:port` without
    /// brackets.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        Some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl RedisConfig {
    /// One server, as `host:port`, without TLS. What is no such thing is an error of the connection
    /// attempt.
    pub fn new(host: impl Into<String>) -> Self {
        let host = host.into();
        let address = Address::parse(&host).unwrap_or(Address { host, port: 0 });
        Self {
            topology: Topology::Fixed,
            hosts: vec![address],
            database: 0,
            login: Login::default(),
            tls: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            wait_replicas: 0,
            wait_aof: false,
            allow_eviction: false,
            interop: false,
        }
    }

    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// `Config` for a host without a port, an unknown query key, and values that make no sense.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let mut config = Self::new("");
        config.hosts = url
            .hosts()
            .iter()
            .map(|host| address(host))
            .collect::<Result<_>>()?;
        let (user, password) = url.credentials();
        config.login = Login::new(user.map(str::to_owned), password.cloned(), "the URL")?;
        let (base, kind) = match url.scheme().split_once('+') {
            Some((base, kind)) => (base.to_owned(), kind.to_owned()),
            None => (url.scheme().to_owned(), String::new()),
        };
        config.take_topology(&mut url, &kind)?;
        if let Some(namespace) = url.take("namespace") {
            config.namespace = Namespace::new(namespace)?;
        }
        if let Some(ttl) = url.take_duration("ttl")? {
            config.ttl = some(ttl, "ttl")?;
        }
        if let Some(timeout) = url.take_duration("timeout")? {
            config.timeout = some(timeout, "timeout")?;
        }
        if let Some(timeout) = url.take_duration("connect_timeout")? {
            config.connect_timeout = some(timeout, "connect_timeout")?;
        }
        if let Some(replicas) = url.take("wait_replicas") {
            config.wait_replicas = replicas
                .parse()
                .map_err(|_| refuse("`wait_replicas` is a number of replicas"))?;
        }
        config.wait_aof = url.take_flag("wait_aof")?;
        config.allow_eviction = url.take_flag("allow_eviction")?;
        config.interop = url.take_flag("interop")?;
        config.tls = url.take_tls(base == "rediss", "rediss")?;
        url.finish()?;
        Ok(config)
    }

    /// What differs by how the primary is found.
    fn take_topology(&mut self, url: &mut StoreUrl, kind: &str) -> Result<()> {
        match kind {
            "" => {
                if self.hosts.len() != 1 {
                    return Err(refuse(
                        "a `redis://` URL needs exactly one `host:port`; for several servers there are `redis+sentinel://` and `redis+cluster://`",
                    ));
                }
                if !url.path().is_empty() {
                    self.database = database(url.path()).ok_or_else(|| {
                        refuse("the path of a `redis://` URL is the number of a database; a namespace goes into the query: `?namespace=orders`")
                    })?;
                }
            }
            "sentinel" => {
                if url.path().is_empty() {
                    return Err(refuse(
                        "a `redis+sentinel://` URL needs the name under which the sentinels know the servers as its path: `/mymaster`",
                    ));
                }
                if let Some(number) = url.take("db") {
                    self.database = database(&number)
                        .ok_or_else(|| refuse("`db` is the number of a database"))?;
                }
                let user = url.take("sentinel_user");
                let password = url.take_secret("sentinel_password");
                self.topology = Topology::Sentinel {
                    service: url.path().to_owned(),
                    login: Login::new(user, password, "`sentinel_user`")?,
                };
            }
            "cluster" => {
                if !matches!(url.path(), "" | "0") {
                    return Err(refuse(
                        "a cluster has the database 0 only; a namespace goes into the query: `?namespace=orders`",
                    ));
                }
                self.topology = Topology::Cluster;
            }
            _ => {
                return Err(refuse(
                    "the schemes for Redis are `redis`, `redis+sentinel` and `redis+cluster`, and with TLS `rediss`, `rediss+sentinel` and `rediss+cluster`",
                ));
            }
        }
        match self.hosts.is_empty() {
            true => Err(refuse("a Redis URL needs at least one `host:port`")),
            false => Ok(()),
        }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// User and password, as an access control list knows them. Servers with nothing but
    /// `requirepass` know the user `default`.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Login {
            user: Some(user.into()),
            password: Some(Secret::new(password)),
        };
        self
    }

    /// The time allowed for one request.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The time allowed for one connection attempt, and for one question to a sentinel or node.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// A step counts only once so many replicas have acknowledged it.
    #[must_use]
    pub fn wait_replicas(mut self, replicas: u32) -> Self {
        self.wait_replicas = replicas;
        self
    }

    /// A step counts only once the primary has flushed it to its append-only file.
    #[must_use]
    pub fn wait_aof(mut self, wait: bool) -> Self {
        self.wait_aof = wait;
        self
    }

    /// Connect although the server may evict keys when its memory is full, which frees what is held.
    #[must_use]
    pub fn allow_eviction(mut self, allow: bool) -> Self {
        self.allow_eviction = allow;
        self
    }

    /// Take the names of locks verbatim as keys, and share these locks with all who set such a key with
    /// `SET NX PX`: redis-py's `Lock`, redsync, the redlock family. Everything else stays below the
    /// namespace's root; so do locks of stores without `interop`, which know nothing of these.
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
                "`{host}` is not `host:port`; the usual port is 6379, that of sentinels 26379"
            ))
        })
}

/// A time in which something can be answered.
fn some(timeout: Duration, what: &str) -> Result<Duration> {
    match timeout.is_zero() {
        true => Err(refuse(format!("`{what}` must be above zero"))),
        false => Ok(timeout),
    }
}

fn database(text: &str) -> Option<i64> {
    text.parse().ok().filter(|number| *number >= 0)
}

pub(crate) fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, so that a field added to the config is not printed by accident.
        f.debug_struct("RedisConfig")
            .field("topology", &self.topology)
            .field("hosts", &self.hosts)
            .field("database", &self.database)
            .field("login", &self.login)
            .field("tls", &self.tls)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<RedisConfig> {
        RedisConfig::from_url(StoreUrl::parse(url)?)
    }

    #[test]
    fn a_full_url() {
        let config = parse(
            "rediss://u:canary@a:1/3?namespace=ns&ttl=3s&timeout=1s&wait_replicas=1&ca=/ca&cert=/c&key=/k",
        )
        .unwrap();
        assert!(matches!(config.topology, Topology::Fixed));
        assert_eq!(config.hosts[0].to_string(), "a:1");
        assert_eq!(config.database, 3);
        assert_eq!(config.namespace.as_str(), "ns");
        assert_eq!(config.ttl, Duration::from_secs(3));
        assert_eq!(config.wait_replicas, 1);
        assert!(config.tls.is_some());
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn sentinels() {
        let url = "redis+sentinel://u:canary@a:1,[::1]:2/mymaster?db=2&sentinel_user=s&sentinel_password=canary2";
        assert!(!format!("{:?}", StoreUrl::parse(url)).contains("canary"));
        let config = parse(url).unwrap();
        let Topology::Sentinel { service, login } = &config.topology else {
            panic!("{config:?}");
        };
        assert_eq!(service, "mymaster");
        assert_eq!(login.user.as_deref(), Some("s"));
        assert_eq!(config.database, 2);
        assert_eq!(config.hosts[1].host, "::1");
        assert_eq!(config.hosts[1].to_string(), "[::1]:2");
        assert!(config.tls.is_none());
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn clusters() {
        let config = parse("rediss+cluster://:canary@a:1,b:2?namespace=ns").unwrap();
        assert!(matches!(config.topology, Topology::Cluster));
        assert_eq!(config.hosts.len(), 2);
        assert_eq!(config.login.user, None);
        assert!(config.tls.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "redis://",
            "redis://host",
            "redis://:1",
            "redis://host:port",
            "redis://u@h:1",
            "redis://h:1,i:2",
            "redis://h:1/orders",
            "redis://h:1/-1",
            "redis://h:1/0?nonsense=1",
            "redis://h:1/0?ttl=soon",
            "redis://h:1?ca=/x",
            "redis://h:1?timeout=0s",
            "redis://h:1?connect_timeout=0ms",
            "redis://h:1?ttl=0s",
            "redis://:50%zz@h:1",
            "redis://h:1?wait_replicas=all",
            "redis://h:1?db=1",
            "rediss://h:1?cert=/x",
            "redis+sentinel://h:1",
            "redis+sentinel:///service",
            "redis+sentinel://h:1/service?sentinel_user=u",
            "redis+sentinel://h:1/service?db=x",
            "redis+cluster://",
            "redis+cluster://h:1/3",
            "redis+nonsense://h:1",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
    }
}

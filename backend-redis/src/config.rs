//! URL and options.

use std::fmt;
use std::time::Duration;

use tenure_core::backend::{Secret, StoreUrl};
use tenure_core::{DEFAULT_TTL, Error, ErrorKind, Namespace, Result};

/// How to reach a Redis, and how to use it.
///
/// `redis://[user:password@]host:port[/db]?namespace=ns`, with the query keys
///
/// | key | meaning | default |
/// |---|---|---|
/// | `namespace` | the part of the store that is used | `default` |
/// | `ttl` | TTL of a session that asks for none | `10s` |
/// | `timeout` | for one request | `2s` |
/// | `connect_timeout` | for one connection attempt | `1s` |
#[derive(Clone)]
pub struct RedisConfig {
    /// `host:port` of each server to ask.
    pub(crate) hosts: Vec<String>,
    pub(crate) database: i64,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
}

impl RedisConfig {
    /// One server, as `host:port`, without TLS.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            hosts: vec![host.into()],
            database: 0,
            user: None,
            password: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
        }
    }

    /// Reads a `redis://` URL.
    ///
    /// # Errors
    ///
    /// `Config` for a host without a port, an unknown query key, and values that make no sense.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let [host] = url.hosts() else {
            return Err(refuse("a `redis://` URL needs exactly one `host:port`"));
        };
        check_host(host)?;
        let mut config = Self::new(host.clone());
        let (user, password) = url.credentials();
        config.user = user.filter(|user| !user.is_empty()).map(str::to_owned);
        config.password = password.cloned();
        if config.user.is_some() && config.password.is_none() {
            return Err(refuse("the URL has a user but no password"));
        }
        if !url.path().is_empty() {
            config.database = url.path().parse().map_err(|_| {
                refuse("the path of a `redis://` URL is the number of a database; a namespace goes into the query: `?namespace=orders`")
            })?;
        }
        if let Some(namespace) = url.take("namespace") {
            config.namespace = Namespace::new(namespace)?;
        }
        if let Some(ttl) = url.take_duration("ttl")? {
            config.ttl = ttl;
        }
        if let Some(timeout) = url.take_duration("timeout")? {
            config.timeout = timeout;
        }
        if let Some(timeout) = url.take_duration("connect_timeout")? {
            config.connect_timeout = timeout;
        }
        url.finish()?;
        Ok(config)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// The time allowed for one request.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

fn check_host(host: &str) -> Result<()> {
    let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(()),
        _ => Err(refuse(format!(
            "`{host}` is not `host:port`; Redis's usual port is 6379"
        ))),
    }
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, so that a field added to the config is not printed by accident.
        f.debug_struct("RedisConfig")
            .field("hosts", &self.hosts)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("password", &self.password)
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
        let config = parse("redis://u:canary@a:1/3?namespace=ns&ttl=3s&timeout=1s").unwrap();
        assert_eq!(config.hosts, ["a:1"]);
        assert_eq!(config.database, 3);
        assert_eq!(config.namespace.as_str(), "ns");
        assert_eq!(config.ttl, Duration::from_secs(3));
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "redis://",
            "redis://host",
            "redis://host:port",
            "redis://u@h:1",
            "redis://h:1,i:2",
            "redis://h:1/orders",
            "redis://h:1/0?nonsense=1",
            "redis://h:1/0?ttl=soon",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
    }
}

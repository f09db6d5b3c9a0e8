//! URL and options.

use std::fmt;
use std::time::Duration;

use tenure_core::backend::{Secret, StoreUrl, TlsFiles};
use tenure_core::{DEFAULT_TTL, Error, ErrorKind, Namespace, Result};

/// How to reach an etcd, and how to use it.
///
/// `etcd://[user:password@]host:port[,host:port...]/namespace`, or `etcds://` for TLS, with the
/// query keys
///
/// | key | meaning | default |
/// |---|---|---|
/// | `ttl` | TTL of a session that asks for none | `10s` |
/// | `interop` | `true` takes names verbatim as key prefixes, to share locks with `etcdctl` and Go | `false` |
/// | `timeout` | for one request | `2s` |
/// | `connect_timeout` | for one connection attempt | `1s` |
/// | `ca` | PEM file with the authorities to trust | the system's |
/// | `cert`, `key` | PEM files with the client's certificate and key, both or neither | none |
/// | `server_name` | the name that the server's certificate must carry | the host |
#[derive(Clone)]
pub struct EtcdConfig {
    pub(crate) endpoints: Vec<String>,
    /// Which of them is used first; any, by default.
    pub(crate) first: Option<usize>,
    pub(crate) user: Option<(String, Secret)>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) namespace: Namespace,
    pub(crate) interop: bool,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
}

impl EtcdConfig {
    /// One or more endpoints, as `host:port`, without TLS. Each client begins at one of them, chosen at random, and
    /// goes to the next when that one fails.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            first: None,
            user: None,
            tls: None,
            namespace: Namespace::default(),
            interop: false,
            ttl: DEFAULT_TTL,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
        }
    }

    /// Uses the endpoint of this number first, instead of one chosen at random. For tests that disturb one.
    #[doc(hidden)]
    #[must_use]
    pub fn starting_at(mut self, endpoint: usize) -> Self {
        self.first = Some(endpoint);
        self
    }

    /// Reads an `etcd://` or `etcds://` URL.
    ///
    /// # Errors
    ///
    /// `Config` for a host without a port, an unknown query key, and values that make no sense.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let mut config = Self::new(url.hosts().iter().cloned());
        if config.endpoints.is_empty() {
            return Err(refuse("an etcd URL needs at least one `host:port`"));
        }
        for endpoint in &config.endpoints {
            let port = endpoint
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return Err(refuse(format!(
                    "`{endpoint}` is not `host:port`; etcd's usual port is 2379"
                )));
            }
        }
        config.user = match url.credentials() {
            (Some(user), Some(password)) => Some((user.to_owned(), password.clone())),
            (Some(_), None) => return Err(refuse("the URL has a user but no password")),
            _ => None,
        };
        if !url.path().is_empty() {
            config.namespace = Namespace::new(url.path())?;
        }
        config.interop = url.take_flag("interop")?;
        if let Some(ttl) = url.take_duration("ttl")? {
            config.ttl = ttl;
        }
        if let Some(timeout) = url.take_duration("timeout")? {
            config.timeout = timeout;
        }
        if let Some(timeout) = url.take_duration("connect_timeout")? {
            config.connect_timeout = timeout;
        }
        let secure = url.scheme() == "etcds";
        config.tls = url.take_tls(secure, "etcds://")?;
        url.finish()?;
        Ok(config)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// User and password.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((user.into(), Secret::new(password)));
        self
    }

    /// Takes names verbatim as key prefixes, to share locks with `etcdctl lock` and Go's
    /// `concurrency` package.
    #[must_use]
    pub fn interop(mut self, interop: bool) -> Self {
        self.interop = interop;
        self
    }

    /// The time allowed for one request.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand, so that a field added to the config is not printed by accident.
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("namespace", &self.namespace)
            .field("interop", &self.interop)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<EtcdConfig> {
        EtcdConfig::from_url(StoreUrl::parse(url)?)
    }

    #[test]
    fn a_full_url() {
        let config = parse(
            "etcds://u:canary@a:1,b:2/ns?ttl=3s&interop=true&ca=/ca.pem&cert=/c.pem&key=/k.pem",
        )
        .unwrap();
        assert_eq!(config.endpoints, ["a:1", "b:2"]);
        assert_eq!(config.namespace.as_str(), "ns");
        assert_eq!(config.ttl, Duration::from_secs(3));
        assert!(config.interop);
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "etcd://",
            "etcd://host",
            "etcd://host:port",
            "etcd://u@h:1",
            "etcd://h:1/ns?nonsense=1",
            "etcd://h:1/ns?ttl=soon",
            "etcd://h:1/ns?ca=/x",
            "etcds://h:1/ns?cert=/x",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad}");
        }
    }
}

//! The URL and the options.

use std::fmt;
use std::time::Duration;

use tenure_core::backend::DEFAULT_TTL;
use tenure_core::executor::Executor;
use tenure_core::url::StoreUrl;
use tenure_core::{CredentialSource, Error, ErrorKind, Namespace, Result, TlsFiles};

/// The address of an etcd, and the options for its use.
///
/// `etcd://[user:password@]host:port[,host:port...]/namespace`, or `etcds://` for TLS. The hosts are members of one cluster. The
/// query keys:
///
/// | key | meaning | default |
/// |---|---|---|
/// | `namespace` | the part of the store to use, instead of the path | the path, else `default` |
/// | `ttl` | the TTL of a session that asks for none | `10s` |
/// | `timeout` | how long one request may take | `2s` |
/// | `connect_timeout` | for one connection attempt to one member | `1s` |
/// | `client_label` | the client's label for operators | none |
/// | `ca` | PEM file with the trusted certificate authorities | the system's |
/// | `cert`, `key` | PEM files with the client's certificate and key, both or neither | none |
/// | `server_name` | the name that every member's certificate must carry | the host |
#[derive(Clone)]
pub struct EtcdConfig {
    pub(crate) endpoints: Vec<String>,
    pub(crate) credentials: Option<CredentialSource>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) label: Option<String>,
    pub(crate) executor: Option<Executor>,
}

impl EtcdConfig {
    /// Creates a configuration for the members at these endpoints, each `host:port`, without TLS. An invalid endpoint is an error
    /// of the connection attempt.
    ///
    /// A client uses one member at a time, begins at a random one, and moves on when that one fails.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            credentials: None,
            tls: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            label: None,
            executor: None,
        }
    }

    /// Reads a URL and the options of its connection.
    ///
    /// # Errors
    ///
    /// `Config` for a host without a port, an unknown query key, and invalid values; `InvalidName` for the namespace.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let is_secure = match url.scheme() {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(refuse("the schemes for etcd are `etcd` and, with TLS, `etcds`")),
        };
        let mut config = Self::new(url.hosts().iter().cloned());
        if config.endpoints.is_empty() {
            return Err(refuse("an etcd URL needs at least one `host:port`"));
        }
        for endpoint in &config.endpoints {
            let port = endpoint.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                let message = format!("`{endpoint}` in the URL is not `host:port`: etcd's usual port is 2379");
                return Err(refuse(message));
            }
        }
        config.credentials = url.take_credentials();
        let fixed = config.credentials.as_ref().and_then(CredentialSource::as_fixed);
        if fixed.is_some_and(|fixed| fixed.password().is_none()) {
            return Err(refuse("the URL has a user but no password: write `user:password@`"));
        }
        let path = url.path().to_owned();
        config.namespace = match url.take_namespace()? {
            Some(namespace) => namespace,
            None if path.is_empty() => config.namespace,
            None => Namespace::new(path)?,
        };
        config.ttl = url.take_ttl()?.unwrap_or(config.ttl);
        config.timeout = url.take_duration("timeout")?.unwrap_or(config.timeout);
        config.connect_timeout = url.take_duration("connect_timeout")?.unwrap_or(config.connect_timeout);
        config.label = url.take_label()?;
        config.tls = url.take_tls(is_secure, "etcds")?;
        config.executor = url.take_executor();
        url.finish()?;
        Ok(config)
    }

    /// Sets the namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Sets how long one request may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the time limit for one connection attempt to one member.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }
}

/// Returns a `Config` error.
pub(crate) fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Written by hand, so that a field added to the configuration is not printed by accident.
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .field("namespace", &self.namespace)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

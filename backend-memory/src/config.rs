//! The embedded store's options, and the URL that spells them.

use std::time::Duration;

use tenure_core::backend::StoreUrl;
use tenure_core::{DEFAULT_TTL, Error, ErrorKind, Namespace, Result};

/// The shortest TTL that is granted; a shorter one is rounded up.
pub const MIN_TTL: Duration = Duration::from_millis(100);

/// The longest TTL that is granted: one day.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Which embedded store to connect to, and how.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    pub(crate) shared: Option<String>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryConfig {
    /// A store of its own for this connect, and whoever reconnects from it.
    pub fn new() -> Self {
        Self {
            shared: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
        }
    }

    /// The store that every connect of this `name` in the process shares. It lives until the
    /// process ends, on the time of the runtime that connected first.
    pub fn shared(name: impl Into<String>) -> Self {
        Self {
            shared: Some(name.into()),
            ..Self::new()
        }
    }

    /// Reads `memory:` (a store of its own) or `memory:shared-name`, with the query keys `ttl`
    /// (a duration such as `500ms` or `10s`) and `namespace`.
    ///
    /// # Errors
    ///
    /// `Config` for another scheme, a host, credentials, a TTL of zero or above [`MAX_TTL`], or an
    /// unknown query key; `InvalidName` for a namespace that cannot be.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        let refuse = |message: &str| Err(Error::new(ErrorKind::Config, message));
        if url.scheme() != "memory" {
            return refuse("the embedded store's URLs start with `memory:`");
        }
        if !url.hosts().is_empty() || url.credentials().0.is_some() {
            return refuse(
                "the embedded store has no hosts and no users: write `memory:` or `memory:shared-name`",
            );
        }
        let mut config = match url.path() {
            "" => Self::new(),
            name => Self::shared(name),
        };
        if let Some(ttl) = url.take_duration("ttl")? {
            config.ttl = ttl;
        }
        if let Some(namespace) = url.take("namespace") {
            config.namespace = Namespace::new(namespace)?;
        }
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    /// The part of the store that the connection sees. `default` unless told.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// The TTL of sessions that ask for none. [`DEFAULT_TTL`] unless told.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.ttl.is_zero() {
            return Err(Error::new(
                ErrorKind::Config,
                "a TTL must be greater than zero",
            ));
        }
        granted(self.ttl).map(drop)
    }
}

/// The TTL that is granted to whoever asks for `ttl`.
pub(crate) fn granted(ttl: Duration) -> Result<Duration> {
    if ttl > MAX_TTL {
        return Err(crate::error::too_long(ttl, MAX_TTL));
    }
    Ok(ttl.max(MIN_TTL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<MemoryConfig> {
        MemoryConfig::from_url(StoreUrl::parse(url).unwrap())
    }

    #[test]
    fn urls() {
        let plain = config("memory:").unwrap();
        assert_eq!((plain.shared, plain.ttl), (None, DEFAULT_TTL));
        let full = config("memory:a%20b?ttl=500ms&namespace=shop").unwrap();
        assert_eq!(full.shared.as_deref(), Some("a b"));
        assert_eq!(full.ttl, Duration::from_millis(500));
        assert_eq!(full.namespace.as_str(), "shop");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "memory://host/x",
            "memory://user@/x",
            "memory:?tll=1s",
            "memory:?ttl=0s",
            "memory:?ttl=25h",
            "memory:?ttl=soon",
            "etcd:x",
        ] {
            assert_eq!(
                config(bad).unwrap_err().kind(),
                ErrorKind::Config,
                "{bad:?}"
            );
        }
        let error = config("memory:?namespace=").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName);
    }
}

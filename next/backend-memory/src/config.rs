//! The options of the embedded store.

use std::time::Duration;

use tenure_core::backend::DEFAULT_TTL;
use tenure_core::url::StoreUrl;
use tenure_core::{Error, ErrorKind, Namespace, Result};

#[cfg(feature = "planted")]
use crate::planted::Bug;
use crate::planted::Planted;

/// The shortest TTL that is granted unless the options say otherwise: 100 ms. A shorter one is rounded up.
pub const SHORTEST_TTL: Duration = Duration::from_millis(100);

/// The longest TTL that is granted unless the options say otherwise: one day.
pub const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How many entries a session may have unless the options say otherwise.
pub const CAPACITY: usize = 100_000;

/// The options of a connection to an embedded store.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    pub(crate) shared: Option<String>,
    pub(crate) namespace: Namespace,
    pub(crate) ttl: Duration,
    pub(crate) label: String,
    pub(crate) limits: Limits,
    pub(crate) planted: Planted,
}

/// The limits of a session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) least_ttl: Duration,
    pub(crate) most_ttl: Duration,
    pub(crate) capacity: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryConfig {
    /// Selects a store of its own, which ends with its connections and sessions.
    pub fn new() -> Self {
        Self {
            shared: None,
            namespace: Namespace::default(),
            ttl: DEFAULT_TTL,
            label: String::new(),
            limits: Limits {
                least_ttl: SHORTEST_TTL,
                most_ttl: LONGEST_TTL,
                capacity: CAPACITY,
            },
            planted: Planted::default(),
        }
    }

    /// Selects the store that all connections with this `name` in the process share. It lives until the process ends, and
    /// keeps the clock and the planted defects of the connection that came first.
    pub fn shared(name: impl Into<String>) -> Self {
        Self {
            shared: Some(name.into()),
            ..Self::new()
        }
    }

    /// Reads `memory:`, a store of its own, or `memory:shared-name`. The query keys are `namespace`, `ttl` and `client_label`.
    ///
    /// # Errors
    ///
    /// `Config` for another scheme, hosts, credentials, a TTL that is not granted, or an option that the store does not
    /// have; `InvalidName` for a namespace that no store accepts.
    pub fn from_url(mut url: StoreUrl) -> Result<Self> {
        if url.scheme() != "memory" || !url.hosts().is_empty() {
            let message = "the embedded store has no hosts: write `memory:` or `memory:shared-name`";
            return Err(Error::new(ErrorKind::Config, message));
        }
        let mut config = match url.path() {
            "" => Self::new(),
            name => Self::shared(name),
        };
        config.namespace = url.take_namespace()?.unwrap_or_default();
        config.ttl = url.take_ttl()?.unwrap_or(config.ttl);
        config.label = url.take_label()?.unwrap_or_default();
        url.finish()?;
        config.check()?;
        Ok(config)
    }

    /// Sets the namespace. Default: `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Sets the TTL of sessions that ask for none. Default: [`DEFAULT_TTL`].
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the label of sessions that have none of their own, for operators.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the shortest TTL that is granted; a shorter one is rounded up. Default: [`SHORTEST_TTL`].
    #[must_use]
    pub fn least_ttl(mut self, ttl: Duration) -> Self {
        self.limits.least_ttl = ttl;
        self
    }

    /// Sets the longest TTL that is granted; a longer one is refused. Default: [`LONGEST_TTL`].
    #[must_use]
    pub fn most_ttl(mut self, ttl: Duration) -> Self {
        self.limits.most_ttl = ttl;
        self
    }

    /// Sets how many entries a session may have. Default: [`CAPACITY`].
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.limits.capacity = capacity;
        self
    }

    /// Plants a defect in the store.
    #[must_use]
    #[cfg(feature = "planted")]
    pub fn plant(mut self, bug: Bug) -> Self {
        self.planted.insert(bug);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.limits.granted(self.ttl).map(drop)
    }
}

impl Limits {
    /// Returns the TTL that is granted to a session that asks for `ttl`.
    pub(crate) fn granted(&self, ttl: Duration) -> Result<Duration> {
        if ttl.is_zero() || ttl > self.most_ttl {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "a TTL of {ttl:?}: the embedded store grants more than zero and at most {:?}",
                    self.most_ttl
                ),
            ));
        }
        Ok(ttl.max(self.least_ttl))
    }
}

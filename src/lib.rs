#![cfg_attr(docsrs, feature(doc_cfg))]
//! Distributed locks, elections, read-write locks, queues, barriers and transactional memory, under
//! leases and stamped with fencing tokens, over etcd, Redis, PostgreSQL or an embedded store, behind one API.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tenure::Result<()> {
//! use std::time::Duration;
//! use tenure::prelude::*;
//!
//! let store = tenure::connect("memory:").await?;
//! let session = store.open(SessionOptions::new().ttl(Duration::from_secs(10))).await?;
//!
//! let guard = session.locker("orders")?.lock().await?;
//! guard.while_held(async {
//!     // charge the order, and pass guard.token() to whatever is charged
//! }).await?;
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Stores
//!
//! | feature | URL |
//! |---|---|
//! | `memory` (default) | `memory:` (private), `memory:shared-name` (shared in this process) |
//! | `etcd` | `etcd://[user:password@]host:port[,host:port...]/namespace?ttl=10s`, `etcds://` for TLS |
//! | `redis` | `redis://[user:password@]host:port[/db]?namespace=ns`, `rediss://` for TLS; `redis+sentinel://host:port,host:port/service`, `redis+cluster://host:port,host:port`, and `rediss+...` for TLS |
//! | `postgres` | `postgres://[user:password@]host:port[,host:port...]/database?namespace=ns&sslmode=verify-full` |
//!
//! An application picks its store by URL with [`connect`], or names a concrete backend:
//! [`memory`], `etcd`, `redis` and `postgres` have the crates of their own.

use tenure_core::backend::StoreUrl;
pub use tenure_core::*;

#[cfg(feature = "etcd")]
#[cfg_attr(docsrs, doc(cfg(feature = "etcd")))]
pub use tenure_etcd as etcd;
#[cfg(feature = "memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "memory")))]
pub use tenure_memory as memory;
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use tenure_postgres as postgres;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use tenure_redis as redis;

/// What a URL does not say, or what is to override it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConnectOptions {
    namespace: Option<Namespace>,
}

impl ConnectOptions {
    /// Nothing beyond the URL.
    pub fn new() -> Self {
        Self::default()
    }

    /// The namespace, whatever the URL says.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }
}

/// Every scheme that tenure knows, with the feature that brings it.
const SCHEMES: &[(&str, &str)] = &[
    ("memory", "memory"),
    ("etcd", "etcd"),
    ("etcds", "etcd"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("redis+sentinel", "redis"),
    ("rediss+sentinel", "redis"),
    ("redis+cluster", "redis"),
    ("rediss+cluster", "redis"),
    ("postgres", "postgres"),
    ("postgresql", "postgres"),
];

/// Connects to the store at `url`.
///
/// # Errors
///
/// `Config` for a URL that makes no sense, an unknown scheme (the message lists the known ones), a
/// scheme whose feature is not compiled in (it names the feature), or an unknown query key.
/// `Unavailable` when no endpoint answers; `Unauthorized` for wrong credentials. A password in
/// the URL never shows in an error.
///
/// # Cancel safety
///
/// Cancel safe.
pub async fn connect(url: impl AsRef<str>) -> Result<Store> {
    connect_with(url, ConnectOptions::new()).await
}

/// [`connect`], with options that override the URL.
///
/// # Errors
///
/// As for [`connect`].
///
/// # Cancel safety
///
/// Cancel safe.
pub async fn connect_with(url: impl AsRef<str>, options: ConnectOptions) -> Result<Store> {
    open(url.as_ref(), options)
        .await
        .map_err(|error| error.during("connect"))
}

async fn open(url: &str, options: ConnectOptions) -> Result<Store> {
    let url = StoreUrl::parse(url)?;
    match url.scheme() {
        #[cfg(feature = "memory")]
        "memory" => {
            let mut config = memory::MemoryConfig::from_url(url)?;
            if let Some(namespace) = options.namespace {
                config = config.namespace(namespace);
            }
            Ok(memory::connect(config)?.into_dyn())
        }
        #[cfg(feature = "etcd")]
        "etcd" | "etcds" => {
            let mut config = etcd::EtcdConfig::from_url(url)?;
            if let Some(namespace) = options.namespace {
                config = config.namespace(namespace);
            }
            Ok(etcd::connect(config).await?.into_dyn())
        }
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster"
        | "rediss+cluster" => {
            let mut config = redis::RedisConfig::from_url(url)?;
            if let Some(namespace) = options.namespace {
                config = config.namespace(namespace);
            }
            Ok(redis::connect(config).await?.into_dyn())
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            let mut config = postgres::PostgresConfig::from_url(url)?;
            if let Some(namespace) = options.namespace {
                config = config.namespace(namespace);
            }
            Ok(postgres::connect(config).await?.into_dyn())
        }
        scheme => {
            let _ = &options;
            Err(no_such_scheme(scheme))
        }
    }
}

fn no_such_scheme(scheme: &str) -> Error {
    let message = match SCHEMES.iter().find(|(known, _)| *known == scheme) {
        Some((_, feature)) => format!(
            "`{scheme}:` URLs need the cargo feature `{feature}`, which this build was made without"
        ),
        None => {
            let known: Vec<_> = SCHEMES.iter().map(|(scheme, _)| *scheme).collect();
            format!(
                "unknown scheme `{scheme}`; the known ones are: {}",
                known.join(", ")
            )
        }
    };
    Error::new(ErrorKind::Config, message)
}

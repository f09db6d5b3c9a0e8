//! From a URL to a store.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use tenure_core::url::StoreUrl;

use crate::{ConnectOptions, Error, ErrorKind, Result, Store};

/// Connects to the store at `url`.
///
/// # Errors
///
/// `Config` for text that is not a URL of a store, an unknown scheme (the message lists the known ones), a scheme of a store
/// that is not compiled in (the message names the feature), and an unknown query key. `Unavailable` if no server answers,
/// `Unauthorized` for wrong credentials. No error shows a password of the URL.
///
/// # Cancel safety
///
/// Cancel safe.
pub async fn connect(url: impl AsRef<str>) -> Result<Store> {
    connect_with(url, ConnectOptions::new()).await
}

/// Connects to the store at `url` as [`connect`] does, with options that override the URL. Fails with `Config` also for an
/// option that the store does not take.
pub async fn connect_with(url: impl AsRef<str>, options: ConnectOptions) -> Result<Store> {
    Connector::new().connect_with(url, options).await
}

type Connecting = Pin<Box<dyn Future<Output = Result<Store>> + Send>>;
type Factory = Arc<dyn Fn(StoreUrl) -> Connecting + Send + Sync>;

/// A registry of URL schemes: those of this build, and others that the application adds.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> tenure::Result<()> {
/// use tenure::memory::{MemoryBackend, MemoryConfig};
/// use tenure::{Connector, Store};
///
/// let connector = Connector::new().with("test", |mut url| async move {
///     let mut config = MemoryConfig::shared(url.path());
///     if let Some(namespace) = url.take_namespace()? {
///         config = config.namespace(namespace);
///     }
///     url.finish()?; // refuses every other query key
///     Ok(Store::new(MemoryBackend::connect(config)?))
/// });
/// let store = connector.connect("test:shop?namespace=orders").await?;
/// # drop(store);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Connector {
    schemes: BTreeMap<String, Factory>,
}

impl Connector {
    /// Creates a registry of the stores that are compiled in.
    pub fn new() -> Self {
        let connector = Self {
            schemes: BTreeMap::new(),
        };
        #[cfg(feature = "memory")]
        let connector = connector.with("memory", |url| async { memory(url) });
        #[cfg(feature = "redis")]
        let connector = SCHEMES
            .iter()
            .filter(|(_, feature)| *feature == "redis")
            .fold(connector, |connector, (scheme, _)| connector.with(*scheme, redis));
        connector
    }

    /// Adds `scheme`, in any case, or replaces it.
    ///
    /// `factory` receives the parsed URL, overridden by the options of [`connect_with`](Self::connect_with). It takes the parts
    /// that its store supports and calls [`StoreUrl::finish`](crate::url::StoreUrl::finish), which refuses the others.
    #[must_use]
    pub fn with<F, C>(mut self, scheme: impl Into<String>, factory: F) -> Self
    where
        F: Fn(StoreUrl) -> C + Send + Sync + 'static,
        C: Future<Output = Result<Store>> + Send + 'static,
    {
        let factory: Factory = Arc::new(move |url| Box::pin(factory(url)));
        self.schemes.insert(scheme.into().to_ascii_lowercase(), factory);
        self
    }

    /// Returns the schemes that this registry connects to, sorted.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.schemes.keys().map(String::as_str)
    }

    /// Connects to the store at `url`, as [`connect`](connect()) does. Cancel safe if the factory of the scheme is.
    pub async fn connect(&self, url: impl AsRef<str>) -> Result<Store> {
        self.connect_with(url, ConnectOptions::new()).await
    }

    /// Connects to the store at `url`, as [`connect_with`](connect_with()) does. Cancel safe if the factory of the scheme is.
    pub async fn connect_with(&self, url: impl AsRef<str>, options: ConnectOptions) -> Result<Store> {
        let connected = async {
            let url = StoreUrl::parse(url.as_ref())?;
            match self.schemes.get(url.scheme()) {
                Some(factory) => factory(url.with(options)).await,
                None => Err(self.unknown(url.scheme())),
            }
        };
        connected.await.map_err(|error| error.during("connect"))
    }

    fn unknown(&self, scheme: &str) -> Error {
        let message = match SCHEMES.iter().find(|(known, _)| *known == scheme) {
            Some((_, feature)) if FEATURES.contains(feature) => format!(
                "`{scheme}:` URLs need the cargo feature `{feature}`, which this build does not have: add it in Cargo.toml"
            ),
            Some((_, feature)) => format!(
                "`{scheme}:` URLs need the cargo feature `{feature}`, which this version of tenure does not offer yet"
            ),
            None => {
                let ours = SCHEMES.iter().map(|(scheme, _)| *scheme);
                let added = self.schemes().filter(|added| ours.clone().all(|known| known != *added));
                let known: Vec<_> = ours.clone().chain(added).collect();
                format!("unknown scheme `{scheme}`; the known ones are: {}", known.join(", "))
            }
        };
        Error::new(ErrorKind::Config, message)
    }
}

impl Default for Connector {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("schemes", &self.schemes.keys())
            .finish()
    }
}

/// The schemes of all stores, and the feature of each.
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

/// The features that this version has.
const FEATURES: &[&str] = &["memory", "redis"];

#[cfg(feature = "memory")]
fn memory(url: StoreUrl) -> Result<Store> {
    use tenure_memory::{MemoryBackend, MemoryConfig};

    MemoryBackend::connect(MemoryConfig::from_url(url)?).map(Store::new)
}

#[cfg(feature = "redis")]
async fn redis(url: StoreUrl) -> Result<Store> {
    tenure_redis::connect(tenure_redis::RedisConfig::from_url(url)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in a build with the features of no store.
    #[tokio::test]
    async fn scheme_of_a_store_that_is_not_compiled_in_is_refused_with_its_feature() {
        let connector = Connector {
            schemes: BTreeMap::new(),
        };
        for (scheme, feature) in SCHEMES {
            let url = format!("{scheme}://u:canary@127.0.0.1:1/x");
            let error = connector.connect(url).await.expect_err("the URL is refused");
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = error.to_string();
            let help = match FEATURES.contains(feature) {
                true => "add it in Cargo.toml",
                false => "does not offer yet",
            };
            assert!(
                text.contains(&format!("feature `{feature}`")) && text.contains(help),
                "{text}"
            );
            assert!(!text.contains("canary"), "{text}");
        }
    }
}

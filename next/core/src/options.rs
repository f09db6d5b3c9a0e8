//! Options of sessions and of connections, and the ids of sessions.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::{CredentialSource, Credentials};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::name::Namespace;

/// The longest label of a client or a session, in bytes.
pub const MAX_LABEL_BYTES: usize = 63;

/// Options for opening a session.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    ttl: Option<Duration>,
    label: String,
}

impl SessionOptions {
    /// Returns the store's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the TTL: how long the store keeps the holdings of a session that sends no renewal. The store may round up.
    /// Default: the TTL of the connection, else [`DEFAULT_TTL`](crate::backend::DEFAULT_TTL).
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets a label that operators see beside the session: at most [`MAX_LABEL_BYTES`] bytes without control characters. An
    /// invalid label fails the opening with `Config`. Default: that of the connection.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Returns the requested TTL, if any.
    pub(crate) fn requested_ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// Returns the label; empty if there is none. Fails with `Config` if it is too long or has control characters.
    pub(crate) fn checked_label(&self) -> Result<&str> {
        check_label(&self.label)
    }
}

/// Returns `label` if it can be the label of a client or a session.
pub(crate) fn check_label(label: &str) -> Result<&str> {
    if label.len() <= MAX_LABEL_BYTES && !label.chars().any(char::is_control) {
        return Ok(label);
    }
    let message =
        format!("a label has at most {MAX_LABEL_BYTES} bytes and no control characters: choose a shorter, plain one");
    Err(Error::new(ErrorKind::Config, message))
}

/// The id of a session in the store's own form. It is printed and parsed as plain text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Creates an id from its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.0)
    }
}

/// Options of a connection. Each overrides what the URL says, so that a URL needs to contain no secrets.
///
/// ```
/// # use std::time::Duration;
/// use tenure_core::{ConnectOptions, Credentials, TlsFiles};
///
/// let options = ConnectOptions::new()
///     .ttl(Duration::from_secs(30))
///     .tls(TlsFiles::new().ca("/etc/ssl/store-ca.pem"))
///     .credentials_from(|| async {
///         // Called before each connection: the secret may rotate.
///         Ok(Credentials::new("orders", "the token of the hour"))
///     });
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    pub(crate) namespace: Option<Namespace>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) label: Option<String>,
    pub(crate) credentials: Option<CredentialSource>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) executor: Option<Executor>,
}

impl ConnectOptions {
    /// Creates options that override nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Sets the TTL of sessions that ask for none.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets a label for this client, such as `billing`: at most [`MAX_LABEL_BYTES`] bytes without control characters.
    ///
    /// Operators see it beside the client's sessions and in the store's own tools: `CLIENT LIST` of Redis, `application_name`
    /// of PostgreSQL. An invalid label fails the connection with `Config`.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the user and the password.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(CredentialSource::fixed(credentials));
        self
    }

    /// Sets a function that returns the credentials, for tokens that expire and passwords that rotate. All users that it
    /// returns must have the same rights.
    ///
    /// The library calls it before each connection. One call runs at a time, on a thread that may block. A call that takes
    /// longer than an attempt to connect continues, and serves the next attempt. An error or a panic ends one attempt.
    #[must_use]
    pub fn credentials_from<F, C>(mut self, source: F) -> Self
    where
        F: Fn() -> C + Send + Sync + 'static,
        C: Future<Output = Result<Credentials>> + Send + 'static,
    {
        self.credentials = Some(CredentialSource::function(source));
        self
    }

    /// Sets the files for TLS. The URL must ask for TLS, by its scheme or by `sslmode`.
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Runs the library's work for this connection on `executor` instead of the library's thread. A runtime that is blocked
    /// for longer than the TTL, or that ends, then costs the leases.
    #[must_use]
    pub fn executor(mut self, executor: Executor) -> Self {
        self.executor = Some(executor);
        self
    }
}

/// The files for TLS, and the expected name of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The PEM file with the certificate authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The PEM files with the client's certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must contain, instead of the host.
    pub server_name: Option<String>,
}

impl TlsFiles {
    /// Trusts the system's certificate authorities, and presents no certificate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the PEM file with the certificate authorities to trust, instead of the system's.
    #[must_use]
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca = Some(file.into());
        self
    }

    /// Sets the PEM files with the client's certificate and its private key.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sets the name that the server's certificate must contain, instead of the host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

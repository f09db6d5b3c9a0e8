//! What a server shows its clients over TLS.

use std::path::PathBuf;

/// A certificate and its private key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What a server needs to serve TLS, and its own tools to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub(crate) ca: PathBuf,
    pub(crate) server: Identity,
    pub(crate) client: Option<(PathBuf, Identity)>,
}

impl Tls {
    /// A server that shows the certificate `server`, which `ca` (a PEM file) has signed.
    pub fn new(ca: impl Into<PathBuf>, server: Identity) -> Self {
        Self {
            ca: ca.into(),
            server,
            client: None,
        }
    }

    /// The server demands a certificate signed by `client_ca` of every client; the
    /// server's own tools show `client`.
    pub fn require_client(mut self, client_ca: impl Into<PathBuf>, client: Identity) -> Self {
        self.client = Some((client_ca.into(), client));
        self
    }
}

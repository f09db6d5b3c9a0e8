//! Opening a client of the library.

use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use parking_lot::Mutex;
use tenure_core::{CredentialSource, Error, ErrorKind, Result, TlsFiles};

use crate::config::EtcdConfig;
use crate::error::{from_client, unanswered};

/// etcd closes connections that are pinged more often than every 5 s (`--grpc-keepalive-min-time`). Renewals and watches notice
/// silence earlier; the pings are for connections without either.
const PING_EVERY: Duration = Duration::from_millis(5_500);

/// The settings of each connection.
pub(super) struct Dialer {
    options: ConnectOptions,
    credentials: Option<CredentialSource>,
    tls: Option<TlsFiles>,
    /// The contents of the files when they were read last.
    identity: Mutex<Option<TlsOptions>>,
    limit: Duration,
}

impl Dialer {
    pub(super) async fn new(config: &EtcdConfig) -> Result<Self> {
        let options = ConnectOptions::new()
            .with_connect_timeout(config.connect_timeout)
            .with_keep_alive(PING_EVERY, config.timeout)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(Duration::from_secs(30))
            // A member that has lost its leader must end a watch rather than keep it silent.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let identity = match &config.tls {
            Some(files) => Some(read_tls(files).await?),
            None => None,
        };
        Ok(Self {
            options,
            credentials: config.credentials.clone(),
            tls: config.tls.clone(),
            identity: Mutex::new(identity),
            limit: config.timeout,
        })
    }

    /// Opens a client for one endpoint. Sends nothing, except the authentication if there is a user.
    pub(super) async fn dial(&self, endpoint: &str) -> Result<Client> {
        let options = self.current_options().await.map_err(|error| error.at(endpoint))?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{endpoint}");
        let connected = match tokio::time::timeout(self.limit, Client::connect([url], Some(options))).await {
            // Not from the network, which answers requests by a status: the options cannot be used.
            Ok(Err(error @ etcd_client::Error::TransportError(_))) => {
                let message = "the connection cannot be set up: check the endpoint, `ca`, `cert` and `key`";
                Err(Error::new(ErrorKind::Config, message).with_source(from_client(error)))
            }
            Ok(connected) => connected.map_err(from_client),
            Err(_) => Err(unanswered(self.limit)),
        };
        connected.map_err(|error| error.at(endpoint))
    }

    /// Opens a client for the URL of a member, without credentials. For the version of the member, which needs no right.
    pub(super) async fn dial_without_user(&self, url: &str) -> Result<Client> {
        let mut options = ConnectOptions::new().with_connect_timeout(self.limit);
        if let Some(identity) = self.identity.lock().clone() {
            options = options.with_tls(identity);
        }
        let connecting = Client::connect([url], Some(options));
        match tokio::time::timeout(self.limit, connecting).await {
            Ok(connected) => connected.map_err(from_client),
            Err(_) => Err(unanswered(self.limit)),
        }
    }

    /// Returns the options of the next connection, with the credentials and certificates of this moment: both are rotated while
    /// the client lives.
    async fn current_options(&self) -> Result<ConnectOptions> {
        let mut options = self.options.clone();
        if let Some(source) = &self.credentials {
            let login = source.credentials(self.limit).await?;
            let password = login.password().map_or("", |password| password.expose());
            options = options.with_user(login.user(), password);
        }
        let Some(files) = &self.tls else {
            return Ok(options);
        };
        let read = read_tls(files).await;
        let mut identity = self.identity.lock();
        match read {
            Ok(read) => *identity = Some(read),
            // In the midst of a rotation.
            Err(error) => tracing::warn!(error = %error.chain(), "the TLS files cannot be read again"),
        }
        Ok(match &*identity {
            Some(identity) => options.with_tls(identity.clone()),
            None => options,
        })
    }
}

async fn read_tls(files: &TlsFiles) -> Result<TlsOptions> {
    let mut options = match &files.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca).await?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &files.identity {
        options = options.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    if let Some(name) = &files.server_name {
        options = options.domain_name(name.clone());
    }
    Ok(options)
}

async fn read(file: &Path) -> Result<Vec<u8>> {
    tokio::fs::read(file).await.map_err(|error| {
        let message = format!("cannot read `{}`", file.display());
        Error::new(ErrorKind::Config, message).with_source(error)
    })
}

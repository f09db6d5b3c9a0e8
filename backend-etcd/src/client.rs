//! The connection: one endpoint at a time, our own failover, and a bound on every call.
//!
//! etcd-client can balance over several endpoints, but it keeps sending to a dead one (about a
//! third of the calls failed with one of two endpoints down). So each etcd-client `Client` here
//! has one endpoint, and whoever finds it dead or silent moves everybody to the next.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tenure_core::backend::TlsFiles;
use tenure_core::{Effect, Error, ErrorKind, Result};
use tokio::sync::{Mutex, watch};

use crate::config::EtcdConfig;
use crate::error::{from_client, history_lost, is_connection, never_sent};
use crate::history::{Answer, History};
use crate::layout::Layout;

/// etcd closes connections that are pinged more often than every 5 s
/// (`--grpc-keepalive-min-time`). Silence is noticed faster than that by the watcher's and the
/// sessions' own questions; the pings are for connections on which nobody asks.
const PING_EVERY: Duration = Duration::from_millis(5_500);

/// How long a member may take to say that it lives, when a request had no answer in time. Short: a renewal may be
/// waiting for another connection.
const ALIVE: Duration = Duration::from_millis(250);

/// One etcd-client `Client`, and its number in the order of their use.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) generation: u64,
}

/// The connection that all sessions of one `connect` share.
pub(crate) struct Wire {
    endpoints: Vec<String>,
    /// Everything but TLS, whose files may be replaced at any time.
    options: ConnectOptions,
    tls: Option<TlsFiles>,
    /// What was read from the files last.
    identity: std::sync::Mutex<Option<TlsOptions>>,
    timeout: Duration,
    current: watch::Sender<Arc<Link>>,
    /// The endpoint that was tried last. Locked while somebody moves: one at a time.
    moving: Mutex<usize>,
    /// The store's history as the answers show it.
    history: History,
    /// A key that this client may read, to compare histories by.
    probe: String,
}

impl Wire {
    pub(crate) async fn connect(config: &EtcdConfig) -> Result<Arc<Self>> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(config.connect_timeout)
            .with_keep_alive(PING_EVERY, config.timeout)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(Duration::from_secs(30))
            // A member that lost its leader must say so rather than keep a watch silent.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &config.user {
            options = options.with_user(user, password.expose());
        }
        let identity = match &config.tls {
            Some(tls) => Some(read_tls(tls).await?),
            None => None,
        };
        let with_tls = match &identity {
            Some(identity) => options.clone().with_tls(identity.clone()),
            None => options.clone(),
        };
        let scheme = if config.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let endpoints: Vec<_> = config
            .endpoints
            .iter()
            .map(|endpoint| format!("{scheme}://{endpoint}"))
            .collect();
        let mut last = Error::new(ErrorKind::Config, "no endpoint");
        // At random, so that the clients of a cluster do not all burden one member.
        let first = config.first.unwrap_or_else(random);
        for tried in 0..endpoints.len() {
            let index = first.wrapping_add(tried) % endpoints.len();
            match dial(&endpoints[index], &with_tls, config.timeout).await {
                Ok(client) => {
                    let link = Link {
                        client,
                        generation: 0,
                    };
                    return Ok(Arc::new(Self {
                        endpoints,
                        options,
                        tls: config.tls.clone(),
                        identity: std::sync::Mutex::new(identity),
                        timeout: config.timeout,
                        current: watch::Sender::new(Arc::new(link)),
                        moving: Mutex::new(index),
                        history: History::new(),
                        probe: Layout::new(config.namespace.clone(), config.interop).version_key(),
                    }));
                }
                // Wrong credentials are wrong everywhere.
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The store's history as this client knows it.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// Compares the store's history with the known one, by a linearizable read. To be called when a connection
    /// was replaced: the server behind it may have been restored from a backup meanwhile.
    ///
    /// # Errors
    ///
    /// `Unavailable`. A server that answers and refuses the read shows nothing of its history.
    pub(crate) async fn compare_history(self: &Arc<Self>) -> Result<()> {
        let read = self.call_repeatable(|client| {
            let (mut kv, key) = (client.kv_client(), self.probe.clone());
            async move { kv.get(key, None).await }
        });
        match read.await {
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.current.borrow())
    }

    /// Ends when the connection `generation` was left.
    pub(crate) fn left(&self, generation: u64) -> impl Future<Output = ()> + Send + use<> {
        let mut current = self.current.subscribe();
        async move {
            // The sender lives as long as the wire: it does not end while somebody asks.
            let _ = current.wait_for(|link| link.generation != generation).await;
        }
    }

    /// Leaves the connection `generation`, which was found dead or silent, for a new one to the
    /// next endpoint (or to the same one, if there is no other: a fresh connection does not wait
    /// for the retransmissions of a stalled one).
    pub(crate) async fn leave(self: &Arc<Self>, generation: u64) {
        // In a task of its own: a renewal that runs out of time is dropped, and what it began
        // must not begin anew with each attempt.
        let wire = Arc::clone(self);
        let moved = tokio::spawn(async move { wire.move_on(generation).await });
        let _ = moved.await; // else the runtime ends
    }

    /// The options of the next connection, with the certificates that the files have now: they are rotated while
    /// this client lives. Files that cannot be read in the midst of that leave those that were read last.
    async fn current_options(&self) -> ConnectOptions {
        let Some(files) = &self.tls else {
            return self.options.clone();
        };
        let read = read_tls(files).await;
        let mut identity = self
            .identity
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match read {
            Ok(read) => *identity = Some(read),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the TLS files cannot be read again")
            }
        }
        match &*identity {
            Some(identity) => self.options.clone().with_tls(identity.clone()),
            None => self.options.clone(),
        }
    }

    /// The version of the member at the client URL `url`. Asked without credentials: the URL comes from the
    /// cluster's own list.
    pub(crate) async fn version_of(&self, url: &str) -> Option<String> {
        let mut options = ConnectOptions::new().with_connect_timeout(self.timeout);
        let identity = {
            let identity = self.identity.lock();
            identity
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .clone()
        };
        if let Some(identity) = identity {
            options = options.with_tls(identity);
        }
        let client = dial(url, &options, self.timeout).await.ok()?;
        let mut maintenance = client.maintenance_client();
        let status = tokio::time::timeout(self.timeout, maintenance.status()).await;
        Some(status.ok()?.ok()?.version().to_owned())
    }

    async fn move_on(&self, generation: u64) {
        let mut tried = self.moving.lock().await;
        let link = self.link();
        if link.generation != generation {
            return; // somebody else has moved already
        }
        *tried = (*tried + 1) % self.endpoints.len();
        let endpoint = &self.endpoints[*tried];
        let options = self.current_options().await;
        let client = match dial(endpoint, &options, self.timeout).await {
            Ok(client) => {
                tracing::debug!(endpoint, "moving to another connection");
                client
            }
            Err(error) => {
                tracing::debug!(endpoint, error = %error.chain(), "this endpoint does not answer either");
                // A new number all the same: those who wait here for the lock go on.
                link.client.clone()
            }
        };
        self.current.send_replace(Arc::new(Link {
            client,
            generation: generation + 1,
        }));
    }

    /// Leaves the connection `generation` if its member does not answer anything any more, or follows no
    /// leader. A request without an answer may only have been slow, and all watches of this client are on the
    /// same connection.
    pub(crate) async fn suspect(self: &Arc<Self>, generation: u64) {
        let link = self.link();
        if link.generation != generation {
            return;
        }
        let mut maintenance = link.client.maintenance_client();
        let lives = match tokio::time::timeout(ALIVE, maintenance.status()).await {
            Ok(Ok(status)) => status.leader() != 0,
            Ok(Err(error)) => !is_connection(&error),
            Err(_) => false,
        };
        if !lives {
            self.leave(generation).await;
        }
    }

    /// One request, bounded by the configured timeout. A request that certainly was not sent is
    /// tried on each endpoint; any other failure goes to the caller, who knows what is idempotent.
    ///
    /// # Errors
    ///
    /// `Lost`, with an unknown effect, when the answer is of another history than the question.
    pub(crate) async fn call<T, F>(self: &Arc<Self>, request: impl Fn(&Client) -> F) -> Result<T>
    where
        T: Answer,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let asked = self.history.mark();
        let answer = self.on_each_endpoint(false, request).await?;
        match self.history.heard(asked, &answer, true) {
            true => Ok(answer),
            false => Err(history_lost()),
        }
    }

    /// One request that does no harm twice: where no answer came, it is sent again, once to each
    /// endpoint.
    pub(crate) async fn call_repeatable<T, F>(
        self: &Arc<Self>,
        request: impl Fn(&Client) -> F,
    ) -> Result<T>
    where
        T: Answer,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        loop {
            let asked = self.history.mark();
            let answer = self.on_each_endpoint(true, &request).await?;
            if self.history.heard(asked, &answer, true) {
                return Ok(answer);
            }
        }
    }

    /// [`call_repeatable`](Self::call_repeatable) for a read that a member may answer from what it has applied:
    /// an older revision proves nothing.
    pub(crate) async fn call_local<T, F>(
        self: &Arc<Self>,
        request: impl Fn(&Client) -> F,
    ) -> Result<T>
    where
        T: Answer,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let asked = self.history.mark();
        let answer = self.on_each_endpoint(true, request).await?;
        match self.history.heard(asked, &answer, false) {
            true => Ok(answer),
            false => Err(history_lost()),
        }
    }

    async fn on_each_endpoint<T, F>(
        self: &Arc<Self>,
        repeatable: bool,
        request: impl Fn(&Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut endpoints = self.endpoints.len();
        loop {
            endpoints -= 1;
            let link = self.link();
            let answer = tokio::time::timeout(self.timeout, request(&link.client)).await;
            let (error, sent, silent) = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if !is_connection(&error) => return Err(from_client(error)),
                Ok(Err(error)) => {
                    let sent = !never_sent(&error);
                    (from_client(error), sent, false)
                }
                Err(_) => (silent(self.timeout), true, true),
            };
            if silent {
                self.suspect(link.generation).await;
            } else {
                self.leave(link.generation).await;
            }
            if endpoints == 0 || (sent && !(repeatable && error.is_retryable())) {
                return Err(error);
            }
        }
    }
}

pub(crate) fn silent(after: Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("etcd did not answer within {after:?}"),
    )
    .with_effect(Effect::Unknown)
}

fn random() -> usize {
    let number = RandomState::new().build_hasher().finish();
    usize::try_from(number % (1 << 16)).unwrap_or_default()
}

/// A client for one endpoint. Sends nothing, except the authentication when there is a user.
async fn dial(endpoint: &str, options: &ConnectOptions, limit: Duration) -> Result<Client> {
    match tokio::time::timeout(limit, Client::connect([endpoint], Some(options.clone()))).await {
        // Not from the network, which answers requests by a status: the options cannot be used.
        Ok(Err(error @ etcd_client::Error::TransportError(_))) => Err(Error::new(
            ErrorKind::Config,
            "the connection cannot be set up: check the endpoint, `ca`, `cert` and `key`",
        )
        .with_source(from_client(error))),
        Ok(connected) => connected.map_err(from_client),
        Err(_) => Err(silent(limit)),
    }
    .map_err(|error| at(endpoint, error))
}

/// What the member at `endpoint` has to say: of several, one has to know which.
fn at(endpoint: &str, error: Error) -> Error {
    let host = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, host)| host);
    error.at(host)
}

async fn read_tls(tls: &TlsFiles) -> Result<TlsOptions> {
    let read = async |path: &std::path::Path| {
        tokio::fs::read(path).await.map_err(|error| {
            Error::new(
                ErrorKind::Config,
                format!("cannot read `{}`", path.display()),
            )
            .with_source(error)
        })
    };
    let mut options = TlsOptions::new();
    options = match &tls.ca {
        Some(ca) => options.ca_certificate(Certificate::from_pem(read(ca).await?)),
        None => options.with_native_roots(),
    };
    if let Some((cert, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(read(cert).await?, read(key).await?));
    }
    if let Some(name) = &tls.server_name {
        options = options.domain_name(name.clone());
    }
    Ok(options)
}

//! The connection: one endpoint at a time, our own failover, and a bound on every call.
//!
//! etcd-client can balance over several endpoints, but it keeps sending to a dead one (about a
//! third of the calls failed with one of two endpoints down). So each etcd-client `Client` here
//! has one endpoint, and whoever finds it dead or silent moves everybody to the next.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tenure_core::backend::TlsFiles;
use tenure_core::{Effect, Error, ErrorKind, Result};
use tokio::sync::{Mutex, watch};

use crate::config::EtcdConfig;
use crate::error::{from_client, is_connection, never_sent};

/// etcd closes connections that are pinged more often than every 5 s
/// (`--grpc-keepalive-min-time`). Silence is noticed faster than that by the watcher's and the
/// sessions' own questions; the pings are for connections on which nobody asks.
const PING_EVERY: Duration = Duration::from_millis(5_500);

/// One etcd-client `Client`, and its number in the order of their use.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) generation: u64,
}

/// The connection that all sessions of one `connect` share.
pub(crate) struct Wire {
    endpoints: Vec<String>,
    options: ConnectOptions,
    timeout: Duration,
    current: watch::Sender<Arc<Link>>,
    /// The endpoint that was tried last. Locked while somebody moves: one at a time.
    moving: Mutex<usize>,
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
        if let Some(tls) = &config.tls {
            options = options.with_tls(read_tls(tls).await?);
        }
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
        for (index, endpoint) in endpoints.iter().enumerate() {
            match dial(endpoint, &options, config.timeout).await {
                Ok(client) => {
                    let link = Link {
                        client,
                        generation: 0,
                    };
                    return Ok(Arc::new(Self {
                        endpoints,
                        options,
                        timeout: config.timeout,
                        current: watch::Sender::new(Arc::new(link)),
                        moving: Mutex::new(index),
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

    async fn move_on(&self, generation: u64) {
        let mut tried = self.moving.lock().await;
        let link = self.link();
        if link.generation != generation {
            return; // somebody else has moved already
        }
        *tried = (*tried + 1) % self.endpoints.len();
        let endpoint = &self.endpoints[*tried];
        let client = match dial(endpoint, &self.options, self.timeout).await {
            Ok(client) => {
                tracing::debug!(endpoint, "moving to another connection");
                client
            }
            Err(error) => {
                tracing::debug!(endpoint, %error, "this endpoint does not answer either");
                // A new number all the same: those who wait here for the lock go on.
                link.client.clone()
            }
        };
        self.current.send_replace(Arc::new(Link {
            client,
            generation: generation + 1,
        }));
    }

    /// One request, bounded by the configured timeout. A request that certainly was not sent is
    /// tried on each endpoint; any other failure goes to the caller, who knows what is idempotent.
    pub(crate) async fn call<T, F>(self: &Arc<Self>, request: impl Fn(&Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.on_each_endpoint(false, request).await
    }

    /// One request that does no harm twice: where no answer came, it is sent again, once to each
    /// endpoint.
    pub(crate) async fn call_repeatable<T, F>(
        self: &Arc<Self>,
        request: impl Fn(&Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.on_each_endpoint(true, request).await
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
            let (error, sent) = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if !is_connection(&error) => return Err(from_client(error)),
                Ok(Err(error)) => {
                    let sent = !never_sent(&error);
                    (from_client(error), sent)
                }
                Err(_) => (silent(self.timeout), true),
            };
            self.leave(link.generation).await;
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
    Error::new(error.kind(), host)
        .with_effect(error.effect())
        .retryable(error.is_retryable())
        .with_source(error)
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

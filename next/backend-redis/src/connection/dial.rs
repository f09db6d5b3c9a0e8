//! Connecting to one server: TCP, TLS, login, and the server's properties.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind as Redis, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    RedisError, Value,
};
use tenure_core::{Credentials, Effect, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::socket::{Ended, Health, Socket};
use super::stream::Counted;
use super::tls;
use crate::config::{Address, RedisConfig, refuse};
use crate::error::{self, ServerMessage};

/// The most requests in flight on a connection for commands. A renewal on the other connection is behind no more than these on
/// the server, which runs them one after the other.
const IN_FLIGHT: usize = 128;

/// How long a peer may be silent at the level of TCP. A peer that has vanished from the network acknowledges nothing.
const VANISHED: Duration = Duration::from_secs(15);

/// A receiver of a connection's messages. It must not block.
pub(super) type OnMessage = Arc<dyn Fn(&Health, PushInfo) + Send + Sync>;

/// The purpose of a connection.
pub(super) enum Purpose {
    /// Requests, at most [`IN_FLIGHT`] at once.
    Commands,
    /// Renewals, and messages for the receiver.
    Control(OnMessage),
    /// One request to a sentinel.
    Sentinel(Option<Credentials>),
}

/// A server's properties, from `HELLO` and, if the user may send it, `INFO`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(super) is_cluster: bool,
    pub(super) is_sentinel: bool,
    pub(super) is_replica: bool,
}

impl Facts {
    fn read(answer: &Value) -> Self {
        let mut facts = Self::default();
        for (key, value) in answer.as_map_iter().into_iter().flatten() {
            let value = text(value);
            match &*text(key) {
                "version" => facts.version = value,
                "mode" => {
                    facts.is_cluster = value == "cluster";
                    facts.is_sentinel = value == "sentinel";
                }
                "role" => facts.is_replica = value != "master",
                _ => {}
            }
        }
        facts
    }

    /// Returns whether the version is at least `version`. An unreadable version counts as old.
    pub(crate) fn at_least(&self, version: (u32, u32)) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse().ok());
        let (major, minor) = (parts.next().flatten(), parts.next().flatten());
        major.zip(minor).is_some_and(|found| found >= version)
    }
}

/// Returns one value of an answer of `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}

/// Returns a reply as text; empty for one that is none.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

/// Connects to the server at `address`, within the configured time. The connection lives on `home`, or on the current runtime,
/// which has the timers in both cases.
pub(super) async fn dial(
    config: &Arc<RedisConfig>,
    address: &Address,
    purpose: Purpose,
    home: Option<&Handle>,
) -> Result<Socket> {
    let connecting = async {
        let info = login(config, &purpose).await?;
        let connecting = connect(Arc::clone(config), address.clone(), purpose, info, home.cloned());
        let Some(home) = home else {
            return connecting.await;
        };
        let mut tasks = JoinSet::new();
        // Dropped with the set.
        tasks.spawn_on(connecting, home);
        match tasks.join_next().await {
            Some(Ok(connected)) => connected,
            _ => Err(error::unavailable(
                "the application's runtime does not run the connection",
            )),
        }
    };
    let limit = config.connect_timeout;
    tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
        let hint = match config.tls {
            // A Redis without TLS takes the handshake for the beginning of a command, and waits for the rest.
            Some(_) => ": if it does not speak TLS, write `redis` instead of `rediss`",
            None => "",
        };
        Err(error::unavailable(format!(
            "no connection to {address} within {limit:?}{hint}"
        )))
    })
}

async fn connect(
    config: Arc<RedisConfig>,
    address: Address,
    purpose: Purpose,
    info: RedisConnectionInfo,
    home: Option<Handle>,
) -> Result<Socket> {
    let is_sentinel = matches!(purpose, Purpose::Sentinel(_));
    let stream = TcpStream::connect((&*address.host, address.port))
        .await
        .and_then(|stream| tune(&stream).map(|()| stream))
        .map_err(|error| {
            let message = format!("no connection to {address}: start Redis there, or correct the address");
            error::unavailable(message).with_source(error)
        })?;
    let health = Arc::<Health>::default();
    let stream = Counted::new(stream, Arc::clone(&health.reads));
    let settings = settings(&purpose, &health);
    let connected = match &config.tls {
        None => establish(&info, stream, settings).await,
        Some(files) => establish(&info, tls::secure(files, &address, stream).await?, settings).await,
    };
    let (redis, driver) = connected.map_err(|error| refused(&config, &address, error))?;
    let in_flight = match purpose {
        Purpose::Commands => IN_FLIGHT,
        Purpose::Control(_) | Purpose::Sentinel(_) => Semaphore::MAX_PERMITS,
    };
    let mut socket = Socket::new(redis, address.clone(), health, driver, in_flight, home);
    if !is_sentinel {
        let answer = socket.send(&hello(config.label.as_deref())).await;
        let answer = answer.map_err(|failure| failure.translate_with(|error| refused(&config, &address, error)))?;
        socket.facts = Facts::read(&answer);
    }
    Ok(socket)
}

/// Speaks the first words over `stream`, and runs the connection on the current runtime.
async fn establish<S>(
    info: &RedisConnectionInfo,
    stream: S,
    settings: AsyncConnectionConfig,
) -> redis::RedisResult<(MultiplexedConnection, AbortHandle)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (redis, driver) = MultiplexedConnection::new_with_config(info, stream, settings).await?;
    Ok((redis, tokio::spawn(driver).abort_handle()))
}

async fn login(config: &RedisConfig, purpose: &Purpose) -> Result<RedisConnectionInfo> {
    let (credentials, mut info) = match purpose {
        // A sentinel needs no RESP3, and has no databases.
        Purpose::Sentinel(credentials) => (credentials.clone(), RedisConnectionInfo::default()),
        Purpose::Commands | Purpose::Control(_) => {
            let source = config
                .credentials
                .as_ref()
                .map(|source| source.credentials(config.connect_timeout));
            let credentials = match source {
                Some(source) => Some(source.await?),
                None => None,
            };
            let info = RedisConnectionInfo::default()
                .set_protocol(ProtocolVersion::RESP3)
                .set_db(config.database);
            (credentials, info)
        }
    };
    info = info.set_lib_name("tenure", env!("CARGO_PKG_VERSION"));
    if let Some(credentials) = &credentials {
        if !credentials.user().is_empty() {
            info = info.set_username(credentials.user());
        }
        if let Some(password) = credentials.password() {
            info = info.set_password(password.expose());
        }
    }
    Ok(info)
}

fn settings(purpose: &Purpose, health: &Arc<Health>) -> AsyncConnectionConfig {
    // The timeouts are tenure's own. The buffer has room for all that may be in flight, so that nothing waits for it.
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(2 * IN_FLIGHT);
    let receiver = match purpose {
        Purpose::Sentinel(_) => return settings,
        Purpose::Commands => None,
        Purpose::Control(receiver) => Some(Arc::clone(receiver)),
    };
    let health = Arc::clone(health);
    settings.set_push_sender(move |push: PushInfo| -> std::result::Result<(), SendError> {
        match (&push.kind, &receiver) {
            (PushKind::Disconnection, _) => health.end(Ended::Disconnected),
            (_, Some(receiver)) => receiver(&health, push),
            (_, None) => {}
        }
        Ok(())
    })
}

/// Returns the command that asks for the server's properties and names the connection. A name has no blanks.
fn hello(label: Option<&str>) -> Cmd {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let name: String = label.unwrap_or("tenure").chars().map(plain).collect();
    let mut hello = redis::cmd("HELLO");
    hello.arg(3).arg("SETNAME").arg(name);
    hello
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(VANISHED * 2 / 3)
        .with_interval(VANISHED / 6);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(VANISHED))?;
    Ok(())
}

/// Returns the error of a server that was reached and refused the connection.
fn refused(config: &RedisConfig, address: &Address, error: RedisError) -> Error {
    let shown = error.to_string();
    let refusal = if shown.contains("DB index") || shown.contains("invalid DB") {
        let number = config.database;
        refuse(format!(
            "{address} has no database {number}: its setting `databases` limits them"
        ))
    } else if error.kind() == Redis::RESP3NotSupported || shown.contains("unknown command") {
        too_old(address, "below 6")
    } else if shown.contains("max number of clients") {
        error::unavailable(format!(
            "{address} has no room for another client: raise its `maxclients`, or end clients"
        ))
    } else if !error.is_io_error() {
        return error::from_redis(error).with_effect(Effect::None).at(address);
    } else {
        match &config.tls {
            // With TLS 1.3 the server checks the client's certificate after the client's handshake has ended.
            Some(files) if shown.contains("alert") || files.identity.is_none() => {
                tls::client_refused(address).retryable(!shown.contains("alert"))
            }
            Some(_) => error::unavailable(format!(
                "{address} closed the connection: see whether it has reached its `maxclients`"
            )),
            None => error::unavailable(format!(
                "{address} closed the connection: if it speaks TLS, write `rediss`; if not, see whether it has reached its `maxclients`"
            )),
        }
    };
    refusal.with_source(ServerMessage::from(error))
}

/// Returns the error of a server that lacks what the scripts need.
pub(super) fn too_old(address: &Address, version: &str) -> Error {
    refuse(format!(
        "{address} is a Redis {version}, and tenure needs 7.0 or later: upgrade it"
    ))
}

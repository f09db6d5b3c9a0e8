//! Where the one Redis is that serves a namespace.

use redis::io::tcp::TcpSettings;
use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
};
use tenure_core::{Error, ErrorKind, Result};

use crate::config::RedisConfig;
use crate::error;

/// The server to connect to, asked anew for every connection.
pub(crate) async fn primary(config: &RedisConfig) -> Result<ConnectionInfo> {
    let host = config
        .hosts
        .first()
        .ok_or_else(|| Error::new(ErrorKind::Config, "no host to connect to"))?;
    info(config, host)
}

fn info(config: &RedisConfig, host: &str) -> Result<ConnectionInfo> {
    let (host, port) = host
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| Error::new(ErrorKind::Config, format!("`{host}` is not `host:port`")))?;
    // An IPv6 address stands in brackets in a URL, and without them in a socket's address.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_lib_name("tenure", env!("CARGO_PKG_VERSION"))
        .set_db(config.database);
    if let Some(user) = &config.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &config.password {
        settings = settings.set_password(password.expose());
    }
    let address = ConnectionAddr::Tcp(host.to_owned(), port);
    Ok(address
        .into_connection_info()
        .map_err(error::from_redis)?
        .set_redis_settings(settings)
        .set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

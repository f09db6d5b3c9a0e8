//! Which server to use, and one new connection to it.

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Executor, PgConnection};
use tenure_core::{Effect, Error, ErrorKind, Result};

use crate::client::within;
use crate::config::{PostgresConfig, SslMode};
use crate::error;
use crate::key::{PROBE, key_of};
use crate::step::{Rows, step};

/// The oldest server with `idle_session_timeout`, on which every lease rests.
const OLDEST: u32 = 140_000;

/// A connection, and how it was made.
pub(crate) struct Connected {
    pub(crate) connection: PgConnection,
    pub(crate) options: PgConnectOptions,
}

fn options(config: &PostgresConfig, (host, port): &(String, u16)) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(*port)
        .ssl_mode(match config.ssl_mode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Allow => PgSslMode::Allow,
            SslMode::Prefer => PgSslMode::Prefer,
            SslMode::Require => PgSslMode::Require,
            SslMode::VerifyCa => PgSslMode::VerifyCa,
            SslMode::VerifyFull => PgSslMode::VerifyFull,
        })
        .application_name(&config.application)
        // A pooler refuses it, and is to be recognised by what it is.
        .extra_float_digits(None)
        // They carry what users store.
        .disable_statement_logging();
    // As for PostgreSQL's own programs. Without any of these it is `anonymous` to sqlx.
    let named = || ["PGUSER", "USER", "LOGNAME"].map(|name| std::env::var(name).ok());
    let user = config.user.clone();
    if let Some(user) = user.or_else(|| named().into_iter().flatten().find(|it| !it.is_empty())) {
        options = options.username(&user);
    }
    if let Some(password) = &config.password {
        options = options.password(password.expose());
    }
    if let Some(database) = &config.database {
        options = options.database(database);
    }
    if let Some(file) = &config.ssl_root {
        options = options.ssl_root_cert(file);
    }
    if let (Some(cert), Some(key)) = (&config.ssl_cert, &config.ssl_key) {
        options = options.ssl_client_cert(cert).ssl_client_key(key);
    }
    options
}

/// Whether two connections of ours are one on the server's side. Asked before anything is set on them: a
/// pooler would hand that to its other clients.
pub(crate) async fn refuse_pooler(one: &mut PgConnection, other: &mut PgConnection) -> Result<()> {
    let mut seen: Option<(i32, i32)> = None;
    for _ in 0..3 {
        let pids = (backend(one).await?, backend(other).await?);
        if pids.0 == pids.1 || seen.is_some_and(|seen| seen != pids) {
            return Err(error::pooled());
        }
        seen = Some(pids);
    }
    Ok(())
}

async fn backend(connection: &mut PgConnection) -> Result<i32> {
    let pid = sqlx::query_scalar("SELECT pg_catalog.pg_backend_pid()").fetch_one(connection);
    pid.await.map_err(error::from_sqlx)
}

/// The first statement on every connection of ours. Where the path of the database or the role names a schema in
/// which others may create functions and operators, theirs would run as our role. `pg_temp` is last, because it is
/// searched first for relations and types where it is not named.
pub(crate) const SEARCH_PATH: &str = "SET search_path = pg_catalog, pg_temp";

/// Sets the path of a connection by [`connect_unset`].
pub(crate) async fn set_search_path(connection: &mut PgConnection) -> Result<()> {
    let set = connection.execute(SEARCH_PATH).await;
    set.map(drop).map_err(error::from_sqlx)
}

/// Connects to the first host that can be written to.
pub(crate) async fn connect(config: &PostgresConfig) -> Result<Connected> {
    let mut connected = connect_unset(config).await?;
    within(
        config.connect_timeout,
        set_search_path(&mut connected.connection),
    )
    .await
    .map_err(|error| error.with_effect(Effect::None))?;
    Ok(connected)
}

/// The same, with nothing set yet: a pooler would hand that to its other clients. Until the path is set, statements
/// must name functions with their schema, and use no operators.
pub(crate) async fn connect_unset(config: &PostgresConfig) -> Result<Connected> {
    let mut first: Option<Error> = None;
    for host in &config.hosts {
        let limit = config.connect_timeout;
        let attempt = tokio::time::timeout(limit, connect_to(config, host)).await;
        let error = match attempt {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error,
            Err(_) => error::no_connection(format!(
                "no connection to PostgreSQL at {} within {limit:?}",
                shown(host)
            )),
        };
        // What somebody has to change tells more than that a host is away.
        if first
            .as_ref()
            .is_none_or(|first| first.kind() == ErrorKind::Unavailable)
        {
            first = Some(error);
        }
    }
    Err(first
        .unwrap_or_else(|| error::config("no host to connect to"))
        .with_effect(Effect::None))
}

/// A host as it is written in URLs.
fn shown((host, port): &(String, u16)) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// A server that does not tell its version is none of the old ones.
fn check_version(version: Option<u32>) -> Result<()> {
    match version {
        Some(version) if version < OLDEST => Err(error::config(format!(
            "this PostgreSQL is of version {}: tenure needs 14 or newer, whose `idle_session_timeout` ends the leases of the dead",
            version / 10_000
        ))),
        _ => Ok(()),
    }
}

async fn connect_to(config: &PostgresConfig, host: &(String, u16)) -> Result<Connected> {
    let options = options(config, host);
    let connection = options.connect().await;
    let mut connection = connection.map_err(|error| error::connecting(&shown(host), error))?;
    check_version(connection.server_version_num())?;
    // Not `transaction_read_only`, which a promotion in the middle of this statement leaves as it was when the
    // server still was a standby: a state that passes would look like a setting that somebody has to change.
    let look = step(
        "SELECT pg_catalog.pg_is_in_recovery() AS standby, pg_catalog.current_setting('default_transaction_read_only')::boolean AS read_only, pg_catalog.current_setting('server_encoding') AS encoding, pg_catalog.hashtextextended($1, 0::bigint) AS probe",
    )
    .with(PROBE);
    let sql = look.sql;
    let rows = look.query.fetch_all(&mut connection).await;
    let rows = Rows {
        sql,
        rows: rows.map_err(error::from_sqlx)?,
    };
    let found = rows.first()?;
    if found.get::<bool>("standby")? {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the PostgreSQL at {} is a standby and read-only: name its primary too, `postgres://a:5432,b:5432/...`",
                shown(host)
            ),
        ));
    }
    if found.get::<bool>("read_only")? {
        return Err(error::config(
            "this PostgreSQL or role is read-only (`default_transaction_read_only`)",
        ));
    }
    let encoding: String = found.get("encoding")?;
    if encoding != "UTF8" {
        return Err(error::config(format!(
            "the database has the encoding {encoding}: names need one in UTF8"
        )));
    }
    if found.get::<i64>("probe")? != key_of(PROBE) {
        return Err(error::config(
            "this server computes other hashes than ours (`hashtextextended`): it runs on a machine of another byte order?",
        ));
    }
    Ok(Connected {
        connection,
        options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_refused() {
        for good in [None, Some(140_000), Some(150_018), Some(180_000)] {
            check_version(good).unwrap();
        }
        for (old, named) in [(130_023, "13"), (90_624, "9")] {
            let error = check_version(Some(old)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(
                error.to_string().contains(&format!("version {named}:")),
                "{error}"
            );
        }
    }
}

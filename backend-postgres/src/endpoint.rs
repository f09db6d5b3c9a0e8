//! Which server to use, and one new connection to it.

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Executor, PgConnection};
use tenure_core::{Effect, Error, ErrorKind, Result};

use crate::client::within;
use crate::config::{PostgresConfig, SslMode};
use crate::error;
use crate::key::{PROBE, key_of};
use crate::pgpass;
use crate::step::{Rows, step};

/// The oldest server with `idle_session_timeout`, on which every lease rests.
const OLDEST: u32 = 140_000;

/// A connection, and how it was made.
pub(crate) struct Connected {
    pub(crate) connection: PgConnection,
    pub(crate) options: PgConnectOptions,
}

/// The user that the URL or the environment names. Without any it is `anonymous` to sqlx.
fn user(config: &PostgresConfig) -> Option<String> {
    // As for PostgreSQL's own programs.
    let named = || ["PGUSER", "USER", "LOGNAME"].map(|name| std::env::var(name).ok());
    let user = config.user.clone();
    user.or_else(|| named().into_iter().flatten().find(|it| !it.is_empty()))
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|it| !it.is_empty())
}

/// The password of the password file, where neither the URL nor the environment has one.
fn filed_password(config: &PostgresConfig, (host, port): &(String, u16)) -> Option<String> {
    if config.password.is_some() || set("PGPASSWORD").is_some() {
        return None;
    }
    let user = user(config)?;
    let database = config.database.clone().or_else(|| set("PGDATABASE"));
    pgpass::find(host, *port, database.as_ref().unwrap_or(&user), &user)
}

fn options(
    config: &PostgresConfig,
    (host, port): &(String, u16),
    filed: Option<&str>,
) -> PgConnectOptions {
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
    if let Some(user) = user(config) {
        options = options.username(&user);
    }
    if let Some(password) = config.password.as_ref().map(|it| it.expose()).or(filed) {
        options = options.password(password);
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

fn check_version(version: Option<u32>) -> Result<()> {
    match version {
        Some(version) if version < OLDEST => Err(error::config(format!(
            "this PostgreSQL is of version {}: tenure needs 14 or newer, whose `idle_session_timeout` ends the leases of the dead",
            version / 10_000
        ))),
        _ => Ok(()),
    }
}

/// What `version()` of servers says that speak PostgreSQL's protocol, or are derived from it, and whose advisory
/// locks or sessions are others: some take an advisory lock and do nothing.
const OTHERS: [&str; 9] = [
    "-yb-",
    "yugabyte",
    "cockroach",
    "greenplum",
    "redshift",
    "materialize",
    "questdb",
    "gauss",
    "cratedb",
];

/// Refuses what does not call itself a PostgreSQL of a version that has `idle_session_timeout`: `text` is the answer
/// of `version()`.
fn check_product(text: &str) -> Result<()> {
    let refuse = || {
        let shown: String = text
            .chars()
            .take(80)
            .filter(|it| !it.is_control())
            .collect();
        error::config(format!(
            "the server calls itself `{shown}`: tenure needs PostgreSQL itself, because other servers that speak its protocol accept advisory locks that exclude nobody, or do not end silent sessions"
        ))
    };
    let lower = text.to_ascii_lowercase();
    let number = text.strip_prefix("PostgreSQL ").ok_or_else(refuse)?;
    if OTHERS.iter().any(|other| lower.contains(other)) {
        return Err(refuse());
    }
    let major: String = number.chars().take_while(char::is_ascii_digit).collect();
    let major: u32 = major.parse().map_err(|_| refuse())?;
    check_version(major.checked_mul(10_000))
}

/// Whether a connection to `host` stays on this machine.
fn is_loopback(host: &str) -> bool {
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost") || host.starts_with('/'),
    }
}

/// Whether the client would give its password to whatever server answers, in the form that this one asks for, and
/// clear text is one. `prefer` and `allow` leave it to the server whether anything is encrypted.
fn risks_password(config: &PostgresConfig, host: &str, filed: Option<&str>) -> bool {
    let optional = matches!(config.ssl_mode, SslMode::Prefer | SslMode::Allow);
    let password = || config.password.is_some() || filed.is_some() || set("PGPASSWORD").is_some();
    optional && !is_loopback(host) && password()
}

async fn connect_to(config: &PostgresConfig, host: &(String, u16)) -> Result<Connected> {
    let filed = filed_password(config, host);
    let mut options = options(config, host, filed.as_deref());
    let encrypts = risks_password(config, &host.0, filed.as_deref());
    if encrypts {
        // The client answers a request for the password in clear text by itself.
        options = options.ssl_mode(PgSslMode::Require);
    }
    let connection = options.connect().await;
    let mut connection = connection.map_err(|error| match &error {
        sqlx::Error::Tls(_) if encrypts => error::no_encryption(&shown(host), error),
        _ => error::connecting(&shown(host), error),
    })?;
    check_version(connection.server_version_num())?;
    let product = sqlx::query_scalar("SELECT pg_catalog.version()").fetch_one(&mut connection);
    let product: String = product.await.map_err(error::from_sqlx)?;
    check_product(&product)?;
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
    fn a_server_that_is_not_postgresql_is_refused() {
        for good in [
            "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14) 12.2.0, 64-bit",
            "PostgreSQL 18beta1 on aarch64-apple-darwin",
            "PostgreSQL 17devel on x86_64-pc-linux-gnu",
            "PostgreSQL 16.4 on aarch64-unknown-linux-gnu, compiled by aarch64-unknown-linux-gnu-gcc (GCC) 9.5.0, 64-bit",
            "PostgreSQL 15.2 (EnterpriseDB Advanced Server 15.2.0) on x86_64-pc-linux-gnu",
        ] {
            check_product(good).unwrap();
        }
        for bad in [
            "CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu, built 2024/05/15, go1.22.2)",
            "PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 17.0.6",
            "PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64-pc-linux-gnu",
            "PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f) on x86_64-pc-linux-gnu",
            "PostgreSQL 9.5.0 on x86_64-unknown-linux-gnu (Materialize v0.97.1)",
            "PostgreSQL 13.14 (Debian 13.14-0+deb11u1) on x86_64-pc-linux-gnu",
            "PostgreSQL 9.6.24 on x86_64-pc-linux-gnu",
            "PostgreSQL",
            "PostgreSQL x",
            "",
        ] {
            let error = check_product(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{bad}");
        }
        let error = check_product("Crate\u{1b}[31mDB 5")
            .unwrap_err()
            .to_string();
        assert!(error.contains("`Crate[31mDB 5`"), "{error}");
    }

    #[test]
    fn a_password_leaves_the_machine_only_over_tls_or_on_demand() {
        let config = |query: &str| {
            let url = format!("postgres://u:p@db.internal/?{query}");
            let url = tenure_core::backend::StoreUrl::parse(&url).unwrap();
            PostgresConfig::from_url(url).unwrap()
        };
        for (query, risks) in [
            ("", true),
            ("sslmode=prefer", true),
            ("sslmode=allow", true),
            ("sslmode=disable", false),
            ("sslmode=require", false),
        ] {
            assert_eq!(
                risks_password(&config(query), "db.internal", None),
                risks,
                "{query}"
            );
        }
        let url = tenure_core::backend::StoreUrl::parse("postgres://u@db.internal/").unwrap();
        let without = PostgresConfig::from_url(url).unwrap();
        assert!(risks_password(&without, "db.internal", Some("filed")));
        for host in [
            "localhost",
            "a.localhost",
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "/run/postgresql",
        ] {
            assert!(
                is_loopback(host) && !risks_password(&config(""), host, None),
                "{host}"
            );
        }
        for host in [
            "db",
            "localhost.example",
            "10.0.0.1",
            "0.0.0.0",
            "::",
            "2001:db8::1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

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

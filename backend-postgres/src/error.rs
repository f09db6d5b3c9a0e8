//! Errors of the client, in core's words.

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tenure_core::{Effect, Error, ErrorKind, LossReason};

pub(crate) fn no_connection(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, what)
}

pub(crate) fn config(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, what)
}

/// Somebody between us and the server hands its connections from one client to the next.
pub(crate) fn pooled() -> Error {
    config(
        "a pooler in transaction or statement mode stands before this PostgreSQL (pgbouncer?): it shares one server connection between clients, and a lock would belong to none of them; connect to the server directly, or use session mode",
    )
}

pub(crate) fn removed_from_line() -> Error {
    Error::lost(LossReason::Revoked)
}

pub(crate) fn held() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the barrier is held already: wait for its release",
    )
}

pub(crate) fn another_count(count: i32) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("those who are there gave another count: {count}"),
    )
}

pub(crate) fn one_too_many() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "one too many: all have entered already, and not all have left; enter again when they have",
    )
}

pub(crate) fn too_many(count: u32, most: u32) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("a barrier for {count} participants; {most} is the most on PostgreSQL"),
    )
}

pub(crate) fn collision(path: &str, other: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "`{path}` and `{other}` have the same 64-bit key, and one session cannot tell them apart: use another name, or another session"
        ),
    )
}

pub(crate) fn unexpected(step: &str, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("unexpected answer to `{step}`: {what}"),
    )
    .with_effect(Effect::Unknown)
}

/// Why the connection is gone after `error`, if it is.
pub(crate) fn ended(error: &sqlx::Error) -> Option<LossReason> {
    let sqlx::Error::Database(database) = error else {
        // An answer that does not fit its column leaves the connection in order.
        return match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Encode(_) => None,
            _ => Some(LossReason::Unreachable),
        };
    };
    let postgres = database.try_downcast_ref::<PgDatabaseError>()?;
    match postgres.severity() {
        PgSeverity::Fatal | PgSeverity::Panic => Some(match postgres.code() {
            // idle_session_timeout, idle_in_transaction_session_timeout
            "57P05" | "25P03" => LossReason::Expired,
            _ => LossReason::Revoked,
        }),
        _ => None,
    }
}

/// What TLS has to say about a broken connection.
fn tls(broken: &std::io::Error) -> Option<&rustls::Error> {
    broken.get_ref()?.downcast_ref()
}

/// There is no schema, and the role cannot change that.
pub(crate) fn no_schema(error: Error) -> Error {
    if error.kind() != ErrorKind::Unauthorized {
        return error;
    }
    Error::new(
        ErrorKind::Unauthorized,
        "this database has no schema `tenure`, and the PostgreSQL role may not create it (it needs CREATE on the database): apply the migration as a role that may, and grant this one what it needs; see \"The schema\" in the documentation",
    )
    .with_source(error)
}

/// Two connections of one store are not on one server.
pub(crate) fn two_servers() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the connections of this store reach different PostgreSQL servers, or the server was restarted meanwhile: the address must stand for one server, and after a failover for the new primary alone",
    )
    .with_effect(Effect::None)
    .retryable(true)
}

/// The schema is of an older version, and the role may not upgrade it.
pub(crate) fn old_schema(version: i32, error: Error) -> Error {
    if error.kind() != ErrorKind::Unauthorized {
        return error;
    }
    Error::new(
        ErrorKind::Unauthorized,
        format!(
            "the schema `tenure` has layout version {version}, and the PostgreSQL role may not upgrade it, for it does not own it: apply the migration as its owner, with which older clients work too; see \"The schema\" in the documentation"
        ),
    )
    .with_source(error)
}

/// An error of the client, in the words of the server or the operating system: its own text would put a
/// preamble before these.
#[derive(Debug)]
struct Said(String);

impl From<sqlx::Error> for Said {
    fn from(error: sqlx::Error) -> Self {
        Self(match &error {
            sqlx::Error::Database(database) => database.message().to_owned(),
            sqlx::Error::Io(why) => why.to_string(),
            sqlx::Error::Tls(why) | sqlx::Error::Configuration(why) => why.to_string(),
            other => other.to_string(),
        })
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

// No source: what the library says below repeats this.
impl std::error::Error for Said {}

/// What became of an attempt to connect to `host`.
pub(crate) fn connecting(host: &str, error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Io(broken) if tls(broken).is_none() => {
            no_connection(format!("no connection to PostgreSQL at {host}"))
                .with_source(Said::from(error))
        }
        _ => from_sqlx(error).at(host),
    }
}

/// A server off this machine offers no TLS, and nobody allowed to go on without.
pub(crate) fn no_encryption(host: &str, error: sqlx::Error) -> Error {
    let why = "the server offers no TLS, and a password is sent over a network only under TLS: enable TLS on the server, or add `sslmode=disable` where the network and the server can be trusted with it";
    Error::new(ErrorKind::Config, why)
        .at(host)
        .with_source(Said::from(error))
}

/// What became of a connection attempt or a statement. A statement that fails is rolled back.
pub(crate) fn from_sqlx(error: sqlx::Error) -> Error {
    let refused = |kind, message: &str| Error::new(kind, message);
    let translated = match &error {
        sqlx::Error::Database(database) => {
            let postgres = database.try_downcast_ref::<PgDatabaseError>();
            refused_by_server(
                database.code().unwrap_or_default().as_ref(),
                postgres.and_then(PgDatabaseError::routine),
                database.message(),
            )
        }
        sqlx::Error::Configuration(_) => refused(
            ErrorKind::Config,
            "the PostgreSQL client refused its settings",
        ),
        sqlx::Error::Tls(_) => refused(
            ErrorKind::Config,
            "no TLS connection to PostgreSQL (see `sslmode` and the certificates)",
        ),
        sqlx::Error::Io(broken) if tls(broken).is_some() => match tls(broken) {
            Some(rustls::Error::AlertReceived(_)) => refused(
                ErrorKind::Unauthorized,
                "PostgreSQL refused our certificate (see `sslcert` and `sslkey`)",
            ),
            Some(rustls::Error::InvalidCertificate(_)) => refused(
                ErrorKind::Unauthorized,
                "the certificate that PostgreSQL shows is not to be trusted (see `sslrootcert`)",
            ),
            _ => refused(ErrorKind::Unavailable, "TLS to PostgreSQL failed"),
        },
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_) => refused(
            ErrorKind::Internal,
            "an answer of PostgreSQL makes no sense",
        ),
        // Whether the request arrived nobody knows.
        _ => refused(
            ErrorKind::Unavailable,
            "the connection to PostgreSQL failed",
        )
        .with_effect(Effect::Unknown),
    };
    translated.with_source(Said::from(error))
}

/// What to make of an answer with this SQLSTATE. What the server `said` follows as the source: in its own
/// language (`lc_messages`), so where one SQLSTATE stands for several things, what tells is the `routine` of
/// the server that said it. Only a pooler names none, and says its English.
fn refused_by_server(code: &str, routine: Option<&str>, said: &str) -> Error {
    let by = |name: &str| routine == Some(name);
    let (kind, message) = match code {
        // The same routine refuses for other reasons: in another language it is a user like any other.
        "28000" if said.contains("certificate") => (
            ErrorKind::Unauthorized,
            "PostgreSQL wants a certificate of its clients (see `sslcert` and `sslkey`)",
        ),
        "22P05" => (
            ErrorKind::Config,
            "names need a database with the encoding UTF8",
        ),
        "28P01" | "28000" => (ErrorKind::Unauthorized, "PostgreSQL refused the login"),
        "42501" => (
            ErrorKind::Unauthorized,
            "the PostgreSQL role lacks a right (see \"Least privilege\" in the documentation)",
        ),
        "3D000" => (ErrorKind::Config, "PostgreSQL refused the connection"),
        // Names of prepared statements are a connection's own, unless somebody shares it.
        "08P01" if said.contains("startup parameter") => return pooled(),
        "42P05" | "26000" => return pooled(),
        "42883" | "42P01" | "3F000" | "42703" => (
            ErrorKind::Config,
            "the schema `tenure` is not as this version needs it: apply the migration",
        ),
        "53200" => (
            ErrorKind::TooLarge,
            "PostgreSQL's lock table is full: raise `max_locks_per_transaction`",
        ),
        "53300" if by("InitializeSessionUserId") => (
            ErrorKind::Unavailable,
            "the PostgreSQL role has as many connections as it may: raise its limit, `ALTER ROLE ... CONNECTION LIMIT`",
        ),
        "53300" if by("CheckMyDatabase") => (
            ErrorKind::Unavailable,
            "the database has as many connections as it may: raise its limit, `ALTER DATABASE ... CONNECTION LIMIT`",
        ),
        "53300" => (
            ErrorKind::Unavailable,
            "PostgreSQL has no connection left: raise `max_connections`",
        ),
        // The statement was rolled back: who was to be told looks by itself.
        "54000" if by("PreCommit_Notify") => (
            ErrorKind::Unavailable,
            "PostgreSQL's queue of notifications is full: some client has executed LISTEN, and stays in a transaction; the server's log names it, `pg_notification_queue_usage()` says how full",
        ),
        "25006" => (
            ErrorKind::Unavailable,
            "this PostgreSQL is read-only: a standby, or `default_transaction_read_only`",
        ),
        "57014" => (
            ErrorKind::Unavailable,
            "PostgreSQL did not finish a step in time (`statement_timeout`), or an operator cancelled it",
        ),
        "55P03" => (
            ErrorKind::Unavailable,
            "a step waited too long for another (`lock_timeout`)",
        ),
        "40001" | "40P01" => (
            ErrorKind::Unavailable,
            "PostgreSQL took a step back for the sake of another",
        ),
        code if ["08", "53", "57"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            (ErrorKind::Unavailable, "PostgreSQL cannot serve now")
        }
        _ => (ErrorKind::Internal, "PostgreSQL refused a step"),
    };
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_out_is_named() {
        // As a server says it whose `lc_messages` are not English.
        for (code, routine, said, kind, hint) in [
            (
                "54000",
                "PreCommit_Notify",
                "zu viele Benachrichtigungen in NOTIFY-Schlange",
                ErrorKind::Unavailable,
                "LISTEN",
            ),
            (
                "54000",
                "_bt_check_third_page",
                "index row size 3000 exceeds",
                ErrorKind::Internal,
                "",
            ),
            (
                "53300",
                "InitializeSessionUserId",
                "zu viele Verbindungen von Rolle \u{bb}app\u{ab}",
                ErrorKind::Unavailable,
                "ALTER ROLE",
            ),
            (
                "53300",
                "CheckMyDatabase",
                "zu viele Verbindungen f\u{fc}r Datenbank \u{bb}shop\u{ab}",
                ErrorKind::Unavailable,
                "ALTER DATABASE",
            ),
            (
                "53300",
                "InitProcess",
                "tut mir leid, schon zu viele Verbindungen",
                ErrorKind::Unavailable,
                "`max_connections`",
            ),
        ] {
            let error = refused_by_server(code, Some(routine), said);
            assert_eq!(error.kind(), kind, "{said}");
            assert!(error.to_string().contains(hint), "{error}");
            assert_eq!(error.is_retryable(), kind == ErrorKind::Unavailable);
            assert_eq!(error.effect(), Effect::None);
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let broken = std::io::Error::other("connection refused");
        let error = connecting("db:5432", sqlx::Error::Io(broken));
        assert_eq!(
            error.chain().to_string(),
            "no connection to PostgreSQL at db:5432: connection refused"
        );
        let refused = from_sqlx(sqlx::Error::Tls("no root".into()));
        assert_eq!(refused.chain().to_string().matches("no root").count(), 1);
    }
}

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

/// What became of a connection attempt or a statement. A statement that fails is rolled back.
pub(crate) fn from_sqlx(error: sqlx::Error) -> Error {
    let refused = |kind, message: String| Error::new(kind, message);
    let translated = match &error {
        sqlx::Error::Database(database) => {
            let said = database.message().to_owned();
            match database.code().unwrap_or_default().as_ref() {
                "28000" if said.contains("certificate") => refused(
                    ErrorKind::Unauthorized,
                    format!(
                        "PostgreSQL wants a certificate of its clients: {said}; see `sslcert` and `sslkey`"
                    ),
                ),
                "22P05" => refused(
                    ErrorKind::Config,
                    format!("names need a database with the encoding UTF8: {said}"),
                ),
                "28P01" | "28000" => refused(
                    ErrorKind::Unauthorized,
                    format!("PostgreSQL refused the user or the password: {said}"),
                ),
                "42501" => refused(
                    ErrorKind::Unauthorized,
                    format!(
                        "the PostgreSQL role lacks a right: {said}; see \"Least privilege\" in the documentation"
                    ),
                ),
                "3D000" => refused(ErrorKind::Config, said),
                // Names of prepared statements are a connection's own, unless somebody shares it.
                "08P01" if said.contains("startup parameter") => pooled(),
                "42P05" | "26000" => pooled(),
                "42883" | "42P01" | "3F000" | "42703" => refused(
                    ErrorKind::Config,
                    format!(
                        "the schema `tenure` is not as this version needs it: {said}; apply the migration"
                    ),
                ),
                "53200" => refused(
                    ErrorKind::TooLarge,
                    "PostgreSQL's lock table is full: raise `max_locks_per_transaction`".into(),
                ),
                "53300" => refused(
                    ErrorKind::Unavailable,
                    "PostgreSQL has no connection left: raise `max_connections`".into(),
                ),
                "25006" => refused(
                    ErrorKind::Unavailable,
                    "this PostgreSQL is read-only: a standby, or `default_transaction_read_only`"
                        .into(),
                ),
                "57014" => refused(
                    ErrorKind::Unavailable,
                    "PostgreSQL did not finish a step in time (`statement_timeout`)".into(),
                ),
                "55P03" => refused(
                    ErrorKind::Unavailable,
                    "a step waited too long for another (`lock_timeout`)".into(),
                ),
                "40001" | "40P01" => refused(ErrorKind::Unavailable, said),
                code if ["08", "53", "57"]
                    .iter()
                    .any(|class| code.starts_with(class)) =>
                {
                    refused(ErrorKind::Unavailable, said)
                }
                _ => refused(
                    ErrorKind::Internal,
                    format!("PostgreSQL refused a step: {said}"),
                ),
            }
        }
        sqlx::Error::Configuration(why) => refused(
            ErrorKind::Config,
            format!("the PostgreSQL client refused its settings: {why}"),
        ),
        sqlx::Error::Tls(why) => refused(
            ErrorKind::Config,
            format!("no TLS connection to PostgreSQL: {why}; see `sslmode` and the certificates"),
        ),
        sqlx::Error::Io(broken) if tls(broken).is_some() => match tls(broken) {
            Some(rustls::Error::AlertReceived(alert)) => refused(
                ErrorKind::Unauthorized,
                format!(
                    "PostgreSQL refused our certificate ({alert:?}); see `sslcert` and `sslkey`"
                ),
            ),
            Some(rustls::Error::InvalidCertificate(why)) => refused(
                ErrorKind::Unauthorized,
                format!(
                    "the certificate that PostgreSQL shows is not to be trusted ({why}); see `sslrootcert`"
                ),
            ),
            _ => refused(ErrorKind::Unavailable, "TLS to PostgreSQL failed".into()),
        },
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_) => refused(
            ErrorKind::Internal,
            "an answer of PostgreSQL makes no sense".into(),
        ),
        // Whether the request arrived nobody knows.
        _ => refused(
            ErrorKind::Unavailable,
            "the connection to PostgreSQL failed".into(),
        )
        .with_effect(Effect::Unknown),
    };
    translated.with_source(error)
}

//! Errors of the client, in core's words.

use redis::{ErrorKind as Redis, RedisError, ServerErrorKind};
use tenure_core::{Effect, Error, ErrorKind, LossReason};

/// The request was sent and not answered: it may have happened.
pub(crate) fn unanswered(waited: std::time::Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("Redis did not answer within {waited:?}"),
    )
    .with_effect(Effect::Unknown)
}

pub(crate) fn no_connection(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, what)
}

/// A step of an older connection, which a newer one has shut out. Nothing happened.
pub(crate) fn stale() -> Error {
    no_connection("the connection that carried this was replaced; nothing happened")
}

pub(crate) fn removed_from_line() -> Error {
    Error::lost(LossReason::Revoked)
}

/// The barrier is held.
pub(crate) fn held() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the barrier is held already: wait for its release",
    )
}

pub(crate) fn another_count(count: u64) -> Error {
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
        format!("a barrier for {count} participants; {most} is the most on Redis"),
    )
}

pub(crate) fn unexpected(script: &str, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("unexpected answer of the script `{script}`: {what}"),
    )
    .with_effect(Effect::Unknown)
}

/// What became of a connection attempt or a request.
pub(crate) fn from_redis(error: RedisError) -> Error {
    let code = error.code().unwrap_or_default().to_owned();
    let refused = |kind, message: &str| Error::new(kind, message.to_owned());
    let translated = match code.as_str() {
        "NOAUTH" | "WRONGPASS" => refused(
            ErrorKind::Unauthorized,
            "Redis refused the user or the password",
        ),
        "NOPERM" => refused(
            ErrorKind::Unauthorized,
            "the Redis user lacks a right: see \"Least privilege\" in the documentation",
        ),
        "OOM" => refused(
            ErrorKind::Unavailable,
            "Redis has reached its `maxmemory`: free memory or raise the limit",
        )
        .retryable(false),
        "READONLY" => refused(ErrorKind::Unavailable, "this Redis is a read-only replica"),
        "LOADING" => refused(ErrorKind::Unavailable, "Redis is still loading its data"),
        "BUSY" => refused(
            ErrorKind::Unavailable,
            "Redis is busy with somebody's script",
        ),
        "MISCONF" => refused(
            ErrorKind::Unavailable,
            "Redis refuses writes because it cannot persist them: see its log",
        ),
        "NOREPLICAS" => refused(
            ErrorKind::Unavailable,
            "Redis refuses writes because too few replicas are connected",
        ),
        "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" => refused(
            ErrorKind::Unavailable,
            "this Redis does not serve the namespace now",
        ),
        "WRONGTYPE" => refused(
            ErrorKind::Conflict,
            "a key of this name has another type: another program uses it",
        ),
        _ => match error.kind() {
            Redis::AuthenticationFailed => refused(
                ErrorKind::Unauthorized,
                "Redis refused the user or the password",
            ),
            Redis::InvalidClientConfig => {
                refused(ErrorKind::Config, "the Redis client refused its settings")
            }
            Redis::Server(ServerErrorKind::ResponseError) => {
                refused(ErrorKind::Internal, "Redis refused the request")
                    .with_effect(Effect::Unknown)
            }
            // The line broke: whether the request arrived nobody knows.
            _ => refused(ErrorKind::Unavailable, "the connection to Redis failed")
                .with_effect(Effect::Unknown),
        },
    };
    translated.with_source(error)
}

/// Whether the answer says that another server has to be asked from now on.
pub(crate) fn means_moved(error: &RedisError) -> bool {
    matches!(
        error.code(),
        Some("READONLY" | "MOVED" | "ASK" | "CLUSTERDOWN" | "MASTERDOWN")
    )
}

//! Translation of the client's and the server's errors into core's.

use std::fmt;
use std::time::Duration;

use redis::{ErrorKind as Redis, RedisError, ServerErrorKind};
use tenure_core::{Effect, Error, ErrorKind};

/// Server errors by their first word: the kind, whether a retry alone can help, and the message. The refused command or script
/// did not start.
const REFUSALS: &[(&[&str], ErrorKind, bool, &str)] = {
    use ErrorKind::{Foreign, Unauthorized, Unavailable};
    &[
        (
            &["NOAUTH"],
            Unauthorized,
            false,
            "Redis wants a password, and was given none: write `redis://:password@host:port`, or `user:password@`",
        ),
        (
            &["WRONGPASS"],
            Unauthorized,
            false,
            "Redis refused the user or the password: correct them in the URL, or where the application sets them",
        ),
        (&["NOPERM"], Unauthorized, false, MISSING_RIGHT),
        (
            &["OOM"],
            Unavailable,
            false,
            "Redis has reached its `maxmemory`: free memory or raise the limit",
        ),
        (
            &["READONLY"],
            Unavailable,
            true,
            "this Redis is a read-only replica: connect to the primary",
        ),
        (
            &["LOADING"],
            Unavailable,
            true,
            "Redis is still loading its data: retry when it has finished",
        ),
        (
            &["BUSY"],
            Unavailable,
            true,
            "Redis is busy with a script of another client: retry when it has ended",
        ),
        (
            &["MISCONF"],
            Unavailable,
            true,
            "Redis refuses writes because it cannot persist them: see its log",
        ),
        (
            &["NOREPLICAS"],
            Unavailable,
            true,
            "Redis refuses writes because too few replicas are connected: connect them, or lower `min-replicas-to-write`",
        ),
        (
            &["ASK", "TRYAGAIN"],
            Unavailable,
            true,
            "the cluster is moving the namespace's slot to another node: retry when it has moved",
        ),
        (
            &["MASTERDOWN", "CLUSTERDOWN", "MOVED"],
            Unavailable,
            true,
            "this Redis does not serve the namespace now: retry after the failover, or check the state of the cluster",
        ),
        (
            &["WRONGTYPE"],
            Foreign,
            false,
            "a key of this name has another type: another program uses it, so use another name",
        ),
    ]
};

/// Refusals of the server's state. Redis checks it until a script's first write, and never after it, so nothing was changed.
const BEFORE_THE_FIRST_WRITE: &[&str] = &["OOM", "MISCONF", "NOREPLICAS", "READONLY"];

const MISSING_RIGHT: &str = "the Redis user lacks a right: see \"Least privilege\" in the documentation";

/// Returns the error of a server that did not answer for `silence`. The request may have taken effect.
pub(crate) fn unanswered(silence: Duration) -> Error {
    unavailable(format!("Redis did not answer within {silence:?}")).with_effect(Effect::Unknown)
}

/// Returns an `Unavailable` error without an effect.
pub(crate) fn unavailable(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

/// Returns the error of a request over a link that was replaced before the request was sent.
pub(crate) fn replaced() -> Error {
    unavailable("the connection was replaced before the request was sent: retry it")
}

/// Returns the error for an answer that no version of the script or command gives.
pub(crate) fn unexpected(origin: &str, problem: impl fmt::Display) -> Error {
    let message = format!("unexpected answer of `{origin}`: {problem} (please report it)");
    Error::new(ErrorKind::Internal, message).with_effect(Effect::Unknown)
}

/// Returns the first word of the server's error.
pub(crate) fn code(error: &RedisError) -> &str {
    let code = error.code().unwrap_or_default();
    // Redis 7.0 has no code of its own for a right that is missing inside a script.
    let detail = error.detail().unwrap_or_default();
    if code == "ERR" && detail.starts_with("The user executing the script can't") {
        return "NOPERM";
    }
    code
}

/// Returns whether the answer means that another server serves the namespace. `ASK` does not: the present owner serves the
/// slot until all of it has moved.
pub(crate) fn means_moved(error: &RedisError) -> bool {
    matches!(code(error), "READONLY" | "MOVED" | "CLUSTERDOWN" | "MASTERDOWN")
}

/// Translates the error of a connection attempt or a command.
pub(crate) fn from_redis(error: RedisError) -> Error {
    let code = code(&error);
    let known = REFUSALS.iter().find(|(codes, ..)| codes.contains(&code));
    let translated = match (known, error.kind()) {
        (Some((_, kind, retryable, message)), _) => {
            // A script fails in the middle with the code of the command that failed: earlier ones have had their effect.
            let effect = if is_inside_script(&error) && !BEFORE_THE_FIRST_WRITE.contains(&code) {
                Effect::Unknown
            } else {
                Effect::None
            };
            Error::new(*kind, *message).retryable(*retryable).with_effect(effect)
        }
        (None, Redis::AuthenticationFailed) => Error::new(
            ErrorKind::Unauthorized,
            "Redis refused the user or the password: correct them",
        ),
        (None, Redis::InvalidClientConfig) => Error::new(ErrorKind::Config, "the Redis client refused its settings"),
        (None, Redis::Server(ServerErrorKind::ResponseError)) => {
            Error::new(ErrorKind::Internal, "Redis refused the request (please report it)").with_effect(Effect::Unknown)
        }
        // The connection broke: the request may or may not have arrived.
        _ => {
            unavailable("the connection to Redis failed: check the server and the network").with_effect(Effect::Unknown)
        }
    };
    translated.with_source(ServerMessage::from(error))
}

/// Translates the error of a script with this source. Redis reports the line of a refused command, not the command.
pub(crate) fn from_script(error: RedisError, source: &str) -> Error {
    let command = (code(&error) == "NOPERM")
        .then(|| refused_command(&error, source))
        .flatten();
    match command {
        None => from_redis(error),
        Some(command) => Error::new(
            ErrorKind::Unauthorized,
            format!(
                "the Redis user lacks the right to `{}`, or to its key or channel: see \"Least privilege\" in the \
                 documentation",
                command.to_ascii_lowercase()
            ),
        )
        .with_effect(Effect::Unknown)
        .with_source(ServerMessage::from(error)),
    }
}

/// Returns whether a command inside a script failed.
fn is_inside_script(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("script: "))
}

/// Returns the command in the line of `source` that the server names. Scripts have at most one call a line.
fn refused_command<'a>(error: &RedisError, source: &'a str) -> Option<&'a str> {
    let (_, rest) = error.detail()?.split_once("user_script:")?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let line = source.lines().nth(rest[..end].parse::<usize>().ok()?.checked_sub(1)?)?;
    let call = line
        .split_once("redis.call('")
        .or_else(|| line.split_once("redis.pcall('"))?;
    call.1.split('\'').next()
}

/// An error in the words of the server or the operating system. The client's own text would add its name for the error.
#[derive(Debug)]
pub(crate) struct ServerMessage(String);

impl From<RedisError> for ServerMessage {
    fn from(error: RedisError) -> Self {
        let text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            (Some(text), None) | (None, Some(text)) => text.to_owned(),
            (None, None) => {
                let text = error.to_string();
                let kind = format!(" - {:?}", error.kind());
                text.strip_suffix(&*kind).unwrap_or(&text).to_owned()
            }
        };
        // A server that does not know a command repeats its arguments. Those of a login are the user and the password.
        let (text, _) = text.split_once(", with args").unwrap_or((&text, ""));
        Self(text.to_owned())
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServerMessage {}

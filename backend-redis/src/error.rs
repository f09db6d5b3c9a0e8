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

/// A failure of one who waits already: whatever became of this request, the place that an earlier one
/// took is there, and has to be withdrawn.
pub(crate) fn of_one_who_waits(error: Error) -> Error {
    error.with_effect(Effect::Unknown)
}

pub(crate) fn removed_from_line() -> Error {
    Error::lost(LossReason::Revoked)
}

/// What stands under a lock's name is no lock that could be shared.
pub(crate) fn foreign(what: &str) -> Error {
    Error::new(
        ErrorKind::Foreign,
        match what {
            "hash" => {
                "the key of this name is a hash: a lock of Redisson, which cannot be shared with those that are set with `SET NX PX`; use another name"
            }
            _ => "the key of this name is no string, hence no lock: another program uses it",
        },
    )
}

/// The value of an item is gone. The rest of it has been removed, if it was `taken`.
pub(crate) fn damaged_item(key: &str, place: &str, taken: bool) -> Error {
    let rest = match taken {
        true => "the rest of this item was removed, the others are untouched",
        false => "the item is removed when it is dequeued, the others are untouched",
    };
    Error::new(
        ErrorKind::Foreign,
        format!(
            "the value of the item {place:?} is gone from {key:?}, somebody has deleted it: {rest}"
        ),
    )
    // A batch has other items, which go back.
    .with_effect(Effect::Unknown)
}

/// What the leader stands for is gone.
pub(crate) fn damaged_leader(key: &str, field: &str) -> Error {
    Error::new(
        ErrorKind::Foreign,
        format!(
            "somebody leads, but the value is gone from {key:?} (field {field:?}), somebody has deleted it: it is there again when the leader proclaims one"
        ),
    )
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

/// The first word of a server's refusal. Before Redis 7 that of a command in a script is hidden in
/// the script's own error.
pub(crate) fn code(error: &RedisError) -> &str {
    const HIDDEN: &[&str] = &[
        "READONLY",
        "NOPERM",
        "OOM",
        "MISCONF",
        "NOREPLICAS",
        "CLUSTERDOWN",
        "WRONGTYPE",
    ];
    let code = error.code().unwrap_or_default();
    let detail = error.detail().unwrap_or_default();
    if code != "ERR" || !detail.contains("user_script") {
        return code;
    }
    // In Redis 7.0 without a word of its own.
    if detail.starts_with("The user executing the script can't") {
        return "NOPERM";
    }
    let hidden = HIDDEN.iter().find(|word| {
        detail.split('-').skip(1).any(|rest| {
            rest.strip_prefix(**word)
                .is_some_and(|rest| rest.starts_with(' '))
        })
    });
    hidden.unwrap_or(&code)
}

/// An error of the client, in the words of the server or the operating system: its own text adds what its
/// library calls it.
#[derive(Debug)]
pub(crate) struct Said {
    text: String,
    error: RedisError,
}

impl From<RedisError> for Said {
    fn from(error: RedisError) -> Self {
        let text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            (Some(code), None) => code.to_owned(),
            // The server's own word comes first here, too.
            (None, Some(detail)) => detail.to_owned(),
            (None, None) => {
                let text = error.to_string();
                let kind = format!(" - {:?}", error.kind());
                text.strip_suffix(&*kind).unwrap_or(&text).to_owned()
            }
        };
        Self { text, error }
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

// No source: what the library says below repeats this.
impl std::error::Error for Said {}

/// What became of a script. Redis names the line of a refused command, and not the command.
pub(crate) fn from_script(error: RedisError, source: &str) -> Error {
    let refused = (code(&error) == "NOPERM").then(|| {
        let detail = error.detail().unwrap_or_default();
        let line = detail.split("user_script:").nth(1).unwrap_or_default();
        let line: String = line.chars().take_while(char::is_ascii_digit).collect();
        let line = source
            .lines()
            .nth(line.parse::<usize>().ok()?.checked_sub(1)?)?;
        let command = line.split("redis.call('").nth(1)?.split('\'').next()?;
        Some(command.to_owned())
    });
    match refused.flatten() {
        None => from_redis(error),
        Some(command) => Error::new(
            ErrorKind::Unauthorized,
            format!(
                "the Redis user lacks the right to `{command}`, or to its key or channel: see \"Least privilege\" in the documentation"
            ),
        )
        .with_effect(Effect::Unknown)
        .with_source(Said::from(error)),
    }
}

/// What became of a connection attempt or a request.
pub(crate) fn from_redis(error: RedisError) -> Error {
    let code = code(&error).to_owned();
    let refused = |kind, message: &str| Error::new(kind, message.to_owned());
    let translated = match code.as_str() {
        "NOAUTH" => refused(
            ErrorKind::Unauthorized,
            "Redis wants a password, and was given none: write `redis://:password@host:port`, or `user:password@`",
        ),
        "WRONGPASS" => refused(
            ErrorKind::Unauthorized,
            "Redis refused the user or the password",
        ),
        "NOPERM" => refused(
            ErrorKind::Unauthorized,
            "the Redis user lacks a right: see \"Least privilege\" in the documentation",
        )
        // Steps before it in the same script may have had theirs.
        .with_effect(match error.to_string().contains("script") {
            true => Effect::Unknown,
            false => Effect::None,
        }),
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
        "ASK" | "TRYAGAIN" => refused(
            ErrorKind::Unavailable,
            "the cluster is moving the namespace's slot to another node; nothing happened",
        ),
        "MASTERDOWN" | "CLUSTERDOWN" | "MOVED" => refused(
            ErrorKind::Unavailable,
            "this Redis does not serve the namespace now; nothing happened",
        ),
        "WRONGTYPE" => refused(
            ErrorKind::Foreign,
            "a key of this name has another type: another program uses it, so use another name",
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
    translated.with_source(Said::from(error))
}

/// Whether a step was refused because the cluster moves its slot to another node.
pub(crate) fn is_moving(error: &Error) -> bool {
    let source = std::error::Error::source(error);
    let said = source.and_then(|source| source.downcast_ref::<Said>());
    said.is_some_and(|said| matches!(code(&said.error), "ASK" | "TRYAGAIN"))
}

/// Whether the answer says that another server has to be asked from now on. Not so `ASK`: until the
/// slot has moved as a whole, its present owner is the one to ask.
pub(crate) fn means_moved(error: &RedisError) -> bool {
    matches!(
        code(error),
        "READONLY" | "MOVED" | "CLUSTERDOWN" | "MASTERDOWN"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::Value;

    fn server(line: &str) -> RedisError {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
        value.and_then(Value::extract_error).unwrap_err()
    }

    #[test]
    fn refusals_within_scripts() {
        for (line, expected) in [
            (
                "READONLY You can't write against a read only replica.",
                "READONLY",
            ),
            ("ASK 3999 127.0.0.1:6381", "ASK"),
            (
                "ERR Error running script (call to f_1): @user_script:7: @user_script: 7: -READONLY You can't write against a read only replica.",
                "READONLY",
            ),
            (
                "ERR Error running script (call to f_1): @user_script:7: x-OOMPH",
                "ERR",
            ),
            ("ERR unknown command 'FOO', with args: '-READONLY '", "ERR"),
        ] {
            assert_eq!(code(&server(line)), expected, "{line}");
        }
    }

    #[test]
    fn the_words_of_the_library_are_left_out() {
        for (error, said) in [
            (server("WRONGPASS no such user"), "WRONGPASS no such user"),
            (server("OOM no memory"), "OOM no memory"),
            (server("ERR what?"), "ERR what?"),
            (
                RedisError::from((
                    Redis::AuthenticationFailed,
                    "Password authentication failed",
                )),
                "Password authentication failed",
            ),
            (
                RedisError::from((Redis::Client, "A client error", "no more ids".to_owned())),
                "no more ids",
            ),
            (
                RedisError::from(std::io::Error::other("broken pipe")),
                "broken pipe",
            ),
        ] {
            let raw = error.to_string();
            assert_eq!(Said::from(error).to_string(), said, "{raw}");
        }
    }

    #[test]
    fn a_slot_that_moves_is_told_from_one_that_has_moved() {
        for (line, moving) in [
            ("ASK 1 a:1", true),
            ("TRYAGAIN x", true),
            ("MOVED 1 a:1", false),
        ] {
            assert_eq!(is_moving(&from_redis(server(line))), moving, "{line}");
        }
    }

    #[test]
    fn what_certainly_did_not_happen() {
        for line in [
            "MOVED 1 a:1",
            "ASK 1 a:1",
            "TRYAGAIN x",
            "CLUSTERDOWN x",
            "READONLY x",
            "LOADING x",
            "NOREPLICAS x",
            "MISCONF x",
        ] {
            let error = from_redis(server(line));
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{line}");
            assert_eq!(error.effect(), Effect::None, "{line}");
            assert!(error.is_retryable(), "{line}");
        }
        // Until somebody makes room.
        let full = from_redis(server("OOM x"));
        assert_eq!(full.effect(), Effect::None);
        assert!(!full.is_retryable());
        assert!(!from_redis(server("WRONGPASS x")).is_retryable());
        assert_eq!(from_redis(server("ERR x")).effect(), Effect::Unknown);
    }
}

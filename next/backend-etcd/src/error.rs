//! Translation of the client's and the server's errors into core's.
//!
//! The gRPC code alone does not tell whether a request reached the server: a refused connection and a broken one are both
//! `Unavailable`. Only a connect error in the chain of sources proves that nothing was sent.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use etcd_client::Error as ClientError;
use tenure_core::{Effect, Error, ErrorKind, LossReason};
use tonic::{Code, Status};

/// Server errors by their code and a part of their text: the kind, whether a retry alone can help, the effect, and the message.
const REFUSALS: &[(Code, &str, ErrorKind, bool, Effect, &str)] = {
    use ErrorKind::{Config, Conflict, Internal, TooLarge, Unauthorized, Unavailable};
    const ABOVE_LIMIT: &str = "above etcd's limit for one request (`--max-request-bytes`, `--max-txn-ops`)";
    const TOKEN_EXPIRED: &str = "the authentication token has expired";
    &[
        (
            Code::InvalidArgument,
            "too large",
            TooLarge,
            false,
            Effect::None,
            ABOVE_LIMIT,
        ),
        (
            Code::InvalidArgument,
            "too many operations",
            TooLarge,
            false,
            Effect::None,
            ABOVE_LIMIT,
        ),
        (
            Code::ResourceExhausted,
            "too large",
            TooLarge,
            false,
            Effect::None,
            ABOVE_LIMIT,
        ),
        (
            Code::ResourceExhausted,
            "larger than max",
            TooLarge,
            false,
            Effect::None,
            ABOVE_LIMIT,
        ),
        // Requests that make room pass while the alarm is raised. Waiting does not help.
        (
            Code::ResourceExhausted,
            "space exceeded",
            Unavailable,
            false,
            Effect::Unknown,
            "etcd is out of space (alarm NOSPACE): compact and defragment it, then disarm the alarm",
        ),
        (
            Code::InvalidArgument,
            "duplicate key",
            Internal,
            false,
            Effect::None,
            "two operations of one transaction write the same key (please report it)",
        ),
        (
            Code::InvalidArgument,
            "authentication failed",
            Unauthorized,
            false,
            Effect::None,
            "etcd refused the user or the password: correct them in the URL, or where the application sets them",
        ),
        (
            Code::InvalidArgument,
            "user name is empty",
            Unauthorized,
            false,
            Effect::None,
            "etcd wants a user and a password, and was given none: write `user:password@` into the URL, or use a client \
             certificate",
        ),
        (
            Code::InvalidArgument,
            "invalid auth token",
            Unavailable,
            true,
            Effect::None,
            TOKEN_EXPIRED,
        ),
        (
            Code::InvalidArgument,
            "revision of auth store is old",
            Unavailable,
            true,
            Effect::None,
            TOKEN_EXPIRED,
        ),
        (
            Code::Unauthenticated,
            "",
            Unavailable,
            true,
            Effect::None,
            TOKEN_EXPIRED,
        ),
        (
            Code::FailedPrecondition,
            "authentication is not enabled",
            Config,
            false,
            Effect::None,
            "the URL has a user, but this etcd has authentication switched off",
        ),
        (
            Code::PermissionDenied,
            "",
            Unauthorized,
            false,
            Effect::None,
            "the etcd user lacks a right: grant its role `readwrite` on the namespace's prefix",
        ),
        // A read at a revision that is compacted, or that a restored store does not have.
        (
            Code::OutOfRange,
            "required revision",
            Conflict,
            false,
            Effect::None,
            "that revision cannot be read any more: read the present one",
        ),
        // The client refuses the answer; the server has carried the request out.
        (
            Code::OutOfRange,
            "message length too large",
            TooLarge,
            false,
            Effect::Unknown,
            "etcd's answer is larger than its client accepts: ask for less at once",
        ),
        (
            Code::OutOfRange,
            "TTL",
            Config,
            false,
            Effect::None,
            "above etcd's longest TTL, 9,000,000,000 s",
        ),
        // An HTTP 404 too: another server has the port, or a proxy does not know the path.
        (
            Code::Unimplemented,
            "",
            Config,
            false,
            Effect::None,
            "the server at this address has no API of etcd: name the address of an etcd of version 3.4 or later",
        ),
    ]
};

/// Returns whether the request was certainly not sent, because there was no connection.
pub(crate) fn is_unsent(error: &ClientError) -> bool {
    chain(error).any(|source| source.is::<tonic::ConnectError>())
}

/// Returns whether the connection failed, rather than the request.
pub(crate) fn is_connection(error: &ClientError) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    match error {
        ClientError::GRpcStatus(status) => {
            matches!(
                status.code(),
                Unavailable | Unknown | Cancelled | DeadlineExceeded | Internal
            )
        }
        ClientError::TransportError(_)
        | ClientError::IoError(_)
        | ClientError::WatchError(_)
        | ClientError::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

/// Returns whether the error is the server's answer, or was made of it, so that the request cannot arrive any more: a full etcd may
/// carry a request out and still refuse it, and the client may refuse an answer that is too long.
pub(crate) fn is_answer(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unavailable => !error.is_retryable(),
        kind => kind == ErrorKind::TooLarge,
    }
}

/// Returns whether a watch was refused because the token of its connection has expired.
pub(crate) fn is_stale_token(reason: &str) -> bool {
    reason.contains("invalid auth token") || reason.contains("revision of auth store is old")
}

/// Returns the error of a member that did not answer for `silence`. The request may have taken effect.
pub(crate) fn unanswered(silence: Duration) -> Error {
    let message = format!("etcd did not answer within {silence:?}");
    Error::new(ErrorKind::Unavailable, message).with_effect(Effect::Unknown)
}

/// Returns the error of an answer whose form no request of this crate expects.
pub(crate) fn unexpected(origin: &str) -> Error {
    let message = format!("unexpected answer of etcd to `{origin}` (please report it)");
    Error::new(ErrorKind::Internal, message).with_effect(Effect::Unknown)
}

/// Returns the error of a request or a session that has ended in the store.
pub(crate) fn revoked() -> Error {
    Error::lost(LossReason::Revoked)
}

/// Returns the error of a task whose runtime has ended.
pub(crate) fn runtime_ended(error: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Internal, "the runtime of the connection has ended").with_source(error)
}

/// Translates the error of a connection attempt or a request.
pub(crate) fn from_client(error: ClientError) -> Error {
    if let Some(refusal) = tls_refusal(&error) {
        let message =
            format!("TLS refused the connection ({refusal}): check `ca`, `cert`, `key` and the server's name");
        return Error::new(ErrorKind::Unauthorized, message);
    }
    let source = ServerMessage::from(&error);
    if is_unsent(&error) {
        return Error::new(ErrorKind::Unavailable, "etcd cannot be reached").with_source(source);
    }
    let broken = || Error::new(ErrorKind::Unavailable, "the connection to etcd failed").with_effect(Effect::Unknown);
    let translated = match &error {
        ClientError::GRpcStatus(status) => from_status(status),
        ClientError::LeaseKeepAliveError(text) if text.contains("not found") => revoked(),
        ClientError::TransportError(_)
        | ClientError::IoError(_)
        | ClientError::WatchError(_)
        | ClientError::LeaseKeepAliveError(_) => broken(),
        ClientError::InvalidArgs(_) | ClientError::InvalidUri(_) | ClientError::EndpointError(_) => {
            Error::new(ErrorKind::Config, "the etcd client refused its settings")
        }
        _ => Error::new(ErrorKind::Internal, "the etcd client failed").with_effect(Effect::Unknown),
    };
    translated.with_source(source)
}

fn from_status(status: &Status) -> Error {
    let (code, text) = (status.code(), status.message());
    if code == Code::NotFound && text.contains("lease not found") {
        return revoked();
    }
    let known = REFUSALS.iter().find(|row| row.0 == code && text.contains(row.1));
    match (known, code) {
        (Some((_, _, kind, retryable, effect, message)), _) => {
            Error::new(*kind, *message).retryable(*retryable).with_effect(*effect)
        }
        // etcd has no error of the code `Internal`: a connection that was reset becomes one.
        (
            None,
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal,
        ) => Error::new(
            ErrorKind::Unavailable,
            "etcd did not carry the request out, or its answer was lost",
        )
        .with_effect(Effect::Unknown),
        _ => {
            Error::new(ErrorKind::Internal, "unexpected error of etcd (please report it)").with_effect(Effect::Unknown)
        }
    }
}

fn chain(error: &ClientError) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: Option<&(dyn std::error::Error + 'static)> = match error {
        ClientError::GRpcStatus(status) => status.source(),
        ClientError::TransportError(error) => Some(error),
        ClientError::IoError(error) => Some(error),
        _ => None,
    };
    std::iter::successors(first, |error| (*error).source())
}

/// Returns the refusal of the TLS layer, which is final whatever the code.
fn tls_refusal(error: &ClientError) -> Option<String> {
    chain(error)
        .map(ToString::to_string)
        .find(|text| text.contains("invalid peer certificate") || text.contains("received fatal alert"))
}

/// An error in the words of the server or the operating system. No type of the client leaves this crate.
#[derive(Debug)]
pub(crate) struct ServerMessage(String);

impl From<&ClientError> for ServerMessage {
    fn from(error: &ClientError) -> Self {
        let text = match error {
            ClientError::GRpcStatus(status) => status.message().to_owned(),
            other => other.to_string(),
        };
        // The last error of the chain is the cause.
        Self(match chain(error).last().map(ToString::to_string) {
            Some(cause) if cause != text => format!("{text}: {cause}"),
            _ => text,
        })
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServerMessage {}

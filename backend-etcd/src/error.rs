//! What etcd and its client say, in core's words.
//!
//! The gRPC code alone does not tell whether a request reached the server: a refused connection
//! and an HTTP/2 keepalive that fired in mid-request are both `Unavailable`. Only a connect error
//! in the chain of sources proves that nothing was sent. (Every row of the table below was
//! produced on a real server: see docs/etcd.md.)

use std::error::Error as _;

use etcd_client::Error as ClientError;
use tenure_core::{Effect, Error, ErrorKind, LossReason};
use tonic::Code;

/// Whether the request certainly never left, because there was no connection.
pub(crate) fn never_sent(error: &ClientError) -> bool {
    chain(error).any(|source| source.is::<tonic::ConnectError>())
}

/// Whether the connection, rather than the request, is what failed.
pub(crate) fn is_connection(error: &ClientError) -> bool {
    match error {
        ClientError::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Internal
        ),
        ClientError::TransportError(_)
        | ClientError::IoError(_)
        | ClientError::WatchError(_)
        | ClientError::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

/// Whether the token that this connection was opened with has expired.
pub(crate) fn is_stale_token(reason: &str) -> bool {
    reason.contains("invalid auth token") || reason.contains("revision of auth store is old")
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

/// What the TLS layer says when it refuses the other side; final, whatever the code.
fn tls_refusal(error: &ClientError) -> Option<String> {
    chain(error).map(ToString::to_string).find(|text| {
        text.contains("invalid peer certificate") || text.contains("received fatal alert")
    })
}

pub(crate) fn lease_gone() -> Error {
    Error::lost(LossReason::Revoked)
}

/// The answer came from a store that has lost what this client knew of it.
pub(crate) fn history_lost() -> Error {
    Error::lost(LossReason::Revoked).with_effect(Effect::Unknown)
}

pub(crate) fn from_client(error: ClientError) -> Error {
    if let Some(refusal) = tls_refusal(&error) {
        return Error::new(
            ErrorKind::Unauthorized,
            format!(
                "TLS refused the connection ({refusal}): check `ca`, `cert`, `key` and the server's name"
            ),
        );
    }
    if never_sent(&error) {
        return Error::new(ErrorKind::Unavailable, "etcd cannot be reached")
            .with_source(Said::from(&error));
    }
    let unknown = |message: &str| {
        Error::new(ErrorKind::Unavailable, message)
            .with_effect(Effect::Unknown)
            .with_source(Said::from(&error))
    };
    let status = match &error {
        ClientError::GRpcStatus(status) => status,
        ClientError::LeaseKeepAliveError(text) if text.contains("not found") => {
            return lease_gone();
        }
        ClientError::TransportError(_)
        | ClientError::IoError(_)
        | ClientError::WatchError(_)
        | ClientError::LeaseKeepAliveError(_) => return unknown("the connection to etcd broke"),
        ClientError::InvalidArgs(_)
        | ClientError::InvalidUri(_)
        | ClientError::EndpointError(_) => {
            return Error::new(ErrorKind::Config, "etcd's client refuses the options")
                .with_source(Said::from(&error));
        }
        _ => {
            return Error::new(ErrorKind::Internal, "etcd's client failed")
                .with_source(Said::from(&error))
                .with_effect(Effect::Unknown);
        }
    };
    let said = status.message();
    let new = |kind, message: &str| Error::new(kind, message).with_source(Said(said.to_owned()));
    match status.code() {
        Code::NotFound if said.contains("lease not found") => lease_gone(),
        Code::InvalidArgument | Code::ResourceExhausted
            if said.contains("too large")
                || said.contains("larger than max")
                || said.contains("too many operations") =>
        {
            new(
                ErrorKind::TooLarge,
                "above etcd's limit for one request (--max-request-bytes, --max-txn-ops)",
            )
        }
        Code::ResourceExhausted if said.contains("space exceeded") => {
            // Only requests that make room pass while the alarm is on; waiting does not help.
            new(
                ErrorKind::Unavailable,
                "etcd is out of space (NOSPACE alarm): compact, defragment, disarm the alarm",
            )
            .with_effect(Effect::Unknown)
            .retryable(false)
        }
        Code::InvalidArgument if said.contains("duplicate key") => new(
            ErrorKind::Internal,
            "two parts of one request change the same key",
        ),
        Code::InvalidArgument if said.contains("authentication failed") => {
            new(ErrorKind::Unauthorized, "wrong user or password")
        }
        Code::InvalidArgument if said.contains("user name is empty") => new(
            ErrorKind::Unauthorized,
            "this etcd wants a user and a password: write them into the URL, or use a client certificate",
        ),
        Code::InvalidArgument if is_stale_token(said) => {
            new(ErrorKind::Unavailable, "the auth token has expired")
        }
        Code::FailedPrecondition if said.contains("authentication is not enabled") => new(
            ErrorKind::Config,
            "the URL has a user, but this etcd has authentication switched off",
        ),
        Code::Unauthenticated => new(ErrorKind::Unavailable, "the auth token has expired"),
        Code::PermissionDenied => new(
            ErrorKind::Unauthorized,
            "this user may not do that: grant its role `readwrite` on the namespace's prefix",
        ),
        // Of a read at a revision that is compacted, or not there (after a restore).
        Code::OutOfRange if said.contains("required revision") => new(
            ErrorKind::Conflict,
            "that revision cannot be read any more: read anew",
        ),
        // By the client: the server has done what it was asked.
        Code::OutOfRange if said.contains("message length too large") => new(
            ErrorKind::TooLarge,
            "etcd's answer is larger than its client takes: ask for less at a time",
        )
        .with_effect(Effect::Unknown),
        // Also what becomes of an HTTP 404: another server has the port, or a proxy does not know the path.
        Code::Unimplemented => new(
            ErrorKind::Config,
            "the server at this address does not offer etcd's API: name the address of an etcd of version 3.4 or later",
        ),
        Code::OutOfRange if said.contains("TTL") => new(
            ErrorKind::Config,
            "above etcd's greatest TTL, 9,000,000,000 s",
        ),
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted => unknown("etcd did not answer as it should"),
        // etcd has no error of this code: it is what becomes of a connection that was reset.
        Code::Internal => unknown("the connection to etcd broke"),
        _ => new(ErrorKind::Internal, "etcd answered what nobody expected")
            .with_effect(Effect::Unknown),
    }
}

/// What the server or the client said, without the client's own error type: no type of
/// etcd-client leaves this crate, and only the text is kept.
#[derive(Debug)]
struct Said(String);

impl From<&ClientError> for Said {
    fn from(error: &ClientError) -> Self {
        let text = match error {
            ClientError::GRpcStatus(status) => status.message().to_owned(),
            other => other.to_string(),
        };
        // The last link of the chain says what really happened.
        Self(match chain(error).last().map(ToString::to_string) {
            Some(root) if root != text => format!("{text}: {root}"),
            _ => text,
        })
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

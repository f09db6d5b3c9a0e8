//! The library's error type.

use std::error::Error as StdError;
use std::fmt;

/// A result with tenure's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The session or the holding ended before or during the operation.
    Lost,
    /// The wait exceeded its time limit.
    TimedOut,
    /// The state in the store does not permit the operation.
    Conflict,
    /// The store's entry under this name was not written by tenure, or another program changed it.
    Foreign,
    /// A commit was sent, and its outcome could not be determined.
    CommitUnknown,
    /// A name or namespace that every store refuses.
    InvalidName,
    /// A value, a number of entries or a transaction above a limit.
    TooLarge,
    /// The store or its backend does not support the operation.
    Unsupported,
    /// The credentials are wrong, or a permission is missing.
    Unauthorized,
    /// The store did not answer, or reported that it cannot serve requests now.
    Unavailable,
    /// An invalid URL or option.
    Config,
    /// A broken invariant: please report it.
    Internal,
}

/// The known effect of a failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The operation did not happen and never will.
    None,
    /// The operation may have happened, or may still happen.
    Unknown,
    /// The operation happened, although it failed.
    Applied,
}

/// The reason why a session or a holding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease expired without a renewal: the process was paused or starved.
    Expired,
    /// The store ended the lease or the holding early: an operator or an administrator's tool revoked it, or the store lost it
    /// in a restart or a failover.
    Revoked,
    /// This process closed the session.
    Closed,
    /// This process detached the session, so that another process can resume it.
    Detached,
    /// The lease expired while the store did not answer.
    Unreachable,
    /// The lease expired while the store refused to renew it: a permission or a password was changed.
    Refused,
    /// The library or the backend failed: the task that renews the lease panicked.
    Failed,
}

impl LossReason {
    const fn cause(self) -> &'static str {
        match self {
            Self::Expired => "the lease expired before it was renewed",
            Self::Revoked => {
                "the store ended it early (an operator revoked it, or the store lost it in a restart or a failover)"
            }
            Self::Closed => "this process closed the session",
            Self::Detached => "this process detached the session",
            Self::Unreachable => "the lease expired while the store did not answer",
            Self::Refused => "the lease expired while the store refused to renew it",
            Self::Failed => "the task that renews the lease panicked (please report it)",
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Closed => "closed",
            Self::Detached => "detached",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Failed => "failed",
        })
    }
}

/// An error: what failed, in which operation and under which name, and the remedy.
///
/// `Display` shows only this error's own text; the causes are in its [source](StdError::source). [`chain`](Self::chain) shows
/// both, as does `Debug`. No text contains a secret or a payload.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    effect: Effect,
    retryable: bool,
    loss: Option<LossReason>,
    needs_new_session: bool,
    operation: Option<&'static str>,
    name: Option<String>,
    message: String,
    source: Option<Source>,
}

impl Error {
    /// Creates an error of `kind`; `message` states the failure and the remedy.
    ///
    /// The effect is [`Effect::None`] unless [`with_effect`](Self::with_effect) sets it. `Unavailable` is retryable, every
    /// other kind is final, unless [`retryable`](Self::retryable) sets it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            effect: Effect::None,
            retryable: kind == ErrorKind::Unavailable,
            loss: None,
            needs_new_session: false,
            operation: None,
            name: None,
            message: message.into(),
            source: None,
        }))
    }

    /// Creates the `Lost` error of a holder: its holding or its session ended for `reason`.
    pub fn lost(reason: LossReason) -> Self {
        Self::lost_with(reason, "another client may hold this now, so stop the work")
    }

    /// Creates the `Lost` error of a waiter or a request without a holding.
    pub(crate) fn lost_waiting(reason: LossReason) -> Self {
        Self::lost_with(reason, "continue in a new session")
    }

    fn lost_with(reason: LossReason, remedy: &str) -> Self {
        let remedy = match reason {
            LossReason::Closed => "open a new one",
            LossReason::Detached => "resume it, or open a new one",
            _ => remedy,
        };
        let mut error = Self::new(ErrorKind::Lost, format!("{}: {remedy}", reason.cause()));
        error.0.loss = Some(reason);
        error
    }

    /// Creates the error of an operation that the store or its backend does not support, such as `detaching a session`.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unsupported, format!("this store does not support {what}"))
    }

    pub(crate) fn invalid_name(name: &str, message: String) -> Self {
        let mut shown: String = name.chars().take(40).collect();
        if shown.len() < name.len() {
            shown.push('…');
        }
        Self::new(ErrorKind::InvalidName, message).on(shown)
    }

    /// Sets the operation, unless an inner layer already set it.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Sets the name of the operation's object, unless it is already set.
    #[must_use]
    pub fn on(mut self, name: impl Into<String>) -> Self {
        self.0.name.get_or_insert_with(|| name.into());
        self
    }

    /// Replaces the operation and the name, for a primitive that is built from others.
    #[must_use]
    pub(crate) fn with_context(mut self, operation: &'static str, name: impl Into<String>) -> Self {
        self.0.operation = Some(operation);
        self.0.name = Some(name.into());
        self
    }

    /// Sets the known effect.
    #[must_use]
    pub fn with_effect(mut self, effect: Effect) -> Self {
        self.0.effect = effect;
        self
    }

    /// Sets whether the same call may succeed later without any other change.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Records that the session of the call has ended.
    #[must_use]
    pub(crate) fn with_session_ended(mut self) -> Self {
        self.0.needs_new_session = true;
        self
    }

    /// Prefixes the message with the place of the failure, such as one of several servers.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the known effect of the failed operation.
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// Returns whether the same call may succeed later without any other change.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// Returns whether the session of the call is known to have ended, so that a retry needs a new session.
    ///
    /// It is false for a lost holding of a session that is alive, and for a session that learns of its end later.
    pub fn needs_new_session(&self) -> bool {
        self.0.needs_new_session
    }

    /// Returns the reason of a `Lost` error, if it is known.
    pub fn loss(&self) -> Option<LossReason> {
        self.0.loss
    }

    /// Returns the failed operation, as the API names it (`lock`, `release`, `open`).
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// Returns the name of the operation's object.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Returns the message, without the operation, the name and the causes.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the error and all its [sources](StdError::source), joined by `: `. A source that its parent's text repeats is
    /// left out.
    pub fn chain(&self) -> impl fmt::Display + '_ {
        Chain(self)
    }
}

struct Chain<'a>(&'a Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut above = self.0.to_string();
        f.write_str(&above)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !above.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            above = text;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.operation, &self.0.name) {
            (Some(operation), Some(name)) => write!(f, "{operation} {name:?}: ")?,
            (Some(operation), None) => write!(f, "{operation}: ")?,
            (None, Some(name)) => write!(f, "{name:?}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("effect", &self.0.effect)
            .field("retryable", &self.0.retryable)
            .field("message", &self.chain().to_string())
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

//! The one error of the library.

use std::fmt;

use crate::session::LossReason;

/// A result with tenure's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The session or the holding ended before or during the operation.
    Lost,
    /// Somebody else holds it, and the call was not to wait.
    WouldBlock,
    /// The time allowed for the wait ran out.
    TimedOut,
    /// The state in the store is not the one that the operation needs.
    Conflict,
    /// What stands under the name in the store is not tenure's, or not as tenure left it: another program
    /// uses the name, or somebody changed it by hand.
    Foreign,
    /// A commit was sent and its outcome could not be found out.
    CommitUnknown,
    /// A name or namespace that no store could take.
    InvalidName,
    /// A value, a number of holdings or a transaction above a limit.
    TooLarge,
    /// The store or the backend cannot do this.
    Unsupported,
    /// Wrong credentials, or a right that is missing.
    Unauthorized,
    /// The store did not answer, or answered that it cannot serve now.
    Unavailable,
    /// A URL or an option that makes no sense.
    Config,
    /// A broken invariant: please report it.
    Internal,
}

/// What is known of the effect of a failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The operation certainly did not happen.
    None,
    /// It may have happened, or may still.
    Unknown,
    /// It happened, although it did not end well.
    Applied,
}

/// What went wrong, in which operation, on which name, and what can be done about it.
///
/// Its text is its own: what caused it is left to its [source](std::error::Error::source). [`chain`](Self::chain)
/// shows both, as its `Debug` does.
///
/// Secrets (passwords in URLs, tokens of the store) never appear in it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    effect: Effect,
    retryable: bool,
    loss: Option<LossReason>,
    operation: Option<&'static str>,
    name: Option<String>,
    message: String,
    source: Option<Source>,
}

impl Error {
    /// An error of `kind`; `message` says what happened and what to do about it.
    ///
    /// The effect is [`Effect::None`] until [`effect`](Self::effect) says otherwise. `Unavailable`
    /// counts as retryable, everything else as final, until [`retryable`](Self::retryable).
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            effect: Effect::None,
            retryable: kind == ErrorKind::Unavailable,
            loss: None,
            operation: None,
            name: None,
            message: message.into(),
            source: None,
        }))
    }

    /// The session or holding is gone, for `reason`.
    pub fn lost(reason: LossReason) -> Self {
        let mut error = Self::new(ErrorKind::Lost, reason.explain());
        error.0.loss = Some(reason);
        error
    }

    /// The same for one who held nothing yet.
    pub(crate) fn lost_waiting(reason: LossReason) -> Self {
        let mut error = Self::lost(reason);
        error.0.message = reason.explain_waiting().to_owned();
        error
    }

    /// A store or backend without this ability.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::Unsupported,
            format!("{what} is not offered here"),
        )
    }

    /// The answer of an acquire that ended because its [`Ask`](crate::backend::Ask) was withdrawn.
    pub fn withdrawn() -> Self {
        Self::new(ErrorKind::TimedOut, "withdrawn by the caller").with_effect(Effect::Unknown)
    }

    /// The answer of a `try_` that found somebody who `does` something.
    pub(crate) fn would_block(does: &str) -> Self {
        Self::new(ErrorKind::WouldBlock, format!("somebody else {does}"))
    }

    pub(crate) fn invalid_name(name: &str, message: String) -> Self {
        let shown: String = name.chars().take(40).collect();
        let shown = if shown.len() < name.len() {
            shown + "…"
        } else {
            shown
        };
        Self::new(ErrorKind::InvalidName, message).on(shown)
    }

    /// Adds the operation, unless an inner layer has named it already.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds the name that the operation was about, unless there is one already.
    #[must_use]
    pub fn on(mut self, name: impl Into<String>) -> Self {
        self.0.name.get_or_insert_with(|| name.into());
        self
    }

    /// Sets what is known of the effect.
    #[must_use]
    pub fn with_effect(mut self, effect: Effect) -> Self {
        self.0.effect = effect;
        self
    }

    /// Sets whether the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Puts the place where it happened before the message: the one of several servers, for instance.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is known of the effect of the failed operation.
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// For `Lost`: why, as far as it is known.
    pub fn loss(&self) -> Option<LossReason> {
        self.0.loss
    }

    /// What happened, without the operation, the name and the causes.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What happened and why: [`chain`](Self::chain) without the operation and the name.
    pub fn explanation(&self) -> impl fmt::Display + '_ {
        Chain {
            first: &self.0.message,
            cause: std::error::Error::source(self),
        }
    }

    /// The error and all of its [sources](std::error::Error::source), joined by `: `.
    pub fn chain(&self) -> impl fmt::Display + '_ {
        Chain {
            first: self,
            cause: std::error::Error::source(self),
        }
    }

    /// The operation that failed, in the words of the API (`lock`, `release`, `open`).
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The name that the operation was about.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }
}

/// A text and the causes behind it. A cause whose words end the text above it, as some libraries have it, is left
/// out.
struct Chain<'a, T> {
    first: T,
    cause: Option<&'a (dyn std::error::Error + 'static)>,
}

impl<T: fmt::Display> fmt::Display for Chain<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut above = self.first.to_string();
        f.write_str(&above)?;
        let mut cause = self.cause;
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_operation_and_name() {
        let error = Error::new(ErrorKind::Unavailable, "no endpoint answers")
            .during("lock")
            .on("orders")
            .during("other");
        assert_eq!(error.to_string(), "lock \"orders\": no endpoint answers");
        assert!(error.is_retryable());
        assert_eq!(error.effect(), Effect::None);
    }

    #[test]
    fn causes_are_left_to_source() {
        let broken = std::io::Error::other("broken pipe");
        let inner = Error::new(ErrorKind::Unavailable, "no answer").with_source(broken);
        let error = Error::new(ErrorKind::CommitUnknown, "unknown")
            .with_source(inner.at("[::1]:1"))
            .during("txn");
        assert_eq!(error.to_string(), "txn: unknown");
        assert_eq!(error.message(), "unknown");
        let causes = "unknown: [::1]:1: no answer: broken pipe";
        assert_eq!(error.explanation().to_string(), causes);
        assert_eq!(error.chain().to_string(), format!("txn: {causes}"));
        assert!(format!("{error:?}").contains(causes));
    }

    #[test]
    fn loss_carries_its_reason() {
        let error = Error::lost(LossReason::Revoked);
        assert_eq!(error.kind(), ErrorKind::Lost);
        assert_eq!(error.loss(), Some(LossReason::Revoked));
    }
}

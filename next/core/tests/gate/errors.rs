//! The texts and properties of errors.

use std::io;

use tenure_core::{Effect, Error, ErrorKind, LossReason};

#[test]
fn message_names_the_innermost_operation_and_name() {
    let error = Error::new(ErrorKind::Unavailable, "no endpoint answers")
        .during("lock")
        .on("orders")
        .during("other")
        .on("others");
    assert_eq!(error.to_string(), "lock \"orders\": no endpoint answers");
    assert_eq!((error.operation(), error.name()), (Some("lock"), Some("orders")));
    assert_eq!(error.message(), "no endpoint answers");
}

#[test]
fn new_error_has_no_effect_and_only_unavailable_is_retryable() {
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Conflict,
        ErrorKind::CommitUnknown,
        ErrorKind::Internal,
    ] {
        let error = Error::new(kind, "");
        assert_eq!(error.is_retryable(), kind == ErrorKind::Unavailable);
        assert_eq!((error.effect(), error.loss()), (Effect::None, None));
        assert!(!error.needs_new_session());
    }
    let error = Error::new(ErrorKind::Unavailable, "")
        .retryable(false)
        .with_effect(Effect::Applied);
    assert_eq!((error.is_retryable(), error.effect()), (false, Effect::Applied));
}

#[test]
fn display_leaves_the_causes_to_the_chain() {
    let broken = io::Error::other("broken pipe");
    let inner = Error::new(ErrorKind::Unavailable, "no answer").with_source(broken);
    let error = Error::new(ErrorKind::CommitUnknown, "unknown")
        .with_source(inner.at("[::1]:1"))
        .during("txn");
    assert_eq!(error.to_string(), "txn: unknown");
    let chain = "txn: unknown: [::1]:1: no answer: broken pipe";
    assert_eq!(error.chain().to_string(), chain);
    assert!(format!("{error:?}").contains(chain));
}

#[test]
fn chain_omits_a_cause_that_its_parent_repeats() {
    let inner = Error::new(ErrorKind::Unavailable, "refused");
    let error = Error::new(ErrorKind::Unavailable, "cannot connect: refused").with_source(inner);
    assert_eq!(error.chain().to_string(), "cannot connect: refused");
}

#[test]
fn loss_says_why_and_what_to_do() {
    for (reason, cause, remedy) in [
        (LossReason::Expired, "before it was renewed", "stop the work"),
        (LossReason::Revoked, "operator", "stop the work"),
        (LossReason::Closed, "closed", "open a new one"),
        (LossReason::Detached, "detached", "resume it"),
        (LossReason::Unreachable, "did not answer", "stop the work"),
        (LossReason::Refused, "refused", "stop the work"),
        (LossReason::Failed, "panicked", "stop the work"),
    ] {
        let error = Error::lost(reason);
        assert_eq!((error.kind(), error.loss()), (ErrorKind::Lost, Some(reason)));
        assert!(
            error.message().contains(cause) && error.message().contains(remedy),
            "{error}"
        );
    }
}

#[test]
fn results_cross_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Error>();
    // A result of a small value stays small.
    assert_eq!(size_of::<tenure_core::Result<u64>>(), 16);
}

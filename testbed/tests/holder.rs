//! The holder process and what drives it, over the embedded store: no server is needed here. What
//! several holders do to each other over a real store is in the tests of the crate `tenure`.

use std::time::{Duration, Instant};

use tenure_testbed::holder::PATIENCE;
use tenure_testbed::{Error, Holder};

const TTL: Duration = Duration::from_secs(30);

fn holder() -> Holder {
    Holder::open("memory:", TTL).expect("a holder")
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) -> String {
    match result {
        Err(Error::Refused { kind, message, .. }) if kind == expected => message,
        other => panic!("{expected} was to be the answer, not {other:?}"),
    }
}

#[test]
fn does_what_it_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resource");
    let mut holder = Holder::start().expect("a holder");
    let session = holder.open_session("memory:", TTL).expect("a session");
    assert_eq!(session.ttl, TTL);
    assert!(!session.id.is_empty());
    assert!(holder.validity().expect("of the session").valid);

    let first = holder.lock("a name with spaces").expect("the lock");
    assert!(first.valid && !first.key.is_empty());
    let validity = holder.validity().expect("of the lock");
    assert!(validity.valid && validity.remaining <= TTL);
    assert!(validity.remaining > TTL / 2, "{validity:?}");
    is_refused(holder.try_lock("a name with spaces"), "WouldBlock");
    holder.write(&file, "some words").expect("written");
    holder.release().expect("released");
    let second = holder.try_lock("a name with spaces").expect("the lock");
    assert!(second.token > first.token);
    holder.write(&file, "more").expect("written");
    assert_eq!(
        std::fs::read_to_string(&file).expect("the file"),
        format!("{} some words\n{} more\n", first.token, second.token)
    );
    holder.begin_lost().expect("sent");
    let early = holder.lost(Duration::from_millis(50));
    assert!(matches!(early, Err(Error::TimedOut { .. })), "{early:?}");
}

#[test]
fn a_wait_has_its_limit() {
    let mut holder = holder();
    holder.lock("a").expect("the lock");
    let start = Instant::now();
    let limit = Duration::from_millis(200);
    is_refused(holder.lock_timeout("a", limit), "TimedOut");
    assert!(start.elapsed() >= limit);
    holder.lock_timeout("b", limit).expect("another lock");
    holder.close().expect("closed");
    is_refused(holder.close(), "Config");
    assert!(!holder.validity().expect("of the last lock").valid);
}

/// No renewal runs while it spins: that is what makes its check a proof.
#[test]
fn nothing_else_runs_while_it_spins() {
    let mut holder = Holder::open("memory:", Duration::from_secs(1)).expect("a holder");
    holder.lock("a").expect("the lock");
    // Longer than a busy machine makes it wait.
    let length = Duration::from_secs(2);
    holder.begin_spin(length).expect("sent");
    // Longer than its TTL: it loses the lock by not renewing.
    let gap = holder.gap(Duration::from_millis(1_500));
    assert!(matches!(gap, Err(Error::TimedOut { .. })), "{gap:?}");
    holder.pause().expect("paused");
    std::thread::sleep(length + Duration::from_millis(100));
    holder.resume().expect("resumed");
    let gap = holder.gap(PATIENCE).expect("a gap");
    assert!(gap.length >= length);
    assert!(!gap.before && !gap.after.valid, "{gap:?}");
    assert_eq!(gap.after.remaining, Duration::ZERO);
}

#[test]
fn mistakes_are_errors_and_it_goes_on() {
    let mut holder = Holder::start().expect("a holder");
    is_refused(holder.lock("a"), "Config");
    is_refused(holder.validity(), "Config");
    let message = is_refused(holder.open_session("nothing://here", TTL), "Config");
    assert!(message.contains("known ones"), "{message}");
    let broken = holder.begin_lock("a\nlock b");
    assert!(matches!(broken, Err(Error::Config(_))), "{broken:?}");
    holder.open_session("memory:", TTL).expect("a session");
    is_refused(holder.lock(""), "InvalidName");
    holder.lock("a").expect("the lock");

    // One question at a time: a second answer would be taken for the first one's.
    holder.begin_lock("a").expect("sent");
    let second = holder.validity();
    assert!(
        matches!(&second, Err(Error::Config(message)) if message.contains("`lock a`")),
        "{second:?}"
    );
    assert!(!holder.has_answered());
}

/// Also in the middle of a wait: a test that is gone wants no answer.
#[test]
fn ends_with_its_input() {
    let mut holder = holder();
    holder.lock("a").expect("the lock");
    holder.begin_lock("a").expect("sent");
    holder.process().close_stdin();
    let status = holder.process().wait(PATIENCE).expect("it ends");
    assert!(status.success());
    let ended = holder.granted(PATIENCE);
    assert!(matches!(ended, Err(Error::Ended { .. })), "{ended:?}");
}

#[test]
fn a_killed_holder_says_nothing_more() {
    let mut holder = holder();
    holder.begin_lock("a").expect("sent");
    holder.granted(PATIENCE).expect("the lock");
    holder.kill().expect("killed");
    assert!(holder.validity().is_err());
    assert!(matches!(holder.pause(), Err(Error::NotRunning { .. })));
}

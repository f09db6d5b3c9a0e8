//! Sessions, holdings and requests on their way, on a store whose answers take their time.

use std::sync::Arc;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::store::{Connection, Fake};
use crate::exploring::sync::Notify;
use crate::exploring::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::exploring::{point, settled, time};
use crate::{ErrorKind, FenceGate, LockGuard, Session};

/// Longer than any scenario, in which time does not pass but by `time::pass`.
const LONG: Duration = Duration::from_secs(1_000);
/// So short that a session is soon lost.
const SHORT: Duration = Duration::from_secs(1);

/// What the lock protects.
#[derive(Default)]
struct Room {
    inside: AtomicUsize,
    gate: FenceGate,
}

impl Room {
    fn visit(&self, guard: &LockGuard) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        assert!(self.gate.admit(guard.token()).is_ok(), "an older token");
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Polls `future` until it is done, or is dropped at whatever moment another thread comes to say so.
fn dropped_anywhere<T>(future: impl Future<Output = T>) -> Option<T> {
    let drop = Arc::<Notify>::default();
    let dropping = Arc::clone(&drop);
    // Each comes about once as often as the other: to come late it has to have a long way.
    let way = thread_rng().gen_range(0..64);
    let dropping = thread::spawn(move || {
        (0..way).for_each(|_| point());
        dropping.notify_one();
    });
    let done = block_on(async {
        tokio::select! {
            biased;
            () = drop.notified() => None,
            done = future => Some(done),
        }
    });
    dropping.join().unwrap();
    done
}

/// Time passes for as long as `of` runs.
fn while_time_passes(of: impl FnOnce()) {
    let over = Arc::new(AtomicBool::new(false));
    let clock = Arc::clone(&over);
    let clock = thread::spawn(move || {
        while !clock.load(Ordering::SeqCst) {
            time::pass();
            thread::yield_now();
        }
    });
    of();
    over.store(true, Ordering::SeqCst);
    clock.join().unwrap();
}

/// Two of one session and one of another, one at a time, with tokens that rise; requests to take and
/// to give back that are dropped anywhere. In the end the lock is free, without any lease ending.
fn visits(fake: &Fake) {
    let room = Arc::<Room>::default();
    let one = block_on(fake.open(LONG));
    let two = block_on(fake.open(LONG));
    let visits = [(one.clone(), 0), (one.clone(), 1), (two.clone(), 2)].map(|(session, way)| {
        let room = Arc::clone(&room);
        thread::spawn(move || {
            let lock = session.locker("room").unwrap();
            let guard = match way {
                0 => match dropped_anywhere(lock.lock()) {
                    Some(guard) => guard.unwrap(),
                    None => return,
                },
                _ => block_on(lock.lock()).unwrap(),
            };
            assert!(guard.is_valid(), "no time has passed");
            room.visit(&guard);
            match way {
                0 => drop(guard),
                1 => drop(dropped_anywhere(guard.release())),
                // Sure to be in the store, or to be tried again.
                _ => drop(block_on(guard.release())),
            }
        })
    });
    visits.into_iter().for_each(|visit| visit.join().unwrap());
    // Nobody else is there any more, and no session ends before.
    let last = block_on(two.locker("room").unwrap().lock()).unwrap();
    room.visit(&last);
    drop((last, one, two));
    block_on(settled());
}

fn a_lock_goes_from_hand_to_hand() {
    let fake = Fake::default();
    visits(&fake);
    assert!(fake.is_empty(), "something is left in the store");
}

fn a_lock_goes_from_hand_to_hand_although_answers_are_lost() {
    while_time_passes(|| visits(&Fake::losing(5)));
}

/// While leases run out: what says that it is valid is held in the store at that very moment, what
/// was not valid once never is again, and who waits to hear of the loss hears of it.
fn what_is_valid_is_held() {
    while_time_passes(|| {
        let fake = Fake::default();
        let holders = [(); 2].map(|()| {
            let fake = fake.clone();
            thread::spawn(move || {
                // Too slow to become valid at all: that may be.
                let Ok(session) = block_on(fake.try_open(SHORT)) else {
                    return;
                };
                let guard = match block_on(session.locker("room").unwrap().lock()) {
                    Ok(guard) => guard,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Lost);
                        assert!(!session.is_valid(), "lost while it is not");
                        return;
                    }
                };
                let mut lost = false;
                for _ in 0..8 {
                    let valid = guard.is_valid();
                    // Nobody else goes on between the two.
                    let held = fake.is_held(guard.token());
                    assert!(!valid || held, "valid, and not held");
                    assert!(!valid || !lost, "valid again");
                    lost |= !valid;
                    thread::yield_now();
                }
                // Only as long as a renewal hangs behind, or it is lost: whichever comes first.
                let signalled = block_on(async {
                    tokio::select! {
                        biased;
                        reason = guard.lost() => Some(reason),
                        () = time::sleep(SHORT * 2) => None,
                    }
                });
                if let Some(reason) = signalled {
                    assert!(!guard.is_valid(), "valid again");
                    assert_eq!(guard.loss(), Some(reason));
                }
                drop(guard);
            })
        });
        holders
            .into_iter()
            .for_each(|holder| holder.join().unwrap());
        block_on(settled());
    });
}

/// A session is closed while one holds, one waits and one has just asked: all of them end at once,
/// with the reason, and nothing is valid that the store has let go of.
fn a_session_is_closed() {
    let fake = Fake::default();
    let session = block_on(fake.open(LONG));
    let other = block_on(fake.open(LONG));
    let guard = block_on(session.locker("room").unwrap().lock()).unwrap();
    let asking = [(); 2].map(|()| {
        let lock = session.locker("room").unwrap();
        thread::spawn(move || match block_on(lock.lock()) {
            Ok(_) => panic!("granted although the lock was held to the end"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Lost, "{error}"),
        })
    });
    let next = thread::spawn(move || {
        let guard = block_on(other.locker("room").unwrap().lock()).unwrap();
        assert!(guard.is_valid());
        block_on(guard.release()).unwrap();
    });
    let watched = fake.clone();
    let holding = thread::spawn(move || {
        for _ in 0..3 {
            let held = watched.is_held(guard.token());
            assert!(held || !guard.is_valid(), "valid, and not held");
            thread::yield_now();
        }
        assert_eq!(block_on(guard.lost()), crate::LossReason::Closed);
        assert!(!guard.is_valid());
    });
    let closed = session.clone();
    block_on(session.close()).unwrap();
    assert!(!closed.is_valid(), "closed");
    drop(closed);
    asking.into_iter().for_each(|asking| asking.join().unwrap());
    next.join().unwrap();
    holding.join().unwrap();
    block_on(settled());
    assert!(fake.is_empty(), "something is left in the store");
}

/// A session is detached while one lets go of what it holds and another waits: what the store is told
/// to keep is kept, what was released is not, and whoever waits hears of it.
fn a_session_is_detached() {
    while_time_passes(|| {
        let fake = Fake::default();
        let session = block_on(fake.open(LONG));
        let lock = session.locker("room").unwrap();
        let guard = block_on(lock.lock()).unwrap();
        let token = guard.token();
        let waiting = thread::spawn(move || {
            if let Err(error) = block_on(lock.lock()) {
                assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            }
        });
        let by_drop = thread_rng().gen_bool(0.5);
        let leaving = thread::spawn(move || {
            if by_drop {
                drop(guard);
                return false;
            }
            block_on(guard.release()).is_ok()
        });
        let detached = block_on(session.detach()).is_ok();
        waiting.join().unwrap();
        let released = leaving.join().unwrap();
        block_on(settled());
        if detached {
            let kept = fake.kept().unwrap().contains(&token);
            assert!(!(kept && released), "released, and kept");
            assert!(!kept || fake.is_held(token), "gone, and to be kept");
        }
    });
}

mod tests {
    /// Otherwise the schedule that a failure prints would be of no use.
    #[test]
    fn the_same_schedule_is_the_same_run() {
        crate::exploring::repeats(20, super::a_lock_goes_from_hand_to_hand);
        crate::exploring::repeats(
            20,
            super::a_lock_goes_from_hand_to_hand_although_answers_are_lost,
        );
        crate::exploring::repeats(20, super::what_is_valid_is_held);
        crate::exploring::repeats(20, super::a_session_is_detached);
    }

    super::super::explored! {
        a_lock_goes_from_hand_to_hand in 400,
            "flight: a dropped request is dropped" by "deadlock",
            "flight: a grant that crossed is kept" by "deadlock",
            "flight: an ending is dropped with its caller" by "deadlock";
        a_lock_goes_from_hand_to_hand_although_answers_are_lost in 200,
            "flight: a dropped request is dropped" by "ran out";
        what_is_valid_is_held in 2_000,
            "session: is revived by a late renewal" by "valid again",
            "session: counts from the arrival of the answer" by "valid, and not held";
        a_session_is_detached in 400,
            "holding: is released after the end" by "gone, and to be kept";
        a_session_is_closed in 400,
            "session: is revoked, and then ends" by "valid, and not held";
    }
}

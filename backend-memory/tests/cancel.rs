//! Every operation is dropped at every one of its await points, over a layer that yields before
//! and after each request, and leaves no ghost (rule L5).
#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::time::Duration;

use support::*;
use tenure_core::{ErrorKind, LockHandle, LossReason, Session, SessionOptions, Store};
use tenure_memory::MemoryBackend;

/// How often the layer yields on either side of a request.
const YIELDS: usize = 2;

/// More polls than any operation here needs.
const ENOUGH: usize = 200;

struct Scene {
    store: Store<MemoryBackend>,
    victim: Session,
    handle: LockHandle,
    other: LockHandle,
    _other: Session,
}

/// Two sessions; the victim's may hold two things at a time, so that a leaked place shows soon.
async fn scene() -> Scene {
    let store = store();
    let (slow, _) = layered(&store, Script::new(YIELDS).capacity(2));
    let victim = slow.into_dyn().open(SessionOptions::new()).await.unwrap();
    let other = open(&another(&store)).await;
    Scene {
        handle: victim.locker("x").unwrap(),
        other: other.locker("x").unwrap(),
        store,
        victim,
        _other: other,
    }
}

impl Scene {
    /// The lock is free within a quarter of a TTL, and the session as good as before.
    async fn is_clean(&self) {
        until_no_ghost(self.store.backend()).await;
        self.other
            .try_lock()
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        assert!(self.victim.is_valid());
        let again = self.handle.lock_timeout(secs(1)).await.unwrap();
        again.release().await.unwrap();
    }
}

/// Runs `case` with a growing number of polls until it says that its future came to its end.
async fn at_every_point(case: impl AsyncFn(usize) -> bool) {
    let mut polls = 0;
    while !case(polls).await {
        polls += 1;
        assert!(polls < ENOUGH, "never came to its end");
    }
    assert!(polls > YIELDS, "too few await points to mean anything");
}

#[tokio::test(start_paused = true)]
async fn lock_of_a_free_name() {
    let scene = scene().await;
    at_every_point(async |polls| {
        let done = polled(polls, scene.handle.lock()).await.is_some();
        scene.is_clean().await;
        done
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn try_lock_of_a_free_name() {
    let scene = scene().await;
    at_every_point(async |polls| {
        let done = polled(polls, scene.handle.try_lock()).await.is_some();
        scene.is_clean().await;
        done
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn try_lock_of_a_held_name() {
    let scene = scene().await;
    at_every_point(async |polls| {
        let guard = scene.other.lock().await.unwrap();
        let done = polled(polls, scene.handle.try_lock()).await;
        if let Some(done) = &done {
            let error = done.as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        guard.release().await.unwrap();
        scene.is_clean().await;
        done.is_some()
    })
    .await;
}

/// The holder lets go while the victim waits, so that grants cross with cancellations.
#[tokio::test(start_paused = true)]
async fn lock_of_a_held_name() {
    let scene = scene().await;
    for held_for in [0, 1, 5].map(Duration::from_millis) {
        at_every_point(async |polls| {
            let guard = scene.other.lock().await.unwrap();
            let holder = tokio::spawn(async move {
                tokio::time::sleep(held_for).await;
                guard.release().await
            });
            let done = polled(polls, scene.handle.lock()).await.is_some();
            holder.await.unwrap().unwrap();
            scene.is_clean().await;
            done
        })
        .await;
    }
}

/// The victim is dropped while the name stays held: it must not come back when it is free.
#[tokio::test(start_paused = true)]
async fn lock_of_a_name_that_stays_held() {
    let scene = scene().await;
    for polls in 0..4 * YIELDS {
        let guard = scene.other.lock().await.unwrap();
        let waiting = polled(polls, scene.handle.lock());
        // Once it waits it is polled no more: then the time ends it.
        let _ = tokio::time::timeout(millis(50), waiting).await;
        let backend = scene.store.backend();
        until("only the holder is left", || backend.keys().len() == 1).await;
        guard.release().await.unwrap();
        scene.is_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn lock_timeout() {
    let scene = scene().await;
    at_every_point(async |polls| {
        let guard = scene.other.lock().await.unwrap();
        let done = polled(polls, scene.handle.lock_timeout(millis(20))).await;
        if let Some(done) = &done {
            let error = done.as_ref().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        }
        guard.release().await.unwrap();
        scene.is_clean().await;
        done.is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn release() {
    let scene = scene().await;
    at_every_point(async |polls| {
        let guard = scene.handle.lock().await.unwrap();
        let done = polled(polls, guard.release()).await;
        scene.is_clean().await;
        done.is_some()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn with_and_while_held() {
    let scene = scene().await;
    at_every_point(async |polls| {
        let working = scene.handle.with(async |token| {
            tokio::task::yield_now().await;
            tokio::time::sleep(millis(3)).await;
            token
        });
        let done = polled(polls, working).await.is_some();
        scene.is_clean().await;
        done
    })
    .await;
}

#[test]
fn open_() {
    step_by_step(async {
        let store = store();
        let (slow, script) = layered(&store, Script::new(YIELDS));
        let slow = slow.into_dyn();
        at_every_point(async |polls| {
            let done = turns(polls, slow.open(SessionOptions::new()))
                .await
                .is_some();
            let backend = store.backend();
            until("no session is left", || backend.footprint().sessions == 0).await;
            until("core has let go of it", || script.live() == 0).await;
            done
        })
        .await;
        // Dropped before its first poll it was never sent.
        assert!(script.calls(Op::Open) > 0);
    });
}

#[test]
fn close() {
    step_by_step(async {
        let store = store();
        let (slow, script) = layered(&store, Script::new(YIELDS));
        let slow = slow.into_dyn();
        at_every_point(async |polls| {
            let session = slow.open(SessionOptions::new()).await.unwrap();
            let guard = session.locker("x").unwrap().lock().await.unwrap();
            let done = turns(polls, session.clone().close()).await.is_some();
            drop((guard, session));
            until_no_ghost(store.backend()).await;
            let backend = store.backend();
            until("no session is left", || backend.footprint().sessions == 0).await;
            until("core has let go of it", || script.live() == 0).await;
            done
        })
        .await;
    });
}

#[test]
fn detach() {
    step_by_step(async {
        let store = store();
        let (slow, script) = layered(&store, Script::new(YIELDS));
        let slow = slow.into_dyn();
        at_every_point(async |polls| {
            let session = slow.open(SessionOptions::new()).await.unwrap();
            let id = session.id().clone();
            let guard = session.locker("x").unwrap().lock().await.unwrap();
            let token = guard.token();
            let done = turns(polls, session.detach()).await.is_some();
            if polls > 0 {
                // Dropped while it was still valid, the guard would be released like any other.
                assert_eq!(guard.lost().await, LossReason::Detached);
            }
            drop(guard);
            until("core has let go of it", || script.live() == 0).await;
            match slow.resume(&id).await {
                Ok(resumed) => {
                    let lock = resumed.locker("x").unwrap();
                    let guard = lock.reclaim(token).await.unwrap();
                    guard.release().await.unwrap();
                    resumed.close().await.unwrap();
                }
                // Never polled, so it was closed like any other.
                Err(error) => {
                    assert_eq!((polls, error.kind()), (0, ErrorKind::Lost));
                }
            }
            assert_eq!(store.backend().footprint(), Default::default());
            done
        })
        .await;
    });
}

#[test]
fn resume() {
    step_by_step(async {
        let store = store();
        let (slow, script) = layered(&store, Script::new(YIELDS));
        let slow = slow.into_dyn();
        at_every_point(async |polls| {
            let session = slow.open(SessionOptions::new()).await.unwrap();
            let guard = session.locker("x").unwrap().lock().await.unwrap();
            let id = session.detach().await.unwrap();
            drop(guard);
            let done = turns(polls, slow.resume(&id)).await.is_some();
            if polls == 0 {
                slow.resume(&id).await.unwrap().close().await.unwrap();
            }
            until_no_ghost(store.backend()).await;
            let backend = store.backend();
            until("no session is left", || backend.footprint().sessions == 0).await;
            until("core has let go of it", || script.live() == 0).await;
            done
        })
        .await;
    });
}

#[tokio::test(start_paused = true)]
async fn reclaim() {
    let store = store();
    let (slow, _) = layered(&store, Script::new(YIELDS));
    let slow = slow.into_dyn();
    at_every_point(async |polls| {
        let session = slow.open(SessionOptions::new()).await.unwrap();
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        let token = guard.token();
        let id = session.detach().await.unwrap();
        drop(guard);
        let session = slow.resume(&id).await.unwrap();
        let lock = session.locker("x").unwrap();
        let done = polled(polls, lock.reclaim(token)).await.is_some();
        // Dropped before it was sent, it changed nothing; after that, the lock is given back.
        if polls == 0 {
            lock.reclaim(token).await.unwrap().release().await.unwrap();
        }
        until_no_ghost(store.backend()).await;
        session.close().await.unwrap();
        done
    })
    .await;
}

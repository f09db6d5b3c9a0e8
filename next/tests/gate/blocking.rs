use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tenure::blocking::{Session, connect};
use tenure::{ErrorKind, SessionOptions};

fn session() -> Session {
    connect("memory:").unwrap().open(SessionOptions::new()).unwrap()
}

#[test]
fn lock_blocks_its_thread_until_the_holder_releases() {
    let session = session();
    let guard = session.lock("a").unwrap();
    assert!(session.try_lock("a").unwrap().is_none());
    let timed_out = session.locker("a").lock_timeout(Duration::from_millis(10));
    assert_eq!(timed_out.unwrap_err().kind(), ErrorKind::TimedOut);
    let (begun, beginning) = mpsc::channel();
    let waiter = {
        let lock = session.locker("a");
        thread::spawn(move || {
            begun.send(()).unwrap();
            lock.lock().unwrap().token()
        })
    };
    beginning.recv().unwrap();
    let first = guard.token();
    guard.release().unwrap();
    assert!(waiter.join().unwrap() > first);
    session.close().unwrap();
    assert_eq!(session.lock("a").unwrap_err().kind(), ErrorKind::Lost);
}

#[test]
fn session_is_closed_when_its_work_panics() {
    let store = connect("memory:").unwrap();
    let store = &store;
    let panicked = thread::scope(|scope| {
        let work = scope.spawn(|| {
            store.with_session(SessionOptions::new(), |session| -> tenure::Result<()> {
                std::mem::forget(session.lock("a")?);
                panic!("on purpose")
            })
        });
        work.join()
    });
    panicked.unwrap_err();
    let next = store.open(SessionOptions::new()).unwrap();
    next.try_lock("a")
        .unwrap()
        .expect("the lock is free")
        .release()
        .unwrap();
}

#[test]
fn transaction_makes_other_blocking_calls_within_its_closure() {
    let session = session();
    let stm = session.stm();
    let attempts = std::cell::Cell::new(0);
    let sum = stm.run(|tx| {
        attempts.set(attempts.get() + 1);
        let before: u64 = tx.get_as("n")?.unwrap_or_default();
        if attempts.get() == 1 {
            // Another transaction commits in between: the closure runs again.
            stm.run(|other| other.put_as("n", &41_u64))?;
        }
        tx.put_as("n", &(before + 1))?;
        Ok(before + 1)
    });
    assert_eq!(sum.unwrap(), 42);
    assert_eq!(attempts.get(), 2);
    let guard = session.lock("a").unwrap();
    stm.fenced_by(&guard).run(|tx| tx.delete("n")).unwrap();
    assert_eq!(stm.get("n").unwrap(), None);
}

#[test]
fn call_within_an_async_runtime_is_refused() {
    let (session, queue) = {
        let session = session();
        let queue = session.queue("q");
        (session, queue)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(async { queue.enqueue("x").unwrap_err() });
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert_eq!(queue.len().unwrap(), 0);
    drop(session);
}

#[test]
fn observer_iterates_over_leaders_and_vacancies() {
    let session = session();
    let election = session.election("e");
    let mut updates = election.observe();
    assert!(updates.next().unwrap().unwrap().leader.is_none());
    let leadership = election.campaign("me").unwrap();
    leadership.proclaim("ready").unwrap();
    let leader = updates.find_map(|update| update.unwrap().leader).unwrap();
    assert_eq!(leader.token, leadership.token());
    leadership.resign().unwrap();
    assert!(updates.any(|update| update.unwrap().leader.is_none()));
}

#[test]
fn queue_and_barriers_have_the_calls_of_the_async_api() {
    let session = session();
    let queue = session.queue("q").dead_letter(1, "dead");
    queue.enqueue_many(["a", "b"]).unwrap();
    queue.dequeue().unwrap().nack().unwrap();
    assert_eq!(queue.dequeue().unwrap().text(), "b");
    assert_eq!(session.queue("dead").pop().unwrap(), b"a");

    let held = session.barrier("b").hold().unwrap();
    let late = session.barrier("b").wait_timeout(Duration::from_millis(10));
    assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    held.release().unwrap();
    session.barrier("b").wait().unwrap();
    session.double_barrier("d", 1).enter().unwrap().leave().unwrap();
    let writer = session.write_lock("c").unwrap();
    writer.downgrade().unwrap().release().unwrap();
}

//! Requests whose answers are lost and requests that arrive late, on one session under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tenure_core::Effect;
use tenure_testbed::{Direction, EtcdOptions, Proxy, Then, When, wait_until};

use crate::{connect, open, start};

const TASKS: usize = 16;
const NAMES: usize = 4;
const FAULTS: usize = 16;

/// Every task locks and releases all the time while connections are cut in the midst of writes, and while writes arrive after others
/// have overtaken them. The keys in the store at the end would be those of requests that were given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_whose_answers_are_lost_leave_nothing_behind_and_exclude_each_other() {
    let server = start(EtcdOptions::default());
    let proxy = Proxy::start(server.address()).unwrap();
    let store = connect(&format!("etcd://{}/ns", proxy.address())).await.unwrap();
    let session = open(&store).await;
    let ends = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicUsize::new(0));
    let held: Arc<Vec<AtomicUsize>> = Arc::new((0..NAMES).map(|_| AtomicUsize::new(0)).collect());
    let tasks = (0..TASKS).map(|task| {
        let (session, ends, held) = (session.clone(), Arc::clone(&ends), Arc::clone(&held));
        let rounds = Arc::clone(&rounds);
        tokio::spawn(async move {
            let mut name = task;
            while !ends.load(Ordering::SeqCst) {
                name = (name + 1) % NAMES;
                let guard = session.lock(format!("name-{name}")).await.unwrap();
                assert_eq!(held[name].fetch_add(1, Ordering::SeqCst), 0, "two holders");
                tokio::task::yield_now().await;
                held[name].fetch_sub(1, Ordering::SeqCst);
                if let Err(error) = guard.release().await {
                    // Not every release keeps the place in which its outcome is recorded.
                    assert_eq!(error.effect(), Effect::Unknown, "{}", error.chain());
                }
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let _proxy = tokio::task::spawn_blocking(move || {
        for fault in 0..FAULTS {
            let write = When::Pattern(b"tenure/2/ns/sessions/".into());
            let fired = match fault % 4 {
                0 => proxy.arm(Direction::Answers, When::Chunk(7), Then::Cut),
                1 => proxy.arm(Direction::Requests, When::Chunk(7), Then::Cut),
                _ => proxy.arm(Direction::Requests, write, Then::Strand),
            };
            wait_until("a fault", || Ok(fired.has_fired().then_some(()))).unwrap();
            let before = rounds.load(Ordering::SeqCst);
            wait_until("later rounds", || {
                Ok((rounds.load(Ordering::SeqCst) > before + TASKS).then_some(()))
            })
            .unwrap();
            proxy.deliver();
        }
        ends.store(true, Ordering::SeqCst);
        proxy
    })
    .await
    .unwrap();
    for task in join_all(tasks).await {
        task.unwrap();
    }
    assert!(session.is_valid());
    wait_until("no key of a lock", || {
        let keys = server.admin().keys("tenure/2/ns/lock/")?;
        Ok(keys.is_empty().then_some(()))
    })
    .unwrap();
    session.close().await.unwrap();
    assert_eq!(server.admin().keys("tenure/2/ns/").unwrap(), ["tenure/2/ns/layout"]);
}

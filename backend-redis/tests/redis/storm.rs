//! Locks change hands while all connections are broken or all scripts forgotten, again and again.
//! What must never be is watched from within the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};

use tenure_core::ErrorKind;
use tenure_testbed::RedisServer;

use crate::common::*;

const STORM: std::time::Duration = std::time::Duration::from_secs(4);

#[derive(Default)]
struct Seen {
    holders: AtomicI64,
    newest: AtomicU64,
    taken: AtomicU64,
    stop: AtomicBool,
}

/// Nine tasks in three clients take one lock in turns while `disturb` is called all the time.
async fn under(name: &str, disturb: impl Fn(&RedisServer, u64)) {
    let server = RedisServer::builder().start().unwrap();
    let bed = Bed::on(&server, name);
    let seen = Arc::new(Seen::default());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let session = bed.session(secs(60)).await;
        for task in 0..3 {
            let (session, seen) = (session.clone(), Arc::clone(&seen));
            tasks.spawn(async move {
                let lock = session.locker("x").unwrap();
                let mut round = 0;
                while !seen.stop.load(SeqCst) {
                    round += 1;
                    let got = match (task + round) % 4 {
                        0 => within(LATER, "lock_timeout", lock.lock_timeout(ms(5))).await,
                        1 => within(LATER, "try_lock", lock.try_lock()).await,
                        _ => within(LATER, "lock", lock.lock()).await,
                    };
                    let guard = match got {
                        Ok(guard) => guard,
                        Err(error) => {
                            let kind = error.kind();
                            assert!(
                                matches!(
                                    kind,
                                    ErrorKind::TimedOut
                                        | ErrorKind::WouldBlock
                                        | ErrorKind::Unavailable
                                ),
                                "{error:?}"
                            );
                            tokio::time::sleep(ms(1)).await;
                            continue;
                        }
                    };
                    assert_eq!(seen.holders.fetch_add(1, SeqCst), 0, "two holders");
                    let token = guard.token().get();
                    assert!(seen.newest.fetch_max(token, SeqCst) < token, "an old token");
                    seen.taken.fetch_add(1, SeqCst);
                    tokio::task::yield_now().await;
                    assert!(guard.is_valid());
                    seen.holders.fetch_sub(1, SeqCst);
                    if round % 3 == 0 {
                        drop(guard);
                    } else if let Err(error) = within(LATER, "release", guard.release()).await {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                    }
                }
            });
        }
    }
    let end = tokio::time::Instant::now() + STORM;
    let mut turn = 0;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(ms(5 + turn % 40)).await;
        tokio::task::block_in_place(|| disturb(&server, turn));
        turn += 7;
    }
    seen.stop.store(true, SeqCst);
    while let Some(done) = within(LATER, "the end of a storm", tasks.join_next()).await {
        done.unwrap();
    }
    assert!(seen.taken.load(SeqCst) > 10, "{:?}", seen.taken);
    bed.until_in_line("lock/x", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_broken_connection_breaks_the_order() {
    under("kill", |server, _| {
        for kind in ["normal", "pubsub"] {
            server.command(&["CLIENT", "KILL", "TYPE", kind]).unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_scripts_are_sent_again() {
    under("flush", |server, _| {
        server.command(&["SCRIPT", "FLUSH"]).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stumbling_server_keeps_the_order() {
    under("stumble", |server, turn| {
        server.pause().unwrap();
        std::thread::sleep(ms(turn % 150));
        server.resume().unwrap();
        if turn % 2 == 0 {
            server
                .command(&["CLIENT", "KILL", "TYPE", "normal"])
                .unwrap();
        }
    })
    .await;
}

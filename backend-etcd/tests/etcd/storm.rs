//! Many tasks in several clients do at random what there is to be done, while connections are cut
//! and silenced and the server is compacted. What must never be is watched from within the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use etcd_client::CompactionOptions;
use tenure_core::ErrorKind;
use tenure_testbed::{Direction, Flow, Proxy};

use crate::common::*;

/// How long a storm lasts. The rarest of what they have found came about once in 20 s.
const STORM: Duration = Duration::from_secs(8);

/// The next number of an xorshift generator.
fn rnd(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed >> 11
}

/// What is so at the moment, as far as those know who hold something.
#[derive(Default)]
struct Seen {
    readers: AtomicI64,
    writers: AtomicI64,
    newest: AtomicU64,
    ops: AtomicU64,
    stop: AtomicBool,
}

/// The seed of the task `number`, another one in each run.
fn seed(number: u64) -> u64 {
    0x9e37_79b9_7f4a_7c15 ^ (number * 7919 + u64::from(std::process::id()))
}

async fn disturb(bed: &Bed, proxies: &[Proxy], seen: &Seen) {
    let (end, mut seed) = (Instant::now() + STORM, seed(1000));
    while Instant::now() < end {
        tokio::time::sleep(ms(30 + rnd(&mut seed) % 200)).await;
        let proxy = &proxies[usize::try_from(rnd(&mut seed) % 3).unwrap()];
        match rnd(&mut seed) % 6 {
            0 | 1 => {
                proxy.cut();
            }
            2 | 3 => {
                let way = if rnd(&mut seed).is_multiple_of(2) {
                    Direction::Up
                } else {
                    Direction::Down
                };
                proxy.set(way, Flow::Drop);
                tokio::time::sleep(ms(20 + rnd(&mut seed) % 100)).await;
                proxy.heal();
                proxy.cut();
            }
            4 => {
                let now = bed.raw.kv_client().get("x", None).await.unwrap();
                let now = now.header().unwrap().revision();
                let _ = bed
                    .raw
                    .kv_client()
                    .compact(now, Some(CompactionOptions::new().with_physical()))
                    .await;
            }
            _ => {}
        }
    }
    seen.stop.store(true, SeqCst);
    for proxy in proxies {
        proxy.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_is_alone_in_a_storm() {
    let bed = Bed::new("storm-rw").await;
    let proxies: Vec<_> = (0..3).map(|_| Proxy::start(bed.address).unwrap()).collect();
    let seen = Arc::new(Seen::default());
    let mut tasks = tokio::task::JoinSet::new();
    let mut sessions = Vec::new();
    for (n, proxy) in (0..).zip(&proxies) {
        let store = connect(bed.through(proxy.address()).timeout(secs(2))).await;
        for m in 0..2 {
            let session = open(&store, secs(120)).await;
            for k in 0..7u64 {
                let (session, seen) = (session.clone(), Arc::clone(&seen));
                let mut seed = seed((n * 2 + m) * 7 + k);
                tasks.spawn(async move {
                    let lock = session.rw_lock("x").unwrap();
                    let reader = |token: u64| {
                        assert_eq!(
                            seen.writers.load(SeqCst),
                            0,
                            "reader {token} beside a writer"
                        );
                        seen.newest.fetch_max(token, SeqCst);
                        seen.ops.fetch_add(1, SeqCst);
                    };
                    while !seen.stop.load(SeqCst) {
                        let hold = ms(rnd(&mut seed) % 6);
                        let limit = ms(1 + rnd(&mut seed) % 60);
                        let way = rnd(&mut seed) % 8;
                        let what = format!("{n}-{m}-{k} way {way}");
                        if way < 4 {
                            let got = match way {
                                0 | 1 => within(LATER, &what, lock.read()).await,
                                2 => within(LATER, &what, lock.read_timeout(limit)).await,
                                _ => within(LATER, &what, lock.try_read()).await,
                            };
                            match got {
                                Ok(guard) => {
                                    seen.readers.fetch_add(1, SeqCst);
                                    reader(guard.token().get());
                                    tokio::time::sleep(hold).await;
                                    assert!(guard.is_valid());
                                    assert_eq!(seen.writers.load(SeqCst), 0);
                                    seen.readers.fetch_sub(1, SeqCst);
                                    if rnd(&mut seed).is_multiple_of(2) {
                                        match within(LATER, "release", guard.release()).await {
                                            Ok(()) => {}
                                            Err(e) => {
                                                assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}")
                                            }
                                        }
                                    }
                                }
                                Err(e) => assert!(
                                    matches!(
                                        e.kind(),
                                        ErrorKind::TimedOut
                                            | ErrorKind::WouldBlock
                                            | ErrorKind::Unavailable
                                    ),
                                    "{what}: {e:?}"
                                ),
                            }
                        } else {
                            let got = match way {
                                4 | 5 => within(LATER, &what, lock.write()).await,
                                6 => within(LATER, &what, lock.write_timeout(limit)).await,
                                _ => within(LATER, &what, lock.try_write()).await,
                            };
                            match got {
                                Ok(guard) => {
                                    assert_eq!(seen.writers.fetch_add(1, SeqCst), 0, "two writers");
                                    assert_eq!(
                                        seen.readers.load(SeqCst),
                                        0,
                                        "writer {} beside a reader",
                                        guard.token()
                                    );
                                    let before = seen.newest.fetch_max(guard.token().get(), SeqCst);
                                    assert!(
                                        before < guard.token().get(),
                                        "{before} {}",
                                        guard.token()
                                    );
                                    seen.ops.fetch_add(1, SeqCst);
                                    tokio::time::sleep(hold).await;
                                    assert!(guard.is_valid());
                                    assert_eq!(seen.readers.load(SeqCst), 0);
                                    match rnd(&mut seed) % 4 {
                                        0 => {
                                            let token = guard.token();
                                            seen.readers.fetch_add(1, SeqCst);
                                            seen.writers.fetch_sub(1, SeqCst);
                                            let guard =
                                                within(LATER, "downgrade", guard.downgrade())
                                                    .await
                                                    .unwrap();
                                            assert_eq!(token, guard.token());
                                            tokio::time::sleep(hold).await;
                                            assert!(guard.is_valid());
                                            seen.readers.fetch_sub(1, SeqCst);
                                            drop(guard);
                                        }
                                        1 => {
                                            seen.writers.fetch_sub(1, SeqCst);
                                            let _ = tokio::time::timeout(
                                                ms(rnd(&mut seed) % 3),
                                                guard.downgrade(),
                                            )
                                            .await;
                                        }
                                        2 => {
                                            seen.writers.fetch_sub(1, SeqCst);
                                            drop(guard);
                                        }
                                        _ => {
                                            seen.writers.fetch_sub(1, SeqCst);
                                            match within(LATER, "release", guard.release()).await {
                                                Ok(()) => {}
                                                Err(e) => assert_eq!(
                                                    e.kind(),
                                                    ErrorKind::Unavailable,
                                                    "{e}"
                                                ),
                                            }
                                        }
                                    }
                                }
                                Err(e) => assert!(
                                    matches!(
                                        e.kind(),
                                        ErrorKind::TimedOut
                                            | ErrorKind::WouldBlock
                                            | ErrorKind::Unavailable
                                            | ErrorKind::Conflict
                                    ),
                                    "{what}: {e:?}"
                                ),
                            }
                        }
                    }
                });
            }
            sessions.push(session);
        }
    }
    disturb(&bed, &proxies, &seen).await;
    while let Some(done) = within(LATER, "the end of all", tasks.join_next()).await {
        done.unwrap();
    }
    assert!(seen.ops.load(SeqCst) > 100);
    let lock = sessions[0].rw_lock("x").unwrap();
    within(SOON, "a last write", lock.write())
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    for session in sessions {
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_all_see_the_last_in_a_storm() {
    let bed = Bed::new("storm-el").await;
    let proxies: Vec<_> = (0..3).map(|_| Proxy::start(bed.address).unwrap()).collect();
    let seen = Arc::new(Seen::default());
    let mut tasks = tokio::task::JoinSet::new();
    let mut sessions = Vec::new();
    let leaders = Arc::new(AtomicI64::new(0));
    for (n, proxy) in (0..).zip(&proxies) {
        let store = connect(bed.through(proxy.address()).timeout(secs(2))).await;
        for m in 0..2 {
            let session = open(&store, secs(120)).await;
            let (own, seen, leaders) = (session.clone(), Arc::clone(&seen), Arc::clone(&leaders));
            let mut seed = seed(n * 2 + m);
            tasks.spawn(async move {
                let election = own.election("x").unwrap();
                let mut latest = 0;
                while !seen.stop.load(SeqCst) {
                    let limit = ms(1 + rnd(&mut seed) % 80);
                    let got = match rnd(&mut seed) % 3 {
                        0 => within(LATER, "campaign", election.campaign("c")).await,
                        1 => within(LATER, "campaign", election.campaign_timeout("c", limit)).await,
                        _ => within(LATER, "campaign", election.try_campaign("c")).await,
                    };
                    let Ok(lead) = got else { continue };
                    assert_eq!(leaders.fetch_add(1, SeqCst), 0, "two leaders");
                    let before = seen.newest.fetch_max(lead.token().get(), SeqCst);
                    assert!(before < lead.token().get());
                    seen.ops.fetch_add(1, SeqCst);
                    for _ in 0..rnd(&mut seed) % 4 {
                        latest += 1;
                        let value = format!("{}-{latest}", lead.token());
                        let proclaim = lead.proclaim(&value);
                        if rnd(&mut seed).is_multiple_of(3) {
                            let _ = tokio::time::timeout(ms(rnd(&mut seed) % 3), proclaim).await;
                        } else {
                            within(LATER, "proclaim", proclaim).await.unwrap();
                            let now = within(LATER, "leader", election.leader())
                                .await
                                .unwrap()
                                .unwrap();
                            assert_eq!(now.text(), value);
                        }
                    }
                    assert!(lead.is_valid());
                    leaders.fetch_sub(1, SeqCst);
                    if rnd(&mut seed).is_multiple_of(2) {
                        let _ = within(LATER, "resign", lead.resign()).await;
                    }
                }
            });
            sessions.push(session);
        }
    }
    let mut watching = Vec::new();
    for session in sessions.clone() {
        for _ in 0..3 {
            let mut observer = session.election("x").unwrap().observe();
            watching.push(tokio::spawn(async move {
                let mut newest = 0;
                loop {
                    let state = observer.next().await.unwrap().unwrap();
                    if let Some(leader) = &state {
                        assert!(leader.token().get() >= newest, "back");
                        newest = leader.token().get();
                        if leader.text() == "the end" {
                            return;
                        }
                    }
                }
            }));
        }
    }
    disturb(&bed, &proxies, &seen).await;
    while let Some(done) = within(LATER, "the end of all", tasks.join_next()).await {
        done.unwrap();
    }
    let last = sessions[0].election("x").unwrap();
    let lead = within(SOON, "a last campaign", last.campaign("the end"))
        .await
        .unwrap();
    for watching in watching {
        // Sooner than a slow check would find it.
        within(secs(8), "an observer's last state", watching)
            .await
            .unwrap();
    }
    assert!(seen.ops.load(SeqCst) > 50);
    lead.resign().await.unwrap();
    for session in sessions {
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_do_not_meet_in_a_storm() {
    let bed = Bed::new("storm-db").await;
    let proxies: Vec<_> = (0..3).map(|_| Proxy::start(bed.address).unwrap()).collect();
    let seen = Arc::new(Seen::default());
    let mut tasks = tokio::task::JoinSet::new();
    let mut sessions = Vec::new();
    for (n, proxy) in (0..).zip(&proxies) {
        let store = connect(bed.through(proxy.address()).timeout(secs(2))).await;
        let session = open(&store, secs(120)).await;
        for k in 0..3u64 {
            let (session, seen) = (session.clone(), Arc::clone(&seen));
            let mut seed = seed(n * 3 + k);
            tasks.spawn(async move {
                let barrier = session.double_barrier("x", 4).unwrap();
                while !seen.stop.load(SeqCst) {
                    let limit = ms(1 + rnd(&mut seed) % 60);
                    let got = match rnd(&mut seed) % 4 {
                        0 => match tokio::time::timeout(limit, barrier.enter()).await {
                            Ok(got) => got,
                            Err(_) => continue,
                        },
                        _ => within(LATER, "enter", barrier.enter_timeout(secs(2))).await,
                    };
                    match got {
                        Ok(inside) => {
                            seen.readers.fetch_add(1, SeqCst);
                            assert!(seen.readers.load(SeqCst) <= 4, "too many inside");
                            seen.ops.fetch_add(1, SeqCst);
                            tokio::time::sleep(ms(rnd(&mut seed) % 5)).await;
                            assert!(inside.is_valid());
                            assert!(seen.readers.fetch_sub(1, SeqCst) <= 4);
                            match rnd(&mut seed) % 4 {
                                0 => drop(inside),
                                1 => drop(
                                    tokio::time::timeout(ms(rnd(&mut seed) % 3), inside.leave())
                                        .await,
                                ),
                                _ => within(LATER, "leave", inside.leave()).await.unwrap(),
                            }
                        }
                        Err(e) => {
                            assert!(
                                matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::Conflict),
                                "{e:?}"
                            );
                            tokio::time::sleep(ms(1)).await;
                        }
                    }
                }
            });
        }
        sessions.push(session);
    }
    disturb(&bed, &proxies, &seen).await;
    while let Some(done) = within(LATER, "the end of all", tasks.join_next()).await {
        done.unwrap();
    }
    assert!(seen.ops.load(SeqCst) > 100);
    tokio::time::sleep(ms(500)).await;
    let barrier = sessions[0].double_barrier("x", 1).unwrap();
    within(SOON, "alone", barrier.enter())
        .await
        .unwrap()
        .leave()
        .await
        .unwrap();
    for session in sessions {
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

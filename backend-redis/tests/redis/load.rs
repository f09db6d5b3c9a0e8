//! Much at once: no step takes long, and a renewal is one step however much is held.

use std::sync::Arc;
use std::time::Instant;

use tenure_testbed::RedisServer;

use crate::common::*;

/// A server that notes every command of more than 5 ms.
fn watched() -> RedisServer {
    RedisServer::builder()
        .line("slowlog-log-slower-than 5000")
        .no_persistence()
        .start()
        .unwrap()
}

/// How often a command was called, by scripts too.
fn calls(bed: &Bed<'_>, command: &str) -> u64 {
    let stats = bed.ask(&["INFO", "commandstats"]);
    let line = format!("cmdstat_{command}:calls=");
    let calls = stats.lines().find_map(|stat| stat.strip_prefix(&line));
    calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

/// How many steps took more than 5 ms. Told, not judged: a busy machine stops the server in the middle
/// of any.
fn tell_slow_steps(bed: &Bed<'_>) {
    let log = bed.ask(&["SLOWLOG", "GET", "-1"]);
    let slow = log.lines().filter(|line| line.starts_with("EVAL")).count();
    println!("{slow} slow steps of {}", calls(bed, "evalsha"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_locks_are_renewed_at_once() {
    const LOCKS: usize = 10_000;
    let server = watched();
    let bed = Bed::on(&server, "many");
    let session = bed.session(secs(9)).await;
    let mut taking = tokio::task::JoinSet::new();
    for task in 0..50 {
        let session = session.clone();
        taking.spawn(async move {
            let mut guards = Vec::new();
            for number in (task..LOCKS).step_by(50) {
                let lock = session.locker(format!("lock{number}")).unwrap();
                guards.push(lock.lock().await.unwrap());
            }
            guards
        });
    }
    let guards: Vec<_> = taking.join_all().await.into_iter().flatten().collect();
    assert_eq!(guards.len(), LOCKS);
    let before = calls(&bed, "pexpire");
    let begun = Instant::now();
    let audits = calls(&bed, "zscore");
    tokio::time::sleep(secs(10)).await;
    let rounds = calls(&bed, "pexpire") - before;
    // One for each third of the TTL.
    let most = begun.elapsed().as_secs() / 3 + 2;
    assert!((1..=most).contains(&rounds), "{rounds} renewals");
    assert!(calls(&bed, "zscore") > audits, "audited");
    assert!(guards.iter().all(|guard| guard.is_valid()));
    // One that an operator takes away is missed, the others are not. Each round looks at a tenth.
    let (line, who) = guards[7].key().rsplit_once('#').unwrap();
    assert_eq!(bed.ask(&["ZREM", line, &format!("{who}:w")]), "1");
    within(LATER, "the loss of one", guards[7].lost()).await;
    assert_eq!(
        guards.iter().filter(|guard| guard.is_valid()).count(),
        LOCKS - 1
    );
    let other = bed.session(secs(30)).await;
    let last = other.locker(format!("lock{}", LOCKS - 1)).unwrap();
    let waiting = tokio::spawn(async move { last.lock().await });
    bed.until_in_line(&format!("lock/lock{}", LOCKS - 1), 2)
        .await;
    let begun = Instant::now();
    let chunks = calls(&bed, "hrandfield");
    within(LATER, "close", session.close()).await.unwrap();
    let chunks = calls(&bed, "hrandfield") - chunks;
    assert!(
        chunks >= u64::try_from(LOCKS / 100).unwrap(),
        "{chunks} chunks"
    );
    println!("revoked {LOCKS} in {:?}", begun.elapsed());
    drop(
        within(SOON, "what was freed", waiting)
            .await
            .unwrap()
            .unwrap(),
    );
    tell_slow_steps(&bed);
    drop(guards);
}

/// A thousand readers behind a writer are let in, in steps that each are short.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_are_told_in_short_steps() {
    const READERS: usize = 1000;
    let server = watched();
    let bed = Bed::on(&server, "readers");
    let session = bed.session(secs(60)).await;
    let other = Arc::new(bed.session(secs(60)).await);
    let writer = session.rw_lock("x").unwrap().write().await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let other = Arc::clone(&other);
        readers.spawn(async move { other.rw_lock("x").unwrap().read().await.unwrap() });
    }
    bed.until_in_line("rw_lock/x", READERS + 1).await;
    let begun = Instant::now();
    writer.release().await.unwrap();
    let guards = within(SOON, "all readers", readers.join_all()).await;
    println!("{READERS} readers in {:?}", begun.elapsed());
    assert!(begun.elapsed() < SOON && guards.iter().all(|guard| guard.is_valid()));
    let writers = session.rw_lock("x").unwrap();
    let waiting = tokio::spawn(async move { writers.write().await });
    bed.until_in_line("rw_lock/x", READERS + 1).await;
    drop(guards);
    drop(
        within(SOON, "the writer behind them", waiting)
            .await
            .unwrap()
            .unwrap(),
    );
    tell_slow_steps(&bed);
}

/// A hundred and more dead sessions stand in a line; nobody hangs behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_the_dead_is_buried() {
    const DEAD: usize = 350;
    let server = watched();
    let bed = Bed::on(&server, "dead");
    let session = bed.session(secs(60)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    // As sessions leave it that died.
    let line = format!("{}lock/x", bed.root());
    for number in 0..DEAD {
        let (id, nonce) = (format!("{number:032x}"), format!("{number:016x}"));
        let token = (guard.token().get() + 1 + u64::try_from(number).unwrap()).to_string();
        bed.ask(&["ZADD", &line, &token, &format!("{id}:{nonce}:w")]);
        bed.ask(&[
            "HSET",
            &format!("{}held/{id}", bed.root()),
            &nonce,
            "lock/x",
        ]);
    }
    let last = format!("{}last", bed.root());
    bed.ask(&["INCRBY", &last, &(DEAD + 1).to_string()]);
    let lock = session.locker("x").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    eventually("a place", || {
        // A living one may have a number that begins with a zero, but not with sixteen of them.
        !bed.ask(&["ZRANGE", &line, "-1", "-1"])
            .starts_with(&"0".repeat(16))
    })
    .await;
    let begun = Instant::now();
    guard.release().await.unwrap();
    drop(
        within(SOON, "the lock behind the dead", waiting)
            .await
            .unwrap()
            .unwrap(),
    );
    println!("{DEAD} dead in {:?}", begun.elapsed());
    tell_slow_steps(&bed);
}

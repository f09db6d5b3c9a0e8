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

/// Small steps without number, while a session lives on its renewals.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_enqueues_delays_no_renewal() {
    const ITEMS: usize = 20_000;
    let server = watched();
    let bed = Bed::on(&server, "burst");
    let session = bed.session(secs(3)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let queue = session.queue("jobs").unwrap();
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for item in 0..ITEMS {
        let queue = queue.clone();
        tasks.spawn(async move { queue.enqueue(item.to_string()).await });
    }
    for enqueued in within(LATER, "all items", tasks.join_all()).await {
        enqueued.unwrap();
    }
    println!("{ITEMS} items in {:?}", begun.elapsed());
    assert!(guard.is_valid(), "{:?}", guard.loss_error());
    let items = bed.of("HLEN", "queue/jobs/values", &[]);
    assert_eq!(items, ITEMS.to_string());
}

/// What a server sends to one that subscribes is bounded; replies are not.
#[tokio::test(flavor = "multi_thread")]
async fn large_reads_disturb_no_other_user_of_the_store() {
    const READS: usize = 5;
    let server = watched();
    let bed = Bed::on(&server, "large");
    let session = bed.session(secs(6)).await;
    let stm = session.stm().unwrap();
    let names = || (0..7).map(|name| format!("k{name}"));
    for name in names() {
        stm.put(name, vec![7; 1 << 20]).await.unwrap();
    }
    let other = session.locker("x").unwrap();
    let locking = tokio::spawn(async move {
        loop {
            other.lock().await.unwrap().release().await.unwrap();
        }
    });
    let begun = Instant::now();
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..READS {
        let stm = stm.clone();
        reads.spawn(async move {
            stm.run(async |tx| Ok(tx.get_many(names()).await?.len()))
                .await
        });
    }
    for read in within(SOON, "all reads", reads.join_all()).await {
        assert_eq!(read.unwrap(), 7);
    }
    println!("{READS} reads of 7 MiB in {:?}", begun.elapsed());
    assert!(!locking.is_finished(), "a lock failed beside large reads");
    locking.abort();
    assert!(!server.log_tail(400).contains("output buffer"));
    assert!(session.is_valid());
}

/// Each hears of its turn once, however many find out at the same time by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn readers_behind_a_dead_writer_are_told_once() {
    const READERS: u64 = 400;
    let server = watched();
    let bed = Bed::on(&server, "dead-writer");
    let other = bed.session(secs(60)).await;
    let proxy = tenure_testbed::Proxy::start(server.address()).unwrap();
    let doomed = open(&connect(bed.through(proxy.address())).await, secs(3)).await;
    let writer = doomed.rw_lock("x").unwrap().write().await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let other = other.clone();
        readers.spawn(async move { other.rw_lock("x").unwrap().read().await.unwrap() });
    }
    bed.until_in_line("rw_lock/x", usize::try_from(READERS).unwrap() + 1)
        .await;
    proxy.silence();
    let (published, ran) = (calls(&bed, "publish"), calls(&bed, "evalsha"));
    let guards = within(SOON, "all readers", readers.join_all()).await;
    let published = calls(&bed, "publish") - published;
    println!(
        "{READERS} readers: {published} messages, {} steps",
        calls(&bed, "evalsha") - ran
    );
    assert!(published <= 2 * READERS, "{published} messages");
    assert!(guards.iter().all(|guard| guard.is_valid()));
    drop(writer);
}

/// However many keys a transaction reads, no step reads more than some of them; what else is written in the
/// namespace, and deleted, does not matter.
#[tokio::test(flavor = "multi_thread")]
async fn many_keys_are_read_in_short_steps() {
    const KEYS: usize = 20_000;
    let server = watched();
    let bed = Bed::on(&server, "keys");
    let (one, two) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let writing = tokio::spawn(async move {
        let stm = two.stm().unwrap();
        loop {
            stm.put("other", "x").await.unwrap();
        }
    });
    let stm = one.stm().unwrap();
    stm.put("k1", "x").await.unwrap();
    stm.put("k2", "x").await.unwrap();
    stm.delete("k2").await.unwrap();
    let names = || (0..KEYS).map(|name| format!("k{name}"));
    let found = stm.run(async |tx| {
        let found = tx.get_many(names()).await?;
        Ok(found.iter().filter(|value| value.is_some()).count())
    });
    let found = within(SOON, "a read", found).await;
    assert_eq!(found.unwrap(), 1);
    writing.abort();
    // Of a slow step the log shows the first arguments, and counts the others.
    let log = bed.ask(&["SLOWLOG", "GET", "-1"]);
    let counts = log.lines().filter_map(|line| {
        let (count, _) = line.rsplit_once(" more arguments)")?;
        count.rsplit_once('(')?.1.parse::<usize>().ok()
    });
    assert!(counts.max().unwrap_or(0) < 2_100, "{log}");
    tell_slow_steps(&bed);
}

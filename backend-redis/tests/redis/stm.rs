//! Transactional memory: over lost answers, a Redis without memory, keys of other programs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenure_core::{
    Compare, Effect, ErrorKind, MAX_OPERATIONS, MAX_VALUE_BYTES, Op, OpResult, StmHandle,
};
use tenure_redis::{RedisSession, RedisStm};
use tenure_testbed::{Direction, Flow, Proxy, RedisServer};

use crate::common::*;

async fn version(stm: &StmHandle<RedisStm>, key: &str) -> u64 {
    stm.get(key).await.unwrap().map_or(0, |entry| entry.version)
}

fn stm(session: &tenure_core::Session<RedisSession>) -> StmHandle<RedisStm> {
    session.stm().unwrap()
}

/// The answer is lost after the commit, or the request before it: each is done once.
#[tokio::test]
async fn a_commit_over_a_broken_line_happens_once() {
    let bed = Bed::new("stm-lost");
    let other = bed.session(secs(20)).await;
    let proxy = Proxy::start(bed.server.address()).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
    let session = open(&store, secs(20)).await;
    let (near, far) = (stm(&other), stm(&session));
    far.put("warm", "").await.unwrap();
    for round in 0..6 {
        let pattern = b"data-of-round".to_vec();
        let way = if round % 2 == 0 {
            Direction::Down
        } else {
            Direction::Up
        };
        proxy.when(Direction::Up, pattern, way, Flow::Drop);
        let putting = tokio::spawn({
            let far = far.clone();
            async move { far.put("data-of-round", "x").await }
        });
        tokio::time::sleep(ms(100)).await;
        proxy.cut();
        proxy.heal();
        let revision = within(SOON, "an answer", putting).await.unwrap().unwrap();
        let entry = near.get("data-of-round").await.unwrap().unwrap();
        assert_eq!((entry.version, entry.modified), (round + 1, revision));
    }
    // What was settled left its slot to the next: there are as few as there were at a time.
    let slots = bed.of("HKEYS", &format!("session/{}", session.id()), &[]);
    let slots = slots.lines().filter(|field| {
        field
            .strip_prefix('d')
            .is_some_and(|slot| slot.parse::<u64>().is_ok())
    });
    assert_eq!(slots.count(), 1);
}

/// A request that the network keeps back for longer than its sender waits, and then delivers, next to
/// the question what became of it.
#[tokio::test]
async fn a_commit_that_was_held_back_happens_once() {
    let bed = Bed::new("stm-late");
    let near = bed.session(secs(20)).await;
    let proxy = Proxy::start(bed.server.address()).unwrap();
    let store = connect(bed.through(proxy.address()).timeout(ms(200))).await;
    let session = open(&store, secs(20)).await;
    let far = stm(&session);
    for round in 1..6 {
        proxy.set(Direction::Up, Flow::Hold);
        let putting = tokio::spawn({
            let far = far.clone();
            async move { far.put("late", "1").await }
        });
        tokio::time::sleep(ms(150 * round)).await;
        proxy.heal();
        within(SOON, "an answer", putting).await.unwrap().unwrap();
        assert_eq!(version(&stm(&near), "late").await, round);
    }
}

/// Without memory, Redis refuses what writes, and takes what reads and what frees memory.
#[tokio::test]
async fn a_redis_without_memory_says_so_and_stays_as_it_was() {
    let server = RedisServer::builder()
        .max_memory("100mb", "noeviction")
        .start_async()
        .await
        .unwrap();
    let bed = Bed::on(&server, "stm-memory");
    let session = bed.session(secs(30)).await;
    let stm = stm(&session);
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    stm.put("a", "1").await.unwrap();
    let before = stm.get("a").await.unwrap();
    bed.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..3 {
        let put = stm.put("a", "2").await.unwrap_err();
        let both = stm.txn().then([Op::delete("a"), Op::put("b", "2")]);
        let both = both.commit().await.unwrap_err();
        let fenced = stm.txn().then([Op::put("a", "3")]).fenced_by(&guard);
        let fenced = fenced.commit().await.unwrap_err();
        for error in [put, both, fenced] {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert_eq!(error.effect(), Effect::None, "{error}");
            assert!(error.chain().to_string().contains("maxmemory"), "{error}");
        }
    }
    assert_eq!(stm.get("a").await.unwrap(), before);
    assert_eq!(stm.get("b").await.unwrap(), None);
    assert!(stm.delete("a").await.unwrap());
    bed.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(stm.get("a").await.unwrap(), None);
    stm.put("a", "4").await.unwrap();
    assert!(guard.is_valid());
}

/// A key that is another program's stops a transaction before it has written anything.
#[tokio::test]
async fn a_foreign_key_stops_a_transaction_before_its_first_write() {
    let bed = Bed::new("stm-foreign");
    let session = bed.session(secs(20)).await;
    let stm = stm(&session);
    bed.of("SET", "data/theirs", &["x"]);
    let puts = ["mine", "theirs"].map(|key| Op::put(key, "1"));
    let error = stm.txn().then(puts).commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    assert_eq!(error.effect(), Effect::None, "{error}");
    assert_eq!(stm.get("mine").await.unwrap(), None);
    assert_eq!(bed.of("GET", "data/theirs", &[]), "x");
}

/// Revisions rise also where Redis has lost its data.
#[tokio::test]
async fn revisions_rise_over_a_loss_of_data() {
    let bed = Bed::new("stm-flushed");
    let session = bed.session(secs(20)).await;
    let before = stm(&session).put("a", "1").await.unwrap();
    for key in bed.keys() {
        bed.of("DEL", &key, &[]);
    }
    let session = bed.session(secs(20)).await;
    let stm = stm(&session);
    assert_eq!(stm.get("a").await.unwrap(), None);
    let after = stm.put("a", "1").await.unwrap();
    assert!(after > before, "{after} after {before}");
    // And where the clock is behind.
    let ahead = after + 3_600_000_000;
    bed.of("SET", "revision", &[&ahead.to_string()]);
    assert_eq!(stm.put("a", "2").await.unwrap(), ahead + 1);
    let entry = stm.get("a").await.unwrap().unwrap();
    assert_eq!((entry.created, entry.modified), (after, ahead + 1));
}

/// Comparisons go byte by byte, whatever bytes there are, and however long they agree.
#[tokio::test]
async fn values_are_compared_byte_by_byte() {
    let bed = Bed::new("stm-bytes");
    let session = bed.session(secs(20)).await;
    let stm = stm(&session);
    let long = |last: &[u8]| [&[b'x'; 70_000], last].concat();
    let mut values = vec![
        vec![],
        vec![0],
        vec![0, 0],
        vec![0, 1],
        b"A".to_vec(),
        b"B".to_vec(),
        b"a".to_vec(),
        b"a\0".to_vec(),
        b"ab".to_vec(),
        b"b".to_vec(),
        vec![0x7f],
        vec![0x80],
        vec![0xff],
        vec![0xff, 0],
        "ä".into(),
        "z".into(),
        long(b""),
        long(b"\0"),
        long(b"a"),
        long(b"\xff"),
    ];
    values.sort();
    for (n, value) in values.iter().enumerate() {
        stm.put("value", value.clone()).await.unwrap();
        for (m, other) in values.iter().enumerate() {
            let order = [
                (Compare::value("value").lt(other.clone()), n < m),
                (Compare::value("value").eq(other.clone()), n == m),
                (Compare::value("value").ne(other.clone()), n != m),
                (Compare::value("value").gt(other.clone()), n > m),
            ];
            for (compare, expected) in order {
                let done = stm.txn().when([compare]).commit().await.unwrap();
                assert_eq!(done.succeeded, expected, "{n} {m}");
            }
        }
    }
}

/// However many keys, and however large: one read is one moment of the namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_in_several_steps_is_one_moment() {
    let bed = Bed::new("stm-snapshot");
    let session = bed.session(secs(30)).await;
    let stm = stm(&session);
    let keys: Vec<String> = (0..1_300).map(|n| format!("k{n}")).collect();
    for part in keys.chunks(MAX_OPERATIONS) {
        let puts = part.iter().map(|key| Op::put(key, "0"));
        stm.txn().then(puts).commit().await.unwrap();
    }
    // The first and the last are always written together.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stm, stop) = (stm.clone(), Arc::clone(&stop));
        async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let puts = ["k0", "k1299"].map(|key| Op::put(key, n.to_string()));
                stm.txn().then(puts).commit().await.unwrap();
            }
            n
        }
    });
    let mut seen = std::collections::HashSet::new();
    for _ in 0..30 {
        let values = stm.run(async |tx| tx.get_many(&keys).await).await.unwrap();
        assert_eq!(values[0], values[1_299]);
        assert!(values.iter().all(Option::is_some));
        seen.insert(values[0].clone());
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(seen.len() > 1, "nothing was written meanwhile");
    // More than one answer carries.
    for n in 0..12 {
        stm.put(format!("big{n}"), vec![b'x'; MAX_VALUE_BYTES])
            .await
            .unwrap();
    }
    let big = (0..12).map(|n| format!("big{n}"));
    let big: Vec<String> = big.chain(["absent".to_owned()]).collect();
    let values = stm.run(async |tx| tx.get_many(&big).await).await.unwrap();
    let lengths: Vec<_> = values.iter().map(|v| v.as_ref().map(Vec::len)).collect();
    assert_eq!(lengths[..12], [Some(MAX_VALUE_BYTES); 12]);
    assert_eq!(lengths[12], None);
}

/// Whatever derefs to a `Holding` can bind a commit: while it is held, and not after (rule T3).
#[tokio::test]
async fn a_guard_binds_a_commit() {
    let bed = Bed::new("stm-guards");
    let store = bed.store().await;
    let (holder, writer) = (open(&store, secs(20)).await, open(&store, secs(20)).await);
    let stm = stm(&writer);
    let lock = holder.locker("a/b%#c").unwrap().lock().await.unwrap();
    let rw_lock = holder.rw_lock("x").unwrap();
    let (reader, beside) = (rw_lock.read().await.unwrap(), rw_lock.read().await.unwrap());
    let leader = holder.election("x").unwrap().campaign("me").await.unwrap();
    let inside = holder.double_barrier("x#y", 1).unwrap();
    let inside = inside.enter().await.unwrap();
    let queue = holder.queue("x").unwrap();
    queue.enqueue("item").await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    // By its token alone, and only as long as it is with this consumer.
    let put = || {
        let put = stm.txn().then([Op::put("delivery", "")]);
        put.fenced_by(&delivery).commit()
    };
    put().await.unwrap();
    let guards: [(&str, &tenure_core::Holding); 5] = [
        ("lock", &lock),
        ("reader", &reader),
        ("reader beside", &beside),
        ("leader", &leader),
        ("inside", &inside),
    ];
    for (what, guard) in guards {
        let put = || stm.txn().then([Op::put(what, "")]).fenced_by(guard);
        put().commit().await.unwrap();
        let (key, member) = guard.key().rsplit_once('#').unwrap();
        let removed: u32 = ["", ":w", ":r"]
            .map(|side| bed.ask(&["ZREM", key, &format!("{member}{side}")]))
            .iter()
            .map(|count| count.parse::<u32>().unwrap())
            .sum();
        assert_eq!(removed, 1, "{}", guard.key());
        let error = put().commit().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost, "{what}: {error}");
        assert_eq!(error.effect(), Effect::None, "{what}");
        assert_eq!(version(&stm, what).await, 1);
    }
    holder.close().await.unwrap();
    let error = put().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(version(&stm, "delivery").await, 1);
    let again = writer.queue("x").unwrap().dequeue().await.unwrap();
    let next = stm.txn().then([Op::put("delivery", "")]).fenced_by(&again);
    next.commit().await.unwrap();
}

/// A place that waits holds nothing; nor does one whose session has died.
#[tokio::test]
async fn the_dead_and_those_who_wait_bind_nothing() {
    let bed = Bed::new("stm-dead");
    let store = bed.store().await;
    let (holder, writer) = (open(&store, secs(20)).await, open(&store, secs(20)).await);
    let stm = stm(&writer);
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let put = || stm.txn().then([Op::put("a", "")]).fenced_by(&guard);
    put().commit().await.unwrap();
    bed.of("DEL", &format!("session/{}", holder.id()), &[]);
    // Its place is there still: nobody has buried it.
    assert_eq!(bed.of("ZCARD", "lock/x", &[]), "1");
    let error = put().commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(version(&stm, "a").await, 1);
    // The results of a branch, in order.
    let txn = stm
        .txn()
        .then([Op::get("a"), Op::delete("a"), Op::get("a")]);
    let done = txn.commit().await.unwrap();
    assert!(matches!(
        &done.results[..],
        [
            OpResult::Get(Some(_)),
            OpResult::Delete,
            OpResult::Get(None)
        ]
    ));
}

#[tokio::test]
async fn a_resumed_session_commits_on() {
    let bed = Bed::new("stm-resumed");
    let store = bed.store().await;
    let session = open(&store, secs(20)).await;
    stm(&session).put("a", "1").await.unwrap();
    let before = stm(&session);
    let id = session.detach().await.unwrap();
    let late = before.put("a", "late").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Lost);
    let session = store.resume(&id).await.unwrap();
    stm(&session).put("a", "2").await.unwrap();
    assert_eq!(version(&stm(&session), "a").await, 2);
}

/// As much as the portable limits allow is taken, by way of the longest keys, too.
#[tokio::test]
async fn the_largest_transactions_pass() {
    let bed = Bed::new("stm-limits");
    let session = bed.session(secs(20)).await;
    let stm = stm(&session);
    let key = |n: usize| format!("{n}-{}", "k".repeat(400));
    let most = stm
        .txn()
        .when((0..MAX_OPERATIONS).map(|n| Compare::create(key(n)).eq(0)))
        .then((0..MAX_OPERATIONS).map(|n| Op::put(key(n), "v")))
        .or_else((0..MAX_OPERATIONS).map(|n| Op::get(key(n))));
    assert!(most.commit().await.unwrap().succeeded);
    let large = || vec![b'x'; MAX_VALUE_BYTES];
    stm.put("large", large()).await.unwrap();
    let most = [Op::put("l", large()), Op::put("m", vec![0; 500 * 1024])];
    stm.txn().then(most).commit().await.unwrap();
    let more = [Op::put("l", large()), Op::put("m", vec![0; 512 * 1024])];
    let error = stm.txn().then(more).commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

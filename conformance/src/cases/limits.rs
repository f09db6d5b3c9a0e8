//! Limits, from both sides: what is allowed works whole and is read back, whatever its size or number.
//!
//! What is too large is refused before it is sent: rules T5 and Q1 have those cases.

use std::time::Duration;

use tenure_core::{
    Compare, Item, MAX_BATCH, MAX_OPERATIONS, MAX_VALUE_BYTES, Op, OpResult, StmHandle,
};
use tokio::time::Instant;

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::Harness;

type Step<T> = std::result::Result<T, Outcome>;

/// Sizes around the places where an encoding, a buffer or a column ends.
const SIZES: [usize; 9] = [
    0,
    1,
    255,
    4096,
    64 * 1024 - 1,
    64 * 1024,
    64 * 1024 + 1,
    MAX_VALUE_BYTES - 1,
    MAX_VALUE_BYTES,
];

/// Content in which every byte depends on its place.
fn content(size: usize) -> Vec<u8> {
    let mut random = Random::seeded(size as u64);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Where `found` is not `wanted`.
fn same(what: &str, found: &[u8], wanted: &[u8]) -> Step<()> {
    let first = found
        .iter()
        .zip(wanted)
        .position(|(found, wanted)| found != wanted);
    ensure!(
        found == wanted,
        "{what}: {} bytes were written, {} came back, and the first that differs is {first:?}",
        wanted.len(),
        found.len()
    );
    Ok(())
}

/// T5: a value of any size up to the limit is read back byte by byte, alone and in a transaction.
pub async fn t5_values_of_every_size_come_back(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (stm, there) = (session.stm()?, other.stm()?);
    for size in SIZES {
        let key = format!("size {size}");
        let value = content(size);
        promptly("put", stm.put(&key, value.clone())).await??;
        let read = promptly("get", there.get(&key)).await??;
        let Some(read) = read else {
            return Err(Outcome::violated(format!(
                "a value of {size} bytes is not there"
            )));
        };
        same("put", &read.value, &value)?;
        let mut other = value.clone();
        other.reverse();
        let written = other.clone();
        let run = stm.run(async |tx| {
            let before = tx.get(&key).await?;
            tx.put(&key, written.clone())?;
            Ok(before)
        });
        let before = promptly("a transaction", run).await??;
        same(
            "a read in a transaction",
            &before.unwrap_or_default(),
            &value,
        )?;
        let equal = stm.txn().when([Compare::value(&key).eq(other.clone())]);
        let compared = promptly("a comparison", equal.then([Op::get(&key)]).commit()).await??;
        ensure!(
            compared.succeeded,
            "a value of {size} bytes is not equal to itself"
        );
        let Some(OpResult::Get(Some(read))) = compared.results.first() else {
            return Err(Outcome::violated(format!(
                "{:?} for a get",
                compared.results
            )));
        };
        same("a get in a transaction", &read.value, &other)?;
        ensure!(
            promptly("delete", there.delete(&key)).await??,
            "{key} was not there"
        );
        ensure!(
            promptly("get", stm.get(&key)).await??.is_none(),
            "{key} outlived its delete"
        );
    }
    held!("values of {SIZES:?} bytes came back whole")
}

/// T5: every write, read, delete and comparison of a transaction counts, up to the last that is allowed.
pub async fn t5_every_operation_counts(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (stm, there) = (session.stm()?, other.stm()?);
    let key = |number: usize| format!("key {number:03}");
    let counts = [1, 11, 33, 65, 101, MAX_OPERATIONS];
    for count in counts {
        let value = |number: usize| format!("{count} {number}");
        let puts = (0..count).map(|number| Op::put(key(number), value(number)));
        promptly("puts", stm.txn().then(puts).commit()).await??;
        let gets = (0..count).map(|number| Op::get(key(number)));
        let read = promptly("gets", there.txn().then(gets).commit()).await??;
        ensure!(
            read.results.len() == count,
            "{} of {count} reads",
            read.results.len()
        );
        for (number, result) in read.results.iter().enumerate() {
            let wanted = value(number);
            ensure!(
                matches!(result, OpResult::Get(Some(entry)) if entry.value == wanted.as_bytes()),
                "of {count} puts in a transaction, number {number} is read as {result:?}"
            );
        }
        compares_count(&there, count, key, value).await?;
        // Every other one is deleted, the others written again.
        let mixed = (0..count).map(|number| match number % 2 {
            0 => Op::delete(key(number)),
            _ => Op::put(key(number), "again"),
        });
        promptly("deletes", stm.txn().then(mixed).commit()).await??;
        all_are(&there, count, key, |number| {
            (number % 2 == 1).then_some("again")
        })
        .await?;
        // The same by a closure, which deletes what is left and writes the rest.
        let run = stm.run(async |tx| {
            for number in 0..count {
                match number % 2 {
                    0 => tx.put(key(number), "closure")?,
                    _ => tx.delete(key(number))?,
                }
            }
            Ok(())
        });
        promptly("a transaction", run).await??;
        all_are(&there, count, key, |number| {
            (number % 2 == 0).then_some("closure")
        })
        .await?;
        let rest = (0..count).map(|number| Op::delete(key(number)));
        promptly("deletes", there.txn().or_else([]).then(rest).commit()).await??;
        all_are(&stm, count, key, |_| None).await?;
    }
    held!("transactions of {counts:?} operations did every one of them")
}

async fn all_are(
    stm: &StmHandle,
    count: usize,
    key: impl Fn(usize) -> String,
    wanted: impl Fn(usize) -> Option<&'static str>,
) -> Step<()> {
    let gets = (0..count).map(|number| Op::get(key(number)));
    let read = promptly("gets", stm.txn().then(gets).commit()).await??;
    for (number, result) in read.results.iter().enumerate() {
        let OpResult::Get(found) = result else {
            return Err(Outcome::violated(format!("{result:?} for a get")));
        };
        let found = found.as_ref().map(|entry| entry.value.as_slice());
        ensure!(
            found == wanted(number).map(str::as_bytes),
            "of {count} operations in a transaction, number {number} left {found:?}, not {:?}",
            wanted(number)
        );
    }
    Ok(())
}

/// Of `count` comparisons, each that fails makes the whole fail: the first, a middle one and the last.
async fn compares_count(
    stm: &StmHandle,
    count: usize,
    key: impl Fn(usize) -> String,
    value: impl Fn(usize) -> String,
) -> Step<()> {
    let failing = [None, Some(0), Some(count / 2), Some(count - 1)];
    for (way, wrong) in (0..4).flat_map(|way| failing.map(|wrong| (way, wrong))) {
        let compares = (0..count).map(|number| {
            let (key, fails) = (key(number), wrong == Some(number));
            match (way, fails) {
                (0, false) => Compare::value(key).eq(value(number)),
                (0, true) => Compare::value(key).eq("another"),
                (1, false) => Compare::version(key).gt(0),
                (1, true) => Compare::version(key).lt(1),
                (2, false) => Compare::create(key).ne(0),
                (2, true) => Compare::create(key).eq(0),
                (_, false) => Compare::modified(key).gt(0),
                (_, true) => Compare::modified(key).lt(1),
            }
        });
        let txn = stm
            .txn()
            .when(compares)
            .then([Op::put("then", "x")])
            .or_else([Op::put("else", "x")]);
        let done = promptly("comparisons", txn.commit()).await??;
        ensure!(
            done.succeeded == wrong.is_none(),
            "of {count} comparisons (kind {way}), number {wrong:?} fails, and the transaction says {}",
            done.succeeded
        );
        let left = promptly("delete", stm.delete("then")).await??;
        let other = promptly("delete", stm.delete("else")).await??;
        ensure!(
            left == wrong.is_none() && other == wrong.is_some(),
            "of {count} comparisons (kind {way}), number {wrong:?} fails; the first branch ran: {left}, the second: {other}"
        );
    }
    Ok(())
}

/// T2: what is deleted is gone: for a read, a comparison, and the next put.
pub async fn t2_a_delete_deletes(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let stm = session.stm()?;
    for way in ["delete", "transaction", "closure"] {
        let key = format!("deleted by {way}");
        promptly("put", stm.put(&key, "1")).await??;
        promptly("put", stm.put(&key, "2")).await??;
        match way {
            "delete" => drop(promptly(way, stm.delete(&key)).await??),
            "transaction" => {
                drop(promptly(way, stm.txn().then([Op::delete(&key)]).commit()).await??)
            }
            _ => promptly(way, stm.run(async |tx| tx.delete(&key))).await??,
        }
        let read = promptly("get", stm.get(&key)).await??;
        ensure!(read.is_none(), "after a delete by {way}, {read:?} is read");
        let absent = stm
            .txn()
            .when([Compare::create(&key).eq(0), Compare::version(&key).eq(0)]);
        let absent = promptly("comparisons", absent.commit()).await??;
        ensure!(
            absent.succeeded,
            "after a delete by {way}, it counts as there"
        );
        let again = promptly("delete", stm.delete(&key)).await??;
        ensure!(!again, "a second delete found something");
        promptly("put", stm.put(&key, "3")).await??;
        let read = promptly("get", stm.get(&key)).await??;
        ensure!(
            read.as_ref()
                .is_some_and(|entry| entry.version == 1 && entry.value == b"3"),
            "after a delete by {way} and a put, {read:?} is read"
        );
        promptly("delete", stm.delete(&key)).await??;
    }
    held!("what was deleted in three ways was gone in each")
}

/// Q1: an item of any size up to the limit is peeked, delivered and popped byte by byte.
pub async fn q1_items_of_every_size_come_back(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (queue, there) = (session.queue("sizes")?, other.queue("sizes")?);
    for size in SIZES {
        let value = content(size);
        promptly("enqueue", queue.enqueue(Item::new(&value))).await??;
        let peeked = promptly("peek", there.peek()).await??;
        same(
            "peek",
            &peeked.map(|item| item.value).unwrap_or_default(),
            &value,
        )?;
        let delivery = promptly("dequeue", there.dequeue()).await??;
        same("a delivery", delivery.value(), &value)?;
        ensure!(
            delivery.count() == 1,
            "a first delivery counts {}",
            delivery.count()
        );
        promptly("nack", delivery.nack()).await??;
        let again = promptly("dequeue", queue.dequeue()).await??;
        same("a second delivery", again.value(), &value)?;
        ensure!(
            again.count() == 2,
            "a second delivery counts {}",
            again.count()
        );
        promptly("nack", again.nack()).await??;
        let popped = promptly("pop", there.pop()).await??;
        same("pop", &popped, &value)?;
        let left = promptly("len", queue.len()).await??;
        ensure!(left == 0, "{left} items are left after a pop");
    }
    held!("items of {SIZES:?} bytes came back whole")
}

/// Q2: of a batch of the largest size every item is delivered, and every one comes back when its consumer goes.
pub async fn q2_a_whole_batch_comes_back(harness: &dyn Harness) -> Verdict {
    let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (queue, next) = (first.queue("batch")?, second.queue("batch")?);
    let value = |number: usize| format!("item {number}");
    let items = (0..MAX_BATCH).map(|number| Item::new(value(number)));
    promptly("enqueue_many", queue.enqueue_many(items)).await??;
    let had = promptly("dequeue_many", queue.dequeue_many(MAX_BATCH)).await??;
    let in_order = |values: Vec<&[u8]>| {
        let wanted: Vec<String> = (0..MAX_BATCH).map(value).collect();
        values.into_iter().eq(wanted.iter().map(String::as_bytes))
    };
    ensure!(
        in_order(had.iter().map(|delivery| delivery.value()).collect()),
        "{} of {MAX_BATCH} items were delivered together, or in another order",
        had.len()
    );
    let none = promptly("try_dequeue", next.try_dequeue()).await??;
    ensure!(none.is_none(), "an item of a batch was with two consumers");
    promptly("close", first.close()).await??;
    let mut back = Vec::new();
    let started = Instant::now();
    while back.len() < MAX_BATCH {
        in_time!(
            started.elapsed() < PROMPT * crate::patient::patience(),
            "{} of {MAX_BATCH} items of a batch came back after the close of their consumer",
            back.len()
        );
        match promptly("try_dequeue", next.try_dequeue()).await?? {
            Some(delivery) => back.push(delivery),
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    ensure!(
        back.iter().all(|delivery| delivery.count() == 2),
        "items that came back do not count their deliveries"
    );
    drop(had);
    for delivery in back {
        promptly("ack", delivery.ack()).await??;
    }
    let left = promptly("depth", next.depth()).await??;
    ensure!(left.total() == 0, "{left:?} is left");
    held!("{MAX_BATCH} items were delivered together, came back and were acknowledged")
}

/// Q3: every priority counts, from the lowest number to the highest.
pub async fn q3_every_priority_counts(harness: &dyn Harness) -> Verdict {
    const PRIORITIES: [u16; 12] = [
        65_535, 0, 256, 1, 32_768, 255, 2, 65_534, 257, 9, 10, 32_767,
    ];
    let session = open(harness, LONG).await?;
    let queue = session.queue("priorities")?;
    for priority in PRIORITIES {
        let item = Item::new(priority.to_string()).priority(priority);
        promptly("enqueue", queue.enqueue(item)).await??;
    }
    let mut sorted = PRIORITIES;
    sorted.sort_unstable();
    for priority in sorted {
        let delivery = promptly("dequeue", queue.dequeue()).await??;
        ensure!(
            delivery.priority() == priority && delivery.value() == priority.to_string().as_bytes(),
            "an item of priority {} came where {priority} was due",
            delivery.priority()
        );
        promptly("ack", delivery.ack()).await??;
    }
    held!("items of priorities {sorted:?} came in that order")
}

/// Q1: a deep queue gives back all that it took, in order.
pub async fn q1_a_deep_queue_is_whole(harness: &dyn Harness) -> Verdict {
    const DEPTH: usize = 1_000;
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (queue, consumer) = (session.queue("deep")?, other.queue("deep")?);
    for start in (0..DEPTH).step_by(MAX_BATCH) {
        let items =
            (start..DEPTH.min(start + MAX_BATCH)).map(|number| Item::new(number.to_string()));
        promptly("enqueue_many", queue.enqueue_many(items)).await??;
    }
    let depth = promptly("depth", consumer.depth()).await??;
    ensure!(
        depth.ready == DEPTH as u64 && depth.total() == DEPTH as u64,
        "{DEPTH} items were put in, {depth:?} is there"
    );
    let mut next = 0;
    while next < DEPTH {
        let mut acks = Vec::new();
        for delivery in promptly("dequeue_many", consumer.dequeue_many(MAX_BATCH)).await?? {
            ensure!(
                delivery.value() == next.to_string().as_bytes(),
                "item {} came where {next} was due",
                delivery.value().escape_ascii()
            );
            acks.push(delivery.ack());
            next += 1;
        }
        promptly("acks", futures_util::future::try_join_all(acks)).await??;
    }
    let left = promptly("depth", queue.depth()).await??;
    ensure!(left.total() == 0, "{left:?} is left");
    held!("{DEPTH} items came out as they went in")
}

/// L3: two hundred waiters are all served, in the order of their arrival.
pub async fn l3_two_hundred_waiters_are_served(harness: &dyn Harness) -> Verdict {
    const WAITERS: usize = 200;
    let holder = open(harness, LONG).await?;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(open(harness, LONG).await?);
    }
    let guard = promptly("lock", holder.locker("crowd")?.lock()).await??;
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        waiters.push(waiter(sessions[number % sessions.len()].locker("crowd")?));
    }
    let mut token = guard.token();
    tokio::time::sleep(Duration::from_millis(300)).await;
    promptly("a release", guard.release()).await??;
    // In whichever order they arrived: each is granted once, under a token above the one before.
    let mut tokens = Vec::new();
    let mut done: Vec<Task<tenure_core::Result<_>>> = Vec::new();
    for mut waiter in waiters {
        done.push(spawn(async move {
            let guard = waiter.end(PROMPT * 10, "a grant").await;
            match guard {
                Ok(Ok(guard)) => {
                    let token = guard.token();
                    guard.release().await.map(|()| Some(token))
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Ok(None),
            }
        }));
    }
    for mut waiter in done {
        let granted = waiter
            .end(PROMPT * 10, "the grant to one of 200 waiters")
            .await??;
        let Some(granted) = granted else {
            return Err(Outcome::violated("one of 200 waiters was not granted"));
        };
        tokens.push(granted);
    }
    tokens.sort();
    for next in tokens {
        ensure!(next > token, "token {next} was granted after {token}");
        token = next;
    }
    held!("{WAITERS} waiters of four sessions were all granted, each under a token of its own")
}

/// E4: a value of any size up to the limit is what others see of a leader.
pub async fn e4_values_of_every_size_are_seen(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (election, there) = (session.election("sizes")?, other.election("sizes")?);
    for size in SIZES {
        let mut value = content(size);
        let leadership = promptly("campaign", election.campaign(&value)).await??;
        for _ in 0..2 {
            let seen = promptly("leader", there.leader()).await??;
            let Some(seen) = seen else {
                return Err(Outcome::violated("there is a leader, and none is seen"));
            };
            same("a leader's value", seen.value(), &value)?;
            ensure!(
                seen.token() == leadership.token(),
                "token {} is seen",
                seen.token()
            );
            value.reverse();
            promptly("proclaim", leadership.proclaim(&value)).await??;
        }
        promptly("resign", leadership.resign()).await??;
        let none = promptly("leader", there.leader()).await??;
        ensure!(none.is_none(), "{none:?} is seen after the resignation");
    }
    held!("leaders' values of {SIZES:?} bytes were seen whole")
}

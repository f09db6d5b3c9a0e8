//! Limits, from both sides: what is allowed works whole, and what is not is refused before anything is sent.

use tenure_core::guarantees::Line;
use tenure_core::value::MAX_VALUE_BYTES;
use tenure_core::{Compare, ErrorKind, MAX_BATCH, MAX_OPERATIONS, NewItem, Op, OpResult, StmHandle};

use super::commit::not_sent;
use super::waiter;
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::stress::Random;
use crate::tools::{LONG, done, ensure, held, open, open_linked, promptly, refused};

cases! { CASES:
    s5_too_many_holdings_are_refused "S5"
        "more holdings than a session carries are refused with TooLarge, and harm no other session"
        (None) [Capacity] always;
    h4_values_beyond_the_limit_are_refused "H4"
        "values beyond the limit are refused with TooLarge before anything is sent"
        (None) [Silence] always;
    e4_values_of_every_size_are_shown "E4"
        "a leader's value of any size up to the limit is shown byte by byte" (None) [] always;
    q1_items_of_every_size_come_back "Q1"
        "items of any size up to the limit are delivered, shown and popped byte by byte"
        (Some(Line::QueueDelivery)) [] delivers_until_acknowledged;
    q3_item_behind_many_is_delivered "Q3"
        "an item behind hundreds that are delivered or delayed is delivered" (None) [] always;
    t5_values_of_every_size_come_back "T5"
        "values of any size up to the limit are read back byte by byte" (None) [] transactions;
    t5_every_operation_counts "T5" "every write, deletion, read and comparison counts, up to the last that is allowed"
        (None) [] transactions;
}

/// Sizes around the places where an encoding, a buffer or a column ends.
const SIZES: [usize; 8] = [
    0,
    1,
    255,
    4096,
    64 * 1024 - 1,
    64 * 1024,
    64 * 1024 + 1,
    MAX_VALUE_BYTES,
];

/// Returns bytes of every value, in which each depends on its place.
fn content(size: usize) -> Vec<u8> {
    let mut random = Random::new(size as u64);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

fn same(what: &str, found: &[u8], due: &[u8]) -> Step<()> {
    let first = found.iter().zip(due).position(|(found, due)| found != due);
    ensure!(
        found == due,
        "{what}: {} bytes were written and {} read, the first difference is at {first:?}",
        due.len(),
        found.len()
    );
    Ok(())
}

async fn s5_too_many_holdings_are_refused(harness: &dyn Harness) -> Verdict {
    let capacity = harness
        .capacity()
        .ok_or_else(|| Outcome::not_run("the harness offers a capacity and has none"))?;
    let (full, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let held = done("lock", other.lock("held")).await?;
    let lock = full.locker("held");
    // A wait counts like a holding.
    let waiting = waiter(harness, async move { lock.lock().await }).await?;
    let mut guards = Vec::new();
    for number in 1..capacity {
        guards.push(done("lock within the capacity", full.lock(format!("lock {number}"))).await?);
    }
    for _ in 0..2 {
        let more = promptly("lock", full.lock("one more")).await?;
        refused("one holding too many", more, &[ErrorKind::TooLarge])?;
        let more = promptly("dequeue", full.queue("one more").try_dequeue()).await?;
        refused("one take too many", more, &[ErrorKind::TooLarge])?;
    }
    ensure!(
        guards.iter().all(|guard| guard.is_valid()),
        "a refused request ended a holding"
    );
    ensure!(!waiting.is_finished(), "a refused request ended a wait");
    let _other = done("a lock of another session", other.lock("lock of another session")).await?;
    done("release", guards.swap_remove(0).release()).await?;
    guards.push(done("lock after a release", full.lock("after a release")).await?);
    drop(waiting);
    done("release", held.release()).await?;
    held!("{capacity} holdings and waits, one more refused, and another accepted after a release")
}

async fn h4_values_beyond_the_limit_are_refused(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, LONG).await?;
    let election = session.election("large");
    let lead = done("campaign", election.campaign("small")).await?;
    // A request that is sent from here on has no answer.
    link.silence();
    let (large, too_large) = (vec![b'x'; MAX_VALUE_BYTES + 1], &[ErrorKind::TooLarge]);
    refused(
        "a campaign",
        not_sent("a campaign", election.campaign(&large)).await?,
        too_large,
    )?;
    refused(
        "a try",
        not_sent("a campaign", election.try_campaign(&large)).await?,
        too_large,
    )?;
    refused(
        "a proclamation",
        not_sent("a proclamation", lead.proclaim(&large)).await?,
        too_large,
    )?;
    let queue = session.queue("large");
    refused(
        "an item",
        not_sent("an item", queue.enqueue(large.as_slice())).await?,
        too_large,
    )?;
    let batch = queue.enqueue_many([NewItem::new("small"), NewItem::new(&large)]);
    refused("a batch", not_sent("a batch", batch).await?, too_large)?;
    refused(
        "a key",
        not_sent("a key", session.stm().put("large", large.clone())).await?,
        too_large,
    )?;
    link.heal();
    ensure!(
        lead.is_valid(),
        "a refused proclamation ended the leadership: {:?}",
        lead.loss()
    );
    let shown = done("leader", election.leader()).await?;
    ensure!(
        shown.is_some_and(|leader| &*leader.value == b"small"),
        "a refused proclamation changed the value"
    );
    held!("values of {} bytes were refused by every primitive", large.len())
}

async fn e4_values_of_every_size_are_shown(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (election, watcher) = (session.election("sizes"), other.election("sizes"));
    let mut observer = watcher.observe();
    done("the first state", async { observer.next().await.transpose() }).await?;
    let mut lead = None;
    for size in SIZES {
        let value = content(size);
        match &lead {
            None => lead = Some(done("campaign", election.campaign(&value)).await?),
            Some(lead) => done("proclaim", lead.proclaim(&value)).await?,
        }
        let leader = done("leader", watcher.leader()).await?;
        same(
            "leader",
            &leader.ok_or_else(|| Outcome::violated("no leader"))?.value,
            &value,
        )?;
        let next = done("the next state", async { observer.next().await.transpose() }).await?;
        let shown = next.and_then(|update| update.leader);
        same(
            "observer",
            &shown
                .ok_or_else(|| Outcome::violated("the observer shows no leader"))?
                .value,
            &value,
        )?;
    }
    held!("values of {SIZES:?} bytes were shown whole")
}

async fn q1_items_of_every_size_come_back(harness: &dyn Harness) -> Verdict {
    let (here, there) = (
        open(harness, LONG).await?.queue("sizes"),
        open(harness, LONG).await?.queue("sizes"),
    );
    for size in SIZES {
        let value = content(size);
        done("enqueue", here.enqueue(value.clone())).await?;
        let peeked = done("peek", there.peek()).await?;
        same(
            "peek",
            &peeked.ok_or_else(|| Outcome::violated("peek shows no item"))?.value,
            &value,
        )?;
        for deliveries in 1..=2 {
            let delivery = done("dequeue", there.dequeue()).await?;
            same("dequeue", delivery.value(), &value)?;
            ensure!(
                delivery.deliveries() == deliveries,
                "delivery {deliveries} counts as {}",
                delivery.deliveries()
            );
            done("nack", delivery.nack()).await?;
        }
        same("pop", &done("pop", there.pop()).await?, &value)?;
    }
    // Together they exceed what one answer of a store carries.
    for _ in 0..4 {
        done("enqueue", here.enqueue(content(MAX_VALUE_BYTES))).await?;
    }
    let mut taken = Vec::new();
    while taken.len() < 4 {
        taken.extend(done("dequeue_many", there.dequeue_many(MAX_BATCH)).await?);
    }
    for delivery in taken {
        same("dequeue_many", delivery.value(), &content(MAX_VALUE_BYTES))?;
        done("ack", delivery.ack()).await?;
    }
    held!("items of {SIZES:?} bytes came whole, and four of the largest together")
}

async fn q3_item_behind_many_is_delivered(harness: &dyn Harness) -> Verdict {
    const MANY: usize = 320;
    let (here, there) = (
        open(harness, LONG).await?.queue("deep"),
        open(harness, LONG).await?.queue("deep"),
    );
    for _ in 0..MANY / MAX_BATCH {
        done("enqueue_many", here.enqueue_many((0..MAX_BATCH).map(|_| "in front"))).await?;
        let delayed = (0..MAX_BATCH).map(|_| NewItem::new("delayed").delay(LONG));
        done("enqueue_many", here.enqueue_many(delayed)).await?;
    }
    done("enqueue", here.enqueue(NewItem::new("behind").priority(1))).await?;
    let mut front = Vec::new();
    while front.len() < MANY {
        front.extend(done("dequeue_many", here.dequeue_many(MAX_BATCH.min(MANY - front.len()))).await?);
    }
    ensure!(
        front.iter().all(|delivery| delivery.text() == "in front"),
        "an item came before those in front of it"
    );
    let behind = done("dequeue", there.dequeue()).await?;
    ensure!(
        behind.text() == "behind",
        "{:?} came behind {MANY} delivered and {MANY} delayed items",
        behind.text()
    );
    let depth = done("depth", there.depth()).await?;
    let due = (0, MANY as u64 + 1, MANY as u64);
    ensure!(
        (depth.ready, depth.in_flight, depth.delayed) == due,
        "{due:?} are due, the store counts {depth:?}"
    );
    held!("delivered behind {MANY} items with a consumer and {MANY} delayed ones")
}

async fn t5_values_of_every_size_come_back(harness: &dyn Harness) -> Verdict {
    let (stm, there) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    for size in SIZES {
        let (key, value) = (format!("size {size}"), content(size));
        let absent = || Outcome::violated(format!("a value of {size} bytes is not there"));
        done("put", stm.put(&key, value.clone())).await?;
        same("get", &done("get", there.get(&key)).await?.ok_or_else(absent)?, &value)?;
        let reversed: Vec<u8> = value.iter().rev().copied().collect();
        let run = stm.run(async |tx| {
            let before = tx.get(&key).await?;
            tx.put(&key, reversed.clone())?;
            Ok(before)
        });
        same(
            "a read in a transaction",
            &done("a transaction", run).await?.ok_or_else(absent)?,
            &value,
        )?;
        let equal = stm
            .txn()
            .when([Compare::value(&key).eq(reversed.clone())])
            .then([Op::get(&key)]);
        let compared = done("txn", equal.commit()).await?;
        ensure!(compared.succeeded, "a value of {size} bytes differs from itself");
        let Some(OpResult::Get(Some(entry))) = compared.results.first() else {
            return Err(absent());
        };
        same("a get of a transaction", &entry.value, &reversed)?;
        ensure!(
            done("delete", there.delete(&key)).await?,
            "a value of {size} bytes was not deleted"
        );
    }
    held!("values of {SIZES:?} bytes came back whole")
}

fn key(number: usize) -> String {
    format!("key {number:03}")
}

/// Checks `count` keys, read by a transaction and by a closure.
async fn all_are(stm: &StmHandle, count: usize, due: impl Fn(usize) -> Option<String>) -> Step<()> {
    let read = done(
        "gets",
        stm.txn().then((0..count).map(|number| Op::get(key(number)))).commit(),
    )
    .await?;
    let many = done("get_many", stm.run(async |tx| tx.get_many((0..count).map(key)).await)).await?;
    ensure!(
        read.results.len() == count && many.len() == count,
        "of {count} reads {} came back",
        read.results.len()
    );
    for (number, (result, many)) in read.results.iter().zip(many).enumerate() {
        let due = due(number);
        let due = due.as_deref().map(str::as_bytes);
        let found = match result {
            OpResult::Get(entry) => entry.as_ref().map(|entry| &*entry.value),
            _ => {
                return Err(Outcome::violated(format!("a get was answered with {result:?}")));
            }
        };
        ensure!(
            found == due && many.as_deref() == due,
            "of {count} operations, number {number} left {found:?} instead of {due:?}"
        );
    }
    Ok(())
}

/// Checks that of `count` comparisons each single one can fail the whole: the first, a middle one and the last.
async fn comparisons_count(stm: &StmHandle, count: usize) -> Step<()> {
    for wrong in [None, Some(0), Some(count / 2), Some(count - 1)] {
        let compares = (0..count).map(|number| {
            let (key, fails) = (key(number), wrong == Some(number));
            match number % 4 {
                0 if fails => Compare::value(key).eq("another"),
                0 => Compare::value(key).eq(format!("{count} {number}")),
                1 => Compare::version(key).gt(if fails { 1_000_000 } else { 0 }),
                2 if fails => Compare::create(key).eq(0),
                2 => Compare::create(key).ne(0),
                _ => Compare::modified(key).gt(if fails { u64::MAX >> 11 } else { 0 }),
            }
        });
        let outcome = done("comparisons", stm.txn().when(compares).commit()).await?;
        ensure!(
            outcome.succeeded == wrong.is_none(),
            "{count} comparisons with {wrong:?} wrong: {}",
            outcome.succeeded
        );
    }
    Ok(())
}

async fn t5_every_operation_counts(harness: &dyn Harness) -> Verdict {
    let (stm, there) = (open(harness, LONG).await?.stm(), open(harness, LONG).await?.stm());
    let counts = [1, 11, 65, MAX_OPERATIONS];
    for count in counts {
        let value = |number: usize| format!("{count} {number}");
        let puts = (0..count).map(|number| Op::put(key(number), value(number)));
        done("puts", stm.txn().then(puts).commit()).await?;
        all_are(&there, count, |number| Some(value(number))).await?;
        comparisons_count(&there, count).await?;
        let mixed = (0..count).map(|number| match number % 2 {
            0 => Op::delete(key(number)),
            _ => Op::put(key(number), "again"),
        });
        done("deletions and puts", stm.txn().then(mixed).commit()).await?;
        all_are(&there, count, |number| (number % 2 == 1).then(|| "again".to_owned())).await?;
        let run = stm.run(async |tx| {
            (0..count).try_for_each(|number| match number % 2 {
                0 => tx.put(key(number), "closure"),
                _ => tx.delete(key(number)),
            })
        });
        done("a transaction", run).await?;
        all_are(&there, count, |number| (number % 2 == 0).then(|| "closure".to_owned())).await?;
        let rest = (0..count).map(|number| Op::delete(key(number)));
        done("deletions", there.txn().then(rest).commit()).await?;
        all_are(&stm, count, |_| None).await?;
    }
    held!("transactions of {counts:?} operations carried out each of them")
}

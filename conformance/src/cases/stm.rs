//! Transactions: rules T1 to T5.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tenure_core::{
    Compare, Effect, Error, ErrorKind, Holding, Isolation, MAX_OPERATIONS, MAX_VALUE_BYTES, Op,
    OpResult, Result, Session, StmHandle, Store, Tx,
};
use tokio::sync::Barrier;

pub use super::limits::{
    t2_a_delete_deletes, t5_every_operation_counts, t5_values_of_every_size_come_back,
};
use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::checkers::bank::{self, Bank, BankAnswer, BankCall};
use crate::checkers::list_append::{self, Keys, Level, Lists, Step, Transaction};
use crate::checkers::{Fate, Journal};
use crate::harness::{Harness, Linked};

/// The levels under which committed transactions are serializable.
const SERIALIZABLE: [Isolation; 2] = [Isolation::SerializableSnapshot, Isolation::Serializable];

/// Time for many transactions on a busy machine.
const BUSY: Duration = Duration::from_secs(40);

/// Time for a store to come back, and for clients to notice.
const RECOVERY: Duration = Duration::from_secs(15);

fn fate<T>(result: Result<T>) -> std::result::Result<Fate<T>, Outcome> {
    match result {
        Ok(answer) => Ok(Fate::Done(answer)),
        Err(error) if error.kind() == ErrorKind::CommitUnknown => Ok(Fate::Unknown),
        Err(error) if error.kind() == ErrorKind::Conflict && error.effect() == Effect::None => {
            Ok(Fate::Failed)
        }
        Err(error) => Err(error.into()),
    }
}

async fn number(stm: &StmHandle, key: &str) -> std::result::Result<u64, Outcome> {
    match promptly("a read", stm.get(key)).await?? {
        None => Ok(0),
        Some(entry) => String::from_utf8_lossy(&entry.value)
            .parse()
            .map_err(|_| Outcome::violated(format!("{key} has turned into {entry:?}"))),
    }
}

async fn increment(stm: &StmHandle, key: &str) -> Result<u64> {
    stm.run(async |tx| {
        let count: u64 = tx.get_as(key).await?.unwrap_or(0);
        tx.put_as(key, &(count + 1))?;
        Ok(count + 1)
    })
    .await
}

/// Ten clients that append to a few lists and read them, at one level, in so many rounds each or
/// for so long; half of them share a process. What the judge found: the long form of
/// [`t1_appended_lists_have_no_cycles`] runs it for a minute.
///
/// # Errors
///
/// What ends a case early: a commit that failed with an error that it must not have.
pub async fn append_lists(
    harness: &dyn Harness,
    isolation: Isolation,
    rounds: u64,
    limit: Duration,
) -> std::result::Result<list_append::Findings, Outcome> {
    let history = appended(harness, isolation, rounds, limit).await?;
    Ok(list_append::check(&history))
}

async fn appended(
    harness: &dyn Harness,
    isolation: Isolation,
    rounds: u64,
    limit: Duration,
) -> std::result::Result<Vec<Transaction>, Outcome> {
    const CLIENTS: u64 = 10;
    let journal = Arc::new(Journal::<Vec<Step>, Lists>::new());
    let keys = Arc::new(std::sync::Mutex::new(Keys::new(5, 32)));
    let shared = harness.connect().await?;
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let session = match client % 2 {
            0 => open_on(&shared, LONG).await?,
            _ => open(harness, LONG).await?,
        };
        let stm = session.stm()?.isolation(isolation).attempts(10_000);
        let (journal, keys) = (Arc::clone(&journal), Arc::clone(&keys));
        let mut random = Random::seeded(client * 77 + 1);
        tasks.push(spawn(async move {
            let until = Instant::now() + limit;
            for _ in 0..rounds {
                if Instant::now() >= until {
                    break;
                }
                let steps: Vec<Step> = {
                    let mut keys = keys.lock().unwrap_or_else(|broken| broken.into_inner());
                    let mut step = |_| match random.below(2) {
                        0 => keys.append(random.next()),
                        _ => keys.read(random.next()),
                    };
                    (0..4).map(&mut step).collect()
                };
                let client = usize::try_from(client).unwrap_or_default();
                let ticket = journal.call(client, steps.clone());
                let done = stm
                    .run(|tx| step_by_step(tx, isolation, steps.clone()))
                    .await;
                journal.end(ticket, fate(done)?);
            }
            Ok::<_, Outcome>(())
        }));
    }
    for task in &mut tasks {
        task.end(limit + BUSY, "the transactions").await??;
    }
    Ok(journal.operations())
}

async fn step_by_step(tx: Tx, isolation: Isolation, steps: Vec<Step>) -> Result<Lists> {
    let mut lists = Vec::new();
    for step in steps {
        // Others get their turn in between, on a store that never makes anybody wait, too.
        tokio::task::yield_now().await;
        match step {
            Step::Append { key, value } => {
                let key = format!("isolation {isolation}, list {key}");
                let mut list: Vec<u64> = tx.get_as(&key).await?.unwrap_or_default();
                list.push(value);
                tx.put_as(&key, &list)?;
            }
            Step::Read { key } => {
                let key = format!("isolation {isolation}, list {key}");
                lists.push(tx.get_as(&key).await?.unwrap_or_default());
            }
        }
    }
    Ok(lists)
}

/// T1: lists that many clients append to and read have no cycles; without checks they have.
pub async fn t1_appended_lists_have_no_cycles(harness: &dyn Harness) -> Verdict {
    let mut committed = 0;
    for isolation in SERIALIZABLE {
        let history = appended(harness, isolation, 20, BUSY).await?;
        let findings = list_append::check(&history);
        if let Some(anomaly) = findings.first(Level::StrictSerializable) {
            let picture = list_append::timeline(&history, &anomaly.transactions);
            let broken = Outcome::violated(format!("under {isolation}: {anomaly}"));
            return Err(broken.with_history(picture));
        }
        committed += findings.committed;
    }
    // The control: the same clients, without the checks, and the same judge.
    for _ in 0..5 {
        let findings = append_lists(harness, Isolation::ReadCommitted, 20, BUSY).await?;
        if let Some(anomaly) = findings.first(Level::StrictSerializable) {
            return held!(
                "{committed} transactions without a cycle; under read-committed there was one ({:?})",
                anomaly.class
            );
        }
    }
    Err(Outcome::not_run(
        "the control, under read-committed, had no cycle: too little happened at a time",
    ))
}

/// T1: the sum of all accounts stays the same.
pub async fn t1_the_bank_keeps_its_money(harness: &dyn Harness) -> Verdict {
    const ACCOUNTS: u64 = 5;
    let bank = Bank::new(ACCOUNTS, 100);
    let shared = harness.connect().await?;
    let opener = open_on(&shared, LONG).await?;
    let deposits = (0..ACCOUNTS).map(|account| Op::put(format!("account {account}"), "100"));
    let opening = opener.stm()?.txn().then(deposits).commit();
    promptly("the deposits", opening).await??;
    let journal = Arc::new(Journal::<BankCall, BankAnswer>::new());
    let mut tasks = Vec::new();
    for client in 0..10 {
        let session = match client % 2 {
            0 => open_on(&shared, LONG).await?,
            _ => open(harness, LONG).await?,
        };
        let stm = session.stm()?.attempts(10_000);
        let mut random = Random::seeded(client as u64 + 100);
        let journal = Arc::clone(&journal);
        tasks.push(spawn(async move {
            for round in 0..20 {
                let call = match round % 5 {
                    4 => BankCall::Read,
                    _ => BankCall::Transfer {
                        from: random.below(ACCOUNTS),
                        to: random.below(ACCOUNTS),
                        amount: i64::try_from(random.below(60)).unwrap_or_default(),
                    },
                };
                let ticket = journal.call(client, call.clone());
                let done = stm
                    .run(|tx| at_the_counter(tx, call.clone(), ACCOUNTS))
                    .await;
                journal.end(ticket, fate(done)?);
            }
            Ok::<_, Outcome>(())
        }));
    }
    for task in &mut tasks {
        task.end(BUSY, "the transfers").await??;
    }
    let history = journal.operations();
    let reads = bank.check(&history).map_err(|violation| {
        Outcome::violated(violation.what).with_history(bank::timeline(&history, &violation.places))
    })?;
    let mut sum = 0;
    for account in 0..ACCOUNTS {
        sum += number(&opener.stm()?, &format!("account {account}")).await?;
    }
    ensure!(sum == ACCOUNTS * 100, "the accounts have {sum} in the end");
    held!(
        "{} transfers and {reads} reads of all accounts, always {sum} in all",
        history.len()
    )
}

async fn at_the_counter(tx: Tx, call: BankCall, accounts: u64) -> Result<BankAnswer> {
    let key = |account| format!("account {account}");
    match call {
        BankCall::Read => {
            let balances = tx.get_many((0..accounts).map(key)).await?;
            let balance = |value: Option<Vec<u8>>| {
                let text = String::from_utf8(value.unwrap_or_default()).unwrap_or_default();
                text.parse::<i64>().unwrap_or_default()
            };
            let balances = balances.into_iter().map(balance);
            Ok(BankAnswer::Balances(
                (0..).zip(balances).collect::<BTreeMap<_, _>>(),
            ))
        }
        BankCall::Transfer { from, to, amount } => {
            let found: i64 = tx.get_as(key(from)).await?.unwrap_or_default();
            let gains: i64 = tx.get_as(key(to)).await?.unwrap_or_default();
            if found < amount {
                return Ok(BankAnswer::Refused);
            }
            if from != to {
                tx.put_as(key(from), &(found - amount))?;
                tx.put_as(key(to), &(gains + amount))?;
            }
            Ok(BankAnswer::Moved {
                from: found,
                to: gains,
            })
        }
    }
}

/// What an attempt saw of two keys that are always written together, when they were written
/// between its two reads.
async fn seen_around_a_write(
    stm: &StmHandle,
    other: &StmHandle,
) -> std::result::Result<Vec<(u64, u64)>, Outcome> {
    let both = |value: u64| {
        let puts = ["left", "right"].map(|key| Op::put(key, value.to_string()));
        other.txn().then(puts).commit()
    };
    promptly("a write", both(1)).await??;
    let seen = std::sync::Mutex::new(Vec::new());
    let attempts = AtomicU64::new(0);
    let running = stm.run(async |tx| {
        let left: u64 = tx.get_as("left").await?.unwrap_or(0);
        let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
        if attempt <= 2 {
            both(1 + attempt).await?;
        }
        let right: u64 = tx.get_as("right").await?.unwrap_or(0);
        let mut seen = seen.lock().unwrap_or_else(|broken| broken.into_inner());
        seen.push((left, right));
        Ok(())
    });
    within(BUSY, "the transaction", running).await??;
    Ok(seen
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner()))
}

/// T1: every attempt reads one snapshot, also one that cannot commit.
pub async fn t1_an_attempt_reads_one_snapshot(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let other = other.stm()?;
    let stm = session.stm()?;
    for isolation in SERIALIZABLE {
        let seen = seen_around_a_write(&stm.clone().isolation(isolation), &other).await?;
        let torn = seen.iter().find(|(left, right)| left != right);
        ensure!(
            torn.is_none(),
            "under {isolation} an attempt read {seen:?} where both are always the same"
        );
    }
    // The control: under a level that promises no snapshot, the same attempt sees both states.
    let loose = stm.isolation(Isolation::RepeatableReads);
    let seen = seen_around_a_write(&loose, &other).await?;
    if seen.iter().all(|(left, right)| left == right) {
        return Err(Outcome::not_run(
            "the control, under repeatable-reads, saw nothing odd either",
        ));
    }
    held!("no attempt saw a write by halves; under repeatable-reads one saw {seen:?}")
}

/// Two that are on call each leave if the other stays, at the same time. Returns who is left.
async fn leave_at_the_same_time(
    sessions: [&Session; 2],
    isolation: Isolation,
) -> std::result::Result<u64, Outcome> {
    let ward = move |who| format!("{isolation}: on call {who}");
    let stm = sessions[0].stm()?;
    let arriving = stm.txn().then([0, 1].map(|who| Op::put(ward(who), "1")));
    promptly("a write", arriving.commit()).await??;
    let together = Arc::new(Barrier::new(2));
    let mut leaving = Vec::new();
    for (me, session) in sessions.into_iter().enumerate() {
        let stm = session.stm()?.isolation(isolation);
        let (together, attempts) = (Arc::clone(&together), AtomicU32::new(0));
        leaving.push(spawn(async move {
            stm.run(async |tx| {
                let on_call = tx.get_many([ward(0), ward(1)]).await?;
                if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                    together.wait().await;
                }
                if on_call.iter().all(|value| value.as_deref() == Some(b"1")) {
                    tx.put(ward(me), "0")?;
                }
                Ok(())
            })
            .await
        }));
    }
    for task in &mut leaving {
        task.end(BUSY, "the transaction").await??;
    }
    Ok(number(&stm, &ward(0)).await? + number(&stm, &ward(1)).await?)
}

/// T1: two transactions do not each make sure of what the other one undoes.
pub async fn t1_no_write_skew(harness: &dyn Harness) -> Verdict {
    let shared = harness.connect().await?;
    let (one, two) = (open_on(&shared, LONG).await?, open_on(&shared, LONG).await?);
    let far = open(harness, LONG).await?;
    let levels = [
        Isolation::SerializableSnapshot,
        Isolation::Serializable,
        Isolation::RepeatableReads,
    ];
    for isolation in levels {
        for (second, whose) in [(&two, "of one process"), (&far, "of two processes")] {
            let left = leave_at_the_same_time([&one, second], isolation).await?;
            ensure!(
                left == 1,
                "under {isolation}, {left} of two are on call after both left, {whose}"
            );
        }
    }
    match leave_at_the_same_time([&one, &far], Isolation::ReadCommitted).await? {
        0 => held!(
            "one stays on call at each level that checks what was read; under read-committed both left"
        ),
        left => Err(Outcome::not_run(format!(
            "the control, under read-committed, kept {left} on call"
        ))),
    }
}

/// T1: the snapshot level notices that what it overwrites unread is newer than its snapshot.
pub async fn t1_a_snapshot_notices_newer_writes(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let other = other.stm()?;
    let mut attempts = Vec::new();
    for isolation in SERIALIZABLE {
        let stm = session.stm()?.isolation(isolation);
        let count = AtomicU32::new(0);
        let running = stm.run(async |tx| {
            tx.get("read").await?;
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                other.put("blind", "theirs").await?;
            }
            tx.put("blind", "ours")
        });
        promptly("the transaction", running).await??;
        attempts.push(count.into_inner());
    }
    ensure!(
        attempts[0] == 2,
        "an attempt overwrote what was written after its snapshot: {} attempts",
        attempts[0]
    );
    ensure!(
        attempts[1] == 1,
        "under serializable a write that was not read cost {} attempts",
        attempts[1]
    );
    held!("ran again under the snapshot level, and overwrote it under serializable")
}

/// T1: under contention all get their turn; who must not try again is told `Conflict`.
pub async fn t1_a_conflict_storm_ends(harness: &dyn Harness) -> Verdict {
    const EACH: u64 = 8;
    let mut tasks = Vec::new();
    for _ in 0..10 {
        let session = open(harness, LONG).await?;
        let stm = session.stm()?;
        tasks.push(spawn(async move {
            for _ in 0..EACH {
                increment(&stm, "storm").await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for task in &mut tasks {
        task.end(BUSY, "the end of the storm").await??;
    }
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (stm, other) = (session.stm()?, other.stm()?);
    let count = number(&stm, "storm").await?;
    ensure!(count == 10 * EACH, "{} increments made {count}", 10 * EACH);
    let attempts = AtomicU32::new(0);
    let limited = stm.clone().attempts(3);
    let never = limited.run(async |tx| {
        attempts.fetch_add(1, Ordering::Relaxed);
        let seen = tx.get("storm").await?;
        increment(&other, "storm").await?;
        tx.put("gave up", seen.unwrap_or_default())
    });
    let never = within(BUSY, "an end of three attempts", never).await?;
    let error = refused(
        "three attempts, each with a conflict",
        never,
        &[ErrorKind::Conflict],
    )?;
    let attempts = attempts.into_inner();
    ensure!(
        attempts == 3,
        "{attempts} attempts where 3 were allowed: {error}",
        error = error.chain()
    );
    let trace = promptly("a read", stm.get("gave up")).await??;
    ensure!(
        trace.is_none(),
        "gave up with {error}, and left {trace:?}",
        error = error.chain()
    );
    held!(
        "{count} increments by ten processes, and a typed end after three attempts: {error}",
        error = error.chain()
    )
}

/// T1: comparisons mean what they mean in etcd, of keys that are absent too.
pub async fn t1_comparisons_mean_the_same_everywhere(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let stm = session.stm()?;
    for value in ["a", "m"] {
        promptly("a write", stm.put("here", value)).await??;
    }
    let here = promptly("a read", stm.get("here")).await??;
    let here = here.ok_or_else(|| Outcome::violated("what was written is not there"))?;
    ensure!(
        here.version == 2 && here.created < here.modified,
        "after two writes: {here:?}"
    );
    let (created, modified) = (here.created, here.modified);
    let table = [
        (Compare::value("here").eq("m"), true),
        (Compare::value("here").ne("m"), false),
        (Compare::value("here").lt("n"), true),
        (Compare::value("here").gt("m"), false),
        (Compare::version("here").eq(2), true),
        (Compare::version("here").gt(2), false),
        (Compare::create("here").eq(created), true),
        (Compare::create("here").lt(created), false),
        (Compare::modified("here").ne(modified), false),
        (Compare::modified("here").gt(created), true),
        (Compare::value("absent").eq(""), false),
        (Compare::value("absent").ne("x"), false),
        (Compare::value("absent").lt("x"), false),
        (Compare::version("absent").eq(0), true),
        (Compare::create("absent").eq(0), true),
        (Compare::modified("absent").lt(1), true),
    ];
    for (compare, expected) in table {
        let told = format!("{compare:?}");
        let txn = stm.txn().when([compare]).then([Op::get("here")]);
        let txn = txn.or_else([Op::get("absent")]);
        let outcome = promptly("an answer", txn.commit()).await??;
        let read = OpResult::Get(expected.then(|| here.clone()));
        ensure!(
            outcome.succeeded == expected && outcome.results == [read],
            "{told} came to {outcome:?}"
        );
    }
    let several = stm
        .txn()
        .when([
            Compare::version("here").eq(2),
            Compare::create("absent").gt(0),
        ])
        .then([Op::put("wrong", "")])
        .or_else([
            Op::put("here", "z"),
            Op::get("here"),
            Op::delete("here"),
            Op::delete("absent"),
        ]);
    let several = several.commit();
    match promptly("an answer", several)
        .await?
        .map(|done| (done.succeeded, done.results))
    {
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        other => return Err(Outcome::violated(format!("a key written twice: {other:?}"))),
    }
    let ordered = stm
        .txn()
        .when([
            Compare::version("here").eq(2),
            Compare::create("absent").gt(0),
        ])
        .then([Op::put("wrong", "")])
        .or_else([
            Op::get("here"),
            Op::put("here", "z"),
            Op::get("here"),
            Op::delete("absent"),
        ]);
    let outcome = promptly("an answer", ordered.commit()).await??;
    let found = |result: &OpResult| match result {
        OpResult::Get(Some(entry)) => Some((entry.value.clone(), entry.version)),
        _ => None,
    };
    let found: Vec<_> = outcome.results.iter().map(found).collect();
    let expected = [
        Some((b"m".to_vec(), 2)),
        None,
        Some((b"z".to_vec(), 3)),
        None,
    ];
    ensure!(
        !outcome.succeeded && found == expected,
        "one comparison in two failed, and {outcome:?}"
    );
    held!("16 comparisons, on keys that are there and that are not, and the order of operations")
}

/// T2: what an attempt wrote that was aborted, or met a conflict, is seen by nobody.
pub async fn t2_an_aborted_attempt_leaves_no_trace(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (stm, other) = (session.stm()?, other.stm()?);
    let aborted = stm.run(async |tx| {
        tx.get("seen").await?;
        tx.put("aborted", "1")?;
        tx.delete("seen")?;
        Err::<(), _>(Error::new(ErrorKind::WouldBlock, "enough"))
    });
    let aborted = promptly("the error", aborted).await?;
    refused("an aborted closure", aborted, &[ErrorKind::WouldBlock])?;
    let passed_on = stm.run(async |tx| {
        tx.put("aborted", "2")?;
        tx.put("", "a name that cannot be")
    });
    let passed_on = promptly("the error", passed_on).await?;
    refused("a refused write", passed_on, &[ErrorKind::InvalidName])?;
    let handled = stm.run(async |tx| match tx.put("", "a name that cannot be") {
        Ok(()) => tx.put("aborted", "3"),
        Err(_) => tx.put("handled", "1"),
    });
    promptly("a transaction that handled a refused write", handled).await??;
    let attempts = AtomicU32::new(0);
    let leaked = std::sync::Mutex::new(None);
    let running = stm.run(async |tx| {
        tx.get("contended").await?;
        if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
            increment(&other, "contended").await?;
            tx.put("first attempt", "1")?;
            *leaked.lock().unwrap_or_else(|broken| broken.into_inner()) = Some(tx.clone());
        } else {
            tx.put("second attempt", "1")?;
        }
        Ok(())
    });
    promptly("the transaction", running).await??;
    ensure!(
        attempts.into_inner() == 2,
        "a conflict did not end the attempt"
    );
    let leaked = leaked
        .into_inner()
        .unwrap_or_else(|broken| broken.into_inner());
    if let Some(tx) = leaked {
        refused(
            "a write to an attempt that has ended",
            tx.put("late", ""),
            &[ErrorKind::Conflict],
        )?;
        let read = promptly("an answer", tx.get("late")).await?;
        refused(
            "a read in an attempt that has ended",
            read,
            &[ErrorKind::Conflict],
        )?;
    }
    let other_branch = stm
        .txn()
        .when([Compare::create("nowhere").gt(0)])
        .then([Op::put("then", "1")])
        .commit();
    promptly("an answer", other_branch).await??;
    for key in ["aborted", "first attempt", "then", "late"] {
        let trace = promptly("a read", other.get(key)).await??;
        ensure!(trace.is_none(), "{key:?} is there: {trace:?}");
    }
    let second = promptly("a read", other.get("second attempt")).await??;
    ensure!(second.is_some(), "what the last attempt wrote is not there");
    held!("no trace of an error, of a refused call, of a lost race, or of the other branch")
}

/// T2: dropped at any await point, a transaction happens whole or not at all.
pub async fn t2_a_cancelled_transaction_is_whole_or_nothing(harness: &dyn Harness) -> Verdict {
    /// A future that nobody wakes for this long has come to its last await point.
    const QUIET: Duration = Duration::from_millis(300);
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (stm, other) = (session.stm()?, other.stm()?);
    let (mut whole, mut nothing) = (0, 0);
    for explicit in [false, true] {
        for polls in 0..500_u64 {
            let value = format!("{explicit} {polls}");
            let before = promptly("a read", other.get("a")).await??;
            let writing = async {
                if explicit {
                    let puts = ["a", "b"].map(|key| Op::put(key, value.as_str()));
                    stm.txn().then(puts).commit().await.map(drop)
                } else {
                    stm.run(async |tx| {
                        tx.get_many(["a", "b"]).await?;
                        tx.put("a", value.as_str())?;
                        tx.put("b", value.as_str())
                    })
                    .await
                }
            };
            let polls = usize::try_from(polls).unwrap_or(usize::MAX);
            let last = match give_up_after(polls, QUIET, writing).await {
                GaveUp::Finished(done) => {
                    done?;
                    true
                }
                GaveUp::Dropped => false,
                GaveUp::Quiet => true,
            };
            // The session goes on at once; and what is still on its way is whole when it comes.
            promptly("the next write", stm.put("next", value.as_str())).await??;
            let pair = other.txn().then([Op::get("a"), Op::get("b")]);
            let pair = promptly("a read", pair.commit()).await??;
            let mut pair = pair.results.into_iter().map(|result| match result {
                OpResult::Get(entry) => entry.map(|entry| entry.value),
                _ => None,
            });
            let (a, b) = (pair.next().flatten(), pair.next().flatten());
            ensure!(
                a == b,
                "dropped after {polls} polls, and one of two writes happened: {a:?}, {b:?}"
            );
            match a == before.map(|entry| entry.value) {
                true => nothing += 1,
                false => whole += 1,
            }
            if last {
                break;
            }
        }
    }
    ensure!(whole > 0, "no transaction ever happened");
    held!(
        "dropped at every await point: {whole} times it happened, {nothing} times not yet or never"
    )
}

/// T3: a transaction bound to a guard that the store knows no more does not commit.
pub async fn t3_a_lost_guard_commits_nothing(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let (holder, writer) = (open_on(&store, LONG).await?, open_on(&store, LONG).await?);
    let guard = promptly("lock", holder.locker("fence")?.lock()).await??;
    let stm = writer.stm()?;
    let fenced = stm.fenced_by(&guard);
    let first = fenced.run(async |tx| tx.put("guarded", "first"));
    promptly("a commit while held", first).await??;
    operator(harness)?.delete(guard.key()).await?;
    let successor = promptly("lock", writer.locker("fence")?.lock()).await??;
    let mut refusals = Vec::new();
    let late = fenced.run(async |tx| {
        tx.get("guarded").await?;
        tx.put("guarded", "late")
    });
    refusals.push(promptly("an answer", late).await?);
    let late = fenced.run(async |tx| tx.get("guarded").await.map(drop));
    refusals.push(promptly("an answer", late).await?);
    for held in [0, 1] {
        let late = fenced
            .txn()
            .when([Compare::create("absent").eq(held)])
            .then([Op::put("guarded", "late")])
            .or_else([Op::put("guarded", "later")]);
        refusals.push(promptly("an answer", late.commit()).await?.map(drop));
    }
    for refusal in refusals {
        let error = refused(
            "a commit bound to a lost guard",
            refusal,
            &[ErrorKind::Lost],
        )?;
        ensure!(
            error.effect() == Effect::None,
            "nothing is certain: {error}",
            error = error.chain()
        );
    }
    let stands = promptly("a read", stm.get("guarded")).await??;
    let stands = stands.map(|entry| entry.value);
    ensure!(
        stands.as_deref() == Some(b"first"),
        "a lost guard's commit left {stands:?}"
    );
    let unfenced = stm.put("guarded", "unfenced");
    promptly("an unfenced write", unfenced).await??;
    let mine = stm.fenced_by(&successor);
    let mine = mine.txn().then([Op::put("guarded", "successor")]).commit();
    promptly("the successor's commit", mine).await??;
    let elsewhere = open(harness, LONG).await?;
    let foreign = elsewhere.stm()?.fenced_by(&successor).txn().commit().await;
    refused(
        "a guard of another connection",
        foreign,
        &[ErrorKind::Config],
    )?;
    held!(
        "four commits refused as Lost after the guard was gone; without it, and with the successor's, they go through"
    )
}

/// T3: the same when the holder's whole session was ended.
pub async fn t3_a_revoked_holder_commits_nothing(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let (holder, writer) = (open_on(&store, LONG).await?, open_on(&store, LONG).await?);
    let guard = promptly("lock", holder.locker("fence")?.lock()).await??;
    operator(harness)?.revoke(holder.id()).await?;
    let stm = writer.stm()?;
    let late = stm.fenced_by(&guard);
    let late = late.txn().then([Op::put("guarded", "late")]).commit();
    refused(
        "a commit bound to a lost guard",
        promptly("an answer", late).await?,
        &[ErrorKind::Lost],
    )?;
    let own = holder.stm()?.put("guarded", "from a revoked session").await;
    refused("a commit of a revoked session", own, &[ErrorKind::Lost])?;
    let trace = promptly("a read", stm.get("guarded")).await??;
    ensure!(trace.is_none(), "a revoked session left {trace:?}");
    held!("refused as Lost, with nothing written")
}

/// A guard of some kind binds commits: they go through while it is held, and none does once it is gone.
async fn binds(
    harness: &dyn Harness,
    stm: &StmHandle,
    kind: &str,
    guard: &Holding,
) -> std::result::Result<(), Outcome> {
    let bound = |value: &str| stm.fenced_by(guard).txn().then([Op::put("guarded", value)]);
    let first = promptly("a commit while held", bound(kind).commit()).await?;
    first.map_err(|error| Outcome::cut_short(format!("{kind}: {error}", error = error.chain())))?;
    operator(harness)?.delete(guard.key()).await?;
    let since = Instant::now();
    let refusal = loop {
        match promptly("an answer", bound("late").commit()).await? {
            Err(error) => break error,
            // On some stores it is an order, which the holder's process carries out.
            Ok(_) => in_time!(
                since.elapsed() < PROMPT * crate::patient::patience(),
                "a commit bound to a lost guard ({kind}) still goes through after {PROMPT:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    ensure!(
        refusal.kind() == ErrorKind::Lost && refusal.effect() == Effect::None,
        "a commit bound to a lost guard ({kind}) ended with {refusal:?}"
    );
    promptly("a write", stm.put("guarded", "after")).await??;
    let late = promptly("an answer", bound("late").commit()).await?;
    refused("a commit bound to a lost guard", late, &[ErrorKind::Lost])?;
    let stands = promptly("a read", stm.get("guarded")).await??;
    let stands = stands.map(|entry| entry.value);
    ensure!(
        stands.as_deref() == Some(b"after"),
        "a lost guard's commit ({kind}) left {stands:?}"
    );
    Ok(())
}

/// T3: it is so with every kind of guard that the store has.
pub async fn t3_every_kind_of_guard_binds(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let (holder, writer) = (open_on(&store, LONG).await?, open_on(&store, LONG).await?);
    let stm = writer.stm()?;
    let mut kinds = Vec::new();
    if let Some(election) = offered(holder.election("fence"))? {
        let lead = promptly("campaign", election.campaign("me")).await??;
        binds(harness, &stm, "leadership", &lead).await?;
        kinds.push("leadership");
    }
    if let Some(lock) = offered(holder.rw_lock("fence"))? {
        let reader = promptly("read", lock.read()).await??;
        binds(harness, &stm, "reader", &reader).await?;
        drop(reader);
        let writer = promptly("write", lock.write()).await??;
        binds(harness, &stm, "writer", &writer).await?;
        drop(writer);
        let writer = promptly("write", lock.write()).await??;
        let downgraded = promptly("downgrade", writer.downgrade()).await??;
        binds(harness, &stm, "downgraded writer", &downgraded).await?;
        kinds.extend(["reader", "writer", "downgraded writer"]);
    }
    if let Some(queue) = offered(holder.queue("fence"))? {
        promptly("enqueue", queue.enqueue("work")).await??;
        let delivery = promptly("dequeue", queue.dequeue()).await??;
        binds(harness, &stm, "delivery", &delivery).await?;
        kinds.push("delivery");
    }
    if let Some(barrier) = offered(holder.double_barrier("fence", 1))? {
        let inside = promptly("enter", barrier.enter()).await??;
        binds(harness, &stm, "place in a double barrier", &inside).await?;
        kinds.push("place in a double barrier");
    }
    held!("bound by each while it was held, and not after: {kinds:?}")
}

/// What a store may be without.
fn offered<T>(handle: Result<T>) -> std::result::Result<Option<T>, Outcome> {
    match handle {
        Ok(handle) => Ok(Some(handle)),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A holder that writes as fast as it can is deposed; its successor writes once, and that stands.
async fn nothing_lands_late<G, S>(
    harness: &dyn Harness,
    stm: &StmHandle,
    guard: G,
    successor: impl Future<Output = Result<S>>,
) -> std::result::Result<u64, Outcome>
where
    G: Deref<Target = Holding> + Send + Sync + 'static,
    S: Deref<Target = Holding>,
{
    let guard = Arc::new(guard);
    let (late, own) = (Arc::clone(&guard), stm.clone());
    let mut late = spawn(async move {
        let mut done = 0;
        loop {
            let write = own.fenced_by(&late).txn();
            match write.then([Op::put("guarded", "deposed")]).commit().await {
                Ok(_) => done += 1,
                Err(error) if error.kind() == ErrorKind::Lost => return Ok(done),
                Err(error) => return Err(Outcome::from(error)),
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    operator(harness)?.delete(guard.key()).await?;
    let successor = promptly("the next grant", successor).await??;
    let write = stm.fenced_by(&successor).txn();
    let write = write.then([Op::put("guarded", "successor")]).commit();
    promptly("the successor's commit", write).await??;
    // One that was under way when something happened to its link is only resolved.
    let refused = late.end(RECOVERY, "the refusal of the deposed holder's commits");
    let done = refused.await??;
    let stands = promptly("a read", stm.get("guarded")).await??;
    let stands = stands.map(|entry| entry.value);
    ensure!(
        stands.as_deref() == Some(b"successor"),
        "after the successor's commit one of the deposed holder's landed: {stands:?}"
    );
    Ok(done)
}

/// T3: of two who hold one after the other, the later one's commits are the later ones.
pub async fn t3_no_commit_lands_after_a_successors(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let (holder, next) = (open_on(&store, LONG).await?, open_on(&store, LONG).await?);
    let stm = next.stm()?;
    let (election, then_election) = (offered(holder.election("e"))?, offered(next.election("e"))?);
    let (rw_lock, then_rw_lock) = (offered(holder.rw_lock("r"))?, offered(next.rw_lock("r"))?);
    let (lock, then_lock) = (holder.locker("l")?, next.locker("l")?);
    let mut done = 0;
    for _ in 0..5 {
        let guard = promptly("lock", lock.lock()).await??;
        done += nothing_lands_late(harness, &stm, guard, then_lock.lock()).await?;
        if let (Some(election), Some(then)) = (&election, &then_election) {
            let lead = promptly("campaign", election.campaign("one")).await??;
            done += nothing_lands_late(harness, &stm, lead, then.campaign("two")).await?;
        }
        if let (Some(rw_lock), Some(then)) = (&rw_lock, &then_rw_lock) {
            let writer = promptly("write", rw_lock.write()).await??;
            done += nothing_lands_late(harness, &stm, writer, then.write()).await?;
        }
    }
    ensure!(done > 0, "the deposed never wrote anything");
    held!("{done} commits of holders until they were deposed, and none after a successor's")
}

/// T4: an answer that was lost is made up for, and nothing happens twice.
pub async fn t4_a_lost_answer_is_resolved(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let session = promptly("open", open_on(&store, LONG)).await??;
    let other = open(harness, LONG).await?;
    let (stm, other) = (session.stm()?, other.stm()?);
    let mut sure = 0;
    for round in 0..3_u64 {
        sure += promptly("an increment", increment(&stm, "count"))
            .await?
            .map(|_| 1)?;
        // Blind: that it happens twice is seen by its version alone.
        let (running, writing) = (stm.clone(), stm.clone());
        // In flight when the answers cease, at one moment or another.
        let mut counting = spawn(async move { increment(&running, "count").await });
        let mut writing = spawn(async move { writing.put("blind", "x").await });
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        link.lose();
        tokio::time::sleep(Duration::from_millis(150 + 100 * round)).await;
        link.heal();
        counting.end(RECOVERY, "the outcome of a commit").await??;
        writing.end(RECOVERY, "the outcome of a commit").await??;
        sure += 1;
        // From the start without answers.
        link.lose();
        let running = stm.clone();
        let mut counting =
            spawn(async move { running.txn().then([Op::put("blind", "y")]).commit().await });
        tokio::time::sleep(Duration::from_millis(150)).await;
        link.heal();
        counting.end(RECOVERY, "the outcome of a commit").await??;
    }
    let count = number(&other, "count").await?;
    ensure!(
        count == sure,
        "{sure} increments were acknowledged, and there are {count}"
    );
    let blind = promptly("a read", other.get("blind")).await??;
    let version = blind.map_or(0, |entry| entry.version);
    ensure!(
        version == 6,
        "6 writes were acknowledged, and {version} happened"
    );
    ensure!(session.is_valid(), "the session was lost meanwhile");
    held!(
        "{count} increments and {version} blind writes over a link that lost answers, each done once"
    )
}

/// T4: what cannot be found out is called unknown.
pub async fn t4_what_cannot_be_known_is_reported(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let session = promptly("open", open_on(&store, harness.ttl())).await??;
    let stm = session.stm()?;
    promptly("a write", stm.put("a", "known")).await??;
    link.lose();
    let limit = harness.ttl() + RECOVERY;
    let unknown = within(limit, "an end", stm.put("a", "unknown")).await?;
    let error = refused(
        "a commit without an answer",
        unknown,
        &[ErrorKind::CommitUnknown],
    )?;
    ensure!(
        error.effect() == Effect::Unknown,
        "something is certain: {error}",
        error = error.chain()
    );
    let after = within(limit, "an end", stm.put("a", "after")).await?;
    let after = refused("a commit after the loss", after, &[ErrorKind::Lost])?;
    ensure!(after.effect() == Effect::None, "not sent, and yet: {after}");
    link.heal();
    held!(
        "reported after the loss of the session: {error}",
        error = error.chain()
    )
}

/// T4: a crash of the store in the middle neither loses nor doubles a commit.
pub async fn t4_a_restart_loses_and_doubles_nothing(harness: &dyn Harness) -> Verdict {
    let store: Store = harness.connect().await?;
    let (done, unknown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    let goal = |more: u64| {
        let (before, done) = (done.load(Ordering::Relaxed), Arc::clone(&done));
        async move {
            while done.load(Ordering::Relaxed) < before + more {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    for _ in 0..4 {
        let session = open_on(&store, LONG).await?;
        let stm = session.stm()?.attempts(10_000);
        let (done, unknown) = (Arc::clone(&done), Arc::clone(&unknown));
        let stop = Arc::clone(&stop);
        tasks.push(spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
                match fate(increment(&stm, "count").await)? {
                    Fate::Done(_) => done.fetch_add(1, Ordering::Relaxed),
                    _ => unknown.fetch_add(1, Ordering::Relaxed),
                };
            }
            Ok::<_, Outcome>(())
        }));
    }
    within(BUSY, "the first commits", goal(20)).await?;
    control("the restart", operator(harness)?.restart()).await?;
    within(RECOVERY, "the commits after the restart", goal(20)).await?;
    stop.store(true, Ordering::Relaxed);
    for task in &mut tasks {
        task.end(BUSY, "the end of the commits").await??;
    }
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let count = number(&session.stm()?, "count").await?;
    let (done, unknown) = (
        done.load(Ordering::Relaxed),
        unknown.load(Ordering::Relaxed),
    );
    ensure!(
        (done..=done + unknown).contains(&count),
        "{done} increments were acknowledged and {unknown} unknown, and there are {count}"
    );
    held!("{done} acknowledged, {unknown} unknown, {count} there, over a crash of the store")
}

/// T5: what is too large is refused before anything is sent.
pub async fn t5_limits_are_errors_before_sending(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let session = promptly("open", open_on(&store, LONG)).await??;
    let stm = session.stm()?;
    let puts = |count: usize| (0..count).map(|n| Op::put(format!("key {n}"), "v"));
    let gets = |count: usize| (0..count).map(|n| Op::get(format!("key {n}")));
    let compares = |count: usize| (0..count).map(|n| Compare::create(format!("key {n}")).eq(0));
    let most = stm
        .txn()
        .when(compares(MAX_OPERATIONS))
        .then(puts(MAX_OPERATIONS))
        .or_else(gets(MAX_OPERATIONS));
    let most = promptly("the largest transaction", most.commit()).await??;
    ensure!(most.succeeded, "125 absent keys were not absent");
    let value = vec![b'x'; MAX_VALUE_BYTES];
    promptly("the largest value", stm.put("large", value.clone())).await??;
    let quarter =
        |count: usize| (0..count).map(|n| Op::put(format!("quarter {n}"), vec![b'x'; 256 * 1024]));
    promptly("1.25 MiB", stm.txn().then(quarter(5)).commit()).await??;
    // Whatever is sent from here on is not answered.
    link.silence();
    let one_more = MAX_OPERATIONS + 1;
    let too_large = [
        (
            "one comparison too many",
            stm.txn().when(compares(one_more)),
        ),
        ("one operation too many", stm.txn().then(puts(one_more))),
        ("one read too many", stm.txn().or_else(gets(one_more))),
        (
            "a byte too much",
            stm.txn()
                .then([Op::put("large", [value.clone(), vec![0]].concat())]),
        ),
        ("1.5 MiB", stm.txn().then(quarter(6))),
        (
            "1.75 MiB, over both branches",
            stm.txn().then(quarter(4)).or_else(quarter(3)),
        ),
    ];
    for (what, txn) in too_large {
        refused(
            what,
            promptly(what, txn.commit()).await?,
            &[ErrorKind::TooLarge],
        )?;
    }
    let run = stm.run(async |tx| {
        for n in 0..one_more {
            tx.put(format!("key {n}"), "w")?;
        }
        Ok(())
    });
    refused(
        "126 writes",
        promptly("an error", run).await?,
        &[ErrorKind::TooLarge],
    )?;
    let run = stm.run(async |tx| tx.put("large", [value.clone(), vec![0]].concat()));
    refused(
        "a byte too much",
        promptly("an error", run).await?,
        &[ErrorKind::TooLarge],
    )?;
    for twice in [
        [Op::put("twice", "1"), Op::put("twice", "2")],
        [Op::put("twice", "1"), Op::delete("twice")],
    ] {
        let twice = promptly("an error", stm.txn().then(twice).commit()).await?;
        refused("a key written twice", twice, &[ErrorKind::Conflict])?;
    }
    for bad in ["", "a\0b"] {
        let bad = promptly("an error", stm.put(bad, "")).await?;
        refused("a bad name", bad, &[ErrorKind::InvalidName])?;
    }
    link.heal();
    held!(
        "the largest pass; larger ones, double writes and bad names are refused over a silent link"
    )
}

/// L8, H4: keys are isolated like every other name, and values are not interpreted.
pub async fn l8_keys_are_isolated(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let elsewhere = open_on(&harness.elsewhere().await?, LONG).await?;
    let (stm, there) = (session.stm()?, elsewhere.stm()?);
    let keys = [
        "a", "a/", "a/b", "A", "%2F", "../a", "lock", "'; --", "ключ", "\n",
    ];
    let guard = promptly("lock", session.locker("a")?.lock()).await??;
    for (n, key) in keys.iter().enumerate() {
        let value: Vec<u8> = [n.to_string().as_bytes(), &[0, 255, b'\n']].concat();
        promptly("a write", stm.put(key, value)).await??;
        promptly("a write", there.put(key, "elsewhere")).await??;
    }
    for (n, key) in keys.iter().enumerate() {
        let entry = promptly("a read", stm.get(key)).await??;
        let value: Vec<u8> = [n.to_string().as_bytes(), &[0, 255, b'\n']].concat();
        ensure!(
            entry
                .as_ref()
                .is_some_and(|entry| entry.value == value && entry.version == 1),
            "{key:?} has {entry:?}"
        );
    }
    give_back(guard).await?;
    held!(
        "{} keys, a lock of the same name, and another namespace never met",
        keys.len()
    )
}

//! Locks: what rules L1 to L8 ask of them beyond the table.

use std::sync::Arc;

use tenure_core::guarantees::Line;
use tenure_core::name::MAX_NAME_BYTES;
use tenure_core::{Error, ErrorKind, FenceGate, FencingToken, LockGuard, LockHandle, Session};

use super::{granted, still_waiting, stranded, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::roles::Role;
use crate::stress::contend;
use crate::tools::{
    LONG, LOOK, PROMPT, Task, done, ensure, held, in_time, open, open_linked, operator, refused, settle, spawn,
};

cases! { CASES:
    l1_two_tasks_of_one_session_exclude_each_other "L1" "two tasks of one session exclude each other; the second waits"
        (Some(Line::MutualExclusion)) [] always;
    l1_contenders_exclude_each_other "L1"
        "contending tasks of several sessions hold one after another, under rising tokens"
        (Some(Line::MutualExclusion)) [] always;
    l2_tokens_rise_over_sessions "L2" "tokens rise over sessions that end, also when no session is left"
        (Some(Line::TokenOrder)) [] tokens_rise;
    l2_stale_token_is_refused_at_the_gate "L2"
        "a resource that checks tokens refuses a late holder, the control accepts it"
        (Some(Line::TokenOrder)) [] tokens_rise;
    l3_try_does_not_overtake_a_waiter "L3"
        "a try after a release does not overtake the waiter" (Some(Line::HandOff)) [] fifo;
    l3_crowd_of_waiters_is_served_in_order "L3" "forty waiters of several sessions are served in the order of arrival"
        (Some(Line::HandOff)) [] fifo;
    l3_disturbance_loses_no_hand_off "L3"
        "an operator's acts on a running store leave no waiter asleep" (None) [Disturb] always;
    l4_work_under_the_lock_returns_its_value "L4" "work under a lock returns its value or its error, and frees the lock"
        (None) [] always;
    l5_late_request_finds_its_withdrawal "L5"
        "a request that arrives after its withdrawal is not granted, not even for a moment"
        (Some(Line::Cancellation)) [Strand] prompt_cancellation;
    l7_unconfirmed_release_is_repeated "L7" "a release that the store did not receive is repeated until it is confirmed"
        (None) [Silence] always;
    l8_hostile_names_never_meet "L8" "names that look alike, nest or are hostile never block each other"
        (Some(Line::NameIsolation)) [] isolated_names;
    l8_invalid_names_are_refused "L8" "empty, oversized and NUL-bearing names are refused before anything is sent"
        (None) [Silence] always;
}

/// Returns whether the lock is held; releases a grant.
async fn is_taken(lock: &LockHandle) -> Step<bool> {
    match done("try_lock", lock.try_lock()).await? {
        None => Ok(true),
        Some(guard) => {
            done("release", guard.release()).await?;
            Ok(false)
        }
    }
}

/// Acquires a lock that must be free.
async fn take(session: &Session, name: &str) -> Step<LockGuard> {
    let guard = done("try_lock", session.try_lock(name)).await?;
    guard.ok_or_else(|| {
        Outcome::violated(format!(
            "{name:?} was refused although its name is held by no other client"
        ))
    })
}

fn locking(lock: &LockHandle) -> impl Future<Output = tenure_core::Result<LockGuard>> + Send + use<> {
    let lock = lock.clone();
    async move { lock.lock().await }
}

async fn l1_two_tasks_of_one_session_exclude_each_other(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let lock = session.locker("one");
    let first = done("lock", lock.lock()).await?;
    ensure!(
        is_taken(&session.locker("one")).await?,
        "a try of the same session was granted beside its holder"
    );
    let mut second = waiter(harness, locking(&lock)).await?;
    still_waiting("while another task of the session held the lock", &[&second]).await?;
    ensure!(first.is_valid(), "the first task lost the lock to the second");
    let token = first.token();
    done("release", first.release()).await?;
    let second = granted(&mut second, "the grant to the second task").await?;
    ensure!(
        second.token() > token,
        "token {} followed token {token}",
        second.token()
    );
    done("release", second.release()).await?;
    held!("the second task waited, and was granted a greater token than {token}")
}

async fn l1_contenders_exclude_each_other(harness: &dyn Harness) -> Verdict {
    let summary = contend(harness, &[Role::Lock; 12], 8).await?;
    held!(
        "{} grants in one order, {} accesses accepted",
        summary.grants,
        summary.accepted
    )
}

async fn l2_tokens_rise_over_sessions(harness: &dyn Harness) -> Verdict {
    let mut tokens: Vec<FencingToken> = Vec::new();
    for round in 0..6 {
        let session = open(harness, LONG).await?;
        let guard = done("lock", session.lock("numbered")).await?;
        let token = guard.token();
        ensure!(
            tokens.last() < Some(&token),
            "token {token} was granted after {tokens:?}"
        );
        ensure!(token.get() < 1 << 53, "token {token} is not below 2^53");
        tokens.push(token);
        match round % 3 {
            0 => done("release", guard.release()).await?,
            1 => drop(guard),
            _ => {}
        }
        done("close", session.close()).await?;
    }
    held!("tokens {tokens:?} over six sessions, with none alive in between")
}

async fn l2_stale_token_is_refused_at_the_gate(harness: &dyn Harness) -> Verdict {
    let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (gate, unguarded) = (FenceGate::new("nothing"), parking_lot::Mutex::new("nothing"));
    let guard = done("lock", first.lock("resource")).await?;
    let stale = guard.token();
    ensure!(
        gate.write(stale, |value| *value = "first").is_ok(),
        "the gate refused the holder"
    );
    done("close", first.close()).await?;
    let guard = done("lock", second.lock("resource")).await?;
    ensure!(
        gate.write(guard.token(), |value| *value = "second").is_ok(),
        "the gate refused the successor"
    );
    *unguarded.lock() = "second";
    // The write of the first holder arrives late.
    let late = gate.write(stale, |value| *value = "late");
    *unguarded.lock() = "late";
    ensure!(
        late.is_err() && gate.read(|value| *value == "second"),
        "the gate accepted token {stale} after {}",
        guard.token()
    );
    held!(
        "token {stale} was refused after {}; without a gate the late write won",
        guard.token()
    )
}

async fn l3_try_does_not_overtake_a_waiter(harness: &dyn Harness) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let third = open(harness, LONG).await?;
    let rounds = 5;
    for round in 0..rounds {
        let guard = done("lock", holder.lock("order")).await?;
        let mut waiting = waiter(harness, locking(&other.locker("order"))).await?;
        done("release", guard.release()).await?;
        for session in [&holder, &third] {
            let tried = done("try_lock", session.try_lock("order")).await?;
            ensure!(
                tried.is_none(),
                "round {round}: a try after the release was granted before the waiter"
            );
        }
        done("release", granted(&mut waiting, "the waiter's grant").await?.release()).await?;
    }
    held!("{rounds} times two tries after a release were refused, and the waiter was granted")
}

async fn l3_crowd_of_waiters_is_served_in_order(harness: &dyn Harness) -> Verdict {
    const WAITERS: usize = 40;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(open(harness, LONG).await?);
    }
    let holder = open(harness, LONG).await?;
    let guard = done("lock", holder.lock("crowd")).await?;
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut waiters: Vec<Task<Result<(), Error>>> = Vec::new();
    for number in 0..WAITERS {
        let (lock, order) = (sessions[number % 4].locker("crowd"), Arc::clone(&order));
        let waiting = async move {
            let guard = lock.lock().await?;
            order.lock().push(number);
            guard.release().await
        };
        waiters.push(waiter(harness, waiting).await?);
    }
    done("release", guard.release()).await?;
    for waiter in &mut waiters {
        granted(waiter, "the grant to a waiter").await?;
    }
    let order = order.lock().clone();
    ensure!(
        order.is_sorted(),
        "{WAITERS} waiters were served in the order {order:?}"
    );
    held!("{WAITERS} waiters of 4 sessions were served in the order of their arrival")
}

async fn l3_disturbance_loses_no_hand_off(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let rounds = 3;
    for _ in 0..rounds {
        let guard = done("lock", one.lock("busy")).await?;
        let mut waiting = waiter(harness, locking(&other.locker("busy"))).await?;
        done("a disturbance", operator(harness)?.disturb()).await?;
        still_waiting("after a disturbance, with the lock held", &[&waiting]).await?;
        done("release", guard.release()).await?;
        done(
            "release",
            granted(&mut waiting, "the grant after a disturbance").await?.release(),
        )
        .await?;
    }
    held!("{rounds} disturbances between a waiter's arrival and the release, and it was granted each time")
}

async fn l4_work_under_the_lock_returns_its_value(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, probe) = (session.locker("work"), other.locker("work"));
    let mut last = FencingToken::new(0);
    for round in 0..2 {
        let work = lock.with(async |token: FencingToken| {
            let taken = probe.try_lock().await.is_ok_and(|guard| guard.is_none());
            (round, token, taken)
        });
        let (value, token, taken) = done("work under a lock", work).await?;
        ensure!(value == round, "the work returned {round}, and the caller got {value}");
        ensure!(taken, "the lock was free during the work");
        ensure!(token > last, "token {token} followed {last}");
        last = token;
        let free = done("lock", probe.lock()).await?;
        last = last.max(free.token());
        done("release", free.release()).await?;
    }
    let failed = lock.with(async |_| Err::<(), _>("out of paper"));
    let failed = done("work under a lock", failed).await?;
    ensure!(failed == Err("out of paper"), "the error of the work became {failed:?}");
    ensure!(!is_taken(&probe).await?, "the lock is held after the work has failed");
    held!("values and an error came back, and the lock was free after each")
}

async fn l5_late_request_finds_its_withdrawal(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let (session, link) = open_linked(harness, LONG).await?;
    // While it is held, the store may not refuse the late request merely because it is old.
    let _anchor = take(&session, "anchor").await?;
    for tries in [false, true] {
        link.strand();
        let (lock, trying) = (session.locker("late"), session.locker("late"));
        let locking = spawn(async move {
            match tries {
                true => trying.try_lock().await.map(drop),
                false => lock.lock().await.map(drop),
            }
        });
        stranded(&*link).await?;
        drop(locking);
        settle().await;
        link.deliver();
        for _ in 0..20 {
            ensure!(
                !is_taken(&other.locker("late")).await?,
                "a request that was withdrawn holds the lock"
            );
            tokio::time::sleep(LOOK).await;
        }
    }
    held!("a lock and a try that arrived after their withdrawal left the lock free")
}

async fn l7_unconfirmed_release_is_repeated(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let (session, link) = open_linked(harness, LONG).await?;
    let guard = done("lock", session.lock("kept")).await?;
    link.silence();
    let mut releasing = spawn(async move { guard.release().await });
    still_waiting("over a silent link", &[&releasing]).await?;
    ensure!(
        is_taken(&other.locker("kept")).await?,
        "a release over a silent link freed the lock"
    );
    link.heal();
    granted(&mut releasing, "the release after the silence").await?;
    ensure!(
        !is_taken(&other.locker("kept")).await?,
        "the lock is held after its release was confirmed"
    );
    ensure!(session.is_valid(), "the session was lost: {:?}", session.loss());
    held!("repeated after the silence, confirmed, and free")
}

/// Names that a careless key layout, a query or a shell would confuse.
const HOSTILE: &[&str] = &[
    "a",
    "A",
    "a/",
    "/a",
    "a/b",
    "a//b",
    "a/b/",
    "ab",
    "aa",
    "a-1",
    "a/1",
    "a.b",
    "a:b",
    "a\\b",
    "%2F",
    "a%2Fb",
    "a%2fb",
    "a%252Fb",
    "%",
    "%00",
    "../",
    "..",
    ".",
    "../a",
    "/",
    "//",
    " ",
    "  ",
    "a ",
    " a",
    "a\tb",
    "\n",
    "\r\n",
    "'",
    "\"",
    "`",
    "'; DROP TABLE locks; --",
    "$(a)",
    "{a}",
    "[a]",
    "*",
    "a*",
    "?",
    "#a",
    "a?ttl=1s",
    "lock",
    "default",
    "tenure",
    "é",
    "e\u{301}",
    "ключ",
    "ß",
    "SS",
    "ı",
    "i",
    "🔒",
    "\u{202e}a",
    "\u{feff}a",
    "\u{1}",
    "\u{7f}",
    "\u{10ffff}",
];

async fn l8_hostile_names_never_meet(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let long = "x".repeat(MAX_NAME_BYTES - 1);
    let mut names: Vec<String> = HOSTILE.iter().map(|name| (*name).to_owned()).collect();
    names.extend([format!("{long}y"), format!("{long}z")]);
    let mut guards = Vec::new();
    for name in &names {
        guards.push(take(&session, name).await?);
    }
    for name in &names {
        ensure!(
            is_taken(&other.locker(name)).await?,
            "{name:?} is held, and was granted to another session"
        );
    }
    // One key for each: a value that is written under one name is read under no other.
    for name in &names {
        done("put", session.stm().put(name, name.as_str())).await?;
    }
    for name in &names {
        let entry = done("get", other.stm().entry(name)).await?;
        let own = entry
            .as_ref()
            .is_some_and(|it| &*it.value == name.as_bytes() && it.version == 1);
        ensure!(own, "the key {name:?} has {entry:?}");
    }
    let rest = guards.split_off(1);
    for guard in guards {
        done("release", guard.release()).await?;
    }
    ensure!(
        !is_taken(&other.locker(&names[0])).await?,
        "{:?} is held after its release",
        names[0]
    );
    for name in &names[1..] {
        ensure!(
            is_taken(&other.locker(name)).await?,
            "the release of {:?} freed {name:?}",
            names[0]
        );
    }
    ensure!(
        rest.iter().all(|guard| guard.is_valid()),
        "the release of {:?} ended another guard",
        names[0]
    );
    held!("{} names were held at the same time, each of them alone", names.len())
}

async fn l8_invalid_names_are_refused(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, LONG).await?;
    let longest = "x".repeat(MAX_NAME_BYTES);
    done("release", take(&session, &longest).await?.release()).await?;
    // A request that is sent from here on has no answer.
    link.silence();
    let bad = [
        String::new(),
        "a\0b".to_owned(),
        "x".repeat(MAX_NAME_BYTES + 1),
        "é".repeat(MAX_NAME_BYTES / 2 + 1),
    ];
    for name in &bad {
        let invalid = &[ErrorKind::InvalidName];
        let sent = async {
            refused("lock", session.lock(name).await, invalid)?;
            refused("read", session.rw_lock(name).read().await, invalid)?;
            refused("campaign", session.election(name).campaign("").await, invalid)?;
            refused("enqueue", session.queue(name).enqueue("").await, invalid)?;
            refused("dequeue", session.queue(name).dequeue().await, invalid)?;
            refused("hold", session.barrier(name).hold().await, invalid)?;
            refused("enter", session.double_barrier(name, 1).enter().await, invalid)?;
            refused("put", session.stm().put(name, "").await, invalid)?;
            refused("get", session.stm().get(name).await, invalid)
        };
        let limit = tokio::time::timeout(PROMPT, sent).await;
        limit.map_err(|_| Outcome::violated(format!("a name of {} bytes was sent, not refused", name.len())))??;
    }
    link.heal();
    settle().await;
    in_time!(
        session.is_valid(),
        "the session was lost in the silence: {:?}",
        session.loss()
    );
    held!(
        "{} invalid names were refused by every primitive, {MAX_NAME_BYTES} bytes are accepted",
        bad.len()
    )
}

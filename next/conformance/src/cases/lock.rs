//! Locks: what rules L1 to L8 ask of them beyond the table.

use tenure_core::guarantees::Line;
use tenure_core::name::MAX_NAME_BYTES;
use tenure_core::{ErrorKind, FenceGate, FencingToken, LockGuard, LockHandle, Session};

use super::{granted, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{
    LONG, PROMPT, done, ensure, held, in_time, offered, open, open_linked, operator, refused, settle, spawn,
};

cases! { CASES:
    l2_stale_token_is_refused_at_the_gate "L2"
        "a resource that checks tokens refuses a late holder, the control accepts it"
        (Some(Line::TokenOrder)) [] tokens_rise;
    l3_disturbance_loses_no_hand_off "L3"
        "an operator's acts on a running store leave no waiter asleep" (None) [Disturb] always;
    l4_work_under_the_lock_returns_its_value "L4" "work under a lock returns its value or its error, and frees the lock"
        (None) [] always;
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
#[rustfmt::skip]
const HOSTILE: &[&str] = &[
    "a", "A", "a/", "/a", "a/b", "a//b", "a/b/", "ab", "aa", "a-1", "a/1", "a.b", "a:b", "a\\b", "%2F", "a%2Fb",
    "a%2fb", "a%252Fb", "%", "%00", "../", "..", ".", "../a", "/", "//", " ", "  ", "a ", " a", "a\tb", "\n", "\r\n",
    "'", "\"", "`", "'; DROP TABLE locks; --", "$(a)", "{a}", "[a]", "*", "a*", "?", "#a", "a?ttl=1s", "lock",
    "default", "tenure", "é", "e\u{301}", "ключ", "ß", "SS", "ı", "i", "🔒", "\u{202e}a", "\u{feff}a", "\u{1}",
    "\u{7f}", "\u{10ffff}",
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
    // A value that is written under one name is read under no other.
    let mut keys = Vec::new();
    for name in &names {
        let put = done("put", session.stm().put(name, name.as_str())).await;
        keys.extend(offered(put)?.map(|_| name));
    }
    for name in keys {
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

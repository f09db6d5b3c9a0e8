//! What becomes of clients when the store loses a part of its history: rule O4.
//!
//! An operator restores a backup. Whatever was granted after the backup is gone from the store, which may grant
//! it again at once. A client cannot know that before it hears from the restored store. So a holding of the lost
//! history ends with the next renewal at the latest, and not at the end of its lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tenure_core::{
    ErrorKind, FencingToken, HoldFor, Holding, Leader, LockGuard, Observer, Result, Session, Store,
};
use tokio::sync::watch;

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::Harness;

/// Time for a store to come back from its backup, and for clients to find it.
const RECOVERY: Duration = Duration::from_secs(20);

/// Within this an observer shows what is proclaimed after the restore: it has found the store by then, or notices
/// with the next renewal.
const CATCH_UP: Duration = Duration::from_secs(8);

/// So long that a third of it (the pause between two renewals) and [`SLACK`] end well before it does.
const TTL: Duration = Duration::from_secs(9);

/// How far the floor is raised above the greatest token.
const LIFT: u64 = 1_000;

type Step<T> = std::result::Result<T, Outcome>;

async fn snapshot(harness: &dyn Harness) -> Step<()> {
    let saving = operator(harness)?.snapshot();
    control("the snapshot", saving).await
}

async fn restore(harness: &dyn Harness) -> Step<()> {
    let restoring = operator(harness)?.restore();
    control("the restore", restoring).await
}

/// O4: no holding that a restore took away stays valid, whatever its kind, and whether its session was known to
/// the snapshot or not.
///
/// The bound is the next renewal: a third of the TTL after the store serves again.
pub async fn o4_no_holding_of_a_lost_history_stays_valid(harness: &dyn Harness) -> Verdict {
    let known = open(harness, TTL).await?;
    let jobs = known.queue("jobs")?;
    promptly("enqueue", jobs.enqueue("resize")).await??;
    snapshot(harness).await?;
    let late = open(harness, TTL).await?;
    let lock = promptly("lock", known.locker("lock")?.lock()).await??;
    let read = promptly("read", known.rw_lock("read")?.read()).await??;
    let write = promptly("write", known.rw_lock("write")?.write()).await??;
    let lead = promptly("campaign", known.election("office")?.campaign("one")).await??;
    let delivery = promptly("dequeue", jobs.dequeue()).await??;
    let gate = known.barrier("gate")?;
    promptly("hold", gate.hold(HoldFor::Session)).await??;
    let late_lock = promptly("lock", late.locker("late")?.lock()).await??;
    let held: [(&str, &Holding); 6] = [
        ("a lock", &lock),
        (
            "a lock of a session that the snapshot does not know",
            &late_lock,
        ),
        ("a read lock", &read),
        ("a write lock", &write),
        ("a leadership", &lead),
        ("a delivery", &delivery),
    ];
    restore(harness).await?;
    let served = Instant::now();
    let bound = known.ttl() / 3 + SLACK;
    let mut worst = Duration::ZERO;
    for (what, holding) in held {
        let left = bound.saturating_sub(served.elapsed());
        // The lease cannot have run out: what ends the holding is the client's knowledge of the restore.
        let told = tokio::time::timeout(left, holding.lost()).await.is_ok();
        ensure!(
            told && !holding.is_valid(),
            "{what} was granted after the snapshot and counted as valid {:?} after the store was restored to it (renewed every {:?})",
            served.elapsed(),
            known.ttl() / 3
        );
        worst = worst.max(served.elapsed());
    }
    // Another holds the gate now; the end of the first holder's session must spare it.
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let gate = other.barrier("gate")?;
    let holding = async {
        loop {
            match gate.hold(HoldFor::Session).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done,
            }
        }
    };
    within(
        TTL + RECOVERY,
        "holding the gate after the restore",
        holding,
    )
    .await??;
    let _ = promptly("close", known.close()).await?;
    let still = promptly("an answer to is_held", gate.is_held()).await??;
    ensure!(
        still,
        "the end of a session whose hold a restore had taken away lifted the hold of its successor"
    );
    held!("every holding that the restore took away was lost within {worst:?} of it")
}

/// Who is inside, as each of them sees it: more than one at a time is an overlap.
struct Room {
    inside: AtomicUsize,
    overlaps: AtomicUsize,
}

impl Room {
    fn with_one_inside() -> Self {
        Self {
            inside: AtomicUsize::new(1),
            overlaps: AtomicUsize::new(0),
        }
    }

    /// Is inside from before the restore until it is told to leave, or loses `holding`.
    async fn leave(&self, holding: &Holding, mut told: watch::Receiver<bool>) {
        tokio::select! {
            _ = holding.lost() => {}
            _ = told.wait_for(|told| *told) => {}
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Stays inside for a while, or until `holding` is lost.
    async fn visit(&self, holding: &Holding) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let entered = Instant::now();
        let mut together = 0;
        while holding.is_valid() && entered.elapsed() < Duration::from_millis(600) {
            // One look may meet a holder that has lost and has not left yet.
            together = match self.inside.load(Ordering::SeqCst) {
                0 | 1 => 0,
                _ => together + 1,
            };
            if together > 10 {
                self.overlaps.fetch_add(1, Ordering::SeqCst);
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What one waits for and holds exclusively.
#[derive(Clone, Copy, Debug)]
enum Role {
    Lock,
    Reader,
    Writer,
    Candidate,
}

impl Role {
    const ALL: [Self; 4] = [Self::Lock, Self::Reader, Self::Writer, Self::Candidate];

    const fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Reader => "readers",
            Self::Writer => "writers",
            Self::Candidate => "office",
        }
    }

    /// Waits for it in this role, and visits the room with it.
    async fn take_part(self, session: Arc<Session>, room: Arc<Room>) -> Result<()> {
        match self {
            Self::Reader => {
                let guard = session.rw_lock(self.name())?.read().await?;
                room.visit(&guard).await;
                guard.release().await
            }
            other => other.exclude(session, room).await,
        }
    }

    /// Waits for it in the role that excludes everybody, and visits the room with it.
    async fn exclude(self, session: Arc<Session>, room: Arc<Room>) -> Result<()> {
        match self {
            Self::Lock => {
                let guard = session.locker(self.name())?.lock().await?;
                room.visit(&guard).await;
                guard.release().await
            }
            Self::Reader | Self::Writer => {
                let guard = session.rw_lock(self.name())?.write().await?;
                room.visit(&guard).await;
                guard.release().await
            }
            Self::Candidate => {
                let lead = session.election(self.name())?.campaign("rival").await?;
                room.visit(&lead).await;
                lead.resign().await
            }
        }
    }
}

/// O4: who waited in the lost history ends with an error, or stands in line again and is granted in turn: never
/// beside a holder of the restored store, and never not at all.
pub async fn o4_waiters_of_a_lost_history_fail_or_join_again(harness: &dyn Harness) -> Verdict {
    let ttl = harness.ttl() * 2;
    let limit = ttl * 2 + expiry_bound(harness).await? + RECOVERY;
    let holder = open(harness, ttl).await?;
    let lock = promptly("lock", holder.locker("lock")?.lock()).await??;
    let readers = promptly("write", holder.rw_lock("readers")?.write()).await??;
    let writers = promptly("write", holder.rw_lock("writers")?.write()).await??;
    let office = promptly("campaign", holder.election("office")?.campaign("one")).await??;
    // Two of each role that excludes its like: a store that grants to both shows it even where the holder has left at
    // once.
    let waiting = [
        Arc::new(open(harness, ttl).await?),
        Arc::new(open(harness, ttl).await?),
    ];
    snapshot(harness).await?;
    let gate = holder.barrier("gate")?;
    promptly("hold", gate.hold(HoldFor::Session)).await??;

    let rooms = Role::ALL.map(|_| Arc::new(Room::with_one_inside()));
    let (tell, told) = watch::channel(false);
    let mut holders: Vec<Task<()>> = Vec::new();
    // Which of them the restored store still has, and how long, is its own matter.
    let (room, until) = (Arc::clone(&rooms[0]), told.clone());
    holders.push(spawn(async move {
        room.leave(&lock, until).await;
        let _ = lock.release().await;
    }));
    for (room, guard) in rooms[1..].iter().zip([readers, writers]) {
        let (room, until) = (Arc::clone(room), told.clone());
        holders.push(spawn(async move {
            room.leave(&guard, until).await;
            let _ = guard.release().await;
        }));
    }
    let room = Arc::clone(&rooms[3]);
    holders.push(spawn(async move {
        room.leave(&office, told).await;
        let _ = office.resign().await;
    }));

    let mut arrivals = Arrivals::watch(harness).await?;
    let mut waiters = Vec::new();
    for (role, room) in Role::ALL.into_iter().zip(&rooms) {
        let count = if matches!(role, Role::Reader) { 1 } else { 2 };
        for session in waiting.iter().take(count) {
            let taking = role.take_part(Arc::clone(session), Arc::clone(room));
            waiters.push((role, spawn(taking)));
            arrivals.one_more().await?;
        }
    }
    let waits = waiting[0].barrier("gate")?;
    let mut passing = spawn(async move { waits.wait().await });
    let takes = waiting[0].queue("jobs")?;
    let mut consuming = spawn(async move { takes.dequeue().await });
    // Neither of the two leaves a key on every store.
    tokio::time::sleep(Duration::from_millis(300)).await;

    restore(harness).await?;
    let fresh = Arc::new(within(RECOVERY, "open", open(harness, LONG)).await??);
    let mut rivals = Vec::new();
    for (role, room) in Role::ALL.into_iter().zip(&rooms) {
        rivals.push(spawn(role.exclude(Arc::clone(&fresh), Arc::clone(room))));
    }
    let jobs = fresh.queue("jobs")?;
    within(RECOVERY, "enqueue", jobs.enqueue("after the restore")).await??;
    // The rivals stand in line by then, where they have to; nothing depends on it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    tell.send_replace(true);
    for holder in &mut holders {
        holder.end(RECOVERY, "a release after the restore").await?;
    }

    let mut granted = 0;
    for (role, rival) in Role::ALL.into_iter().zip(&mut rivals) {
        let never = format!("the end of the rival's turn ({role:?})");
        rival
            .end(limit, &never)
            .await?
            .map_err(|error| error.during("a turn after the restore"))?;
    }
    for (role, waiter) in &mut waiters {
        let never = format!("the end of a wait of the lost history ({role:?})");
        let ended = waiter.end(limit, &never).await?;
        granted += usize::from(ended.is_ok());
    }
    for (role, room) in Role::ALL.into_iter().zip(&rooms) {
        ensure!(
            room.overlaps.load(Ordering::SeqCst) == 0,
            "after a restore, one who had waited before it ({role:?}) and another were valid holders at the same time"
        );
    }
    let never = "the end of a wait at a barrier that the restore had opened";
    let passed = passing.end(limit, never).await?;
    let never = "the end of a dequeue that the restore had met";
    let consumed = consuming.end(limit, never).await?;
    match consumed {
        Ok(delivery) => drop(delivery),
        Err(_) => {
            let taken = within(limit, "the item that nobody took", jobs.dequeue());
            taken.await??.ack().await?;
        }
    }
    held!(
        "of {} waits of the lost history {granted} were granted in turn and the others failed; the wait at the barrier {}",
        waiters.len(),
        if passed.is_ok() { "passed" } else { "failed" }
    )
}

fn text(leader: Option<&Leader>) -> Option<String> {
    leader.map(|leader| leader.text().into_owned())
}

/// Until the observer shows `value`; says whether it did, or ended with its session.
async fn shows(observer: &mut Observer, value: &str) -> Result<bool> {
    while let Some(state) = observer.next().await {
        match state {
            Ok(state) if text(state.as_ref()).as_deref() == Some(value) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Lost => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// O4: an observer that saw the lost history shows what is proclaimed after the restore, or ends with its
/// session; it does not stay with what the store has forgotten.
pub async fn o4_observers_converge_after_a_restore(harness: &dyn Harness) -> Verdict {
    let ttl = harness.ttl() * 2;
    let limit = ttl * 2 + expiry_bound(harness).await? + RECOVERY;
    let leader = open(harness, ttl).await?;
    let watcher = open(harness, ttl).await?;
    let lead = promptly("campaign", leader.election("office")?.campaign("kept")).await??;
    snapshot(harness).await?;
    let mut observer = watcher.election("office")?.observe();
    for number in 1..=20 {
        promptly("proclaim", lead.proclaim(format!("lost {number}"))).await??;
    }
    let shown = within(
        RECOVERY,
        "the observer's last state",
        shows(&mut observer, "lost 20"),
    );
    ensure!(shown.await??, "the observer ended before the restore");
    restore(harness).await?;
    let fresh = within(RECOVERY, "open", open(harness, LONG)).await??;
    let office = fresh.election("office")?;
    // The old leader goes on, if it is one in the restored store, or another takes over.
    let proclaimed = within(RECOVERY, "proclaim", lead.proclaim("after")).await?;
    let _successor = match proclaimed {
        Ok(()) => None,
        Err(_) => {
            drop(lead);
            let campaign = office.campaign("after");
            Some(within(limit, "a leader after the restore", campaign).await??)
        }
    };
    let told = within(
        CATCH_UP,
        "the observer's showing what was proclaimed after a restore, or its end",
        shows(&mut observer, "after"),
    );
    if !told.await?? {
        // Its session was ended by the restore: the next one sees the present.
        let session = within(RECOVERY, "open", open(harness, LONG)).await??;
        let mut observer = session.election("office")?.observe();
        let shown = within(
            RECOVERY,
            "the new observer's state",
            shows(&mut observer, "after"),
        );
        ensure!(
            shown.await??,
            "an observer that began after the restore ended"
        );
        return held!("the observer ended with its session, and the next one showed the present");
    }
    held!("the observer showed what was proclaimed after the restore")
}

/// A grant of each kind, given back.
async fn a_token_of_each_kind(session: &Session) -> Step<Vec<(&'static str, FencingToken)>> {
    let mut tokens = Vec::new();
    let guard = promptly("lock", session.locker("lock")?.lock()).await??;
    tokens.push(("a lock", guard.token()));
    give_back(guard).await?;
    let guard = promptly("try_lock", session.locker("lock")?.try_lock()).await??;
    tokens.push(("a try_lock", guard.token()));
    give_back(guard).await?;
    let guard = promptly("read", session.rw_lock("rw")?.read()).await??;
    tokens.push(("a read lock", guard.token()));
    promptly("a release", guard.release()).await??;
    let guard = promptly("write", session.rw_lock("rw")?.write()).await??;
    tokens.push(("a write lock", guard.token()));
    promptly("a release", guard.release()).await??;
    let lead = promptly("campaign", session.election("office")?.campaign("one")).await??;
    tokens.push(("a leadership", lead.token()));
    let shown = promptly("leader", session.election("office")?.leader()).await??;
    let shown = shown.map(|leader| leader.token());
    ensure!(
        shown == Some(lead.token()),
        "a leader under token {} is shown with {shown:?}",
        lead.token()
    );
    promptly("a resignation", lead.resign()).await??;
    let queue = session.queue("jobs")?;
    promptly("enqueue", queue.enqueue("resize")).await??;
    let delivery = promptly("dequeue", queue.dequeue()).await??;
    tokens.push(("a delivery", delivery.token()));
    promptly("ack", delivery.ack()).await??;
    let inside = promptly("enter", session.double_barrier("phase", 1)?.enter()).await??;
    tokens.push(("a double barrier", inside.token()));
    promptly("leave", inside.leave()).await??;
    Ok(tokens)
}

fn greatest(tokens: &[(&str, FencingToken)]) -> u64 {
    let tokens = tokens.iter().map(|(_, token)| token.get());
    tokens.max().unwrap_or_default()
}

fn reach(tokens: &[(&str, FencingToken)], floor: FencingToken) -> Step<()> {
    for (kind, token) in tokens {
        ensure!(
            *token >= floor,
            "the floor was raised to {floor}, and {kind} was granted under token {token} after that"
        );
    }
    Ok(())
}

async fn raise(store: &Store, floor: u64) -> Step<FencingToken> {
    let floor = FencingToken::new(floor);
    promptly("raising the floor", store.raise_token_floor(floor)).await??;
    Ok(floor)
}

/// O4: after a restore tokens go on rising once an operator has raised their floor: for every kind of grant, for
/// who waited before, and for good.
pub async fn o4_tokens_rise_after_the_floor_is_raised(harness: &dyn Harness) -> Verdict {
    snapshot(harness).await?;
    let session = open(harness, LONG).await?;
    let mut before = 0;
    for _ in 0..3 {
        before = before.max(greatest(&a_token_of_each_kind(&session).await?));
    }
    drop(session);
    restore(harness).await?;
    let store = within(RECOVERY, "connect", harness.connect()).await??;
    let session = within(RECOVERY, "open", open_on(&store, LONG)).await??;
    let held = promptly("lock", session.locker("held")?.lock()).await??;
    let kept = held.token();
    let mut arrivals = Arrivals::watch(harness).await?;
    let waits = session.locker("held")?;
    let mut waiter: Task<Result<LockGuard>> = spawn(async move { waits.lock().await });
    arrivals.one_more().await?;

    let floor = raise(&store, before + LIFT).await?;
    ensure!(
        held.is_valid() && held.token() == kept,
        "raising the floor cost a holder its guard, or changed its token"
    );
    give_back(held).await?;
    let behind = waiter.end(PROMPT, "the waiter's grant").await??;
    reach(&[("a wait that began before", behind.token())], floor)?;
    // The token that was granted is the one that a commit is bound to.
    if let Ok(stm) = session.stm() {
        let fenced = stm.fenced_by(&behind);
        let commit = fenced.run(async |tx| tx.put("fenced", "by"));
        promptly("a fenced commit", commit).await??;
    }
    give_back(behind).await?;
    let after = a_token_of_each_kind(&session).await?;
    reach(&after, floor)?;
    // A lower floor changes nothing, for another client either.
    raise(&store, 1).await?;
    let other = open(harness, LONG).await?;
    let last = a_token_of_each_kind(&other).await?;
    for ((kind, earlier), (_, later)) in after.iter().zip(&last) {
        ensure!(
            later > earlier,
            "after the floor of {floor}, {kind} was granted under token {earlier}, and then under {later}"
        );
    }
    held!(
        "tokens up to {before} before the restore; with a floor of {floor} from {} to {} after it",
        greatest(&after),
        greatest(&last)
    )
}

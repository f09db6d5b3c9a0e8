//! Read-write locks: rules R1 to R3, and L4 to L8 as far as they are about them.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenure_core::backend::Side;
use tenure_core::{
    ErrorKind, FencingToken, Holding, ReadGuard, Result, RwLockHandle, Session, WriteGuard,
};

use super::cancel::{at_every_await_point, was_last};
use super::mass_death::{Wanted, survivor_is_served};
use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::{Harness, Linked, Need};

type Judged<T = ()> = std::result::Result<T, Outcome>;

/// A guard of either side.
#[derive(Debug)]
enum Guard {
    Read(ReadGuard),
    Write(WriteGuard),
}

impl Deref for Guard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        match self {
            Self::Read(guard) => guard,
            Self::Write(guard) => guard,
        }
    }
}

impl Guard {
    async fn release(self) -> Result<()> {
        match self {
            Self::Read(guard) => guard.release().await,
            Self::Write(guard) => guard.release().await,
        }
    }
}

async fn take(lock: &RwLockHandle, side: Side) -> Result<Guard> {
    match side {
        Side::Read => lock.read().await.map(Guard::Read),
        Side::Write => lock.write().await.map(Guard::Write),
    }
}

async fn try_take(lock: &RwLockHandle, side: Side) -> Result<Guard> {
    match side {
        Side::Read => lock.try_read().await.map(Guard::Read),
        Side::Write => lock.try_write().await.map(Guard::Write),
    }
}

async fn take_within(lock: &RwLockHandle, side: Side, limit: Duration) -> Result<Guard> {
    match side {
        Side::Read => lock.read_timeout(limit).await.map(Guard::Read),
        Side::Write => lock.write_timeout(limit).await.map(Guard::Write),
    }
}

async fn taken(lock: &RwLockHandle, side: Side) -> Judged<Guard> {
    Ok(promptly(&format!("a grant to {side:?}"), take(lock, side)).await??)
}

async fn give(guard: Guard) -> Judged {
    Ok(promptly("a release", guard.release()).await??)
}

/// Whether trying for `side` is refused because it would have to wait; gives a grant back.
async fn is_refused(lock: &RwLockHandle, side: Side) -> Judged<bool> {
    match promptly("an answer to a try", try_take(lock, side)).await? {
        Ok(guard) => {
            give(guard).await?;
            Ok(false)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Tries until `side` is to be had, for no longer than `limit`.
async fn comes_free(limit: Duration, lock: &RwLockHandle, side: Side) -> Judged<Guard> {
    let trying = async {
        loop {
            match try_take(lock, side).await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                done => return done,
            }
        }
    };
    Ok(within(limit, &format!("the lock coming free to {side:?}"), trying).await??)
}

/// A writer of another session can come in, and nothing is left of what was before.
async fn nothing_is_left(harness: &dyn Harness, probe: &RwLockHandle, baseline: usize) -> Judged {
    give(comes_free(PROMPT, probe, Side::Write).await?).await?;
    keys_return_to(baseline, PROMPT, harness).await
}

/// One that waits in a session of its own.
struct Waiting {
    side: Side,
    task: Task<Result<Guard>>,
    _session: Session,
}

impl Waiting {
    /// Starts it, and waits until it stands in line.
    async fn start(harness: &dyn Harness, name: &str, side: Side) -> Judged<Self> {
        let session = open(harness, LONG).await?;
        let lock = session.rw_lock(name)?;
        let mut arrivals = Arrivals::watch(harness).await?;
        let task = spawn(async move { take(&lock, side).await });
        arrivals.one_more().await?;
        Ok(Self {
            side,
            task,
            _session: session,
        })
    }

    async fn granted(mut self, what: &str) -> Judged<(Guard, Session)> {
        let what = format!("{what}: the grant to {:?}", self.side);
        Ok((self.task.end(PROMPT, &what).await??, self._session))
    }
}

/// None of them is granted, also not a little later.
async fn nobody_comes_in(waiting: &[&Waiting], when: &str) -> Judged {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(250) {
        for (number, one) in waiting.iter().enumerate() {
            ensure!(
                !one.task.is_finished(),
                "{when}: the wait {number} in line, to {:?}, has ended",
                one.side
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// R1: readers share, in one session and across sessions, and no writer comes in beside them.
pub async fn r1_readers_share_and_keep_writers_out(harness: &dyn Harness) -> Verdict {
    let mut guards = Vec::new();
    for number in 0..3 {
        let session = open(harness, LONG).await?;
        let lock = session.rw_lock("shared")?;
        guards.push(taken(&lock, Side::Read).await?);
        guards.push(Guard::Read(promptly("try_read", lock.try_read()).await??));
        ensure!(
            guards.iter().all(|guard| guard.is_valid()),
            "a guard ended when reader {number} came"
        );
    }
    let probe = open(harness, LONG).await?.rw_lock("shared")?;
    while let Some(guard) = guards.pop() {
        ensure!(
            is_refused(&probe, Side::Write).await?,
            "a writer came in beside {} readers",
            guards.len() + 1
        );
        give(guard).await?;
    }
    give(comes_free(PROMPT, &probe, Side::Write).await?).await?;
    held!("6 readers of 3 sessions at once, and a writer only after the last")
}

/// R1: a writer is alone, in its own session too.
pub async fn r1_a_writer_is_alone(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, elsewhere) = (session.rw_lock("alone")?, other.rw_lock("alone")?);
    let writer = taken(&lock, Side::Write).await?;
    for (probe, whose) in [(&lock, "its own"), (&elsewhere, "another")] {
        for side in [Side::Read, Side::Write] {
            ensure!(
                is_refused(probe, side).await?,
                "{side:?} was granted beside a writer, in {whose} session"
            );
        }
    }
    let reader = Waiting::start(harness, "alone", Side::Read).await?;
    nobody_comes_in(&[&reader], "while a writer is in").await?;
    give(writer).await?;
    let (reader, _session) = reader.granted("after the writer's release").await?;
    give(reader).await?;
    held!("nobody came in beside the writer, and the reader after it")
}

/// R1: many clients of both sides, no faults: never a writer beside anybody.
pub async fn r1_contenders_share_or_exclude_each_other(harness: &dyn Harness) -> Verdict {
    const ROUNDS: usize = 8;
    // Readers count one, a writer a thousand.
    let inside = Arc::new(AtomicI64::new(0));
    let (most, mixed) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::new(AtomicUsize::new(0));
    // All before the first begins: opening may take longer than all its rounds.
    let mut sessions = Vec::new();
    for _ in 0..9 {
        sessions.push(open(harness, LONG).await?);
    }
    let mut tasks = Vec::new();
    for (number, session) in sessions.into_iter().enumerate() {
        let lock = session.rw_lock("contended")?;
        let side = match number % 3 {
            0 => Side::Write,
            _ => Side::Read,
        };
        let (inside, most) = (Arc::clone(&inside), Arc::clone(&most));
        let (mixed, counter) = (Arc::clone(&mixed), Arc::clone(&counter));
        tasks.push(spawn(async move {
            let _session = session;
            let weight = if side == Side::Write { 1_000 } else { 1 };
            for _ in 0..ROUNDS {
                let guard = take(&lock, side).await?;
                let now = inside.fetch_add(weight, Ordering::SeqCst) + weight;
                mixed.fetch_add(usize::from(now > 1_000), Ordering::SeqCst);
                most.fetch_max(now % 1_000, Ordering::SeqCst);
                let seen = counter.load(Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
                if side == Side::Write {
                    counter.store(seen + 1, Ordering::SeqCst);
                }
                inside.fetch_sub(weight, Ordering::SeqCst);
                guard.release().await?;
            }
            Ok::<_, tenure_core::Error>(())
        }));
    }
    for task in &mut tasks {
        task.end(Duration::from_secs(30), "the contenders' rounds")
            .await??;
    }
    let (mixed, most) = (mixed.load(Ordering::SeqCst), most.load(Ordering::SeqCst));
    let (writes, counted) = (3 * ROUNDS, counter.load(Ordering::SeqCst));
    ensure!(
        mixed == 0 && counted == writes,
        "{mixed} times a writer was inside beside another, and {} of {writes} writes were lost",
        writes.saturating_sub(counted)
    );
    ensure!(most > 1, "6 readers, and never two of them inside");
    held!("{writes} writes alone, and up to {most} readers together")
}

/// R1: taking the lock to write while reading it can only wait for itself: refused, not hung.
pub async fn r1_an_upgrade_is_refused(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, elsewhere) = (session.rw_lock("up")?, other.rw_lock("up")?);
    let baseline = count_keys(harness).await?;
    let reader = taken(&lock, Side::Read).await?;
    let one = count_keys(harness).await?;
    let limit = Duration::from_millis(500);
    let answers = [
        promptly("an answer to write", lock.write()).await?,
        promptly("an answer to try_write", lock.try_write()).await?,
        promptly("an answer to write_timeout", lock.write_timeout(limit)).await?,
    ];
    for answer in answers {
        refused(
            "an upgrade",
            answer.map(|guard| guard.token()),
            &[ErrorKind::Conflict],
        )?;
    }
    ensure!(reader.is_valid(), "the refused upgrade cost the read guard");
    keys_return_to(one, PROMPT, harness).await?;
    // Another session only waits its turn, and this one may write once it has let go.
    ensure!(
        is_refused(&elsewhere, Side::Write).await?,
        "a writer came in beside the reader"
    );
    give(reader).await?;
    give(taken(&lock, Side::Write).await?).await?;
    nothing_is_left(harness, &elsewhere, baseline).await?;
    held!("refused with Conflict in every form; the read guard stayed, and left nothing")
}

/// R2: a writer waits for readers of its own session that other tasks hold, as it does for those of others; only a task
/// that reads itself is refused.
pub async fn r2_writer_waits_for_a_reader_of_the_same_session(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, elsewhere) = (session.rw_lock("one")?, other.rw_lock("one")?);
    let baseline = count_keys(harness).await?;
    let reading = [lock.clone(), lock.clone(), elsewhere.clone()].map(|lock| {
        let mut task = spawn(async move { lock.read().await });
        async move { task.end(PROMPT, "the grant to a reader").await }
    });
    let mut readers = Vec::new();
    for reader in reading {
        readers.push(reader.await??);
    }
    let trying = lock.clone();
    let mut trying = spawn(async move { trying.try_write().await.map(drop) });
    let answer = trying.end(PROMPT, "an answer to try_write").await?;
    refused(
        "try_write beside readers of the same session",
        answer,
        &[ErrorKind::WouldBlock],
    )?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let writing = lock.clone();
    let writer = Waiting {
        side: Side::Write,
        task: spawn(async move { take(&writing, Side::Write).await }),
        _session: session.clone(),
    };
    arrivals.one_more().await?;
    // Those that come later do not overtake it.
    let later = Waiting::start(harness, "one", Side::Read).await?;
    // One after the other, so that it waits for the last of them, and for each side of the session.
    for reader in readers {
        nobody_comes_in(&[&writer, &later], "while readers are in").await?;
        ensure!(
            reader.is_valid(),
            "the writer that waits cost a reader its guard"
        );
        give(Guard::Read(reader)).await?;
    }
    let (guard, _session) = writer.granted("after the last reader").await?;
    nobody_comes_in(&[&later], "while the writer is in").await?;
    give(guard).await?;
    give(later.granted("after the writer").await?.0).await?;
    nothing_is_left(harness, &elsewhere, baseline).await?;
    held!(
        "the writer waited for two readers of its own session and one of another, and later readers for it"
    )
}

/// R2: arrival order, with neighbouring readers granted together.
pub async fn r2_arrival_order_with_batches_of_readers(harness: &dyn Harness) -> Verdict {
    use Side::{Read, Write};
    let holder = open(harness, LONG).await?;
    let first = taken(&holder.rw_lock("line")?, Write).await?;
    let mut line = Vec::new();
    for side in [Read, Read, Write, Read, Read, Read, Write, Write, Read] {
        line.push(Waiting::start(harness, "line", side).await?);
    }
    nobody_comes_in(&line.iter().collect::<Vec<_>>(), "while the first writes").await?;
    give(first).await?;
    let (mut batches, mut newest) = (0, FencingToken::new(0));
    while !line.is_empty() {
        let readers = line.iter().take_while(|one| one.side == Read).count();
        let behind = line.split_off(readers.max(1));
        let mut batch = Vec::new();
        for one in std::mem::replace(&mut line, behind) {
            // All of them, before the first lets go.
            batch.push(one.granted("the next batch in line").await?);
        }
        nobody_comes_in(&line.iter().collect::<Vec<_>>(), "while a batch is in").await?;
        let floor = newest;
        for (guard, _session) in batch {
            ensure!(
                guard.token() > floor,
                "token {} after {floor}, which was granted before",
                guard.token()
            );
            newest = newest.max(guard.token());
            nobody_comes_in(
                &line.iter().take(1).collect::<Vec<_>>(),
                "before a batch has gone",
            )
            .await?;
            give(guard).await?;
        }
        batches += 1;
    }
    held!("9 in line behind a writer came in {batches} batches, in the order of their arrival")
}

/// R2: later readers do not overtake a writer that waits.
pub async fn r2_a_waiting_writer_is_not_overtaken(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let first = taken(&session.rw_lock("kept")?, Side::Read).await?;
    let writer = Waiting::start(harness, "kept", Side::Write).await?;
    ensure!(
        is_refused(&other.rw_lock("kept")?, Side::Read).await?,
        "try_read overtook a writer that waits"
    );
    let reader = Waiting::start(harness, "kept", Side::Read).await?;
    nobody_comes_in(&[&writer, &reader], "while the first reads").await?;
    give(first).await?;
    let (writing, _session) = writer.granted("after the reader's release").await?;
    nobody_comes_in(&[&reader], "while the writer is in").await?;
    give(writing).await?;
    let (reading, _session) = reader.granted("after the writer's release").await?;
    give(reading).await?;
    held!("the reader that came behind the writer came in behind it")
}

/// R2: writers that come again and again do not keep a reader out.
pub async fn r2_a_reader_is_not_starved(harness: &dyn Harness) -> Verdict {
    const WRITERS: usize = 4;
    let (stop, writes) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let session = open(harness, LONG).await?;
        let (stop, writes) = (Arc::clone(&stop), Arc::clone(&writes));
        writers.push(spawn(async move {
            let lock = session.rw_lock("busy")?;
            while !stop.load(Ordering::SeqCst) {
                let guard = lock.write().await?;
                writes.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                guard.release().await?;
            }
            Ok::<_, tenure_core::Error>(())
        }));
    }
    let busy = async {
        while writes.load(Ordering::SeqCst) < 2 * WRITERS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    promptly("the writers' start", busy).await?;
    let mut waits = Vec::new();
    for _ in 0..3 {
        let at = Instant::now();
        let reader = Waiting::start(harness, "busy", Side::Read).await?;
        give(reader.granted("among writers that never rest").await?.0).await?;
        waits.push(at.elapsed());
    }
    stop.store(true, Ordering::SeqCst);
    for writer in &mut writers {
        writer.end(PROMPT, "the writers' end").await??;
    }
    held!("among {WRITERS} writers that never rest, readers waited {waits:?}")
}

/// R2: when a waiting writer gives up, the readers behind it join those before it.
pub async fn r2_a_writer_that_gives_up_lets_the_readers_in(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let first = taken(&session.rw_lock("gap")?, Side::Read).await?;
    let writer = Waiting::start(harness, "gap", Side::Write).await?;
    let reader = Waiting::start(harness, "gap", Side::Read).await?;
    nobody_comes_in(&[&writer, &reader], "while the first reads").await?;
    // Its session lives on.
    let Waiting { task, _session, .. } = writer;
    drop(task);
    let (second, _second) = reader.granted("after the writer had given up").await?;
    ensure!(first.is_valid(), "the first reader's guard ended");
    give(second).await?;
    give(first).await?;
    held!("the reader behind came in beside the one before")
}

/// R2, S3: a dead reader is no longer in the writer's way once its lease has ended; a living one
/// is, and the readers behind stay there.
pub async fn r2_a_dead_reader_frees_the_writer_and_nobody_else(harness: &dyn Harness) -> Verdict {
    let process = Process::start()?;
    let (store, ttl) = (harness.connect().await?, harness.ttl());
    let reading = async move {
        let session = open_on(&store, ttl).await?;
        let guard = session.rw_lock("mortal")?.try_read().await?;
        Ok::<_, tenure_core::Error>((session, guard))
    };
    let (dying, _guard) = process.run(reading).await??;
    let session = open(harness, LONG).await?;
    let living = taken(&session.rw_lock("mortal")?, Side::Read).await?;
    let mut writer = Waiting::start(harness, "mortal", Side::Write).await?;
    let reader = Waiting::start(harness, "mortal", Side::Read).await?;
    let limit = dying.ttl() + expiry_bound(harness).await? + SLACK;
    process.kill().await;
    let at = Instant::now();
    while at.elapsed() < limit {
        nobody_comes_in(&[&writer, &reader], "while a living reader holds").await?;
    }
    give(living).await?;
    let granted = writer
        .task
        .end(PROMPT, "the writer's grant after both readers");
    let writing = granted.await??;
    nobody_comes_in(&[&reader], "while the writer is in").await?;
    give(writing).await?;
    give(reader.granted("after the writer").await?.0).await?;
    held!("the dead reader was out of the way within {limit:?}, the living one was not")
}

/// R3: a writer's token is above every token granted before, of either side.
pub async fn r3_a_writers_token_is_above_every_earlier_one(harness: &dyn Harness) -> Verdict {
    let (one, two) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let mut newest = FencingToken::new(0);
    let mut seen = 0;
    for round in 0..4 {
        let session = if round % 2 == 0 { &one } else { &two };
        let lock = session.rw_lock("rising")?;
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(taken(&lock, Side::Read).await?);
        }
        let highest = readers.iter().map(|guard| guard.token()).max();
        newest = newest.max(highest.unwrap_or(newest));
        seen += readers.len() + 1;
        for reader in readers {
            give(reader).await?;
        }
        let writer = match round {
            0 | 1 => taken(&lock, Side::Write).await?,
            _ => comes_free(PROMPT, &lock, Side::Write).await?,
        };
        ensure!(
            writer.token() > newest,
            "a writer's token {} is not above {newest}, which was granted before",
            writer.token()
        );
        newest = writer.token();
        give(writer).await?;
    }
    ensure!(newest.get() < 1 << 53, "token {newest} is not below 2^53");
    held!("{seen} grants, and each writer's token above all before it; the last is {newest}")
}

/// R3: who goes on as a reader keeps token and place: readers right behind come in, no writer.
pub async fn r3_a_downgrade_keeps_token_and_place(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, probe) = (session.rw_lock("down")?, other.rw_lock("down")?);
    let baseline = count_keys(harness).await?;
    let writer = promptly("write", lock.write()).await??;
    let token = writer.token();
    let near = Waiting::start(harness, "down", Side::Read).await?;
    let next = Waiting::start(harness, "down", Side::Write).await?;
    let far = Waiting::start(harness, "down", Side::Read).await?;
    nobody_comes_in(&[&near, &next, &far], "before the downgrade").await?;
    let reader = promptly("downgrade", writer.downgrade()).await??;
    ensure!(
        reader.token() == token && reader.is_valid(),
        "the downgraded guard has token {} (valid: {}), the writer's was {token}",
        reader.token(),
        reader.is_valid()
    );
    let (near, _near) = near.granted("after a downgrade").await?;
    ensure!(reader.is_valid(), "the downgraded guard ended");
    let up = promptly("an answer to write", lock.try_write()).await?;
    refused(
        "an upgrade",
        up.map(|guard| guard.token()),
        &[ErrorKind::Conflict],
    )?;
    give(near).await?;
    nobody_comes_in(&[&next, &far], "while only the downgraded one reads").await?;
    give(Guard::Read(reader)).await?;
    let (next, _next) = next.granted("after the downgraded one").await?;
    ensure!(
        next.token() > token,
        "the next writer's token {} is not above {token}",
        next.token()
    );
    nobody_comes_in(&[&far], "while the next writer is in").await?;
    give(next).await?;
    give(far.granted("after the next writer").await?.0).await?;
    nothing_is_left(harness, &probe, baseline).await?;
    held!("token {token} was kept, the reader behind came in, and the writer behind it after both")
}

/// S4, R1: a resumed session takes up what it held as what it held it.
pub async fn s4_a_resumed_session_takes_up_its_side(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let session = open_on(&store, LONG).await?;
    let reads = promptly("read", session.rw_lock("reads")?.read()).await??;
    let writes = promptly("write", session.rw_lock("writes")?.write()).await??;
    let turned = promptly("write", session.rw_lock("turned")?.write()).await??;
    let turned = promptly("downgrade", turned.downgrade()).await??;
    let tokens = (reads.token(), writes.token(), turned.token());
    let id = promptly("detach", session.detach()).await??;
    drop((reads, writes, turned));
    let resumed = promptly("resume", store.resume(&id)).await??;
    let (reads, writes, turned) = (
        resumed.rw_lock("reads")?,
        resumed.rw_lock("writes")?,
        resumed.rw_lock("turned")?,
    );
    for (lock, token) in [(&reads, tokens.0), (&turned, tokens.2)] {
        let answer = promptly("an answer", lock.reclaim_write(token)).await?;
        let answer = answer.map(|guard| guard.token());
        refused(
            "taking up a reader's holding to write",
            answer,
            &[ErrorKind::Lost],
        )?;
    }
    let answer = promptly("an answer", writes.reclaim_read(tokens.1)).await?;
    let answer = answer.map(|guard| guard.token());
    refused(
        "taking up a writer's holding to read",
        answer,
        &[ErrorKind::Lost],
    )?;
    let guards = [
        Guard::Read(promptly("reclaim_read", reads.reclaim_read(tokens.0)).await??),
        Guard::Write(promptly("reclaim_write", writes.reclaim_write(tokens.1)).await??),
        Guard::Read(promptly("reclaim_read", turned.reclaim_read(tokens.2)).await??),
    ];
    let other = open(harness, LONG).await?;
    for (name, side, due) in [
        ("reads", Side::Write, true),
        ("reads", Side::Read, false),
        ("writes", Side::Read, true),
        ("turned", Side::Read, false),
    ] {
        let seen = is_refused(&other.rw_lock(name)?, side).await?;
        ensure!(
            seen == due,
            "`{name}` was reclaimed, and {side:?} of another session is {}",
            if seen { "refused" } else { "granted" }
        );
    }
    for guard in guards {
        give(guard).await?;
    }
    held!("reader, writer and downgraded writer were taken up as such, and as nothing else")
}

/// L5: `downgrade`, dropped at any await point, releases.
pub async fn l5_cancelled_downgrade_releases(harness: &dyn Harness) -> Verdict {
    let (caller, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, probe) = (caller.rw_lock("turned")?, other.rw_lock("turned")?);
    let baseline = count_keys(harness).await?;
    at_every_await_point!("downgrade", |polls| {
        let guard = promptly("write", lock.write()).await??;
        let last = was_last(give_up_after(polls, PROMPT, guard.downgrade()).await)?;
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })
}

/// L5: an ask that arrives after its caller has gone leaves nothing.
pub async fn l5_a_late_read_or_write_leaves_nothing(harness: &dyn Harness) -> Verdict {
    /// To connect anew takes a while, but far less than the TTL.
    const RECONNECT: Duration = Duration::from_secs(12);
    let Linked { store, link } = harness.linked().await?;
    let caller = promptly("open", open_on(&store, LONG)).await??;
    let other = open(harness, LONG).await?;
    let (lock, probe) = (caller.rw_lock("late")?, other.rw_lock("late")?);
    let baseline = count_keys(harness).await?;
    for side in [Side::Read, Side::Write] {
        link.silence();
        let patience = Duration::from_millis(150);
        let answer = tokio::time::timeout(patience, take(&lock, side)).await;
        ensure!(
            !matches!(answer, Ok(Ok(_))),
            "{side:?} was granted over a link without answers"
        );
        link.heal();
        give(comes_free(RECONNECT, &probe, Side::Write).await?).await?;
        keys_return_to(baseline, RECONNECT, harness).await?;
        // Once more from the same session: what was withdrawn is not in its own way either.
        give(within(RECONNECT, "a grant afterwards", take(&lock, side)).await??).await?;
    }
    ensure!(caller.is_valid(), "the caller's session was lost meanwhile");
    held!("a reader and a writer went away while the link was silent, and left nothing")
}

/// L7: dropping a guard of either side releases.
pub async fn l7_dropping_a_read_or_write_guard_releases(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (lock, probe) = (session.rw_lock("dropped")?, other.rw_lock("dropped")?);
    let baseline = count_keys(harness).await?;
    for side in [Side::Read, Side::Write] {
        drop(taken(&lock, side).await?);
        nothing_is_left(harness, &probe, baseline).await?;
    }
    let turned = promptly("write", lock.write()).await??;
    drop(promptly("downgrade", turned.downgrade()).await??);
    nothing_is_left(harness, &probe, baseline).await?;
    held!("free soon after the drop of a reader, a writer and a downgraded writer")
}

/// R1, R3: random readers and writers under random faults.
pub async fn r1_random_readers_and_writers_stay_exclusive(harness: &dyn Harness) -> Verdict {
    a_random_history_of_both_sides(harness, 1).await
}

/// Who is inside, as far as they know.
#[derive(Default)]
struct Book {
    inside: Vec<(FencingToken, Side)>,
    /// Two that were inside at the same time and exclude each other, and which of them was still
    /// valid when it left. If both were, they were valid together.
    met: Vec<(FencingToken, FencingToken, Option<FencingToken>)>,
    newest_writer: Option<FencingToken>,
    broken: Option<String>,
}

impl Book {
    fn note(&mut self, broken: String) {
        self.broken.get_or_insert(broken);
    }

    fn enter(&mut self, token: FencingToken, side: Side) {
        let excluded =
            |(_, other): &&(FencingToken, Side)| side == Side::Write || *other == Side::Write;
        let met = self.inside.iter().filter(excluded);
        self.met.extend(met.map(|(other, _)| (token, *other, None)));
        self.inside.push((token, side));
    }

    fn leave(&mut self, token: FencingToken, valid: bool) {
        self.inside.retain(|(other, _)| *other != token);
        let mut broken = None;
        self.met.retain_mut(|(one, other, confirmed)| {
            if *one != token && *other != token {
                return true;
            }
            match *confirmed {
                Some(first) if first != token && valid => {
                    broken = Some(format!("tokens {one} and {other} were in force together"));
                    false
                }
                // Once more inside, as a reader: it said already what it knew.
                Some(first) if first == token => true,
                _ => {
                    *confirmed = Some(token);
                    valid
                }
            }
        });
        if let Some(broken) = broken {
            self.note(broken);
        }
    }

    fn granted(&mut self, token: FencingToken) {
        if self.newest_writer >= Some(token) {
            let newest = self.newest_writer.map_or(0, FencingToken::get);
            self.note(format!("a writer got token {token} after one had {newest}"));
        }
        self.newest_writer = Some(token);
    }
}

/// One run, the same for the same `seed` as far as the machine lets it be. Clients of both sides
/// take one lock in every way there is, downgrade, release, drop; their links are silenced and cut
/// where the harness can. No two whose guards are valid may exclude each other, and writers'
/// tokens rise.
pub async fn a_random_history_of_both_sides(harness: &dyn Harness, seed: u64) -> Verdict {
    const CLIENTS: usize = 6;
    const FAULTS: usize = 3;
    let mut random = Random::seeded(seed);
    let book = Arc::new(Mutex::new(Book::default()));
    let (stop, grants) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (mut links, mut clients) = (Vec::new(), Vec::new());
    for number in 0..CLIENTS {
        let store = if harness.offers().contains(&Need::Silence) {
            let linked = harness.linked().await?;
            links.push(linked.link);
            linked.store
        } else {
            harness.connect().await?
        };
        let client = Client {
            store,
            ttl: harness.ttl(),
            random: Random::seeded(random.next()),
            book: Arc::clone(&book),
            grants: Arc::clone(&grants),
            writes: number % 3 == 0,
            session: None,
        };
        clients.push(spawn(client.run(Arc::clone(&stop))));
    }
    let warm = async {
        while grants.load(Ordering::SeqCst) < 12 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), warm)
        .await
        .is_err()
    {
        return Err(Outcome::not_run(
            "too few grants without a fault to prove anything",
        ));
    }
    for _ in 0..FAULTS {
        if let Some(at) = usize::try_from(random.below(links.len() as u64))
            .ok()
            .filter(|at| *at < links.len())
        {
            let link = &links[at];
            match random.below(3) {
                0 if harness.offers().contains(&Need::Cut) => link.cut(),
                1 => {
                    link.silence();
                    tokio::time::sleep(random.up_to(harness.ttl() / 4)).await;
                }
                _ => {
                    link.silence();
                    tokio::time::sleep(harness.ttl() + harness.ttl() / 4).await;
                }
            }
            link.heal();
        }
        tokio::time::sleep(random.up_to(Duration::from_millis(300))).await;
    }
    stop.store(true, Ordering::SeqCst);
    let limit = harness.ttl() * 2 + expiry_bound(harness).await? + PROMPT * 2;
    for client in &mut clients {
        let what = "the last grant to every client, after the faults";
        client.end(limit, what).await??;
    }
    let broken = book
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .broken
        .take();
    if let Some(broken) = broken {
        return Err(Outcome::violated(format!("seed {seed}: {broken}")));
    }
    let grants = grants.load(Ordering::SeqCst);
    held!(
        "seed {seed}: {grants} grants to readers and writers, {FAULTS} faults, none beside a writer"
    )
}

struct Client {
    store: tenure_core::Store,
    ttl: Duration,
    random: Random,
    book: Arc<Mutex<Book>>,
    grants: Arc<AtomicU64>,
    writes: bool,
    session: Option<Session>,
}

impl Client {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Result<()> {
        while !stop.load(Ordering::SeqCst) {
            if let Some(guard) = self.acquire().await {
                self.visit(guard).await;
            }
            tokio::time::sleep(self.random.up_to(Duration::from_millis(2))).await;
        }
        // Once more, patiently: nobody is left behind.
        loop {
            let Some(session) = self.session().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            if let Ok(guard) = take(&session.rw_lock("both")?, self.side()).await {
                self.visit(guard).await;
                return Ok(());
            }
        }
    }

    fn side(&mut self) -> Side {
        // Mostly its own, now and then the other.
        match self.writes == (self.random.below(8) > 0) {
            true => Side::Write,
            false => Side::Read,
        }
    }

    async fn session(&mut self) -> Option<Session> {
        if self.session.as_ref().is_none_or(|it| !it.is_valid()) {
            self.session = None;
            let opening = tokio::time::timeout(self.ttl, open_on(&self.store, self.ttl));
            self.session = opening.await.ok()?.ok();
        }
        self.session.clone()
    }

    async fn acquire(&mut self) -> Option<Guard> {
        let session = self.session().await?;
        let (lock, side) = (session.rw_lock("both").ok()?, self.side());
        let patience = self.random.up_to(Duration::from_millis(400));
        match self.random.below(4) {
            0 => try_take(&lock, side).await.ok(),
            1 => take_within(&lock, side, patience).await.ok(),
            2 => tokio::time::timeout(patience, take(&lock, side))
                .await
                .ok()?
                .ok(),
            _ => take(&lock, side).await.ok(),
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn visit(&mut self, guard: Guard) {
        self.grants.fetch_add(1, Ordering::SeqCst);
        let side = match &guard {
            Guard::Read(_) => Side::Read,
            Guard::Write(_) => Side::Write,
        };
        self.stay(&guard, side, true).await;
        match guard {
            Guard::Write(guard) if self.random.below(3) == 0 => {
                let token = guard.token();
                if let Ok(guard) = guard.downgrade().await {
                    if guard.token() != token {
                        let what = format!("a downgrade made token {} of {token}", guard.token());
                        self.book().note(what);
                    }
                    self.stay(&guard, Side::Read, false).await;
                }
            }
            guard if self.random.below(3) == 0 => drop(guard),
            guard => drop(guard.release().await),
        }
    }

    /// Is in the book for a while.
    async fn stay(&mut self, guard: &Holding, side: Side, fresh: bool) {
        let token = guard.token();
        {
            let mut book = self.book();
            if !guard.is_valid() {
                return;
            }
            if fresh && side == Side::Write {
                book.granted(token);
            }
            book.enter(token, side);
        }
        tokio::time::sleep(self.random.up_to(Duration::from_millis(4))).await;
        let mut book = self.book();
        let valid = guard.is_valid();
        book.leave(token, valid);
    }
}

/// R2: a writer and many waiting writers die at the same moment.
pub async fn r2_a_mass_death_of_writers_delays_no_longer_than_stated(
    harness: &dyn Harness,
) -> Verdict {
    survivor_is_served(harness, Wanted::WriteSide).await
}

/// R2: a writer and many waiting readers die at the same moment.
pub async fn r2_a_mass_death_of_readers_delays_no_longer_than_stated(
    harness: &dyn Harness,
) -> Verdict {
    survivor_is_served(harness, Wanted::ReadSide).await
}

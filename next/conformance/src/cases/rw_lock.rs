//! Read-write locks: rules R1 to R3.

use tenure_core::guarantees::Line;
use tenure_core::{ErrorKind, FencingToken, Session};
use tokio::time::Instant;

use super::{granted, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::roles::{Held, Role};
use crate::tools::{
    LONG, LOOK, Task, done, ensure, expiry_bound, held, open, open_linked, open_on, promptly, refused, slack, within,
};

use Role::{Reader, Writer};

cases! { CASES:
    r1_readers_share_and_exclude_writers "R1" "readers share, in one session and across sessions, and exclude writers"
        (Some(Line::RwOrder)) [] rw_locks;
    r2_writer_waits_for_readers_of_its_own_session "R2"
        "a writer waits for the readers of its own session, and is then granted"
        (Some(Line::RwOrder)) [] rw_by_arrival;
    r2_waiting_writer_is_not_overtaken "R2" "later readers, also those that only try, do not overtake a waiting writer"
        (Some(Line::RwOrder)) [] rw_by_arrival;
    r2_requests_are_granted_by_arrival "R2"
        "granted in the order of arrival, adjacent readers together: no side starves"
        (Some(Line::RwOrder)) [] rw_by_arrival;
    r2_writer_that_gives_up_admits_the_readers "R2"
        "when a waiting writer gives up, the readers behind it join those before it"
        (Some(Line::RwOrder)) [] rw_by_arrival;
    r2_dead_reader_frees_the_writer_alone "R2"
        "a writer is granted after a dead reader's TTL, and not while a live reader holds"
        (Some(Line::RwOrder)) [Silence] rw_by_arrival;
    r3_downgrade_keeps_token_and_place "R3"
        "a downgrade keeps its token: the readers behind are granted, the next writer is not"
        (Some(Line::RwOrder)) [] rw_by_arrival;
    r3_downgraded_writer_releases_as_a_reader "R3" "a downgraded guard that is released or dropped frees the lock once"
        (Some(Line::RwOrder)) [] rw_locks;
    s4_resumed_session_reclaims_its_mode "S4"
        "a resumed session reclaims a downgraded writer as a reader, and not as a writer"
        (Some(Line::Resume)) [] resumable;
}

async fn take(session: &Session, name: &str, role: Role) -> Step<Held> {
    done("a grant of what is free", role.acquire(session, name)).await
}

async fn is_refused(session: &Session, name: &str, role: Role) -> Step<bool> {
    match done("a try", role.attempt(session, name)).await? {
        None => Ok(true),
        Some(held) => {
            done("release", held.release()).await?;
            Ok(false)
        }
    }
}

type Waiting = Task<tenure_core::Result<Held>>;

/// Starts a request that waits.
async fn wait(harness: &dyn Harness, session: &Session, name: &'static str, role: Role) -> Step<Waiting> {
    let session = session.clone();
    waiter(harness, async move { role.acquire(&session, name).await }).await
}

async fn release(held: Held) -> Step<()> {
    done("release", held.release()).await
}

async fn r1_readers_share_and_exclude_writers(harness: &dyn Harness) -> Verdict {
    let probe = open(harness, LONG).await?;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let session = open(harness, LONG).await?;
        for way in 0..2 {
            let reader = match way {
                0 => take(&session, "shared", Reader).await?,
                _ => {
                    let tried = done("try_read", Reader.attempt(&session, "shared")).await?;
                    tried.ok_or_else(|| {
                        Outcome::violated(format!("a try beside {} readers was refused", readers.len()))
                    })?
                }
            };
            readers.push(reader);
        }
    }
    while let Some(reader) = readers.pop() {
        ensure!(reader.is_valid(), "a reader lost the lock to another");
        ensure!(
            is_refused(&probe, "shared", Writer).await?,
            "a writer was granted beside {} readers",
            readers.len() + 1
        );
        release(reader).await?;
    }
    let writer = done("write", probe.write_lock("shared")).await?;
    done("release", writer.release()).await?;
    held!("6 readers of 3 sessions held together, and a writer only after the last")
}

async fn r2_writer_waits_for_readers_of_its_own_session(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let mut readers = Vec::new();
    for session in [&session, &other, &session] {
        readers.push(take(session, "own", Reader).await?);
    }
    ensure!(
        is_refused(&session, "own", Writer).await?,
        "a try was granted beside readers of the same session"
    );
    let lock = session.rw_lock("own");
    let timed = promptly("write_timeout", lock.write_timeout(LOOK * 5)).await?;
    refused("a wait beside the own readers", timed, &[ErrorKind::TimedOut])?;
    let mut writer = wait(harness, &session, "own", Writer).await?;
    let mut later = wait(harness, &other, "own", Reader).await?;
    for reader in readers {
        still_waiting("while a reader held", &[&writer, &later]).await?;
        ensure!(reader.is_valid(), "the waiting writer ended a reader of its session");
        release(reader).await?;
    }
    let writer = granted(&mut writer, "the grant after the last reader of its session").await?;
    still_waiting("while the writer held", &[&later]).await?;
    release(writer).await?;
    release(granted(&mut later, "the grant to the reader behind the writer").await?).await?;
    held!("the writer waited for two readers of its own session and one of another")
}

async fn r2_waiting_writer_is_not_overtaken(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let first = take(&session, "order", Reader).await?;
    let mut writer = wait(harness, &other, "order", Writer).await?;
    for probe in [&session, &other] {
        ensure!(
            is_refused(probe, "order", Reader).await?,
            "a try overtook a waiting writer"
        );
    }
    let mut reader = wait(harness, &session, "order", Reader).await?;
    still_waiting("while the first reader held", &[&writer, &reader]).await?;
    release(first).await?;
    let writer = granted(&mut writer, "the grant to the writer").await?;
    still_waiting("while the writer held", &[&reader]).await?;
    release(writer).await?;
    release(granted(&mut reader, "the grant to the reader behind it").await?).await?;
    held!("two tries and a later reader of the holding session stayed behind the waiting writer")
}

async fn r2_requests_are_granted_by_arrival(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let first = take(&one, "arrival", Writer).await?;
    let order = [Reader, Reader, Writer, Reader, Reader, Reader, Writer, Writer, Reader];
    let mut line: Vec<Waiting> = Vec::new();
    for (number, role) in order.into_iter().enumerate() {
        let session = if number % 2 == 0 { &one } else { &other };
        line.push(wait(harness, session, "arrival", role).await?);
    }
    still_waiting("while the first writer held", &line.iter().collect::<Vec<_>>()).await?;
    release(first).await?;
    let (mut roles, mut newest, mut batches) = (&order[..], FencingToken::new(0), 0);
    while let Some(role) = roles.first() {
        let together = match role {
            Reader => roles.iter().take_while(|role| **role == Reader).count(),
            _ => 1,
        };
        let behind = line.split_off(together);
        let mut batch = Vec::new();
        for mut task in std::mem::replace(&mut line, behind) {
            batch.push(granted(&mut task, "the grant to the next in the order of arrival").await?);
        }
        let floor = newest;
        for held in batch {
            still_waiting("while those before held", &line.iter().take(2).collect::<Vec<_>>()).await?;
            for token in held.tokens() {
                ensure!(token > floor, "token {token} was granted after token {floor}");
                newest = newest.max(token);
            }
            release(held).await?;
        }
        roles = &roles[together..];
        batches += 1;
    }
    held!("9 requests behind a writer were granted in {batches} groups, in the order of their arrival")
}

async fn r2_writer_that_gives_up_admits_the_readers(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let first = take(&session, "gap", Reader).await?;
    let writer = wait(harness, &other, "gap", Writer).await?;
    let mut reader = wait(harness, &other, "gap", Reader).await?;
    still_waiting("behind a waiting writer", &[&writer, &reader]).await?;
    drop(writer);
    let reader = granted(&mut reader, "the grant after the writer gave up").await?;
    ensure!(first.is_valid(), "the first reader lost the lock");
    release(reader).await?;
    release(first).await?;
    held!("the reader was granted beside the one before the writer")
}

async fn r2_dead_reader_frees_the_writer_alone(harness: &dyn Harness) -> Verdict {
    let (living, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (dying, link) = open_linked(harness, harness.ttl()).await?;
    let dead = take(&dying, "mortal", Reader).await?;
    let alive = take(&living, "mortal", Reader).await?;
    let mut writer = wait(harness, &other, "mortal", Writer).await?;
    let mut reader = wait(harness, &other, "mortal", Reader).await?;
    link.silence();
    let (at, after) = (Instant::now(), dying.ttl() + expiry_bound(harness).await?);
    while at.elapsed() < after {
        still_waiting("while a live reader held", &[&writer, &reader]).await?;
    }
    release(alive).await?;
    let writer = within(
        slack(),
        "the grant after the dead reader's TTL",
        granted(&mut writer, "the grant to the writer"),
    );
    let writer = writer.await??;
    ensure!(!dead.is_valid(), "a writer was granted beside a valid reader");
    still_waiting("while the writer held", &[&reader]).await?;
    release(writer).await?;
    release(granted(&mut reader, "the grant to the reader behind the writer").await?).await?;
    link.heal();
    held!("the dead reader counted for its TTL, the live one until its release")
}

async fn r3_downgrade_keeps_token_and_place(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let writer = done("write", session.write_lock("down")).await?;
    let token = writer.token();
    let mut near = wait(harness, &other, "down", Reader).await?;
    let mut next = wait(harness, &other, "down", Writer).await?;
    let mut far = wait(harness, &session, "down", Reader).await?;
    still_waiting("before the downgrade", &[&near, &next, &far]).await?;
    let reader = done("downgrade", writer.downgrade()).await?;
    ensure!(
        reader.token() == token && reader.is_valid(),
        "a writer with token {token} was downgraded to token {}, valid: {}",
        reader.token(),
        reader.is_valid()
    );
    release(granted(&mut near, "the grant to the reader behind a downgrade").await?).await?;
    still_waiting("while the downgraded guard held", &[&next, &far]).await?;
    ensure!(
        is_refused(&session, "down", Writer).await?,
        "a downgraded guard was upgraded beside a waiting writer"
    );
    ensure!(reader.is_valid(), "the downgraded guard was lost");
    done("release", reader.release()).await?;
    let next = granted(&mut next, "the grant to the writer behind a downgrade").await?;
    ensure!(
        next.tokens()[0] > token,
        "the next writer's token {} followed {token}",
        next.tokens()[0]
    );
    still_waiting("while the next writer held", &[&far]).await?;
    release(next).await?;
    release(granted(&mut far, "the grant to the last reader").await?).await?;
    held!("token {token} was kept, the reader behind it was granted, the writer only after both")
}

async fn r3_downgraded_writer_releases_as_a_reader(harness: &dyn Harness) -> Verdict {
    let (session, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    for dropped in [false, true] {
        let writer = done("write", session.write_lock("down")).await?;
        let reader = done("downgrade", writer.downgrade()).await?;
        let beside = done("read", other.read_lock("down")).await?;
        match dropped {
            true => drop(reader),
            false => done("release", reader.release()).await?,
        }
        let mut writer = wait(harness, &session, "down", Writer).await?;
        still_waiting("while another reader held", &[&writer]).await?;
        ensure!(beside.is_valid(), "the end of a downgraded guard ended another reader");
        done("release", beside.release()).await?;
        release(granted(&mut writer, "the grant after a downgraded guard").await?).await?;
    }
    held!("released and dropped, each freed its own share")
}

async fn s4_resumed_session_reclaims_its_mode(harness: &dyn Harness) -> Verdict {
    let (store, other) = (
        done("a connection", harness.connect()).await?,
        open(harness, LONG).await?,
    );
    let session = open_on(&store, LONG).await?;
    let writer = done("write", session.write_lock("turned")).await?;
    let turned = done("downgrade", writer.downgrade()).await?;
    let (token, beside) = (turned.token(), done("read", other.read_lock("turned")).await?);
    let id = done("detach", session.detach()).await?;
    let lock = done("resume", store.resume(&id)).await?.rw_lock("turned");
    let answer = promptly("reclaim_write", lock.reclaim_write(token)).await?;
    refused("reclaiming a downgraded writer to write", answer, &[ErrorKind::Lost])?;
    let turned = done("reclaim_read", lock.reclaim_read(token)).await?;
    ensure!(
        turned.token() == token && beside.is_valid(),
        "token {token} was reclaimed as {} beside a reader",
        turned.token()
    );
    done("release", turned.release()).await?;
    held!("refused to write, and reclaimed to read under token {token}")
}

//! The token floor: what an operator raises after the store lost its history (rules L2 and O4).

use std::time::{Duration, Instant};

use tenure_core::{
    ErrorKind, FencedCommit, FencingToken, Holding, Inside, Leadership, LockGuard, Op, ReadGuard,
    Result, Session, WriteGuard,
};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::Harness;

/// How far above the present tokens the floor is raised.
const FAR: u64 = 1 << 40;

/// Time for a store to come back.
const RECOVERY: Duration = Duration::from_secs(12);

/// What can be held with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Lock,
    Reader,
    Writer,
    Leader,
    Consumer,
    Participant,
}

const ROLES: [Role; 6] = [
    Role::Lock,
    Role::Reader,
    Role::Writer,
    Role::Leader,
    Role::Consumer,
    Role::Participant,
];

/// A guard of any role.
#[derive(Debug)]
enum Guard {
    Lock(LockGuard),
    Reader(ReadGuard),
    Writer(WriteGuard),
    Leader(Leadership),
    Consumer(tenure_core::Delivery),
    Participant(Inside),
}

impl Guard {
    fn holding(&self) -> &Holding {
        match self {
            Self::Lock(guard) => guard,
            Self::Reader(guard) => guard,
            Self::Writer(guard) => guard,
            Self::Leader(guard) => guard,
            Self::Consumer(guard) => guard,
            Self::Participant(guard) => guard,
        }
    }

    fn token(&self) -> FencingToken {
        self.holding().token()
    }

    async fn end(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Reader(guard) => guard.release().await,
            Self::Writer(guard) => guard.release().await,
            Self::Leader(guard) => guard.resign().await,
            Self::Consumer(guard) => guard.ack().await,
            Self::Participant(guard) => guard.leave().await,
        }
    }
}

impl Role {
    /// Each role has objects of its own, also the two sides of a read-write lock.
    fn name(self, object: &str) -> String {
        format!("{object} {self:?}")
    }

    /// Whether the store has what this role holds.
    fn offered(self, session: &Session) -> std::result::Result<bool, Outcome> {
        let handle = match self {
            Self::Lock => session.locker("offered").map(drop),
            Self::Reader | Self::Writer => session.rw_lock("offered").map(drop),
            Self::Leader => session.election("offered").map(drop),
            Self::Consumer => session.queue("offered").map(drop),
            Self::Participant => session.double_barrier("offered", 1).map(drop),
        };
        match handle {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a grant; `count` participants go in together.
    async fn wait(self, session: &Session, object: &str, count: u32) -> Result<Guard> {
        let name = self.name(object);
        Ok(match self {
            Self::Lock => Guard::Lock(session.locker(name)?.lock().await?),
            Self::Reader => Guard::Reader(session.rw_lock(name)?.read().await?),
            Self::Writer => Guard::Writer(session.rw_lock(name)?.write().await?),
            Self::Leader => Guard::Leader(session.election(name)?.campaign("me").await?),
            Self::Consumer => Guard::Consumer(session.queue(name)?.dequeue().await?),
            Self::Participant => {
                Guard::Participant(session.double_barrier(name, count)?.enter().await?)
            }
        })
    }

    /// Takes what is free.
    async fn take(self, session: &Session, object: &str) -> std::result::Result<Guard, Outcome> {
        if self == Self::Consumer {
            let queue = session.queue(self.name(object))?;
            promptly("enqueue", queue.enqueue("work")).await??;
        }
        Ok(promptly("a grant", self.wait(session, object, 1)).await??)
    }
}

/// The roles that the store offers.
fn offered(session: &Session) -> std::result::Result<Vec<Role>, Outcome> {
    let mut roles = Vec::new();
    for role in ROLES {
        if role.offered(session)? {
            roles.push(role);
        }
    }
    Ok(roles)
}

/// Takes and gives back each role's object twice, and returns the least token that may follow, by role. Every token
/// is at least what `least` has for the role.
async fn all_from(
    session: &Session,
    object: &str,
    roles: &[Role],
    mut least: Vec<u64>,
) -> std::result::Result<Vec<u64>, Outcome> {
    for (&role, least) in roles.iter().zip(&mut least) {
        for _ in 0..2 {
            let guard = role.take(session, object).await?;
            let token = guard.token().get();
            ensure!(
                token >= *least,
                "{role:?} was granted with token {token}, and {least} is the least that may be"
            );
            *least = token + 1;
            promptly("a release", guard.end()).await??;
        }
    }
    Ok(least)
}

/// L2: after the floor was raised every grant of every kind has at least that token; holders and waiters from before
/// keep what they have.
pub async fn l2_token_floor_is_kept(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let (holder, other) = (open_on(&store, LONG).await?, open_on(&store, LONG).await?);
    let operator = harness.connect().await?;
    let roles = offered(&holder)?;

    // Those who hold, and those who wait, before the floor rises.
    let (mut held, mut in_the_way) = (Vec::new(), Vec::new());
    let mut waiting = Vec::new();
    let at_first = count_keys(harness).await?;
    for &role in &roles {
        held.push(role.take(&holder, "held").await?);
        in_the_way.push(match role {
            Role::Consumer | Role::Participant => None,
            Role::Reader => {
                let lock = holder.rw_lock(role.name("next"))?;
                Some(Guard::Writer(promptly("write", lock.write()).await??))
            }
            role => Some(role.take(&holder, "next").await?),
        });
        let other = other.clone();
        waiting.push(spawn(async move { role.wait(&other, "next", 2).await }));
    }
    // What leaves no key has a moment of time.
    let started = Instant::now();
    let expected = at_first + held.len() + in_the_way.iter().flatten().count() + waiting.len();
    while count_keys(harness).await? < expected && started.elapsed() < SLACK {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let tokens: Vec<FencingToken> = held.iter().map(Guard::token).collect();
    let blocking = in_the_way.iter().flatten().map(Guard::token);
    let greatest = tokens.iter().copied().chain(blocking).max();
    let floor = FencingToken::new(greatest.map_or(0, FencingToken::get) + FAR);
    promptly("the raise", operator.raise_token_floor(floor)).await??;

    // Holders keep their tokens, and can use them.
    let atomic = guarantees(harness).await?.fenced_commit.value == FencedCommit::Atomic;
    let stm = holder.stm().ok().filter(|_| atomic);
    for (guard, before) in held.into_iter().zip(&tokens) {
        let holding = guard.holding();
        ensure!(
            holding.is_valid() && holding.token() == *before,
            "raising the floor cost a holder its guard: {guard:?}, token {before} before"
        );
        if let Some(stm) = &stm {
            let write = stm.fenced_by(holding).txn();
            let write = write.then([Op::put("guarded", "held")]).commit();
            let committed = promptly("a commit of a holder", write).await?;
            ensure!(
                committed.is_ok(),
                "a commit of a holder from before the raise ended with {committed:?}, {guard:?}"
            );
        }
        let what = format!("{guard:?}");
        let released = promptly("a release of a holder", guard.end()).await?;
        ensure!(
            released.is_ok(),
            "a release of a holder from before the raise ended with {released:?}, {what}"
        );
    }

    // Waiters keep their places, and are granted from the floor on.
    let waiters = roles.iter().zip(in_the_way).zip(waiting);
    for ((&role, in_the_way), mut waiting) in waiters {
        let mut partner = None;
        match (role, in_the_way) {
            (_, Some(guard)) => promptly("a release", guard.end()).await??,
            (Role::Consumer, _) => {
                let queue = holder.queue(role.name("next"))?;
                promptly("enqueue", queue.enqueue("work")).await??;
            }
            (role, _) => {
                let entered = promptly("the second to enter", role.wait(&holder, "next", 2));
                partner = Some(entered.await??);
            }
        }
        let granted = waiting.end(PROMPT, "the grant of a waiter from before the raise");
        let guard = granted.await??;
        for token in [Some(guard.token()), partner.as_ref().map(Guard::token)] {
            ensure!(
                token.is_none_or(|token| token >= floor),
                "the floor is {floor}, and {role:?}, which waited before, was granted with token {token:?}"
            );
        }
        // A participant leaves when all do.
        drop(partner);
        promptly("a release", guard.end()).await??;
    }

    let least = all_from(&other, "new", &roles, vec![floor.get(); roles.len()]).await?;
    for lower in [floor.get(), floor.get() / 2, 1] {
        let lowering = operator.raise_token_floor(FencingToken::new(lower));
        promptly("an answer to a lower floor", lowering).await??;
    }
    let least = all_from(&other, "new", &roles, least)
        .await
        .map_err(|outcome| outcome.when("after a lower floor was asked for: "))?;

    let too_high = operator.raise_token_floor(FencingToken::MAX);
    refused(
        "a floor that leaves no room",
        promptly("an answer", too_high).await?,
        &[ErrorKind::Config],
    )?;
    held!("{roles:?}: granted from {floor} on, the next from {least:?}; holders kept {tokens:?}")
}

/// L2: a floor that was raised holds after a restart of the store, though nothing was granted in between.
pub async fn l2_token_floor_survives_a_restart(harness: &dyn Harness) -> Verdict {
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let roles = offered(&session)?;
    let before = all_from(&session, "numbered", &roles, vec![0; roles.len()]).await?;
    promptly("close", session.close()).await??;
    let floor = before.iter().max().copied().unwrap_or_default() + FAR;
    let floor = FencingToken::new(floor);
    let store = harness.connect().await?;
    promptly("the raise", store.raise_token_floor(floor)).await??;
    control("the restart", operator(harness)?.restart()).await?;
    let session = within(RECOVERY, "open", open(harness, LONG)).await??;
    let after = all_from(&session, "numbered", &roles, vec![floor.get(); roles.len()]).await?;
    held!(
        "{roles:?}: {before:?} were next, then came the floor {floor} and a restart, and {after:?} are next"
    )
}

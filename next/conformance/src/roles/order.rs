//! Exclusion, tokens, and the order of grants: rules L1 to L3.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::{ErrorKind, FencingToken, Session};

use super::scene::*;
use super::{Held, Role};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::stress::{contend, share_a_queue};
use crate::tools::*;

/// Checks L1, E1, R1, R3 and Q2: of many contenders, in one session and in several, no two hold the object at once; the
/// checkers judge their history.
pub(crate) async fn excludes_others(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "contended";
    let first = open(harness, LONG).await?;
    done("enqueue", role.prepare(&first, name)).await?;
    if role != Role::Reader {
        // No holding is granted twice, not even to another task of the holder's own session.
        let held = done("a grant of what is free", role.acquire(&first, name)).await?;
        let mut again = waiter(role, &first, name);
        settle().await;
        let twice = again.is_finished() && again.end(PROMPT, "an answer").await?.is_ok();
        ensure!(!twice, "a second task of the holder's session was granted it too");
        drop(again);
        done("a release", held.release()).await?;
    }
    drop(first);
    if role.is_of_a_queue() {
        let account = share_a_queue(harness, 6, 20).await?;
        let (accepted, again) = (account.enqueued, account.redelivered);
        in_time!(again > 0, "no item was ever returned: too little happened");
        return held!("{accepted} items, each with one consumer at a time, {again} of them redelivered, none lost");
    }
    // Readers compete with the writers of their own session and of others.
    let contender = |number| match role {
        Role::Reader if number % 4 == 0 => Role::Writer,
        role => role,
    };
    let contenders: Vec<Role> = (0..10).map(contender).collect();
    let summary = contend(harness, &contenders, 8).await?;
    in_time!(
        role != Role::Reader || summary.shared > 0,
        "no two of the readers ever met: too little happened at a time"
    );
    held!(
        "{} grants in one order, {} of them shared; {} accesses accepted",
        summary.grants,
        summary.shared,
        summary.accepted
    )
}

/// Checks L2: the token of each grant is above all earlier ones: after a release, a drop, a close, and idle time.
pub(crate) async fn tokens_rise(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let other = open(harness, LONG).await?;
    let set = async |role: Role| {
        let name = named("tokens", role);
        done("enqueue", role.prepare(&other, &name)).await?;
        let mut seen = Tokens::default();
        for _ in 0..2 {
            let session = open(harness, LONG).await?;
            let held = seen.grant(role, &session, &name).await?;
            done("a release", held.release()).await?;
            drop(seen.grant(role, &session, &name).await?);
            let held = seen.grant(role, &other, &name).await?;
            done("a release", held.release()).await?;
            let held = seen.grant(role, &session, &name).await?;
            done("close", session.close()).await?;
            drop(held);
        }
        Ok(seen)
    };
    let idle = async |_: &[Tokens]| {
        // No session is left in the namespace.
        done("close", other.close()).await?;
        tokio::time::sleep(harness.ttl() * 12 / 10).await;
        Ok(())
    };
    let judge = async |role: Role, mut seen: Tokens, (): &()| {
        let (name, late) = (named("tokens", role), open(harness, LONG).await?);
        end(seen.grant(role, &late, &name).await?).await?;
        // The object has ended in the store by now.
        let next = open(harness, LONG).await?;
        done("enqueue", role.prepare(&next, &name)).await?;
        end(seen.grant(role, &next, &name).await?).await?;
        held!("{} tokens rose to {:?}", seen.count, seen.last)
    };
    play(roles, set, idle, nothing(), judge).await
}

#[derive(Default)]
struct Tokens {
    last: Option<FencingToken>,
    count: usize,
}

impl Tokens {
    async fn grant(&mut self, role: Role, session: &Session, name: &str) -> Step<Held> {
        let granted = promptly("a grant of what is free", async {
            loop {
                match role.acquire(session, name).await {
                    // The release of a dropped guard may still be in flight.
                    Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(LOOK).await,
                    answer => return answer,
                }
            }
        });
        let held = granted.await??;
        let before = self.last;
        for token in held.tokens() {
            ensure!(
                before.is_none_or(|before| token > before),
                "grant {} has token {token}, which is not above {before:?}",
                self.count + 1
            );
            ensure!(token <= FencingToken::MAX, "token {token} is not below 2^53");
            self.last = self.last.max(Some(token));
            self.count += 1;
        }
        Ok(held)
    }
}

/// Lets waiters arrive one after the other, and records the order of their grants.
struct WaitQueue<'a> {
    role: Role,
    name: &'static str,
    arrivals: Arrivals<'a>,
    order: Arc<Mutex<Vec<usize>>>,
    waiters: Vec<Option<Task<tenure_core::Result<()>>>>,
}

impl<'a> WaitQueue<'a> {
    async fn new(harness: &'a dyn Harness, role: Role, name: &'static str) -> Step<Self> {
        Ok(Self {
            role,
            name,
            arrivals: Arrivals::watch(harness).await?,
            order: Arc::default(),
            waiters: Vec::new(),
        })
    }

    /// Adds waiter `number`. Readers wait between writers; otherwise they would be granted together.
    async fn add(&mut self, number: usize, session: &Session) -> Step<()> {
        let (order, session, name) = (Arc::clone(&self.order), session.clone(), self.name);
        let role = match self.role {
            Role::Reader if !number.is_multiple_of(2) => Role::Writer,
            role => role,
        };
        self.arrivals.again().await?;
        self.waiters.push(Some(spawn(async move {
            let held = role.acquire(&session, name).await?;
            order.lock().push(number);
            tokio::time::sleep(Duration::from_millis(5)).await;
            held.release().await
        })));
        self.arrivals.one_more().await
    }

    async fn give_up(&mut self, number: usize) {
        drop(self.waiters[number].take());
        // The order of the cancellations matters.
        tokio::time::sleep(LOOK * 10).await;
    }

    /// Returns the order in which the waiters that stayed were granted.
    async fn served(mut self) -> Step<Vec<usize>> {
        for waiter in self.waiters.iter_mut().flatten() {
            waiter.end(PROMPT, "the grant to a waiter that stayed").await??;
        }
        Ok(self.order.lock().clone())
    }
}

/// Checks L3 and R2: waiters of several sessions are granted in the order in which they arrived, and no try overtakes
/// one of them.
pub(crate) async fn waiters_are_granted_in_order(harness: &dyn Harness, role: Role) -> Verdict {
    const WAITERS: usize = 20;
    let (holder, third) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let sides = (role.opponent(), role);
    let mut tried = Contention::set(harness, sides, &holder, &third, "tried").await?;
    done("a release", tried.held.release()).await?;
    for session in [&holder, &third] {
        is_kept(role, session, "tried", "after a release with a waiter").await?;
    }
    end(tried.waiter.end(PROMPT, "the grant to the waiter").await??).await?;
    let held = done("a grant of what is free", role.opponent().acquire(&holder, "queue")).await?;
    let mut queue = WaitQueue::new(harness, role, "queue").await?;
    let sessions = [
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    ];
    for number in 0..WAITERS {
        // Two in a row of one session: the order inside a session counts too.
        queue.add(number, &sessions[number / 2 % 3]).await?;
    }
    done("a release", held.release()).await?;
    let order = queue.served().await?;
    let expected: Vec<usize> = (0..WAITERS).collect();
    ensure!(
        order == expected,
        "{WAITERS} waiters arrived in order, and were granted as {order:?}"
    );
    held!("{WAITERS} waiters of three sessions were granted in their order")
}

/// Checks L3: waiters that give up at the head, in the middle and at the end do not change the order of the others.
pub(crate) async fn cancelled_waiters_keep_the_order(harness: &dyn Harness, role: Role) -> Verdict {
    let holder = open(harness, LONG).await?;
    let held = done("a grant of what is free", role.opponent().acquire(&holder, "queue")).await?;
    let mut queue = WaitQueue::new(harness, role, "queue").await?;
    let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
    for number in 0..5 {
        queue.add(number, if number < 2 { &first } else { &second }).await?;
    }
    for number in [2, 0, 4] {
        queue.give_up(number).await;
    }
    for number in [5, 7] {
        queue.add(number, &holder).await?;
    }
    done("a release", held.release()).await?;
    let order = queue.served().await?;
    ensure!(
        order == [1, 3, 5, 7],
        "waiters 0 to 4 came, 2, 0 and 4 gave up, 5 and 7 came; granted were {order:?}"
    );
    held!("the first, the middle and the last of five waiters gave up; granted were {order:?}")
}

/// Checks L3: each release hands the object on to the waiter, whenever it comes.
pub(crate) async fn handed_on_by_a_release(harness: &dyn Harness, role: Role) -> Verdict {
    const HAND_OFFS: u32 = 5;
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    for number in 0..HAND_OFFS {
        let (name, sides) = (format!("handed on {number}"), (role.opponent(), role));
        let mut contention = Contention::set(harness, sides, &holder, &other, &name).await?;
        // The varying delay avoids a fixed phase to any periodic check.
        tokio::time::sleep(Duration::from_millis(37) * number).await;
        contention.waits("before the release")?;
        let releasing = done("a release", contention.held.release());
        let waiting = contention.waiter.end(PROMPT, "the grant to the waiter after a release");
        let (released, next) = tokio::join!(releasing, waiting);
        released?;
        end(next??).await?;
    }
    held!("{HAND_OFFS} releases handed it on to the waiter")
}

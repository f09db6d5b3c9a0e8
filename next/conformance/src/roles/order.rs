//! Exclusion, tokens, and the order of grants: rules L1 to L3.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::{ErrorKind, FencingToken, Session};

use super::scene::*;
use super::{Held, Role};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::*;

/// The parts that are held exclusively now, and the number of readers.
#[derive(Default)]
struct Present {
    exclusive: HashSet<Vec<u8>>,
    readers: usize,
}

impl Present {
    /// Returns whether `held` meets another holding that it excludes.
    fn enter(&mut self, role: Role, held: &Held) -> bool {
        if role == Role::Reader {
            self.readers += 1;
            return !self.exclusive.is_empty();
        }
        let fresh = held.parts().into_iter().all(|part| self.exclusive.insert(part));
        self.readers > 0 || !fresh
    }

    fn leave(&mut self, role: Role, held: &Held) {
        match role {
            Role::Reader => self.readers -= 1,
            _ => held.parts().iter().for_each(|part| {
                self.exclusive.remove(part);
            }),
        }
    }
}

/// Checks L1: of many contenders, in one session and in several, no two hold the object at once.
pub(crate) async fn excludes_others(harness: &dyn Harness, role: Role) -> Verdict {
    const ROUNDS: usize = 6;
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
    let mut sessions = vec![first.clone(), first];
    for _ in 0..3 {
        sessions.push(open(harness, LONG).await?);
    }
    let inside = Arc::new(Mutex::new(Present::default()));
    let contend = |(number, session): (usize, Session)| {
        let inside = Arc::clone(&inside);
        // Readers compete with writers of other sessions, and hold together with each other.
        let role = match (role, number / 2 % 2) {
            (Role::Reader, 1) => Role::Writer,
            (role, _) => role,
        };
        spawn(async move {
            for _ in 0..ROUNDS {
                let held = role.acquire(&session, name).await?;
                let met = inside.lock().enter(role, &held);
                tokio::time::sleep(Duration::from_millis(2)).await;
                inside.lock().leave(role, &held);
                if met {
                    return Ok(held.tokens());
                }
                held.release().await?;
            }
            Ok::<_, tenure_core::Error>(Vec::new())
        })
    };
    let contenders: Vec<_> = sessions.into_iter().enumerate().map(contend).collect();
    let count = contenders.len();
    for mut contender in contenders {
        let met = contender.end(PROMPT * 2, "the end of a contender").await??;
        ensure!(met.is_empty(), "two had it at once; the later one under token {met:?}");
    }
    held!("{} grants to {count} contenders, never two at once", count * ROUNDS)
}

/// Checks L2: the token of each grant is above all earlier ones: after a release, a drop, a close, and idle time.
pub(crate) async fn tokens_rise(harness: &dyn Harness, roles: &[Role]) -> Vec<Outcome> {
    let scene = async {
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
            tokio::time::sleep(harness.ttl() * 12 / 10).await;
            Ok(())
        };
        let judge = async |role: Role, mut seen: Tokens, (): &()| {
            let (name, late) = (named("tokens", role), open(harness, LONG).await?);
            end(seen.grant(role, &late, &name).await?).await?;
            // The object has ended in the store by now.
            done("enqueue", role.prepare(&other, &name)).await?;
            end(seen.grant(role, &other, &name).await?).await?;
            held!("{} tokens rose to {:?}", seen.count, seen.last)
        };
        play(roles, set, idle, nothing(), judge).await
    };
    of_all(roles, scene.await)
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

/// Checks L3 and R2: waiters of several sessions are granted in the order in which they arrived.
pub(crate) async fn waiters_are_granted_in_order(harness: &dyn Harness, role: Role) -> Verdict {
    const WAITERS: usize = 10;
    let holder = open(harness, LONG).await?;
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
    let (holder, rival) = (open(harness, LONG).await?, open(harness, LONG).await?);
    for number in 0..HAND_OFFS {
        let (name, sides) = (format!("handed on {number}"), (role.opponent(), role));
        let mut contest = Contest::set(harness, sides, &holder, &rival, &name).await?;
        // The varying delay avoids a fixed phase to any periodic check.
        tokio::time::sleep(Duration::from_millis(37) * number).await;
        contest.waits("before the release")?;
        let releasing = done("a release", contest.held.release());
        let waiting = contest.waiter.end(PROMPT, "the grant to the waiter after a release");
        let (released, next) = tokio::join!(releasing, waiting);
        released?;
        end(next??).await?;
    }
    held!("{HAND_OFFS} releases handed it on to the waiter")
}

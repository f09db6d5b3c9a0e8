//! Exclusion, tokens, and the order of grants: rules L1 to L3.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tenure_core::{FencingToken, Session};
use tokio::time::Instant;

use super::scene::{Contest, end, settle, waits};
use super::{Held, Role, Step};
use crate::case::Verdict;
use crate::cases::tools::*;
use crate::harness::Harness;
use crate::patient::patience;

/// What is in somebody's hands now: parts, and whether they are shared.
#[derive(Default)]
struct Inside(HashSet<Vec<u8>>, usize);

/// L1: of many contenders, in one session and in several, no two have it at once.
pub(crate) async fn one_at_a_time(harness: &dyn Harness, role: Role) -> Verdict {
    const ROUNDS: usize = 6;
    let first = open(harness, LONG).await?;
    promptly("enqueue", role.prepare(&first, "contended")).await??;
    let mut sessions = vec![first.clone(), first.clone()];
    for _ in 0..3 {
        sessions.push(open(harness, LONG).await?);
    }
    if !matches!(role, Role::Reader) {
        // Another task of the holder's own session: no holding is granted twice.
        let held = promptly("a grant of what is free", role.acquire(&first, "contended")).await??;
        let mut again = waits(role, &first, "contended");
        settle().await;
        let twice = again.is_finished() && again.end(PROMPT, "an answer").await?.is_ok();
        ensure!(
            !twice,
            "a second task of the holder's session was granted it too"
        );
        drop(again);
        promptly("a release", held.release()).await??;
    }
    let inside = Arc::new(Mutex::new(Inside::default()));
    let mut contenders = Vec::new();
    for (number, session) in sessions.iter().enumerate() {
        let (session, inside) = (session.clone(), Arc::clone(&inside));
        // Readers meet writers of other sessions, and each other.
        let role = match (role, number / 2 % 2) {
            (Role::Reader, 1) => Role::Writer,
            (role, _) => role,
        };
        contenders.push(spawn(async move {
            let mut grants = 0;
            let mut last = None;
            for _ in 0..ROUNDS {
                let held = role.acquire(&session, "contended").await?;
                let parts = held.parts();
                let clash = {
                    let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
                    match role {
                        Role::Reader => {
                            inside.1 += 1;
                            !inside.0.is_empty()
                        }
                        _ => {
                            let clash = inside.1 > 0;
                            let fresh = parts.iter().all(|part| inside.0.insert(part.clone()));
                            clash || !fresh
                        }
                    }
                };
                tokio::time::sleep(Duration::from_millis(2)).await;
                grants += 1;
                last = last.max(held.tokens().into_iter().max());
                {
                    let mut inside = inside.lock().unwrap_or_else(PoisonError::into_inner);
                    match role {
                        Role::Reader => inside.1 -= 1,
                        _ => inside.0.retain(|part| !parts.contains(part)),
                    }
                }
                held.release().await?;
                if clash {
                    return Ok::<_, tenure_core::Error>((grants, last, true));
                }
            }
            Ok((grants, last, false))
        }));
    }
    let mut grants = 0;
    for mut contender in contenders {
        let (had, token, clash) = contender
            .end(PROMPT * 10, "the end of a contender")
            .await??;
        ensure!(
            !clash,
            "two had it at once; the later one under token {token:?}"
        );
        grants += had;
    }
    held!("{grants} grants to five contenders, never two at once")
}

/// L2: the token of each grant is above all before it: after a release, a drop, a close, and idle time.
pub(crate) async fn tokens_rise(harness: &dyn Harness, role: Role) -> Verdict {
    let other = open(harness, LONG).await?;
    let name = "tokens";
    promptly("enqueue", role.prepare(&other, name)).await??;
    let mut seen = Tokens::default();
    for _ in 0..2 {
        let session = open(harness, harness.ttl()).await?;
        let held = seen.grant(role, &session, name, "a release").await?;
        promptly("a release", held.release()).await??;
        drop(seen.grant(role, &session, name, "a drop").await?);
        let held = seen.grant(role, &other, name, "another's").await?;
        promptly("a release", held.release()).await??;
        let held = seen.grant(role, &session, name, "its close").await?;
        promptly("close", session.close()).await??;
        drop(held);
    }
    let idle = harness.ttl() * 12 / 10;
    tokio::time::sleep(idle).await;
    let late = open(harness, LONG).await?;
    let held = seen.grant(role, &late, name, "idle time").await?;
    end(held).await?;
    // The object was gone from the store.
    promptly("enqueue", role.prepare(&other, name)).await??;
    let held = seen
        .grant(role, &other, name, "the end of what was there")
        .await?;
    end(held).await?;
    held!("{} tokens rose to {:?}", seen.count, seen.last)
}

#[derive(Default)]
struct Tokens {
    last: Option<FencingToken>,
    count: usize,
}

impl Tokens {
    async fn grant(&mut self, role: Role, session: &Session, name: &str, what: &str) -> Step<Held> {
        let waiting = within(PROMPT, "a grant of what is free", async {
            loop {
                match role.acquire(session, name).await {
                    // A drop is on its way.
                    Err(error) if error.kind() == tenure_core::ErrorKind::Conflict => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    done => return done,
                }
            }
        });
        let held = waiting.await??;
        // The deliveries of one batch may share a token: they are one grant.
        let before = self.last;
        for token in held.tokens() {
            ensure!(
                before.is_none_or(|before| token > before),
                "the grant before {what} has token {token}, which is not above {:?}",
                before
            );
            ensure!(token.get() < 1 << 53, "token {token} is not below 2^53");
            self.last = self.last.max(Some(token));
            self.count += 1;
        }
        Ok(held)
    }
}

/// L3: waiters that give up at the head, in the middle and at the end leave the order of the others.
pub(crate) async fn cancelled_waiters_keep_the_order(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "queue";
    let holder = open(harness, LONG).await?;
    // Readers wait between writers, else they would come in together.
    let (of_holder, between) = match role {
        Role::Reader => (Role::Writer, Role::Writer),
        role => (role, role),
    };
    let held = promptly("a grant of what is free", of_holder.acquire(&holder, name)).await??;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut waiters = Vec::new();
    let stand = |number: usize, session: Session| {
        let order = Arc::clone(&order);
        let role = if number.is_multiple_of(2) {
            role
        } else {
            between
        };
        spawn(async move {
            let held = role.acquire(&session, name).await?;
            order
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(number);
            tokio::time::sleep(Duration::from_millis(5)).await;
            held.release().await
        })
    };
    let mut sessions = Vec::new();
    for number in 0..5_usize {
        // Two waiters for each session, so that the order inside one counts, too.
        if number.is_multiple_of(2) {
            sessions.push(open(harness, LONG).await?);
        }
        let session = sessions.last().unwrap_or(&holder).clone();
        waiters.push(Some(stand(number, session)));
        arrivals.one_more().await?;
    }
    for number in [2, 0, 4] {
        drop(waiters[number].take());
        // Both the order in which they go and a new arrival afterwards count.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    arrivals.seen = count_keys(harness).await?;
    for number in [5, 7] {
        waiters.push(Some(stand(number, holder.clone())));
        arrivals.one_more().await?;
    }
    promptly("a release", held.release()).await??;
    for waiter in waiters.iter_mut().flatten() {
        waiter
            .end(PROMPT, "the grant to a waiter that stayed")
            .await??;
    }
    let order = order.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(
        order == [1, 3, 5, 7],
        "waiters 0 to 4 came, 2, 0 and 4 gave up, 5 and 7 came; granted were {order:?}"
    );
    held!("the first, the middle and the last of five waiters gave up; granted were {order:?}")
}

/// L3: the next waiter has it within moments of a release, time after time.
pub(crate) async fn handed_on_at_once(harness: &dyn Harness, role: Role) -> Verdict {
    const HAND_OFFS: usize = 7;
    let (holder, rival) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (mut took, mut usual) = (Vec::new(), Vec::new());
    for number in 0..HAND_OFFS {
        let started = Instant::now();
        let free = promptly("an answer to a try", Role::Lock.attempt(&rival, "free")).await??;
        if let Some(free) = free {
            end(free).await?;
        }
        usual.push(started.elapsed());
        let name = format!("handed on {number}");
        let mut contest =
            Contest::set(harness, (role.opponent(), role), &holder, &rival, &name).await?;
        // Out of step with whatever is looked at now and again.
        tokio::time::sleep(Duration::from_millis(37 * number as u64)).await;
        contest.waits("before the release")?;
        let released = Instant::now();
        let releasing = promptly("a release", contest.held.release());
        let waiting = async {
            let next = contest.waiter.end(PROMPT, "the grant to the waiter").await;
            (next, released.elapsed())
        };
        let (released, (next, elapsed)) = tokio::join!(releasing, waiting);
        released??;
        end(next??).await?;
        took.push(elapsed);
    }
    took.sort();
    usual.sort();
    let median = took[HAND_OFFS / 2];
    // Half a second between two looks would make a quarter. A busy machine is slow in all that it does.
    let most = Duration::from_millis(120).max(usual[HAND_OFFS / 2] * 10);
    in_time!(
        median < most * patience(),
        "the waiter had it {median:?} after the release, the median of {took:?}"
    );
    held!("{median:?} from the release to the grant, the median of {HAND_OFFS}")
}

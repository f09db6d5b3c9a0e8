//! The clients: what each of them does in its turns, and the same without faults for the cases.

use std::time::Duration;

use futures_util::future::join_all;
use tenure_core::{Isolation, Session};

use super::faults::Faults;
use super::objects::{Contended, Lists, Shared};
use super::{Plan, Random, World};
use crate::checkers::Timeline;
use crate::checkers::list_append::Transaction;
use crate::checkers::lock::{self, Summary};
use crate::checkers::queue::{self, Account};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step};
use crate::roles::{Held, Role};
use crate::tools::{LONG, PROMPT, done, open, promptly, within};

/// A client that lives through faults.
pub(super) struct Client<'a> {
    id: u64,
    turns: u32,
    world: &'a World,
    faults: &'a Faults<'a>,
    harness: &'a dyn Harness,
    random: Random,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        id: u64,
        plan: &Plan,
        world: &'a World,
        faults: &'a Faults<'a>,
        harness: &'a dyn Harness,
    ) -> Self {
        Self {
            id,
            turns: plan.turns,
            world,
            faults,
            harness,
            random: Random::new(plan.seed.wrapping_mul(1_000_003).wrapping_add(id)),
        }
    }

    /// Takes all turns, in as many sessions as the faults leave it.
    pub(super) async fn live(mut self) -> Step<()> {
        let mut left = self.turns;
        while left > 0 {
            let session = self.faults.connect(self.id, self.harness, self.world.ttl).await?;
            let killed = self.faults.killed(self.id);
            let turns = async {
                while left > 0 && session.is_valid() {
                    left -= 1;
                    self.turn(&session).await?;
                }
                Ok::<_, Outcome>(())
            };
            tokio::select! {
                biased;
                () = killed => {}
                turned = turns => turned?,
            }
            self.end(session).await?;
        }
        Ok(())
    }

    /// Ends the session. Once the store has freed all that it had, its unknown operations have no effect any more.
    async fn end(&self, session: Session) -> Step<()> {
        let reachable = self.faults.is_reachable(self.id);
        if !(reachable && promptly("close", session.close()).await?.is_ok()) {
            let ttl = session.ttl();
            drop(session);
            tokio::time::sleep(ttl + self.world.bound + Duration::from_secs(1)).await;
        }
        for object in [&self.world.lock, &self.world.rw_lock, &self.world.election] {
            object.journal.settle(self.id);
        }
        self.world.queue.journal.settle(self.id);
        self.world.lists.journal.settle(self.id);
        Ok(())
    }

    async fn turn(&mut self, session: &Session) -> Step<()> {
        self.stand_still().await;
        tokio::time::sleep(self.random.up_to(Duration::from_millis(60))).await;
        let (world, way) = (self.world, self.random.below(14));
        match way {
            0..=2 => self.hold(session, &world.lock, Role::Lock).await,
            3 => self.hold(session, &world.rw_lock, Role::Writer).await,
            4 | 5 => self.hold(session, &world.rw_lock, Role::Reader).await,
            6 => self.hold(session, &world.election, Role::Leadership).await,
            7 => world.election.leader(self.id, session).await,
            8 => world.queue.produce(self.id, session, &mut self.random).await,
            9 | 10 => self.consume(session).await,
            _ => {
                let (lists, level) = (&world.lists, Isolation::default());
                lists.transact(self.id, session, level, &mut self.random).await
            }
        }
    }

    /// Waits until this client is not paused. The clock, the store and the other clients go on.
    async fn stand_still(&self) {
        while self.faults.is_paused(self.id) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn limit(&mut self) -> Duration {
        match self.random.below(4) {
            0 => self.random.up_to(Duration::from_millis(30)),
            _ => self.random.up_to(self.world.ttl * 2),
        }
    }

    async fn hold(&mut self, session: &Session, object: &Contended, role: Role) -> Step<()> {
        let (id, limit) = (self.id, self.limit());
        let Some(mut held) = object.acquire(id, session, role, limit).await? else {
            return Ok(());
        };
        object.work(id, &held);
        for number in 1..=self.random.below(3) {
            tokio::time::sleep(self.random.up_to(Duration::from_millis(300))).await;
            // Work that comes late, after a pause: the gate has to decide.
            self.stand_still().await;
            object.work(id, &held);
            object.proclaim(id, &held, number).await?;
        }
        if matches!(held, Held::Writer(_)) && self.random.below(2) == 0 {
            let Some(reader) = object.downgrade(id, held).await? else {
                return Ok(());
            };
            held = reader;
            object.work(id, &held);
            tokio::time::sleep(self.random.up_to(Duration::from_millis(300))).await;
            object.work(id, &held);
        }
        match self.random.below(5) {
            0 => drop(held),
            _ => object.release(id, held).await?,
        }
        Ok(())
    }

    async fn consume(&mut self, session: &Session) -> Step<()> {
        let max = self.random.pick(&[1, 1, 3]).unwrap_or(1);
        let limit = if max == 1 && self.random.below(3) == 0 {
            Duration::ZERO
        } else {
            self.limit()
        };
        let (id, queue) = (self.id, &self.world.queue);
        for delivery in queue.take(id, session, max, limit).await? {
            queue.check(id, &delivery);
            tokio::time::sleep(self.random.up_to(Duration::from_millis(200))).await;
            self.stand_still().await;
            queue.check(id, &delivery);
            match self.random.below(8) {
                0 => drop(delivery),
                _ => queue.settle(id, delivery, &mut self.random).await?,
            }
        }
        Ok(())
    }
}

async fn sessions(harness: &dyn Harness, count: usize) -> Step<Vec<Session>> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        sessions.push(open(harness, LONG).await?);
    }
    Ok(sessions)
}

async fn all(tasks: impl IntoIterator<Item = impl Future<Output = Step<()>>>) -> Step<()> {
    let ended = within(PROMPT * 2, "the turns of all clients", join_all(tasks)).await?;
    ended.into_iter().collect()
}

/// Lets clients contend for one object without faults, each in `turns` turns as its role, two in each session; judges
/// the history.
pub(crate) async fn contend(harness: &dyn Harness, roles: &[Role], turns: u32) -> Step<Summary> {
    let (object, sessions) = (
        Contended::new("contended", &Timeline::logical()),
        sessions(harness, roles.len().div_ceil(2)).await?,
    );
    let clients = roles.iter().enumerate().map(|(number, role)| {
        let (object, session, client) = (&object, &sessions[number / 2], number as u64);
        let mut random = Random::new(client);
        async move {
            for _ in 0..turns {
                let Some(held) = object.acquire(client, session, *role, PROMPT).await? else {
                    return Err(Outcome::unjudged(format!(
                        "a {} was not granted within {PROMPT:?}",
                        role.word()
                    )));
                };
                object.work(client, &held);
                tokio::time::sleep(random.up_to(Duration::from_millis(3))).await;
                object.proclaim(client, &held, 1).await?;
                if *role == Role::Leadership {
                    object.leader(client, session).await?;
                }
                object.work(client, &held);
                object.release(client, held).await?;
            }
            Ok(())
        }
    });
    all(clients).await?;
    let judged = lock::check(&object.journal.operations(), lock::Proof::Guards);
    let summary = judged.map_err(|violation| Outcome::violated(violation.to_string()))?;
    match summary.grants == roles.len() * turns as usize && summary.refused == 0 {
        true => Ok(summary),
        false => Err(Outcome::violated(format!(
            "not every turn held the object: {summary:?}"
        ))),
    }
}

/// Lets clients produce and consume on one queue without faults, `items` each; judges the account and the order.
pub(crate) async fn share_a_queue(harness: &dyn Harness, clients: usize, items: u32) -> Step<Account> {
    let (queue, sessions) = (
        Shared::new("shared", &Timeline::logical()),
        sessions(harness, clients).await?,
    );
    let clients = sessions.iter().enumerate().map(|(client, session)| {
        let (queue, client, mut random) = (&queue, client as u64, Random::new(client as u64));
        async move {
            for _ in 0..items {
                queue.produce(client, session, &mut random).await?;
                let (max, limit) = (
                    random.pick(&[1, 2, 5]).unwrap_or(1),
                    random.up_to(Duration::from_millis(100)),
                );
                for delivery in queue.take(client, session, max, limit).await? {
                    queue.check(client, &delivery);
                    tokio::time::sleep(random.up_to(Duration::from_millis(3))).await;
                    queue.check(client, &delivery);
                    queue.settle(client, delivery, &mut random).await?;
                }
            }
            Ok(())
        }
    });
    all(clients).await?;
    for session in sessions {
        done("close", session.close()).await?;
    }
    within(
        PROMPT,
        "the rest of the queue",
        queue.drain(&open(harness, LONG).await?),
    )
    .await??;
    let history = queue.journal.operations();
    let broken = |violation: crate::checkers::Violation| Outcome::violated(violation.to_string());
    queue::check_order(&history).map_err(broken)?;
    queue::check_account(&history, lock::Proof::Guards).map_err(broken)
}

/// Lets clients append to lists and read them without faults, in `turns` transactions each; returns the history.
pub(crate) async fn append_to_lists(
    harness: &dyn Harness,
    isolation: Isolation,
    clients: usize,
    turns: u32,
) -> Step<Vec<Transaction>> {
    let (lists, sessions) = (
        Lists::new("appended", &Timeline::logical(), Duration::ZERO),
        sessions(harness, clients).await?,
    );
    let clients = sessions.iter().enumerate().map(|(client, session)| {
        let (lists, client, mut random) = (&lists, client as u64, Random::new(client as u64));
        async move {
            for _ in 0..turns {
                lists.transact(client, session, isolation, &mut random).await?;
            }
            Ok(())
        }
    });
    all(clients).await?;
    lists.read_all(&sessions[0], isolation).await?;
    Ok(lists.journal.operations())
}

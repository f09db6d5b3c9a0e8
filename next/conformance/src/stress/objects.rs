//! The objects that clients share, with the journals of all that is done to them.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::backend::Leader;
use tenure_core::{Delivery, Effect, ErrorKind, Isolation, Kind, NewItem, Result, Session, SessionId};

use super::Random;
use crate::checkers::list_append::{self, Reads, Step as Part, Steps};
use crate::checkers::lock::{LockAnswer, LockCall, Mode, Shown};
use crate::checkers::queue::{Delivered, QueueAnswer, QueueCall};
use crate::checkers::{Journal, Outcome as Ending, Ticket, Timeline};
use crate::harness::{Harness, Need};
use crate::outcome::{Outcome, Step};
use crate::roles::{Held, Role};
use crate::tools::{LONG, LOOK, done, ensure, open};

/// The client as which the requests that wait are read.
const WATCHER: u64 = 2_000_000;

/// A lock, a read-write lock or an election, and the resource behind it.
pub(crate) struct Contended {
    name: &'static str,
    pub(super) journal: Journal<LockCall, LockAnswer>,
    gate: Mutex<Gate>,
    /// The session of each client with a request that has no answer; and the request if it is the session's only one and
    /// was not seen waiting yet. Of a request that was given up, the store may still show the place.
    requests: Mutex<BTreeMap<u64, (SessionId, Option<Ticket>)>>,
}

/// A resource that checks tokens: a writer needs one that is not below any, a reader one that is not below a writer's.
#[derive(Default)]
struct Gate {
    newest: u64,
    newest_writer: u64,
}

impl Gate {
    fn admits(&mut self, token: u64, mode: Mode) -> bool {
        let floor = match mode {
            Mode::Exclusive => &mut self.newest,
            Mode::Shared => &mut self.newest_writer,
        };
        if token < *floor {
            return false;
        }
        self.newest = self.newest.max(token);
        if mode == Mode::Exclusive {
            self.newest_writer = token;
        }
        true
    }
}

/// Returns how an operation ended for its journal. Every error that a client cannot expect ends the run.
fn ending<T, O>(result: Step<&Result<T>>, answer: impl FnOnce(&T) -> O) -> Step<Ending<O>> {
    match result? {
        Ok(value) => Ok(Ending::Ok(answer(value))),
        Err(error) => {
            let expected = matches!(
                error.kind(),
                ErrorKind::Lost
                    | ErrorKind::Unavailable
                    | ErrorKind::TimedOut
                    | ErrorKind::CommitUnknown
                    | ErrorKind::Conflict
            );
            ensure!(expected, "a client was given {error:?}");
            match error.effect() {
                Effect::None => Ok(Ending::Failed),
                Effect::Unknown | Effect::Applied => Ok(Ending::Unknown),
            }
        }
    }
}

impl Contended {
    pub(super) fn new(name: &'static str, timeline: &Timeline) -> Self {
        Self {
            name,
            journal: Journal::new(timeline.clone()),
            gate: Mutex::default(),
            requests: Mutex::default(),
        }
    }

    /// Acquires the object as `role` within `limit`; `None` if it was not granted.
    pub(super) async fn acquire(
        &self,
        client: u64,
        session: &Session,
        role: Role,
        limit: Duration,
    ) -> Step<Option<Held>> {
        let mode = if role == Role::Reader {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let ticket = self.journal.invoke(client, LockCall::Acquire { mode });
        let note = |request| self.requests.lock().insert(client, (session.id().clone(), request));
        let known = self
            .requests
            .lock()
            .get(&client)
            .map(|(known, _)| known == session.id());
        let first = known != Some(true);
        note(first.then_some(ticket));
        let acquiring = async {
            match role {
                Role::Leadership => session.election(self.name).campaign("0").await.map(Held::Leadership),
                role => role.acquire(session, self.name).await,
            }
        };
        // A request that is dropped at its limit stays unknown until its session ends.
        let Ok(granted) = tokio::time::timeout(limit, acquiring).await else {
            note(None);
            return Ok(None);
        };
        let outcome = ending(Ok(&granted), |held| LockAnswer::Granted(token(held)))?;
        self.journal.end(ticket, outcome);
        if granted.is_ok() && first {
            self.requests.lock().remove(&client);
        } else {
            note(None);
        }
        Ok(granted.ok())
    }

    /// Asks the guard whether it is valid, and presents its token at the gate whatever it says.
    pub(super) fn work(&self, client: u64, held: &Held) {
        let (token, mode) = (token(held), mode(held));
        let ticket = self.journal.invoke(client, LockCall::Check { token });
        let answer = if held.is_valid() {
            LockAnswer::Done
        } else {
            LockAnswer::Refused
        };
        self.journal.end(ticket, Ending::Ok(answer));
        let ticket = self.journal.invoke(client, LockCall::Access { token, mode });
        let answer = if self.gate.lock().admits(token, mode) {
            LockAnswer::Done
        } else {
            LockAnswer::Refused
        };
        self.journal.end(ticket, Ending::Ok(answer));
    }

    /// Runs a step of a holder; `None` if the holding was lost.
    async fn step<T>(&self, client: u64, call: LockCall, step: impl Future<Output = Result<T>>) -> Step<Option<T>> {
        let ticket = self.journal.invoke(client, call);
        let result = step.await;
        let outcome = match &result {
            Err(error) if error.kind() == ErrorKind::Lost && error.effect() == Effect::None => {
                Ending::Ok(LockAnswer::Refused)
            }
            result => ending(Ok(result), |_| LockAnswer::Done)?,
        };
        self.journal.end(ticket, outcome);
        Ok(result.ok())
    }

    pub(super) async fn proclaim(&self, client: u64, held: &Held, number: u64) -> Step<()> {
        let Held::Leadership(lead) = held else {
            return Ok(());
        };
        let call = LockCall::Proclaim {
            token: token(held),
            number,
        };
        self.step(client, call, lead.proclaim(number.to_string()))
            .await
            .map(drop)
    }

    pub(super) async fn downgrade(&self, client: u64, held: Held) -> Step<Option<Held>> {
        let call = LockCall::Downgrade { token: token(&held) };
        match held {
            Held::Writer(writer) => Ok(self.step(client, call, writer.downgrade()).await?.map(Held::Reader)),
            other => Ok(Some(other)),
        }
    }

    pub(super) async fn release(&self, client: u64, held: Held) -> Step<()> {
        let call = LockCall::Release { token: token(&held) };
        self.step(client, call, held.release()).await.map(drop)
    }

    /// Asks the store for the requests that wait, until `over`: the proof that they have joined.
    pub(super) async fn watch_waiters(&self, harness: &dyn Harness, kind: Kind, over: impl Fn() -> bool) -> Step<()> {
        let Some(operator) = harness.operator().filter(|_| harness.offers().contains(&Need::Waiters)) else {
            return Ok(());
        };
        while !over() {
            tokio::time::sleep(LOOK * 10).await;
            let mut before = self.requests.lock().clone();
            before.retain(|_, (_, request)| request.is_some());
            if before.is_empty() {
                continue;
            }
            let waiting = done("the list of waiters", operator.waiters(kind, self.name)).await?;
            for (client, request) in before {
                if waiting.contains(&request.0) && self.requests.lock().get(&client) == Some(&request) {
                    let seen = self.journal.invoke(WATCHER, LockCall::Waits { client });
                    self.journal.end(seen, Ending::Ok(LockAnswer::Done));
                    // Once is enough.
                    self.requests.lock().insert(client, (request.0, None));
                }
            }
        }
        Ok(())
    }

    /// Reads the leader.
    pub(super) async fn leader(&self, client: u64, session: &Session) -> Step<()> {
        let call = LockCall::Observe {
            observer: client,
            current: true,
        };
        let ticket = self.journal.invoke(client, call);
        let leader = session.election(self.name).leader().await;
        let outcome = ending(Ok(&leader), |leader| LockAnswer::Shows(shown(leader.as_ref())))?;
        self.journal.end(ticket, outcome);
        Ok(())
    }

    /// Observes the election until `over`, and then a last time.
    pub(super) async fn observe(&self, harness: &dyn Harness, number: u64, over: impl Fn() -> bool) -> Step<()> {
        let client = 1_000_000 + number;
        let session = open(harness, LONG).await?;
        let mut observer = session.election(self.name).observe();
        let call = |current| LockCall::Observe {
            observer: client,
            current,
        };
        let mut last = None;
        loop {
            let ticket = self.journal.invoke(client, call(false));
            match tokio::time::timeout(LOOK * 50, observer.next()).await {
                Ok(Some(Ok(update))) => {
                    last = shown(update.leader.as_ref());
                    self.journal.end(ticket, Ending::Ok(LockAnswer::Shows(last)));
                }
                Ok(Some(Err(error))) => return Err(error.into()),
                Ok(None) => return Err(Outcome::violated("an observer of a live session ended")),
                Err(_) if over() => break,
                Err(_) => self.journal.end(ticket, Ending::Failed),
            }
        }
        // Nothing changes any more, and it had the time to receive all.
        let ticket = self.journal.invoke(client, call(true));
        self.journal.end(ticket, Ending::Ok(LockAnswer::Shows(last)));
        done("close", session.close()).await
    }
}

fn token(held: &Held) -> u64 {
    held.tokens().first().map_or(0, |token| token.get())
}

const fn mode(held: &Held) -> Mode {
    match held {
        Held::Reader(_) => Mode::Shared,
        _ => Mode::Exclusive,
    }
}

fn shown(leader: Option<&Leader>) -> Option<Shown> {
    leader.map(|leader| Shown {
        token: leader.token.get(),
        number: String::from_utf8_lossy(&leader.value).parse().unwrap_or(u64::MAX),
    })
}

/// A queue.
pub(crate) struct Shared {
    name: &'static str,
    pub(super) journal: Journal<QueueCall, QueueAnswer>,
    next: Mutex<u64>,
}

impl Shared {
    pub(super) fn new(name: &'static str, timeline: &Timeline) -> Self {
        Self {
            name,
            journal: Journal::new(timeline.clone()),
            next: Mutex::new(1),
        }
    }

    /// Enqueues one item.
    pub(super) async fn produce(&self, client: u64, session: &Session, random: &mut Random) -> Step<()> {
        let item = {
            let mut next = self.next.lock();
            *next += 1;
            *next - 1
        };
        let priority = random.pick(&[0, 1, 1, 2, 700]).unwrap_or(0);
        let delayed = random.below(6) == 0;
        let call = QueueCall::Enqueue {
            item,
            priority,
            delayed,
        };
        let mut new = NewItem::new(item.to_string()).priority(priority);
        if delayed {
            new = new.delay(random.up_to(Duration::from_millis(1500)));
        }
        let ticket = self.journal.invoke(client, call);
        let enqueued = session.queue(self.name).enqueue(new).await;
        self.journal.end(ticket, ending(Ok(&enqueued), |()| QueueAnswer::Done)?);
        Ok(())
    }

    /// Takes up to `max` items within `limit`.
    pub(super) async fn take(
        &self,
        client: u64,
        session: &Session,
        max: usize,
        limit: Duration,
    ) -> Step<Vec<Delivery>> {
        let queue = session.queue(self.name);
        let ticket = self.journal.invoke(client, QueueCall::Dequeue { max });
        let taking = async {
            match (max, limit.is_zero()) {
                (1, true) => Ok(queue.try_dequeue().await?.into_iter().collect()),
                (1, false) => Ok(vec![queue.dequeue().await?]),
                (max, _) => queue.dequeue_many(max).await,
            }
        };
        let taken = match limit.is_zero() {
            true => taking.await,
            false => match tokio::time::timeout(limit, taking).await {
                Ok(taken) => taken,
                Err(_) => return Ok(Vec::new()),
            },
        };
        let delivered = |taken: &Vec<Delivery>| {
            let delivered = taken.iter().map(|delivery| Delivered {
                item: number(delivery),
                token: delivery.token().get(),
                deliveries: delivery.deliveries(),
            });
            QueueAnswer::Delivered(delivered.collect())
        };
        self.journal.end(ticket, ending(Ok(&taken), delivered)?);
        Ok(taken.unwrap_or_default())
    }

    /// Asks the delivery whether it is valid.
    pub(super) fn check(&self, client: u64, delivery: &Delivery) {
        let (item, token) = (number(delivery), delivery.token().get());
        let ticket = self.journal.invoke(client, QueueCall::Check { item, token });
        let answer = if delivery.is_valid() {
            QueueAnswer::Done
        } else {
            QueueAnswer::Refused
        };
        self.journal.end(ticket, Ending::Ok(answer));
    }

    /// Acknowledges an item, or returns it.
    pub(super) async fn settle(&self, client: u64, delivery: Delivery, random: &mut Random) -> Step<()> {
        let (item, token) = (number(&delivery), delivery.token().get());
        let way = random.below(8);
        let delayed = way == 0;
        let call = match way {
            0 | 1 => QueueCall::Nack { item, token, delayed },
            _ => QueueCall::Ack { item, token },
        };
        let ticket = self.journal.invoke(client, call);
        let settled = match way {
            0 => delivery.nack_after(random.up_to(Duration::from_millis(1500))).await,
            1 => delivery.nack().await,
            _ => delivery.ack().await,
        };
        let outcome = match &settled {
            Err(error) if error.kind() == ErrorKind::Lost && error.effect() == Effect::None => {
                Ending::Ok(QueueAnswer::Refused)
            }
            settled => ending(Ok(settled), |()| QueueAnswer::Done)?,
        };
        self.journal.end(ticket, outcome);
        Ok(())
    }

    /// Acknowledges all items that are left, and notes that the queue is empty then.
    pub(super) async fn drain(&self, session: &Session) -> Step<()> {
        let (client, queue, mut random) = (u64::MAX, session.queue(self.name), Random::new(0));
        while done("len", queue.len()).await? > 0 {
            for delivery in self.take(client, session, 1, Duration::ZERO).await? {
                self.settle(client, delivery, &mut random).await?;
            }
            tokio::time::sleep(LOOK).await;
        }
        let ticket = self.journal.invoke(client, QueueCall::List);
        self.journal.end(ticket, Ending::Ok(QueueAnswer::Items(Vec::new())));
        Ok(())
    }
}

fn number(delivery: &Delivery) -> u64 {
    delivery.text().parse().unwrap_or(u64::MAX)
}

/// Lists that transactions append to and read.
pub(crate) struct Lists {
    name: &'static str,
    pub(super) journal: Journal<Steps, Reads>,
    choice: Mutex<list_append::Lists>,
    /// How long a transaction takes between its steps, so that others come in between.
    pause: Duration,
}

impl Lists {
    pub(super) fn new(name: &'static str, timeline: &Timeline, pause: Duration) -> Self {
        Self {
            name,
            journal: Journal::new(timeline.clone()),
            choice: Mutex::new(list_append::Lists::new(4, 24)),
            pause,
        }
    }

    /// Runs one transaction of some steps.
    pub(super) async fn transact(
        &self,
        client: u64,
        session: &Session,
        isolation: Isolation,
        random: &mut Random,
    ) -> Step<()> {
        let steps: Vec<Part> = {
            let mut choice = self.choice.lock();
            (0..=random.below(4))
                .map(|_| match random.below(2) {
                    0 => choice.append(random.next()),
                    _ => choice.read(random.next()),
                })
                .collect()
        };
        self.run(client, session, isolation, steps).await
    }

    /// Reads every list of one isolation level.
    pub(super) async fn read_all(&self, session: &Session, isolation: Isolation) -> Step<()> {
        let keys = self.choice.lock().keys();
        for key in keys {
            let steps = vec![Part::Read { key }];
            self.run(u64::MAX, session, isolation, steps).await?;
        }
        Ok(())
    }

    async fn run(&self, client: u64, session: &Session, isolation: Isolation, steps: Vec<Part>) -> Step<()> {
        let ticket = self.journal.invoke(client, Steps(steps.clone()));
        let stm = session.stm().isolation(isolation).attempts(1000);
        let run = stm.run(async |tx| {
            let mut reads = Vec::new();
            for step in &steps {
                match self.pause.is_zero() {
                    // Others have a turn in between, also on a store that makes no client wait.
                    true => tokio::task::yield_now().await,
                    false => tokio::time::sleep(self.pause).await,
                }
                let (Part::Append { key, .. } | Part::Read { key }) = step;
                let name = format!("{} {isolation} list {key}", self.name);
                let mut list: Vec<u64> = tx.get_as(&name).await?.unwrap_or_default();
                match step {
                    Part::Append { value, .. } => {
                        list.push(*value);
                        tx.put_as(&name, &list)?;
                    }
                    Part::Read { .. } => reads.push(list),
                }
            }
            Ok(Reads(reads))
        });
        let committed = run.await;
        self.journal.end(ticket, ending(Ok(&committed), Reads::clone)?);
        Ok(())
    }
}

//! Random producers and consumers of one queue, judged by the checkers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tenure_core::{
    Delivery, Error, ErrorKind, Item, QueueHandle, QueueOrder, Result, Session, Store,
};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::checkers::queue::{self, PriorityQueue, QueueAnswer, QueueCall, QueueOperation};
use crate::checkers::search::{self, Finding};
use crate::checkers::{Fate, Journal, Violation, total_queue};
use crate::harness::Harness;

const CONSUMERS: usize = 3;
const PRODUCERS: usize = 2;

/// For the whole of one run.
const LIMIT: Duration = Duration::from_secs(60);

type Record = Journal<QueueCall, QueueAnswer>;

/// How a run goes.
#[derive(Clone, Copy)]
struct Shape {
    /// Items of each producer.
    items: u64,
    /// Whether dequeues are also waited for and dropped, deliveries dropped, and sessions closed:
    /// too much is uncertain then for a search.
    careless: bool,
}

/// Q1, Q2, Q3: whatever consumers do, every item is accounted for.
pub async fn q2_random_consumers_lose_and_double_nothing(harness: &dyn Harness) -> Verdict {
    a_random_history_of_a_queue(harness, 1).await
}

/// One run, the same for the same `seed` as far as the machine lets it be: the long form of
/// [`q2_random_consumers_lose_and_double_nothing`] is a hundred of them.
///
/// Two producers put items of a few priorities in, alone and in batches. Three consumers take them
/// in every way there is, give up, and acknowledge, give back, drop, or close their session with an
/// item in hand. When everybody has left, what is there is drained, and the history must add up.
/// Before that, in a queue of its own, a short run of careful consumers, for which a search must
/// find an order.
pub async fn a_random_history_of_a_queue(harness: &dyn Harness, seed: u64) -> Verdict {
    let mut random = Random::seeded(seed);
    let ordered = guarantees(harness).await?.queue_order.value == QueueOrder::PriorityThenFifo;
    let short = Shape {
        items: 6,
        careless: false,
    };
    let history = run(harness, "careful", short, &mut random)
        .await?
        .operations();
    let found = if ordered {
        match search::check::<PriorityQueue>(&history, search::BUDGET) {
            Finding::Violated(violation) => {
                let when = format!("careful consumers (seed {seed}): ");
                return Err(broken(&history, &violation).when(when));
            }
            Finding::Linearizable(operations) => format!("an order of {operations} operations"),
            Finding::Unknown(why) => format!("no verdict of the search ({why})"),
        }
    } else {
        "no order was promised".to_owned()
    };
    judge(&history, ordered, seed)?;
    let long = Shape {
        items: 40,
        careless: true,
    };
    let history = run(harness, "careless", long, &mut random)
        .await?
        .operations();
    let account = judge(&history, ordered, seed)?;
    held!(
        "seed {seed}: {found}; {} items, {} deliveries beyond the first, {} acknowledged, in {} operations",
        account.enqueued,
        account.redelivered,
        account.acknowledged,
        history.len()
    )
}

fn judge(
    history: &[QueueOperation],
    ordered: bool,
    seed: u64,
) -> std::result::Result<total_queue::Account, Outcome> {
    let account = total_queue::check(history);
    if let Some(violation) = account.violations.first() {
        return Err(broken(history, violation).when(format!("seed {seed}: ")));
    }
    if let Some(overtaking) = account.overtakings.first().filter(|_| ordered) {
        return Err(broken(history, overtaking).when(format!("seed {seed}: ")));
    }
    ensure!(
        account.acknowledged == account.enqueued,
        "seed {seed}: of {} items {} were acknowledged when the queue was empty",
        account.enqueued,
        account.acknowledged
    );
    Ok(account)
}

fn broken(history: &[QueueOperation], violation: &Violation) -> Outcome {
    Outcome::violated(&violation.what).with_history(queue::timeline(history, &violation.places))
}

/// What the clients of one run share.
struct Run {
    name: &'static str,
    shape: Shape,
    record: Record,
    /// Names sessions: those of one client come one after another.
    sessions: AtomicU64,
}

async fn run(
    harness: &dyn Harness,
    name: &'static str,
    shape: Shape,
    random: &mut Random,
) -> std::result::Result<Record, Outcome> {
    let run = Arc::new(Run {
        name,
        shape,
        record: Journal::new(),
        sessions: AtomicU64::new(0),
    });
    let stop = Arc::new(AtomicBool::new(false));
    let (mut producers, mut consumers) = (Vec::new(), Vec::new());
    for number in 0..PRODUCERS + CONSUMERS {
        let client = Client {
            number,
            store: harness.connect().await?,
            random: Random::seeded(random.next()),
            run: Arc::clone(&run),
            kept: VecDeque::new(),
        };
        if number < PRODUCERS {
            producers.push(spawn(client.produce()));
        } else {
            consumers.push(spawn(client.consume(Arc::clone(&stop))));
        }
    }
    for producer in &mut producers {
        producer.end(LIMIT, "the producers' work").await??;
    }
    stop.store(true, Ordering::Relaxed);
    for consumer in &mut consumers {
        consumer.end(LIMIT, "the consumers' last session").await??;
    }
    let client = Client {
        number: PRODUCERS + CONSUMERS,
        store: harness.connect().await?,
        random: Random::seeded(0),
        run: Arc::clone(&run),
        kept: VecDeque::new(),
    };
    within(LIMIT, "the drain", client.drain()).await??;
    let run = Arc::into_inner(run)
        .ok_or_else(|| Outcome::not_run("a client of this run is still there"))?;
    Ok(run.record)
}

struct Client {
    number: usize,
    store: Store,
    random: Random,
    run: Arc<Run>,
    /// Deliveries that it does not end at once.
    kept: VecDeque<(u64, Delivery)>,
}

/// A session, and its number in the record.
struct Shift {
    by: u64,
    session: Session,
    queue: QueueHandle,
}

impl Client {
    async fn shift(&self) -> Result<Shift> {
        let session = open_on(&self.store, LONG).await?;
        Ok(Shift {
            by: self.run.sessions.fetch_add(1, Ordering::Relaxed),
            queue: session.queue(self.run.name)?,
            session,
        })
    }

    async fn produce(mut self) -> Result<()> {
        let shift = self.shift().await?;
        let (record, items) = (&self.run.record, self.run.shape.items);
        let first = u64::try_from(self.number).unwrap_or_default() * 1_000;
        let mut next = first;
        while next < first + items {
            let size = match self.random.below(4) {
                0 => 1 + self.random.below(3),
                _ => 1,
            };
            let batch: Vec<_> = (next..(next + size).min(first + items))
                .map(|item| {
                    (
                        item,
                        u16::try_from(self.random.below(3)).unwrap_or_default(),
                    )
                })
                .collect();
            next += size;
            let call = |&(item, priority): &(u64, u16)| {
                record.call(self.number, QueueCall::Enqueue { item, priority })
            };
            let tickets: Vec<_> = batch.iter().map(call).collect();
            let items = batch
                .iter()
                .map(|(item, priority)| Item::new(item.to_string()).priority(*priority));
            shift.queue.enqueue_many(items).await?;
            for ticket in tickets {
                record.done(ticket, QueueAnswer::Done);
            }
            tokio::time::sleep(self.random.up_to(Duration::from_millis(4))).await;
        }
        shift.session.close().await
    }

    async fn consume(mut self, stop: Arc<AtomicBool>) -> Result<()> {
        let careless = self.run.shape.careless;
        let mut shift = self.shift().await?;
        while !stop.load(Ordering::Relaxed) {
            if careless && self.random.below(15) == 0 {
                self.leave(shift).await?;
                shift = self.shift().await?;
            }
            if let Some(delivery) = self.take(&shift).await? {
                self.kept.push_back(delivery);
            }
            tokio::time::sleep(self.random.up_to(Duration::from_millis(3))).await;
            if self.random.below(4) != 0
                && let Some((item, delivery)) = self.kept.pop_front()
            {
                self.settle(item, delivery).await?;
            }
        }
        self.leave(shift).await
    }

    /// Closes the session, with whatever it has in hand; then tries to acknowledge that.
    async fn leave(&mut self, shift: Shift) -> Result<()> {
        let record = &self.run.record;
        let ticket = record.call(self.number, QueueCall::Depart { by: shift.by });
        shift.session.close().await?;
        record.done(ticket, QueueAnswer::Done);
        while let Some((item, delivery)) = self.kept.pop_front() {
            self.acknowledge(item, delivery).await?;
        }
        Ok(())
    }

    /// One try to get an item, in one way of many, given up in some cases.
    async fn take(&mut self, shift: &Shift) -> Result<Option<(u64, Delivery)>> {
        let (queue, record) = (&shift.queue, &self.run.record);
        let patience = self.random.up_to(Duration::from_millis(30));
        let ways = if self.run.shape.careless { 4 } else { 1 };
        let way = self.random.below(ways);
        let ticket = record.call(self.number, QueueCall::Dequeue { by: shift.by });
        let answer = match way {
            0 | 1 => queue.try_dequeue().await,
            2 => queue.dequeue_timeout(patience).await.map(Some),
            // Dropped, it is of unknown fate: so it stays in the record.
            _ => match tokio::time::timeout(patience, queue.dequeue()).await {
                Ok(answer) => answer.map(Some),
                Err(_) => return Ok(None),
            },
        };
        match answer {
            Ok(Some(delivery)) => {
                let item = number(&delivery)?;
                let (token, count) = (delivery.token().get(), delivery.count());
                record.done(ticket, QueueAnswer::Delivered { item, token, count });
                Ok(Some((item, delivery)))
            }
            Ok(None) => {
                record.done(ticket, QueueAnswer::Empty);
                Ok(None)
            }
            // What crossed with the end of its patience goes back, but may have been away.
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn settle(&mut self, item: u64, delivery: Delivery) -> Result<()> {
        let record = &self.run.record;
        let token = delivery.token().get();
        let returning = || record.call(self.number, QueueCall::Return { item, token });
        match self.random.below(6) {
            0 if self.run.shape.careless => {
                // It goes back in the background, some time after this.
                let _unknown = returning();
                drop(delivery);
                Ok(())
            }
            1 | 2 => {
                let ticket = returning();
                finish(record, ticket, delivery.nack().await)
            }
            _ => self.acknowledge(item, delivery).await,
        }
    }

    async fn acknowledge(&self, item: u64, delivery: Delivery) -> Result<()> {
        let record = &self.run.record;
        let token = delivery.token().get();
        let ticket = record.call(self.number, QueueCall::Acknowledge { item, token });
        finish(record, ticket, delivery.ack().await)
    }

    /// Takes and acknowledges what is left.
    async fn drain(mut self) -> Result<()> {
        let shift = self.shift().await?;
        loop {
            let ticket = self
                .run
                .record
                .call(self.number, QueueCall::Dequeue { by: shift.by });
            let Some(delivery) = shift.queue.try_dequeue().await? else {
                self.run.record.done(ticket, QueueAnswer::Empty);
                return self.leave(shift).await;
            };
            let item = number(&delivery)?;
            let (token, count) = (delivery.token().get(), delivery.count());
            let answer = QueueAnswer::Delivered { item, token, count };
            self.run.record.done(ticket, answer);
            self.acknowledge(item, delivery).await?;
        }
    }
}

fn finish(
    record: &Record,
    ticket: crate::checkers::operation::Ticket,
    ended: Result<()>,
) -> Result<()> {
    match ended {
        Ok(()) => record.done(ticket, QueueAnswer::Done),
        Err(error) if error.kind() == ErrorKind::Lost => record.done(ticket, QueueAnswer::Lost),
        Err(error) => {
            record.end(ticket, Fate::Unknown);
            return Err(error);
        }
    }
    Ok(())
}

fn number(delivery: &Delivery) -> Result<u64> {
    let text = String::from_utf8_lossy(delivery.value());
    text.parse().map_err(|_| {
        let what = format!("`{text}` was delivered, and never put in");
        Error::new(ErrorKind::Internal, what)
    })
}

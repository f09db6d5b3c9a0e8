//! A queue: producers that try again under the same id, and consumers who lose their session with items
//! in hand.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tenure_core::{Delivery, Effect, Error, ErrorKind, Item, QueueHandle, Result};
use tokio::time::Instant;

use super::client::{Client, Doubled, Epoch, Shared, clients};
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::Fate;
use crate::checkers::operation::Ticket;
use crate::checkers::queue::{QueueAnswer, QueueCall};
use crate::harness::Harness;

const QUEUE: &str = "queue";

/// Producers wait while there are more items than that in the queue.
const DEEP: i64 = 60;

/// How often an enqueue of unknown fate is tried again, under the same id.
const TRIES: usize = 3;

impl Client {
    pub(super) async fn produce(&mut self) {
        while self.goes_on() {
            let epoch = self.shared.epoch();
            if epoch.depth.load(Ordering::Relaxed) < DEEP {
                self.enqueue(&epoch).await;
            }
            self.think().await;
        }
    }

    /// Some items at once. What is not answered is tried again in the same words, perhaps in another
    /// session: that is one operation.
    async fn enqueue(&mut self, epoch: &Epoch) {
        let size = match self.random.below(4) {
            0 => 1 + self.random.below(3),
            _ => 1,
        };
        let first = self.shared.next_item.fetch_add(size, Ordering::Relaxed);
        let mut batch = Vec::new();
        for item in first..first + size {
            // Two of them differ in their high bits alone.
            let priority = [0, 1, 256][usize::try_from(self.random.below(3)).unwrap_or_default()];
            let Ok(named) = Item::new(value_of(item)).id(format!("item {item}")) else {
                return;
            };
            batch.push((item, priority, named.priority(priority)));
        }
        let mut tickets: Vec<Ticket> = Vec::new();
        let mut fate = Fate::Failed;
        for _ in 0..TRIES {
            let Some(queue) = self.queue(epoch).await else {
                break;
            };
            if tickets.is_empty() {
                let call = |(item, priority, _): &(u64, u16, Item)| {
                    let (item, priority) = (*item, *priority);
                    let call = QueueCall::Enqueue { item, priority };
                    epoch.items.call(self.number, call)
                };
                tickets = batch.iter().map(call).collect();
            }
            let items = batch.iter().map(|(_, _, item)| item.clone());
            match self.attempt(queue.enqueue_many(items)).await {
                Some(Ok(())) => {
                    fate = Fate::Done(QueueAnswer::Done);
                    let taken = i64::try_from(size).unwrap_or_default();
                    epoch.depth.fetch_add(taken, Ordering::Relaxed);
                    self.achieved();
                    break;
                }
                // The tries before may have had an effect all the same.
                Some(Err(error)) if error.effect() == Effect::None => {}
                _ => fate = Fate::Unknown,
            }
        }
        self.count(tickets.len());
        for ticket in tickets {
            epoch.items.end(ticket, fate.clone());
        }
    }

    fn count(&self, operations: usize) {
        let counter = &self.shared.queue_operations;
        counter.fetch_add(operations, Ordering::Relaxed);
    }

    async fn queue(&mut self, epoch: &Epoch) -> Option<QueueHandle> {
        self.session().await?.queue(epoch.name(QUEUE)).ok()
    }

    pub(super) async fn consume(&mut self) {
        let mut kept: VecDeque<(Arc<Epoch>, u64, Delivery, Duration)> = VecDeque::new();
        let mut epoch = self.shared.epoch();
        let (mut shift, mut session) = (0, None);
        while self.goes_on() {
            if let Some(current) = self.session().await {
                let present = self.shared.epoch();
                if session.as_ref() != Some(current.id()) || !Arc::ptr_eq(&epoch, &present) {
                    if session.replace(current.id().clone()).is_some() {
                        // It may be over for the store, or be over soon; or its epoch is, with all that
                        // is seen of it.
                        let _unknown = epoch.items.call(self.number, depart(shift));
                    }
                    shift = self.shared.shifts.fetch_add(1, Ordering::Relaxed);
                    epoch = present;
                }
                if let Ok(queue) = current.queue(epoch.name(QUEUE)) {
                    match self.random.below(12) {
                        0 => self.pop(&epoch, &queue).await,
                        1 | 2 => {
                            for (item, delivery) in self.take_many(&epoch, &queue, shift).await {
                                kept.push_back((
                                    Arc::clone(&epoch),
                                    item,
                                    delivery,
                                    self.shared.now(),
                                ));
                            }
                        }
                        _ => {
                            if let Some((item, delivery)) = self.take(&epoch, &queue, shift).await {
                                kept.push_back((
                                    Arc::clone(&epoch),
                                    item,
                                    delivery,
                                    self.shared.now(),
                                ));
                            }
                        }
                    }
                }
            }
            self.think().await;
            if self.random.below(4) != 0
                && let Some((epoch, item, delivery, since)) = kept.pop_front()
            {
                self.settle(&epoch, item, delivery, since).await;
            }
        }
        // What is left in hand goes back with the session.
        if session.is_some() {
            let _unknown = epoch.items.call(self.number, depart(shift));
        }
    }

    /// One try to get an item, in one way of many, given up in some cases.
    async fn take(
        &mut self,
        epoch: &Epoch,
        queue: &QueueHandle,
        by: u64,
    ) -> Option<(u64, Delivery)> {
        let short = self.random.up_to(Duration::from_millis(100));
        let way = self.random.below(9);
        let ticket = epoch.items.call(self.number, QueueCall::Dequeue { by });
        let answer = match way {
            0..=4 => self.attempt(queue.try_dequeue()).await,
            5 | 6 => {
                let waiting = self.attempt(queue.dequeue_timeout(short)).await;
                waiting.map(|answer| answer.map(Some))
            }
            // With all the patience there is: producers are at work.
            7 => {
                // Where everything is in hand producers wait, too, and nobody would be the first.
                self.shared.epoch().depth.store(0, Ordering::Relaxed);
                let waiting = self.attempt(queue.dequeue()).await;
                waiting.map(|answer| answer.map(Some))
            }
            // Dropped, it is of unknown fate.
            _ => {
                let waiting = tokio::time::timeout(short, queue.dequeue());
                let answer = self.attempt(waiting).await.and_then(|in_time| in_time.ok());
                answer.map(|answer| answer.map(Some))
            }
        };
        self.count(1);
        match answer {
            Some(Ok(Some(delivery))) => match delivered(&delivery) {
                Ok((item, answer)) => {
                    epoch.items.done(ticket, answer);
                    self.in_hand(item, &delivery);
                    Some((item, delivery))
                }
                Err(error) => {
                    self.shared.broke(error.chain().to_string());
                    None
                }
            },
            Some(Ok(None)) => {
                epoch.items.done(ticket, QueueAnswer::Empty);
                // Whatever was counted before, an answer that was lost among it.
                epoch.depth.store(0, Ordering::Relaxed);
                None
            }
            unheard => {
                epoch.items.end(ticket, empty_handed(unheard.as_ref()));
                None
            }
        }
    }

    /// Several items at once.
    async fn take_many(
        &mut self,
        epoch: &Epoch,
        queue: &QueueHandle,
        by: u64,
    ) -> Vec<(u64, Delivery)> {
        let most = 2 + usize::try_from(self.random.below(4)).unwrap_or_default();
        let call = |_| epoch.items.call(self.number, QueueCall::Dequeue { by });
        let tickets: Vec<Ticket> = (0..most).map(call).collect();
        self.shared.epoch().depth.store(0, Ordering::Relaxed);
        let answer = self.attempt(queue.dequeue_many(most)).await;
        self.count(1);
        let deliveries = match answer {
            Some(Ok(deliveries)) => deliveries,
            unheard => {
                for ticket in tickets {
                    epoch.items.end(ticket, empty_handed(unheard.as_ref()));
                }
                return Vec::new();
            }
        };
        if deliveries.is_empty() || deliveries.len() > most {
            let count = deliveries.len();
            let what = format!("{count} items were delivered, where 1 to {most} were asked for");
            self.shared.broke(what);
        }
        let mut taken = Vec::new();
        let mut tickets = tickets.into_iter();
        for (delivery, ticket) in deliveries.into_iter().zip(tickets.by_ref()) {
            match delivered(&delivery) {
                Ok((item, answer)) => {
                    epoch.items.done(ticket, answer);
                    self.in_hand(item, &delivery);
                    taken.push((item, delivery));
                }
                Err(error) => self.shared.broke(error.to_string()),
            }
        }
        for unused in tickets {
            epoch.items.end(unused, Fate::Failed);
        }
        taken
    }

    /// Takes an item and acknowledges it in one step.
    async fn pop(&mut self, epoch: &Epoch, queue: &QueueHandle) {
        let ticket = epoch.items.call(self.number, QueueCall::Pop);
        self.shared.epoch().depth.store(0, Ordering::Relaxed);
        let answer = self.attempt(queue.pop()).await;
        self.count(1);
        match answer {
            Some(Ok(value)) => match number_of(&value) {
                Ok(item) => {
                    epoch.items.done(ticket, QueueAnswer::Popped { item });
                    self.achieved();
                }
                Err(error) => self.shared.broke(error.to_string()),
            },
            unheard => epoch.items.end(ticket, empty_handed(unheard.as_ref())),
        }
    }

    /// The newest delivery of this item, as far as clients have seen.
    fn in_hand(&self, item: u64, delivery: &Delivery) {
        let (token, now) = (delivery.token().get(), self.shared.now());
        let in_hand = self.shared.in_hand.lock();
        let mut in_hand = in_hand.unwrap_or_else(PoisonError::into_inner);
        let newest = in_hand.entry(item).or_insert((token, now));
        if newest.0 < token {
            *newest = (token, now);
        }
    }

    /// Of two deliveries of an item one is valid at most.
    fn is_the_only_one(&self, epoch: &Epoch, item: u64, delivery: &Delivery) {
        let (at, token) = (self.shared.now(), delivery.token().get());
        // While the store may forget, it may forget who has an item.
        if !epoch.is_open() || !delivery.is_valid() {
            return;
        }
        let in_hand = self.shared.in_hand.lock();
        let in_hand = in_hand.unwrap_or_else(PoisonError::into_inner);
        if let Some((newer, since)) = in_hand.get(&item)
            && *newer > token
            && *since < at
        {
            let doubled = self.shared.doubled.lock();
            let mut doubled = doubled.unwrap_or_else(PoisonError::into_inner);
            doubled.push(Doubled {
                client: self.number,
                at,
                item,
                tokens: [token, *newer],
            });
        }
    }

    async fn settle(&mut self, epoch: &Epoch, item: u64, delivery: Delivery, since: Duration) {
        let token = delivery.token().get();
        if self.random.below(40) == 0 {
            self.work(1).await;
        }
        if !delivery.is_valid() {
            self.lost("a delivery", since);
        }
        self.is_the_only_one(epoch, item, &delivery);
        match self.random.below(10) {
            0 => {
                // It goes back in the background, some time after this.
                let returning = QueueCall::Return { item, token };
                let _unknown = epoch.items.call(self.number, returning);
                drop(delivery);
            }
            1 => {
                let returning = QueueCall::Return { item, token };
                let ticket = epoch.items.call(self.number, returning);
                let answer = self.attempt(delivery.nack()).await;
                epoch.items.end(ticket, fate(answer));
            }
            _ => {
                let acknowledging = QueueCall::Acknowledge { item, token };
                let ticket = epoch.items.call(self.number, acknowledging);
                let answer = self.attempt(delivery.ack()).await;
                if let Some(Ok(())) = answer {
                    epoch.depth.fetch_sub(1, Ordering::Relaxed);
                    self.achieved();
                }
                epoch.items.end(ticket, fate(answer));
            }
        }
        self.count(1);
    }
}

const fn depart(by: u64) -> QueueCall {
    QueueCall::Depart { by }
}

fn delivered(delivery: &Delivery) -> Result<(u64, QueueAnswer)> {
    let item = number_of(delivery.value())?;
    let (token, count) = (delivery.token().get(), delivery.count());
    Ok((item, QueueAnswer::Delivered { item, token, count }))
}

/// The value of an item: its number, in some cases with so much behind it.
fn value_of(item: u64) -> String {
    let padding = match item % 23 {
        0 => usize::try_from(item % 7).unwrap_or_default() * 12_000 + 100,
        _ => 0,
    };
    format!("{item} {}", ".".repeat(padding))
}

fn number_of(value: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(value);
    let item = text.split(' ').next().and_then(|item| item.parse().ok());
    item.filter(|item| value_of(*item) == text).ok_or_else(|| {
        let start: String = text.chars().take(40).collect();
        let what = format!(
            "`{start}` of {} bytes was delivered, and never put in",
            value.len()
        );
        Error::new(ErrorKind::Internal, what)
    })
}

/// What is known of the end of a delivery.
fn fate(answer: Option<Result<()>>) -> Fate<QueueAnswer> {
    match answer {
        Some(Ok(())) => Fate::Done(QueueAnswer::Done),
        Some(Err(error)) if error.effect() == Effect::None => match error.kind() {
            ErrorKind::Lost => Fate::Done(QueueAnswer::Lost),
            _ => Fate::Failed,
        },
        _ => Fate::Unknown,
    }
}

/// What is known of a dequeue that brought nothing. One that was given up may have crossed with an item, and so may one
/// that ran out of time or lost its session: what it gets goes back, but has been away.
fn empty_handed<T>(answer: Option<&Result<T>>) -> Fate<QueueAnswer> {
    match answer {
        Some(Err(error))
            if error.effect() == Effect::None
                && !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Lost) =>
        {
            Fate::Failed
        }
        _ => Fate::Unknown,
    }
}

/// Takes and acknowledges what is left, until there is nothing and nobody has anything.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    let until = Instant::now() + patience;
    loop {
        let why = match drain(harness, shared, until).await {
            Ok(0) => return Ok(()),
            Ok(total) => format!("there are {total} items in it"),
            Err(error) => error.chain().to_string(),
        };
        if Instant::now() >= until {
            return Err(Outcome::violated(format!(
                "the queue was not empty {patience:?} after everybody had left: {why}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many items are left, which others have.
async fn drain(harness: &dyn Harness, shared: &Shared, until: Instant) -> Result<u64> {
    let by = shared.shifts.fetch_add(1, Ordering::Relaxed);
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let epoch = shared.epoch();
    let queue = session.queue(epoch.name(QUEUE))?;
    loop {
        if Instant::now() >= until {
            // What comes back for ever is never gone.
            return Ok(queue.depth().await?.total().max(1));
        }
        let ticket = epoch.items.call(clients(), QueueCall::Dequeue { by });
        if let Some(delivery) = queue.try_dequeue().await? {
            let (item, answer) = delivered(&delivery)?;
            let token = delivery.token().get();
            epoch.items.done(ticket, answer);
            let acknowledging = QueueCall::Acknowledge { item, token };
            let ticket = epoch.items.call(clients(), acknowledging);
            let answer = delivery.ack().await;
            epoch.items.end(ticket, fate(Some(answer)));
            continue;
        }
        epoch.items.done(ticket, QueueAnswer::Empty);
        let left = queue.depth().await?.total();
        if left == 0 {
            session.close().await?;
            return Ok(0);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ran_out_of_time_may_have_had_an_item() {
        let brought = |kind, effect| {
            let error = Error::new(kind, "nothing").with_effect(effect);
            empty_handed(Some(&Err::<(), _>(error)))
        };
        assert_eq!(brought(ErrorKind::Unavailable, Effect::None), Fate::Failed);
        assert_eq!(
            brought(ErrorKind::Unavailable, Effect::Unknown),
            Fate::Unknown
        );
        assert_eq!(brought(ErrorKind::TimedOut, Effect::None), Fate::Unknown);
        assert_eq!(brought(ErrorKind::Lost, Effect::None), Fate::Unknown);
        assert_eq!(empty_handed::<()>(None), Fate::Unknown);
    }
}

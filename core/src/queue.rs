//! Queues: the trait, the handle, the delivery.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::ask::{Ask, Grant};
use crate::drive::{self, BoxFuture, Landed};
use crate::handle::{Handle, Landing};
use crate::holding::Holding;
use crate::name::Name;
use crate::settle::Settle;
use crate::value::Redacted;
use crate::{Effect, Error, ErrorKind, FencingToken, Result, value};

/// The most items in one batch, either way: one step of a store carries as many.
pub const MAX_BATCH: usize = 32;

/// For how long at least a store remembers the [id](Item::id) of an item that has left the queue.
pub const ID_MEMORY: Duration = Duration::from_secs(10 * 60);

/// What is put into a queue. Its `Debug` shows the length of the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    value: Arc<[u8]>,
    priority: u16,
    id: Option<Name>,
}

impl Item {
    /// An item of priority 0, the first to be delivered.
    pub fn new(value: impl AsRef<[u8]>) -> Self {
        Self {
            value: Arc::from(value.as_ref()),
            priority: 0,
            id: None,
        }
    }

    /// Sets the priority: lower numbers are delivered first.
    #[must_use]
    pub fn priority(mut self, priority: u16) -> Self {
        self.priority = priority;
        self
    }

    /// Makes the enqueue idempotent: a second item with the same `id` is accepted without effect,
    /// while the first is in the queue and for [`ID_MEMORY`] after. The rules are those of a
    /// [`Name`].
    ///
    /// # Errors
    ///
    /// `InvalidName`.
    pub fn id(mut self, id: impl AsRef<str>) -> Result<Self> {
        self.id = Some(Name::new(id)?);
        Ok(self)
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The priority.
    pub fn get_priority(&self) -> u16 {
        self.priority
    }

    /// The id, if it was given one.
    pub fn get_id(&self) -> Option<&Name> {
        self.id.as_ref()
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item")
            .field("value", &Redacted(&self.value))
            .field("priority", &self.priority)
            .field("id", &self.id)
            .finish()
    }
}

impl From<&str> for Item {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Item {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl From<&[u8]> for Item {
    fn from(value: &[u8]) -> Self {
        Self::new(value)
    }
}

impl From<Vec<u8>> for Item {
    fn from(value: Vec<u8>) -> Self {
        Self::new(value)
    }
}

/// What a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Want {
    /// How many items at most, from 1 to [`MAX_BATCH`].
    pub most: usize,
    /// After how many deliveries an item goes elsewhere instead of being delivered once more.
    pub dead_letters: Option<DeadLetters>,
}

impl Want {
    /// Up to `most` items, however often they were delivered before.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            dead_letters: None,
        }
    }
}

/// Where items go that were delivered too often.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetters {
    /// After so many deliveries without an acknowledgement.
    pub after: NonZeroU32,
    /// To this queue, at its end, with the same value and priority.
    pub queue: Name,
}

/// An item as a backend delivers it.
#[derive(Clone)]
pub struct Taken {
    /// The claim: its token, its key.
    pub grant: Grant,
    /// The item's value.
    pub value: Vec<u8>,
    /// The item's priority.
    pub priority: u16,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken")
            .field("grant", &self.grant)
            .field("value", &Redacted(&self.value))
            .field("priority", &self.priority)
            .field("deliveries", &self.deliveries)
            .finish()
    }
}

/// The first item of a queue, as it can be seen without taking it.
#[derive(Clone, PartialEq, Eq)]
pub struct Peeked {
    /// The item's value.
    pub value: Vec<u8>,
    /// The item's priority.
    pub priority: u16,
    /// How often it was delivered before.
    pub deliveries: u32,
}

impl fmt::Debug for Peeked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peeked")
            .field("value", &Redacted(&self.value))
            .field("priority", &self.priority)
            .field("deliveries", &self.deliveries)
            .finish()
    }
}

/// How many items a queue has, by what can be done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Depth {
    /// Can be delivered now.
    pub ready: u64,
    /// Are with a consumer.
    pub in_flight: u64,
    /// Were given back with a delay that is not over.
    pub delayed: u64,
}

impl Depth {
    /// So many of each.
    pub fn new(ready: u64, in_flight: u64, delayed: u64) -> Self {
        Self {
            ready,
            in_flight,
            delayed,
        }
    }

    /// All that was accepted and not acknowledged.
    pub fn total(self) -> u64 {
        self.ready + self.in_flight + self.delayed
    }
}

/// The queues of one session, as a backend implements them.
///
/// [`Settle`] is about deliveries: `release` gives an item back to its place, as
/// [`nack`](Self::nack) without a delay does; `withdraw` gives back all that an ask got, as if it
/// had never been delivered.
///
/// # To ensure correctness
///
/// - Q1: an item whose `enqueue` succeeded is delivered until it is acknowledged.
/// - Q2: an item is with at most one consumer at a time, under its session's lease; when that ends,
///   the item comes back with its count of deliveries raised.
/// - Q3: by priority, then in the order in which the *store* accepted the items. One that comes
///   back keeps its place.
/// - Q5: an item wakes one waiting consumer.
/// - Everything is idempotent under [`Ask::nonce`]: core repeats what went unanswered. An
///   `enqueue` whose answer was lost yields one item.
/// - A token is greater than every token granted before for that item.
#[async_trait]
pub trait Queue: Settle {
    /// Accepts all `items` or, on an error, none: at most [`MAX_BATCH`], in this order.
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()>;

    /// Takes what is there, in order; empty if nothing is.
    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>>;

    /// Takes at least one item, waiting in line for it. Watches [`Ask::withdrawn`] while it waits.
    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>>;

    /// Removes a delivered item for good.
    ///
    /// `ask` is another than the one that took the item; `grant` says which delivery is meant.
    ///
    /// # Errors
    ///
    /// `Lost` if the item is not this delivery's any more; nothing has changed then.
    async fn ack(&self, ask: &Ask, grant: &Grant) -> Result<()>;

    /// Gives a delivered item back to its place, to be delivered after `delay`.
    ///
    /// # Errors
    ///
    /// As for [`ack`](Self::ack).
    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()>;

    /// How many items there are.
    async fn depth(&self, name: &Name) -> Result<Depth>;

    /// The item that would be delivered now.
    async fn peek(&self, name: &Name) -> Result<Option<Peeked>>;

    /// Removes all items that are with no consumer, and says how many.
    async fn purge(&self, ask: &Ask) -> Result<u64>;
}

impl Landed for Vec<Taken> {
    fn token(&self) -> Option<FencingToken> {
        None // a delivery cannot be taken up again
    }

    fn give_back(&self, settle: &Arc<dyn Settle>, ask: &Ask) -> BoxFuture<Result<()>> {
        drive::withdrawing(settle, ask)
    }
}

/// One queue, of one session: what [`Session::queue`](crate::Session::queue) returns. Cheap to
/// clone.
///
/// Items are delivered at least once, by priority and then in the order in which the store
/// accepted them. A delivered item stays in the queue, under the consumer's lease, until it is
/// acknowledged.
pub struct QueueHandle<Q: ?Sized = dyn Queue> {
    handle: Handle<Q>,
    dead_letters: Option<DeadLetters>,
}

impl<Q: ?Sized> Clone for QueueHandle<Q> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            dead_letters: self.dead_letters.clone(),
        }
    }
}

impl<Q: Queue + ?Sized> fmt::Debug for QueueHandle<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueHandle")
            .field("name", self.name())
            .field("dead_letters", &self.dead_letters)
            .finish_non_exhaustive()
    }
}

impl<Q: Queue + ?Sized> QueueHandle<Q> {
    pub(crate) fn new(handle: Handle<Q>) -> Self {
        Self {
            handle,
            dead_letters: None,
        }
    }

    /// The queue's name.
    pub fn name(&self) -> &Name {
        self.handle.name()
    }

    /// From now on, an item that was delivered `after` times in vain goes to the end of `queue`
    /// instead of being delivered by this handle once more.
    ///
    /// # Errors
    ///
    /// `InvalidName`; `Config` for zero times, or for the queue itself.
    pub fn dead_letters(mut self, after: u32, queue: impl AsRef<str>) -> Result<Self> {
        let operation = "dead_letters";
        let queue = Name::new(queue).map_err(|e| e.during(operation))?;
        let refused = |why| {
            Err(self
                .handle
                .explain(Error::new(ErrorKind::Config, why), operation))
        };
        if queue == *self.name() {
            return refused("a queue cannot take its own dead letters: name another");
        }
        let Some(after) = NonZeroU32::new(after) else {
            return refused("an item must be delivered at least once");
        };
        self.dead_letters = Some(DeadLetters { after, queue });
        Ok(self)
    }

    /// Puts an item into the queue. Once this returns, the item is delivered until it is
    /// acknowledged.
    ///
    /// # Errors
    ///
    /// `TooLarge` for a value of more than [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES); `Lost` when
    /// the session ends before the store answers: whether the item was accepted is then unknown, and
    /// an [id](Item::id) makes it safe to try again. A store that cannot be reached is tried again
    /// until then, and one answer that was lost makes no second item.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the item may be accepted.
    pub async fn enqueue(&self, item: impl Into<Item>) -> Result<()> {
        self.put("enqueue", vec![item.into()]).await
    }

    /// Puts several items into the queue, in this order: all or none.
    ///
    /// # Errors
    ///
    /// `TooLarge` for more than [`MAX_BATCH`] items, or for more bytes than one request of the store
    /// carries (etcd: 1.5 MiB in all); those of [`enqueue`](Self::enqueue).
    ///
    /// # Cancel safety
    ///
    /// As for [`enqueue`](Self::enqueue).
    pub async fn enqueue_many(&self, items: impl IntoIterator<Item = Item>) -> Result<()> {
        let items: Vec<_> = items.into_iter().collect();
        if items.is_empty() {
            return Ok(());
        }
        self.put("enqueue_many", items).await
    }

    async fn put(&self, operation: &'static str, items: Vec<Item>) -> Result<()> {
        let explain = |error| self.handle.explain(error, operation);
        check_batch(items.len()).map_err(explain)?;
        for item in &items {
            value::check(item.value()).map_err(explain)?;
        }
        let items: Arc<[Item]> = Arc::from(items);
        self.handle
            .change(operation, move |queue, ask| {
                let items = Arc::clone(&items);
                Box::pin(async move { queue.enqueue(&ask, &items).await })
            })
            .await
    }

    /// Takes the next item, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `TooLarge` when it holds too much;
    /// `Unauthorized`. A store that cannot be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: an item that crosses with the cancellation goes back to
    /// its place.
    pub async fn dequeue(&self) -> Result<Delivery<Q>> {
        let deliveries = self.wait("dequeue", None, 1).await?;
        self.one(deliveries, "dequeue")
    }

    /// [`dequeue`](Self::dequeue), for no longer than `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`dequeue`](Self::dequeue).
    pub async fn dequeue_timeout(&self, limit: Duration) -> Result<Delivery<Q>> {
        let operation = "dequeue_timeout";
        let deliveries = self.wait(operation, Some(limit), 1).await?;
        self.one(deliveries, operation)
    }

    /// Takes the next item, if there is one.
    ///
    /// # Errors
    ///
    /// `Unavailable`; those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`dequeue`](Self::dequeue).
    pub async fn try_dequeue(&self) -> Result<Option<Delivery<Q>>> {
        let want = self.want(1);
        let landed = self.handle.attempt("try_dequeue", move |queue, ask| {
            Box::pin(async move {
                let taken = queue.try_take(&ask, &want).await?;
                Ok((!taken.is_empty()).then_some(taken))
            })
        });
        Ok(landed
            .await?
            .and_then(|landing| self.deliveries(landing).pop()))
    }

    /// Takes up to `most` items that are there, waiting until there is one. They come in order.
    ///
    /// # Errors
    ///
    /// `TooLarge` for more than [`MAX_BATCH`]; those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`dequeue`](Self::dequeue).
    pub async fn dequeue_many(&self, most: usize) -> Result<Vec<Delivery<Q>>> {
        let operation = "dequeue_many";
        check_batch(most).map_err(|e| self.handle.explain(e, operation))?;
        if most == 0 {
            return Ok(Vec::new());
        }
        self.wait(operation, None, most).await
    }

    /// Takes the next item for good, waiting for one: acknowledges it, and returns its value once the store has
    /// answered. A value is never thrown away because the store did not confirm the acknowledgement: that is
    /// tried again in the background, and the item is delivered again only if the session ends before.
    ///
    /// # Errors
    ///
    /// Those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// Cancelled while the item is acknowledged, its value is lost.
    pub async fn pop(&self) -> Result<Vec<u8>> {
        loop {
            let delivery = self.dequeue().await.map_err(|e| e.during("pop"))?;
            let (value, acknowledged) = delivery.take_for_good().await;
            match acknowledged {
                // Taken away before it was acknowledged: it is another consumer's. A session that has
                // ended says so at the next turn.
                Err(error) if error.kind() == ErrorKind::Lost && error.effect() == Effect::None => {
                }
                _ => return Ok(value),
            }
        }
    }

    /// How many items there are that were accepted and not acknowledged.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends before the store answers; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn len(&self) -> Result<u64> {
        self.depth().await.map(Depth::total)
    }

    /// How many items there are, by what can be done with them.
    ///
    /// # Errors
    ///
    /// As for [`len`](Self::len).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn depth(&self) -> Result<Depth> {
        let name = self.name().clone();
        self.handle
            .question("depth", move |queue| {
                let name = name.clone();
                Box::pin(async move { queue.depth(&name).await })
            })
            .await
    }

    /// The item that would be delivered now, without taking it.
    ///
    /// # Errors
    ///
    /// As for [`len`](Self::len).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn peek(&self) -> Result<Option<Peeked>> {
        let name = self.name().clone();
        self.handle
            .question("peek", move |queue| {
                let name = name.clone();
                Box::pin(async move { queue.peek(&name).await })
            })
            .await
    }

    /// Removes all items that are with no consumer, and says how many. Where the store's answer was
    /// lost on the way, what that request removed is not counted.
    ///
    /// # Errors
    ///
    /// As for [`len`](Self::len).
    ///
    /// # Cancel safety
    ///
    /// Once polled, it may take effect.
    pub async fn purge(&self) -> Result<u64> {
        self.handle
            .change("purge", |queue, ask| {
                Box::pin(async move { queue.purge(&ask).await })
            })
            .await
    }

    fn want(&self, most: usize) -> Want {
        Want {
            most,
            dead_letters: self.dead_letters.clone(),
        }
    }

    async fn wait(
        &self,
        operation: &'static str,
        limit: Option<Duration>,
        most: usize,
    ) -> Result<Vec<Delivery<Q>>> {
        let want = Arc::new(self.want(most));
        let landing = self.handle.wait(operation, limit, move |queue, ask| {
            let want = Arc::clone(&want);
            Box::pin(async move { queue.take(&ask, &want).await })
        });
        landing.await.map(|landing| self.deliveries(landing))
    }

    /// Each delivery under an ask of its own: one is settled without the others.
    fn deliveries(&self, (ask, taken): Landing<Vec<Taken>>) -> Vec<Delivery<Q>> {
        let deliver = |taken: Taken| Delivery {
            holding: self.handle.hold((ask.again(), taken.grant)),
            queue: Arc::clone(self.handle.primitive()),
            value: taken.value,
            priority: taken.priority,
            count: taken.deliveries,
        };
        taken.into_iter().map(deliver).collect()
    }

    fn one(
        &self,
        mut deliveries: Vec<Delivery<Q>>,
        operation: &'static str,
    ) -> Result<Delivery<Q>> {
        deliveries.pop().ok_or_else(|| {
            let odd = Error::new(ErrorKind::Internal, "no item and no error");
            self.handle.explain(odd, operation)
        })
    }
}

fn check_batch(items: usize) -> Result<()> {
    if items <= MAX_BATCH {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("a batch may have at most {MAX_BATCH} items, this one has {items}: split it"),
    ))
}

/// An item with its consumer. Derefs to [`Holding`]: token, validity, loss signal.
///
/// It stays with this consumer for as long as the session lives. Dropping it gives it back to its
/// place, to be delivered again.
#[must_use = "if unused, the item goes back at once"]
#[clippy::has_significant_drop]
pub struct Delivery<Q: ?Sized = dyn Queue> {
    holding: Holding,
    queue: Arc<Q>,
    value: Vec<u8>,
    priority: u16,
    count: u32,
}

impl<Q: ?Sized> fmt::Debug for Delivery<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("holding", &self.holding)
            .field("value", &Redacted(&self.value))
            .field("priority", &self.priority)
            .field("count", &self.count)
            .finish()
    }
}

impl<Q: Queue + ?Sized> Delivery<Q> {
    /// The item's value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The item's priority.
    pub fn priority(&self) -> u16 {
        self.priority
    }

    /// How often the item was delivered, this time included: above 1, somebody had it before and
    /// did not acknowledge it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Acknowledges: the item is done, and removed. `Ok` says that it was this consumer's until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it was not any more: it is, or will be, delivered to another. With
    /// [`Effect::Unknown`](crate::Effect::Unknown) the session ended before the store had answered: the
    /// item may be acknowledged all the same. `Unavailable` if the store did not confirm; it is tried again
    /// in the background until it does or the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn ack(self) -> Result<()> {
        self.take_for_good().await.1
    }

    /// Gives the item back to its place, to be delivered again at once, with its count raised.
    ///
    /// # Errors
    ///
    /// As for [`ack`](Self::ack).
    ///
    /// # Cancel safety
    ///
    /// As for [`ack`](Self::ack).
    pub async fn nack(self) -> Result<()> {
        self.nack_after(Duration::ZERO).await
    }

    /// [`nack`](Self::nack), but it is not delivered before `delay` has passed.
    ///
    /// # Errors
    ///
    /// As for [`ack`](Self::ack).
    ///
    /// # Cancel safety
    ///
    /// As for [`ack`](Self::ack).
    pub async fn nack_after(self, delay: Duration) -> Result<()> {
        let (queue, ask, grant) = self.parts();
        let ending = move || -> BoxFuture<Result<()>> {
            let (queue, ask, grant) = (Arc::clone(&queue), ask.clone(), grant.clone());
            Box::pin(async move { queue.nack(&ask, &grant, delay).await })
        };
        self.holding.finish("nack", Arc::new(ending)).await
    }

    async fn take_for_good(self) -> (Vec<u8>, Result<()>) {
        let (queue, ask, grant) = self.parts();
        let ending = move || -> BoxFuture<Result<()>> {
            let (queue, ask, grant) = (Arc::clone(&queue), ask.clone(), grant.clone());
            Box::pin(async move { queue.ack(&ask, &grant).await })
        };
        let acknowledged = self.holding.finish("ack", Arc::new(ending)).await;
        (self.value, acknowledged)
    }

    fn parts(&self) -> (Arc<Q>, Ask, Grant) {
        (
            Arc::clone(&self.queue),
            self.holding.ask().clone(),
            self.holding.grant().clone(),
        )
    }
}

impl<Q: ?Sized> Deref for Delivery<Q> {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.holding
    }
}

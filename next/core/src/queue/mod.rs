//! Queues: the handle.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;

use crate::backend::{Grant, Item, Joined, PeekedItem, Queue, QueueDepth, Request, TakeLimit, TakenItem};
use crate::error::{Error, ErrorKind, Result};
use crate::handle::Handle;
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::runtime::acquire::{Acquirable, WaitLimit};
use crate::session::Session;

mod delivery;
mod item;

pub use delivery::Delivery;
pub use item::NewItem;

/// The most items in one batch, either way: one step of a store carries as many.
pub const MAX_BATCH: usize = 32;

/// For how long at least a store remembers the [id](NewItem::id) of an item that has left the queue.
pub const DEDUPLICATION_WINDOW: Duration = Duration::from_secs(10 * 60);

/// Takes items from a queue of the store.
struct Take {
    queue: Arc<dyn Queue>,
    limit: TakeLimit,
}

#[async_trait]
impl Acquirable for Take {
    type Granted = Vec<TakenItem>;

    fn grants(taken: &Vec<TakenItem>) -> Vec<Grant> {
        let grant = |item: &TakenItem| Grant::new(item.token, Arc::clone(&item.key));
        taken.iter().map(grant).collect()
    }

    async fn join(&self, request: &Request, wait: bool) -> Result<Joined<Vec<TakenItem>>> {
        self.queue.take(request, &self.limit, wait).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Vec<TakenItem>>> {
        self.queue.wait(request).await
    }
}

/// A handle of a session on a queue, from [`Session::queue`](crate::Session::queue). Cheap to clone.
///
/// Items are delivered at least once, by priority and then in the order in which the store accepted them. A delivered
/// item stays in the queue, under the consumer's lease, until it is acknowledged.
///
/// # Errors
///
/// Every call fails with `InvalidName`, `Unauthorized`, `Unsupported` on a store without queues, and `Lost` when the
/// session ends before the store answers. A take fails with `TooLarge` when the session holds too much. An unreachable
/// store is retried until the session ends.
///
/// # Cancel safety
///
/// A take is cancel safe at every await point: an item whose delivery is already in flight returns to its place.
/// Questions ([`len`](Self::len), [`depth`](Self::depth), [`peek`](Self::peek)) are cancel safe. Other calls may take
/// effect once polled.
#[derive(Clone, Debug)]
pub struct QueueHandle {
    handle: Handle,
    dead_letter: Option<(u32, Arc<str>)>,
}

impl QueueHandle {
    /// Returns the queue's name, as it was given.
    pub fn name(&self) -> &str {
        self.handle.text()
    }

    /// Makes this handle move an item to the end of the queue `name` instead of delivering it again, after
    /// `max_deliveries` without an acknowledgement.
    ///
    /// The takes of the handle fail with `InvalidName` for a name that no store accepts, and with `Config` for zero
    /// deliveries and for the queue itself.
    #[must_use]
    pub fn dead_letter(mut self, max_deliveries: u32, name: impl AsRef<str>) -> Self {
        self.dead_letter = Some((max_deliveries, name.as_ref().into()));
        self
    }

    /// Enqueues an item. Once this returns, the item is delivered until it is acknowledged.
    ///
    /// # Errors
    ///
    /// `TooLarge` for a value of more than [`MAX_VALUE_BYTES`](crate::value::MAX_VALUE_BYTES); `InvalidName` also for an
    /// invalid [id](NewItem::id). After `Lost` it is unknown whether the item was accepted, and an [id](NewItem::id)
    /// makes it safe to try again. A lost answer makes no second item.
    pub async fn enqueue(&self, item: impl Into<NewItem>) -> Result<()> {
        self.put("enqueue", vec![item.into()]).await
    }

    /// Enqueues several items in this order: all or none.
    ///
    /// # Errors
    ///
    /// Those of [`enqueue`](Self::enqueue); `TooLarge` also for more than [`MAX_BATCH`] items, or for more bytes than
    /// one request of the store carries (etcd: 1.5 MiB in all).
    pub async fn enqueue_many<I: Into<NewItem>>(&self, items: impl IntoIterator<Item = I>) -> Result<()> {
        let items: Vec<NewItem> = items.into_iter().map(Into::into).collect();
        match items.is_empty() {
            true => Ok(()),
            false => self.put("enqueue_many", items).await,
        }
    }

    async fn put(&self, operation: &'static str, items: Vec<NewItem>) -> Result<()> {
        let explain = |error: Error| error.during(operation).on(self.name());
        check_batch(items.len()).map_err(explain)?;
        let items = items.into_iter().map(NewItem::check).collect::<Result<Arc<[Item]>>>();
        let items = items.map_err(explain)?;
        let enqueue = move |queue: Arc<dyn Queue>, name, marker| {
            let items = Arc::clone(&items);
            async move { queue.enqueue(marker, &name, &items).await }.boxed()
        };
        self.handle.step(operation, self.queue(), enqueue).await
    }

    /// Takes the next item. Waits for one without a time limit.
    pub async fn dequeue(&self) -> Result<Delivery> {
        self.take_one("dequeue", WaitLimit::Forever).await
    }

    /// Calls [`dequeue`](Self::dequeue) with a time limit: fails with `TimedOut` after `limit`, plus at most 500 ms in
    /// which the store confirms the withdrawal.
    pub async fn dequeue_timeout(&self, limit: Duration) -> Result<Delivery> {
        self.take_one("dequeue_timeout", WaitLimit::Within(limit)).await
    }

    /// Takes the next item, or returns `None` if there is none. Fails with `Unavailable` when the store does not answer.
    pub async fn try_dequeue(&self) -> Result<Option<Delivery>> {
        Ok(self.take("try_dequeue", 1, WaitLimit::Try).await?.pop())
    }

    /// Takes up to `max` items in order. Waits until there is at least one. Fails with `TooLarge` for more than
    /// [`MAX_BATCH`].
    pub async fn dequeue_many(&self, max: usize) -> Result<Vec<Delivery>> {
        let operation = "dequeue_many";
        check_batch(max).map_err(|error| error.during(operation).on(self.name()))?;
        match max {
            0 => Ok(Vec::new()),
            max => self.take(operation, max, WaitLimit::Forever).await,
        }
    }

    /// Takes the next item, waiting for one, acknowledges it, and returns its value once the store has answered. An
    /// unconfirmed acknowledgement does not discard the value: it is retried in the background, and the item is
    /// delivered again only if the session ends before it is confirmed.
    ///
    /// # Cancel safety
    ///
    /// Cancelled while the item is acknowledged, its value is lost.
    pub async fn pop(&self) -> Result<Vec<u8>> {
        loop {
            let delivery = self.take_one("pop", WaitLimit::Forever).await?;
            if let Some(value) = delivery.pop().await {
                return Ok(value);
            }
        }
    }

    /// Takes and acknowledges the next item like [`pop`](Self::pop), or returns `None` if there is none.
    pub async fn try_pop(&self) -> Result<Option<Vec<u8>>> {
        while let Some(delivery) = self.take("try_pop", 1, WaitLimit::Try).await?.pop() {
            if let Some(value) = delivery.pop().await {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Returns the number of items that were accepted and not acknowledged.
    pub async fn len(&self) -> Result<u64> {
        self.depth().await.map(QueueDepth::total)
    }

    /// Returns the numbers of items by state.
    pub async fn depth(&self) -> Result<QueueDepth> {
        let depth = |queue: Arc<dyn Queue>, name| async move { queue.depth(&name).await }.boxed();
        self.handle.query("depth", self.queue(), depth).await
    }

    /// Returns the item that would be taken next, without taking it.
    pub async fn peek(&self) -> Result<Option<PeekedItem>> {
        let peek = |queue: Arc<dyn Queue>, name| async move { queue.peek(&name).await }.boxed();
        self.handle.query("peek", self.queue(), peek).await
    }

    /// Removes all items, also those with consumers, and returns how many there were.
    pub async fn purge(&self) -> Result<u64> {
        let purge = |queue: Arc<dyn Queue>, name, marker| async move { queue.purge(marker, &name).await }.boxed();
        self.handle.step("purge", self.queue(), purge).await
    }

    fn queue(&self) -> Option<Arc<dyn Queue>> {
        Arc::clone(self.handle.session().backend()).queue()
    }

    async fn take_one(&self, operation: &'static str, limit: WaitLimit) -> Result<Delivery> {
        let delivery = self.take(operation, 1, limit).await?.pop();
        delivery.ok_or_else(|| self.handle.busy(operation))
    }

    async fn take(&self, operation: &'static str, items: usize, limit: WaitLimit) -> Result<Vec<Delivery>> {
        let mut most = TakeLimit::new(items);
        most.dead_letter = self
            .dead_letter_queue()
            .map_err(|error| error.during(operation).on(self.name()))?;
        let take = self.queue().map(|queue| Take { queue, limit: most });
        let Some(taken) = self.handle.acquire(operation, take, limit).await? else {
            return Ok(Vec::new());
        };
        let deliver = |(holding, item)| Delivery {
            holding: Holding::new(holding),
            item,
        };
        Ok(taken.holdings.into_iter().zip(taken.granted).map(deliver).collect())
    }

    fn dead_letter_queue(&self) -> Result<Option<(u32, Name)>> {
        let refused = |why| Err(Error::new(ErrorKind::Config, why));
        let Some((max_deliveries, name)) = &self.dead_letter else {
            return Ok(None);
        };
        let name = Name::new(name)?;
        if name.as_str() == self.name() {
            return refused("a queue cannot be its own dead-letter queue: name another");
        }
        match max_deliveries {
            0 => refused("an item must be delivered at least once before it is moved to the dead-letter queue"),
            max_deliveries => Ok(Some((*max_deliveries, name))),
        }
    }
}

impl Session {
    /// Returns a handle on the queue `name`. A bad name is an error of its first call.
    pub fn queue(&self, name: impl AsRef<str>) -> QueueHandle {
        QueueHandle {
            handle: Handle::new(self.state(), Kind::Queue, name),
            dead_letter: None,
        }
    }
}

fn check_batch(items: usize) -> Result<()> {
    if items <= MAX_BATCH {
        return Ok(());
    }
    let message = format!("a batch may have at most {MAX_BATCH} items, this one has {items}: split it");
    Err(Error::new(ErrorKind::TooLarge, message))
}

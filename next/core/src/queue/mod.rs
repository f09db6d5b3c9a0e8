//! Queues: the handle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;

use crate::backend::{Grant, Item, Joined, PeekedItem, Queue, QueueDepth, Request, TakeLimit, TakenItem};
use crate::error::{Error, ErrorKind, Result};
use crate::handle::{Handle, busy};
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::query::query;
use crate::runtime::acquire::{Acquirable, WaitLimit};
use crate::runtime::session::SessionRef;
use crate::runtime::step::step;
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
#[derive(Clone)]
pub struct QueueHandle {
    handle: Handle,
    dead_letter: Option<(u32, Arc<str>)>,
}

impl fmt::Debug for QueueHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueHandle")
            .field("name", &self.name())
            .field("dead_letter", &self.dead_letter)
            .finish_non_exhaustive()
    }
}

impl QueueHandle {
    pub(crate) fn new(session: &SessionRef, name: impl AsRef<str>) -> Self {
        Self {
            handle: Handle::new(session, Kind::Queue, name),
            dead_letter: None,
        }
    }

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
    /// `TooLarge` for a value of more than [`MAX_VALUE_BYTES`](crate::value::MAX_VALUE_BYTES); `InvalidName` for an
    /// invalid name or [id](NewItem::id); `Lost` when the session ends before the store answers: whether the item was
    /// accepted is then unknown, and an [id](NewItem::id) makes it safe to try again. An unreachable store is retried
    /// until then, and a lost answer makes no second item.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the item may be accepted.
    pub async fn enqueue(&self, item: impl Into<NewItem>) -> Result<()> {
        self.put("enqueue", vec![item.into()]).await
    }

    /// Enqueues several items in this order: all or none.
    ///
    /// # Errors
    ///
    /// `TooLarge` for more than [`MAX_BATCH`] items, or for more bytes than one request of the store carries (etcd:
    /// 1.5 MiB in all); those of [`enqueue`](Self::enqueue).
    ///
    /// # Cancel safety
    ///
    /// As for [`enqueue`](Self::enqueue).
    pub async fn enqueue_many<I: Into<NewItem>>(&self, items: impl IntoIterator<Item = I>) -> Result<()> {
        let items: Vec<NewItem> = items.into_iter().map(Into::into).collect();
        match items.is_empty() {
            true => Ok(()),
            false => self.put("enqueue_many", items).await,
        }
    }

    async fn put(&self, operation: &'static str, items: Vec<NewItem>) -> Result<()> {
        let explain = |error: Error| error.during(operation).on(self.name());
        let (queue, name) = self.checked(operation)?;
        check_batch(items.len()).map_err(explain)?;
        let items = items.into_iter().map(NewItem::check).collect::<Result<Arc<[Item]>>>();
        let (items, object) = (items.map_err(explain)?, name.clone());
        let enqueue = move |marker| {
            let (queue, name, items) = (Arc::clone(&queue), name.clone(), Arc::clone(&items));
            async move { queue.enqueue(marker, &name, &items).await }.boxed()
        };
        step(self.handle.session(), operation, Some(&object), enqueue).await
    }

    /// Takes the next item. Waits for one without a time limit.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `TooLarge` when it holds too much; `InvalidName`, `Unauthorized`. An
    /// unreachable store is retried until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: an item whose delivery is already in flight returns to its place.
    pub async fn dequeue(&self) -> Result<Delivery> {
        self.take_one("dequeue", WaitLimit::Forever).await
    }

    /// Calls [`dequeue`](Self::dequeue) with a time limit: waits for at most `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`dequeue`](Self::dequeue).
    pub async fn dequeue_timeout(&self, limit: Duration) -> Result<Delivery> {
        self.take_one("dequeue_timeout", WaitLimit::Within(limit)).await
    }

    /// Takes the next item, or returns `None` if there is none.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the store does not answer; those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`dequeue`](Self::dequeue).
    pub async fn try_dequeue(&self) -> Result<Option<Delivery>> {
        Ok(self.take("try_dequeue", 1, WaitLimit::Try).await?.pop())
    }

    /// Takes up to `max` items in order. Waits until there is at least one.
    ///
    /// # Errors
    ///
    /// `TooLarge` for more than [`MAX_BATCH`]; those of [`dequeue`](Self::dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`dequeue`](Self::dequeue).
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
    /// # Errors
    ///
    /// Those of [`dequeue`](Self::dequeue).
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
    ///
    /// # Errors
    ///
    /// Those of [`try_dequeue`](Self::try_dequeue).
    ///
    /// # Cancel safety
    ///
    /// As for [`pop`](Self::pop).
    pub async fn try_pop(&self) -> Result<Option<Vec<u8>>> {
        while let Some(delivery) = self.take("try_pop", 1, WaitLimit::Try).await?.pop() {
            if let Some(value) = delivery.pop().await {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Returns the number of items that were accepted and not acknowledged.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends before the store answers; `InvalidName`, `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn len(&self) -> Result<u64> {
        self.depth().await.map(QueueDepth::total)
    }

    /// Returns the numbers of items by state.
    ///
    /// # Errors
    ///
    /// As for [`len`](Self::len).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn depth(&self) -> Result<QueueDepth> {
        let (queue, name) = self.checked("depth")?;
        let object = name.clone();
        let depth = move || {
            let (queue, name) = (Arc::clone(&queue), name.clone());
            async move { queue.depth(&name).await }.boxed()
        };
        query(self.handle.session(), "depth", Some(&object), depth).await
    }

    /// Returns the item that would be taken next, without taking it.
    ///
    /// # Errors
    ///
    /// As for [`len`](Self::len).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn peek(&self) -> Result<Option<PeekedItem>> {
        let (queue, name) = self.checked("peek")?;
        let object = name.clone();
        let peek = move || {
            let (queue, name) = (Arc::clone(&queue), name.clone());
            async move { queue.peek(&name).await }.boxed()
        };
        query(self.handle.session(), "peek", Some(&object), peek).await
    }

    /// Removes all items, also those with consumers, and returns how many there were.
    ///
    /// # Errors
    ///
    /// As for [`len`](Self::len).
    ///
    /// # Cancel safety
    ///
    /// Once polled, it may take effect.
    pub async fn purge(&self) -> Result<u64> {
        let (queue, name) = self.checked("purge")?;
        let object = name.clone();
        let purge = move |marker| {
            let (queue, name) = (Arc::clone(&queue), name.clone());
            async move { queue.purge(marker, &name).await }.boxed()
        };
        step(self.handle.session(), "purge", Some(&object), purge).await
    }

    fn queue(&self) -> Option<Arc<dyn Queue>> {
        Arc::clone(self.handle.session().backend()).queue()
    }

    fn checked(&self, operation: &'static str) -> Result<(Arc<dyn Queue>, Name)> {
        let name = self.handle.name(operation)?;
        let queue = self.queue().ok_or_else(|| self.handle.unsupported(operation))?;
        Ok((queue, name))
    }

    async fn take_one(&self, operation: &'static str, limit: WaitLimit) -> Result<Delivery> {
        let delivery = self.take(operation, 1, limit).await?.pop();
        delivery.ok_or_else(|| busy(operation, self.name()))
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
        QueueHandle::new(self.state(), name)
    }
}

fn check_batch(items: usize) -> Result<()> {
    if items <= MAX_BATCH {
        return Ok(());
    }
    let message = format!("a batch may have at most {MAX_BATCH} items, this one has {items}: split it");
    Err(Error::new(ErrorKind::TooLarge, message))
}

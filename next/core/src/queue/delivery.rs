//! Items that were taken.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::backend::TakenItem;
use crate::error::{Effect, ErrorKind, Result};
use crate::holding::{Holding, deref_to_holding};
use crate::name::Name;
use crate::runtime::departures::Ending;
use crate::value::Redacted;

/// The guard of an item that was taken. Derefs to [`Holding`]: token, validity, loss signal.
///
/// The item belongs to this consumer for as long as the session lives. A drop returns it to its place in the
/// background, to be delivered again.
#[must_use = "if unused, the item goes back at once"]
#[clippy::has_significant_drop]
pub struct Delivery {
    pub(super) holding: Holding,
    pub(super) item: TakenItem,
}

deref_to_holding!(Delivery.holding);

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("holding", &self.holding)
            .field("value", &Redacted(&self.item.value))
            .field("priority", &self.item.priority)
            .field("deliveries", &self.item.deliveries)
            .finish()
    }
}

impl Delivery {
    /// Returns the item's value.
    pub fn value(&self) -> &[u8] {
        &self.item.value
    }

    /// Returns the item's value as text, with invalid UTF-8 replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.item.value)
    }

    /// Returns the item's priority.
    pub fn priority(&self) -> u16 {
        self.item.priority
    }

    /// Returns the [id](crate::NewItem::id) that the item was enqueued with.
    pub fn id(&self) -> Option<&str> {
        self.item.id.as_ref().map(Name::as_str)
    }

    /// Returns the number of deliveries, including this one. Above 1, an earlier consumer did not acknowledge the item.
    pub fn deliveries(&self) -> u32 {
        self.item.deliveries
    }

    /// Acknowledges the item, which removes it. `Ok` means that it belonged to this consumer until now.
    ///
    /// # Errors
    ///
    /// `Lost` if the consumer had lost the item: it is, or will be, delivered to another consumer. With
    /// [`Effect::Unknown`](crate::Effect::Unknown) the session ended before the store had answered: the item may be
    /// acknowledged all the same. An unreachable store is retried until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it continues in the background.
    pub async fn ack(self) -> Result<()> {
        self.holding.end("ack", Ending::Ack).await
    }

    /// Returns the item to its place, to be delivered again at once, with a raised number of deliveries. Errors and cancel
    /// safety are those of [`ack`](Self::ack).
    pub async fn nack(self) -> Result<()> {
        self.holding.end("nack", Ending::Return(Duration::ZERO)).await
    }

    /// Returns the item as [`nack`](Self::nack) does, to be delivered no earlier than after `delay`.
    pub async fn nack_after(self, delay: Duration) -> Result<()> {
        self.holding.end("nack_after", Ending::Return(delay)).await
    }

    /// Acknowledges the item and returns its value, or `None` if it was lost before: it belongs to another consumer.
    pub(super) async fn pop(self) -> Option<Vec<u8>> {
        let Self { holding, item } = self;
        match holding.end("pop", Ending::Ack).await {
            Err(error) if error.kind() == ErrorKind::Lost && error.effect() == Effect::None => None,
            _ => Some(item.value.to_vec()),
        }
    }
}

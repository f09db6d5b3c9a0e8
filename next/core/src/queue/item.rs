//! Items to enqueue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Item;
use crate::error::Result;
use crate::name::Name;
use crate::value::{self, Redacted};

/// An item to enqueue. Its `Debug` shows the length of the value.
#[derive(Clone, PartialEq, Eq)]
pub struct NewItem {
    value: Arc<[u8]>,
    priority: u16,
    id: Option<Arc<str>>,
    delay: Duration,
}

impl NewItem {
    /// Creates an item of priority 0, which is delivered first.
    pub fn new(value: impl AsRef<[u8]>) -> Self {
        Self {
            value: value.as_ref().into(),
            priority: 0,
            id: None,
            delay: Duration::ZERO,
        }
    }

    /// Sets the priority: lower numbers are delivered first.
    #[must_use]
    pub fn priority(mut self, priority: u16) -> Self {
        self.priority = priority;
        self
    }

    /// Makes the enqueue idempotent: a second item with the same `id` is accepted without effect, while the first is
    /// in the queue and for [`DEDUPLICATION_WINDOW`](crate::DEDUPLICATION_WINDOW) after. The rules are those of a [`Name`]; the enqueue
    /// returns `InvalidName` for an id that breaks them.
    #[must_use]
    pub fn id(mut self, id: impl AsRef<str>) -> Self {
        self.id = Some(id.as_ref().into());
        self
    }

    /// Delivers the item no earlier than `delay` after it was accepted.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub(super) fn check(self) -> Result<Item> {
        value::check(&self.value)?;
        let mut item = Item::new(self.value);
        item.priority = self.priority;
        item.id = self.id.map(Name::new).transpose()?;
        item.delay = self.delay;
        Ok(item)
    }
}

impl fmt::Debug for NewItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewItem")
            .field("value", &Redacted(&self.value))
            .field("priority", &self.priority)
            .field("id", &self.id)
            .field("delay", &self.delay)
            .finish()
    }
}

macro_rules! from_value {
    ($($value:ty)*) => {$(
        impl From<$value> for NewItem {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        }
    )*};
}

from_value!(&str String &[u8] Vec<u8>);

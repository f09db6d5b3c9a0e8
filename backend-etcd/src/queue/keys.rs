//! Where the parts of a queue are, and the small steps that several of its sides share.
//!
//! Under `<queue>/`, which consumers watch:
//!
//! - `items/<priority>/<number>[-<id>]` holds an item's value, verbatim, until it is acknowledged. Keys
//!   sort in the order of delivery.
//! - `claims/<priority>/<number>` exists while a consumer has the item: on its lease, with the ask's
//!   nonce for a value. Its create revision is the delivery's token.
//! - `counts/<priority>/<number>` says how often it was delivered. On no lease: it outlives the claim.
//! - `delayed/<priority>/<number>` exists while it must not be delivered.
//! - `tail` holds the last number given out, and the highest priority seen.
//! - `epoch` is touched by whatever may put an item *before* others: see `hub.rs`.
//! - `consumers/<lease>` exists while a consumer's session does.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, TxnOp};
use tenure_core::Name;
use tenure_core::backend::escape;

use crate::layout::Layout;

/// Where an item stands: its priority, and its number.
pub(super) type Place = (u16, u64);

/// The keys of one queue.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    root: String,
    ids: String,
    writers: String,
}

/// What a key under the root of a queue is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Item(Place),
    Claim(Place),
    Count(Place),
    Delayed(Place),
    Tail,
    Epoch,
    Other,
}

impl Keys {
    pub(super) fn new(layout: &Layout, name: &Name) -> Self {
        Self {
            root: layout.queue(name),
            ids: layout.queue_records("ids", name),
            writers: layout.queue_records("writers", name),
        }
    }

    /// What everything that consumers watch begins with.
    pub(super) fn watched(&self) -> String {
        format!("{}/", self.root)
    }

    /// What all keys of a part begin with.
    pub(super) fn all(&self, part: &str) -> String {
        format!("{}/{part}/", self.root)
    }

    fn at(&self, part: &str, (priority, number): Place) -> String {
        format!("{}/{part}/{priority:05}/{number:020}", self.root)
    }

    pub(super) fn item(&self, place: Place, id: Option<&str>) -> String {
        self.item_named(place, id.map(escape).as_deref())
    }

    /// The item at `place` whose key says `name` behind it: its id, escaped.
    pub(super) fn item_named(&self, place: Place, name: Option<&str>) -> String {
        let key = self.at("items", place);
        match name {
            Some(name) => format!("{key}-{name}"),
            None => key,
        }
    }

    /// The first key that comes after every item up to `place`.
    pub(super) fn after(&self, place: Place) -> String {
        // '.' is the successor of '-', which separates the id.
        self.at("items", place) + "."
    }

    /// The end of all items.
    pub(super) fn end_of_items(&self) -> String {
        // '0' is the successor of '/'.
        format!("{}/items0", self.root)
    }

    pub(super) fn claim(&self, place: Place) -> String {
        self.at("claims", place)
    }

    pub(super) fn count(&self, place: Place) -> String {
        self.at("counts", place)
    }

    pub(super) fn delayed(&self, place: Place) -> String {
        self.at("delayed", place)
    }

    pub(super) fn tail(&self) -> String {
        format!("{}/tail", self.root)
    }

    pub(super) fn epoch(&self) -> String {
        format!("{}/epoch", self.root)
    }

    pub(super) fn consumer(&self, lease: i64) -> String {
        format!("{}/consumers/{lease:x}", self.root)
    }

    /// Holds the name of the last batch that a session put in.
    pub(super) fn writer(&self, lease: i64) -> String {
        format!("{}/{lease:x}", self.writers)
    }

    /// Put beside what is inside a request. It says nothing.
    pub(super) fn room(&self) -> String {
        format!("{}/room", self.writers)
    }

    /// Exists while an item with this id is in the queue, and for some time after.
    pub(super) fn id(&self, id: &str) -> String {
        format!("{}/{}", self.ids, escape(id))
    }

    /// The id in an item's key, escaped, if it has one.
    pub(super) fn name_in(&self, item: &[u8]) -> Option<Arc<str>> {
        let name = item.get(self.at("items", (0, 0)).len() + 1..)?;
        std::str::from_utf8(name).ok().map(Arc::from)
    }

    /// The id key that belongs to such a name.
    pub(super) fn id_named(&self, name: &str) -> String {
        format!("{}/{name}", self.ids)
    }

    pub(super) fn parse(&self, key: &[u8]) -> Part {
        let key = std::str::from_utf8(key).ok();
        let rest = key.and_then(|key| key.strip_prefix(self.root.as_str())?.strip_prefix('/'));
        match rest {
            Some("tail") => Part::Tail,
            Some("epoch") => Part::Epoch,
            Some(rest) => match rest.split_once('/').map(|(part, at)| (part, place(at))) {
                Some(("items", Some(place))) => Part::Item(place),
                Some(("claims", Some(place))) => Part::Claim(place),
                Some(("counts", Some(place))) => Part::Count(place),
                Some(("delayed", Some(place))) => Part::Delayed(place),
                _ => Part::Other,
            },
            None => Part::Other,
        }
    }

    /// Touches the epoch: something may stand before others from now on.
    pub(super) fn touch(&self) -> TxnOp {
        TxnOp::put(self.epoch(), "", None)
    }
}

fn place(text: &str) -> Option<Place> {
    let (priority, number) = (text.get(..5)?, text.get(6..26)?);
    Some((priority.parse().ok()?, number.parse().ok()?))
}

pub(super) fn created_at(key: impl Into<Vec<u8>>, revision: i64) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, revision)
}

pub(super) fn absent(key: impl Into<Vec<u8>>) -> Compare {
    created_at(key, 0)
}

/// The key is as it was changed at `revision`; 0 says that it is absent.
pub(super) fn changed_at(key: impl Into<Vec<u8>>, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}

pub(super) fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> TxnOp {
    let options = (lease != 0).then(|| PutOptions::new().with_lease(lease));
    TxnOp::put(key, value, options)
}

pub(super) fn get(key: impl Into<Vec<u8>>) -> TxnOp {
    TxnOp::get(key, None)
}

pub(super) fn delete(key: impl Into<Vec<u8>>) -> TxnOp {
    TxnOp::delete(key, None)
}

/// Reads a key's revisions, not its value.
pub(super) fn look(key: impl Into<Vec<u8>>) -> TxnOp {
    TxnOp::get(key, Some(GetOptions::new().with_keys_only()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenure_core::Namespace;

    #[test]
    fn keys_sort_in_the_order_of_delivery_and_are_read_back() {
        let layout = Layout::new(Namespace::default(), false);
        let name = Name::new("jobs/a").unwrap();
        let keys = Keys::new(&layout, &name);
        let places = [(0, 1), (0, 2), (0, 10), (7, 3), (65_535, u64::MAX)];
        let items: Vec<_> = places
            .iter()
            .map(|at| keys.item(*at, Some("x/y")))
            .collect();
        assert!(items.is_sorted());
        for (place, item) in places.into_iter().zip(&items) {
            assert_eq!(keys.parse(item.as_bytes()), Part::Item(place));
            assert_eq!(keys.parse(keys.claim(place).as_bytes()), Part::Claim(place));
            let name = keys.name_in(item.as_bytes()).unwrap();
            assert_eq!(keys.id_named(&name), keys.id("x/y"));
            assert_eq!(keys.name_in(keys.item(place, None).as_bytes()), None);
            assert!(*item < keys.after(place) && keys.item(place, None) < keys.after(place));
            assert!(keys.after(place) < keys.end_of_items());
        }
        assert!(keys.after((0, 1)) < keys.item((0, 2), None));
        assert_eq!(keys.parse(keys.tail().as_bytes()), Part::Tail);
        assert_eq!(keys.parse(keys.consumer(7).as_bytes()), Part::Other);
    }
}

//! What hears of objects that are watched.

use tenure_core::backend::Bell;

use crate::client::{Listener, Listening};

/// An object that is watched.
pub(crate) type Topic = tenure_core::backend::Topic<Listening>;

impl Listener for Bell {
    fn message(&self, _: &str) {
        self.ring();
    }

    fn missed(&self) {
        self.ring();
    }
}

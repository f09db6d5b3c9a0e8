//! What hears of the asks that wait, and of objects that are watched.

use tenure_core::backend::{Bell, Waits};

use crate::client::{Listener, Listening};

/// An object that is watched.
pub(crate) type Topic = tenure_core::backend::Topic<Listening>;

impl Listener for Waits {
    fn message(&self, payload: &[u8]) {
        if let Ok(payload) = std::str::from_utf8(payload) {
            Waits::message(self, payload);
        }
    }

    fn missed(&self) {
        Waits::missed(self);
    }
}

impl Listener for Bell {
    fn message(&self, _: &[u8]) {
        self.ring();
    }

    fn missed(&self) {
        self.ring();
    }
}

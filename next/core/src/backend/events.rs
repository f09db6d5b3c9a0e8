//! The events that a backend reports of a session between two renewals.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::request::Nonce;
use crate::error::LossReason;

/// Something that happened to a session in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// The store has ended the session.
    Lost(LossReason),
    /// The store has ended one request.
    RequestLost(Nonce, LossReason),
    /// The backend has a new connection, or has missed messages: core renews, and compares the entries of the store with its
    /// own.
    Reconcile,
}

/// The event channel from a backend to its session. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct SessionEvents(UnboundedSender<SessionEvent>);

impl SessionEvents {
    /// Creates the channel and its receiver.
    pub fn channel() -> (Self, UnboundedReceiver<SessionEvent>) {
        let (send, receive) = unbounded_channel();
        (Self(send), receive)
    }

    /// Reports an event. After the end of the session this does nothing.
    pub fn report(&self, event: SessionEvent) {
        let _ = self.0.send(event);
    }
}

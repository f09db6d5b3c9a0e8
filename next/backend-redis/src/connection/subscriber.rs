//! Subscriptions: reference-counted channels, confirmed on each link, and the delivery of messages.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;

use super::socket::{Ended, Health};

/// The most messages that a subscription keeps. More of them are replaced by one [`Pushed::Reconnected`].
const KEPT: usize = 1024;

/// Something that a subscription received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// A message.
    Message(Vec<u8>),
    /// The subscription is confirmed on a link, the first one or a new one. Earlier messages may have been missed.
    Reconnected,
}

/// The channels of a store.
#[derive(Default)]
pub(super) struct Subscriber {
    channels: Mutex<Channels>,
    wanted: Notify,
}

#[derive(Default)]
struct Channels {
    /// The number of the present link. A message of an earlier one may report a grant that the new primary does not know.
    link: u64,
    channels: HashMap<String, Channel>,
    next: u64,
}

#[derive(Default)]
struct Channel {
    stage: Stage,
    mailboxes: HashMap<u64, Arc<Mailbox>>,
}

/// How far a channel has come on the present link.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Wanted,
    Requested,
    Confirmed,
    /// Its last subscription has ended, and the server is asked to end it too.
    Leaving,
}

#[derive(Default)]
struct Mailbox {
    messages: Mutex<VecDeque<Pushed>>,
    arrived: Notify,
}

impl Mailbox {
    fn put(&self, pushed: Pushed) {
        let mut messages = self.messages.lock();
        if messages.len() >= KEPT {
            messages.clear();
            messages.push_back(Pushed::Reconnected);
        } else {
            messages.push_back(pushed);
        }
        drop(messages);
        self.arrived.notify_one();
    }
}

impl Subscriber {
    /// Adds a subscription to `channel`.
    pub(super) fn subscribe(self: &Arc<Self>, channel: String) -> Subscription {
        let mailbox = Arc::<Mailbox>::default();
        let mut state = self.channels.lock();
        state.next += 1;
        let id = state.next;
        let entry = state.channels.entry(channel.clone()).or_default();
        entry.mailboxes.insert(id, Arc::clone(&mailbox));
        match entry.stage {
            Stage::Confirmed => mailbox.put(Pushed::Reconnected),
            Stage::Wanted => self.wanted.notify_one(),
            // The answer of the server finds the new subscription.
            Stage::Requested | Stage::Leaving => {}
        }
        Subscription {
            subscriber: Arc::clone(self),
            channel,
            id,
            mailbox,
        }
    }

    /// Begins a new link with this number: every channel is wanted again.
    pub(super) fn begin(&self, link: u64) {
        let mut state = self.channels.lock();
        state.link = link;
        state.channels.retain(|_, channel| !channel.mailboxes.is_empty());
        for channel in state.channels.values_mut() {
            channel.stage = Stage::Wanted;
        }
    }

    /// Waits until a channel may be wanted.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Returns the channels to subscribe to, and marks them as requested.
    pub(super) fn take_wanted(&self) -> Vec<String> {
        self.take(|channel| channel.stage == Stage::Wanted, Stage::Requested)
    }

    /// Returns the channels without subscriptions, and marks them as leaving.
    pub(super) fn take_unused(&self) -> Vec<String> {
        let is_unused = |channel: &Channel| channel.stage == Stage::Confirmed && channel.mailboxes.is_empty();
        self.take(is_unused, Stage::Leaving)
    }

    fn take(&self, wanted: impl Fn(&Channel) -> bool, next: Stage) -> Vec<String> {
        let mut state = self.channels.lock();
        let found = state.channels.iter_mut().filter(|(_, channel)| wanted(channel));
        found
            .map(|(name, channel)| {
                channel.stage = next;
                name.clone()
            })
            .collect()
    }

    /// Notes that the server has confirmed the subscription over the link with this number.
    pub(super) fn confirmed(&self, link: u64, name: &str) {
        let mut state = self.channels.lock();
        let is_present = state.link == link;
        if let Some(channel) = state.channels.get_mut(name).filter(|_| is_present) {
            channel.stage = Stage::Confirmed;
            for mailbox in channel.mailboxes.values() {
                mailbox.put(Pushed::Reconnected);
            }
        }
    }

    /// Handles a push over the link with this number.
    pub(super) fn receive(&self, link: u64, health: &Health, push: PushInfo) {
        let mut data = push.data.into_iter();
        let (Some(Value::BulkString(name)), payload) = (data.next(), data.next()) else {
            return;
        };
        let name = String::from_utf8_lossy(&name);
        match (push.kind, payload) {
            (PushKind::SMessage, Some(Value::BulkString(payload))) => self.deliver(link, &name, payload),
            (PushKind::SUnsubscribe, _) if !self.left(link, &name) => {
                // The slot moves to another node. The client library takes this for the answer of the request in flight,
                // and every answer after it for that of the next request.
                health.end(Ended::Mixed);
            }
            _ => {}
        }
    }

    fn deliver(&self, link: u64, name: &str, payload: Vec<u8>) {
        let state = self.channels.lock();
        if let Some(channel) = state.channels.get(name).filter(|_| state.link == link) {
            for mailbox in channel.mailboxes.values() {
                mailbox.put(Pushed::Message(payload.clone()));
            }
        }
    }

    /// Notes the end of a subscription. Returns whether it was asked for.
    fn left(&self, link: u64, name: &str) -> bool {
        let mut state = self.channels.lock();
        if state.link != link {
            return true;
        }
        match state.channels.get_mut(name) {
            Some(channel) if channel.stage == Stage::Leaving => {
                if channel.mailboxes.is_empty() {
                    state.channels.remove(name);
                } else {
                    channel.stage = Stage::Wanted;
                    self.wanted.notify_one();
                }
                true
            }
            _ => false,
        }
    }
}

/// A subscription to a channel, which ends when it is dropped.
pub(crate) struct Subscription {
    subscriber: Arc<Subscriber>,
    channel: String,
    id: u64,
    mailbox: Arc<Mailbox>,
}

impl Subscription {
    /// Waits for the next message.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point; no message is lost.
    pub(crate) async fn next(&mut self) -> Pushed {
        loop {
            let pushed = self.mailbox.messages.lock().pop_front();
            match pushed {
                Some(pushed) => return pushed,
                None => self.mailbox.arrived.notified().await,
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.subscriber.channels.lock();
        if let Some(channel) = state.channels.get_mut(&self.channel) {
            channel.mailboxes.remove(&self.id);
            // The others are found by `take_unused` a while later: a client that watches an object usually comes back.
            if channel.mailboxes.is_empty() && channel.stage == Stage::Wanted {
                state.channels.remove(&self.channel);
            }
        }
    }
}

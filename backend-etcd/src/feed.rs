//! Elections, observed: one standing watch for each prefix that somebody of this client observes.
//!
//! The watch only tells *when* to look; what is so is then read, linearizably, and the revision of
//! the reading is its order. So nothing that the watch misses, repeats or brings late can show an
//! old state: it can only cost a reading too many. What was missed while no watch stood (before it
//! was opened; across a cut, a silence, a compaction) is read once it stands again.
//!
//! Most events change nothing for an observer: who stands behind the leader may come and go. The
//! leader is the lowest create revision, so as long as its key is untouched it leads on, and only
//! an event on that key, or any while nobody leads, is a reason to read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use etcd_client::proto::PbKeyValue;
use etcd_client::{GetOptions, SortOrder, SortTarget, Txn, TxnOp};
use tenure_core::backend::Sighting;
use tenure_core::{FencingToken, Leader, Result};
use tokio::sync::Notify;

use crate::client::Wire;
use crate::floor::Floors;
use crate::history::Forget;
use crate::ticket::ranges;
use crate::watcher::{Sink, Target, Watch, Watcher};

/// The reading that finds what the watch missed, or may not see for want of a right. Not the normal
/// path.
const SLOW_CHECK: Duration = Duration::from_secs(10);
/// A watch that nobody observes is closed when it is disturbed after so long.
const IDLE: Duration = Duration::from_secs(10);

/// The feeds of one client.
pub(crate) struct Feeds {
    wire: Arc<Wire>,
    watcher: Arc<Watcher>,
    floors: Arc<Floors>,
    known: Arc<Known>,
}

struct Known(Mutex<HashMap<String, Arc<Feed>>>);

impl Known {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Feed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forget for Known {
    fn forget(&self) {
        for feed in self.lock().values() {
            feed.forget();
        }
    }
}

impl Feeds {
    pub(crate) fn new(wire: Arc<Wire>, watcher: Arc<Watcher>, floors: Arc<Floors>) -> Self {
        let known = Arc::new(Known(Mutex::default()));
        let resting: Weak<dyn Forget> = Arc::downgrade(&(Arc::clone(&known) as Arc<dyn Forget>));
        wire.history().rests(resting);
        Self {
            wire,
            watcher,
            floors,
            known,
        }
    }

    /// Who leads under `prefix` now: the lowest create revision, by a linearizable reading.
    pub(crate) async fn leader(&self, prefix: &str) -> Result<Option<Leader>> {
        Ok(self.read(prefix).await?.leader())
    }

    /// The present state if it is newer than `after`, else the next one. The order of a state is the revision
    /// of its reading, above all revisions of the histories that were lost before it.
    pub(crate) async fn observe(&self, prefix: &str, after: Option<i64>) -> Result<Sighting> {
        let feed = self.feed(prefix);
        let _observing = Observing::start(&feed);
        let mut look = after.is_none();
        loop {
            let mut changed = std::pin::pin!(feed.changed.notified());
            changed.as_mut().enable();
            self.open(&feed);
            let history = self.wire.history();
            let (epoch, offset) = (history.epoch(), history.offset());
            // Below zero where it was of a history that is lost: whatever is read now is newer.
            let after = after.map(|after| after - offset);
            if look || feed.lock().has_news_since(after) {
                let reading = self.read(prefix).await?;
                if history.epoch() != epoch {
                    continue; // of which history it is, the next reading tells
                }
                if feed.lock().note(&reading) {
                    feed.changed.notify_waiters();
                }
                if after.is_none_or(|after| reading.revision > after) {
                    return Ok(Sighting {
                        order: offset.saturating_add(reading.revision).unsigned_abs(),
                        leader: reading.leader(),
                    });
                }
            }
            tokio::select! {
                () = changed => look = false,
                () = tokio::time::sleep(SLOW_CHECK) => look = true,
            }
        }
    }

    async fn read(&self, prefix: &str) -> Result<Reading> {
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let floor = self.floors.look_with_leaders();
        let reads = [TxnOp::get(prefix, Some(options))].into_iter().chain(floor);
        let txn = Txn::new().and_then(reads.collect::<Vec<_>>());
        let answer = self.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let answer = answer.await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let mut ranges = ranges(answer).into_iter().map(|(kvs, _)| kvs);
        let head = ranges.next().and_then(|kvs| kvs.into_iter().next());
        let floor = ranges.next().unwrap_or_default();
        let head = head.map(|kv| {
            let token = self
                .floors
                .token_of_leader(&floor, &kv.key, kv.create_revision);
            Ok(Head {
                token: token?,
                modified: kv.mod_revision,
                key: kv.key,
                value: kv.value,
            })
        });
        Ok(Reading {
            revision,
            head: head.transpose()?,
        })
    }

    fn feed(&self, prefix: &str) -> Arc<Feed> {
        let mut feeds = self.known.lock();
        if let Some(feed) = feeds.get(prefix) {
            return Arc::clone(feed);
        }
        feeds.retain(|_, feed| !feed.lock().is_idle());
        let feed = Arc::new(Feed::new(prefix));
        feeds.insert(prefix.to_owned(), Arc::clone(&feed));
        feed
    }

    fn open(&self, feed: &Arc<Feed>) {
        let mut state = feed.lock();
        if state.watch.is_none() {
            let sink: Weak<dyn Sink> = Arc::downgrade(&(Arc::clone(feed) as Arc<dyn Sink>));
            let target = Target::prefix(&feed.prefix);
            state.watch = Some(self.watcher.open(target.with_puts(), sink));
        }
    }
}

/// Who led at a revision.
struct Reading {
    revision: i64,
    head: Option<Head>,
}

struct Head {
    key: Vec<u8>,
    value: Vec<u8>,
    token: FencingToken,
    modified: i64,
}

impl Reading {
    fn leader(self) -> Option<Leader> {
        self.head.map(|head| Leader::new(head.value, head.token))
    }
}

/// A key, and when it was changed last.
type Changed = (Vec<u8>, i64);

/// One prefix that is observed.
struct Feed {
    prefix: String,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    watch: Option<Watch>,
    /// Since which revision nothing is missed, if so.
    stands: Option<i64>,
    /// What was read last since then: at which revision, and the leader's key with its last change.
    read: Option<(i64, Option<Changed>)>,
    /// The last event that may have changed the state.
    news: i64,
    observers: usize,
    used: Instant,
}

impl State {
    fn has_news_since(&self, after: Option<i64>) -> bool {
        let after = after.unwrap_or(0);
        // Not while no watch stands: what is read now may be old before one does.
        self.stands
            .is_some_and(|stands| stands > after || self.news > after)
    }

    /// Says whether this is news to those who have read before it: the event that it follows may
    /// come only now, and is old then.
    fn note(&mut self, reading: &Reading) -> bool {
        let newer = self
            .read
            .as_ref()
            .is_none_or(|(at, _)| *at < reading.revision);
        if !newer || self.stands.is_none_or(|since| since > reading.revision) {
            return false;
        }
        let head = reading.head.as_ref();
        let head = head.map(|head| (head.key.clone(), head.modified));
        let same = self.read.as_ref().is_some_and(|(_, was)| *was == head);
        if !same {
            self.news = self.news.max(reading.revision);
        }
        self.read = Some((reading.revision, head));
        !same
    }

    /// Whether an event at `revision` on `key` may change who leads, or with what value.
    fn matters(&self, key: &[u8], revision: i64) -> bool {
        match &self.read {
            Some((at, _)) if revision <= *at => false,
            // Once something has changed since the reading, anything may follow from the next.
            Some((at, Some((leader, _)))) if self.news <= *at => leader == key,
            _ => true,
        }
    }

    fn is_idle(&self) -> bool {
        self.observers == 0 && self.used.elapsed() > IDLE
    }

    fn close(&mut self) {
        (self.watch, self.stands, self.read) = (None, None, None);
    }
}

impl Feed {
    fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            state: Mutex::new(State {
                watch: None,
                stands: None,
                read: None,
                news: 0,
                observers: 0,
                used: Instant::now(),
            }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read and heard is of a history that is lost.
    fn forget(&self) {
        let mut state = self.lock();
        (state.stands, state.read, state.news) = (None, None, 0);
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Sink for Feed {
    fn opened(&self, watch: i64, revision: i64) {
        let mut state = self.lock();
        // A watch that was closed and replaced may still be answered.
        if state.watch.as_ref().is_some_and(|own| own.id() == watch) {
            (state.stands, state.read) = (Some(revision), None);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn deleted(&self, events: &[(&[u8], i64)], _whole: bool) {
        let mut state = self.lock();
        let before = state.news;
        for &(key, revision) in events {
            if state.matters(key, revision) {
                state.news = state.news.max(revision);
            }
        }
        let told = state.news > before;
        if state.is_idle() {
            state.close();
        }
        drop(state);
        if told {
            self.changed.notify_waiters();
        }
    }

    fn put(&self, kv: &PbKeyValue) {
        self.deleted(&[(&kv.key, kv.mod_revision)], true);
    }

    fn broken(&self) {
        let mut state = self.lock();
        (state.stands, state.read) = (None, None);
    }
}

/// Somebody who observes, for as long as it lasts.
struct Observing<'a>(&'a Feed);

impl<'a> Observing<'a> {
    fn start(feed: &'a Feed) -> Self {
        feed.lock().observers += 1;
        Self(feed)
    }
}

impl Drop for Observing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.observers -= 1;
        state.used = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(at: i64) -> Feed {
        let feed = Feed::new("e/");
        feed.lock().watch = Some(Watch::unconnected(1));
        feed.opened(1, at);
        feed
    }

    fn read(feed: &Feed, revision: i64, leader: Option<&str>) {
        let head = leader.map(|key| Head {
            key: key.into(),
            value: Vec::new(),
            token: FencingToken::new(1),
            modified: 1,
        });
        feed.lock().note(&Reading { revision, head });
    }

    fn news(feed: &Feed, after: i64) -> bool {
        feed.lock().has_news_since(Some(after))
    }

    #[test]
    fn who_stands_behind_the_leader_is_no_news() {
        let feed = standing(10);
        read(&feed, 12, Some("a"));
        feed.deleted(&[(b"b", 13), (b"c", 14)], true);
        assert!(!news(&feed, 12));
        feed.deleted(&[(b"a", 15)], true);
        assert!(news(&feed, 12) && !news(&feed, 15));
    }

    #[test]
    fn what_follows_news_is_news() {
        let feed = standing(10);
        read(&feed, 12, Some("a"));
        // `a` resigns, `b` leads and resigns: a reading at 13 must not hide the second.
        feed.deleted(&[(b"a", 13)], true);
        feed.deleted(&[(b"b", 14)], true);
        read(&feed, 13, Some("b"));
        assert!(news(&feed, 13));
    }

    #[test]
    fn what_one_observer_reads_is_news_to_another() {
        let feed = standing(10);
        read(&feed, 12, Some("a")); // both have seen this
        // A third one comes, and its reading overtakes the event that it follows.
        read(&feed, 20, Some("b"));
        feed.deleted(&[(b"a", 15)], true);
        assert!(news(&feed, 12) && !news(&feed, 20));
        // Nothing has changed since: that somebody reads is no news.
        read(&feed, 30, Some("b"));
        assert!(!news(&feed, 20));
    }

    #[test]
    fn anything_is_news_in_a_vacancy() {
        let feed = standing(10);
        read(&feed, 12, None);
        feed.deleted(&[(b"a", 12)], true); // late
        assert!(!news(&feed, 12));
        feed.deleted(&[(b"b", 13)], true);
        assert!(news(&feed, 12));
    }

    #[test]
    fn what_came_while_no_watch_stood_is_read() {
        let feed = standing(10);
        read(&feed, 12, Some("a"));
        feed.broken();
        assert!(!news(&feed, 12), "nobody knows yet from when on to read");
        feed.opened(1, 20);
        assert!(news(&feed, 12));
        // Not judged by what was read before the break: `b` may lead by now.
        feed.deleted(&[(b"b", 21)], true);
        read(&feed, 20, Some("b"));
        assert!(news(&feed, 20));
    }

    #[test]
    fn a_reading_from_before_the_watch_stood_judges_nothing() {
        let feed = standing(20);
        read(&feed, 15, Some("a"));
        feed.deleted(&[(b"b", 21)], true);
        assert!(news(&feed, 20));
    }
}

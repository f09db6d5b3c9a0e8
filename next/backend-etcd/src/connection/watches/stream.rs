//! One watch stream of the server, with up to some hundred watches on it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_client::{WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse};
use tenure_core::Result;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Command, KEPT, Subscription, Watched};
use crate::connection::{Connection, Link};
use crate::error::{from_client, is_stale_token, unanswered};

/// How long a watch that etcd refused is not asked for again: until an operator may have granted the right.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Where the numbers of watches begin that were created again: above all others.
const AGAIN: i64 = 1 << 40;

struct Entry {
    watched: Weak<Watched>,
    /// Its number on the stream: its own, until the server cancelled it. etcd keeps the number of a watch that a compaction
    /// cancelled, and refuses it as a duplicate.
    on_stream: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Create(i64),
    Cancel(i64),
    /// Asks for any answer.
    Progress,
}

#[derive(PartialEq, Eq)]
enum End {
    /// The client is gone.
    Dropped,
    /// No watch is left: the stream is closed.
    Idle,
    /// The stream broke, or its connection was left.
    Broken,
}

/// The task of a stream.
pub(super) struct Stream {
    connection: Arc<Connection>,
    inbox: mpsc::UnboundedReceiver<Command>,
    watches: HashMap<i64, Entry>,
    /// Watches of single keys that stay open for a while after their last use.
    kept: VecDeque<Subscription>,
    /// The watches that have another number on the stream, by that number.
    renumbered: HashMap<i64, i64>,
    last_again: i64,
    /// The requests that are to be sent. The stream accepts nothing more while it is full, and must be read meanwhile.
    outbox: VecDeque<Request>,
    /// The creations without an answer, in their order: a refusal does not carry the number of its watch.
    creating: VecDeque<i64>,
    /// The watches that etcd refused on this stream.
    refused: Vec<i64>,
    ask_again: Instant,
}

impl Stream {
    pub(super) fn new(connection: Arc<Connection>, inbox: mpsc::UnboundedReceiver<Command>) -> Self {
        Self {
            connection,
            inbox,
            watches: HashMap::new(),
            kept: VecDeque::new(),
            renumbered: HashMap::new(),
            last_again: AGAIN,
            outbox: VecDeque::new(),
            creating: VecDeque::new(),
            refused: Vec::new(),
            ask_again: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let mut pause = Duration::ZERO;
        let mut is_reopened = false;
        loop {
            // Before each attempt: a client that is gone must not be connected again and again.
            while let Ok(command) = self.inbox.try_recv() {
                self.note(command);
            }
            while self.watches.is_empty() {
                match self.inbox.recv().await {
                    Some(command) => self.note(command),
                    None => return,
                }
            }
            // The server behind a new connection may have another history, whose sessions have ended.
            if std::mem::replace(&mut is_reopened, true)
                && let Err(error) = self.connection.compare_history().await
            {
                tracing::debug!(error = %error.chain(), "the watch stream cannot be opened again yet");
            }
            let link = self.connection.link();
            match self.serve(&link, &mut pause).await {
                Ok(End::Dropped) => return,
                Ok(End::Idle) => {
                    is_reopened = false;
                    continue;
                }
                Ok(End::Broken) => {}
                Err(error) => tracing::debug!(error = %error.chain(), "the watch stream broke"),
            }
            for entry in self.watches.values() {
                if let Some(watched) = entry.watched.upgrade() {
                    watched.report_broken();
                }
            }
            self.kept.clear();
            self.connection.leave(link.number).await;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).clamp(Duration::from_millis(20), Duration::from_millis(500));
        }
    }

    /// Carries a command out while there is no stream.
    fn note(&mut self, command: Command) {
        match command {
            Command::Open(watched) => drop(self.add(watched)),
            Command::Close(number) => drop(self.forget(number)),
        }
    }

    fn add(&mut self, watched: Subscription) -> i64 {
        let number = watched.number;
        let entry = Entry {
            watched: Arc::downgrade(&watched),
            on_stream: number,
        };
        self.watches.insert(number, entry);
        if watched.target.end.is_empty() {
            self.kept.push_back(watched);
            if self.kept.len() > KEPT {
                // Its drop sends its close.
                self.kept.pop_front();
            }
        }
        number
    }

    fn forget(&mut self, number: i64) -> Option<Entry> {
        let entry = self.watches.remove(&number)?;
        self.renumbered.remove(&entry.on_stream);
        Some(entry)
    }

    /// Opens a stream with all watches on it, and serves it until it ends.
    async fn serve(&mut self, link: &Link, pause: &mut Duration) -> Result<End> {
        let limit = self.connection.timeout();
        self.creating.clear();
        self.refused.clear();
        self.outbox = self.watches.keys().copied().map(Request::Create).collect();
        let Some(Request::Create(first)) = self.outbox.pop_front() else {
            return Ok(End::Idle);
        };
        let (key, options) = self.creation(first);
        let mut client = link.client.watch_client();
        let opening = tokio::time::timeout(limit, client.watch(key, Some(options)));
        let stream = opening.await.map_err(|_| unanswered(limit))?.map_err(from_client)?;
        let (mut sender, mut answers) = stream.split();
        self.creating.push_back(first);
        let mut left = std::pin::pin!(self.connection.left(link.number));
        // After a silence of `limit` the server is asked; after another one the stream is given up.
        let (mut since, mut asked) = (Instant::now(), true);
        loop {
            let next = self.outbox.front().copied();
            let creation = match next {
                Some(Request::Create(number)) => self.creation(number),
                _ => Default::default(),
            };
            tokio::select! {
                biased;
                answer = answers.message() => {
                    let Some(answer) = answer.map_err(from_client)? else {
                        return Ok(End::Broken);
                    };
                    (since, asked) = (Instant::now(), false);
                    *pause = Duration::ZERO;
                    if !self.take_answer(&answer) {
                        return Ok(End::Broken);
                    }
                }
                sent = send(next, creation, &mut sender) => {
                    sent?;
                    self.outbox.pop_front();
                    if let Some(Request::Create(number)) = next {
                        self.creating.push_back(number);
                    }
                    if !asked && !matches!(next, Some(Request::Cancel(_))) {
                        (since, asked) = (Instant::now(), true);
                    }
                }
                command = self.inbox.recv() => match command {
                    None => return Ok(End::Dropped),
                    Some(Command::Open(watched)) => {
                        let number = self.add(watched);
                        self.outbox.push_back(Request::Create(number));
                    }
                    Some(Command::Close(number)) => {
                        self.close(number);
                        if self.watches.is_empty() {
                            return Ok(End::Idle);
                        }
                    }
                },
                () = &mut left => return Ok(End::Broken),
                () = tokio::time::sleep_until(self.ask_again), if !self.refused.is_empty() => {
                    for number in std::mem::take(&mut self.refused) {
                        if self.watches.contains_key(&number) {
                            self.outbox.push_back(Request::Create(number));
                        }
                    }
                }
                () = tokio::time::sleep_until(since + limit) => {
                    if asked {
                        return Err(unanswered(limit));
                    }
                    (since, asked) = (Instant::now(), true);
                    self.outbox.push_back(Request::Progress);
                    // An idle client has no watches.
                    self.kept.clear();
                }
            }
        }
    }

    fn close(&mut self, number: i64) {
        let Some(Entry { on_stream, .. }) = self.forget(number) else {
            return;
        };
        if let Some(index) = self.refused.iter().position(|refused| *refused == number) {
            self.refused.swap_remove(index);
            return;
        }
        let unsent = self
            .outbox
            .iter()
            .position(|request| *request == Request::Create(number));
        match unsent {
            Some(index) => drop(self.outbox.remove(index)),
            None => self.outbox.push_back(Request::Cancel(on_stream)),
        }
    }

    /// Creates a watch again that the server cancelled, under a number that the server has not seen.
    fn create_again(&mut self, number: i64) {
        if let Some(entry) = self.watches.get_mut(&number) {
            self.last_again += 1;
            let before = std::mem::replace(&mut entry.on_stream, self.last_again);
            self.renumbered.remove(&before);
            self.renumbered.insert(self.last_again, number);
            self.outbox.push_back(Request::Cancel(before));
            self.outbox.push_back(Request::Create(number));
        }
    }

    fn creation(&self, number: i64) -> (Vec<u8>, WatchOptions) {
        let Some(entry) = self.watches.get(&number) else {
            return Default::default();
        };
        let mut options = WatchOptions::new().with_watch_id(entry.on_stream).with_fragment();
        let Some(watched) = entry.watched.upgrade() else {
            // Its close is on the way.
            return (b"\0".to_vec(), options);
        };
        let target = &watched.target;
        if !target.puts {
            options = options.with_filters([WatchFilterType::NoPut]);
        }
        if !target.end.is_empty() {
            options = options.with_range(target.end.clone());
        }
        (target.key.clone(), options)
    }

    /// Takes an answer of the stream. Returns whether the stream can be used further.
    fn take_answer(&mut self, answer: &WatchResponse) -> bool {
        let on_stream = answer.watch_id();
        let number = self.renumbered.get(&on_stream).copied().unwrap_or(on_stream);
        let entry = self.watches.get(&number);
        if entry.is_some_and(|entry| entry.on_stream != on_stream) {
            // About a number that the watch had before.
            return true;
        }
        let watched = entry.and_then(|entry| entry.watched.upgrade());
        if answer.canceled() {
            let reason = answer.cancel_reason();
            if answer.created() {
                if is_stale_token(reason) {
                    // The stream keeps the token of its opening: only another connection authenticates again.
                    return false;
                }
                // The number is -1, but refusals come in the order of the requests.
                let refused = self.creating.pop_front();
                tracing::warn!(
                    reason,
                    "etcd refused a watch: waiters look every 10 s until it permits the watch"
                );
                self.ask_again = Instant::now() + ASK_AGAIN;
                self.refused.extend(refused);
            } else if let Some(watched) = watched {
                tracing::debug!(reason, compacted = answer.compact_revision(), "a watch was cancelled");
                watched.report_broken();
                self.create_again(number);
            }
            return true;
        }
        if answer.created() {
            self.creating.retain(|creating| *creating != number);
        }
        match watched {
            Some(watched) if answer.created() => watched.report_opened(),
            Some(watched) if !answer.events().is_empty() => watched.report_change(),
            _ => {}
        }
        true
    }
}

/// Sends `request`; never ends if there is none. Dropped before its end, it has sent nothing.
async fn send(
    request: Option<Request>,
    (key, options): (Vec<u8>, WatchOptions),
    sender: &mut WatchRequestSender,
) -> Result<()> {
    let sent = match request {
        None => std::future::pending().await,
        Some(Request::Create(_)) => sender.watch(key, Some(options)).await,
        Some(Request::Cancel(number)) => sender.cancel(number).await,
        Some(Request::Progress) => sender.request_progress().await,
    };
    sent.map_err(from_client)
}

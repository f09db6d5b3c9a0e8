//! One watch stream per client, with standing watches on it.
//!
//! A watch that starts at a past revision is served by a loop that runs every 100 ms; one that
//! starts "now" is served at once. So watches are opened *before* they are needed, from now, and
//! stay open while they are of use. What happened before the watch stood is read afterwards: the
//! `opened` event carries the revision from which on nothing can be missed.
//!
//! A stream that ends, is cut or goes silent is opened anew on another connection: everybody
//! hears `broken`, and later `opened` again, and reads again. A deletion is never inferred from
//! any of this.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_client::proto::PbKeyValue;
use etcd_client::{
    Event, EventType, WatchFilterType, WatchOptions, WatchRequestSender, WatchResponse,
};
use tenure_core::Result;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Link, Wire, silent};
use crate::error::{from_client, is_stale_token};

/// What a watch looks at. Only deletions are delivered, unless puts are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    place: Place,
    puts: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Prefix(String),
    Key(Vec<u8>),
}

impl Target {
    pub(crate) fn prefix(prefix: impl Into<String>) -> Self {
        Self {
            place: Place::Prefix(prefix.into()),
            puts: false,
        }
    }

    pub(crate) fn key(key: impl Into<Vec<u8>>) -> Self {
        Self {
            place: Place::Key(key.into()),
            puts: false,
        }
    }

    /// The same, with what is put there. Costs a message for each.
    pub(crate) fn with_puts(self) -> Self {
        Self { puts: true, ..self }
    }

    pub(crate) fn has_puts(&self) -> bool {
        self.puts
    }
}

/// Who hears of it. The calls come from the reader's task and must not block.
pub(crate) trait Sink: Send + Sync + 'static {
    /// From `revision` on (not including it), `watch` misses nothing.
    fn opened(&self, watch: i64, revision: i64);
    /// Keys were deleted, each at a revision. All deletions of one revision come in one call
    /// (one transaction, or the end of one lease, may delete a holder and the waiter behind it),
    /// unless the server splits them: then `whole` is said with the last part.
    fn deleted(&self, deletions: &[(&[u8], i64)], whole: bool);
    /// A key was put. Only for a target [with puts](Target::with_puts).
    fn put(&self, _kv: &PbKeyValue) {}
    /// The same news as they came, for one to whom the order of puts and deletions matters: says
    /// whether it took them, or wants them told by `put` and `deleted`.
    fn events(&self, _events: &[Event], _whole: bool) -> bool {
        false
    }
    /// Deletions may be missed until the next `opened`.
    fn broken(&self);
}

enum Command {
    Open {
        id: i64,
        target: Target,
        sink: Weak<dyn Sink>,
    },
    Close {
        id: i64,
    },
}

/// An open watch; dropped, it is closed.
pub(crate) struct Watch {
    id: i64,
    commands: mpsc::UnboundedSender<Command>,
}

impl Watch {
    /// The number by which its sink knows it.
    pub(crate) fn id(&self) -> i64 {
        self.id
    }

    #[cfg(test)]
    pub(crate) fn unconnected(id: i64) -> Self {
        let (commands, _) = mpsc::unbounded_channel();
        Self { id, commands }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Without the reader there is nothing to close.
        let _ = self.commands.send(Command::Close { id: self.id });
    }
}

/// The handle to the reader's task, which ends with the last handle and watch.
pub(crate) struct Watcher {
    commands: mpsc::UnboundedSender<Command>,
    next_id: std::sync::atomic::AtomicI64,
}

impl Watcher {
    /// Starts the reader; the stream is opened with the first watch.
    pub(crate) fn start(wire: Arc<Wire>) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        tokio::spawn(
            Reader {
                wire,
                inbox,
                watches: HashMap::new(),
                renewed: HashMap::new(),
                last_renewed: RENEWED,
                outbox: VecDeque::new(),
                creating: VecDeque::new(),
                refused: Vec::new(),
                ask_again: Instant::now(),
            }
            .run(),
        );
        Self {
            commands,
            next_id: 1.into(),
        }
    }

    /// Opens a watch from now; `sink` hears `opened` once it stands.
    pub(crate) fn open(&self, target: Target, sink: Weak<dyn Sink>) -> Watch {
        let id = self
            .next_id
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _ = self.commands.send(Command::Open { id, target, sink });
        Watch {
            id,
            commands: self.commands.clone(),
        }
    }
}

struct Entry {
    target: Target,
    sink: Weak<dyn Sink>,
    /// Its number on the stream: its own, until it was cancelled there and created anew. etcd keeps
    /// the number of a watch that a compaction cancelled, and refuses it as a duplicate.
    wire: i64,
}

impl Entry {
    fn new(id: i64, target: Target, sink: Weak<dyn Sink>) -> Self {
        Self {
            target,
            sink,
            wire: id,
        }
    }
}

/// How long a watch that etcd refused is not asked for again: until an operator may have granted the right.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Where the numbers of watches begin that were created anew: above all others.
const RENEWED: i64 = 1 << 40;

struct Reader {
    wire: Arc<Wire>,
    inbox: mpsc::UnboundedReceiver<Command>,
    watches: HashMap<i64, Entry>,
    /// The watches that have another number on the stream, by that.
    renewed: HashMap<i64, i64>,
    last_renewed: i64,
    /// What is to be sent on the stream. It takes no more while it is choked, and must be read
    /// meanwhile.
    outbox: VecDeque<Request>,
    /// Creations on the stream that were not answered yet, in order: a refused one is answered
    /// without its id.
    creating: VecDeque<i64>,
    /// The watches that etcd refused on this stream, for want of a right as a rule...
    refused: Vec<i64>,
    /// ...and when they are asked for again.
    ask_again: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Create(i64),
    Cancel(i64),
    /// Are you there?
    Progress,
}

enum Over {
    /// All handles are gone.
    Handles,
    /// No watch is left: the stream can be closed.
    Idle,
    /// The stream broke, or somebody found its connection dead.
    Broken,
}

impl Reader {
    async fn run(mut self) {
        let mut pause = Duration::ZERO;
        // Before a stream is opened again, so that nothing is told of another history as if it were the same.
        let mut reopening = false;
        loop {
            while self.watches.is_empty() {
                match self.inbox.recv().await {
                    Some(command) => self.note(command),
                    None => return,
                }
            }
            if std::mem::take(&mut reopening)
                && let Err(error) = self.wire.compare_history().await
            {
                tracing::debug!(error = %error.chain(), "the watch stream cannot be opened again yet");
            }
            let link = self.wire.link();
            reopening = true;
            match self.serve(&link, &mut pause).await {
                Ok(Over::Handles) => return,
                Ok(Over::Idle) => {
                    reopening = false;
                    continue;
                }
                Ok(Over::Broken) => {}
                Err(error) => tracing::debug!(error = %error.chain(), "the watch stream broke"),
            }
            for entry in self.watches.values() {
                if let Some(sink) = entry.sink.upgrade() {
                    sink.broken();
                }
            }
            self.wire.leave(link.generation).await;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).clamp(Duration::from_millis(20), Duration::from_millis(500));
        }
    }

    /// Notes a command while there is no stream to send it on.
    fn note(&mut self, command: Command) {
        match command {
            Command::Open { id, target, sink } => {
                self.watches.insert(id, Entry::new(id, target, sink));
            }
            Command::Close { id } => {
                self.forget(id);
            }
        }
    }

    fn forget(&mut self, id: i64) -> Option<Entry> {
        let entry = self.watches.remove(&id)?;
        self.renewed.remove(&entry.wire);
        Some(entry)
    }

    /// Opens a stream with every watch on it and serves it until it breaks.
    async fn serve(&mut self, link: &Link, pause: &mut Duration) -> Result<Over> {
        let limit = self.wire.timeout();
        self.creating.clear();
        self.refused.clear();
        self.outbox = self.watches.keys().copied().map(Request::Create).collect();
        let Some(Request::Create(first)) = self.outbox.pop_front() else {
            return Ok(Over::Idle);
        };
        let (target, options) = self.creation(first);
        let mut client = link.client.watch_client();
        let opening = tokio::time::timeout(limit, client.watch(target, Some(options)));
        let stream = opening
            .await
            .map_err(|_| silent(limit))?
            .map_err(from_client)?;
        let (mut sender, mut answers) = stream.split();
        self.creating.push_back(first);
        let mut left = std::pin::pin!(self.wire.left(link.generation));
        // Nothing heard for `limit`: ask. No answer to a question for `limit`: silent.
        let (mut since, mut asked) = (Instant::now(), true);
        loop {
            let next = self.outbox.front().copied();
            let creation = match next {
                Some(Request::Create(id)) => self.creation(id),
                _ => Default::default(),
            };
            tokio::select! {
                biased;
                answer = answers.message() => {
                    let Some(answer) = answer.map_err(from_client)? else {
                        return Ok(Over::Broken);
                    };
                    (since, asked) = (Instant::now(), false);
                    *pause = Duration::ZERO;
                    if let Some(over) = self.answer(&answer) {
                        return Ok(over);
                    }
                }
                sent = send(next, creation, &mut sender) => {
                    sent?;
                    self.outbox.pop_front();
                    if let Some(Request::Create(id)) = next {
                        self.creating.push_back(id);
                    }
                    if !asked && !matches!(next, Some(Request::Cancel(_))) {
                        (since, asked) = (Instant::now(), true);
                    }
                }
                command = self.inbox.recv() => match command {
                    None => return Ok(Over::Handles),
                    Some(Command::Open { id, target, sink }) => {
                        self.watches.insert(id, Entry::new(id, target, sink));
                        self.outbox.push_back(Request::Create(id));
                    }
                    Some(Command::Close { id }) => {
                        self.close(id);
                        if self.watches.is_empty() {
                            return Ok(Over::Idle);
                        }
                    }
                },
                () = &mut left => return Ok(Over::Broken),
                () = tokio::time::sleep_until(self.ask_again), if !self.refused.is_empty() => {
                    for id in std::mem::take(&mut self.refused) {
                        if self.watches.contains_key(&id) {
                            self.outbox.push_back(Request::Create(id));
                        }
                    }
                }
                () = tokio::time::sleep_until(since + limit) => {
                    if asked {
                        return Err(silent(limit));
                    }
                    (since, asked) = (Instant::now(), true);
                    self.outbox.push_back(Request::Progress);
                }
            }
        }
    }

    fn close(&mut self, id: i64) {
        let Some(Entry { wire, .. }) = self.forget(id) else {
            return; // refused, and told so already
        };
        if let Some(at) = self.refused.iter().position(|refused| *refused == id) {
            self.refused.swap_remove(at);
            return;
        }
        let unsent = self
            .outbox
            .iter()
            .position(|request| *request == Request::Create(id));
        match unsent {
            Some(at) => drop(self.outbox.remove(at)),
            None => self.outbox.push_back(Request::Cancel(wire)),
        }
    }

    /// Creates a watch anew that the server cancelled, under a number that it has not seen.
    fn renew(&mut self, id: i64) {
        if let Some(entry) = self.watches.get_mut(&id) {
            self.last_renewed += 1;
            let before = std::mem::replace(&mut entry.wire, self.last_renewed);
            self.renewed.remove(&before);
            self.renewed.insert(self.last_renewed, id);
            self.outbox.push_back(Request::Cancel(before));
            self.outbox.push_back(Request::Create(id));
        }
    }

    fn creation(&self, id: i64) -> (Vec<u8>, WatchOptions) {
        let Some(entry) = self.watches.get(&id) else {
            return Default::default();
        };
        let mut options = WatchOptions::new()
            .with_watch_id(entry.wire)
            .with_fragment();
        if !entry.target.puts {
            options = options.with_filters([WatchFilterType::NoPut]);
        }
        match &entry.target.place {
            Place::Prefix(prefix) => (prefix.clone().into_bytes(), options.with_prefix()),
            Place::Key(key) => (key.clone(), options),
        }
    }

    fn answer(&mut self, answer: &WatchResponse) -> Option<Over> {
        let sink = |id: i64| self.watches.get(&id).and_then(|entry| entry.sink.upgrade());
        let wire = answer.watch_id();
        let id = self.renewed.get(&wire).copied().unwrap_or(wire);
        if self
            .watches
            .get(&id)
            .is_some_and(|entry| entry.wire != wire)
        {
            return None; // about a number that it had before
        }
        if answer.canceled() {
            let reason = answer.cancel_reason();
            if answer.created() {
                // Refused. Its id is -1, but refusals come in the order of the requests.
                if is_stale_token(reason) {
                    // The stream keeps the token of its opening for ever, so another connection
                    // is needed, which authenticates anew.
                    return Some(Over::Broken);
                }
                let refused = self.creating.pop_front();
                tracing::warn!(
                    reason,
                    "etcd refused a watch; waiters fall back to slow checks until it grants it"
                );
                self.ask_again = Instant::now() + ASK_AGAIN;
                self.refused.extend(refused);
            } else if let Some(sink) = sink(id) {
                // Compacted, or too slow: from now again, and read what was missed.
                tracing::debug!(
                    reason,
                    compacted = answer.compact_revision(),
                    "a watch was cancelled"
                );
                sink.broken();
                self.renew(id);
            }
            return None;
        }
        if answer.created() {
            self.creating.retain(|creating| *creating != id);
            if let (Some(sink), Some(header)) = (sink(id), answer.header()) {
                sink.opened(id, header.revision());
            }
            return None;
        }
        if let Some(sink) = sink(id)
            && !sink.events(answer.events(), !answer.0.fragment)
        {
            let mut deletions = Vec::new();
            for event in &answer.0.events {
                match &event.kv {
                    Some(kv) if event.r#type() == EventType::Delete => {
                        deletions.push((kv.key.as_slice(), kv.mod_revision));
                    }
                    Some(kv) => sink.put(kv),
                    None => {}
                }
            }
            sink.deleted(&deletions, !answer.0.fragment);
        }
        None
    }
}

/// Sends `request`; never ends if there is none. Dropped before its end, it has sent nothing.
async fn send(
    request: Option<Request>,
    (target, options): (Vec<u8>, WatchOptions),
    sender: &mut WatchRequestSender,
) -> Result<()> {
    let sent = match request {
        None => std::future::pending().await,
        Some(Request::Create(_)) => sender.watch(target, Some(options)).await,
        Some(Request::Cancel(id)) => sender.cancel(id).await,
        Some(Request::Progress) => sender.request_progress().await,
    };
    sent.map_err(from_client)
}

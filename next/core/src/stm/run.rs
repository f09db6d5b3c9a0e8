//! The loop that repeats a transaction until it commits.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::{EndOnDrop, Tx};
use super::commit::commit;
use super::state::{AttemptState, Ended, Seen};
use super::transaction::{check, draft};
use super::{Isolation, Reader, StmHandle};
use crate::backend::{Commit, Fence, Key, Write};
use crate::compare::{Compare, Relation, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;

/// One call of `run`, with all its attempts.
pub(super) struct Transaction<'a> {
    pub(super) handle: &'a StmHandle,
    pub(super) reader: Reader,
    pub(super) fence: Option<Fence>,
}

/// From this attempt on a transaction does not pause.
const OLD: u32 = 10;

impl Transaction<'_> {
    pub(super) async fn run<T, E, F, Fut>(&self, mut work: F, explain: impl Fn(Error) -> E) -> Result<T, E>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let handle = self.handle;
        let prefetch = handle.prefetch.iter().map(Name::new);
        let prefetch: Vec<Name> = prefetch.collect::<Result<_>>().map_err(&explain)?;
        let clock = handle.session.clock();
        let (mut start, mut took) = (AttemptState::default(), Duration::ZERO);
        for attempt in 1..=handle.attempts {
            if attempt > 2 {
                self.pause(attempt, took).await;
            }
            let began = clock.now();
            start.prefetch(&prefetch);
            let validates = Arc::clone(&handle.validates);
            let tx = Tx::new(self.reader.clone(), handle.isolation, validates, start);
            let running = EndOnDrop(tx.clone());
            let done = work(tx).await;
            let ended = running.0.end();
            if ended.stale {
                start = ended.start_again();
            } else {
                let done = done?;
                match self.commit(ended).await.map_err(&explain)? {
                    None => return Ok(done),
                    Some(next) => start = next,
                }
            }
            took = clock.now().since(began);
        }
        let message = format!(
            "{} attempts met a conflict with other transactions: try again later, or raise `attempts`",
            handle.attempts
        );
        Err(explain(Error::new(ErrorKind::Conflict, message).retryable(true)))
    }

    /// Waits a random time before another attempt, at most as long as the last attempt took and less the older the
    /// transaction is.
    ///
    /// A pause that grows starves: a client that has just committed tries at once, and wins against all that pause.
    /// Young transactions therefore make room for old ones.
    async fn pause(&self, attempt: u32, took: Duration) {
        const LONGEST: Duration = Duration::from_millis(100);
        let clock = self.handle.session.clock();
        let longest = (took * OLD.saturating_sub(attempt) / OLD).min(LONGEST);
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        if micros > 0 {
            clock.sleep(Duration::from_micros(clock.random() % micros)).await;
        }
    }

    /// Commits an attempt. Returns the state of the next one if this met a conflict.
    async fn commit(&self, ended: Ended) -> Result<Option<AttemptState>> {
        let isolation = self.handle.isolation;
        let only_reads = ended.writes.is_empty() && self.fence.is_none();
        // One snapshot, read while this call ran, needs no commit; neither do reads that are not checked.
        if only_reads && (isolation.reads_a_snapshot() || !isolation.checks_reads() || ended.reads.is_empty()) {
            return Ok(None);
        }
        let mut draft = self.draft(&ended);
        if check(&*self.reader.stm, &draft).is_err() {
            // The reads for the next attempt must not make the transaction too large.
            draft.or_else.clear();
            check(&*self.reader.stm, &draft)?;
        }
        let keys: Vec<Name> = draft.or_else.iter().map(|read| read.key().name.clone()).collect();
        let committed = commit(&self.handle.session, "transaction", &self.reader.stm, draft).await?;
        if committed.succeeded {
            return Ok(None);
        }
        tracing::debug!("a transaction met a conflict");
        match committed.results {
            Some(results) if !keys.is_empty() && keys.len() == results.len() => {
                Ok(Some(AttemptState::current(committed.revision, keys, results)))
            }
            _ => Ok(Some(ended.start_again())),
        }
    }

    /// Builds the commit: the level's comparisons, the closure's writes, and the reads for the next attempt.
    fn draft(&self, ended: &Ended) -> Commit {
        /// Above this size the next attempt reads only what has changed, with a request of its own.
        const READ_AGAIN_BYTES: usize = 32 * 1024;
        let isolation = self.handle.isolation;
        let mut draft = draft();
        draft.fence = self.fence.clone();
        let unchanged = |(name, seen): (&Name, &Seen)| {
            Compare::new(
                Key::data(name.clone()),
                Target::Modified(seen.modified),
                Relation::Equal,
            )
        };
        if isolation.checks_reads() {
            draft.compares.extend(ended.reads.iter().map(unchanged));
        }
        if let (Isolation::SerializableSnapshot, Some(at)) = (isolation, ended.at) {
            let blind = ended.writes.keys().filter(|name| !ended.reads.contains_key(*name));
            draft.compares.extend(
                blind.map(|name| Compare::new(Key::data(name.clone()), Target::Modified(at + 1), Relation::Less)),
            );
        }
        draft.then.extend(ended.writes.iter().map(|(name, value)| {
            let key = Key::data(name.clone());
            match value {
                Some(value) => Write::Put {
                    key,
                    value: Arc::clone(value),
                    leased: false,
                },
                None => Write::Delete(key),
            }
        }));
        let values = ended.reads.values().filter_map(|seen| seen.value.as_ref());
        let bytes: usize = values.map(|value| value.len()).sum();
        if bytes <= READ_AGAIN_BYTES && !draft.compares.is_empty() {
            let keys = ended.reads.keys().cloned().map(Key::data);
            draft.or_else.extend(keys.map(Write::Get));
        }
        draft
    }
}

//! Lists that are appended to and read in transactions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tenure_core::{Effect, Isolation, Result, StmHandle, Tx};
use tokio::time::Instant;

use super::client::{Client, Epoch, Shared, clients};
use crate::case::Outcome;
use crate::cases::open_on;
use crate::checkers::Fate;
use crate::checkers::list_append::{Lists, Step};
use crate::harness::Harness;

/// Which all must keep the same promise, beside each other.
const SERIALIZABLE: [Isolation; 2] = [Isolation::Serializable, Isolation::SerializableSnapshot];

/// So many reads in one transaction of the last look.
const READS: usize = 8;

impl Client {
    pub(super) async fn append_and_read(&mut self) {
        while self.goes_on() {
            let level = usize::try_from(self.random.below(2)).unwrap_or_default();
            let level = self.shared.plan.isolation.unwrap_or(SERIALIZABLE[level]);
            if let Some(session) = self.session().await
                && let Ok(stm) = session.stm()
            {
                let stm = stm.isolation(level).attempts(100);
                match self.random.below(64) {
                    // A weaker level breaks this as well, and is judged by the lists.
                    _ if self.shared.plan.isolation.is_some() => self.transact(&stm).await,
                    0 => self.write_and_read_much(&stm).await,
                    1..16 => self.move_chip(&stm).await,
                    _ => self.transact(&stm).await,
                }
            }
            self.think().await;
        }
    }

    async fn transact(&mut self, stm: &StmHandle) {
        let epoch = self.shared.epoch();
        let steps = self.steps(&epoch);
        let ticket = epoch.lists.call(self.number, steps.clone());
        let running = stm.run(|tx| step_by_step(tx, Arc::clone(&epoch), steps.clone()));
        match self.attempt(running).await {
            Some(Ok(lists)) => {
                epoch.lists.done(ticket, lists);
                self.achieved();
            }
            Some(Err(error)) if error.effect() == Effect::None => {
                epoch.lists.end(ticket, Fate::Failed);
            }
            _ => epoch.lists.end(ticket, Fate::Unknown),
        }
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves a chip on the board from one slot to another: a deletion and a write. All chips are always there, each
    /// in one slot.
    async fn move_chip(&mut self, stm: &StmHandle) {
        let epoch = self.shared.epoch();
        let (from, to) = (self.random.below(SLOTS), self.random.below(SLOTS));
        let moving = stm.run(|tx| chips(tx, Arc::clone(&epoch), from, to));
        if let Some(Ok(found)) = self.attempt(moving).await {
            if let Some(found) = found.filter(|_| epoch.is_open()) {
                self.shared
                    .broke(format!("the board has the chips {found:?} in its slots"));
            }
            self.achieved();
        }
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes many keys, one of them of a large value, and reads all of them back. No other client writes them.
    async fn write_and_read_much(&mut self, stm: &StmHandle) {
        let epoch = self.shared.epoch();
        let (number, client) = (self.random.next(), self.number);
        let size = usize::try_from(self.random.below(100_000)).unwrap_or_default();
        let writing = stm.run(|tx| write_much(tx, Arc::clone(&epoch), client, number, size));
        let written = matches!(self.attempt(writing).await, Some(Ok(())));
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
        if !written {
            return;
        }
        let reading = stm.run(|tx| read_much(tx, Arc::clone(&epoch), client, number, size));
        let read = self.attempt(reading).await;
        self.shared.transactions.fetch_add(1, Ordering::Relaxed);
        if let Some(Ok((wrong, whole))) = read
            && (wrong > 0 || !whole)
            && epoch.is_open()
        {
            self.shared.broke(format!(
                "of {KEYS} keys that client {client} wrote in one transaction {wrong} were read back wrong; the value of {size} bytes came back whole: {whole}"
            ));
        }
    }

    fn steps(&mut self, epoch: &Epoch) -> Vec<Step> {
        let mut keys = epoch.keys.lock();
        let keys = keys.as_mut().unwrap_or_else(|broken| broken.get_mut());
        let random = &mut self.random;
        let step = |_| match random.below(2) {
            0 => keys.append(random.next()),
            _ => keys.read(random.next()),
        };
        (0..4).map(step).collect()
    }
}

/// So many keys in one transaction.
const KEYS: usize = 100;

fn sheaf(epoch: &Epoch, client: usize, key: usize) -> String {
    epoch.name(&format!("sheaf {client} {key}"))
}

async fn write_much(
    tx: Tx,
    epoch: Arc<Epoch>,
    client: usize,
    number: u64,
    size: usize,
) -> Result<()> {
    for key in 0..KEYS {
        tx.put(sheaf(&epoch, client, key), number.to_string())?;
    }
    let large = vec![number.to_le_bytes()[0]; size];
    tx.put(sheaf(&epoch, client, KEYS), large)
}

/// How many keys have another number, and whether the large value has come back.
async fn read_much(
    tx: Tx,
    epoch: Arc<Epoch>,
    client: usize,
    number: u64,
    size: usize,
) -> Result<(usize, bool)> {
    let text = number.to_string();
    let read = tx.get_many((0..KEYS).map(|key| sheaf(&epoch, client, key)));
    let read = read.await?;
    let right = |value: &&Option<Vec<u8>>| value.as_deref() == Some(text.as_bytes());
    let wrong = KEYS - read.iter().filter(right).count();
    let large = tx.get(sheaf(&epoch, client, KEYS)).await?;
    let whole = large == Some(vec![number.to_le_bytes()[0]; size]);
    Ok((wrong, whole))
}

/// Slots of the board, and chips on it.
const SLOTS: u64 = 8;
const CHIPS: u64 = 3;

/// What is in the slots, if it is not every chip once.
async fn chips(tx: Tx, epoch: Arc<Epoch>, from: u64, to: u64) -> Result<Option<Vec<u64>>> {
    let slot = |slot: u64| epoch.name(&format!("slot {slot}"));
    let ready = epoch.name("the board");
    if tx.get(&ready).await?.is_none() {
        for chip in 0..CHIPS {
            tx.put(slot(chip), chip.to_string())?;
        }
        tx.put(&ready, b"ready".to_vec())?;
        return Ok(None);
    }
    let read = tx.get_many((0..SLOTS).map(slot)).await?;
    let chip = |value: Vec<u8>| String::from_utf8_lossy(&value).parse::<u64>().ok();
    let slots: Vec<Option<u64>> = read.into_iter().map(|value| value.and_then(chip)).collect();
    let in_slot = |number: u64| {
        let number = usize::try_from(number).ok()?;
        slots.get(number).copied()
    };
    if let (Some(Some(chip)), Some(None)) = (in_slot(from), in_slot(to)) {
        tx.delete(slot(from))?;
        tx.put(slot(to), chip.to_string())?;
    }
    let mut found: Vec<u64> = slots.into_iter().flatten().collect();
    found.sort_unstable();
    Ok((!found.iter().copied().eq(0..CHIPS)).then_some(found))
}

async fn step_by_step(tx: Tx, epoch: Arc<Epoch>, steps: Vec<Step>) -> Result<Lists> {
    let name = |key: u64| epoch.name(&format!("list {key}"));
    let mut lists = Vec::new();
    for step in steps {
        // Others get their turn in between, on a store that never makes anybody wait, too.
        tokio::task::yield_now().await;
        match step {
            Step::Append { key, value } => {
                let key = name(key);
                let mut list: Vec<u64> = tx.get_as(&key).await?.unwrap_or_default();
                list.push(value);
                tx.put_as(&key, &list)?;
            }
            Step::Read { key } => {
                lists.push(tx.get_as(name(key)).await?.unwrap_or_default());
            }
        }
    }
    Ok(lists)
}

/// All lists are read once more: what is missing in the end was lost.
pub(super) async fn last_look(
    harness: &dyn Harness,
    shared: &Shared,
    patience: Duration,
) -> std::result::Result<(), Outcome> {
    let epoch = shared.epoch();
    let keys: BTreeSet<u64> = epoch
        .lists
        .operations()
        .iter()
        .flat_map(|operation| &operation.input)
        .map(|step| match step {
            Step::Append { key, .. } | Step::Read { key } => *key,
        })
        .collect();
    let keys: Vec<u64> = keys.into_iter().collect();
    let until = Instant::now() + patience;
    for some in keys.chunks(READS) {
        let steps: Vec<Step> = some.iter().map(|key| Step::Read { key: *key }).collect();
        loop {
            let ticket = epoch.lists.call(clients(), steps.clone());
            match once_more(harness, shared, &epoch, &steps).await {
                Ok(lists) => {
                    epoch.lists.done(ticket, lists);
                    break;
                }
                Err(error) => {
                    // It writes nothing.
                    epoch.lists.end(ticket, Fate::Failed);
                    if Instant::now() >= until {
                        return Err(Outcome::violated(format!(
                            "the lists could not be read {patience:?} after everybody had left: {error}",
                            error = error.chain()
                        )));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn once_more(
    harness: &dyn Harness,
    shared: &Shared,
    epoch: &Arc<Epoch>,
    steps: &[Step],
) -> Result<Lists> {
    let session = open_on(&harness.connect().await?, shared.ttl * 5).await?;
    let stm = session.stm()?;
    let lists = stm
        .run(|tx| step_by_step(tx, Arc::clone(epoch), steps.to_vec()))
        .await?;
    session.close().await?;
    Ok(lists)
}

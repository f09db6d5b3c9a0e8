//! Queues that break the rules.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tenure_conformance::async_trait;
use tenure_core::backend::{Ask, Grant, Queue, Settle, Taken, Want};
use tenure_core::{Depth, Error, FencingToken, Item, Name, Peeked, Result};
use tenure_memory::MemoryQueue;

use super::{Bug as AnyBug, World};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// A delivered item is gone: at most once.
    DeletesOnTake,
    /// Every enqueue puts its items in twice.
    Twice,
    /// Ids are not looked at.
    NoIds,
    /// Batches come in the wrong order.
    BackToFront,
    /// The purge takes nothing, and says so.
    PurgesNothing,
    /// An acknowledged item stays.
    AckNothing,
    /// An acknowledgement leaves another item behind.
    Litter,
    /// A delivered item is delivered to others as well.
    Shared,
    /// A delivery is always the first.
    NeverCounts,
    /// What is given back stays with its consumer.
    ReleaseNothing,
    /// A delay is over at once.
    Impatient,
    /// Dead letters are delivered like others.
    NoDeadLetters,
    /// Priorities are not looked at.
    NoPriorities,
    /// What comes back goes to the end.
    ToTheEnd,
    /// An acknowledgement of whatever is not one's own is accepted.
    TrustsAnyAck,
    /// A consumer that waits looks every 15 seconds.
    Polling,
    /// A dequeue that was dropped goes on, and keeps what it gets.
    WithdrawNothing,
    /// The claim of a dequeue that was dropped counts as a delivery.
    WithdrawCounts,
    /// Of items with a priority that were nacked, none is left.
    ForgetsPriorities,
    /// What is enqueued to a name that ends with a slash is enqueued to the one without.
    FoldedNames,
}

const fn bug(bug: Bug) -> AnyBug {
    AnyBug::Queue(bug)
}

/// Which case must catch which mutant.
pub(crate) const CAUGHT: &[(AnyBug, &[&str])] = &[
    (
        bug(Bug::DeletesOnTake),
        &[
            "q1_an_item_is_delivered_until_it_is_acknowledged",
            "q2_what_comes_back_counts_its_deliveries",
            "s3_delivery_ends_after_a_silence",
            "s1_delivery_ends_with_its_session",
            "q3_what_comes_back_keeps_its_place",
            "l5_delivery_cancelled_acquire_leaves_nothing",
        ],
    ),
    (
        bug(Bug::Twice),
        &["q1_an_enqueue_without_an_answer_yields_one_item"],
    ),
    (bug(Bug::NoIds), &["q1_an_id_makes_an_enqueue_idempotent"]),
    (bug(Bug::BackToFront), &["q1_a_batch_is_all_or_nothing"]),
    (
        bug(Bug::PurgesNothing),
        &["q1_depth_peek_and_purge_tell_the_truth"],
    ),
    (
        bug(Bug::AckNothing),
        &[
            "q1_an_item_is_delivered_until_it_is_acknowledged",
            "q1_popped_items_are_gone",
            "q2_one_consumer_at_a_time",
        ],
    ),
    (bug(Bug::Litter), &["q1_a_queue_in_use_does_not_grow"]),
    (
        bug(Bug::Shared),
        &["q2_one_consumer_at_a_time", "q5_an_item_wakes_one_consumer"],
    ),
    (
        bug(Bug::NeverCounts),
        &["q2_what_comes_back_counts_its_deliveries"],
    ),
    (
        bug(Bug::ReleaseNothing),
        &[
            "q1_an_item_is_delivered_until_it_is_acknowledged",
            "q1_depth_peek_and_purge_tell_the_truth",
        ],
    ),
    (bug(Bug::Impatient), &["q2_a_delay_is_kept"]),
    (bug(Bug::NoDeadLetters), &["q2_dead_letters_go_elsewhere"]),
    (
        bug(Bug::NoPriorities),
        &[
            "q3_by_priority_then_as_accepted",
            "q3_urgent_items_from_elsewhere_come_first",
        ],
    ),
    (bug(Bug::ToTheEnd), &["q3_what_comes_back_keeps_its_place"]),
    (bug(Bug::TrustsAnyAck), &["q4_a_late_ack_is_refused"]),
    (
        bug(Bug::Polling),
        &[
            "l3_delivery_is_handed_on_at_once",
            "q2_a_mass_death_delays_no_longer_than_stated",
        ],
    ),
    (
        bug(Bug::WithdrawNothing),
        &[
            "l5_delivery_cancelled_acquire_leaves_nothing",
            "q6_a_dequeue_cut_off_loses_nothing",
        ],
    ),
    (
        bug(Bug::WithdrawCounts),
        &["q6_a_dequeue_cut_off_loses_nothing"],
    ),
    (
        bug(Bug::ForgetsPriorities),
        &["q2_random_consumers_lose_and_double_nothing"],
    ),
    (
        bug(Bug::FoldedNames),
        &["l8_delivery_meets_no_other_name_or_kind"],
    ),
    (
        AnyBug::Amnesia,
        &["q1_items_outlive_a_crash", "q2_a_delivery_outlives_a_crash"],
    ),
];

pub(crate) struct MutantQueue {
    inner: Arc<MemoryQueue>,
    bug: Option<Bug>,
    world: Arc<World>,
    /// What was asked for last.
    wanted: Mutex<Option<Want>>,
    /// What was delivered with a priority.
    with_priority: Mutex<HashSet<(String, FencingToken)>>,
}

impl MutantQueue {
    pub(crate) fn new(inner: Arc<MemoryQueue>, bug: Option<Bug>, world: &Arc<World>) -> Self {
        Self {
            inner,
            bug,
            world: Arc::clone(world),
            wanted: Mutex::default(),
            with_priority: Mutex::default(),
        }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// A handle of its own, as a stranger would have.
    async fn stranger(&self, name: &Name) -> Result<tenure_core::QueueHandle> {
        let options = tenure_core::SessionOptions::new();
        let store = tenure_core::Store::new(self.world.store.backend().reconnect()).into_dyn();
        store.open(options).await?.queue(name.as_str())
    }

    async fn shown(&self, ask: &Ask, mut taken: Vec<Taken>) -> Result<Vec<Taken>> {
        for item in &mut taken {
            match self.bug {
                Some(Bug::DeletesOnTake) => self.inner.ack(ask, &item.grant).await?,
                Some(Bug::NeverCounts) => item.deliveries = 1,
                Some(Bug::ForgetsPriorities) if item.priority > 0 => {
                    let delivery = (item.grant.key().to_owned(), item.grant.token());
                    self.with_priority.lock().unwrap().insert(delivery);
                }
                Some(Bug::Shared) => {
                    let (token, key) = (item.grant.token(), item.grant.key().to_owned());
                    self.inner.release(ask, &item.grant).await?;
                    item.grant = Grant::new(FencingToken::new(token.get()), key);
                    item.deliveries = 1;
                }
                _ => {}
            }
        }
        Ok(taken)
    }

    fn want(&self, want: &Want) -> Want {
        *self.wanted.lock().unwrap() = Some(want.clone());
        let mut want = want.clone();
        if self.is(Bug::NoDeadLetters) {
            want.dead_letters = None;
        }
        want
    }
}

#[async_trait]
impl Queue for MutantQueue {
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        let mut items = items.to_vec();
        match self.bug {
            Some(Bug::Twice) => {
                let stranger = self.stranger(ask.name()).await?;
                stranger.enqueue_many(items.clone()).await?;
            }
            Some(Bug::NoIds) => {
                let bare = |item: &Item| Item::new(item.value()).priority(item.get_priority());
                items = items.iter().map(bare).collect();
            }
            Some(Bug::BackToFront) => items.reverse(),
            Some(Bug::NoPriorities) => {
                items = items.into_iter().map(|item| item.priority(0)).collect();
            }
            Some(Bug::FoldedNames) if ask.name().as_str().ends_with('/') => {
                return self
                    .stranger(&Name::new(ask.name().as_str().trim_end_matches('/'))?)
                    .await?
                    .enqueue_many(items)
                    .await;
            }
            _ => {}
        }
        self.inner.enqueue(ask, &items).await
    }

    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let taken = self.inner.try_take(ask, &self.want(want)).await?;
        self.shown(ask, taken).await
    }

    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let want = self.want(want);
        let taken = match self.bug {
            Some(Bug::Polling) => loop {
                let taken = self.inner.try_take(ask, &want).await?;
                if !taken.is_empty() {
                    break taken;
                }
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(15)) => {}
                    () = ask.withdrawn() => return Err(Error::withdrawn()),
                }
            },
            _ => self.inner.take(ask, &want).await?,
        };
        self.shown(ask, taken).await
    }

    async fn ack(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        match self.bug {
            Some(Bug::AckNothing) => self.inner.release(ask, grant).await,
            Some(Bug::DeletesOnTake | Bug::Shared) => Ok(()),
            Some(Bug::TrustsAnyAck) => {
                let _ = self.inner.ack(ask, grant).await;
                Ok(())
            }
            Some(Bug::Litter) => {
                self.inner.ack(ask, grant).await?;
                let other = self.stranger(&Name::new("litter")?).await?;
                other.enqueue("").await?;
                let kept = other.dequeue().await?;
                tokio::spawn(async move {
                    let _kept = kept;
                    std::future::pending::<()>().await;
                });
                Ok(())
            }
            _ => self.inner.ack(ask, grant).await,
        }
    }

    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()> {
        match self.bug {
            Some(Bug::DeletesOnTake | Bug::Shared) => Ok(()),
            Some(Bug::ForgetsPriorities) => {
                let delivery = (grant.key().to_owned(), grant.token());
                if self.with_priority.lock().unwrap().contains(&delivery) {
                    return self.inner.ack(ask, grant).await;
                }
                self.inner.nack(ask, grant, delay).await
            }
            Some(Bug::Impatient) => self.inner.nack(ask, grant, Duration::ZERO).await,
            Some(Bug::ToTheEnd) => {
                let value = format!("{} moved", grant.key());
                self.inner.ack(ask, grant).await?;
                self.stranger(ask.name()).await?.enqueue(value).await
            }
            _ => self.inner.nack(ask, grant, delay).await,
        }
    }

    async fn depth(&self, name: &Name) -> Result<Depth> {
        self.inner.depth(name).await
    }

    async fn peek(&self, name: &Name) -> Result<Option<Peeked>> {
        self.inner.peek(name).await
    }

    async fn purge(&self, ask: &Ask) -> Result<u64> {
        match self.bug {
            Some(Bug::PurgesNothing) => Ok(0),
            _ => self.inner.purge(ask).await,
        }
    }
}

#[async_trait]
impl Settle for MutantQueue {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        match self.bug {
            Some(Bug::ReleaseNothing | Bug::DeletesOnTake | Bug::Shared) => Ok(()),
            _ => self.inner.release(ask, grant).await,
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        match self.bug {
            Some(Bug::WithdrawNothing) => Ok(()),
            Some(Bug::WithdrawCounts) => {
                // What came is nacked, as if it had been delivered.
                let wanted = self.wanted.lock().unwrap().clone();
                if let Some(want) = wanted {
                    for item in self.inner.try_take(ask, &want).await? {
                        self.inner.release(ask, &item.grant).await?;
                    }
                }
                self.inner.withdraw(ask).await
            }
            _ => self.inner.withdraw(ask).await,
        }
    }
}

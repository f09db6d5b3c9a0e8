//! Double barriers: how long after the last one's call each is through.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Barrier;

use crate::Fallible;

/// When the last one of a round began, and how long after it each was through.
pub struct Round {
    party: u32,
    meet: Barrier,
    began: Mutex<Instant>,
    took: Mutex<Histogram<u64>>,
}

impl Round {
    /// Of so many participants.
    ///
    /// # Errors
    ///
    /// None in practice.
    pub fn new(party: u32) -> Fallible<Arc<Self>> {
        Ok(Arc::new(Self {
            party,
            meet: Barrier::new(party as usize),
            began: Mutex::new(Instant::now()),
            took: Mutex::new(Histogram::new(3)?),
        }))
    }

    /// Waits for all; of them the first is the last to go on, a while after the others.
    pub async fn begin(&self, number: u32) {
        self.meet.wait().await;
        if number == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// One is through.
    ///
    /// # Errors
    ///
    /// None in practice.
    pub fn through(&self) -> Fallible {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        let took = began.elapsed().as_micros().try_into()?;
        let mut all = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(all.record(took)?)
    }

    /// Shows what was measured.
    pub fn print(&self, what: &str) {
        let took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile| Duration::from_micros(took.value_at_quantile(quantile));
        println!(
            "{what}: {} inside after the last one's enter, p50 {:.2?} p99 {:.2?} max {:.2?} ({} entries)",
            self.party,
            at(0.5),
            at(0.99),
            at(1.0),
            took.len()
        );
    }
}

/// Waits for the participants, and passes on the first failure.
///
/// # Errors
///
/// That of a participant.
pub async fn all_of(mut tasks: tokio::task::JoinSet<Fallible>) -> Fallible {
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

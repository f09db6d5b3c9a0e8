//! The cases of events, on a store to which nothing happens: they hold, and those that expect a loss miss it.

use std::time::Duration;

use tenure_conformance::{Case, FaultLayer, Harness, Linked, Need, Operator, Runner, Subject, async_trait};
use tenure_core::{Result, SessionId, Store};
use tenure_memory::MemoryConfig;

use crate::planted::paused;

/// A harness whose events change nothing.
struct Uneventful(FaultLayer, Vec<Need>);

#[async_trait]
impl Harness for Uneventful {
    async fn connect(&self) -> Result<Store> {
        self.0.connect().await
    }

    fn offers(&self) -> &[Need] {
        &self.1
    }

    async fn linked(&self) -> Result<Linked> {
        self.0.linked().await
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }
}

#[async_trait]
impl Operator for Uneventful {
    async fn keys(&self) -> Result<Vec<String>> {
        self.0.operator().unwrap().keys().await
    }

    async fn revoke(&self, session: &SessionId) -> Result<()> {
        self.0.operator().unwrap().revoke(session).await
    }

    async fn restart(&self) -> Result<()> {
        Ok(())
    }

    async fn snapshot(&self) -> Result<()> {
        Ok(())
    }

    async fn restore(&self) -> Result<()> {
        Ok(())
    }

    async fn clock_forward(&self, _: Duration) -> Result<()> {
        Ok(())
    }

    async fn clock_back(&self, _: Duration) -> Result<()> {
        Ok(())
    }

    async fn lag(&self) -> Result<()> {
        Ok(())
    }

    async fn fail_over(&self) -> Result<()> {
        Ok(())
    }

    async fn lose_minority(&self) -> Result<()> {
        Ok(())
    }
}

const EVENTS: &[Need] = &[
    Need::Restart,
    Need::Restore,
    Need::ClockForward,
    Need::ClockBack,
    Need::Failover,
    Need::LoseMinority,
];

struct Quiet;

#[async_trait]
impl Subject for Quiet {
    fn name(&self) -> &str {
        "a store without events"
    }

    async fn harness(&self, _: &Case) -> Result<Box<dyn Harness>> {
        let layer = crate::memory::harness(MemoryConfig::new())?;
        let offers = [EVENTS, &[Need::Survive, Need::Silence, Need::Keys]].concat();
        Ok(Box::new(Uneventful(layer, offers)))
    }

    fn takes(&self, case: &Case) -> bool {
        case.needs.iter().any(|need| EVENTS.contains(need))
    }
}

#[test]
fn event_that_changes_nothing_is_survived() {
    let report = paused(Runner::paused().run(&Quiet));
    let failures = report.failures();
    let (missed, others): (Vec<String>, Vec<String>) =
        failures.into_iter().partition(|failure| failure.starts_with("o4_"));
    assert!(others.is_empty(), "{others:#?}");
    // A restore that takes nothing away ends no holding.
    let missing = |case: &str| !missed.iter().any(|failure| failure.starts_with(case));
    assert!(!missing("o4_holdings_of_a_lost_history_end"), "{missed:#?}");
    assert!(missed.len() <= 2, "{missed:#?}");
    println!("{}", report.summary());
}

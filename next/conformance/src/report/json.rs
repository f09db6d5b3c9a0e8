//! The report as JSON, for other programs.

use serde_json::{Value, json};

use super::{Report, Result};
use crate::outcome::Outcome;

impl Report {
    /// Returns the report as JSON: the store, its claims, and every case with its outcome.
    pub fn to_json(&self) -> Value {
        let claims = self.claims().into_iter().map(|claim| {
            json!({
                "line": claim.line.title(),
                "rule": claim.line.rule(),
                "value": claim.value,
                "reason": claim.reason,
                "shown": claim.shown,
                "counterexamples": claim.counterexamples,
            })
        });
        let flaky = self
            .flaky()
            .into_iter()
            .map(|(trial, why)| json!({ "trial": trial, "why": why }));
        json!({
            "store": self.store,
            "deployment": self.guarantees.as_ref().map(|guarantees| &guarantees.deployment),
            "passed": self.passed(),
            "failures": self.failures(),
            "flaky": flaky.collect::<Vec<_>>(),
            "claims": claims.collect::<Vec<_>>(),
            "cases": self.results.iter().map(case).collect::<Vec<_>>(),
        })
    }
}

fn case(result: &Result) -> Value {
    let reason = match &result.outcome {
        Outcome::NotPromised { reason, .. } => Some(reason),
        _ => None,
    };
    json!({
        "id": result.case.id,
        "rule": result.case.rule,
        "title": result.case.title,
        "line": result.case.line.map(|line| line.title()),
        "outcome": result.outcome.word(),
        "seen": result.outcome.seen(),
        "reason": reason,
        "millis": u64::try_from(result.took.as_millis()).unwrap_or(u64::MAX),
        "repeated": result.repeated,
    })
}

//! The one runner: limits, repetition by meaning, and a watch on the machine.
//!
//! A counterexample is a verdict, and is never repeated. A case that could not judge (a limit was missed, the store was
//! unavailable, a control failed) runs again alone, with doubled limits, at most twice.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tenure_core::{ErrorKind, Guarantees};

use crate::case::{Attack, Case, Promise};
use crate::harness::{Harness, Subject};
use crate::outcome::Outcome;
use crate::report::{Report, Result as CaseResult};
use crate::table::{Trial, trials};
use crate::tools::{PACE, PROMPT, Pace, guarantees};

/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(120);

/// How often a case that could not judge is repeated.
const REPETITIONS: u32 = 2;

/// Runs cases on a store.
///
/// A runner works on the runtime of its caller, in one task. With [`paused`](Self::paused) that runtime has a paused
/// clock.
#[derive(Clone, Debug)]
pub struct Runner {
    limit: Duration,
    slack: Duration,
    paused: bool,
    only: Option<String>,
}

impl Default for Runner {
    fn default() -> Self {
        Self::new()
    }
}

impl Runner {
    /// Creates a runner whose verdicts do not depend on the speed of the machine: what must happen may take 30 seconds.
    pub fn new() -> Self {
        Self {
            limit: LIMIT,
            slack: PROMPT,
            paused: false,
            only: None,
        }
    }

    /// Creates a runner for a paused clock. No machine is slow there: nothing is repeated, and a limit that was missed
    /// is a broken promise.
    pub fn paused() -> Self {
        Self {
            slack: Duration::from_millis(500),
            paused: true,
            ..Self::new()
        }
    }

    /// Sets how late a task may run on this machine: what bounds on time are judged with.
    #[must_use]
    pub fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// Sets how long a case may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs only the cases and rows whose names contain `pattern`, a plain substring. The option `--only` of `tenure conform`
    /// takes a glob instead, which matches the whole name.
    #[must_use]
    pub fn only(mut self, pattern: impl Into<String>) -> Self {
        self.only = Some(pattern.into());
        self
    }

    /// Runs every case that `subject` takes, side by side.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the clean-up of the cases that run to their TTLs.
    pub async fn run(&self, subject: &dyn Subject) -> Report {
        let chosen = trials().into_iter().filter_map(|mut trial| {
            let only = self.only.as_deref();
            let named = |id: &str| only.is_none_or(|only| id.contains(only));
            let whole = named(trial.id);
            trial
                .cases
                .retain(|case| (whole || named(case.id)) && subject.takes(case));
            (!trial.cases.is_empty()).then_some(trial)
        });
        self.run_trials(subject, chosen.collect()).await
    }

    /// Runs `trials` side by side, then repeats alone those that could not judge.
    pub async fn run_trials(&self, subject: &dyn Subject, trials: Vec<Trial>) -> Report {
        let canary = (!self.paused).then(Canary::start);
        let runs = trials
            .into_iter()
            .map(|trial| self.first(subject, trial, canary.as_ref()));
        let mut runs: Vec<Run> = stream::iter(runs).buffered(subject.parallel().max(1)).collect().await;
        for run in &mut runs {
            self.repeat(subject, run, canary.as_ref()).await;
        }
        let guarantees = runs.iter_mut().find_map(|run| run.guarantees.take());
        let results = runs.into_iter().flat_map(Run::results).collect();
        Report::new(subject.name(), guarantees, results)
    }

    /// Runs one trial, and repeats it if it could not judge.
    pub async fn run_trial(&self, subject: &dyn Subject, trial: &Trial) -> Report {
        self.run_trials(subject, vec![trial.clone()]).await
    }

    async fn first(&self, subject: &dyn Subject, trial: Trial, canary: Option<&Canary>) -> Run {
        let started = Instant::now();
        let attempt = self.attempt(subject, &trial, 1).await;
        let mut run = Run {
            outcomes: attempt.outcomes,
            guarantees: attempt.guarantees,
            took: started.elapsed(),
            repeated: Vec::new(),
            excused: true,
            trial,
        };
        run.note(canary, started, attempt.ttl);
        run
    }

    async fn repeat(&self, subject: &dyn Subject, run: &mut Run, canary: Option<&Canary>) {
        for _ in 0..REPETITIONS {
            if self.paused || !run.outcomes.iter().any(Outcome::is_unjudged) {
                break;
            }
            let started = Instant::now();
            let again = self.attempt(subject, &run.trial, 2).await;
            for (outcome, again) in run.outcomes.iter_mut().zip(again.outcomes) {
                // A counterexample counts, whichever attempt showed it.
                if outcome.is_unjudged() || matches!(again, Outcome::Violated { .. }) {
                    *outcome = again;
                }
            }
            run.took += started.elapsed();
            run.note(canary, started, again.ttl);
        }
    }

    /// Makes the harness, attacks and cleans up.
    async fn attempt(&self, subject: &dyn Subject, trial: &Trial, scale: u32) -> Attempt {
        let limit = self.limit * scale;
        let all = |outcome: Outcome| vec![outcome; trial.cases.len()];
        let made = tokio::time::timeout(limit, subject.harness(&trial.cases[0])).await;
        let harness = match made {
            Ok(Ok(harness)) => harness,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.chain().to_string(),
                    _ => format!("it took more than {limit:?}"),
                };
                let outcome = Outcome::unjudged(format!("the harness could not be made: {why}"));
                return Attempt::without_harness(all(self.judged(outcome)));
            }
        };
        let pace = Pace {
            scale,
            slack: self.slack,
            paused: self.paused,
        };
        let attack = PACE.scope(pace, attack(&*harness, &trial.cases));
        let attack = AssertUnwindSafe(tokio::time::timeout(limit, attack)).catch_unwind();
        let (outcomes, guarantees) = match attack.await {
            Ok(Ok(judged)) => judged,
            Ok(Err(_)) => (
                all(Outcome::unjudged(format!("the case did not end within {limit:?}"))),
                None,
            ),
            Err(panic) => (all(Outcome::violated(format!("a panic: {}", words(&*panic)))), None),
        };
        let cleaned = tokio::time::timeout(limit, harness.clean_up()).await;
        let judged = |outcome: Outcome| match &cleaned {
            Ok(Ok(())) => self.judged(outcome),
            Ok(Err(error)) if error.kind() == ErrorKind::Internal && !matches!(outcome, Outcome::Violated { .. }) => {
                Outcome::violated(format!("after the case: {}", error.chain()))
            }
            Ok(Err(error)) => self
                .judged(outcome)
                .with_note(&format!("what was left could not be removed: {}", error.chain())),
            Err(_) => self
                .judged(outcome)
                .with_note("what was left could not be removed in time"),
        };
        Attempt {
            outcomes: outcomes.into_iter().map(judged).collect(),
            guarantees,
            ttl: harness.ttl(),
        }
    }

    /// Judges a missing judgement under a paused clock, where no machine is slow.
    fn judged(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Unjudged { why } if self.paused => Outcome::violated(why),
            outcome => outcome,
        }
    }
}

/// One attempt at a trial.
struct Attempt {
    outcomes: Vec<Outcome>,
    guarantees: Option<Guarantees>,
    ttl: Duration,
}

impl Attempt {
    fn without_harness(outcomes: Vec<Outcome>) -> Self {
        Self {
            outcomes,
            guarantees: None,
            ttl: Duration::MAX,
        }
    }
}

/// A trial and what became of it.
struct Run {
    trial: Trial,
    outcomes: Vec<Outcome>,
    guarantees: Option<Guarantees>,
    took: Duration,
    /// Why it was repeated, each time.
    repeated: Vec<String>,
    /// Whether the machine stood still each time.
    excused: bool,
}

impl Run {
    /// Notes an attempt that could not judge, and whether the machine stood still in it.
    fn note(&mut self, canary: Option<&Canary>, since: Instant, ttl: Duration) {
        let Some(unjudged) = self.outcomes.iter_mut().find(|outcome| outcome.is_unjudged()) else {
            return;
        };
        let Some(canary) = canary else {
            return; // Nothing is repeated.
        };
        let stalled = canary.worst_since(since);
        if stalled > ttl / 4 {
            *unjudged = unjudged
                .clone()
                .with_note(&format!("the machine stood still for {stalled:?}"));
        } else {
            self.excused = false;
        }
        self.repeated.push(unjudged.seen().to_owned());
    }

    fn results(self) -> Vec<CaseResult> {
        let results = self.trial.cases.into_iter().zip(self.outcomes);
        let result = |(case, outcome)| CaseResult {
            case,
            outcome,
            took: self.took,
            trial: self.trial.id,
            repeated: self.repeated.clone(),
            excused: self.excused,
        };
        results.map(result).collect()
    }
}

/// Attacks, and judges each outcome by what the store promises.
async fn attack(harness: &dyn Harness, cases: &[Case]) -> (Vec<Outcome>, Option<Guarantees>) {
    let promises = match guarantees(harness).await {
        Ok(guarantees) => guarantees,
        Err(outcome) => return (vec![outcome; cases.len()], None),
    };
    let lacks = cases[0].needs.iter().find(|need| !harness.offers().contains(need));
    let outcomes = match lacks {
        Some(need) => {
            let why = format!("there is no way to {}", need.describe());
            vec![Outcome::excused(why); cases.len()]
        }
        None => outcomes(harness, cases).await,
    };
    let judge = |(case, outcome): (&Case, Outcome)| match case.promise(&promises) {
        Promise::Made => outcome,
        Promise::Denied { line, reason } => outcome.of_a_denial(line, reason),
    };
    let outcomes = cases.iter().zip(outcomes).map(judge).collect();
    (outcomes, Some(promises))
}

async fn outcomes(harness: &dyn Harness, cases: &[Case]) -> Vec<Outcome> {
    if let Attack::Scene(play, _) = cases[0].attack {
        let role = |case: &Case| match case.attack {
            Attack::Scene(_, role) | Attack::Cell(_, role) => Some(role),
            Attack::Single(_) => None,
        };
        let roles: Vec<_> = cases.iter().filter_map(role).collect();
        return play(harness, &roles).await;
    }
    let mut outcomes = Vec::new();
    for case in cases {
        let verdict = match case.attack {
            Attack::Single(attack) => attack(harness).await,
            Attack::Cell(attack, role) => attack(harness, role).await,
            Attack::Scene(..) => Err(Outcome::not_run("a scene among single cases")),
        };
        outcomes.push(verdict.unwrap_or_else(|outcome| outcome));
    }
    outcomes
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    text.or(owned).unwrap_or("without a message")
}

/// A thread that sleeps, and records by how much it overslept: how long the machine had no time for this process.
struct Canary {
    stalls: Arc<Mutex<Vec<(Instant, Duration)>>>,
    ended: Arc<AtomicBool>,
}

impl Canary {
    const TICK: Duration = Duration::from_millis(10);

    fn start() -> Self {
        let canary = Self {
            stalls: Arc::default(),
            ended: Arc::default(),
        };
        let (stalls, ended) = (Arc::clone(&canary.stalls), Arc::clone(&canary.ended));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(Self::TICK);
                let overslept = before.elapsed().saturating_sub(Self::TICK);
                if overslept > Self::TICK * 10 {
                    stalls.lock().push((Instant::now(), overslept));
                }
            }
        });
        canary
    }

    fn worst_since(&self, since: Instant) -> Duration {
        let stalls = self.stalls.lock();
        let recent = stalls.iter().filter(|(at, _)| *at >= since);
        recent.map(|(_, stall)| *stall).max().unwrap_or_default()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

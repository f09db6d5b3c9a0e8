//! The explorations.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};
use tenure_core::interleavings::{Scenario, plant, scenarios};

/// The longest exploration of one scenario by one scheduler, or of one planted fault.
const LONGEST: Duration = Duration::from_secs(3);

/// How many changes of priority a PCT schedule has: the bugs of so many ordered events.
const DEPTH: usize = 3;

fn number(variable: &str, default: usize) -> usize {
    let value = std::env::var(variable).ok().and_then(|value| value.parse().ok());
    value.unwrap_or(default)
}

/// Explores with one scheduler. Returns how many schedules were run, and whether none failed.
fn explore(scenario: Scenario, scheduler: impl Scheduler + Send + 'static, quiet: bool) -> (usize, bool) {
    let begun = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&begun);
    // In a thread of its own: a failed exploration leaves the thread's state behind.
    let exploring = thread::spawn(move || {
        let mut config = Config::new();
        config.max_time = Some(LONGEST);
        config.silence_warnings = true;
        config.failure_persistence = match quiet {
            true => FailurePersistence::None,
            false => FailurePersistence::Print,
        };
        Runner::new(scheduler, config).run(move || {
            count.fetch_add(1, Ordering::Relaxed);
            (scenario.run)();
        })
    });
    let held = exploring.join().is_ok();
    (begun.load(Ordering::Relaxed), held)
}

/// Explores a scenario with both schedulers. Returns the schedules, and the names of the schedulers that failed.
fn explore_all(scenario: Scenario, seed: u64, schedules: usize, quiet: bool) -> (usize, Vec<&'static str>) {
    let (random, held) = explore(scenario, RandomScheduler::new_from_seed(seed, schedules), quiet);
    let mut failed = Vec::new();
    if !held {
        failed.push("random");
        if quiet {
            return (random, failed);
        }
    }
    let (pct, held) = explore(scenario, PctScheduler::new_from_seed(seed, DEPTH, schedules), quiet);
    if !held {
        failed.push("PCT");
    }
    (random + pct, failed)
}

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let replayed = arguments.first().is_some_and(|first| first == "--replay");
    let wanted = arguments.get(usize::from(replayed)).map_or("", String::as_str);
    let chosen: Vec<_> = scenarios().into_iter().filter(|it| it.name.contains(wanted)).collect();
    if replayed {
        let (Some(scenario), Some(schedule)) = (chosen.first(), arguments.get(2)) else {
            eprintln!("run.sh --replay SCENARIO SCHEDULE");
            return ExitCode::from(2);
        };
        let (_, held) = explore(*scenario, ReplayScheduler::new_from_encoded(schedule), false);
        return if held { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let (seed, schedules) = (number("TENURE_SEED", 1) as u64, number("TENURE_SCHEDULES", 20_000));
    let begun = Instant::now();
    let (mut total, mut broken) = (0, 0);
    for scenario in &chosen {
        let (explored, failed) = explore_all(*scenario, seed, schedules, false);
        total += explored;
        match failed.is_empty() {
            true => println!("held    {explored:6}  {}", scenario.name),
            false => {
                broken += 1;
                println!(
                    "BROKEN  {explored:6}  {}: by {failed:?} from seed {seed}",
                    scenario.name
                );
            }
        }
    }
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for scenario in &chosen {
        for fault in scenario.faults {
            plant(fault);
            let (explored, failed) = explore_all(*scenario, seed, schedules, true);
            match failed.is_empty() {
                false => println!("found   {explored:6}  {}: {fault}", scenario.name),
                true => {
                    broken += 1;
                    println!("MISSED  {explored:6}  {}: {fault}", scenario.name);
                }
            }
        }
    }
    plant("");
    std::panic::set_hook(shown);
    println!(
        "{total} schedules of {} scenarios from seed {seed} in {:.0?}",
        chosen.len(),
        begun.elapsed()
    );
    if broken == 0 && !chosen.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

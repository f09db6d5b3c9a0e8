//! The scripts on a real server, under random schedules and a virtual clock. After every script the answer and the keys are
//! compared with rules or a model. A failure prints its seed; `TENURE_SEED` repeats one schedule.

mod bench;
mod ends;
pub(crate) mod keys;
mod requests;
mod rules;
mod schedule;
mod server;
mod views;
pub(crate) mod work;
mod work_rules;
mod world;

use server::Scripts;
pub(crate) use server::{Bug, Server};

/// The schedules of one kind: runs that of a seed, and returns its number of steps or what was wrong.
pub(crate) type Schedule = fn(&mut Server, Scripts, u64) -> Result<u64, String>;

/// Runs a schedule of wait queues and leases.
pub(crate) fn wait_queues(server: &mut Server, scripts: Scripts, seed: u64) -> Result<u64, String> {
    if seed == 1 {
        schedule::set_back_the_clock(server, scripts.clone())?;
    }
    schedule::run(server, scripts, seed)
}

/// Runs schedules from the seed `first` on, until `steps` were made. Returns their number, or the first failure.
fn hunt(run: Schedule, steps: u64, server: &mut Server, first: u64, bug: Option<&Bug>) -> Result<u64, String> {
    let (small, usual) = (server.load(3, bug), server.load(100, bug));
    let (mut seed, mut done) = (first, 0);
    while done < steps {
        let scripts = if seed % 4 == 0 { &usual } else { &small };
        done += run(server, scripts.clone(), seed)?;
        seed += 1;
    }
    Ok(done)
}

/// Checks that the scripts hold for `steps`.
pub(crate) fn hold(run: Schedule, first: u64, steps: u64) {
    let mut server = Server::start();
    let only = std::env::var("TENURE_SEED").ok().and_then(|seed| seed.parse().ok());
    let (first, steps) = only.map_or((first, steps), |seed| (seed, 1));
    let hunted = hunt(run, steps, &mut server, first, None);
    let steps = hunted.unwrap_or_else(|failure| panic!("{failure}"));
    println!("from seed {first}: {steps} steps");
}

/// Checks that the schedules find each of `bugs` within `steps`. `TENURE_BUG` selects some by a part of the name.
pub(crate) fn find(run: Schedule, steps: u64, bugs: &[Bug]) {
    let mut server = Server::start();
    let mut missed = Vec::new();
    let only = std::env::var("TENURE_BUG").unwrap_or_default();
    for bug in bugs.iter().filter(|bug| bug.0.contains(&only)) {
        match hunt(run, steps, &mut server, 1, Some(bug)) {
            Ok(steps) => {
                println!("{}: NOT FOUND in {steps} steps", bug.0);
                missed.push(bug.0);
            }
            Err(found) => {
                let lines: Vec<_> = found.lines().take(2).collect();
                println!("{}: {}", bug.0, lines.join("; "));
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

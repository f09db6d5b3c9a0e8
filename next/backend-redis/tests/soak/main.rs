//! Long hunts over the scripts, from a random seed. `TENURE_STEPS` sets the number of steps.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod bugs;
#[path = "../gate/scripts/hunts.rs"]
mod hunts;

fn hold(run: hunts::Schedule) {
    let steps = std::env::var("TENURE_STEPS").ok().and_then(|steps| steps.parse().ok());
    hunts::hold(run, tenure_core::clock::random() >> 20, steps.unwrap_or(500_000));
}

#[test]
fn wait_queues_under_long_random_schedules_keep_the_rules() {
    hold(hunts::wait_queues);
}

#[test]
fn keys_under_long_random_schedules_follow_the_model() {
    hold(hunts::keys::run);
}

#[test]
fn work_queues_under_long_random_schedules_follow_the_model() {
    hold(hunts::work::run);
}

#[test]
fn planted_bugs_of_wait_queues_are_found() {
    hunts::find(hunts::wait_queues, 150_000, bugs::WAIT_QUEUES);
}

#[test]
fn planted_bugs_of_work_queues_are_found() {
    hunts::find(hunts::work::run, 20_000, bugs::WORK_QUEUES);
}

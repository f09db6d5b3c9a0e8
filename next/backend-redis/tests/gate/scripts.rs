//! Short hunts over the scripts, and planted bugs that they have to find. The long ones are in the soak tier.

mod bugs;
#[path = "scripts/hunts.rs"]
mod hunts;
#[path = "../soak/bugs.rs"]
mod soak_bugs;

/// Otherwise a change of the scripts would be noticed by the soak tier alone.
#[test]
fn every_planted_bug_changes_a_script() {
    let mut server = hunts::Server::start();
    for bug in soak_bugs::WAIT_QUEUES.iter().chain(soak_bugs::WORK_QUEUES) {
        server.load(100, Some(bug));
    }
}

#[test]
fn wait_queues_under_random_schedules_keep_the_rules() {
    hunts::hold(hunts::wait_queues, 1, 40_000);
}

#[test]
fn keys_under_random_schedules_follow_the_model() {
    hunts::hold(hunts::keys::run, 1, 3_000);
}

#[test]
fn work_queues_under_random_schedules_follow_the_model() {
    hunts::hold(hunts::work::run, 1, 3_000);
}

#[test]
fn planted_bugs_of_keys_are_found() {
    hunts::find(hunts::keys::run, 4_000, bugs::KEYS);
}

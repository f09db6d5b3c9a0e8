//! Stress of the embedded store under a paused clock: random clients, random faults, and the checkers as judges.

use tenure_conformance::stress::{Histories, Plan, Summary, run};
use tenure_conformance::{Harness, Need};
use tenure_memory::{Bug, MemoryConfig};

use crate::memory::harness;
use crate::planted::paused;

/// Returns the histories of a run, and the verdict, or why the run ended early.
fn judged(config: MemoryConfig, plan: &Plan) -> Result<(Histories, Summary), String> {
    paused(async {
        let harness = harness(config).unwrap();
        let histories = run(&harness, plan).await.map_err(|outcome| outcome.to_string())?;
        let guarantees = harness.connect().await.unwrap().guarantees().await.unwrap();
        match histories.judge(&guarantees) {
            Ok(summary) => Ok((histories, summary)),
            Err(found) => Err(format!("{found}\nfaults: {:#?}", histories.faults)),
        }
    })
}

fn text(histories: &Histories) -> String {
    let mut text = Vec::new();
    histories.write(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_hundred_random_histories_have_no_violation() {
    let first = std::env::var("TENURE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let count = std::env::var("TENURE_SEEDS").map_or(100, |count| count.parse().unwrap());
    let (mut grants, mut refused, mut shared, mut waited, mut redelivered, mut committed) = (0, 0, 0, 0, 0, 0);
    for seed in first..first + count {
        let plan = Plan::new(seed).turns(20);
        let (_, summary) = judged(MemoryConfig::new(), &plan).unwrap_or_else(|found| panic!("seed {seed}: {found}"));
        grants += summary.lock.grants + summary.rw_lock.grants + summary.election.grants;
        refused += summary.lock.refused + summary.rw_lock.refused + summary.election.refused;
        shared += summary.rw_lock.shared;
        waited += summary.lock.waited + summary.rw_lock.waited + summary.election.waited;
        redelivered += summary.queue.redelivered;
        committed += summary.lists.committed;
    }
    // Runs in which nothing happens show nothing.
    println!(
        "{count} seeds: {grants} grants, {refused} refused, {shared} shared, {waited} seen waiting, {redelivered} redelivered, {committed} commits"
    );
    assert!(
        grants > 20 * count as usize && shared > 0 && waited > 0 && redelivered > 0 && committed > 5 * count as usize
    );
    assert!(count < 100 || refused > 0, "no late access was refused at a gate");
}

#[test]
fn runs_with_one_seed_have_the_same_histories() {
    for seed in [3, 17] {
        let once = || text(&judged(MemoryConfig::new(), &Plan::new(seed)).unwrap().0);
        let (first, second) = (once(), once());
        assert!(first.len() > 20_000, "{} bytes", first.len());
        let differs = first
            .lines()
            .zip(second.lines())
            .enumerate()
            .find(|(_, (one, other))| one != other);
        assert!(first == second, "seed {seed}: {differs:#?}");
    }
}

#[test]
fn planted_defect_is_found_by_stress() {
    let bugs = [
        Bug::TwoHolders,
        Bug::TokenRepeated,
        Bug::LeaveReorders,
        Bug::ReaderOvertakes,
        Bug::ReaderBesideWriter,
        Bug::ItemToTwo,
        Bug::NackLosesItem,
        Bug::PriorityIgnored,
        Bug::ObserverGoesBack,
        Bug::CompareIgnored,
    ];
    let mut missed = Vec::new();
    for bug in bugs {
        let found = (1..=5).any(|seed| judged(MemoryConfig::new().plant(bug), &Plan::new(seed)).is_err());
        if !found {
            missed.push(bug);
        }
    }
    assert!(missed.is_empty(), "not found in five runs: {missed:?}");
}

#[test]
fn stress_has_every_kind_of_fault() {
    let offers = paused(async { harness(MemoryConfig::new()).unwrap().offers().to_vec() });
    for need in [Need::Silence, Need::Mute, Need::Hold, Need::Cut, Need::Revoke] {
        assert!(offers.contains(&need), "{need:?} is missing");
    }
}

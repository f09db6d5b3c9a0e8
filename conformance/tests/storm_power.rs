//! What the long form catches: for each way to break the embedded store, in how many of some runs, each with a seed
//! of its own, on one thread under a paused clock.
//!
//! `cargo test -p tenure-conformance --test storm_power -- --ignored --nocapture` runs twenty seeds of each and prints the
//! table.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[allow(dead_code)] // What the cases look for.
#[path = "mutants/store.rs"]
mod store;
#[allow(dead_code)] // What the squares look for.
#[path = "squares/wrapper.rs"]
mod wrapper;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure_conformance::Harness;
use tenure_conformance::roles::Role;
use tenure_conformance::storm::{self, Plan, Verdict};

use store::Bug;
use store::election::Bug as OfElections;
use store::queue::Bug as OfQueues;
use wrapper::{At, Bug as Generic, Trouble};

/// One way to break the store.
#[derive(Clone, Copy, Debug)]
enum Mutant {
    Store(Bug),
    Generic(Role, Generic),
}

impl Mutant {
    fn name(self) -> String {
        match self {
            Self::Store(bug) => format!("{bug:?}"),
            Self::Generic(role, bug) => format!("{bug:?}, {}", role.word()),
        }
    }

    fn stage(self) -> Box<dyn Harness> {
        match self {
            Self::Store(bug) => Box::new(store::Stage::new(bug).unwrap()),
            Self::Generic(role, bug) => Box::new(wrapper::Stage::new(role, bug)),
        }
    }
}

/// Nothing is broken: the wrappers themselves.
const SOUND: [Mutant; 2] = [
    Mutant::Store(Bug::Nothing),
    Mutant::Generic(Role::Lock, Generic::Nothing),
];

/// What is broken for each of these roles.
const OF_ROLES: &[(Generic, &[Role])] = {
    use Role::*;
    &[
        (Generic::OutlivesItsSession, &[Lock, Writer]),
        (
            Generic::EndsAfter(1.1),
            &[Lock, Writer, Leadership, Delivery, Participant],
        ),
        (Generic::EndsAfter(2.5), &[Reader, Batch]),
        (Generic::PartOfTheTtl(0.3), &[Lock, Leadership]),
        (
            Generic::FreedBy(Trouble::Silence),
            &[Lock, Writer, Leadership, Delivery],
        ),
        (
            Generic::SharedWithAll,
            &[Lock, Writer, Leadership, Delivery],
        ),
        (Generic::ConstantToken, &[Writer, Delivery]),
        (
            Generic::CancelTurnsTheOrder(At::Middle),
            &[Lock, Writer, Leadership],
        ),
        (
            Generic::GrantIsLate(Duration::from_millis(250)),
            &[Lock, Writer, Leadership],
        ),
        (Generic::Polls(Duration::from_millis(500)), &[Lock]),
        (
            Generic::DeafAfter(Trouble::Silence),
            &[Lock, Leadership, Delivery],
        ),
        (Generic::TryQueues, &[Lock, Leadership]),
        (Generic::ReleasesNothing, &[Lock, Writer]),
        (Generic::ReleasesTheNext, &[Lock, Writer]),
        (Generic::LetsPass, &[Hold]),
        (Generic::LosesTheRestOfABatch(1), &[Batch]),
        (Generic::DropsWritesBeyond(64), &[Lock]),
        (Generic::DropsDeletes, &[Lock]),
        (Generic::CutsValues(65_536), &[Lock]),
        (Generic::PriorityBits(8), &[Lock]),
        (Generic::LosesItemsBeyond(512), &[Lock]),
    ]
};

fn mutants() -> Vec<Mutant> {
    let stores = [
        Bug::NoExclusion,
        Bug::ConstantToken,
        Bug::BlindCommit,
        Bug::UnfencedCommit,
        Bug::Polling,
        Bug::Queue(OfQueues::DeletesOnTake),
        Bug::Queue(OfQueues::Shared),
        Bug::Queue(OfQueues::NoPriorities),
        Bug::Election(OfElections::EverybodyLeads),
        Bug::Election(OfElections::ConstantToken),
        Bug::Election(OfElections::GoesBack),
        Bug::Election(OfElections::Unfenced),
        Bug::Election(OfElections::Echo),
    ];
    let stores = stores.into_iter().map(Mutant::Store);
    let generic = OF_ROLES
        .iter()
        .flat_map(|(bug, roles)| roles.iter().map(|role| Mutant::Generic(*role, *bug)));
    stores.chain(generic).collect()
}

/// What came of a run: how it was caught, if it was.
fn caught(mutant: Mutant, seed: u64) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let run = runtime.block_on(async {
        let stage = mutant.stage();
        storm::run(&*stage, seed, &Plan::paused()).await
    });
    match run.verdict {
        Verdict::Violated { what, .. } => Some(what),
        _ => None,
    }
}

/// Runs every pair on two threads.
fn all(pairs: &[(Mutant, u64)]) -> Vec<Option<String>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; pairs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some((mutant, seed)) = pairs.get(place) else {
                        return;
                    };
                    let at = std::time::Instant::now();
                    let what = caught(*mutant, *seed);
                    let told = what.as_deref().unwrap_or("borne").lines().next();
                    let told: String = told.unwrap_or_default().chars().take(300).collect();
                    println!("{} {seed} {:?}: {told}", mutant.name(), at.elapsed());
                    results.lock().unwrap()[place] = what;
                }
            });
        }
    });
    results.into_inner().unwrap()
}

/// Some of each primitive, and the sound wrappers.
#[test]
fn mutants_of_each_primitive_are_caught_and_sound_stores_pass() {
    let late = Duration::from_millis(250);
    let broken = [
        Mutant::Store(Bug::NoExclusion),
        Mutant::Store(Bug::ConstantToken),
        Mutant::Store(Bug::BlindCommit),
        Mutant::Store(Bug::Queue(OfQueues::DeletesOnTake)),
        Mutant::Store(Bug::Queue(OfQueues::Shared)),
        Mutant::Store(Bug::Queue(OfQueues::NoPriorities)),
        Mutant::Store(Bug::Election(OfElections::EverybodyLeads)),
        Mutant::Store(Bug::Election(OfElections::ConstantToken)),
        Mutant::Generic(Role::Delivery, Generic::SharedWithAll),
        Mutant::Generic(Role::Hold, Generic::LetsPass),
        Mutant::Generic(Role::Writer, Generic::EndsAfter(1.1)),
        Mutant::Generic(Role::Lock, Generic::GrantIsLate(late)),
    ];
    for mutant in SOUND {
        let found = caught(mutant, 1);
        assert_eq!(found, None, "{}", mutant.name());
    }
    // Whatever the first seed does not catch, one of the next does.
    let mut left = broken.to_vec();
    for seed in 1..=4 {
        let pairs: Vec<_> = left.iter().map(|mutant| (*mutant, seed)).collect();
        let found = all(&pairs);
        let missed = left.into_iter().zip(found);
        left = missed
            .filter(|(_, what)| what.is_none())
            .map(|(mutant, _)| mutant)
            .collect();
    }
    assert!(left.is_empty(), "four seeds caught nothing of {left:?}");
}

/// The kind of finding: what stands before the first colon, or the first words.
fn kind(what: &str) -> String {
    let first = what.lines().next().unwrap_or_default();
    let head = first.split(':').next().unwrap_or_default();
    let head: Vec<&str> = head.split(' ').take(4).collect();
    match head.first() {
        Some(&"client") if first.contains("waited") => "waits in vain".to_owned(),
        Some(&"client") if first.contains("lost its") || first.contains("lost a") => {
            "a holding is lost".to_owned()
        }
        Some(&"client") => "no progress".to_owned(),
        _ => head.join(" "),
    }
}

#[test]
#[ignore = "twenty runs for each row: some ten minutes"]
fn print_the_table() {
    let seeds: u64 = std::env::var("TENURE_STORM_SEEDS").map_or(20, |seeds| seeds.parse().unwrap());
    let only = std::env::var("TENURE_STORM_ONLY").unwrap_or_default();
    let mutants: Vec<Mutant> = SOUND.into_iter().chain(mutants()).collect();
    let mutants: Vec<Mutant> = mutants
        .into_iter()
        .filter(|one| one.name().contains(&only))
        .collect();
    let pairs: Vec<(Mutant, u64)> = mutants
        .iter()
        .flat_map(|mutant| (1..=seeds).map(move |seed| (*mutant, seed)))
        .collect();
    let started = std::time::Instant::now();
    let found = all(&pairs);
    println!("{} runs in {:?}", pairs.len(), started.elapsed());
    let mut page = String::from(HEAD);
    let _ = write!(
        page,
        "The table is of {seeds} seeds (1 to {seeds}) for each row.\n\n| broken | caught | by |\n|---|---|---|\n"
    );
    for (number, mutant) in mutants.iter().enumerate() {
        let seeds = usize::try_from(seeds).unwrap();
        let of = &found[number * seeds..(number + 1) * seeds];
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for what in of.iter().flatten() {
            *kinds.entry(kind(what)).or_default() += 1;
        }
        let caught: usize = kinds.values().sum();
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, times)| format!("{kind} ({times})"))
            .collect();
        let by = match (caught, mutant.name().contains("Nothing")) {
            (0, false) => "**nothing: no seed catches it**".to_owned(),
            (0, true) => "the control: nothing is broken".to_owned(),
            _ => kinds.join(", "),
        };
        let _ = writeln!(page, "| `{}` | {caught}/{seeds} | {by} |", mutant.name());
    }
    println!("{page}");
}

const HEAD: &str = "# The power of the long form

How often a run of the long form on the embedded store, on one thread under a paused clock, catches a store that is
broken in one way.

A row names the way in which the store is broken, as `conformance/tests/mutants/` and `conformance/tests/squares/wrapper.rs`
have it, and the role for which it is. A row that no seed catches is left to the cases.

";

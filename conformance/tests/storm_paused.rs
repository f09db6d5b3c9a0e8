//! The long form on one thread under a paused clock: fast, and the same each time.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use tenure_conformance::Harness;
use tenure_conformance::stores::MemoryHarness;
use tenure_conformance::storm::{self, Plan, Run, Verdict};

fn paused(harness: &dyn Harness, seed: u64, plan: &Plan) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(storm::run(harness, seed, plan))
}

/// All files of a run, in one piece.
fn bytes(run: &Run) -> Vec<u8> {
    let folder = fresh_folder();
    let files = run.histories.write(&folder, "run").unwrap();
    let mut all = Vec::new();
    for file in files {
        all.extend(std::fs::read(file).unwrap());
    }
    std::fs::remove_dir_all(&folder).unwrap();
    all
}

fn fresh_folder() -> std::path::PathBuf {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    std::env::temp_dir().join(format!("tenure-paused-{}-{number}", std::process::id()))
}

#[test]
fn embedded_store_passes_under_a_paused_clock() {
    let seeds = std::env::var("TENURE_STORM_SEEDS").map_or(4, |seeds| seeds.parse().unwrap());
    let started = std::time::Instant::now();
    let mut time = std::time::Duration::ZERO;
    let first = std::env::var("TENURE_STORM_SEED").map_or(1, |seed| seed.parse().unwrap());
    for seed in first..first + seeds {
        let begun = std::time::Instant::now();
        let run = paused(&MemoryHarness::new(), seed, &Plan::paused());
        println!(
            "{seed}: {:?} {:?} {:?} {:?}",
            run.counts,
            run.faults,
            run.took,
            begun.elapsed()
        );
        time += run.took;
        if let Some(folder) = std::env::var_os("TENURE_STORM_KEEP") {
            let name = format!("seed-{seed}");
            run.histories.write(folder.as_ref(), &name).unwrap();
        }
        assert!(
            matches!(run.verdict, Verdict::Passed),
            "seed {seed}: {:?}",
            run.verdict
        );
    }
    println!("{time:?} of virtual time in {:?}", started.elapsed());
}

#[test]
fn two_runs_with_one_seed_have_the_same_histories() {
    for seed in [3, 17] {
        let run = || paused(&MemoryHarness::new(), seed, &Plan::paused());
        let (first, second) = (bytes(&run()), bytes(&run()));
        assert!(first.len() > 100_000, "{} bytes", first.len());
        if first != second {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (first, second) = (text(&first), text(&second));
            let differs = first.lines().zip(second.lines()).enumerate();
            let differs = differs.filter(|(_, (a, b))| a != b).take(3);
            panic!("seed {seed}: {:#?}", differs.collect::<Vec<_>>());
        }
    }
}

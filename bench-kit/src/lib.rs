//! What the benchmarks of all stores share: the loops that are the same on each, and how their figures
//! are taken and shown. What stands beside them (the bare client, another's algorithm) is in the
//! benchmark of each store.

pub mod barrier;
pub mod lock;
pub mod queue;

use std::str::FromStr;
use std::time::Duration;

use hdrhistogram::Histogram;

/// What a benchmark's steps end with.
pub type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How much to measure: the number on the command line. Without one `bench`, or `test` where this is
/// run for a moment to see that it works: `cargo bench` adds `--bench`, `cargo test --benches` does not.
pub fn how_much<T: FromStr>(bench: T, test: T) -> T {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().find_map(|argument| argument.parse().ok()) {
        Some(number) => number,
        None if arguments.iter().any(|argument| argument == "--bench") => bench,
        None => test,
    }
}

/// Runs a benchmark on two worker threads, whatever the machine has.
///
/// # Errors
///
/// The benchmark's.
pub fn on_two_workers(work: impl Future<Output = Fallible>) -> Fallible {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}

/// Times from a nanosecond to ten seconds.
///
/// # Errors
///
/// None in practice.
pub fn histogram() -> Fallible<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 10_000_000_000, 3)?)
}

/// A time as [`histogram`] counts it.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The median and the slowest hundredth of times in microseconds.
pub fn quantiles(micros: &Histogram<u64>) -> String {
    format!(
        "p50 {} us, p99 {} us",
        micros.value_at_quantile(0.5),
        micros.value_at_quantile(0.99)
    )
}

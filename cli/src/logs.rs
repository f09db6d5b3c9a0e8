//! What `-v` shows.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Logs of tenure's own crates go to stderr. Those of the stores' clients stay out at every
/// level: what they trace (requests, headers) may hold credentials.
pub(crate) fn start(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // A prefix: `tenure`, `tenure_core`, `tenure_etcd`, ...
    let ours = Targets::new().with_target("tenure", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(ours).with(lines).init();
}

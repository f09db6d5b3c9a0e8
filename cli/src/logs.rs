//! What `-v` shows.

use std::io::{self, Write};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Stderr for logs: texts of servers in them cannot do anything to a terminal, or forge a line.
struct Escaped;

impl Write for Escaped {
    /// Takes a whole event, as the formatter writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = format!(
            "{}\n",
            crate::output::printable(text.trim_end_matches('\n'))
        );
        io::stderr().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

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
        .with_writer(|| Escaped)
        .with_ansi(false);
    tracing_subscriber::registry().with(ours).with(lines).init();
}

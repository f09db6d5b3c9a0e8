//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

const AFTER: &str = "\
Exit codes:
  0   done
  1   a negative answer: a guarantee did not hold
  64  a command line that is not understood
  69  the store is unreachable
  70  a failure of tenure itself
  77  not permitted
  78  a bad URL or name

URLs:
  memory:                the embedded store, private to the connection
  memory:shared-name     the same, shared in the process
  redis://[user:password@]host:port[/db]
  redis+sentinel://[user:password@]host:port,host:port/service-name
  redis+cluster://[user:password@]host:port,host:port
  rediss, rediss+sentinel and rediss+cluster are the same with TLS.
  `guarantees` takes every URL, with ?namespace=NS, ?ttl=10s and ?client_label=TEXT.
  `conform` uses new namespaces `conform-...` of a server, and removes them after each case. Cases that would disturb its
  other clients do not run there. Of the embedded store it takes `memory:` alone.";

/// Distributed coordination: what a store guarantees, and whether it keeps its word.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, after_help = AFTER)]
pub(crate) struct Args {
    /// The URL of the store. `conform` takes several. Default: the embedded store
    #[arg(long, global = true, env = "TENURE_URL", hide_env_values = true)]
    pub(crate) url: Vec<String>,

    /// Prints one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Holds stores to what they guarantee: runs the conformance suite, side by side
    Conform(Conform),
    /// Prints what the store guarantees, each line with its reason, read from the live store
    Guarantees,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Conform {
    /// Runs only the cases whose whole name matches, such as 'l3_*'
    #[arg(long, value_name = "GLOB")]
    pub(crate) only: Option<String>,

    /// The form of the report. Default: table, or json with --json
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,

    /// Writes the report to a file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// A page of Markdown
    Markdown,
    /// One JSON object for each store, a line each
    Json,
}

/// Returns whether `pattern`, in which `*` stands for any text and `?` for any character, matches the whole of `text`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // After a mismatch the last star takes one character more: linear for one star, quadratic at worst.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

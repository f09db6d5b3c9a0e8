//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind as Clap;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::exit::{self, Failure};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a negative answer: a guarantee did not hold
  64   usage
  69   the store cannot be reached
  70   tenure itself failed
  75   the lock was not acquired (in time)
  76   the lock was lost while it was held
  77   not permitted
  78   bad URL or name
  126  the command could not be started, 127 it was not found
Otherwise the exit code is the command's own: 128+n if signal n killed it.

URLs:
  memory:                  the embedded store, private to this process
  etcd://[user:password@]host:port[,host:port...]/namespace?ttl=10s
                           etcd (cargo feature `etcd`); etcds:// for TLS";

/// Distributed locks for shells, operators and scripts.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The store. Without it, `memory:`, which is private to this process; `conform` tries every
    /// installed store then
    // The variable may hold a password: its value must not show in `--help`.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TENURE_URL",
        hide_env_values = true
    )]
    pub(crate) url: Vec<OsString>,

    /// For how long the store keeps what a silent holder holds: `500ms`, `10s`, `2m`
    #[arg(long, global = true, value_name = "DURATION", value_parser = positive)]
    pub(crate) ttl: Option<Duration>,

    /// The namespace, whatever the URL says
    #[arg(long, global = true, value_name = "NS")]
    pub(crate) namespace: Option<OsString>,

    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Log to stderr what happens; up to three times for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take a lock and hold it, or run a command under it
    ///
    /// Without CMD: prints `NAME token=N`, holds until SIGINT or SIGTERM, and releases. With CMD:
    /// runs it under the lock, with TENURE_NAME, TENURE_TOKEN and TENURE_SESSION in its
    /// environment, and exits with its code. If the lock is lost the command gets SIGTERM.
    #[command(after_help = EXIT_CODES)]
    Lock(Lock),
    /// Print what the store guarantees, each line with its reason, read from the live server
    Guarantees,
    /// Hold stores to what they guarantee: run the conformance suite and print the report
    ///
    /// Takes any number of --url. Without one: the embedded store, and every store whose server
    /// program is installed here, started for the purpose.
    Conform(Conform),
}

#[derive(Debug, Args)]
#[command(override_usage = "tenure lock [OPTIONS] NAME [-- CMD...]\n       \
                            tenure lock [OPTIONS] -- -NAME [-- CMD...]   (a name that begins with `-`)")]
pub(crate) struct Lock {
    /// The lock's name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    name: Option<OsString>,

    #[command(flatten)]
    pub(crate) wait: Wait,

    #[command(flatten)]
    pub(crate) hold: Hold,
}

impl Lock {
    /// The name, and the command to run under the lock (empty: none).
    pub(crate) fn subject(&self) -> Result<(&OsString, &[OsString]), Failure> {
        match (&self.name, self.hold.command.as_slice()) {
            (Some(name), command) => Ok((name, command)),
            // `lock -- -NAME -- CMD...`: only so can a name begin with a dash.
            (None, [name, rest @ ..]) if starts_with_dash(name) => match rest {
                [] => Ok((name, rest)),
                [dashes, command @ ..] if dashes == "--" => Ok((name, command)),
                _ => Err(Failure::usage(
                    "expected `--` between the lock's name and the command",
                )),
            },
            (None, _) => Err(Failure::usage(
                "the lock's NAME is missing: tenure lock NAME [-- CMD...]",
            )),
        }
    }
}

fn starts_with_dash(text: &OsString) -> bool {
    text.as_encoded_bytes().starts_with(b"-")
}

/// For how long to wait.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Do not wait: exit 75 if somebody holds it or waits for it
    #[arg(long = "try", conflicts_with = "wait")]
    pub(crate) no_wait: bool,

    /// Wait in line no longer than this, then exit 75. Without it, for as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
}

/// What to do while holding, for every command that holds something.
#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// After a loss the command gets SIGTERM, and SIGKILL if it still runs after this
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) kill_after: Duration,

    /// Exit with this instead of 75 when it was not acquired
    #[arg(long, value_name = "CODE", default_value_t = exit::NOT_ACQUIRED, hide_default_value = true)]
    pub(crate) not_acquired_code: u8,

    /// Exit with this instead of 76 when it was lost
    #[arg(long, value_name = "CODE", default_value_t = exit::LOST, hide_default_value = true)]
    pub(crate) lost_code: u8,

    /// The command to run, and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Conform {
    /// Only the cases whose name matches; `*` and `?` stand for any characters, any character
    #[arg(long, value_name = "GLOB")]
    pub(crate) only: Option<String>,

    /// The form of the report
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,

    /// Write the report to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// One JSON object a line
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration: write `500ms`, `10s` or `2m`".to_owned())
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be greater than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// The command line, or the exit code of a process that has said what there was to say.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = Cli::try_parse_from(&args).map_err(|error| match error.kind() {
        Clap::DisplayHelp | Clap::DisplayVersion => {
            // Nobody reads it (`tenure --help | head -1`): no failure of ours.
            let _ = error.print();
            ExitCode::from(exit::DONE)
        }
        // Clap exits with 2, which a command run under a lock may well use itself.
        _ => {
            let text = error.render().to_string();
            refused(text.strip_prefix("error: ").unwrap_or(&text).trim_end())
        }
    })?;
    // Clap takes these dashes for nothing. A script whose `$command` is empty means something else
    // than "hold it until somebody comes".
    match &cli.command {
        Command::Lock(lock)
            if lock.hold.command.is_empty() && args.last().is_some_and(|last| last == "--") =>
        {
            Err(refused("there is no command after `--`"))
        }
        _ => Ok(cli),
    }
}

fn refused(why: &str) -> ExitCode {
    let failure = Failure::usage(why);
    failure.tell();
    ExitCode::from(failure.code())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_interface_is_consistent() {
        Cli::command().debug_assert();
    }

    fn lock(args: &[&str]) -> Result<Lock, clap::Error> {
        let args = ["tenure", "lock"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| match cli.command {
            Command::Lock(lock) => lock,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn names_that_begin_with_a_dash() {
        let args = lock(&["--try", "--", "-rf", "--", "echo", "--", "x"]).unwrap();
        let (name, command) = args.subject().unwrap();
        assert_eq!((name.to_str(), command.len()), (Some("-rf"), 3));
        assert!(lock(&["--", "-rf"]).unwrap().subject().is_ok());
        // A forgotten name is not silently replaced by the command's.
        assert!(lock(&["--", "sleep"]).unwrap().subject().is_err());
        assert!(lock(&["--", "-rf", "sleep"]).unwrap().subject().is_err());
    }

    #[test]
    fn the_commands_options_are_its_own() {
        let args = lock(&["orders", "--wait", "1s", "--", "cmd", "--wait", "-v"]).unwrap();
        let (_, command) = args.subject().unwrap();
        assert_eq!(command, ["cmd", "--wait", "-v"]);
        assert_eq!(args.wait.wait, Some(Duration::from_secs(1)));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &["orders", "--try", "--wait", "1s"][..],
            &["orders", "--wait", "soon"],
            &["orders", "--lost-code", "256"],
            &["orders", "--ttl", "0s"],
            &["orders", "extra"],
            &["--tyr", "orders"],
        ] {
            assert!(lock(bad).is_err(), "{bad:?}");
        }
    }
}

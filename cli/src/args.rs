//! What can be said on the command line.

use std::ffi::OsString;
use std::num::{IntErrorKind, ParseIntError};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind as Clap;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::child::left_at_renewal;
use crate::exit::{self, Failure};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a negative answer: no leader, no such key, an empty queue, a comparison that does not
       hold, a barrier that is held already, a guarantee that was broken
  64   usage
  69   the store cannot be reached
  70   tenure itself failed
  75   not acquired (in time)
  76   lost while it was held
  77   not permitted
  78   bad URL or name, or a store that cannot do this
  126  the command could not be started, 127 it was not found
Otherwise the exit code is the command's own: 128+n if signal n killed it.

URLs:
  memory:                  the embedded store, private to this process
  etcd://[user:password@]host:port[,host:port...]/namespace?ttl=10s
                           etcd (cargo feature `etcd`); etcds:// for TLS
  redis://[user:password@]host:port[/db]?namespace=ns&ttl=10s
  redis+sentinel://[user:password@]host:port[,host:port...]/service?namespace=ns
  redis+cluster://[user:password@]host:port[,host:port...]?namespace=ns
                           Redis (cargo feature `redis`); rediss:// and the like for TLS
  postgres://[user:password@]host:port[,host:port...]/database?namespace=ns&sslmode=verify-full
                           PostgreSQL (cargo feature `postgres`)";

/// Distributed coordination for shells, operators and scripts.
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
    /// The store. Without it, what the file that TENURE_URL_FILE names has; else `memory:`, which is
    /// private to this process; `conform` tries every installed store then
    // The variable may hold a password: its value must not show in `--help`.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "TENURE_URL",
        hide_env_values = true
    )]
    pub(crate) url: Vec<OsString>,

    /// Whether the URL was read from the file that TENURE_URL_FILE names
    #[arg(skip)]
    pub(crate) from_file: bool,

    /// For how long the store keeps what a silent holder holds: `500ms`, `10s`, `2m`
    #[arg(long, global = true, value_name = "DURATION", value_parser = positive, allow_hyphen_values = true)]
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

/// How a command that runs another can be written.
macro_rules! usage {
    ($command:literal, $words:literal, $dashed:literal) => {
        concat!(
            "tenure ",
            $command,
            " [OPTIONS] ",
            $words,
            " [-- CMD...]\n       ",
            "tenure ",
            $command,
            " [OPTIONS] -- ",
            $dashed,
            " [-- CMD...]   (a name that begins with `-`)"
        )
    };
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take a lock and hold it, or run a command under it
    ///
    /// Without CMD: prints `NAME token=N`, holds until SIGINT or SIGTERM, and releases. With CMD:
    /// runs it under the lock, with TENURE_NAME, TENURE_TOKEN and TENURE_SESSION in its
    /// environment, and exits with its code. If the lock is lost the command gets SIGTERM.
    #[command(after_help = EXIT_CODES, override_usage = usage!("lock", "NAME", "-NAME"))]
    Lock(Lock),
    /// Take a read-write lock to read, beside other readers; the rest as for `lock`
    ///
    /// Without CMD: prints `NAME token=N`, holds until SIGINT or SIGTERM, and releases. With CMD:
    /// runs it under the lock, and exits with its code.
    #[command(after_help = EXIT_CODES, override_usage = usage!("read-lock", "NAME", "-NAME"))]
    ReadLock(Lock),
    /// Take a read-write lock to write, alone; the rest as for `lock`
    ///
    /// Without CMD: prints `NAME token=N`, holds until SIGINT or SIGTERM, and releases. With CMD:
    /// runs it under the lock, and exits with its code.
    #[command(after_help = EXIT_CODES, override_usage = usage!("write-lock", "NAME", "-NAME"))]
    WriteLock(Lock),
    /// Stand as a candidate; once elected lead, or run a command as the leader
    ///
    /// Without CMD: prints `NAME leader=VALUE token=N`, leads until SIGINT or SIGTERM, and resigns.
    /// With CMD: runs it as the leader, with TENURE_NAME, TENURE_TOKEN and TENURE_SESSION in its
    /// environment, resigns when it has ended, and exits with its code.
    #[command(after_help = EXIT_CODES)]
    Elect(Elect),
    /// Print the value of the current leader; without one `no leader`, and exit 1
    Leader(Named),
    /// Print a line for every change of the leader, until SIGINT or SIGTERM
    ///
    /// The present state first. `leader=VALUE token=N`, or `no leader` for a vacancy.
    Observe(Named),
    /// Put a value into a queue, or every line of stdin
    Enqueue(Enqueue),
    /// Take an item from a queue: print its value, or give it to a command
    ///
    /// The value is printed as it is, with a newline, and then acknowledged. With CMD the value is
    /// the command's input: exit 0 acknowledges the item, anything else gives it back. Waits for an
    /// item for as long as it takes.
    #[command(after_help = EXIT_CODES)]
    Dequeue(Dequeue),
    /// Print how many items a queue has, those with a consumer included
    QueueLen(Named),
    /// Print the value that would be delivered now, without taking it; exit 1 if there is none
    QueuePeek(Named),
    /// Hold, release, wait for or enter a barrier
    #[command(subcommand)]
    Barrier(Barrier),
    /// Print what stands under a key; exit 1 if it is absent
    Get(Key),
    /// Write a value under a key
    Put(Put),
    /// Delete a key; nothing happens if it is absent
    Delete(Key),
    /// If these comparisons hold, then do this, else that: in one atomic step, read from stdin
    ///
    /// Three blocks, each ended by a blank line or the end of the input:
    ///
    ///     value("state") = "open"        comparisons: value, version, create, mod; =, !=, <, >
    ///     version("orders") < 100
    ///
    ///     put state closed               what is done if all hold
    ///     get orders
    ///
    ///     get state                      what is done if one does not
    ///
    /// `create("k") = 0` says that k is absent. Prints what the `get`s found, a line each. Exits
    /// with 0 if the comparisons held, with 1 if not.
    #[command(verbatim_doc_comment)]
    Txn,
    /// A prompt that holds one session: try everything by hand, or from a pipe
    ///
    /// `help` lists its commands. From a pipe a command a line; it ends with its input.
    Shell(Shell),
    /// Raise the least token that the namespace grants from now on
    ///
    /// After a restore from a backup, or on a new server: with a number above every token that was
    /// granted before, the resources go on refusing stale writers. It never falls.
    TokenFloor(TokenFloor),
    /// Print what the store guarantees, each line with its reason, read from the live server
    Guarantees,
    /// Print the SQL that creates the schema in a PostgreSQL, for a role that may
    ///
    /// For where the programs' own role may not create it. Connects to nothing: pipe it into
    /// `psql -1 -v ON_ERROR_STOP=1`.
    Schema(Schema),
    /// Hold stores to what they guarantee: run the conformance suite and print the report
    ///
    /// Takes any number of --url. Without one: the embedded store, and every store whose server
    /// program is installed here, started for the purpose.
    Conform(Conform),
    /// Judge a recorded history again, or export it
    ///
    /// Of the file of a run of `conform --long` (`...-run.jsonl`) with all that the verdict used; of a single
    /// history alone. Exit code 1 if it breaks a promise, or proves nothing.
    Judge(Judge),
}

impl Command {
    /// The words behind `--`, of a command that runs another.
    fn behind_dashes(&self) -> Option<&[OsString]> {
        let hold = match self {
            Self::Lock(args) | Self::ReadLock(args) | Self::WriteLock(args) => &args.hold,
            Self::Elect(args) => &args.hold,
            Self::Dequeue(args) => &args.hold,
            Self::Barrier(Barrier::Enter(args)) => &args.hold,
            _ => return None,
        };
        Some(&hold.command)
    }
}

/// A lock, or either side of a read-write lock.
#[derive(Debug, Args)]
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
        let ([name], command) = self.hold.subject([("NAME", &self.name)])?;
        Ok((name, command))
    }
}

#[derive(Debug, Args)]
#[command(override_usage = usage!("elect", "NAME VALUE", "-NAME VALUE"))]
pub(crate) struct Elect {
    /// The election's name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    name: Option<OsString>,

    /// What the leader tells the others: an address, for instance
    #[arg(value_name = "VALUE")]
    value: Option<OsString>,

    #[command(flatten)]
    pub(crate) wait: Wait,

    #[command(flatten)]
    pub(crate) hold: Hold,
}

impl Elect {
    /// The name, the value, and the command to run as the leader (empty: none).
    pub(crate) fn subject(&self) -> Result<(&OsString, &OsString, &[OsString]), Failure> {
        let words = [("NAME", &self.name), ("VALUE", &self.value)];
        let ([name, value], command) = self.hold.subject(words)?;
        Ok((name, value, command))
    }
}

/// Something by its name.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Its name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    pub(crate) name: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct Enqueue {
    /// The queue's name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    pub(crate) name: OsString,

    /// The value; `-` reads values from stdin, one a line. One that begins with `-` is written
    /// after `--`
    #[arg(value_name = "VALUE")]
    pub(crate) value: OsString,

    /// Whether the value stood after `--`, where nothing has a meaning
    #[arg(skip)]
    pub(crate) literal: bool,

    /// Lower numbers are delivered first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(crate) priority: u16,
}

#[derive(Debug, Args)]
#[command(override_usage = usage!("dequeue", "NAME", "-NAME"))]
pub(crate) struct Dequeue {
    /// The queue's name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    name: Option<OsString>,

    /// Wait for an item no longer than this, then exit 75; `0s` does not wait
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) wait: Option<Duration>,

    /// Take so many items, one after the other
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = at_least_one::<u64>,
        allow_negative_numbers = true
    )]
    pub(crate) count: u64,

    #[command(flatten)]
    pub(crate) hold: Hold,
}

impl Dequeue {
    /// The name, and the command to run for each item (empty: none).
    pub(crate) fn subject(&self) -> Result<(&OsString, &[OsString]), Failure> {
        let ([name], command) = self.hold.subject([("NAME", &self.name)])?;
        Ok((name, command))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Barrier {
    /// Hold the barrier: everybody who waits for it waits from now on. It stays held when this
    /// command has ended. Exit 1 if it is held already
    Hold(Named),
    /// Release the barrier, whoever holds it: everybody who waits goes on
    Release(Named),
    /// Wait until the barrier is not held
    Wait(BarrierWait),
    /// Enter a double barrier: wait until N have entered, run CMD, leave, wait until all have left
    ///
    /// Prints `NAME token=N` when all have entered, unless there is a CMD.
    #[command(after_help = EXIT_CODES)]
    Enter(Enter),
}

#[derive(Debug, Args)]
pub(crate) struct BarrierWait {
    /// The barrier's name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    pub(crate) name: OsString,

    /// Wait no longer than this, then exit 75
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) wait: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(override_usage = usage!("barrier enter", "--count N NAME", "-NAME"))]
pub(crate) struct Enter {
    /// The barrier's name: 1 to 512 bytes of UTF-8
    #[arg(value_name = "NAME")]
    name: Option<OsString>,

    /// How many have to enter
    #[arg(long, value_name = "N", value_parser = at_least_one::<u32>, allow_negative_numbers = true)]
    pub(crate) count: u32,

    /// Wait for the others to enter no longer than this, then exit 75
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub(crate) wait: Option<Duration>,

    #[command(flatten)]
    pub(crate) hold: Hold,
}

impl Enter {
    /// The name, and the command to run inside (empty: none).
    pub(crate) fn subject(&self) -> Result<(&OsString, &[OsString]), Failure> {
        let ([name], command) = self.hold.subject([("NAME", &self.name)])?;
        Ok((name, command))
    }
}

/// A key of transactional memory.
#[derive(Debug, Args)]
pub(crate) struct Key {
    /// The key: 1 to 512 bytes of UTF-8
    #[arg(value_name = "KEY")]
    pub(crate) key: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// The key: 1 to 512 bytes of UTF-8
    #[arg(value_name = "KEY")]
    pub(crate) key: OsString,

    /// The value; `-` reads it from stdin, all of it. One that begins with `-` is written after `--`
    #[arg(value_name = "VALUE")]
    pub(crate) value: OsString,

    /// Whether the value stood after `--`, where nothing has a meaning
    #[arg(skip)]
    pub(crate) literal: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenFloor {
    /// Every later grant has a token of at least this
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) at_least: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// What its objects are called, unless a command names another
    #[arg(long, value_name = "NAME", default_value = "demo")]
    pub(crate) name: OsString,
}

/// For how long to wait.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Do not wait: exit 75 if somebody has it or waits for it
    #[arg(long = "try", conflicts_with = "wait")]
    no_wait: bool,

    /// Wait in line no longer than this, then exit 75. Without it, for as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    wait: Option<Duration>,
}

impl Wait {
    /// How long to wait: zero is not at all, `None` for as long as it takes.
    pub(crate) fn limit(&self) -> Option<Duration> {
        if self.no_wait {
            Some(Duration::ZERO)
        } else {
            self.wait
        }
    }
}

/// What to do while holding, for every command that holds something.
#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// How long before the lock would be lost the command gets SIGTERM; SIGKILL comes at its end. At most
    /// half of the TTL; the smaller of 5s and a quarter of the TTL by default
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    kill_after: Option<Duration>,

    /// Run the command in a process group of its own, so that what it starts ends with it: `auto` does
    /// where the command's input is no terminal
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = ProcessGroup::Auto,
        default_missing_value = "always"
    )]
    pub(crate) process_group: ProcessGroup,

    /// Pass the URL of the store on to the command, in TENURE_URL or TENURE_URL_FILE
    #[arg(long)]
    pub(crate) pass_url: bool,

    /// Exit with this instead of 75 when it was not acquired
    #[arg(
        long,
        value_name = "CODE",
        default_value_t = exit::NOT_ACQUIRED,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub(crate) not_acquired_code: u8,

    /// Exit with this instead of 76 when it was lost
    #[arg(
        long,
        value_name = "CODE",
        default_value_t = exit::LOST,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub(crate) lost_code: u8,

    /// The command to run, and its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// When a command gets a process group of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProcessGroup {
    Auto,
    Always,
    Never,
}

impl Hold {
    /// The time between SIGTERM and SIGKILL.
    ///
    /// A part of the validity that remains when a renewal is due has to be left for the store's answer, or every
    /// command would be ended at once.
    pub(crate) fn kill_after(&self, ttl: Duration) -> Result<Duration, Failure> {
        let most = (left_at_renewal(ttl) * 17 / 20).min(ttl / 2);
        match self.kill_after {
            None => Ok(Duration::from_secs(5).min(ttl / 4).min(most)),
            Some(asked) if asked <= most => Ok(asked),
            Some(asked) => Err(Failure::usage(format!(
                "--kill-after {}: with a TTL of {} it can be {} at most: SIGKILL has to come before the store \
                 frees what is held, and the rest of the TTL is for renewals; choose a longer --ttl",
                humantime::format_duration(asked),
                humantime::format_duration(ttl),
                humantime::format_duration(Duration::from_millis(
                    u64::try_from(most.as_millis()).unwrap_or(u64::MAX)
                )),
            ))),
        }
    }

    /// The words that were expected before `--`, and the command behind it (empty: none).
    ///
    /// `lock -- -NAME -- CMD...`: only behind dashes can a word begin with a dash. So words that
    /// are missing are looked for there, but only from one on that begins with a dash: a word that
    /// was forgotten is not silently replaced by the command's.
    fn subject<'a, const N: usize>(
        &'a self,
        words: [(&str, &'a Option<OsString>); N],
    ) -> Result<([&'a OsString; N], &'a [OsString]), Failure> {
        let mut behind = self.command.iter();
        let mut found = Vec::with_capacity(N);
        let mut moved = false;
        for (what, word) in words {
            let next = match word {
                Some(word) => Some(word),
                None if moved => behind.next(),
                None => {
                    moved = true;
                    behind.next().filter(|word| starts_with_dash(word))
                }
            };
            let missing = || Failure::usage(format!("{what} is missing"));
            found.push(next.ok_or_else(missing)?);
        }
        let command = match behind.as_slice() {
            command if !moved => command,
            [] => &[],
            [dashes] if dashes == "--" => return Err(no_command()),
            [dashes, command @ ..] if dashes == "--" => command,
            _ => return Err(Failure::usage("expected `--` before the command")),
        };
        let found = <[&OsString; N]>::try_from(found);
        found
            .map(|found| (found, command))
            .map_err(|_| Failure::usage("words are missing"))
    }
}

fn starts_with_dash(text: &OsString) -> bool {
    text.as_encoded_bytes().starts_with(b"-")
}

fn no_command() -> Failure {
    Failure::usage("there is no command after `--`")
}

#[derive(Debug, Args)]
pub(crate) struct Schema {
    /// Print instead what a role needs that owns nothing
    #[arg(long, value_name = "ROLE")]
    pub(crate) grants: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Judge {
    /// The file of a run (`...-run.jsonl`), or a single history
    pub(crate) file: PathBuf,

    /// Write the transactions in another form instead of the verdict
    #[arg(long, value_enum)]
    pub(crate) export: Option<Export>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Export {
    /// The EDN of list-append histories that Elle reads
    Elle,
}

// The suite has namespaces and TTLs of its own: what it refuses, its help does not offer.
#[derive(Debug, Args)]
#[command(arg = hidden("ttl").value_parser(positive).allow_hyphen_values(true))]
#[command(arg = hidden("namespace").value_parser(clap::value_parser!(OsString)))]
pub(crate) struct Conform {
    /// Only the cases whose name matches; `*` and `?` stand for any characters, any character
    ///
    /// With --long: only the rows whose store does, by the name that the table has for it (`redis`,
    /// `redis cluster, a primary lost`; both and all others with `redis*`).
    #[arg(long, value_name = "GLOB")]
    pub(crate) only: Option<String>,

    /// The long form: everything at once under one fault after another, for many seeds
    ///
    /// Each run is a store and a seed, with ten thousand operations at least. It takes half a minute or
    /// more; all of them, hours. A run whose operations or faults were too few does not count.
    #[arg(long, conflicts_with_all = ["faults", "brief"])]
    pub(crate) long: bool,

    /// How many seeds; 100 without --seed, 1 with it
    #[arg(
        long,
        value_name = "N",
        requires = "long",
        value_parser = clap::value_parser!(u32).range(1..),
        allow_negative_numbers = true
    )]
    pub(crate) seeds: Option<u32>,

    /// The first seed; 1 by default. It decides the faults, their order, and what clients choose
    #[arg(
        long,
        value_name = "S",
        requires = "long",
        allow_negative_numbers = true
    )]
    pub(crate) seed: Option<u64>,

    /// How many runs at a time; as many as the machine has pairs of processors by default
    #[arg(
        long,
        value_name = "N",
        requires = "long",
        value_parser = clap::value_parser!(u32).range(1..),
        allow_negative_numbers = true
    )]
    pub(crate) at_once: Option<u32>,

    /// Keep what the clients of every run saw, as JSON lines, in this folder
    ///
    /// Without it only those of runs that did not pass are kept, in `tenure-histories`.
    #[arg(long, value_name = "DIR", requires = "long")]
    pub(crate) histories: Option<PathBuf>,

    /// The form of the report; `table` by default
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Of Markdown, only the matrix
    #[arg(long)]
    pub(crate) brief: bool,

    /// Also provoke the faults that a server at a --url must not suffer, on servers of the same kind
    /// that are started here
    ///
    /// Restarts, lost members, failovers, jumps of the clock: in columns of their own, beside those
    /// of the URLs, whose servers are left alone. Without --url they are a part of the suite anyway.
    #[arg(long)]
    pub(crate) faults: bool,

    /// Write the report to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// A global option, not shown in the help of a command.
fn hidden(name: &'static str) -> clap::Arg {
    clap::Arg::new(name).long(name).hide(true)
}

impl Conform {
    /// The form of the report, which `--json` names as well.
    pub(crate) fn format(&self, global: &Global) -> Result<Format, Failure> {
        match (self.format, global.json) {
            (None | Some(Format::Json), true) => Ok(Format::Json),
            (Some(_), true) => Err(Failure::usage("--json goes with --format json")),
            (format, false) => Ok(format.unwrap_or(Format::Table)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// Markdown, for a README or a comment
    Markdown,
    /// One JSON object a line
    Json,
    /// JUnit's XML, for the programs that show the tests of a build
    Junit,
    /// One page that needs nothing else, with the evidence behind every cell
    Html,
}

fn duration(text: &str) -> Result<Duration, String> {
    let negative = |text: &str| {
        let rest = text.strip_prefix('-');
        rest.is_some_and(|rest| humantime::parse_duration(rest).is_ok())
    };
    humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => "it is too long".to_owned(),
        _ if negative(text) => "it cannot be negative".to_owned(),
        _ => "not a duration: write `500ms`, `10s` or `2m`".to_owned(),
    })
}

/// How many of something.
fn at_least_one<N>(text: &str) -> Result<N, String>
where
    N: FromStr<Err = ParseIntError> + Default + PartialEq,
{
    match text.parse() {
        Ok(none) if none == N::default() => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
            Err("it is too large".to_owned())
        }
        Err(_) => Err("it must be a whole number, at least 1".to_owned()),
    }
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
    let mut cli = Cli::try_parse_from(&args).map_err(|error| match error.kind() {
        Clap::DisplayHelp | Clap::DisplayVersion => {
            // Nobody reads it (`tenure --help | head -1`): no failure of ours.
            let _ = error.print();
            ExitCode::from(exit::DONE)
        }
        // Clap exits with 2, which a command run under a lock may well use itself.
        _ => {
            if let Some(option) = before_dashes(&args) {
                return refused(Failure::usage(format!(
                    "a value is required for '{option} <DURATION>' but none was supplied"
                )));
            }
            let text = error.render().to_string();
            exit::say_lines(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
            ExitCode::from(exit::USAGE)
        }
    })?;
    // Clap takes these dashes for nothing. A script whose `$command` is empty means something else
    // than "hold it until somebody comes".
    let ends_with_dashes = args.last().is_some_and(|last| last == "--");
    let dashes = args.iter().position(|arg| arg == "--");
    // The value is the last word of both.
    if let Command::Enqueue(Enqueue { literal, .. }) | Command::Put(Put { literal, .. }) =
        &mut cli.command
    {
        *literal = dashes.is_some_and(|at| at + 1 < args.len());
    }
    cli.global.read_url_file().map_err(refused)?;
    match cli.command.behind_dashes() {
        Some([]) if ends_with_dashes => Err(refused(no_command())),
        _ => Ok(cli),
    }
}

/// The option that took `--` for its value, since a duration may begin with a dash to be told what is wrong
/// with it: a script's variable was empty.
fn before_dashes(args: &[OsString]) -> Option<&str> {
    let dashes = args.iter().position(|arg| arg == "--")?;
    let option = args.get(dashes.checked_sub(1)?)?.to_str()?;
    ["--ttl", "--wait", "--kill-after"]
        .contains(&option)
        .then_some(option)
}

fn refused(failure: Failure) -> ExitCode {
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
        assert!(lock(&["--", "-rf", "--"]).unwrap().subject().is_err());
    }

    #[test]
    fn two_words_of_which_either_may_begin_with_a_dash() {
        let elect = |args: &[&str]| {
            let args = ["tenure", "elect"].iter().chain(args);
            let cli = Cli::try_parse_from(args).unwrap();
            let Command::Elect(elect) = cli.command else {
                panic!("{cli:?}");
            };
            let subject = elect.subject().map(|(name, value, command)| {
                let text = |word: &OsString| word.to_str().unwrap().to_owned();
                (text(name), text(value), command.len())
            });
            subject.map_err(|failure| failure.code())
        };
        let is = |name: &str, value: &str, words| Ok((name.to_owned(), value.to_owned(), words));
        assert_eq!(elect(&["n", "v"]), is("n", "v", 0));
        assert_eq!(elect(&["n", "v", "--", "a", "--"]), is("n", "v", 2));
        assert_eq!(elect(&["n", "--", "-v"]), is("n", "-v", 0));
        assert_eq!(elect(&["n", "--", "-v", "--", "cmd"]), is("n", "-v", 1));
        assert_eq!(elect(&["--", "-n", "v", "--", "cmd"]), is("-n", "v", 1));
        assert_eq!(elect(&["--", "-n", "-v"]), is("-n", "-v", 0));
        for bad in [
            &["n", "--", "cmd"][..],
            &["n"],
            &["--", "-n"],
            &["--", "n", "v"],
        ] {
            assert_eq!(elect(bad), Err(exit::USAGE), "{bad:?}");
        }
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

//! `tenure conform`.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tenure::{ErrorKind, SessionOptions};
use tenure_conformance::format::{self, About};
use tenure_conformance::{CASES, Case, Harness, Need, Outcome, Progress, Report, Subject};

use crate::args::{Conform, Format, Global};
use crate::exit::{self, Failure, say};
use crate::output;
use crate::signals::Signals;

pub(super) type Subjects = Vec<Arc<dyn Subject>>;

pub(crate) async fn run(global: &Global, args: &Conform) -> Result<u8, Failure> {
    // The suite has namespaces and TTLs of its own; to ignore these silently would be worse.
    if global.namespace.is_some() || global.ttl.is_some() {
        return Err(Failure::usage(
            "`conform` works in fresh namespaces below the URL's and with short TTLs: --namespace \
             and --ttl do not apply",
        ));
    }
    if args.long {
        return super::long::run(global, args).await;
    }
    let chosen = |case: &Case| {
        let pattern = args.only.as_deref();
        pattern.is_none_or(|pattern| matches(pattern, case.id))
    };
    if !CASES.iter().any(chosen) {
        let pattern = args.only.as_deref().unwrap_or_default();
        return Err(Failure::usage(format!(
            "no case matches `{pattern}`; their names begin with the rule: `--only 'l3_*'`"
        )));
    }

    let format = args.format(global)?;
    if args.brief && format != Format::Markdown {
        return Err(Failure::usage("--brief goes with --format markdown"));
    }

    let urls = global.urls()?;
    // Before the first thing is put anywhere that would have to be removed.
    let mut signals = Signals::listen()?;
    let subjects = if urls.is_empty() {
        whatever_is_here().await?
    } else {
        let mut subjects = Subjects::new();
        for url in &urls {
            subjects.push(at(url).await?);
        }
        if args.faults {
            subjects.extend(to_suffer(&urls).await?);
        }
        subjects
    };
    // Opened first: the suite takes its time, and should not end with "permission denied".
    let mut out = args.out.as_deref().map(Out::create).transpose()?;
    let bar = Bar::new();
    let (mut total, mut told) = (0, None);
    let tell = |progress: Progress<'_>| {
        if let Progress::Started { total: cases } = progress {
            total = cases;
        }
        bar.show(&progress);
    };
    let until = async { told = Some(signals.ending().await) };
    let mut report = tenure_conformance::run_until(subjects, chosen, tell, until).await;
    bar.finish();
    if let Some(signal) = told {
        let ended: usize = report.columns.iter().map(|it| it.entries.len()).sum();
        let what = format!("stopped by a signal, after {ended} of {total} cases");
        return Err(Failure::interrupted(signal, what));
    }
    leave_out_what_never_stood(&mut report, urls.len());

    let about = About::now().command(again(global, args, format));
    let text = match format {
        Format::Table => format!("{report}\n"),
        Format::Markdown if args.brief => format::matrix(&report),
        Format::Markdown => format::markdown(&report, &about),
        Format::Json => format::json(&report, &about),
        Format::Junit => format::junit(&report, &about),
        Format::Html => format::html(&report, &about),
    };
    match &mut out {
        Some(out) => out.write(&text)?,
        None => output::line(&output::printable_lines(text.trim_end()))?,
    }
    if report.exit_ok() {
        return Ok(exit::DONE);
    }
    let why = why_not(&report);
    let broken = Failure::new(exit::NEGATIVE, why.clone());
    if report.shows_a_breach() {
        return Err(broken);
    }
    match who_went_away(&urls).await {
        Some(failure) => Err(failure.after(&why)),
        None => Err(broken),
    }
}

/// The first of the stores that answered before the run and does not any more: that cases were cut short says
/// little about its promises then.
pub(super) async fn who_went_away(urls: &[&str]) -> Option<Failure> {
    for url in urls {
        let answer = async { tenure::connect(url).await?.guarantees().await };
        match answer.await {
            Err(error) if error.kind() == ErrorKind::Unavailable => return Some(error.into()),
            _ => {}
        }
    }
    None
}

/// What was to be started here, after the columns of the URLs, and could not be for a single case shows nothing,
/// as what is not installed.
fn leave_out_what_never_stood(report: &mut Report, urls: usize) {
    let mut columns = 0;
    report.columns.retain(|column| {
        columns += 1;
        match &column.guarantees {
            Err(why) if columns > urls && column.never_stood() => {
                say(format_args!("{} is left out: {why}", column.store));
                false
            }
            _ => true,
        }
    });
}

/// The stores that need nothing from outside: the embedded one, and those whose server program is
/// installed, started for the purpose.
async fn whatever_is_here() -> Result<Subjects, Failure> {
    let (etcd, redis) = (start_etcd().await?, start_redis().await?);
    let set_up_etcd = match etcd {
        Some(_) => set_up_etcd(|_| true),
        None => Subjects::new(),
    };
    let set_up_redis = match redis {
        Some(_) => set_up_redis(|_| true).await,
        None => Subjects::new(),
    };
    let postgres = start_postgres().await?;
    let set_up_postgres = match postgres {
        Some(_) => set_up_postgres(|_| true),
        None => Subjects::new(),
    };
    let servers = etcd.into_iter().chain(set_up_etcd);
    let servers = servers.chain(redis).chain(set_up_redis);
    let servers = servers.chain(postgres).chain(set_up_postgres);
    Ok(embedded().into_iter().chain(servers).collect())
}

#[cfg(feature = "memory")]
pub(super) fn embedded() -> Option<Arc<dyn Subject>> {
    Some(Arc::new(tenure_conformance::stores::MemorySubject))
}

#[cfg(not(feature = "memory"))]
pub(super) fn embedded() -> Option<Arc<dyn Subject>> {
    None
}

#[cfg(feature = "etcd")]
pub(super) async fn start_etcd() -> Result<Option<Arc<dyn Subject>>, Failure> {
    if_installed(
        "etcd",
        tenure_conformance::stores::EtcdSubject::start().await,
    )
}

#[cfg(not(feature = "etcd"))]
pub(super) async fn start_etcd() -> Result<Option<Arc<dyn Subject>>, Failure> {
    say("etcd is left out: this build is without the cargo feature `etcd`");
    Ok(None)
}

/// The ways to run an etcd that make it promise more: a column each.
#[cfg(feature = "etcd")]
pub(super) fn set_up_etcd(chosen: impl Fn(&str) -> bool) -> Subjects {
    use tenure_conformance::stores::{EtcdSetup, EtcdSubject};

    let setups = EtcdSetup::ALL.iter();
    setups
        .filter(|setup| chosen(setup.title()))
        .map(|&setup| -> Arc<dyn Subject> { Arc::new(EtcdSubject::set_up(setup)) })
        .collect()
}

#[cfg(not(feature = "etcd"))]
pub(super) fn set_up_etcd(_: impl Fn(&str) -> bool) -> Subjects {
    Subjects::new()
}

#[cfg(feature = "redis")]
pub(super) async fn start_redis() -> Result<Option<Arc<dyn Subject>>, Failure> {
    if_installed(
        "redis",
        tenure_conformance::stores::RedisSubject::start().await,
    )
}

/// The ways to run a Redis that make it promise less: a column each, for what shows why.
#[cfg(feature = "redis")]
pub(super) async fn set_up_redis(chosen: impl Fn(&str) -> bool) -> Subjects {
    use tenure_conformance::stores::{RedisSetup, RedisSubject};

    let mut subjects = Subjects::new();
    let setups = RedisSetup::ALL.iter();
    for &setup in setups.filter(|setup| chosen(setup.title())) {
        match RedisSubject::set_up(setup).await {
            Ok(subject) => subjects.push(Arc::new(subject)),
            Err(error) => say(format_args!(
                "{} is left out: {}",
                setup.title(),
                exit::described(&error)
            )),
        }
    }
    subjects
}

#[cfg(not(feature = "redis"))]
pub(super) async fn set_up_redis(_: impl Fn(&str) -> bool) -> Subjects {
    Subjects::new()
}

/// The titles of the rows that the long form has for one kind of store besides its first.
pub(super) fn titles_of_set_ups(store: &str) -> Vec<&'static str> {
    match store {
        #[cfg(feature = "etcd")]
        "etcd" => {
            let setups = tenure_conformance::stores::EtcdSetup::ALL.iter();
            setups.map(|setup| setup.title()).collect()
        }
        #[cfg(feature = "redis")]
        "redis" => {
            let setups = tenure_conformance::stores::RedisSetup::ALL.iter();
            setups.map(|setup| setup.title()).collect()
        }
        #[cfg(feature = "postgres")]
        "postgres" => {
            let setups = tenure_conformance::stores::PostgresSetup::ALL.iter();
            let setups = setups.filter(|setup| setup.weathers());
            setups.map(|setup| setup.title()).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(not(feature = "redis"))]
pub(super) async fn start_redis() -> Result<Option<Arc<dyn Subject>>, Failure> {
    say("redis is left out: this build is without the cargo feature `redis`");
    Ok(None)
}

#[cfg(feature = "postgres")]
pub(super) async fn start_postgres() -> Result<Option<Arc<dyn Subject>>, Failure> {
    if_installed(
        "postgres",
        tenure_conformance::stores::PostgresSubject::start().await,
    )
}

/// The ways to run a PostgreSQL that make it promise more or less: a column each, for what shows it.
#[cfg(feature = "postgres")]
pub(super) fn set_up_postgres(chosen: impl Fn(&str) -> bool) -> Subjects {
    use tenure_conformance::stores::{PostgresSetup, PostgresSubject};

    let setups = PostgresSetup::ALL.iter();
    setups
        .filter(|setup| chosen(setup.title()))
        .map(|&setup| -> Arc<dyn Subject> { Arc::new(PostgresSubject::set_up(setup)) })
        .collect()
}

#[cfg(not(feature = "postgres"))]
pub(super) fn set_up_postgres(_: impl Fn(&str) -> bool) -> Subjects {
    Subjects::new()
}

#[cfg(not(feature = "postgres"))]
pub(super) async fn start_postgres() -> Result<Option<Arc<dyn Subject>>, Failure> {
    say("postgres is left out: this build is without the cargo feature `postgres`");
    Ok(None)
}

/// What was started; nothing, and a word about it, where the server program is missing.
#[cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
fn if_installed<S: Subject + 'static>(
    store: &str,
    started: tenure::Result<S>,
) -> Result<Option<Arc<dyn Subject>>, Failure> {
    match started {
        Ok(subject) => Ok(Some(Arc::new(subject))),
        Err(error) => match not_installed(&error) {
            Some(missing) => {
                say(format_args!("{store} is left out: {missing}"));
                Ok(None)
            }
            None => Err(error.into()),
        },
    }
}

#[cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
fn not_installed(error: &tenure::Error) -> Option<&tenure_testbed::Error> {
    tenure_conformance::why_out_of_order(error)
        .and_then(|why| why.downcast_ref())
        .filter(|error| matches!(error, tenure_testbed::Error::MissingBinary { .. }))
}

/// What a server at a URL must not suffer happens to servers of the same kind that are started here:
/// a column each, of these cases only.
async fn to_suffer(urls: &[&str]) -> Result<Subjects, Failure> {
    let schemes: Vec<&str> = urls
        .iter()
        .filter_map(|url| Some(url.split_once(':')?.0))
        .collect();
    let any = |prefix: &str| {
        schemes
            .iter()
            .any(|scheme| scheme.to_ascii_lowercase().starts_with(prefix))
    };
    let mut subjects = Subjects::new();
    if any("etcd") {
        subjects.extend(start_etcd().await?);
        subjects.extend(set_up_etcd(|_| true));
    }
    if any("redis") {
        subjects.extend(start_redis().await?);
        subjects.extend(set_up_redis(|_| true).await);
    }
    if any("postgres") {
        subjects.extend(start_postgres().await?);
        subjects.extend(set_up_postgres(|_| true));
    }
    let only = |subject| Arc::new(Faults(subject)) as Arc<dyn Subject>;
    Ok(subjects.into_iter().map(only).collect())
}

/// The cases that cannot be run against a store that others use.
struct Faults(Arc<dyn Subject>);

#[tenure_conformance::async_trait]
impl Subject for Faults {
    fn name(&self) -> &str {
        self.0.name()
    }

    async fn stage(&self, case: &Case) -> tenure::Result<Box<dyn Harness>> {
        self.0.stage(case).await
    }

    fn takes(&self, case: &Case) -> bool {
        self.0.takes(case) && case.needs.iter().any(|need| need.wants_own_store())
    }

    fn parallel(&self) -> usize {
        self.0.parallel()
    }
}

/// The command by which this can be run again. Of the URLs only what is no secret, and a word about the rest.
fn again(global: &Global, args: &Conform, format: Format) -> String {
    let mut words = vec!["tenure conform".to_owned()];
    let urls = global.urls().unwrap_or_default();
    let shown: Vec<String> = urls.iter().map(|url| without_secrets(url)).collect();
    for url in &shown {
        words.push(format!("--url {}", quoted(url)));
    }
    if let Some(pattern) = &args.only {
        words.push(format!("--only {}", quoted(pattern)));
    }
    if args.faults {
        words.push("--faults".to_owned());
    }
    if let Some(format) = format.to_possible_value() {
        words.push(format!("--format {}", format.get_name()));
    }
    if args.brief {
        words.push("--brief".to_owned());
    }
    words.extend(hint_at_secrets(&shown).map(str::to_owned));
    words.join(" ")
}

/// For whoever runs the line again, behind it, where it does no harm to it.
pub(super) fn hint_at_secrets(shown: &[String]) -> Option<&'static str> {
    let hidden = shown.iter().any(|url| url.contains("***"));
    hidden.then_some("# with what was left out of the URL in place of each ***")
}

/// The URL without the password, and without the values of its query: these may be secrets, too.
pub(super) fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let rest = match rest.rsplit_once('@') {
        Some((credentials, host)) => {
            let user = credentials.trim_start_matches('/');
            match user.split_once(':') {
                Some((user, _)) => format!("//{user}:***@{host}"),
                None => format!("//{user}@{host}"),
            }
        }
        None => rest.to_owned(),
    };
    let key = |pair: &str| format!("{}=***", pair.split_once('=').map_or(pair, |(key, _)| key));
    let query = query.map(|query| query.split('&').map(key).collect::<Vec<_>>().join("&"));
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{scheme}:{rest}{query}")
}

/// As a word of a shell.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The store at `url`, which has to answer: whether it can be reached is no question of the suite.
pub(super) async fn at(url: &str) -> Result<Arc<dyn Subject>, Failure> {
    tenure::connect(url).await?.guarantees().await?;
    let scheme = url
        .split_once(':')
        .map(|(scheme, _)| scheme.to_ascii_lowercase());
    let subject: Arc<dyn Subject> = match scheme.as_deref() {
        #[cfg(feature = "memory")]
        Some("memory") => Arc::new(tenure_conformance::stores::MemorySubject),
        #[cfg(feature = "etcd")]
        Some("etcd" | "etcds") => Arc::new(tenure_conformance::stores::EtcdSubject::at(url)?),
        #[cfg(feature = "redis")]
        Some(scheme) if scheme.starts_with("redis") => {
            Arc::new(tenure_conformance::stores::RedisSubject::at(url)?)
        }
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => {
            Arc::new(tenure_conformance::stores::PostgresSubject::at(url)?)
        }
        _ => {
            return Err(Failure::new(
                exit::BAD_CONFIG,
                "the suite cannot be run against this kind of store",
            ));
        }
    };
    match try_one_lock(&*subject).await {
        Err(error) if error.kind() == ErrorKind::Unauthorized => Err(error.into()),
        // Whatever else goes wrong is for the suite to judge.
        _ => Ok(subject),
    }
}

/// Takes a lock as every case does, and looks around as an operator. With a right that is missing they
/// would fail, and call broken what was only forbidden.
async fn try_one_lock(subject: &dyn Subject) -> tenure::Result<()> {
    let Some(case) = CASES.first() else {
        return Ok(());
    };
    let harness = subject.stage(case).await?;
    let tried = take_and_look(&*harness).await;
    let cleaned = permitted(harness.clean_up().await);
    tried.and(cleaned)
}

async fn take_and_look(harness: &dyn Harness) -> tenure::Result<()> {
    let offers = |need| harness.offers().contains(&need);
    let look = async || match harness.operator() {
        Some(operator) if offers(Need::Keys) => permitted(operator.keys().await),
        _ => Ok(()),
    };
    // Before anything is left that could not be removed; and while there is something to be seen.
    look().await?;
    let session = harness.connect().await?.open(SessionOptions::new()).await?;
    let id = session.id().clone();
    let taken = match session.locker("permitted") {
        Ok(locker) => locker.try_lock().await,
        Err(error) => Err(error),
    };
    let key = taken.as_ref().ok().map(|guard| guard.key().to_owned());
    let seen = look().await;
    let done = match taken {
        Ok(guard) => guard.release().await,
        Err(error) => Err(error),
    };
    done.and(session.close().await).and(seen)?;
    if let (Some(operator), Some(key)) = (harness.operator(), key) {
        // Neither is there any more.
        if offers(Need::Delete) {
            permitted(operator.delete(&key).await)?;
        }
        if offers(Need::Revoke) {
            permitted(operator.revoke(&id).await)?;
        }
    }
    Ok(())
}

/// Whether it was permitted, whatever else came of it.
fn permitted<T>(done: tenure::Result<T>) -> tenure::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::Unauthorized => Err(error),
        _ => Ok(()),
    }
}

/// Whether `name` matches the glob: `*` is any text, `?` any character.
pub(super) fn matches(glob: &str, name: &str) -> bool {
    let mut rest = glob.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.into_iter()
                .any(|at| matches(rest.as_str(), &name[at..]))
        }
        Some(expected) => {
            let mut name = name.chars();
            name.next()
                .is_some_and(|character| expected == '?' || expected == character)
                && matches(rest.as_str(), name.as_str())
        }
    }
}

fn why_not(report: &Report) -> String {
    let broken: Vec<String> = report
        .violations()
        .map(|(store, case, _)| format!("{} on {store}", case.id))
        .collect();
    let too_few = report.below_floor();
    if !broken.is_empty() {
        format!("claimed, and broken: {}", broken.join(", "))
    } else if !too_few.is_empty() {
        too_few.join("; ")
    } else {
        "nothing was proved: not one promise of a store could be put to the test".to_owned()
    }
}

pub(super) struct Out<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Out<'a> {
    pub(super) fn create(path: &'a Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| refused(path, error))?;
        Ok(Self { path, file })
    }

    pub(super) fn write(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| refused(self.path, error))
    }
}

fn refused(path: &Path, error: std::io::Error) -> Failure {
    Failure::os(format_args!("write {}", path.display()), error)
}

/// The progress on stderr: a bar on a terminal, elsewhere a line for each case that went wrong.
pub(super) struct Bar {
    bar: ProgressBar,
    terminal: bool,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        Self {
            bar,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn start(&self, total: usize) {
        self.bar
            .set_length(u64::try_from(total).unwrap_or(u64::MAX));
        // The clock goes on while the cases wait for leases to end.
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    pub(super) fn begun(&self, what: String) {
        self.bar.set_message(what);
    }

    pub(super) fn one_more(&self) {
        self.bar.inc(1);
    }

    fn show(&self, progress: &Progress<'_>) {
        match progress {
            Progress::Started { total } => self.start(*total),
            Progress::Begun { store, case } => self.begun(format!("{store}: {}", case.id)),
            Progress::Ended {
                store,
                case,
                outcome,
                ..
            } => {
                if matches!(outcome, Outcome::Violated { .. }) {
                    self.note(&format!("{store}: {}: {outcome}", case.id));
                }
                self.one_more();
            }
            _ => {}
        }
    }

    pub(super) fn note(&self, line: &str) {
        let line = output::printable(line);
        if self.terminal {
            self.bar.println(line);
        } else {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// Prints to stdout, with the bar out of the way: both may be the same terminal.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{hint_at_secrets, matches, quoted, without_secrets};

    #[test]
    fn a_command_is_shown_without_secrets() {
        for (url, shown) in [
            ("memory:", "memory:"),
            ("memory:name", "memory:name"),
            (
                "etcd://h:2379,g:2379/ns?ttl=10s&key=secret",
                "etcd://h:2379,g:2379/ns?ttl=***&key=***",
            ),
            ("redis://u:secret@h:1/2", "redis://u:***@h:1/2"),
            ("redis://:secret@h:1", "redis://:***@h:1"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            (
                "postgres://u@h:1/db?password=secret",
                "postgres://u@h:1/db?password=***",
            ),
            ("postgres://u:sec@secret@h/db", "postgres://u:***@h/db"),
        ] {
            assert_eq!(without_secrets(url), shown);
            let hint = hint_at_secrets(&[shown.to_owned()]);
            assert_eq!(hint.is_some(), url != shown, "{url}");
        }
        assert_eq!(quoted("l?_'x"), "'l?_'\\''x'");
        assert_eq!(quoted("memory:"), "memory:");
    }

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("l3_*", "l3_fifo", true),
            ("l3_*", "l30", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("*fifo", "l3_fifo", true),
            ("*f*o", "l3_fifo", true),
            ("l?_fifo", "l3_fifo", true),
            ("l?fifo", "l3_fifo", false),
            ("l3", "l3_fifo", false),
        ] {
            assert_eq!(matches(glob, name), expected, "{glob} {name}");
        }
    }
}

//! `tenure conform`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use tenure::memory::{MemoryBackend, MemoryConfig};
use tenure::{ErrorKind, Namespace};
use tenure_conformance::report::matrix;
use tenure_conformance::{
    Case, EmbeddedStore, FaultLayer, Harness, Report, Runner, Subject, Trial, async_trait, trials,
};

use crate::args::{Args, Conform, Format, matches};
use crate::exit::{self, Failure, say};
use crate::output;
use crate::text::lines;

/// How many entries a session of the embedded store may have here: a case reaches this number.
const CAPACITY: usize = 2_000;

pub(crate) fn run(args: &Args, options: &Conform) -> Result<u8, Failure> {
    let chosen = choose(options.only.as_deref())?;
    let stores = stores(&args.url)?;
    // The suite takes a while, and should not end with "permission denied".
    let mut out = options.out.as_deref().map(create).transpose()?;

    let cases: usize = chosen.iter().map(|trial| trial.cases.len()).sum();
    let mut reports = Vec::new();
    for store in stores {
        say(format_args!("{cases} cases on {}", store.name));
        // The clock of the embedded store is tokio's: where it is paused, no case waits, and none is late.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        let runtime = runtime.map_err(|error| Failure::os("start a runtime", &error))?;
        reports.push(runtime.block_on(Runner::paused().run_trials(&store, chosen.clone())));
    }

    let text = render(
        &reports,
        options
            .format
            .unwrap_or(if args.json { Format::Json } else { Format::Table }),
    );
    match &mut out {
        Some(file) => writeln!(file, "{text}").map_err(|error| Failure::os("write the report", &error))?,
        None => output::print(&lines(&text))?,
    }
    let failed: Vec<_> = reports
        .iter()
        .filter(|report| !report.passed())
        .map(|report| report.store.as_str())
        .collect();
    match failed.as_slice() {
        [] => Ok(exit::DONE),
        failed => Err(Failure::new(
            exit::NEGATIVE,
            format!("the suite did not pass on {}", failed.join(", ")),
        )),
    }
}

fn render(reports: &[Report], format: Format) -> String {
    let each = |form: fn(&Report) -> String, separator| reports.iter().map(form).collect::<Vec<_>>().join(separator);
    match format {
        Format::Table => each(Report::to_string, "\n\n"),
        Format::Json => each(|report| report.to_json().to_string(), "\n"),
        Format::Markdown => matrix(reports).trim_end().to_owned(),
    }
}

/// Returns the trials with a case whose name matches.
fn choose(only: Option<&str>) -> Result<Vec<Trial>, Failure> {
    let Some(pattern) = only else {
        return Ok(trials());
    };
    let chosen: Vec<_> = trials()
        .into_iter()
        .filter_map(|mut trial| {
            let whole = matches(pattern, trial.id);
            trial.cases.retain(|case| whole || matches(pattern, case.id));
            (!trial.cases.is_empty()).then_some(trial)
        })
        .collect();
    match chosen.is_empty() {
        true => Err(Failure::usage(format!(
            "no case matches `{pattern}`; names begin with a rule: `--only 'l3_*'`"
        ))),
        false => Ok(chosen),
    }
}

fn stores(urls: &[String]) -> Result<Vec<Embedded>, Failure> {
    if urls.is_empty() {
        return Ok(vec![Embedded {
            name: "memory".to_owned(),
        }]);
    }
    urls.iter().map(|url| store(url)).collect()
}

fn store(url: &str) -> Result<Embedded, Failure> {
    let runtime = crate::runtime()?;
    // Refuses the schemes of stores that are not compiled in.
    runtime.block_on(tenure::connect(url))?;
    match url.to_ascii_lowercase().strip_prefix("memory:") {
        Some("") => Ok(Embedded {
            name: "memory".to_owned(),
        }),
        _ => Err(tenure::Error::new(
            ErrorKind::Config,
            "`conform` makes embedded stores of its own: write `memory:` without a name and a query",
        )
        .into()),
    }
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| Failure::os(format_args!("create {}", path.display()), &error))
}

/// The embedded store: a new one for each case.
struct Embedded {
    name: String,
}

#[async_trait]
impl Subject for Embedded {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stage(&self, _: &Case) -> tenure::Result<Box<dyn Harness>> {
        let start = || {
            let memory = MemoryBackend::connect(MemoryConfig::new().capacity(CAPACITY))?;
            let elsewhere = memory.in_namespace(Namespace::new("default/lock")?);
            let operator = memory.clone();
            Ok(EmbeddedStore::new(memory)
                .elsewhere(elsewhere)
                .take_away(move |session, request| operator.take_away(session, request))
                .capacity(CAPACITY))
        };
        Ok(Box::new(FaultLayer::new(start)?))
    }

    fn parallel(&self) -> usize {
        32
    }
}

//! `tenure conform`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use tenure::ErrorKind;
use tenure_conformance::report::to_markdown;
use tenure_conformance::{Report, Runner, Subject, Trial, trials};
use tenure_memory::{MemoryConfig, MemorySubject};

use crate::args::{Args, Conform, Format, matches};
use crate::exit::{self, Failure, say};
use crate::output;
use crate::text::lines;

pub(crate) fn run(args: &Args, options: &Conform) -> Result<u8, Failure> {
    let chosen = choose(options.only.as_deref())?;
    check_urls(&args.url)?;
    let columns = args.url.len().max(1);
    // The suite takes a while, and should not end with "permission denied".
    let mut out = options.out.as_deref().map(create).transpose()?;

    let cases: usize = chosen.iter().map(|trial| trial.cases.len()).sum();
    let mut reports = Vec::new();
    for store in std::iter::repeat_n(MemorySubject::new(MemoryConfig::new()), columns) {
        say(format_args!("{cases} cases on {}", store.name()));
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
        Format::Markdown => to_markdown(reports).trim_end().to_owned(),
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

/// Checks that each URL is that of a store which the suite can have to itself here.
fn check_urls(urls: &[String]) -> Result<(), Failure> {
    let runtime = crate::runtime()?;
    for url in urls {
        // Refuses the schemes of stores that are not compiled in.
        runtime.block_on(tenure::connect(url))?;
        if !url.eq_ignore_ascii_case("memory:") {
            let message = "`conform` makes embedded stores of its own: write `memory:` without a name and a query";
            return Err(tenure::Error::new(ErrorKind::Config, message).into());
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| Failure::os(format_args!("create {}", path.display()), &error))
}

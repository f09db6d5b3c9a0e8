//! `tenure conform`.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use tenure::ErrorKind;
use tenure::url::StoreUrl;
use tenure_conformance::report::to_markdown;
use tenure_conformance::{Report, Runner, Subject, Trial, trials};
use tenure_memory::{MemoryConfig, MemorySubject};
use tenure_redis::{RedisConfig, RedisSubject};

use crate::args::{Args, Conform, Format, matches};
use crate::exit::{self, Failure, say};
use crate::output;
use crate::text::lines;

pub(crate) fn run(args: &Args, options: &Conform) -> Result<u8, Failure> {
    let chosen = choose(options.only.as_deref())?;
    let columns = columns(&args.url)?;
    // The suite takes a while, and should not end with "permission denied".
    let mut out = options.out.as_deref().map(create).transpose()?;

    let cases: usize = chosen.iter().map(|trial| trial.cases.len()).sum();
    let mut reports = Vec::new();
    for (subject, is_paused) in &columns {
        say(format_args!("{cases} cases on {}", subject.name()));
        let (runner, runtime) = match is_paused {
            // The clock of the embedded store is tokio's: where it is paused, no case waits, and none is late.
            true => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .start_paused(true)
                    .build();
                (Runner::paused(), runtime)
            }
            // Several threads: the cases of a thread that the machine does not run would find their runtime blocked.
            false => {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(4)
                    .enable_all()
                    .build();
                (Runner::new(), runtime)
            }
        };
        let runtime = runtime.map_err(|error| Failure::os("start a runtime", &error))?;
        reports.push(runtime.block_on(runner.run_trials(&**subject, chosen.clone())));
        // Clients of the last cases may still be closing.
        runtime.shutdown_timeout(Duration::from_secs(1));
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

/// A store of the report, and whether its clock is paused.
type Column = (Box<dyn Subject>, bool);

/// Returns the stores of the URLs, each of which was reached.
fn columns(urls: &[String]) -> Result<Vec<Column>, Failure> {
    let memory = || -> Column { (Box::new(MemorySubject::new(MemoryConfig::new())), true) };
    if urls.is_empty() {
        return Ok(vec![memory()]);
    }
    let runtime = crate::runtime()?;
    let column = |url: &String| -> Result<Column, Failure> {
        // Refuses the schemes of stores that are not compiled in.
        runtime.block_on(tenure::connect(url))?;
        let parsed = StoreUrl::parse(url)?;
        if parsed.scheme().starts_with("redis") {
            let subject = RedisSubject::on(RedisConfig::from_url(parsed)?);
            return Ok((Box::new(subject), false));
        }
        if !url.eq_ignore_ascii_case("memory:") {
            let message = "`conform` makes embedded stores of its own: write `memory:` without a name and a query";
            return Err(tenure::Error::new(ErrorKind::Config, message).into());
        }
        Ok(memory())
    };
    urls.iter().map(column).collect()
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| Failure::os(format_args!("create {}", path.display()), &error))
}

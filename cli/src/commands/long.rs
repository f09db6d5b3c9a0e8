//! `tenure conform --long`.

use std::path::PathBuf;

use tenure_conformance::storm::{self, Plan, Progress, Run, Sweep, Verdict};
use tokio::sync::Notify;

use super::conform::{self, Bar, Out, Subjects, hint_at_secrets, matches, quoted, without_secrets};
use crate::args::{Conform, Format, Global};
use crate::exit::{self, Failure};
use crate::output;
use crate::signals::Signals;

/// The kinds of stores, in the order of the table.
const STORES: [&str; 4] = ["memory", "etcd", "redis", "postgres"];

const SEEDS: u32 = 100;

pub(super) async fn run(global: &Global, args: &Conform) -> Result<u8, Failure> {
    let format = args.format(global)?;
    if !matches!(format, Format::Table | Format::Json) {
        return Err(Failure::usage(
            "--long goes with --format table and --format json",
        ));
    }
    let chosen = |store: &str| {
        let pattern = args.only.as_deref();
        pattern.is_none_or(|pattern| matches(pattern, store))
    };
    let urls = global.urls()?;
    let mut signals = Signals::listen()?;
    let mut subjects = Subjects::new();
    if urls.is_empty() {
        let rows = || STORES.into_iter().flat_map(rows);
        if !rows().any(chosen) {
            let pattern = args.only.as_deref().unwrap_or_default();
            return Err(Failure::usage(format!(
                "no store matches `{pattern}`: with --long, --only chooses among {}",
                rows().map(quoted).collect::<Vec<_>>().join(", ")
            )));
        }
        subjects = whatever_is_here(chosen).await?;
    }
    for url in &urls {
        let kind = STORES.into_iter().find(|store| url.starts_with(store));
        let subject = conform::at(url).await?;
        if kind.is_some_and(chosen) || chosen(subject.name()) {
            subjects.push(subject);
        }
    }
    if subjects.is_empty() {
        return Err(Failure::usage(
            "no store is left to be tried: with --long, --only chooses by kind (`redis`) or by name (`redis at HOST:PORT`)",
        ));
    }

    let first = args.seed.unwrap_or(1);
    let count = args.seeds.unwrap_or(match args.seed {
        Some(_) => 1,
        None => SEEDS,
    });
    let seeds = (0..u64::from(count)).map(|step| first.wrapping_add(step));
    let mut sweep = Sweep::new(seeds, Plan::long());
    if let Some(folder) = &args.histories {
        sweep = sweep.keep_all(folder);
    }
    if let Some(runs) = args.at_once {
        sweep.at_once = usize::try_from(runs).unwrap_or(usize::MAX);
    }
    // Opened first: hours later is too late for "permission denied".
    let mut out = args.out.as_deref().map(Out::create).transpose()?;
    let mut print = |text: &str| match &mut out {
        Some(out) => out.write(&format!("{text}\n")),
        None => output::line(text),
    };
    let bar = Bar::new();
    bar.start(sweep.seeds.len() * subjects.len());
    // A line for each run when it has ended, so that nothing takes them away again.
    let (mut printed, unread) = (Ok(()), Notify::new());
    let tell = |progress: Progress<'_>| match progress {
        Progress::Begun { store, seed } => bar.begun(format!("{store}: seed {seed}")),
        Progress::Ended { store, run, files } => {
            if let Some(line) = went_wrong(&urls, store, run, files) {
                bar.note(&line);
            }
            if matches!(format, Format::Json) && printed.is_ok() {
                let command = again(&urls, store, run.seed);
                printed = bar.aside(|| print(&run.json(store, files, &command)));
                if printed.is_err() {
                    unread.notify_one();
                }
            }
            bar.one_more();
        }
        _ => {}
    };
    let mut told = None;
    let until = async {
        tokio::select! {
            signal = signals.ending() => told = Some(signal),
            () = unread.notified() => {}
        }
    };
    let summary = storm::sweep(&subjects, &sweep, tell, until).await;
    bar.finish();
    printed?;

    if !matches!(format, Format::Json) {
        let mut text = format!("{summary}\n");
        for (store, run, files) in summary.failures() {
            text.extend(went_wrong(&urls, store, run, files));
            text.push('\n');
        }
        text.push_str("\nThe same again, for any seed S: ");
        text.push_str(&again(&urls, "STORE", "S"));
        print(&text)?;
    }
    if let Some(signal) = told {
        let ended: usize = summary.rows.iter().map(|row| row.runs.len()).sum();
        let runs = sweep.seeds.len() * subjects.len();
        let what = format!("stopped by a signal, after {ended} of {runs} runs");
        return Err(Failure::interrupted(signal, what));
    }
    if summary.passed() {
        return Ok(exit::DONE);
    }
    let wrong: Vec<String> = summary
        .failures()
        .map(|(store, run, _)| format!("{store} (seed {})", run.seed))
        .collect();
    let why = format!("not passed: {}", wrong.join(", "));
    let violated = |run: &Run| matches!(run.verdict, Verdict::Violated { .. });
    if !summary.failures().any(|(_, run, _)| violated(run))
        && let Some(failure) = conform::who_went_away(&urls).await
    {
        return Err(failure.after(&why));
    }
    Err(Failure::new(exit::NEGATIVE, why))
}

/// What one kind of store has rows for: run as it promises most, and in other ways.
fn rows(store: &'static str) -> Vec<&'static str> {
    let set_ups = conform::titles_of_set_ups(store);
    std::iter::once(store).chain(set_ups).collect()
}

/// The stores that need nothing from outside. Set-ups of one that is not installed are left out with it.
async fn whatever_is_here(chosen: impl Fn(&str) -> bool) -> Result<Subjects, Failure> {
    let mut subjects = Subjects::new();
    for store in STORES {
        let wanted = rows(store);
        if !wanted.iter().any(|row| chosen(row)) {
            continue;
        }
        let first = match store {
            "etcd" => conform::start_etcd().await?,
            "redis" => conform::start_redis().await?,
            "postgres" => conform::start_postgres().await?,
            _ => conform::embedded(),
        };
        let Some(first) = first else { continue };
        if chosen(store) {
            subjects.push(first);
        }
        let set_up = |title: &str| title != store && wanted.contains(&title) && chosen(title);
        subjects.extend(match store {
            "etcd" => conform::set_up_etcd(set_up),
            "redis" => conform::set_up_redis(set_up).await,
            "postgres" => conform::set_up_postgres(set_up),
            _ => Subjects::new(),
        });
    }
    Ok(subjects)
}

/// A run that did not pass, in words, with the command that repeats it.
fn went_wrong(urls: &[&str], store: &str, run: &Run, files: &[PathBuf]) -> Option<String> {
    let (word, what) = match &run.verdict {
        Verdict::Passed => return None,
        Verdict::Violated { what, .. } => ("violated", what),
        Verdict::Invalid { why } => ("invalid, proves nothing", why),
    };
    let mut text = format!("{store}, seed {}: {word}: {what}", run.seed);
    for file in files {
        text.push_str(&format!("\n    history: {}", file.display()));
    }
    text.push_str(&format!("\n    again: {}", again(urls, store, run.seed)));
    Some(text)
}

/// The command that repeats a run. Of the URLs only what is no secret.
fn again(urls: &[&str], store: &str, seed: impl std::fmt::Display) -> String {
    let mut words = vec!["tenure conform --long".to_owned()];
    let shown: Vec<String> = urls.iter().map(|url| without_secrets(url)).collect();
    for url in &shown {
        words.push(format!("--url {}", quoted(url)));
    }
    words.push(format!("--only {} --seed {seed}", quoted(store)));
    words.extend(hint_at_secrets(&shown).map(str::to_owned));
    words.join(" ")
}

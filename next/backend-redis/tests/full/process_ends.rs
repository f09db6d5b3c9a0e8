//! Processes that end while they hold a lock: the lock is free at once, not when its lease ends.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tenure_core::SessionOptions;
use tenure_testbed::{shared_redis, unique_name};
use tokio::runtime::Builder;

use super::{connect, soon};

/// Far longer than the test: a lock that only its lease frees fails it.
const TTL: Duration = Duration::from_secs(300);

/// The variables of the process of [`holder`].
const VARIABLES: [&str; 3] = ["TENURE_HOLDER_URL", "TENURE_HOLDER_END", "TENURE_HOLDER_THREADS"];

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 0 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

/// The program: it takes the lock, says so, and ends at the first line of its input.
#[test]
#[ignore = "the program that the other tests of this file start"]
fn holder() -> Result<(), Box<dyn Error>> {
    let variable = |index: usize| std::env::var(VARIABLES[index]);
    let Ok(url) = variable(0) else {
        return Ok(());
    };
    let how_it_ends = variable(1)?;
    runtime(variable(2)?.parse()?)?.block_on(async {
        let store = connect(&url).await?;
        let session = store.open(SessionOptions::new().ttl(TTL)).await?;
        let _guard = session.lock("held").await?;
        println!("held");
        std::io::stdin().read_line(&mut String::new())?;
        match how_it_ends.as_str() {
            "error" => Err("an error of the application".into()),
            "panic" => panic!("a panic of the application"),
            _ => Ok(()),
        }
    })
}

/// Starts the program, lets it end, and returns how long a waiter waited for the lock from then on.
async fn freed_after(how_it_ends: &str, threads: usize) -> Duration {
    let url = format!("{}?namespace={}", shared_redis().unwrap().url(), unique_name("ends"));
    let values = [url.clone(), how_it_ends.to_owned(), threads.to_string()];
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_ends::holder", "--ignored", "--nocapture"])
        .envs(VARIABLES.into_iter().zip(values))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap()).lines();
    while !output.next().unwrap().unwrap().ends_with("held") {}
    let session = connect(&url).await.unwrap().open(SessionOptions::new()).await.unwrap();
    assert!(session.try_lock("held").await.unwrap().is_none(), "two hold the lock");
    let began = Instant::now();
    program.stdin.take().unwrap().write_all(b"\n").unwrap();
    let guard = soon("the lock of a process that ended", session.lock("held"))
        .await
        .unwrap();
    let took = began.elapsed();
    guard.release().await.unwrap();
    let status = program.wait().unwrap();
    assert_eq!(status.success(), how_it_ends == "return", "{status}");
    took
}

async fn forty_runs(how_it_ends: &str) {
    let mut longest = Duration::ZERO;
    for run in 0..40 {
        longest = longest.max(freed_after(how_it_ends, [0, 1, 2, 8][run % 4]).await);
    }
    println!("a main that ends by {how_it_ends}: the lock was free after {longest:?} at most");
}

#[tokio::test]
async fn a_main_that_returns_frees_its_lock() {
    forty_runs("return").await;
}

#[tokio::test]
async fn a_main_that_ends_by_an_error_frees_its_lock() {
    forty_runs("error").await;
}

#[tokio::test]
async fn a_main_that_panics_frees_its_lock() {
    forty_runs("panic").await;
}

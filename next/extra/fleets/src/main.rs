//! Measures tenure with many processes and clients, beside the bare client of the store.
//!
//! `fleets [ROW...]` measures rows and prints one line for each figure. Every client is a process of its own that this program
//! starts as `fleets worker WORK URL ARGUMENT...`: it connects, says `ready`, begins at the first line of its input, and prints how
//! much it did.

mod bare;
mod fleet;
mod rows;
mod work;

use std::process::ExitCode;

/// The end of a part of a measurement.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn run() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["worker", name, url, rest @ ..] => work::run(name, url, rest).await,
        ["list"] => {
            rows::ROWS
                .iter()
                .for_each(|row| println!("{:<10} {}", row.name, row.what));
            Ok(())
        }
        names => rows::run(names).await,
    }
}

/// One thread, as a small service has. The store's connection then works on the same thread as its caller.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fleets: {error}");
            ExitCode::FAILURE
        }
    }
}

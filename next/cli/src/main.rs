//! The command `tenure`.
#![forbid(unsafe_code)]

mod args;
mod conform;
mod exit;
mod guarantees;
mod output;
mod text;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};
use exit::Failure;

fn main() -> ExitCode {
    let code = match Args::try_parse() {
        Ok(args) => run(&args).unwrap_or_else(|failure| failure.print()),
        Err(error) => exit::of_usage(&error),
    };
    ExitCode::from(code)
}

fn run(args: &Args) -> Result<u8, Failure> {
    match &args.command {
        Command::Conform(options) => conform::run(args, options),
        Command::Guarantees => runtime()?.block_on(guarantees::run(args)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Failure::os("start a runtime", &error))
}

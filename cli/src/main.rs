#![forbid(unsafe_code)]
//! The command `tenure`: locks for shells, operators and scripts, and the conformance report.
//!
//! Its names, output and exit codes are an interface, written down in `docs/cli.md`.

#[cfg(not(unix))]
compile_error!("the command tenure needs Unix: it forwards signals to the commands that it runs");

mod args;
mod child;
mod commands;
mod exit;
mod hold;
mod input;
mod logs;
mod output;
mod processes;
mod script;
mod signals;
mod store;
mod watchdog;
mod words;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(task) = watchdog::task(std::env::args_os()) {
        return watchdog::main(task);
    }
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(answer) => return answer,
    };
    logs::start(cli.global.verbose);
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.code())
        }
    }
}

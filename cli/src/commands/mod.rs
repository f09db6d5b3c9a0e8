//! One module for each command.

mod conform;
mod guarantees;
mod lock;

use tokio::runtime::Builder;

use crate::args::{Cli, Command};
use crate::exit::Failure;

/// Runs the command to its end; returns the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8, Failure> {
    let Cli { global, command } = cli;
    let runtime = match command {
        // Whole fleets of clients, and checkers that compute.
        Command::Conform(_) => Builder::new_multi_thread(),
        // One thread is enough, and it is the one that lives as long as the process.
        _ => Builder::new_current_thread(),
    }
    .enable_all()
    .build()
    .map_err(|error| Failure::os("start the runtime", error))?;
    let done = runtime.block_on(async {
        match command {
            Command::Lock(args) => lock::run(&global, &args).await,
            Command::Guarantees => guarantees::run(&global).await,
            Command::Conform(args) => conform::run(&global, &args).await,
        }
    });
    // Nothing that is left (a connection that does not close) may delay the end.
    runtime.shutdown_background();
    done
}

//! One module for each command.

mod barrier;
mod conform;
mod data;
mod election;
mod guarantees;
mod judge;
mod lock;
mod long;
mod queue;
mod schema;
mod shell;
mod token_floor;

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
            Command::Lock(args) => lock::lock(&global, &args).await,
            Command::ReadLock(args) => lock::read(&global, &args).await,
            Command::WriteLock(args) => lock::write(&global, &args).await,
            Command::Elect(args) => election::elect(&global, &args).await,
            Command::Leader(args) => election::leader(&global, &args).await,
            Command::Observe(args) => election::observe(&global, &args).await,
            Command::Enqueue(args) => queue::enqueue(&global, &args).await,
            Command::Dequeue(args) => queue::dequeue(&global, &args).await,
            Command::QueueLen(args) => queue::len(&global, &args).await,
            Command::QueuePeek(args) => queue::peek(&global, &args).await,
            Command::Barrier(args) => barrier::run(&global, &args).await,
            Command::Get(args) => data::get(&global, &args).await,
            Command::Put(args) => data::put(&global, &args).await,
            Command::Delete(args) => data::delete(&global, &args).await,
            Command::Txn => data::txn(&global).await,
            Command::Shell(args) => shell::run(&global, &args).await,
            Command::TokenFloor(args) => token_floor::run(&global, &args).await,
            Command::Guarantees => guarantees::run(&global).await,
            Command::Schema(args) => schema::run(&global, &args),
            Command::Judge(args) => judge::run(&args),
            Command::Conform(args) => conform::run(&global, &args).await,
        }
    });
    // Nothing that is left (a connection that does not close) may delay the end.
    runtime.shutdown_background();
    done
}

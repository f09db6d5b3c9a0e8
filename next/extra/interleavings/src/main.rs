//! Explores each scenario of `tenure_core::interleavings` under a random and a PCT scheduler, and then each of its planted
//! faults, which must be found. See `run.sh`.

#[cfg(shuttle)]
mod explore;

#[cfg(shuttle)]
fn main() -> std::process::ExitCode {
    explore::main()
}

#[cfg(not(shuttle))]
fn main() {
    eprintln!("built without `--cfg shuttle`: use run.sh");
    std::process::exit(2);
}

//! The servers of a whole test run: `tenure-testbed serve -- COMMAND`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tenure_testbed::serve(std::env::args_os().skip(1)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprint!("tenure-testbed: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                eprint!(": {error}");
                source = error.source();
            }
            eprintln!();
            ExitCode::from(70)
        }
    }
}

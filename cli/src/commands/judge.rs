//! `tenure judge`.

use tenure_conformance::storm::{self, Verdict};

use crate::args::{Export, Judge};
use crate::exit::{self, Failure};
use crate::output;

pub(crate) fn run(args: &Judge) -> Result<u8, Failure> {
    let unread = |error: std::io::Error| Failure::new(exit::USAGE, error.to_string());
    if let Some(Export::Elle) = args.export {
        let text = storm::elle(&args.file).map_err(unread)?;
        output::line(text.trim_end())?;
        return Ok(exit::DONE);
    }
    match storm::replay(&args.file).map_err(unread)? {
        Verdict::Passed => {
            output::line("passed")?;
            Ok(exit::DONE)
        }
        Verdict::Violated { what, .. } => {
            output::line(&format!("violated: {what}"))?;
            Err(Failure::new(exit::NEGATIVE, "the history breaks a promise"))
        }
        Verdict::Invalid { why } => {
            output::line(&format!("invalid, proves nothing: {why}"))?;
            Err(Failure::new(exit::NEGATIVE, "the history proves nothing"))
        }
    }
}

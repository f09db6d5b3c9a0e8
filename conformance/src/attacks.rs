//! Which case attacks which line of the matrix.
//!
//! What a store claims on a line, all attacks on it must bear; what it denies, one of them should
//! show by a counterexample. [`Column::standing`](crate::Column::standing) says how it went.

use tenure_core::Line;

use crate::case::Case;
use crate::cases::CASES;

/// The cases that attack `line`: the table is that of [`CASES`], read by its lines.
pub fn attacks(line: Line) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| case.line == Some(line))
}

/// Lines that no case attacks, and why not. There are none: whoever adds a line adds an attack on it,
/// or a reason here.
pub const NOT_ATTACKED: &[(Line, &str)] = &[];

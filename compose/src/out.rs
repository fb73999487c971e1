//! Standard output, for what must put things away before it ends. (`println!` panics when it cannot write.)

use std::fmt;
use std::io::{self, Write};

/// Standard output takes nothing more.
#[derive(Debug)]
pub struct Unwritable(io::Error);

/// Prints a line.
pub fn line(line: impl fmt::Display) -> Result<(), Unwritable> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Unwritable)
}

impl Unwritable {
    /// Whether its reader has gone (`suture demo | head -1`), which is no failure.
    pub fn has_no_reader(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standard output cannot be written: {}", self.0)
    }
}

impl std::error::Error for Unwritable {}

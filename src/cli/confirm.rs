//! The question before something is done that can't be undone.

use std::io::{IsTerminal, Write, stderr, stdin};

use crate::config::UsageError;
use crate::error::Error;

/// Asks `question` on a terminal, after a line that says what would be `lost`; with
/// `--yes` (`is_sure`) nothing is asked.
///
/// # Errors
/// Where the answer is no; where there is no terminal to ask on.
pub(super) fn confirm(is_sure: bool, lost: &str, question: &str) -> Result<(), Error> {
    if is_sure {
        return Ok(());
    }
    if !stdin().is_terminal() || !stderr().is_terminal() {
        return Err(UsageError::CommandLine(format!(
            "{lost}, and this is no terminal to ask on; add --yes"
        ))
        .into());
    }
    // A terminal that can't be written to gives no answer either.
    let _ = write!(stderr(), "{lost}.\n{question} [y/N] ");
    let mut answer = String::new();
    let read = stdin().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Error::failure("nothing was changed; answer y to go on")),
    }
}

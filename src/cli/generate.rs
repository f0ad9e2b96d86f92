//! What is made from the code for others: shell completions, man pages, the
//! description of the control API.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::completion::registration;
use super::control::print;
use crate::error::Error;

/// `leafblk completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Prints the control API's OpenAPI document, as docs/openapi.json has it.
///
/// # Errors
/// As write(2).
pub fn print_openapi() -> Result<(), Error> {
    let document = crate::control::router::document().to_pretty_json();
    let document = document.map_err(|e| Error::failure(format!("no document can be made: {e}")))?;
    print(&format!("{document}\n"))
}

/// `leafblk man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go; made if it does not exist
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

impl CompletionsArgs {
    /// Prints the completions.
    ///
    /// # Errors
    /// As write(2).
    pub fn run(&self) -> Result<(), Error> {
        let script = registration(&self.shell.to_string()).unwrap_or_else(|| Ok(Vec::new()));
        let script = script.map_err(|e| Error::failure(format!("no script can be made: {e}")))?;
        print(&String::from_utf8_lossy(&script))
    }
}

impl ManArgs {
    /// Writes a page for each command: `leafblk.1`, `leafblk-serve.1`, ….
    ///
    /// # Errors
    /// As open(2) and write(2), with the path.
    pub fn run(&self) -> Result<(), Error> {
        let failed = |path: &Path, source: std::io::Error| {
            let path = path.display();
            Error::failure(format!("{path} can't be written ({source}); choose another DIR"))
        };
        fs::create_dir_all(&self.directory).map_err(|e| failed(&self.directory, e))?;
        clap_mangen::generate_to(Cli::command(), &self.directory)
            .map_err(|e| failed(&self.directory, e))
    }
}

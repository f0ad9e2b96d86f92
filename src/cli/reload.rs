//! `leafblk reload`: a running leafblk reads its configuration file again.

use clap::Args;

use super::control::ControlArgs;
use crate::config::Environment;
use crate::control::{ReloadPart, ReloadResult};
use crate::error::Error;

/// `leafblk reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl ReloadArgs {
    /// Does it, and prints what has changed.
    ///
    /// # Errors
    /// Where leafblk doesn't answer; and what failed, a line each, after the rest was
    /// printed.
    pub fn run(&self, env: &Environment) -> Result<(), Error> {
        let client = self.control.client(env)?;
        let answer = client.post("/v1/reload", None::<&()>)?;
        let result: ReloadResult = client.read(answer.clone())?;
        self.control.show(&answer, || Ok(describe(&result)))?;
        if result.successful {
            return Ok(());
        }
        let failed = result.failed.into_iter().map(|part| Error::failure(part.sentence));
        Err(Error::Several(failed.collect()))
    }
}

/// What is another way, and what will be, a line each.
fn describe(result: &ReloadResult) -> String {
    let lines = |what: &'static str, parts: &[ReloadPart]| -> String {
        parts.iter().map(|part| format!("{what}: {}\n", part.sentence)).collect()
    };
    let text = [
        lines("added", &result.added),
        lines("removed", &result.removed),
        lines("changed", &result.changed),
        lines("pending", &result.pending),
    ]
    .concat();
    match text.is_empty() {
        true => "nothing has changed\n".into(),
        false => text,
    }
}

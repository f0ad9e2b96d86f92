//! `leafblk root verify`: asks the daemon to read a root, and waits for what it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::completion::names;
use super::control::ControlArgs;
use crate::config::Environment;
use crate::config::name::NameOf;
use crate::control::client::Client;
use crate::control::{Verification, VerificationOutcome};
use crate::error::{CHECK_LIMITS, Error};
use crate::tools::progress::Progress;

/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(200);

/// `leafblk root verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Its name
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(names))]
    pub name: String,
    /// Record the digest that is found, whatever is recorded
    #[arg(long, conflicts_with = "cancel")]
    pub renew: bool,
    /// Call off a verification that is under way
    #[arg(long)]
    pub cancel: bool,
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl VerifyArgs {
    /// Does it; `path` is the root's in the API.
    ///
    /// # Errors
    /// leafblk's refusal; and where the root is not what was recorded, after the answer
    /// was printed as JSON if that is asked for.
    pub(super) fn run(&self, path: &str, env: &Environment) -> Result<(), Error> {
        let (client, path) = (self.control.client(env)?, format!("{path}/verify"));
        if self.cancel {
            client.delete(&path)?;
            let done = "not being verified any more";
            return self.control.done(done, NameOf::Root, &self.name, "");
        }
        let query = if self.renew { "?renew=true" } else { "" };
        let stopped = stop_signals()?;
        let begun = client.post::<()>(&format!("{path}{query}"), None)?;
        let (answer, verification) = wait(&client, &path, begun, &stopped)?;
        match verification.outcome {
            VerificationOutcome::Recorded | VerificationOutcome::Same => {
                self.control.show(&answer, || Ok(format!("{}\n", verification.detail)))
            }
            _ => {
                if self.control.json {
                    self.control.show(&answer, || Ok(String::new()))?;
                }
                Err(Error::failure(verification.detail))
            }
        }
    }
}

/// Set by the signals that end a program. A second one ends it at once.
fn stop_signals() -> Result<Arc<AtomicBool>, Error> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let status = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&stopped))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stopped)))
            .map_err(|source| {
                Error::failure(format!("can't watch for signals: {source}; {CHECK_LIMITS}"))
            })?;
    }
    Ok(stopped)
}

/// Waits until it has ended. A signal calls it off.
fn wait(
    client: &Client,
    path: &str,
    begun: Value,
    stopped: &AtomicBool,
) -> Result<(Value, Verification), Error> {
    let mut answer = begun;
    let mut shown = 0;
    let mut progress = None;
    loop {
        let verification: Verification = client.read(answer.clone())?;
        if verification.outcome != VerificationOutcome::Running {
            return Ok((answer, verification));
        }
        let size = verification.size;
        let bar = progress.get_or_insert_with(|| Progress::new("reading the root", size));
        bar.advance(verification.read_bytes.saturating_sub(shown));
        shown = verification.read_bytes;
        if stopped.load(Ordering::Relaxed) {
            client.delete(path)?;
        }
        std::thread::sleep(PAUSE);
        answer = client.get(path)?;
    }
}

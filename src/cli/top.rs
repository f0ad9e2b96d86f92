//! `leafblk top`: a live view in the terminal.

use std::time::{Duration, Instant};

use clap::Args;

use super::control::{ControlArgs, print};
use crate::config::{Environment, UsageError};
use crate::control::client::Client;
use crate::error::Error;
use crate::stats::HostStats;
use crate::top::model::Model;
use crate::top::{self, INTERVAL_MAX, INTERVAL_MIN};

/// The flags of `leafblk top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Print one reading as a table and end; rates are over one interval
    #[arg(long)]
    pub once: bool,
    /// Seconds between two readings, 0.2 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    pub interval: String,
    /// Where leafblk listens. `--json` prints what it answers, once.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl TopArgs {
    /// Shows it until the person leaves, or once.
    ///
    /// # Errors
    /// An interval that is none; no terminal; a leafblk that doesn't answer at
    /// the start.
    pub fn run(&self, env: &Environment) -> Result<(), Error> {
        let interval = self.interval()?;
        let client = self.control.client(env)?;
        if self.control.json {
            let answer = client.get("/v1/stats")?;
            return print(&format!("{answer:#}\n"));
        }
        if self.once {
            return print(&once(&client, interval)?);
        }
        if !top::terminal::is_terminal() {
            return Err(Error::failure(
                "top needs a terminal to draw on; for a pipe or a file use leafblk top --once, \
                 or --json",
            ));
        }
        // A leafblk that isn't there is an error now, and a line on the screen
        // later.
        read(&client)?;
        top::run(move || read(&client).map_err(|error| error.to_string()), interval).map_err(
            |error| {
                Error::failure(format!(
                    "the terminal can't be used ({error}); leafblk top --once needs none"
                ))
            },
        )
    }

    fn interval(&self) -> Result<Duration, UsageError> {
        let seconds = self.interval.parse().ok();
        let interval = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        interval.filter(|interval| (INTERVAL_MIN..=INTERVAL_MAX).contains(interval)).ok_or_else(
            || {
                UsageError::CommandLine(format!(
                    "interval {} is not possible; give seconds from 0.2 to 60",
                    self.interval
                ))
            },
        )
    }
}

fn read(client: &Client) -> Result<HostStats, Error> {
    let answer = client.get("/v1/stats")?;
    Ok(client.read(answer)?)
}

fn once(client: &Client, interval: Duration) -> Result<String, Error> {
    let mut model = Model::new(interval);
    model.take(read(client).map_err(|error| error.to_string()), Instant::now());
    std::thread::sleep(interval);
    model.take(Ok(read(client)?), Instant::now());
    Ok(top::text::once(&model))
}

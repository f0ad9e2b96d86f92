//! What all commands share that ask a running leafblk: where it listens, and
//! how its answers are shown.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::completion::names;
use super::table::Table;
use crate::config::limits::CONTROL_SOCKET_NAME;
use crate::config::name::NameOf;
use crate::config::{Environment, Settings, UsageError, file};
use crate::control::client::Client;
use crate::error::{Error, Refusal};

/// Where leafblk listens.
#[derive(Debug, Default, Args)]
pub struct ControlArgs {
    /// Its control socket [default: $LEAFBLK_SOCKET, else control.sock in the runtime
    /// directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Its runtime directory [default: $XDG_RUNTIME_DIR/leafblk of a user other than root,
    /// where a leafblk has its control socket there, else /run/leafblk]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Its configuration file, to find its control socket
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print leafblk's answer, or what was done, as JSON
    #[arg(long)]
    pub json: bool,
}

/// A command on roots, or on VMs.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Their names
    #[arg(value_name = "NAME", required = true, add = ArgValueCompleter::new(names))]
    pub names: Vec<String>,
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// A command that takes roots, or VMs, away.
#[derive(Debug, Args)]
pub struct AwayArgs {
    /// Which.
    #[command(flatten)]
    pub which: NamesArgs,
    /// Succeed where it is not there
    #[arg(long)]
    pub if_exists: bool,
}

/// A command on all roots, or all VMs.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print the names only, one a line
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Where leafblk listens.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl ControlArgs {
    /// A client for that leafblk.
    ///
    /// # Errors
    /// Settings that make no socket.
    pub fn client(&self, env: &Environment) -> Result<Client, Error> {
        if let Some(socket) = &self.socket {
            return Ok(Client::new(&env.working_dir.join(socket)));
        }
        if self.runtime_dir.is_none() && self.config.is_none() {
            return Ok(Client::new(&default_socket(env)));
        }
        let flags = Settings { runtime_dir: self.runtime_dir.clone(), ..Settings::default() };
        let settings = match &self.config {
            Some(path) => file::load(&env.working_dir.join(path))?.overridden_by(flags),
            None => flags,
        };
        let socket = settings.control_socket(env)?.ok_or_else(|| {
            UsageError::CommandLine(
                "the control API is off in that configuration; switch it on to use this command"
                    .into(),
            )
        })?;
        Ok(Client::new(&socket))
    }

    /// Prints an answer: as JSON where that is asked for, else as `text` has
    /// it.
    ///
    /// # Errors
    /// As write(2).
    pub fn show(
        &self,
        answer: &Value,
        text: impl FnOnce() -> Result<String, Error>,
    ) -> Result<(), Error> {
        let text = if self.json { format!("{answer:#}\n") } else { text()? };
        print(&text)
    }

    /// Says that something is done which has no answer of its own: in JSON
    /// `{"done": "detached", "vm": "web1"}`.
    ///
    /// # Errors
    /// As write(2).
    pub fn done(&self, done: &str, of: NameOf, name: &str, more: &str) -> Result<(), Error> {
        if !self.json {
            return print(&format!("{of} {name} is {done}{more}\n"));
        }
        let key = match of {
            NameOf::Vm => "vm",
            NameOf::Root => "root",
        };
        print(&format!("{:#}\n", json!({ "done": done, key: name })))
    }
}

/// Of the leafblk that somebody means who names none.
fn default_socket(env: &Environment) -> PathBuf {
    if let Some(socket) = &env.leafblk_socket {
        return env.working_dir.join(socket);
    }
    let mut sockets: Vec<PathBuf> =
        env.runtime_dirs_served().iter().map(|dir| dir.join(CONTROL_SOCKET_NAME)).collect();
    let there = sockets.iter().position(|socket| socket.exists());
    // Where there is none, the service is what isn't running.
    sockets.swap_remove(there.unwrap_or(sockets.len() - 1))
}

impl NamesArgs {
    /// Does something with each of them, also where it fails with another. `path` makes a
    /// name's path; nothing is done where one is no name.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn each(
        &self,
        path: impl Fn(&str) -> Result<String, UsageError>,
        mut work: impl FnMut(&str, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let paths = self.names.iter().map(|name| path(name)).collect::<Result<Vec<_>, _>>()?;
        let each = self.names.iter().zip(&paths);
        all(each.map(|(name, path)| work(name, path)))
    }
}

impl AwayArgs {
    /// Takes each of them away by `work`. One that is not there need not be, if that was
    /// said.
    ///
    /// # Errors
    /// Those of `work`.
    pub(super) fn each(
        &self,
        of: NameOf,
        path: impl Fn(&str) -> Result<String, UsageError>,
        mut work: impl FnMut(&str, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.which.each(path, |name, path| match work(name, path) {
            Err(error) if self.if_exists && error.refusal() == Some(Refusal::Absent) => {
                self.which.control.done("absent", of, name, "")
            }
            other => other,
        })
    }
}

/// What became of several things of which each was tried.
///
/// # Errors
/// Those that failed.
pub(super) fn all(results: impl Iterator<Item = Result<(), Error>>) -> Result<(), Error> {
    let mut errors: Vec<Error> = results.filter_map(Result::err).collect();
    match errors.pop() {
        None => Ok(()),
        Some(only) if errors.is_empty() => Err(only),
        Some(last) => {
            errors.push(last);
            Err(Error::Several(errors))
        }
    }
}

/// Prints to stdout.
///
/// # Errors
/// As write(2).
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
        Error::failure(format!(
            "the answer can't be printed ({error}), though leafblk gave it; look where stdout goes"
        ))
    })
}

/// Prints names, one a line.
///
/// # Errors
/// As write(2).
pub(super) fn print_names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    print(&names.map(|name| format!("{name}\n")).collect::<String>())
}

/// Rows of `name: value`.
pub(super) fn details(rows: &[(&str, String)]) -> String {
    let mut table = Table::new(&[]);
    for (name, value) in rows {
        table.row([format!("{name}:"), value.clone()]);
    }
    table.to_string()
}

/// Seconds since 1970, for people.
pub(super) fn time(seconds: u64) -> String {
    let second = i64::try_from(seconds).ok().and_then(|second| Timestamp::from_second(second).ok());
    second.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

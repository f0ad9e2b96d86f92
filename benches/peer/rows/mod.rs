//! The rows of the table. A row starts what it needs, measures both daemons in
//! turn, and gives back its figures; it prints nothing but progress.

mod cached;
mod flush;
mod idle;
mod neighbour;
mod replay;
mod write;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backend::{Backend, Setup};
use crate::cli::{Cli, Daemon, Sizes};
use crate::client::Client;
use crate::data;
use crate::report::Row;
use crate::util::Result;

/// A group of rows that share their set-up.
pub(crate) struct Group {
    /// The rows' numbers in the plan.
    pub numbers: &'static [u32],
    /// The rows' ids; a group runs if one is wanted.
    pub ids: &'static [&'static str],
    /// Measures the rows that are wanted.
    pub run: fn(&mut Bench) -> Result<Vec<Row>>,
}

/// Every row, in the table's order.
pub(crate) const GROUPS: [Group; 8] = [
    cached::GROUP,
    write::NEW_QD1,
    write::NEW_QD32,
    write::LEAF_READ,
    replay::GROUP,
    idle::GROUP,
    neighbour::GROUP,
    flush::GROUP,
];

/// What all rows use.
pub(crate) struct Bench {
    pub cli: Cli,
    pub sizes: Sizes,
    work: PathBuf,
    root: Option<PathBuf>,
}

impl Bench {
    /// A benchmark that keeps its files in `work`.
    pub(crate) const fn new(cli: Cli, sizes: Sizes, work: PathBuf) -> Self {
        Self { cli, sizes, work, root: None }
    }

    /// Both daemons, first column first.
    pub(crate) const fn daemons(&self) -> [Daemon; 2] {
        [self.cli.backend_a, self.cli.backend_b]
    }

    /// Where files go.
    pub(crate) fn work(&self) -> &Path {
        &self.work
    }

    /// The shared root, made when first needed.
    pub(crate) fn root(&mut self) -> Result<PathBuf> {
        if let Some(root) = &self.root {
            return Ok(root.clone());
        }
        progress(&format!("making a root of {} MiB", self.sizes.root_bytes >> 20));
        let root = self.work.join("root.raw");
        data::create_root(&root, self.sizes.root_bytes)?;
        self.root = Some(root.clone());
        Ok(root)
    }

    /// A cache that holds the whole root with room to spare.
    pub(crate) const fn cache_bytes(&self) -> u64 {
        self.sizes.root_bytes + self.sizes.root_bytes / 8 + (16 << 20)
    }

    /// The largest arena that a row asks for.
    pub(crate) const fn arena_bytes(&self) -> u64 {
        let replay = 256 << 20;
        if self.cache_bytes() > replay { self.cache_bytes() } else { replay }
    }

    /// Starts a daemon.
    pub(crate) fn start(&self, daemon: Daemon, setup: &Setup) -> Result<Backend> {
        Backend::start(&self.cli, &self.work, daemon, setup)
    }

    /// Repetitions, where a row's own number is `default`.
    pub(crate) const fn reps(&self, default: usize) -> usize {
        match (self.cli.reps, self.sizes.quick) {
            (0, true) => 1,
            (0, false) => default,
            (reps, _) => reps,
        }
    }

    /// How long one timed run lasts.
    pub(crate) fn run_time(&self) -> Duration {
        Duration::from_secs_f64(self.sizes.seconds)
    }

    /// Whether a row with this number and id was asked for.
    pub(crate) fn wants(&self, number: u32, id: &str) -> bool {
        let only = &self.cli.only;
        only.is_empty()
            || only.iter().any(|wanted| match wanted.parse::<u32>() {
                Ok(wanted) => wanted == number,
                Err(_) => id.starts_with(wanted.as_str()),
            })
    }
}

/// Connects a client to VM `vm`.
pub(crate) fn connect(
    backend: &Backend,
    vm: usize,
    slots: usize,
    slot_bytes: usize,
) -> Result<Client> {
    let socket = backend.socket(vm);
    let client = if backend.read_only() {
        Client::connect_read_only(socket, slots, slot_bytes)
    } else {
        Client::connect(socket, slots, slot_bytes)
    };
    Ok(client?.with_log(backend.log()))
}

/// Says on stderr what happens now: a run takes minutes.
#[expect(clippy::print_stderr, reason = "progress of a program for the terminal")]
pub(crate) fn progress(text: &str) {
    eprintln!("peer: {text}");
}

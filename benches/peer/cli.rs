//! The command line of the benchmark, and the sizes that follow from it.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::util::{Error, Result};

/// Which daemon stands in a column.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Daemon {
    /// The binary that this package builds.
    Leafblk,
    /// Another build of it, `--leafblk-b`.
    LeafblkB,
    /// qemu-storage-daemon.
    Qsd,
}

impl Daemon {
    /// The name in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Leafblk => "leafblk",
            Self::LeafblkB => "leafblk B",
            Self::Qsd => "qemu-storage-daemon",
        }
    }
}

/// What the peer exports for the rows that read a cached root.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum CachedPeer {
    /// The raw root itself, read-only: the peer's fastest, without an overlay.
    Raw,
    /// A qcow2 overlay on the root: what a VM with its own changes needs.
    Overlay,
}

/// leafblk and qemu-storage-daemon, side by side, driven through libblkio.
#[derive(Debug, Parser)]
#[command(name = "peer", version)]
pub(crate) struct Cli {
    /// Small sizes and one repetition: shows that every row works, measures nothing
    #[arg(long)]
    pub quick: bool,
    /// Run the rows whose number or name starts with this (may be repeated)
    #[arg(long, value_name = "ROW")]
    pub only: Vec<String>,
    /// Repetitions of each side, interleaved A B A B (0: the row's own number)
    #[arg(long, default_value_t = 0)]
    pub reps: usize,
    /// Seconds that one timed run lasts
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Where the results go as JSON [default: target/peer.json]
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print the table as Markdown
    #[arg(long)]
    pub markdown: bool,
    /// The daemon in the first column
    #[arg(long, value_enum, default_value = "leafblk")]
    pub backend_a: Daemon,
    /// The daemon in the second column
    #[arg(long, value_enum, default_value = "qsd")]
    pub backend_b: Daemon,
    /// What the peer exports in the rows that read a cached root
    #[arg(long, value_enum, default_value = "raw")]
    pub cached_peer: CachedPeer,
    /// The leafblk binary [default: the one that cargo built for this benchmark]
    #[arg(long, value_name = "FILE")]
    pub leafblk: Option<PathBuf>,
    /// The binary of `--backend-b leafblk-b`, to compare two builds
    #[arg(long, value_name = "FILE")]
    pub leafblk_b: Option<PathBuf>,
    /// Another option for `leafblk serve`, such as --poll-us=0 (may be repeated)
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub leafblk_arg: Vec<String>,
    /// leafblk's cache block in KiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(4..=4096))]
    pub cache_block_kib: u32,
    /// The boot trace to replay [default: benches/traces/debian-12-boot.txt]
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// VMs in the replay and in the idle row [default: 64]
    #[arg(long)]
    pub vms: Option<usize>,
    /// Refuse to measure while other processes use more than half a core
    #[arg(long)]
    pub strict: bool,
    /// Keep the working directory, with the daemons' logs
    #[arg(long)]
    pub keep: bool,
    /// Measure in full: `cargo bench` passes it. `cargo test --benches` does not,
    /// and gets --quick
    #[arg(long)]
    pub bench: bool,
}

impl Cli {
    /// Whether this run shows only that the rows work.
    const fn is_quick(&self) -> bool {
        self.quick || !self.bench
    }
}

/// Sizes of one run: the full ones, or those of `--quick`.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// Bytes of the root that the read and write rows use.
    pub root_bytes: u64,
    /// Seconds of one timed run.
    pub seconds: f64,
    /// Bytes that are written before leaf sectors are read.
    pub leaf_bytes: u64,
    /// VMs in the replay and in the idle row.
    pub vms: usize,
    /// Seconds over which idle VMs are watched.
    pub idle_seconds: f64,
    /// Bytes written before a flush is timed.
    pub flush_bytes: u64,
    /// `--quick`: too small to be compared with a target.
    pub quick: bool,
}

impl Sizes {
    /// The sizes that `cli` asks for.
    pub(crate) fn new(cli: &Cli) -> Result<Self> {
        const MIB: u64 = 1 << 20;
        if !(cli.seconds > 0.0 && cli.seconds <= 3600.0) {
            return Err(Error::from("--seconds must be above 0 and at most 3600"));
        }
        let vms = cli.vms.unwrap_or(if cli.is_quick() { 4 } else { 64 });
        if vms == 0 || vms > 512 {
            return Err(Error::from("--vms must be 1 to 512"));
        }
        Ok(if cli.is_quick() {
            Self {
                root_bytes: 64 * MIB,
                seconds: 0.15,
                leaf_bytes: 16 * MIB,
                vms,
                idle_seconds: 0.5,
                flush_bytes: 8 * MIB,
                quick: true,
            }
        } else {
            Self {
                root_bytes: 2048 * MIB,
                seconds: cli.seconds,
                leaf_bytes: 512 * MIB,
                vms,
                idle_seconds: cli.seconds.max(10.0),
                flush_bytes: 1024 * MIB,
                quick: false,
            }
        })
    }
}

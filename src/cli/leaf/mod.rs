//! The flags of `leafblk leaf …`.

mod run;
mod stock;
mod vm_of;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `leafblk leaf`.
#[derive(Debug, Args)]
pub struct LeafArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: LeafCommand,
}

/// The leaf's tools.
#[derive(Debug, Subcommand)]
pub enum LeafCommand {
    /// Make an empty leaf
    #[command(after_help = "\
Example:
  leafblk leaf create web1.leaf --root /images/debian.raw --size 20GiB")]
    Create(CreateArgs),
    /// List all leaves: whose they are, their roots and sizes
    #[command(after_help = "\
Examples:
  leafblk leaf list
  leafblk leaf list --json | jq -r '.[] | select(.vm == null) | .path'

The leaves in the state directory, and those that its VMs have elsewhere. No leafblk
needs to run.")]
    List(ListArgs),
    /// Delete leaves, after a question
    #[command(after_help = "\
Examples:
  leafblk leaf rm /var/lib/leafblk/web1.leaf
  leafblk leaf rm old1.leaf old2.leaf --yes

Asks on a terminal, and wants --yes elsewhere. A leaf in use is refused. To detach a
VM and delete its leaf: leafblk vm detach web1 --delete")]
    Rm(RemoveArgs),
    /// Show what a leaf is and holds
    #[command(after_help = "\
Examples:
  leafblk leaf info web1.leaf
  leafblk leaf info web1.leaf --json | jq .changed_bytes

Works beside a running VM: what is shown is not of one instant then.")]
    Info(ReportArgs),
    /// Show where each part of the disk comes from: leaf, root or zeros
    #[command(after_help = "\
Examples:
  leafblk leaf map web1.leaf
  leafblk leaf map web1.leaf --root /images/debian.raw --json

With --root, holes of the root are told apart from its data. The keys of --json
are those of qemu-img map --output=json, and \"from\". Works beside a running VM:
what is shown is not of one instant then.")]
    Map(ReportArgs),
    /// Look for damage and leftovers; exit status 1 if there is any
    #[command(after_help = "\
Examples:
  leafblk leaf check web1.leaf --root /images/debian.raw
  leafblk leaf check web1.leaf --repair")]
    Check(CheckArgs),
    /// Show where two leaves, or a leaf and its root, differ in content
    #[command(after_help = "\
Examples:
  leafblk leaf diff web1.leaf --root /images/debian.raw
  leafblk leaf diff web1.leaf web2.leaf --root /images/debian.raw
  leafblk leaf diff old.leaf new.leaf --root debian-12.raw --root debian-13.raw")]
    Diff(DiffArgs),
    /// Discard every change: back to the root
    #[command(after_help = "\
Example:
  leafblk leaf reset web1.leaf")]
    Reset(ResetArgs),
    /// Make the disk larger, or with --shrink smaller
    #[command(after_help = "\
Examples:
  leafblk leaf resize web1.leaf 40GiB
  leafblk leaf resize web1.leaf 20GiB --shrink")]
    Resize(ResizeArgs),
    /// Write a new root image: the root plus the leaf's changes
    #[command(after_help = "\
Example:
  leafblk leaf commit web1.leaf --root debian.raw --output debian-patched.raw

Leaf and root stay as they are. The image is sparse, and read back.")]
    Commit(CommitArgs),
    /// Put the same guest content on another root
    #[command(after_help = "\
Example:
  leafblk leaf rebase web1.leaf --from debian.raw --root debian-patched.raw")]
    Rebase(RebaseArgs),
    /// Write a QEMU overlay, or one raw image of root and changes
    #[command(after_help = "\
Examples:
  leafblk leaf export web1.leaf --root debian.raw --format qcow2 --output web1.qcow2
  leafblk leaf export web1.leaf --root debian.raw --format raw --output web1.raw")]
    Export(ExportArgs),
    /// Make a leaf from a qcow2 image
    #[command(after_help = "\
Example:
  leafblk leaf import web1.qcow2 web1.leaf --root debian.raw

The root is the overlay's backing file. An image without one can be put on any
root; the leaf then holds what differs.")]
    Import(ImportArgs),
    /// Give back sectors that equal the root or are zeros
    #[command(after_help = "\
Example:
  leafblk leaf compact web1.leaf --root debian.raw")]
    Compact(CompactArgs),
}

/// Which leaf, and where its daemon left its live map.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The leaf
    #[arg(value_name = "NAME.leaf")]
    pub leaf: PathBuf,
    /// What to do about a leaf whose daemon was killed.
    #[command(flatten)]
    pub crash: CrashArgs,
}

/// What to do about a leaf whose daemon was killed.
#[derive(Debug, Args)]
pub struct CrashArgs {
    /// Where a killed leafblk serve left live maps [default: as for serve]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// If the leaf was not closed, go by what was flushed and look at no live map:
    /// after the machine went down, or for a copy of a leaf
    #[arg(long)]
    pub flushed_only: bool,
}

/// `leafblk leaf create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The new leaf
    #[arg(value_name = "NAME.leaf")]
    pub leaf: PathBuf,
    /// Its root
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: String,
    /// The disk's size, at least the root's [default: the root's]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
}

/// Which state directory.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// The state directory of leafblk serve [default: as for serve]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The configuration file of leafblk serve, to find its state directory
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
}

/// `leafblk leaf list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Whose leaves.
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `leafblk leaf rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The leaves
    #[arg(value_name = "NAME.leaf", required = true)]
    pub leaves: Vec<PathBuf>,
    /// Delete them without a question
    #[arg(long)]
    pub yes: bool,
    /// Where a killed leafblk serve left live maps [default: as for serve]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Whose leaves.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `leafblk leaf info` and `map`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The leaf's root; another one is an error
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `leafblk leaf check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Which leaf, and how to tell.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Mend what can be mended without risk
    #[arg(long)]
    pub repair: bool,
}

/// `leafblk leaf diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Another leaf [default: the root of the first]
    #[arg(value_name = "OTHER.leaf")]
    pub other: Option<PathBuf>,
    /// The leaf's root; twice where they have two
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]", required = true)]
    pub root: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// End with status 1 if there is a difference
    #[arg(long)]
    pub exit_code: bool,
}

/// `leafblk leaf reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The leaf
    #[arg(value_name = "NAME.leaf")]
    pub leaf: PathBuf,
    /// Where a killed leafblk serve left live maps [default: as for serve]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
}

/// `leafblk leaf resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The disk's new size, at least the root's
    #[arg(value_name = "SIZE")]
    pub size: String,
    /// Allow a smaller size: what lies beyond it is lost
    #[arg(long)]
    pub shrink: bool,
}

/// `leafblk leaf commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The leaf's root
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: String,
    /// The new image, which must not exist
    #[arg(long, value_name = "NEW.raw")]
    pub output: PathBuf,
}

/// `leafblk leaf rebase`.
#[derive(Debug, Args)]
pub struct RebaseArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The root that the leaf is on
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub from: String,
    /// The root that it is to be on
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: String,
}

/// What `leafblk leaf export` writes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ExportFormat {
    /// A qcow2 overlay with the root as its backing file
    Qcow2,
    /// A raw image of root and changes
    Raw,
}

/// `leafblk leaf export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The leaf's root
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: String,
    /// What to write
    #[arg(long, value_name = "FORMAT")]
    pub format: ExportFormat,
    /// The new file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `leafblk leaf import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The qcow2 image
    #[arg(value_name = "IMAGE.qcow2")]
    pub image: PathBuf,
    /// The new leaf, which must not exist
    #[arg(value_name = "NAME.leaf")]
    pub leaf: PathBuf,
    /// The leaf's root
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: String,
}

/// `leafblk leaf compact`.
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// Which leaf.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The leaf's root
    #[arg(long, value_name = "[NAME=]PATH[,format=raw]")]
    pub root: String,
}

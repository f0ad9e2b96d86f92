//! What a host is doing, as plain values: for `GET /v1/stats`, for `/metrics`,
//! for `leafblk top` and for the page.
//!
//! Owns the values and how they are read off the running parts; never on a
//! reactor. Everything that counts up starts at 0 when its VM is attached (or
//! the daemon started) and never goes back before that ends.

pub mod exposition;
pub mod latency;
mod process;
pub mod rates;
mod read;
#[cfg(test)]
pub(crate) mod sample;

pub use process::ProcessStats;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The whole host at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct HostStats {
    /// leafblk's version.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// Mistakes of leafblk itself that it noticed; the log says which.
    #[serde(default)]
    pub internal_errors: u64,
    /// What the process takes of its host.
    #[serde(default)]
    pub process: ProcessStats,
    /// Whether the runtime directory is on a file system in memory; null where that isn't
    /// known.
    #[serde(default)]
    pub runtime_dir_in_memory: Option<bool>,
    /// How the last reload of the configuration went; null before the first.
    #[serde(default)]
    pub last_reload: Option<ReloadStats>,
    /// The cache.
    pub cache: CacheStats,
    /// The reactors, in the order of their numbers.
    pub reactors: Vec<ReactorStats>,
    /// The roots that are served, by name.
    pub roots: Vec<RootStats>,
    /// The VMs that are served, by name.
    pub vms: Vec<VmStats>,
    /// How many VMs there are, served or not.
    #[serde(default)]
    pub vm_states: StateCounts,
    /// How many roots there are, served or not.
    #[serde(default)]
    pub root_states: StateCounts,
    /// The VMs that could not be attached, by name.
    #[serde(default)]
    pub failed_vms: Vec<Failed>,
    /// The roots that could not be added, by name.
    #[serde(default)]
    pub failed_roots: Vec<Failed>,
    /// What is served and has a problem.
    #[serde(default)]
    pub failing: Vec<FailingPart>,
    /// The file systems of leaves, state directory and runtime directory, by path.
    #[serde(default)]
    pub file_systems: Vec<FileSystemStats>,
}

/// How a reload of the configuration went.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ReloadStats {
    /// When it was done, in seconds since 1970.
    pub at: u64,
    /// Whether nothing failed.
    pub successful: bool,
}

/// A part of the host that is served, or used, and has a problem.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FailingPart {
    /// What it is: `root`, `VM`, `file system` or `configuration`.
    pub part: String,
    /// Its name; a file system's path; `reload` for the configuration as last reloaded.
    pub name: String,
    /// The problem; through the port for looking, which tells no paths, where to learn
    /// it.
    pub problem: String,
}

/// A file system that leafblk keeps something on.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct FileSystemStats {
    /// Where it is mounted.
    pub path: String,
    /// What is on it: `leaves`, `state` (the state directory), `runtime` (the runtime
    /// directory).
    pub uses: Vec<String>,
    /// Bytes in all; null, as all that follows, while the file system doesn't say.
    pub size_bytes: Option<u64>,
    /// Bytes that are free for users other than root.
    pub free_bytes: Option<u64>,
    /// Inodes in all; null also where the file system doesn't count them.
    pub inodes: Option<u64>,
    /// Inodes that are free.
    pub free_inodes: Option<u64>,
    /// For how many seconds it has owed an answer; null where it answers.
    pub silent_seconds: Option<u64>,
}

/// How many VMs or roots are in which state.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct StateCounts {
    /// Being attached.
    pub attaching: u64,
    /// In use.
    pub serving: u64,
    /// Being detached or reverted.
    pub changing: u64,
    /// Wanted, but they could not be attached.
    pub failed: u64,
}

/// A VM or a root that could not be attached.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Failed {
    /// Its name.
    pub name: String,
    /// Why; through the port for looking, which tells no paths, where to learn
    /// why.
    pub reason: String,
}

// The form that goes out: `cache::CacheStats` is what the cache knows of itself,
// without the lookups, which disks count.
/// The cache that all VMs share.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct CacheStats {
    /// Bytes of memory set aside for blocks.
    pub size_bytes: u64,
    /// Bytes in a block.
    pub block_bytes: u64,
    /// What the memory is made of: `hugetlb`, `transparent` or `ordinary`.
    pub pages: String,
    /// Bytes of blocks that can be hit now.
    pub used_bytes: u64,
    /// Blocks being filled now.
    pub filling_blocks: u64,
    /// Evicted blocks that a reactor may still be copying.
    pub limbo_blocks: u64,
    /// Blocks of roots known to be all zeros, which need no memory.
    pub zero_blocks: u64,
    /// Pieces of reads, each within one block, that were found.
    pub hits: u64,
    /// Pieces that had to wait for their block.
    pub misses: u64,
    /// Reads of a block from its root that were begun.
    pub fills: u64,
    /// Those that failed.
    pub failed_fills: u64,
    /// Misses that had to be tried again for want of a free slot.
    pub refused_fills: u64,
    /// Misses that waited for a fill that another had begun.
    pub single_flight_waits: u64,
    /// Blocks given up for others.
    pub evictions: u64,
}

/// One reactor.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct ReactorStats {
    /// Its number, from 0.
    pub reactor: u64,
    /// Connected devices that it serves.
    pub devices: u64,
    /// Nanoseconds in which it had work in hand.
    pub busy_ns: u64,
    /// Nanoseconds of CPU that its thread used: the busy ones and polling.
    pub cpu_ns: u64,
    /// Turns of its loop.
    pub polls: u64,
    /// Calls of epoll_wait(2).
    pub looks: u64,
    /// Times that it slept.
    pub sleeps: u64,
    /// Kicks that it took.
    pub kicks: u64,
    /// Calls that it sent.
    pub calls: u64,
    /// Requests that had to wait for something.
    pub deferred: u64,
}

/// One root.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct RootStats {
    /// Its name.
    pub name: String,
    /// Bytes of the image.
    pub size: u64,
    /// VMs on it.
    pub vms: u64,
    /// Whether its file has changed since it was recorded, though its samples have not, or
    /// was deleted, moved or replaced while it is in use.
    #[serde(default)]
    pub changed: bool,
}

/// One VM.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct VmStats {
    /// Its name.
    pub name: String,
    /// Its root's name.
    pub root: String,
    /// The reactor that serves it.
    pub reactor: u64,
    /// Bytes of its disk.
    pub size: u64,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Whether a frontend is connected.
    pub connected: bool,
    /// The process of the frontend that is connected; null if none is.
    #[serde(default)]
    pub client: Option<ClientStats>,
    /// Frontends that have connected.
    pub connections: u64,
    /// Requests in flight that were taken up after a reconnect.
    #[serde(default)]
    pub resubmitted: u64,
    /// Its leaf, if it has one.
    pub leaf: Option<LeafStats>,
    /// Where the sectors that it read came from.
    pub read_sectors: SourceSectors,
    /// Sectors that it asked to be written.
    pub written_sectors: u64,
    /// Sectors that it asked to be discarded.
    pub discarded_sectors: u64,
    /// Sectors that it asked to be zeroed.
    pub zeroed_sectors: u64,
    /// Pieces of its reads that were in the cache.
    pub cache_hits: u64,
    /// Pieces that had to wait for their block.
    pub cache_misses: u64,
    /// Times that its device was stopped until it was reset.
    pub device_faults: u64,
    /// Failures to write its leaf back that no request waited for.
    pub write_back_errors: u64,
    /// Whether its writes, flushes, reads or connections fail now, or its device is stopped.
    #[serde(default)]
    pub failing: bool,
    /// Its requests by kind, in the order of
    /// [`crate::metrics::Operation::ALL`].
    pub operations: Vec<OperationStats>,
}

/// The process that is connected to a VM's socket.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ClientStats {
    /// Its process id; null where it is in a PID namespace that leafblk doesn't see.
    pub pid: Option<u32>,
    /// The name of its command; null where /proc doesn't tell.
    pub command: Option<String>,
}

impl std::fmt::Display for ClientStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let command = self.command.as_deref().unwrap_or("a process");
        match self.pid {
            Some(pid) => write!(f, "{command}, pid {pid}"),
            None => f.write_str(command),
        }
    }
}

/// One VM's leaf.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct LeafStats {
    /// Bytes of the disk that it holds.
    pub held_bytes: u64,
    /// Bytes that its file occupies; 0 if the file system doesn't tell.
    pub allocated_bytes: u64,
    /// Bytes written since write-back was last asked for, or a flush begun.
    pub unsynced_bytes: u64,
    /// Whether a sync failed: nothing is acknowledged any more.
    pub failed: bool,
    /// Whether its file was deleted, moved or replaced while it is in use.
    #[serde(default)]
    pub lost: bool,
}

/// Sectors by where they came from.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
pub struct SourceSectors {
    /// The VM's leaf.
    pub leaf: u64,
    /// The cache, at once.
    pub cache: u64,
    /// The root, through a cache block that had to be waited for.
    pub root: u64,
    /// Nowhere: they are known to be zeros.
    pub zero: u64,
}

/// One kind of request.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
pub struct OperationStats {
    /// Its name: `read`, `write`, `flush`, `discard`, `write_zeroes`, `other`.
    pub operation: String,
    /// Requests answered.
    pub requests: u64,
    /// Those that were answered with an error.
    pub errors: u64,
    /// How many took up to 1 µs, up to 2 µs, and so on, each bound twice the
    /// one before; the last is what took more than 8.4 s.
    pub latency_counts: Vec<u64>,
    /// All their latencies together.
    pub latency_sum_ns: u64,
}

impl SourceSectors {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.leaf + self.cache + self.root + self.zero
    }
}

impl VmStats {
    /// Bytes that requests of a kind have moved, or were about.
    pub fn bytes(&self, operation: crate::metrics::Operation) -> u64 {
        use crate::metrics::Operation;
        512 * match operation {
            Operation::Read => self.read_sectors.total(),
            Operation::Write => self.written_sectors,
            Operation::Discard => self.discarded_sectors,
            Operation::WriteZeroes => self.zeroed_sectors,
            Operation::Flush | Operation::Other => 0,
        }
    }
}

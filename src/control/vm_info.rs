//! VMs as the API shows them, and what it takes for a change of one.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::config::forms::SizeForm;
use crate::config::schemas::{BlockSize, Size};
use crate::daemon::{self, VmView};
use crate::disk::{Counters, Disk, Trouble};
use crate::metrics::Operation;
use crate::stats::ClientStats;
use crate::units::SECTOR_SIZE;
use crate::vhost_user;

/// A VM.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Who wanted it.
    pub origin: Origin,
    /// What is being done to it.
    pub state: State,
    /// Why it could not be attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The name of its root.
    pub root: String,
    /// Size of its disk; null while that is not known.
    pub size: Option<u64>,
    /// Its leaf.
    pub leaf: String,
    /// Whether its leaf was made when it was attached, or at this start; null while it
    /// has none.
    pub leaf_is_new: Option<bool>,
    /// The UUID of its disk, by which its leaf is known again; null while it has none.
    pub leaf_uuid: Option<String>,
    /// Its vhost-user socket.
    pub socket: String,
    /// Its virtqueues.
    pub queues: u16,
    /// What its guest reads as the disk's serial number.
    pub serial: String,
    /// Another VM with the same serial number: a guest that has both disks sees one
    /// of them in /dev/disk/by-id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_shared_with: Option<String>,
    /// What its guest addresses the disk by.
    #[serde(rename = "block-size")]
    #[schema(rename = "block-size", value_type = BlockSize)]
    pub block_size: u32,
    /// The guest may not write.
    pub readonly: bool,
    /// The leaf is thrown away when it is detached.
    pub ephemeral: bool,
    /// Whether a client (its hypervisor) is connected.
    pub connected: bool,
    /// The process that is connected; null if none is.
    #[serde(default)]
    pub client: Option<ClientStats>,
    /// Clients that have connected since it was attached or reverted.
    pub connections: u64,
    /// The reactor that serves it.
    pub reactor: Option<usize>,
    /// Bytes that its leaf holds: what this VM has changed.
    pub leaf_held_bytes: Option<u64>,
    /// Bytes that its leaf occupies on its disk.
    pub leaf_allocated_bytes: Option<u64>,
    /// Writing its leaf to disk has failed: nothing is accepted any more.
    pub leaf_failed: bool,
    /// What is wrong with it now, a sentence each.
    #[serde(default)]
    pub problems: Vec<String>,
    /// The last trouble with its client or its guest's driver, also if it is over; null if
    /// there was none since it was attached or reverted.
    #[serde(default)]
    pub last_trouble: Option<TroubleInfo>,
    /// What it did since it was attached or reverted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<VmCounters>,
}

/// Trouble that ended a connection, or stopped a VM's device.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct TroubleInfo {
    /// When it came last, in seconds since 1970.
    pub at: u64,
    /// What it was.
    pub why: String,
    /// How often it, or another, has come without a request being served between.
    pub times: u64,
}

impl From<Trouble> for TroubleInfo {
    fn from(trouble: Trouble) -> Self {
        let Trouble { at, why, times, .. } = trouble;
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { at, why, times }
    }
}

/// Who wanted a VM or a root.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration file or a flag.
    Configuration,
    /// This API.
    Api,
}

impl From<daemon::Origin> for Origin {
    fn from(origin: daemon::Origin) -> Self {
        match origin {
            daemon::Origin::Configuration => Self::Configuration,
            daemon::Origin::Api => Self::Api,
        }
    }
}

/// What is being done to a VM or a root.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being attached.
    Attaching,
    /// In use.
    Serving,
    /// Being detached or reverted.
    Changing,
    /// Wanted, but it could not be attached: `reason` says why.
    Failed,
}

impl State {
    /// The state, and the reason where it is failed.
    pub(super) fn of(state: daemon::State) -> (Self, Option<String>) {
        match state {
            daemon::State::Attaching => (Self::Attaching, None),
            daemon::State::Serving => (Self::Serving, None),
            daemon::State::Changing => (Self::Changing, None),
            daemon::State::Failed(reason) => (Self::Failed, Some(reason)),
        }
    }
}

// What a person looks at, in requests and bytes; `stats::VmStats` has everything
// that is counted, in sectors and by latency, for programs that compare readings.
// Both read the same `disk::Counters`; each form changes only with its own path.
/// What a VM did.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
pub struct VmCounters {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard requests.
    pub discards: u64,
    /// Write-zeroes requests.
    pub write_zeroes: u64,
    /// What went wrong: requests that failed, and devices that were stopped.
    pub errors: u64,
    /// Bytes read from its leaf.
    pub read_bytes_leaf: u64,
    /// Bytes read from the cache.
    pub read_bytes_cache: u64,
    /// Bytes read from the root.
    pub read_bytes_root: u64,
    /// Bytes that were zeros without being read.
    pub read_bytes_zero: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

impl From<&Counters> for VmCounters {
    fn from(counters: &Counters) -> Self {
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_SIZE);
        let requests = |operation| counters.latency(operation).count();
        Self {
            reads: requests(Operation::Read),
            writes: requests(Operation::Write),
            flushes: requests(Operation::Flush),
            discards: requests(Operation::Discard),
            write_zeroes: requests(Operation::WriteZeroes),
            errors: counters.all_errors(),
            read_bytes_leaf: bytes(counters.read_sectors_leaf.get()),
            read_bytes_cache: bytes(counters.read_sectors_cache.get()),
            read_bytes_root: bytes(counters.read_sectors_root.get()),
            read_bytes_zero: bytes(counters.read_sectors_zero.get()),
            written_bytes: bytes(counters.written_sectors.get()),
        }
    }
}

impl From<VmView> for VmInfo {
    fn from(view: VmView) -> Self {
        let problems = view.problems();
        let VmView { config, origin, state, vm, reactor, same_serial } = view;
        let (state, reason) = State::of(state);
        let disk: Option<&Disk> = vm.as_ref().map(|vm| &**vm.disk());
        let leaf = disk.and_then(|disk| disk.leaf());
        Self {
            name: config.name,
            origin: origin.into(),
            state,
            reason,
            root: config.root,
            size: disk.map(|disk| disk.sectors() * SECTOR_SIZE).or(config.size),
            leaf: config.leaf.to_string_lossy().into(),
            leaf_is_new: leaf.and(vm.as_ref()).map(|vm| vm.has_new_leaf()),
            leaf_uuid: leaf.map(|leaf| Uuid::from_bytes(leaf.disk_uuid()).to_string()),
            socket: config.socket.to_string_lossy().into(),
            queues: config.queues,
            serial: config.serial.to_string(),
            serial_shared_with: same_serial,
            block_size: config.block_size.to_bytes(),
            readonly: disk.map_or(config.readonly, Disk::is_read_only),
            ephemeral: config.ephemeral,
            connected: vm.as_ref().is_some_and(|vm| vm.link().is_connected()),
            client: vm.as_ref().and_then(|vm| vm.link().peer()).map(ClientStats::from),
            connections: disk.map_or(0, |disk| disk.counters().connections.get()),
            reactor,
            leaf_held_bytes: leaf.map(|leaf| leaf.present_sectors() * SECTOR_SIZE),
            leaf_allocated_bytes: leaf.and_then(|leaf| leaf.occupied_bytes()),
            leaf_failed: leaf.is_some_and(|leaf| leaf.is_poisoned()),
            problems,
            last_trouble: disk.and_then(Disk::last_trouble).map(TroubleInfo::from),
            counters: disk.map(|disk| VmCounters::from(disk.counters())),
        }
    }
}

/// A new size.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// The size of the disk, not less than it is now.
    #[schema(value_type = Size)]
    pub size: SizeForm,
}

/// What a resize did.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct ResizeResult {
    /// The VM afterwards.
    pub vm: VmInfo,
    /// Who was told of the new size.
    pub told: Told,
}

/// Who was told of a new size.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// The client, which tells its guest: QEMU does.
    Client,
    /// Nobody: no client is connected. A hypervisor that starts its guest afterwards
    /// sees the size; QEMU that ran all the time and connects again does not, until
    /// the resize is repeated.
    Nobody,
    /// Nobody: the client can't be told. Firecracker sees the size at PATCH /drives/ID,
    /// Cloud Hypervisor when its guest reboots or the disk is removed and added again.
    NotPossible,
}

impl From<vhost_user::Told> for Told {
    fn from(told: vhost_user::Told) -> Self {
        match told {
            vhost_user::Told::Frontend => Self::Client,
            vhost_user::Told::Nobody => Self::Nobody,
            vhost_user::Told::NotPossible => Self::NotPossible,
        }
    }
}

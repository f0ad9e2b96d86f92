//! The host: what is served, as other threads see and change it.
//!
//! A [`Host`] is a handle, cheap to clone, for control threads: its calls may
//! block, and none belongs on a reactor. Changes of VMs are in `vms.rs`, of
//! roots in `roots.rs`.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::acceptor::Acceptor;
use super::error::HostError;
use super::file_systems::{FileSystem, FileSystemUse, FileSystems};
use super::lasting;
use super::leaf_records::LeafRecords;
use super::pulse::Pulse;
use super::reload_requests::ReloadRequests;
use super::root_records::RootRecords;
use super::root_watch::RootWatch;
use super::state_file::{Attached, StateFile};
use super::table::{Life, Origin, RootRow, Table, VmRow};
use super::verify::Verification;
use super::vm::Vm;
use crate::cache::Cache;
use crate::config::name::NameOf;
use crate::config::serial::Serials;
use crate::config::{Directories, RootConfig, RootEntry, VmConfig};
use crate::disk::CachedRoot;
use crate::reactor::Mailbox;

/// A handle on everything that the process serves.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

pub(super) struct Inner {
    pub(super) directories: Directories,
    pub(super) cache: Arc<Cache>,
    pub(super) mailboxes: Arc<[Arc<Mailbox>]>,
    pub(super) acceptor: Acceptor,
    /// Who may use VMs' sockets beside their owner.
    pub(super) socket_group: Option<u32>,
    /// Which leaf each VM has.
    pub(super) records: Arc<LeafRecords>,
    /// What each root was.
    pub(super) root_records: Arc<RootRecords>,
    /// The root that is being verified, or was last.
    pub(super) verifying: Mutex<Option<(String, Arc<Verification>)>>,
    pub(super) reloads: ReloadRequests,
    /// Whether the runtime directory is in memory, if that could be asked.
    runtime_dir_in_memory: Option<bool>,
    /// Whether there is a control API.
    pub(super) has_api: bool,
    table: Mutex<Table>,
    /// Held while the state file is written. `None` inside: nothing is kept.
    state: Mutex<Option<StateFile>>,
    started: (Instant, SystemTime),
    pulse: Pulse,
    pub(super) file_systems: FileSystems,
    /// What the directories are on.
    pub(super) own_file_systems: Vec<(FileSystemUse, Arc<FileSystem>)>,
}

/// What a [`Host`] is made of.
pub(super) struct HostParts {
    pub(super) directories: Directories,
    pub(super) cache: Arc<Cache>,
    pub(super) mailboxes: Arc<[Arc<Mailbox>]>,
    pub(super) acceptor: Acceptor,
    pub(super) table: Table,
    pub(super) state: Option<StateFile>,
    pub(super) socket_group: Option<u32>,
    pub(super) reloads: ReloadRequests,
}

/// What is being done to a root or a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// Being attached.
    Attaching,
    /// In use.
    Serving,
    /// Being detached or reverted.
    Changing,
    /// Wanted, but it could not be attached: why.
    Failed(String),
}

impl State {
    fn of<T>(life: &Life<T>) -> Self {
        match life {
            Life::Attaching => Self::Attaching,
            Life::Serving(_) => Self::Serving,
            Life::Changing(..) => Self::Changing,
            Life::Failed(why) => Self::Failed(why.clone()),
        }
    }
}

fn made<T>(life: &Life<T>) -> Option<Arc<T>> {
    match life {
        Life::Serving(it) | Life::Changing(it, _) => Some(Arc::clone(it)),
        Life::Attaching | Life::Failed(_) => None,
    }
}

/// A VM as it was at one moment.
#[derive(Clone, Debug)]
pub struct VmView {
    /// Its settings.
    pub config: VmConfig,
    /// Who wanted it.
    pub origin: Origin,
    /// What is being done to it.
    pub state: State,
    /// The VM, once it is made.
    pub vm: Option<Arc<Vm>>,
    /// The reactor that serves it, by its number.
    pub reactor: Option<usize>,
    /// Another VM with the same serial number.
    pub same_serial: Option<String>,
}

/// A root as it was at one moment.
#[derive(Clone, Debug)]
pub struct RootView {
    /// Its settings.
    pub config: RootConfig,
    /// Who wanted it.
    pub origin: Origin,
    /// What is being done to it.
    pub state: State,
    /// The root, once it is open.
    pub root: Option<Arc<CachedRoot>>,
    /// What is known of its file.
    pub(super) watch: Option<Arc<RootWatch>>,
    /// The names of the VMs that have it.
    pub users: Vec<String>,
}

impl VmView {
    fn of(vm: &VmRow, serials: &Serials<'_>) -> Self {
        let VmConfig { name, serial, .. } = &vm.row.config;
        Self {
            same_serial: serials.another(serial, name).map(str::to_owned),
            config: vm.row.config.clone(),
            origin: vm.row.origin,
            state: State::of(&vm.row.life),
            vm: made(&vm.row.life),
            reactor: Some(vm.reactor).filter(|_| made(&vm.row.life).is_some()),
        }
    }
}

impl RootView {
    pub(super) fn of(root: &RootRow, table: &Table) -> Self {
        let served = made(&root.life);
        Self {
            config: root.config.clone(),
            origin: root.origin,
            state: State::of(&root.life),
            root: served.as_ref().map(|served| Arc::clone(served.cached())),
            watch: served.as_ref().map(|served| Arc::clone(served.watch())),
            users: table.users(&root.config.name).into_iter().map(str::to_owned).collect(),
        }
    }
}

impl Host {
    pub(super) fn new(parts: HostParts) -> Self {
        let HostParts {
            directories,
            cache,
            mailboxes,
            acceptor,
            table,
            state,
            socket_group,
            reloads,
        } = parts;
        let (pulse, file_systems) = (Pulse::new(&mailboxes), FileSystems::default());
        let own = [
            (FileSystemUse::State, &directories.state),
            (FileSystemUse::Runtime, &directories.runtime),
        ];
        let own = own.into_iter().filter_map(|(used, directory)| {
            let found = file_systems.of(directory);
            let unknown = |error: &std::io::Error| {
                log::warn!("{}: its free space is not known: {error}", directory.display());
            };
            Some((used, found.inspect_err(unknown).ok()?))
        });
        let own_file_systems = own.collect();
        let records = Arc::new(LeafRecords::in_directory(&directories.state));
        let root_records = Arc::new(RootRecords::in_directory(&directories.state));
        let has_api = state.is_some();
        let runtime_dir_in_memory = lasting::is_in_memory(&directories.runtime).ok();
        Self(Arc::new(Inner {
            pulse,
            file_systems,
            own_file_systems,
            directories,
            cache,
            mailboxes,
            acceptor,
            socket_group,
            records,
            root_records,
            verifying: Mutex::default(),
            reloads,
            runtime_dir_in_memory,
            has_api,
            table: Mutex::new(table),
            state: Mutex::new(state),
            started: (Instant::now(), SystemTime::now()),
        }))
    }

    /// All VMs, by name.
    pub fn vms(&self) -> Vec<VmView> {
        let table = self.table();
        let serials = table.serials();
        table.vms.values().map(|vm| VmView::of(vm, &serials)).collect()
    }

    /// One VM.
    ///
    /// # Errors
    /// [`HostError::NoSuch`].
    pub fn vm(&self, name: &str) -> Result<VmView, HostError> {
        let table = self.table();
        let no_such = || HostError::no_such(NameOf::Vm, name, table.vms.keys());
        table.vms.get(name).map(|vm| VmView::of(vm, &table.serials())).ok_or_else(no_such)
    }

    /// All roots, by name.
    pub fn roots(&self) -> Vec<RootView> {
        let table = self.table();
        table.roots.values().map(|root| RootView::of(root, &table)).collect()
    }

    /// One root.
    ///
    /// # Errors
    /// [`HostError::NoSuch`].
    pub fn root(&self, name: &str) -> Result<RootView, HostError> {
        let table = self.table();
        let no_such = || HostError::no_such(NameOf::Root, name, table.roots.keys());
        table.roots.get(name).map(|root| RootView::of(root, &table)).ok_or_else(no_such)
    }

    /// The cache that all roots share.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.0.cache
    }

    /// The reactors, by their numbers.
    pub fn reactors(&self) -> &[Arc<Mailbox>] {
        &self.0.mailboxes
    }

    /// The numbers of the reactors that give no sign of life within `wait`.
    pub fn reactors_stuck(&self, wait: Duration) -> Vec<usize> {
        self.0.pulse.stuck(wait)
    }

    /// Where leaves are by default.
    pub fn state_dir(&self) -> &Path {
        &self.0.directories.state
    }

    /// Where sockets are by default.
    pub fn runtime_dir(&self) -> &Path {
        &self.0.directories.runtime
    }

    /// Whether that is on a file system in memory, as it should be.
    pub fn has_runtime_dir_in_memory(&self) -> Option<bool> {
        self.0.runtime_dir_in_memory
    }

    /// When the process began to serve: for durations, and for people.
    pub fn started(&self) -> (Instant, SystemTime) {
        self.0.started
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    /// The table, also where a thread panicked with it: each change of it is a
    /// single step.
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the state file as the table says now.
    pub(super) fn keep(&self) -> Result<(), HostError> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &*state else {
            return Ok(());
        };
        // Taken under the file's lock: of two writers the later one knows more.
        let attached = self.attached();
        file.write(&attached).map_err(HostError::failed)
    }

    fn attached(&self) -> Attached {
        let table = self.table();
        let roots = table.roots.values().filter(|root| root.keep);
        let vms = table.vms.values().filter(|vm| vm.row.keep);
        Attached {
            roots: roots.map(|root| RootEntry::from(&root.config)).collect(),
            vms: vms.map(|vm| vm.entry.clone()).collect(),
        }
    }

    /// Lets the state file go. Nothing is kept afterwards.
    pub(super) fn release_state(&self) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

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
use super::pulse::Pulse;
use super::state_file::{Attached, StateFile};
use super::table::{Life, Origin, RootRow, Table, VmRow};
use super::vm::Vm;
use crate::cache::Cache;
use crate::config::name::NameOf;
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
    table: Mutex<Table>,
    /// Held while the state file is written. `None` inside: nothing is kept.
    state: Mutex<Option<StateFile>>,
    started: (Instant, SystemTime),
    pulse: Pulse,
}

/// What is being done to a root or a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// Being attached.
    Attaching,
    /// In use.
    Serving,
    /// Being detached or reset.
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
    /// The names of the VMs that have it.
    pub users: Vec<String>,
}

impl VmView {
    pub(super) fn of(vm: &VmRow) -> Self {
        Self {
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
        Self {
            config: root.config.clone(),
            origin: root.origin,
            state: State::of(&root.life),
            root: made(&root.life),
            users: table.users(&root.config.name).into_iter().map(str::to_owned).collect(),
        }
    }
}

impl Host {
    pub(super) fn new(
        directories: Directories,
        cache: Arc<Cache>,
        mailboxes: Arc<[Arc<Mailbox>]>,
        acceptor: Acceptor,
        table: Table,
        state: Option<StateFile>,
        socket_group: Option<u32>,
    ) -> Self {
        let pulse = Pulse::new(&mailboxes);
        Self(Arc::new(Inner {
            pulse,
            directories,
            cache,
            mailboxes,
            acceptor,
            socket_group,
            table: Mutex::new(table),
            state: Mutex::new(state),
            started: (Instant::now(), SystemTime::now()),
        }))
    }

    /// All VMs, by name.
    pub fn vms(&self) -> Vec<VmView> {
        self.table().vms.values().map(VmView::of).collect()
    }

    /// One VM.
    ///
    /// # Errors
    /// [`HostError::NoSuch`].
    pub fn vm(&self, name: &str) -> Result<VmView, HostError> {
        self.table().vm(name).map(|vm| VmView::of(vm))
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
        let no_such = || HostError::NoSuch { of: NameOf::Root, name: name.into() };
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
            roots: roots
                .map(|root| RootEntry {
                    name: root.config.name.clone(),
                    path: root.config.path.clone(),
                })
                .collect(),
            vms: vms.map(|vm| vm.entry.clone()).collect(),
        }
    }

    /// Lets the state file go. Nothing is kept afterwards.
    pub(super) fn release_state(&self) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

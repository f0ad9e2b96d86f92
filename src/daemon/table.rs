//! Which roots and VMs there are, and what is being done to each.
//!
//! Plain memory behind one lock that is held for moments. Whatever takes time
//! happens outside of it, under a life that keeps others away:
//!
//! ```text
//! (no row) ── attach ──► Attaching ──► Serving ──► Changing ──► (no row)
//!                             └──────► Failed        └────────► Serving
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::error::HostError;
use super::leaf_choice::LeafProblem;
use super::root_watch::ServedRoot;
use super::vm::Vm;
use crate::config::limits::{ROOTS_MAX, VMS_MAX};
use crate::config::name::NameOf;
use crate::config::paths::{PathClaim, PathUses};
use crate::config::serial::Serials;
use crate::config::{RootConfig, UsageError, VmConfig, VmEntry};
use crate::disk::CachedRoot;

/// Who wanted a root or a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The configuration file or a flag: there at every start.
    Configuration,
    /// The control API: there until it is detached, also after a restart.
    Api,
}

/// How a root or a VM comes into the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    /// The configuration has it.
    Configured,
    /// Somebody asks for it now.
    Asked,
    /// The state file has it already.
    Kept,
}

impl Cause {
    pub(super) const fn origin(self) -> Origin {
        match self {
            Self::Configured => Origin::Configuration,
            Self::Asked | Self::Kept => Origin::Api,
        }
    }

    /// Whether what could not be had for such a reason is known as failed.
    pub(super) fn is_known_as_failed(self, error: &HostError) -> bool {
        match error {
            // There is one by that name, which is not to be touched.
            HostError::Exists { .. } => false,
            // What the state file has must not get lost from it.
            HostError::Stopping => self == Self::Kept,
            _ => true,
        }
    }
}

/// What is being done to a row.
#[derive(Debug)]
pub(super) enum Life<T> {
    /// Being made.
    Attaching,
    /// In use.
    Serving(Arc<T>),
    /// Being ended or replaced: the word says how (`detached`, `reverted`).
    Changing(Arc<T>, &'static str),
    /// Wanted, but impossible when the daemon tried: the reason.
    Failed(String),
}

/// A root or a VM.
#[derive(Debug)]
pub(super) struct Row<C, T> {
    pub(super) config: C,
    pub(super) origin: Origin,
    /// Belongs into the state file.
    pub(super) keep: bool,
    pub(super) life: Life<T>,
    claims: Vec<PathClaim>,
}

/// A root's row.
pub(super) type RootRow = Row<RootConfig, ServedRoot>;

/// A VM's row. `entry` is how it was described, for the state file.
pub(super) struct VmRow {
    pub(super) row: Row<VmConfig, Vm>,
    pub(super) entry: VmEntry,
    /// The reactor that serves it.
    pub(super) reactor: usize,
    /// The UUID of the leaf that it has, once that is known.
    pub(super) leaf: Option<[u8; 16]>,
}

impl<C, T> Row<C, T> {
    /// What serves it.
    ///
    /// # Errors
    /// Why nothing does.
    pub(super) fn serving(&self, of: NameOf, name: &str) -> Result<&Arc<T>, HostError> {
        let name = name.to_owned();
        match &self.life {
            Life::Serving(it) => Ok(it),
            Life::Attaching => Err(HostError::Busy { of, name, doing: "attached" }),
            Life::Changing(_, doing) => Err(HostError::Busy { of, name, doing }),
            Life::Failed(reason) => Err(HostError::NotServed { of, name, reason: reason.clone() }),
        }
    }
}

/// All rows.
#[derive(Default)]
pub(super) struct Table {
    pub(super) roots: BTreeMap<String, RootRow>,
    pub(super) vms: BTreeMap<String, VmRow>,
    paths: PathUses,
    /// Names that the configuration has, served or not.
    pub(super) configured: Configured,
    pub(super) stopping: bool,
}

/// The names in the configuration.
#[derive(Debug, Default)]
pub(super) struct Configured {
    pub(super) roots: Vec<String>,
    pub(super) vms: Vec<String>,
}

/// What a new row is made of.
pub(super) struct NewVm {
    pub(super) config: VmConfig,
    pub(super) entry: VmEntry,
    pub(super) cause: Cause,
    pub(super) claims: Vec<PathClaim>,
}

fn row<'a, R>(
    rows: &'a mut BTreeMap<String, R>,
    of: NameOf,
    name: &str,
) -> Result<&'a mut R, HostError> {
    if rows.contains_key(name) {
        // As it is there, the error is never made.
        return rows.get_mut(name).ok_or_else(|| HostError::no_such(of, name, []));
    }
    Err(HostError::no_such(of, name, rows.keys()))
}

impl Table {
    /// An empty table in which some paths are taken.
    pub(super) fn with_paths(claims: &[PathClaim]) -> Self {
        let mut table = Self::default();
        // The configuration was checked for contradictions.
        let _ = table.paths.claim_all(claims);
        table
    }

    /// Makes a row for a root that is being opened. A failed one gives way.
    pub(super) fn begin_root(
        &mut self,
        config: RootConfig,
        cause: Cause,
        claims: Vec<PathClaim>,
    ) -> Result<(), HostError> {
        let name = config.name.clone();
        if self.roots.get(&name).is_some_and(|root| matches!(root.life, Life::Failed(_))) {
            self.remove_root(&name);
        }
        self.check_new(NameOf::Root, &name, cause.origin())?;
        self.paths.claim_all(&claims)?;
        let (origin, keep, life) = (cause.origin(), cause == Cause::Kept, Life::Attaching);
        self.roots.insert(name, Row { config, origin, keep, life, claims });
        Ok(())
    }

    /// Makes a row for a VM that is being attached; its root, and the reactor
    /// that is to serve it. A failed one gives way.
    pub(super) fn begin_vm(
        &mut self,
        new: NewVm,
        reactors: usize,
    ) -> Result<(Arc<CachedRoot>, usize), HostError> {
        let NewVm { config, entry, cause, claims } = new;
        let name = config.name.clone();
        if self.vms.get(&name).is_some_and(|vm| matches!(vm.row.life, Life::Failed(_))) {
            self.remove_vm(&name);
        }
        self.check_new(NameOf::Vm, &name, cause.origin())?;
        let no_root = || HostError::no_such(NameOf::Root, &config.root, self.roots.keys());
        let root = self.roots.get(&config.root).ok_or_else(no_root)?;
        let root = Arc::clone(root.serving(NameOf::Root, &config.root)?.cached());
        self.paths.claim_all(&claims)?;
        let reactor = self.least_busy(reactors);
        let (origin, keep) = (cause.origin(), cause == Cause::Kept);
        let row = Row { config, origin, keep, life: Life::Attaching, claims };
        self.vms.insert(name, VmRow { row, entry, reactor, leaf: None });
        Ok((root, reactor))
    }

    /// Gives a VM the leaf with this UUID, as long as its row is there.
    ///
    /// # Errors
    /// [`LeafProblem::Copy`], if another VM has one with the same UUID.
    pub(super) fn claim_leaf(&mut self, name: &str, uuid: [u8; 16]) -> Result<(), HostError> {
        let other = self.vms.iter().find(|(vm, row)| *vm != name && row.leaf == Some(uuid));
        if let Some((other, row)) = other {
            let (other, other_leaf) = (other.clone(), row.row.config.leaf.clone());
            let leaf = self.vm(name)?.row.config.leaf.clone();
            let (vm, uuid) = (name.to_owned(), Uuid::from_bytes(uuid));
            let copy = LeafProblem::Copy { vm, leaf, uuid, other, other_leaf };
            return Err(HostError::Leaf(copy.into()));
        }
        self.vm(name)?.leaf = Some(uuid);
        Ok(())
    }

    /// Whether a row of that name may be made.
    pub(super) fn check_new(
        &self,
        of: NameOf,
        name: &str,
        origin: Origin,
    ) -> Result<(), HostError> {
        if self.stopping {
            return Err(HostError::Stopping);
        }
        let (exists, configured, count, max) = match of {
            NameOf::Root => {
                (self.roots.contains_key(name), &self.configured.roots, self.roots.len(), ROOTS_MAX)
            }
            NameOf::Vm => {
                (self.vms.contains_key(name), &self.configured.vms, self.vms.len(), VMS_MAX)
            }
        };
        let name = name.to_owned();
        if exists {
            return Err(HostError::Exists { of, name });
        }
        if origin == Origin::Api && configured.contains(&name) {
            return Err(HostError::OfConfiguration { of, name });
        }
        if count >= max {
            return Err(UsageError::TooMany { of, count: count + 1, max }.into());
        }
        Ok(())
    }

    fn least_busy(&self, reactors: usize) -> usize {
        let mut devices = vec![0; reactors.max(1)];
        for vm in self.vms.values() {
            if let Some(count) = devices.get_mut(vm.reactor) {
                *count += 1;
            }
        }
        (0..devices.len()).min_by_key(|reactor| devices[*reactor]).unwrap_or(0)
    }

    pub(super) fn vm(&mut self, name: &str) -> Result<&mut VmRow, HostError> {
        row(&mut self.vms, NameOf::Vm, name)
    }

    pub(super) fn root(&mut self, name: &str) -> Result<&mut RootRow, HostError> {
        row(&mut self.roots, NameOf::Root, name)
    }

    /// The VMs that have `root`, whatever is being done to them.
    pub(super) fn users(&self, root: &str) -> Vec<&str> {
        let users = self.vms.iter().filter(|(_, vm)| vm.row.config.root == root);
        users.map(|(name, _)| name.as_str()).collect()
    }

    /// Which VMs have which serial number, whatever is being done to them.
    pub(super) fn serials(&self) -> Serials<'_> {
        let configs = self.vms.values().map(|vm| &vm.row.config);
        Serials::of(configs.map(|config| (config.name.as_str(), &config.serial)))
    }

    pub(super) fn remove_vm(&mut self, name: &str) {
        if let Some(vm) = self.vms.remove(name) {
            self.paths.release_all(&vm.row.claims);
        }
    }

    pub(super) fn remove_root(&mut self, name: &str) {
        if let Some(root) = self.roots.remove(name) {
            self.paths.release_all(&root.claims);
        }
    }

    /// A row for what can't be had now but is wanted. It holds no paths.
    pub(super) fn fail_vm(
        &mut self,
        config: VmConfig,
        entry: VmEntry,
        origin: Origin,
        why: String,
    ) {
        let name = config.name.clone();
        self.remove_vm(&name);
        let keep = origin == Origin::Api;
        let (life, claims) = (Life::Failed(why), Vec::new());
        let row = Row { config, origin, keep, life, claims };
        self.vms.insert(name, VmRow { row, entry, reactor: usize::MAX, leaf: None });
    }

    /// As [`Self::fail_vm`], for a root.
    pub(super) fn fail_root(&mut self, config: RootConfig, origin: Origin, why: String) {
        let name = config.name.clone();
        self.remove_root(&name);
        let keep = origin == Origin::Api;
        let (life, claims) = (Life::Failed(why), Vec::new());
        self.roots.insert(name, Row { config, origin, keep, life, claims });
    }
}

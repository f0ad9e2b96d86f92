//! Changes of VMs: attach, detach, revert, resize, flush.
//!
//! A change takes the VM's row out of others' reach first (see `table.rs`),
//! works without any lock, and puts the row right afterwards. The state file
//! is written before an attach and after a detach is answered for: a crash
//! between leaves a VM that nobody was told of, or one that nobody was told is
//! gone.

use std::sync::Arc;

use uuid::Uuid;

use super::acceptor::Kept;
use super::error::HostError;
use super::host::{Host, VmView};
use super::leaf_choice::{LeafChoice, Remedy};
use super::planned_vm::{InUse, Look, PlannedVm, Unfit};
use super::table::{Cause, Life, NewVm, Origin};
use super::vm::{BoundVm, LeafFate, ListeningVm, Vm};
use crate::config::name::NameOf;
use crate::config::paths::PathClaim;
use crate::config::{VmConfig, VmEntry};
use crate::disk::CachedRoot;
use crate::leaf::Leaf;

impl Host {
    /// Attaches a VM, with the leaf of that choice: there until it is detached, also
    /// after a restart.
    ///
    /// # Errors
    /// [`HostError`]; nothing is served then, and a leaf that was made is gone.
    pub fn attach(&self, entry: VmEntry, choice: LeafChoice) -> Result<VmView, HostError> {
        let name = entry.name.clone();
        VmConfig::check(&entry)?;
        self.table().check_new(NameOf::Vm, &name, Origin::Api)?;
        let (config, entry) = self.resolve(entry)?;
        let serial = config.serial.clone();
        self.attach_resolved(config, entry, Cause::Asked, choice)?;
        if let Some(same) = self.table().serials().shared(&serial) {
            log::warn!("{same}");
        }
        self.vm(&name)
    }

    /// What an entry means here; and the entry with its root named, as it is
    /// kept.
    fn resolve(&self, mut entry: VmEntry) -> Result<(VmConfig, VmEntry), HostError> {
        let table = self.table();
        let roots = table.roots.keys().map(String::as_str);
        let config = VmConfig::resolve(&entry, roots, &self.inner().directories)?;
        entry.root = Some(config.root.clone());
        Ok((config, entry))
    }

    /// Attaches an entry of the state file; where that fails, it stays known
    /// as failed.
    pub(super) fn restore_vm(&self, entry: VmEntry, choice: LeafChoice) -> Result<(), HostError> {
        let (of, name) = (NameOf::Vm, entry.name.clone());
        if self.table().vms.get(&name).is_some_and(|vm| !matches!(vm.row.life, Life::Failed(_))) {
            return Err(HostError::Exists { of, name });
        }
        let (mut config, entry) = match self.resolve(entry.clone()) {
            Ok(resolved) => resolved,
            Err(error) => {
                // Its root is gone from the configuration, or from the file.
                let directories = &self.inner().directories;
                let config =
                    VmConfig::resolve(&entry, entry.root.as_deref().into_iter(), directories)?;
                self.table().fail_vm(config, entry, Origin::Api, error.to_string());
                return Err(error);
            }
        };
        if config.leaf.exists() {
            // It may have grown since the entry was written.
            config.size = None;
        }
        self.attach_or_fail(config, entry, Cause::Kept, choice)
    }

    /// Attaches a VM that is wanted until somebody says otherwise: where that
    /// fails, it stays known as failed.
    pub(super) fn attach_or_fail(
        &self,
        config: VmConfig,
        entry: VmEntry,
        cause: Cause,
        choice: LeafChoice,
    ) -> Result<(), HostError> {
        let attached = self.attach_resolved(config.clone(), entry.clone(), cause, choice);
        if let Err(error) = &attached
            && cause.is_known_as_failed(error)
        {
            self.table().fail_vm(config, entry, cause.origin(), error.to_string());
        }
        attached
    }

    fn attach_resolved(
        &self,
        config: VmConfig,
        entry: VmEntry,
        cause: Cause,
        choice: LeafChoice,
    ) -> Result<(), HostError> {
        let name = config.name.clone();
        let claims = PathClaim::of_vm(&config).into();
        let new = NewVm { config: config.clone(), entry, cause, claims };
        let reactors = self.inner().mailboxes.len();
        let (root, reactor) = self.table().begin_vm(new, reactors)?;
        let made = self.plan(config, &root, cause, choice);
        let made = made.and_then(|plan| self.make(plan, &root, reactor));
        let result = made.and_then(|vm| {
            let is_new = vm.vm().has_new_leaf();
            self.publish(vm, cause).map(|()| if is_new { "a new" } else { "its" })
        });
        match result {
            Ok(which) => {
                log::info!("VM {name}: attached, with {which} leaf");
                Ok(())
            }
            Err(error) => {
                self.table().remove_vm(&name);
                Err(error)
            }
        }
    }

    fn plan(
        &self,
        config: VmConfig,
        root: &Arc<CachedRoot>,
        cause: Cause,
        choice: LeafChoice,
    ) -> Result<PlannedVm, HostError> {
        let remembered = self.inner().records.read().map_err(HostError::failed)?;
        let remedy = self.remedy(cause);
        let look = Look { in_use: InUse::Refused, choice, remembered: &remembered, remedy };
        Ok(PlannedVm::look(config, root.root(), look)?)
    }

    /// What a person does about a VM that has another leaf, or none.
    fn remedy(&self, cause: Cause) -> Remedy {
        match cause {
            Cause::Asked => Remedy::Attach,
            Cause::Configured | Cause::Kept if self.inner().has_api => Remedy::Command,
            Cause::Configured | Cause::Kept => Remedy::File(self.inner().records.path()),
        }
    }

    fn make(
        &self,
        plan: PlannedVm,
        root: &Arc<CachedRoot>,
        reactor: usize,
    ) -> Result<ListeningVm, HostError> {
        let inner = self.inner();
        if let Some(uuid) = plan.leaf_uuid() {
            self.table().claim_leaf(&plan.config().name, uuid)?;
        }
        let bound = BoundVm::bind(plan, inner.socket_group).map_err(HostError::Unfit)?;
        let bound = bound.with_leaf().map_err(HostError::of_new_file)?;
        let mailbox = Arc::clone(&inner.mailboxes[reactor]);
        let listening = bound.attach(root, inner, mailbox);
        let mut listening = listening.map_err(|unfit| match unfit {
            Unfit::Leaf(problem) => HostError::Leaf(problem),
            Unfit::Other(error) => HostError::Failed(error),
        })?;
        if let Err(error) = listening.remember_leaf(&inner.records) {
            listening.take_back();
            return Err(HostError::Failed(error));
        }
        Ok(listening)
    }

    /// Serves a VM that could not be attached with another leaf than the one that it
    /// had: a new one, or the one that is there.
    ///
    /// # Errors
    /// [`HostError`]. It stays known as failed then.
    pub fn choose_leaf(&self, name: &str, choice: LeafChoice) -> Result<VmView, HostError> {
        let (config, entry, origin) = {
            let mut table = self.table();
            let row = table.vm(name)?;
            match &row.row.life {
                Life::Serving(_) => return Err(HostError::Served { name: name.into() }),
                Life::Attaching | Life::Changing(..) => {
                    row.row.serving(NameOf::Vm, name)?;
                }
                Life::Failed(_) => {}
            }
            (row.row.config.clone(), row.entry.clone(), row.row.origin)
        };
        match origin {
            Origin::Configuration => {
                self.attach_or_fail(config, entry, Cause::Configured, choice)?;
            }
            Origin::Api => self.restore_vm(entry, choice)?,
        }
        self.vm(name)
    }

    /// Keeps the VM, if it isn't kept yet, then lets clients in.
    pub(super) fn publish(
        &self,
        mut listening: ListeningVm,
        cause: Cause,
    ) -> Result<(), HostError> {
        let vm = Arc::clone(listening.vm());
        let name = vm.disk().name();
        if cause == Cause::Asked {
            self.table().vm(name)?.row.keep = true;
            if let Err(error) = self.keep() {
                self.table().vm(name)?.row.keep = false;
                // It may be in the file all the same (see `StateFile::write`).
                let _ = self.keep();
                listening.take_back();
                return Err(error);
            }
        }
        if let Some(leaf) = listening.take_new_leaf() {
            leaf.keep();
        }
        listening.keep_records();
        // Under one lock: whoever sees it served can take it out again.
        let mut table = self.table();
        if let Some(leaf) = vm.disk().leaf() {
            table.claim_leaf(name, leaf.uuid())?;
        }
        table.vm(name)?.row.life = Life::Serving(Arc::clone(&vm));
        self.inner().acceptor.add(listening);
        Ok(())
    }

    /// Detaches a VM: drains, flushes and closes it, and removes its socket. A
    /// client that is connected keeps it, or is cut off with `force`. A VM of
    /// the configuration comes back with the next start or reload. Of a VM that is not
    /// served no leaf is deleted: the one at its path may be another's.
    ///
    /// # Errors
    /// [`HostError`]. After [`HostError::Failed`] the VM is gone even so, and
    /// the sentence says what is wrong with its leaf or the state file.
    pub fn detach(&self, name: &str, force: bool, leaf: LeafFate) -> Result<(), HostError> {
        match leaf {
            LeafFate::Delete => drop(self.writable(name, "delete")?),
            LeafFate::Keep if self.forget_failed(name)? => {
                self.note_detached(name, LeafFate::Keep);
                return self.keep();
            }
            LeafFate::Keep => {}
        }
        let again = self.how_to_serve_again(name)?;
        let listening = self.take_out(name, force, "detached")?;
        let vm = Arc::clone(listening.vm());
        let leaf = if vm.loses_leaf() { LeafFate::Delete } else { leaf };
        // Before the leaf goes, if it is to go.
        self.note_detached(name, leaf);
        let closed = vm.end(leaf);
        drop(listening);
        self.table().remove_vm(name);
        let kept = self.keep();
        closed.map_err(|error| {
            let state = match vm.disk().leaf().filter(|_| !vm.loses_leaf()) {
                Some(leaf) => format!("; {}", self.state_of_unclosed(leaf, name, &again)),
                None => String::new(),
            };
            HostError::failed(format!(
                "VM {name} is detached, but its leaf was not closed: {error}{state}"
            ))
        })?;
        kept.map_err(|error| {
            HostError::failed(format!(
                "VM {name} is detached, but will be back at a restart: {error}"
            ))
        })?;
        match leaf {
            LeafFate::Keep => log::info!("VM {name}: detached"),
            LeafFate::Delete => log::info!("VM {name}: detached, and its leaf deleted"),
        }
        Ok(())
    }

    /// What a person types for a VM to be served again after a detach.
    fn how_to_serve_again(&self, name: &str) -> Result<String, HostError> {
        let mut table = self.table();
        let row = &table.vm(name)?.row;
        let VmConfig { root, leaf, .. } = &row.config;
        Ok(match row.origin {
            Origin::Configuration => "leafblk reload".into(),
            Origin::Api => {
                format!("leafblk vm attach {name},root={root},leaf={}", leaf.display())
            }
        })
    }

    /// What has become of what a guest wrote to a leaf that could not be closed.
    fn state_of_unclosed(&self, leaf: &Leaf, name: &str, again: &str) -> String {
        if leaf.refusal().is_some() {
            return format!(
                "what was flushed before that is in the leaf, what was written after it may be lost; \
                 once its disk works: {again}"
            );
        }
        let map = self.inner().directories.runtime.join(format!("{name}.map"));
        format!(
            "nothing is lost: all that its guest wrote is in the leaf, and the live map {} says \
             where, until the host reboots; leave both there, make room, and then: {again}",
            map.display()
        )
    }

    /// Notes that a VM is not served any more; nothing is known of it afterwards where
    /// its leaf goes, too.
    fn note_detached(&self, name: &str, leaf: LeafFate) {
        let noted = self.inner().records.change(|all| match leaf {
            LeafFate::Delete => drop(all.set(name, None)),
            LeafFate::Keep => all.detach(name),
        });
        if let Err(error) = noted {
            log::warn!("VM {name}: {error}");
        }
    }

    /// Removes a row that stands for a VM which could not be attached.
    fn forget_failed(&self, name: &str) -> Result<bool, HostError> {
        let mut table = self.table();
        let failed = matches!(table.vm(name)?.row.life, Life::Failed(_));
        if failed {
            table.remove_vm(name);
        }
        Ok(failed)
    }

    /// Takes a VM out of the acceptor, drained; its row says `doing` from then
    /// on.
    fn take_out(
        &self,
        name: &str,
        force: bool,
        doing: &'static str,
    ) -> Result<ListeningVm, HostError> {
        let vm = {
            let mut table = self.table();
            let row = &mut table.vm(name)?.row;
            let vm = Arc::clone(row.serving(NameOf::Vm, name)?);
            row.life = Life::Changing(Arc::clone(&vm), doing);
            vm
        };
        self.inner().acceptor.remove(&vm, force).map_err(|kept| {
            if let Ok(row) = self.table().vm(name) {
                row.row.life = Life::Serving(vm);
            }
            match kept {
                Kept::Connected => HostError::Connected { name: name.into() },
                Kept::Gone => HostError::Stopping,
            }
        })
    }

    /// Reverts a VM's disk to its root: every change is discarded. A client that is
    /// connected prevents it, or is cut off with `force`. A guest that runs with the disk
    /// as it was doesn't get the reverted one (see `UnusedLeaf`).
    ///
    /// # Errors
    /// [`HostError`].
    pub fn revert(&self, name: &str, force: bool) -> Result<VmView, HostError> {
        self.writable(name, "revert")?;
        let listening = self.take_out(name, force, "reverted")?;
        let kept_out = if force { listening.vm().link().process() } else { None };
        // Before anything is discarded: a crash in between lets no guest in that must not.
        if let Err(error) = self.note_reverted(listening.vm()) {
            self.put_back(name, listening)?;
            return Err(error);
        }
        let runtime_dir = &self.inner().directories.runtime;
        // A leaf that can't be flushed loses what it holds in any case.
        let _ = listening.vm().close();
        match listening.with_leaf_reverted(runtime_dir, kept_out, &self.inner().records) {
            Ok((listening, reverted)) => {
                self.put_back(name, listening)?;
                reverted?;
            }
            Err(error) => {
                let mut table = self.table();
                let row = table.vm(name)?;
                let (config, entry) = (row.row.config.clone(), row.entry.clone());
                let origin = row.row.origin;
                table.fail_vm(config, entry, origin, error.to_string());
                return Err(HostError::Failed(error));
            }
        }
        log::info!("VM {name}: reverted to its root");
        self.vm(name)
    }

    /// Notes that no guest will have used a VM's leaf.
    fn note_reverted(&self, vm: &Vm) -> Result<(), HostError> {
        let Some(leaf) = vm.disk().leaf() else {
            return Ok(());
        };
        let (name, disk) = (vm.disk().name(), Uuid::from_bytes(leaf.disk_uuid()));
        let noted = self.inner().records.change(|all| all.revert_disk(name, disk));
        noted.map_err(|error| HostError::failed(format!("VM {name} is not reverted: {error}")))
    }

    /// Serves a VM again that was taken out.
    fn put_back(&self, name: &str, listening: ListeningVm) -> Result<(), HostError> {
        let mut table = self.table();
        table.vm(name)?.row.life = Life::Serving(Arc::clone(listening.vm()));
        self.inner().acceptor.add(listening);
        Ok(())
    }

    /// A VM that is served and has a leaf that can be written.
    pub(super) fn writable(&self, name: &str, verb: &'static str) -> Result<Arc<Vm>, HostError> {
        let vm = Arc::clone(self.table().vm(name)?.row.serving(NameOf::Vm, name)?);
        let what = match vm.disk().leaf() {
            None => "no leaf",
            Some(_) if vm.disk().is_read_only() => "a leaf that is open for reading only",
            Some(_) => return Ok(vm),
        };
        Err(HostError::NoLeaf { name: name.into(), what, verb })
    }

    /// Makes everything that the guest has written durable, as its own flush
    /// would.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn flush(&self, name: &str) -> Result<(), HostError> {
        let vm = Arc::clone(self.table().vm(name)?.row.serving(NameOf::Vm, name)?);
        match vm.lock_leaf() {
            Some(locked) => Ok(locked.leaf.flush()?),
            // Read-only: there is nothing that could be lost.
            None => Ok(()),
        }
    }
}

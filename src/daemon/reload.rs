//! SIGHUP: what the configuration says now, as far as it can be had without a
//! restart.
//!
//! New roots and VMs are added, those that are gone from it are taken away
//! where nobody uses them, disks grow, the log's filter changes. Everything
//! else is named in the log as needing a restart. docs/control.md has the
//! rules.

use super::error::HostError;
use super::host::{Host, State};
use super::leaf_choice::{LeafChoice, note_renames};
use super::side_by_side;
use super::table::{Cause, Configured, Life, Origin};
use crate::config::{Config, RootConfig, RootEntry, VmConfig, VmEntry};
use crate::units::SECTOR_SIZE;

impl Host {
    /// Makes what is served what `new` says; `running` is what the process was
    /// started with. Failures are in the log, one by one.
    pub(super) fn reload(&self, running: &Config, new: &Config) {
        let before = std::mem::replace(&mut self.table().configured, Configured::of(new));
        self.note_renames(before, new);
        self.take_away(new);
        side_by_side::map(new.roots.iter().collect(), |root| {
            if let Err(error) = self.reload_root(root) {
                log::error!("reload: root {}: {error}", root.name);
            }
        });
        side_by_side::map(new.vms.iter().collect(), |vm| {
            if let Err(error) = self.reload_vm(vm) {
                log::error!("reload: VM {}: {error}", vm.name);
            }
        });
        self.retry_failed();
        if let Err(error) = self.keep() {
            log::error!("reload: {error}");
        }
        self.record_roots();
        self.warn_of_serials();
        for setting in fixed_settings(running, new) {
            log::warn!("reload: {setting} has changed; that takes effect at the next start");
        }
        crate::logging::reload(new.log.as_deref());
        log::info!("reloaded the configuration");
    }

    /// Notes which VMs may be those under another name that have left the configuration.
    fn note_renames(&self, before: Configured, new: &Config) {
        let stays = |name: &String| new.vms.iter().any(|vm| vm.name == *name);
        let left: Vec<_> = before.vms.into_iter().filter(|name| !stays(name)).collect();
        if left.is_empty() {
            return;
        }
        let root = |name: &str| Some(self.root(name).ok()?.root?.root().identity().clone());
        let noted = self.inner().records.change(|all| note_renames(all, &left, &new.vms, root));
        if let Err(error) = noted {
            log::error!("reload: {error}");
        }
    }

    /// Takes away what came from the configuration and is not in it any more.
    fn take_away(&self, new: &Config) {
        for view in self.vms() {
            let name = &view.config.name;
            let stays = new.vms.iter().any(|vm| vm.name == *name);
            if view.origin == Origin::Api || stays {
                continue;
            }
            match self.detach(name, false) {
                Ok(()) => {}
                Err(HostError::Connected { .. }) => log::warn!(
                    "reload: VM {name} is not in the configuration any more, but has a client; \
                     it stays until that is gone and the configuration is reloaded"
                ),
                Err(error) => log::error!("reload: {error}"),
            }
        }
        for view in self.roots() {
            let name = &view.config.name;
            let stays = new.roots.iter().any(|root| root.name == *name);
            if view.origin == Origin::Configuration
                && !stays
                && let Err(error) = self.remove_root(name)
            {
                log::warn!("reload: root {name} is not in the configuration any more: {error}");
            }
        }
    }

    fn reload_root(&self, new: &RootConfig) -> Result<(), HostError> {
        let view = match self.root(&new.name) {
            Ok(view) if !matches!(view.state, State::Failed(_)) => view,
            _ => return self.add_or_fail(new.clone(), Cause::Configured),
        };
        if view.config.path != new.path {
            log::warn!(
                "reload: root {} is {} now; the old one is used until the next start",
                new.name,
                new.path.display()
            );
            return Ok(());
        }
        let mut table = self.table();
        let row = table.root(&new.name)?;
        (row.origin, row.keep) = (Origin::Configuration, false);
        // It matters to the next opening only: this one's bytes are served as they are.
        row.config.format = new.format;
        Ok(())
    }

    fn reload_vm(&self, new: &VmConfig) -> Result<(), HostError> {
        let view = match self.vm(&new.name) {
            Ok(view) if !matches!(view.state, State::Failed(_)) => view,
            _ => {
                let entry = VmEntry { name: new.name.clone(), ..VmEntry::default() };
                let choice = LeafChoice::Remembered;
                return self.attach_or_fail(new.clone(), entry, Cause::Configured, choice);
            }
        };
        if !same_but_size(&view.config, new) {
            log::warn!(
                "reload: VM {} has other settings now; they take effect when it is detached and \
                 the configuration is reloaded, or at the next start",
                new.name
            );
            return Ok(());
        }
        {
            let mut table = self.table();
            let row = &mut table.vm(&new.name)?.row;
            (row.origin, row.keep) = (Origin::Configuration, false);
        }
        self.reload_size(new)
    }

    fn reload_size(&self, new: &VmConfig) -> Result<(), HostError> {
        let vm = self.vm(&new.name)?.vm;
        let Some((vm, bytes)) = vm.zip(new.size) else {
            return Ok(());
        };
        if vm.disk().sectors() * SECTOR_SIZE != bytes {
            let vm = self.writable(&new.name, "resize")?;
            self.grow(&vm, bytes)?;
            vm.link().config_changed();
            log::info!("VM {}: its disk has {bytes} bytes now", new.name);
        }
        self.table().vm(&new.name)?.row.config.size = new.size;
        Ok(())
    }

    /// Tries again what came through the API and could not be had.
    fn retry_failed(&self) {
        let roots = {
            let table = self.table();
            let failed = |life: &Life<_>| matches!(life, Life::Failed(_));
            let roots = table.roots.values().filter(|root| root.keep && failed(&root.life));
            roots.map(|root| RootEntry::from(&root.config)).collect::<Vec<_>>()
        };
        side_by_side::map(roots, |entry| {
            if let Err(error) = self.restore_root(&entry) {
                log::error!("reload: root {}: {error}", entry.name);
            }
        });
        let vms = {
            let table = self.table();
            let failed = |life: &Life<_>| matches!(life, Life::Failed(_));
            let vms = table.vms.values().filter(|vm| vm.row.keep && failed(&vm.row.life));
            vms.map(|vm| vm.entry.clone()).collect::<Vec<_>>()
        };
        side_by_side::map(vms, |entry| {
            let name = entry.name.clone();
            if let Err(error) = self.restore_vm(entry, LeafChoice::Remembered) {
                log::error!("reload: VM {name}: {error}");
            }
        });
    }
}

impl Configured {
    /// The names in `config`.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            roots: config.roots.iter().map(|root| root.name.clone()).collect(),
            vms: config.vms.iter().map(|vm| vm.name.clone()).collect(),
        }
    }
}

fn same_but_size(a: &VmConfig, b: &VmConfig) -> bool {
    VmConfig { size: b.size, ..a.clone() } == *b
}

/// The settings that differ and are read only at the start.
fn fixed_settings(running: &Config, new: &Config) -> Vec<&'static str> {
    let settings = [
        ("state-dir", running.state_dir == new.state_dir),
        ("runtime-dir", running.runtime_dir == new.runtime_dir),
        ("cache-size", running.cache_size_bytes == new.cache_size_bytes),
        ("cache-block", running.cache_block_bytes == new.cache_block_bytes),
        ("hugepages", running.hugepages == new.hugepages),
        ("reactors", running.reactors == new.reactors),
        ("keep-cache", running.keep_cache == new.keep_cache),
        ("poll-us", running.poll_us == new.poll_us),
        ("socket-group", running.socket_group == new.socket_group),
        ("http-port", running.http_port == new.http_port),
        ("control-socket or control-group", running.control == new.control),
    ];
    settings.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

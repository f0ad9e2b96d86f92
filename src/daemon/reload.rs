//! What the configuration says now, as far as it can be had without a restart: for SIGHUP
//! and for `leafblk reload`.
//!
//! New roots and VMs are added, those that are gone from it are taken away
//! where nobody uses them, disks grow, the log's filter changes. Everything
//! else needs a restart, and the report names it. docs/control.md has the rules.

use std::time::SystemTime;

use super::error::HostError;
use super::host::{Host, State};
use super::leaf_choice::{LeafChoice, note_renames};
use super::problems::Subject;
use super::reload_report::{Outcome, Reloaded};
use super::side_by_side;
use super::table::{Cause, Configured, Life, Origin};
use super::vm::LeafFate;
use crate::config::size::format_size;
use crate::config::{Config, RootConfig, RootEntry, VmConfig, VmEntry};
use crate::logging::LOG_VARIABLE;
use crate::units::SECTOR_SIZE;

impl Host {
    /// Makes what is served what `new` says; `running` is what the process was started
    /// with, `before` what it was told last. Says in the log what a person has to do
    /// something about.
    pub(super) fn reload(&self, running: &Config, before: &Config, new: &Config) -> Reloaded {
        let mut report = Reloaded::begin();
        let names = std::mem::replace(&mut self.table().configured, Configured::of(new));
        self.note_renames(names, new, &mut report);
        self.take_away(new, &mut report);
        let roots = side_by_side::map(new.roots.iter().collect(), |root| self.reload_root(root));
        for (root, result) in new.roots.iter().zip(roots) {
            report.note(Subject::Root, &root.name, outcome(result));
        }
        let vms = side_by_side::map(new.vms.iter().collect(), |vm| self.reload_vm(vm));
        for (vm, result) in new.vms.iter().zip(vms) {
            report.note(Subject::Vm, &vm.name, outcome(result));
        }
        self.retry_failed(&mut report);
        if let Err(error) = self.keep() {
            report.note(Subject::Records, "", Outcome::Failed(error.to_string()));
        }
        self.record_roots();
        self.warn_of_serials();
        for setting in fixed_settings(running, new) {
            let when = "it has changed; that takes effect at the next start".into();
            report.note(Subject::Setting, setting, Outcome::Pending(when));
        }
        crate::logging::reload(new.log.as_deref());
        if before.log != new.log {
            let how = if std::env::var_os(LOG_VARIABLE).is_some() {
                Outcome::Pending(format!("{LOG_VARIABLE} counts as long as it is set"))
            } else {
                Outcome::Changed("it takes effect from now on".into())
            };
            report.note(Subject::Setting, "log", how);
        }
        report.mark_known(|subject, name| self.is_known_as_failed(subject, name));
        report.at = SystemTime::now();
        match report.failed.len() {
            0 => log::info!("reloaded the configuration"),
            1 => log::error!("reloaded the configuration, but for the one part that failed"),
            count => log::error!("reloaded the configuration, but for {count} parts that failed"),
        }
        report
    }

    fn is_known_as_failed(&self, subject: Subject, name: &str) -> bool {
        let table = self.table();
        match subject {
            Subject::Root => {
                table.roots.get(name).is_some_and(|root| matches!(root.life, Life::Failed(_)))
            }
            Subject::Vm => {
                table.vms.get(name).is_some_and(|vm| matches!(vm.row.life, Life::Failed(_)))
            }
            Subject::FileSystem | Subject::Configuration | Subject::Setting | Subject::Records => {
                false
            }
        }
    }

    /// Notes which VMs may be those under another name that have left the configuration.
    fn note_renames(&self, before: Configured, new: &Config, report: &mut Reloaded) {
        let stays = |name: &String| new.vms.iter().any(|vm| vm.name == *name);
        let left: Vec<_> = before.vms.into_iter().filter(|name| !stays(name)).collect();
        if left.is_empty() {
            return;
        }
        let root = |name: &str| Some(self.root(name).ok()?.root?.root().identity().clone());
        let noted = self.inner().records.change(|all| note_renames(all, &left, &new.vms, root));
        if let Err(error) = noted {
            report.note(Subject::Records, "", Outcome::Failed(error.to_string()));
        }
    }

    /// Takes away what came from the configuration and is not in it any more.
    fn take_away(&self, new: &Config, report: &mut Reloaded) {
        for view in self.vms() {
            let name = &view.config.name;
            let stays = new.vms.iter().any(|vm| vm.name == *name);
            if view.origin == Origin::Api || stays {
                continue;
            }
            let outcome = match self.detach(name, false, LeafFate::Keep) {
                Ok(()) => Outcome::Removed,
                Err(HostError::Connected { .. }) => Outcome::Pending(
                    "it is not in the configuration any more, but has a client; it stays until \
                     that is gone and the configuration is reloaded"
                        .into(),
                ),
                Err(error) => Outcome::Failed(error.to_string()),
            };
            report.note(Subject::Vm, name, outcome);
        }
        for view in self.roots() {
            let name = &view.config.name;
            let stays = new.roots.iter().any(|root| root.name == *name);
            if view.origin == Origin::Api || stays {
                continue;
            }
            let outcome = match self.remove_root(name) {
                Ok(()) => Outcome::Removed,
                Err(error @ HostError::RootUsed { .. }) => Outcome::Pending(format!(
                    "it is not in the configuration any more, but {error}, and reload"
                )),
                Err(error) => Outcome::Failed(error.to_string()),
            };
            report.note(Subject::Root, name, outcome);
        }
    }

    fn reload_root(&self, new: &RootConfig) -> Result<Outcome, HostError> {
        let view = match self.root(&new.name) {
            Ok(view) if !matches!(view.state, State::Failed(_)) => view,
            _ => {
                self.add_or_fail(new.clone(), Cause::Configured)?;
                return Ok(Outcome::Added);
            }
        };
        if view.config.path != new.path {
            return Ok(Outcome::Pending(format!(
                "its image is {} now; the old one is used until the next start",
                new.path.display()
            )));
        }
        let mut table = self.table();
        let row = table.root(&new.name)?;
        (row.origin, row.keep) = (Origin::Configuration, false);
        // It matters to the next opening only: this one's bytes are served as they are.
        row.config.format = new.format;
        Ok(adopted(view.origin))
    }

    fn reload_vm(&self, new: &VmConfig) -> Result<Outcome, HostError> {
        let view = match self.vm(&new.name) {
            Ok(view) if !matches!(view.state, State::Failed(_)) => view,
            _ => {
                let entry = VmEntry { name: new.name.clone(), ..VmEntry::default() };
                let choice = LeafChoice::Remembered;
                self.attach_or_fail(new.clone(), entry, Cause::Configured, choice)?;
                return Ok(Outcome::Added);
            }
        };
        if !same_but_size(&view.config, new) {
            return Ok(Outcome::Pending(
                "it has other settings now; they take effect when it is detached and the \
                 configuration is reloaded, or at the next start"
                    .into(),
            ));
        }
        {
            let mut table = self.table();
            let row = &mut table.vm(&new.name)?.row;
            (row.origin, row.keep) = (Origin::Configuration, false);
        }
        Ok(self.reload_size(new)?.unwrap_or(adopted(view.origin)))
    }

    fn reload_size(&self, new: &VmConfig) -> Result<Option<Outcome>, HostError> {
        let vm = self.vm(&new.name)?.vm;
        let Some((vm, bytes)) = vm.zip(new.size) else {
            return Ok(None);
        };
        let mut outcome = None;
        if vm.disk().sectors() * SECTOR_SIZE != bytes {
            let vm = self.writable(&new.name, "resize")?;
            self.grow(&vm, bytes)?;
            vm.link().config_changed();
            let size = format_size(bytes);
            log::info!("VM {}: its disk has {size} now", new.name);
            outcome = Some(Outcome::Changed(format!("its disk has {size} now")));
        }
        self.table().vm(&new.name)?.row.config.size = new.size;
        Ok(outcome)
    }

    /// Tries again what came through the API and could not be had.
    fn retry_failed(&self, report: &mut Reloaded) {
        let roots = {
            let table = self.table();
            let failed = |life: &Life<_>| matches!(life, Life::Failed(_));
            let roots = table.roots.values().filter(|root| root.keep && failed(&root.life));
            roots.map(|root| RootEntry::from(&root.config)).collect::<Vec<_>>()
        };
        let tried = side_by_side::map(roots, |entry| {
            let restored = self.restore_root(&entry).map(|()| Outcome::Added);
            (entry.name, restored)
        });
        for (name, result) in tried {
            report.note(Subject::Root, &name, outcome(result));
        }
        let vms = {
            let table = self.table();
            let failed = |life: &Life<_>| matches!(life, Life::Failed(_));
            let vms = table.vms.values().filter(|vm| vm.row.keep && failed(&vm.row.life));
            vms.map(|vm| vm.entry.clone()).collect::<Vec<_>>()
        };
        let tried = side_by_side::map(vms, |entry| {
            let name = entry.name.clone();
            (name, self.restore_vm(entry, LeafChoice::Remembered).map(|()| Outcome::Added))
        });
        for (name, result) in tried {
            report.note(Subject::Vm, &name, outcome(result));
        }
    }
}

fn outcome(result: Result<Outcome, HostError>) -> Outcome {
    result.unwrap_or_else(|error| Outcome::Failed(error.to_string()))
}

/// What becomes of something that is served already, and is in the configuration.
fn adopted(origin: Origin) -> Outcome {
    match origin {
        Origin::Configuration => Outcome::Same,
        Origin::Api => {
            Outcome::Changed("it came through the API, and is the configuration's now".into())
        }
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

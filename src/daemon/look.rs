//! What is looked at before a start changes anything; and `leafblk serve --check`, which
//! goes no further.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::denied::{self, Need, explain};
use super::group;
use super::lasting::{self, Fleeting};
use super::leaf_choice::{
    LeafChoice, LeafPlan, LeafProblem, Question, Remedy, Unplanned, note_renames,
};
use super::leaf_records::{LeafRecord, LeafRecords, Remembered};
use super::planned_vm::{InUse, Look, PlannedVm};
use super::root_records::RootRecords;
use super::root_watch;
use super::runtime_dir;
use super::state_file::{self, Attached};
use crate::config::serial::{SameSerial, Serials};
use crate::config::{Config, Directories, RootConfig, VmConfig};
use crate::error::Error;
use crate::io::available;
use crate::root::Root;

/// What was found.
pub(super) struct Looked {
    /// Of the control socket.
    pub(super) group: Option<u32>,
    /// Of the VMs' sockets.
    pub(super) socket_group: Option<u32>,
    pub(super) directories: Directories,
    pub(super) attached: Attached,
    /// The roots of the configuration that can be served.
    pub(super) roots: Vec<Root>,
    /// The others, each with the reason.
    pub(super) unfit_roots: Vec<(RootConfig, Error)>,
    pub(super) vms: Planned,
    pub(super) records: Records,
}

/// The VMs of the configuration.
#[derive(Default)]
pub(super) struct Planned {
    pub(super) fit: Vec<PlannedVm>,
    /// Those that can't be served, each with the reason.
    pub(super) unfit: Vec<(VmConfig, Error)>,
    /// Those on a root that can't.
    pub(super) rootless: Vec<VmConfig>,
    leaves: Leaves,
}

/// What is known of VMs' leaves, and what is to be noted.
pub(super) struct Records {
    remembered: Remembered,
    /// VMs that may be others under a new name.
    pub(super) undecided: Vec<(String, LeafRecord)>,
    /// VMs that are neither in the configuration nor attached any more.
    pub(super) left: Vec<String>,
}

/// The leaves that there are, by UUID: whose each is, and where.
#[derive(Default)]
struct Leaves(BTreeMap<[u8; 16], (String, PathBuf)>);

impl Leaves {
    /// Gives a VM its leaf.
    fn claim(&mut self, vm: &VmConfig, plan: &LeafPlan) -> Result<(), Box<LeafProblem>> {
        let LeafPlan::Use { identity, .. } = plan else { return Ok(()) };
        let (name, leaf) = (vm.name.clone(), vm.leaf.clone());
        match self.0.get(&identity.uuid).cloned() {
            Some((other, other_leaf)) => {
                let uuid = Uuid::from_bytes(identity.uuid);
                Err(LeafProblem::Copy { vm: name, leaf, uuid, other, other_leaf }.into())
            }
            None => {
                self.0.insert(identity.uuid, (name, leaf));
                Ok(())
            }
        }
    }
}

/// Looks at everything that a start needs.
///
/// # Errors
/// What is no single root's or VM's own, and keeps a start from succeeding: all of it, a
/// line each.
pub(super) fn look(config: &Config, in_use: InUse) -> Result<Looked, Error> {
    let mut wrong = Vec::new();
    let mut note = |error| wrong.push(error);
    available::check().unwrap_or_else(|error| note(Error::failure(error)));
    let group = config.control.as_ref().and_then(|control| control.group.as_deref());
    let group = group.and_then(|name| group::id_of("control-group", name).map_err(&mut note).ok());
    let socket_group = config.socket_group.as_deref();
    let socket_group =
        socket_group.and_then(|name| group::id_of("socket-group", name).map_err(&mut note).ok());
    if let Some(why) = Fleeting::of(&config.state_dir) {
        note(Error::failure(format!(
            "the state directory {} would be lost with this process: {why}; choose another \
             --state-dir",
            config.state_dir.display()
        )));
    }
    let directories =
        Directories { state: config.state_dir.clone(), runtime: config.runtime_dir.clone() };
    let attached = match config.control {
        Some(_) => state_file::read(&directories).map_err(Error::failure),
        None => Ok(Attached::default()),
    };
    let (mut roots, mut unfit_roots) = (Vec::new(), Vec::new());
    for root in &config.roots {
        match super::roots::open(root) {
            Ok(root) => roots.push(root),
            Err(error) => {
                unfit_roots.push((root.clone(), explain(error, &root.path, Need::Read)));
            }
        }
    }
    // Both lie in the state directory, and say the same where that can't be read.
    let records = attached.and_then(|attached| {
        let records = look_at_records(config, &attached, &roots)?;
        Ok((attached, records))
    });
    match records {
        Ok((attached, records)) if wrong.is_empty() => {
            let vms = plan(config, &roots, &records.remembered, in_use);
            let looked = Looked {
                group,
                socket_group,
                directories,
                attached,
                roots,
                unfit_roots,
                vms,
                records,
            };
            return Ok(looked);
        }
        Ok(_) => {}
        Err(error) => wrong.push(error),
    }
    let of_roots = unfit_roots.into_iter().map(|(_, error)| error);
    Err(all(wrong.into_iter().chain(of_roots).collect()))
}

/// Several errors as one, a line each.
fn all(mut errors: Vec<Error>) -> Error {
    match errors.pop() {
        Some(only) if errors.is_empty() => only,
        last => {
            let lines: Vec<_> = errors.iter().chain(&last).map(ToString::to_string).collect();
            Error::failure(lines.join("\nleafblk: "))
        }
    }
}

fn look_at_records(config: &Config, attached: &Attached, roots: &[Root]) -> Result<Records, Error> {
    let records = LeafRecords::in_directory(&config.state_dir);
    let before = records.read().map_err(Error::failure)?;
    let mut remembered = (*before).clone();
    let names = config.vms.iter().map(|vm| &vm.name).chain(attached.vms.iter().map(|vm| &vm.name));
    let here: BTreeSet<&str> = names.map(String::as_str).collect();
    let left = before.all().filter(|(_, record)| record.detached.is_none());
    let left = left.map(|(name, _)| name).filter(|name| !here.contains(name));
    let left: Vec<String> = left.map(str::to_owned).collect();
    let root = |name: &str| roots.iter().find(|root| root.name() == name);
    let root = |name: &str| root(name).map(|root| root.identity().clone());
    // Flags are often other ones at the next start.
    if config.has_file {
        note_renames(&mut remembered, &left, &config.vms, root);
    }
    let noted = remembered.all().filter(|(name, _)| before.of(name).is_none());
    let undecided = noted.map(|(name, record)| (name.to_owned(), record.clone())).collect();
    Ok(Records { remembered, undecided, left })
}

fn remedy(config: &Config) -> Remedy {
    match config.control {
        Some(_) => Remedy::Command,
        None => Remedy::File(LeafRecords::in_directory(&config.state_dir).path()),
    }
}

fn plan(config: &Config, roots: &[Root], remembered: &Remembered, in_use: InUse) -> Planned {
    let mut planned = Planned::default();
    for vm in &config.vms {
        let Some(root) = roots.iter().find(|root| root.name() == vm.root) else {
            planned.rootless.push(vm.clone());
            continue;
        };
        let (choice, remedy) = (LeafChoice::Remembered, remedy(config));
        let look = Look { in_use, choice, remembered, remedy };
        let plan = PlannedVm::look(vm.clone(), root, look);
        let plan = plan.and_then(|plan| {
            planned.leaves.claim(vm, plan.leaf())?;
            Ok(plan)
        });
        match plan {
            Ok(plan) => planned.fit.push(plan),
            Err(unfit) => planned.unfit.push((vm.clone(), unfit.into())),
        }
    }
    planned
}

/// Says whether the configuration is right, as far as that can be told without
/// changing anything. What another process uses is no mistake: it may be the
/// leafblk that serves these VMs now.
///
/// # Errors
/// What keeps a start from succeeding, or it from serving a root or a VM: all of it, a
/// line each.
pub fn check(config: &Config) -> Result<Checked, Error> {
    let mut looked = look(config, InUse::Fine)?;
    let (of_attached, broken) = attached_vms(config, &looked);
    let plural =
        |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let count = |roots, vms| format!("{}, {}", plural(roots, "root"), plural(vms, "VM"));
    let attached = &looked.attached;
    let found = format!(
        "the configuration is right: {}; attached through the API: {}",
        count(looked.roots.len(), looked.vms.fit.len()),
        count(attached.roots.len(), attached.vms.len()),
    );
    let serials = same_serials(config, &of_attached);
    let mut warnings = of_directories(config);
    warnings.extend(serials.iter().map(ToString::to_string));
    warnings.extend(changed_roots(config, &looked));
    let of_leaf = |vm: &VmConfig, plan: &LeafPlan| plan.warnings(vm, &config.state_dir);
    warnings.extend(looked.vms.fit.iter().flat_map(|vm| of_leaf(vm.config(), vm.leaf())));
    let mut leaves: Vec<String> =
        looked.vms.fit.iter().map(|vm| vm.leaf().describe(vm.config())).collect();
    let mut wrong = unfit(&mut looked);
    wrong.extend(broken);
    let fit = looked.vms.fit.iter().map(PlannedVm::config);
    wrong.extend(not_writable(config, fit, &of_attached).into_iter().map(Error::failure));
    for vm in &of_attached {
        let (choice, remembered) = (LeafChoice::Remembered, &looked.records.remembered);
        let question = Question { config: vm, choice, remembered, remedy: remedy(config) };
        let plan = question.answer().and_then(|plan| {
            looked.vms.leaves.claim(vm, &plan)?;
            Ok(plan)
        });
        match plan {
            Ok(plan) => {
                leaves.push(plan.describe(vm));
                warnings.extend(of_leaf(vm, &plan));
            }
            Err(Unplanned::Problem(problem)) => wrong.push(Error::failure(problem)),
            Err(Unplanned::Leaf(error)) => wrong.push(Error::failure(error)),
        }
    }
    if !wrong.is_empty() {
        return Err(all(wrong));
    }
    Ok(Checked { found, leaves, warnings })
}

/// What a start could not write: the two directories, leaves and sockets. Each directory is
/// named once.
fn not_writable<'a>(
    config: &'a Config,
    fit: impl Iterator<Item = &'a VmConfig>,
    attached: &'a [VmConfig],
) -> Vec<String> {
    let mut wrong = BTreeSet::new();
    let mut check = |what: String, path: &Path| {
        wrong.extend(denied::not_writable(&what, path).map(|error| error.to_string()));
    };
    for (what, path) in [("state", &config.state_dir), ("runtime", &config.runtime_dir)] {
        check(format!("the {what} directory"), path);
    }
    let is_elsewhere = |path: &Path| {
        let own = [Some(&*config.state_dir), Some(&*config.runtime_dir)];
        path.exists() || !own.contains(&path.parent())
    };
    for vm in fit.chain(attached) {
        if !vm.readonly && is_elsewhere(&vm.leaf) {
            check(format!("the leaf of VM {}", vm.name), &vm.leaf);
        }
        // A socket that is there is replaced.
        let directory = vm.socket.parent().filter(|directory| *directory != config.runtime_dir);
        if let Some(directory) = directory {
            check(format!("the directory of the socket of VM {}", vm.name), directory);
        }
    }
    wrong.into_iter().collect()
}

/// What a start warns of the two directories.
pub(super) fn of_directories(config: &Config) -> Vec<String> {
    let runtime = runtime_dir::warning(&config.runtime_dir);
    let state = lasting::warning("the state directory", &config.state_dir);
    runtime.into_iter().chain(state).collect()
}

/// What is wrong with the configuration's roots, each with the VMs on it, and with its VMs.
fn unfit(looked: &mut Looked) -> Vec<Error> {
    let rootless = &looked.vms.rootless;
    let of_root = |(root, error): (RootConfig, Error)| {
        let on_it = rootless.iter().filter(|vm| vm.root == root.name);
        let on_it: Vec<_> = on_it.map(|vm| vm.name.as_str()).collect();
        match on_it.is_empty() {
            true => error,
            false => Error::failure(format!("{error} (VMs on it: {})", on_it.join(", "))),
        }
    };
    let roots = std::mem::take(&mut looked.unfit_roots).into_iter().map(of_root);
    let vms = std::mem::take(&mut looked.vms.unfit).into_iter().map(|(_, error)| error);
    roots.chain(vms).collect()
}

/// What is wrong with the files of roots: those of the configuration, and those that were
/// added and can be opened.
fn changed_roots(config: &Config, looked: &Looked) -> Vec<String> {
    let known = match RootRecords::in_directory(&config.state_dir).read() {
        Ok(known) => known,
        Err(error) => return vec![error.to_string()],
    };
    let added = looked.attached.roots.iter();
    let added = added.filter(|root| config.roots.iter().all(|other| other.name != root.name));
    let added = added.filter_map(|root| super::roots::open(&RootConfig::resolve(root).ok()?).ok());
    let added: Vec<Root> = added.collect();
    looked.roots.iter().chain(&added).filter_map(|root| root_watch::warning(&known, root)).collect()
}

/// What [`check`] has found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checked {
    /// What there is.
    pub found: String,
    /// Each VM's leaf, and whether it is new or existing.
    pub leaves: Vec<String>,
    /// What a start would warn of, a sentence each.
    pub warnings: Vec<String>,
}

/// The VMs that were attached, without those whose name is the configuration's, which
/// counts; and what is wrong with entries that make none.
fn attached_vms(config: &Config, looked: &Looked) -> (Vec<VmConfig>, Vec<Error>) {
    let attached = looked.attached.vms.iter();
    let attached = attached.filter(|entry| config.vms.iter().all(|vm| vm.name != entry.name));
    let (mut vms, mut wrong) = (Vec::new(), Vec::new());
    for entry in attached {
        let root = entry.root.as_deref().into_iter();
        match VmConfig::resolve(entry, root, &looked.directories) {
            Ok(vm) => vms.push(vm),
            Err(error) => wrong.push(error.into()),
        }
    }
    (vms, wrong)
}

/// The VMs that would have the same serial number.
fn same_serials(config: &Config, attached: &[VmConfig]) -> Vec<SameSerial> {
    let all = config.vms.iter().chain(attached);
    Serials::of(all.map(|vm| (vm.name.as_str(), &vm.serial))).all_shared()
}

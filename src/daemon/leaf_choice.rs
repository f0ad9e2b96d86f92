//! Which leaf a VM gets: the one that it had, or a new one where it never had any. What
//! else is at its path, or nothing, is that VM's failure, until somebody says what is
//! meant.
//!
//! A missing leaf may lie on a disk that is not mounted yet. A new, empty one in its
//! place would be the root again under a guest that runs: its file system would be
//! destroyed without an error.

use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::lasting::{self, Fleeting};
use super::leaf_records::{Expected, LeafRecord, Remembered};
use crate::config::VmConfig;
use crate::leaf::LeafError;
use crate::leaf::offline::{self, Identity};
use crate::root::RootIdentity;

/// VMs that are named in a sentence.
const NAMED_MAX: usize = 8;

/// Which leaf is to be taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LeafChoice {
    /// The one that the VM had. A VM that had none takes the one that is there, or gets
    /// a new one.
    #[default]
    Remembered,
    /// A new one; none may be there.
    New,
    /// The one that is there, whichever it is.
    Accept,
}

/// What is done for a VM's leaf.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum LeafPlan {
    /// It is made.
    Make,
    /// It is there.
    Use {
        identity: Identity,
        /// No guest of this VM has used it, if it holds nothing.
        unused: bool,
    },
    /// The VM has none: it only reads.
    Without,
}

impl LeafPlan {
    /// What becomes of the leaf of `vm`, in words.
    pub(super) fn describe(&self, vm: &VmConfig) -> String {
        let (name, leaf) = (&vm.name, vm.leaf.display());
        match self {
            Self::Use { .. } => format!("{name}: leaf {leaf} (existing)"),
            Self::Make => format!("{name}: leaf {leaf} (new)"),
            Self::Without => format!("{name}: no leaf ({leaf} does not exist, and it only reads)"),
        }
    }

    /// What a person should know of the leaf.
    pub(super) fn warnings(&self, vm: &VmConfig, state_dir: &Path) -> Vec<String> {
        self.in_memory(vm, state_dir).into_iter().chain(self.other_name(vm)).collect()
    }

    /// The leaf's root was another by name, and the samples of its content are the same.
    fn other_name(&self, vm: &VmConfig) -> Option<String> {
        let Self::Use { identity, .. } = self else { return None };
        let (name, leaf, made_on, root) =
            (&vm.name, vm.leaf.display(), &identity.root.name, &vm.root);
        (made_on != root).then(|| {
            format!(
                "VM {name}: its leaf {leaf} was made on root {made_on}, and is used on root {root}, \
                 whose samples are the same: if {root} is another image, detach the VM and attach \
                 it with root={made_on}; if it is the same image, leafblk leaf rebase {leaf} --from \
                 {made_on}=IMAGE --root {root}=IMAGE, with the VM detached, ends this warning"
            )
        })
    }

    /// `state_dir` is looked at once for all.
    fn in_memory(&self, vm: &VmConfig, state_dir: &Path) -> Option<String> {
        let is_elsewhere = vm.leaf.parent() != Some(state_dir);
        let concerns = !vm.ephemeral && *self != Self::Without && is_elsewhere;
        concerns.then(|| lasting::warning(&format!("VM {}: its leaf", vm.name), &vm.leaf))?
    }
}

/// How a person says which leaf is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Remedy {
    /// By attaching the VM again.
    Attach,
    /// The VM is known as failed: by a command.
    Command,
    /// By hand, in this file, as there is no control API.
    File(PathBuf),
}

/// A VM's leaf is not what it should be.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum LeafProblem {
    #[error(
        "VM {vm} had the leaf {uuid}{}, and there is none at {}: mount it or put it there and {}; \
         if it is lost, {} an empty one",
        Was(was), leaf.display(), remedy.again(), remedy.choose(vm, LeafChoice::New)
    )]
    Missing { vm: String, leaf: PathBuf, uuid: Uuid, was: Option<PathBuf>, remedy: RemedyOf },
    #[error(
        "VM {vm} came into the configuration as VM {} left it, and there is no leaf at {}: if it is \
         the same VM by another name, set its leaf= to that file and {}; if not, {} an empty one",
        Named(instead_of), leaf.display(), remedy.again(), remedy.choose(vm, LeafChoice::New)
    )]
    Undecided { vm: String, leaf: PathBuf, instead_of: Vec<(String, PathBuf)>, remedy: RemedyOf },
    #[error(
        "VM {vm} had the leaf {uuid}{}, and the one at {} is another ({found}): put the right one \
         there and {}; if this one is meant, {} it",
        Was(was), leaf.display(), remedy.again(), remedy.choose(vm, LeafChoice::Accept)
    )]
    Another {
        vm: String,
        leaf: PathBuf,
        uuid: Uuid,
        was: Option<PathBuf>,
        found: Uuid,
        remedy: RemedyOf,
    },
    #[error(
        "VM {vm} was to have a new leaf, and there is one at {}, {found}: move it away, or {} it",
        leaf.display(), remedy.choose(vm, LeafChoice::Accept)
    )]
    NotNew { vm: String, leaf: PathBuf, found: Uuid, remedy: RemedyOf },
    #[error(
        "VM {vm} was to have the leaf at {}, and there is none: put it there, or {} an empty one",
        leaf.display(), remedy.choose(vm, LeafChoice::New)
    )]
    NotThere { vm: String, leaf: PathBuf, remedy: RemedyOf },
    #[error(
        "the leaf {} of VM {vm} is a copy of {}, which VM {other} has: both have the UUID {uuid}, \
         and two leaves with one UUID can't be in use at once; to have both, give the copy a UUID \
         of its own: leafblk leaf compact {} --root ROOT",
        leaf.display(), other_leaf.display(), leaf.display()
    )]
    Copy { vm: String, leaf: PathBuf, uuid: Uuid, other: String, other_leaf: PathBuf },
    #[error(
        "the leaf {} of VM {vm} was replaced while it was being opened; try again",
        leaf.display()
    )]
    Exchanged { vm: String, leaf: PathBuf },
    #[error(
        "VM {vm} would lose the leaf {} with this process: {why}; choose another leaf=, or none, \
         which is one in the state directory, or make the VM ephemeral",
        leaf.display()
    )]
    Fleeting { vm: String, leaf: PathBuf, why: WhyFleeting },
}

/// A [`Fleeting`], which other rooms need not know.
#[derive(Debug)]
pub struct WhyFleeting(Fleeting);

impl fmt::Display for WhyFleeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A [`Remedy`], which other rooms need not know.
#[derive(Debug)]
pub struct RemedyOf(Remedy);

impl RemedyOf {
    fn again(&self) -> &'static str {
        match &self.0 {
            Remedy::Attach => "attach the VM again",
            Remedy::Command => "run leafblk reload",
            Remedy::File(_) => "reload by SIGHUP",
        }
    }

    /// An imperative that wants an object: the leaf.
    fn choose(&self, vm: &str, choice: LeafChoice) -> String {
        match (&self.0, choice) {
            (Remedy::Attach, LeafChoice::New) => "attach it with --new-leaf, which makes".into(),
            (Remedy::Attach, _) => "attach the VM with --accept-leaf, which takes".into(),
            (Remedy::Command, LeafChoice::New) => format!("leafblk vm new-leaf {vm} makes"),
            (Remedy::Command, _) => format!("leafblk vm accept-leaf {vm} takes"),
            (Remedy::File(file), LeafChoice::New) => format!(
                "take the entry of VM {vm} out of {} and reload by SIGHUP, which makes",
                file.display()
            ),
            (Remedy::File(file), _) => format!(
                "take the entry of VM {vm} out of {} and reload by SIGHUP, which takes",
                file.display()
            ),
        }
    }
}

/// Where a leaf was, if it was elsewhere.
struct Was<'a>(&'a Option<PathBuf>);

impl fmt::Display for Was<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |path| write!(f, " at {}", path.display()))
    }
}

/// Some of these VMs, with their leaves.
struct Named<'a>(&'a [(String, PathBuf)]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (vm, leaf)) in self.0.iter().take(NAMED_MAX).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{vm} (leaf {})", leaf.display())?;
        }
        if self.0.len() > NAMED_MAX { f.write_str(" and others") } else { Ok(()) }
    }
}

/// A VM whose leaf is looked for.
pub(super) struct Question<'a> {
    pub(super) config: &'a VmConfig,
    pub(super) choice: LeafChoice,
    pub(super) remembered: &'a Remembered,
    pub(super) remedy: Remedy,
}

impl Question<'_> {
    /// What is to be done for the leaf, by what is known and by what is there.
    ///
    /// # Errors
    /// [`Unplanned`].
    pub(super) fn answer(self) -> Result<LeafPlan, Unplanned> {
        self.look_at_place()?;
        let found = offline::identity(&self.config.leaf)?;
        let record = self.remembered.of(&self.config.name);
        let plan = match found {
            Some(found) => self.of_present(found, record)?,
            None => self.of_missing(record)?,
        };
        Ok(plan)
    }

    /// Whether what the guest writes there would stay, if it is to stay.
    fn look_at_place(&self) -> Result<(), Box<LeafProblem>> {
        let VmConfig { name, leaf, ephemeral, readonly, .. } = self.config;
        if *ephemeral || (*readonly && !leaf.exists()) {
            return Ok(());
        }
        match Fleeting::of(leaf) {
            None => Ok(()),
            Some(why) => {
                let (vm, leaf) = (name.clone(), leaf.clone());
                Err(LeafProblem::Fleeting { vm, leaf, why: WhyFleeting(why) }.into())
            }
        }
    }

    fn of_present(
        self,
        found: Identity,
        record: Option<&LeafRecord>,
    ) -> Result<LeafPlan, Box<LeafProblem>> {
        let (vm, leaf) = (self.config.name.clone(), self.config.leaf.clone());
        let disk = Uuid::from_bytes(found.disk);
        if self.choice == LeafChoice::New {
            let remedy = RemedyOf(self.remedy);
            return Err(LeafProblem::NotNew { vm, leaf, found: disk, remedy }.into());
        }
        let unused = match record.map(|record| &record.expected) {
            None | Some(Expected::Undecided { .. }) => false,
            Some(Expected::Disk { uuid, unused }) if *uuid == disk => *unused,
            // The guest may run with the one that it had, and this one be new.
            Some(Expected::Disk { .. }) if self.choice == LeafChoice::Accept => true,
            Some(Expected::Disk { uuid, .. }) => {
                let was = elsewhere(record, &leaf);
                let (uuid, remedy) = (*uuid, RemedyOf(self.remedy));
                return Err(
                    LeafProblem::Another { vm, leaf, uuid, was, found: disk, remedy }.into()
                );
            }
        };
        Ok(LeafPlan::Use { identity: found, unused })
    }

    fn of_missing(self, record: Option<&LeafRecord>) -> Result<LeafPlan, Box<LeafProblem>> {
        let (vm, leaf) = (self.config.name.clone(), self.config.leaf.clone());
        let remedy = RemedyOf(self.remedy);
        match (self.choice, record.map(|record| &record.expected)) {
            (LeafChoice::Accept, _) => Err(LeafProblem::NotThere { vm, leaf, remedy }.into()),
            (LeafChoice::New, _) | (LeafChoice::Remembered, None) => {
                Ok(if self.config.readonly { LeafPlan::Without } else { LeafPlan::Make })
            }
            (LeafChoice::Remembered, Some(Expected::Disk { uuid, .. })) => {
                let was = elsewhere(record, &leaf);
                Err(LeafProblem::Missing { vm, leaf, uuid: *uuid, was, remedy }.into())
            }
            (LeafChoice::Remembered, Some(Expected::Undecided { instead_of })) => {
                let path = |vm: &String| {
                    self.remembered.of(vm).map(|record| record.path.clone()).unwrap_or_default()
                };
                let instead_of = instead_of.iter().map(|vm| (vm.clone(), path(vm))).collect();
                Err(LeafProblem::Undecided { vm, leaf, instead_of, remedy }.into())
            }
        }
    }
}

/// Where the record has the leaf, if not at `leaf`.
fn elsewhere(record: Option<&LeafRecord>, leaf: &Path) -> Option<PathBuf> {
    record.map(|record| record.path.clone()).filter(|path| path != leaf)
}

/// Why nothing could be planned for a leaf.
#[derive(Debug)]
pub(super) enum Unplanned {
    Problem(Box<LeafProblem>),
    Leaf(LeafError),
}

impl From<Box<LeafProblem>> for Unplanned {
    fn from(problem: Box<LeafProblem>) -> Self {
        Self::Problem(problem)
    }
}

impl From<LeafError> for Unplanned {
    fn from(error: LeafError) -> Self {
        Self::Leaf(error)
    }
}

/// Notes, for each VM of `vms` that is new and has no leaf, which of the VMs that have
/// just left the configuration it may be by another name: those whose leaf is still
/// where it was, on the same root, and which no VM of `vms` has.
pub(super) fn note_renames(
    remembered: &mut Remembered,
    left: &[String],
    vms: &[VmConfig],
    root: impl Fn(&str) -> Option<RootIdentity>,
) {
    let left: Vec<_> = left
        .iter()
        .filter_map(|name| {
            let record = remembered.of(name)?;
            let Expected::Disk { uuid, .. } = record.expected else { return None };
            let found = offline::identity(&record.path).ok()??;
            let is_free = vms.iter().all(|vm| vm.leaf != record.path);
            (is_free && found.disk == *uuid.as_bytes()).then(|| (name.clone(), found.root))
        })
        .collect();
    for vm in vms {
        let is_new = remembered.of(&vm.name).is_none() && !vm.readonly && !vm.ephemeral;
        if !is_new || !matches!(offline::identity(&vm.leaf), Ok(None)) {
            continue;
        }
        let root = root(&vm.root);
        let may_be = |on: &RootIdentity| root.as_ref().is_none_or(|root| root.same_content(on));
        let instead_of: Vec<String> =
            left.iter().filter(|(_, on)| may_be(on)).map(|(name, _)| name.clone()).collect();
        if !instead_of.is_empty() {
            let expected = Expected::Undecided { instead_of };
            let record = LeafRecord { path: vm.leaf.clone(), expected, detached: None };
            remembered.set(&vm.name, Some(record));
        }
    }
}

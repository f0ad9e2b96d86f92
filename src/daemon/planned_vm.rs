//! A VM that was looked at: its settings held against its root and its files, before
//! anything is changed.

use std::path::Path;

use super::denied::{Need, explain};
use super::leaf_choice::{LeafChoice, LeafPlan, LeafProblem, Question, Remedy, Unplanned};
use super::leaf_records::Remembered;
use super::made::NewLeaf;
use crate::config::VmConfig;
use crate::config::size::format_size;
use crate::error::Error;
use crate::leaf::{Leaf, LeafError, OpenOptions, SIZE_MAX};
use crate::root::{Root, RootIdentity};
use crate::units::SECTOR_SIZE;

/// A VM whose settings have been held against its root and its files.
pub(super) struct PlannedVm {
    config: VmConfig,
    size_bytes: u64,
    root: RootIdentity,
    leaf: LeafPlan,
}

/// How a VM is looked at.
#[derive(Clone, Debug)]
pub(super) struct Look<'a> {
    pub(super) in_use: InUse,
    pub(super) choice: LeafChoice,
    /// What is known of VMs' leaves.
    pub(super) remembered: &'a Remembered,
    /// What to do where the leaf is not the right one.
    pub(super) remedy: Remedy,
}

/// Why a VM can't be served.
#[derive(Debug)]
pub(super) enum Unfit {
    /// By its leaf, which is no other VM's affair.
    Leaf(Box<LeafProblem>),
    Other(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Box<LeafProblem>> for Unfit {
    fn from(problem: Box<LeafProblem>) -> Self {
        Self::Leaf(problem)
    }
}

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Leaf(problem) => Self::failure(problem),
            Unfit::Other(error) => error,
        }
    }
}

/// What to think of files and sockets that another process uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum InUse {
    /// They can't be had.
    Refused,
    /// It may be this VM's own, in the leafblk that serves it.
    Fine,
}

impl PlannedVm {
    /// Looks at a VM, and changes nothing.
    ///
    /// # Errors
    /// Sizes that are impossible; leaves and sockets that can't be used.
    pub(super) fn look(config: VmConfig, root: &Root, look: Look<'_>) -> Result<Self, Unfit> {
        let Look { in_use, choice, remembered, remedy } = look;
        let size_bytes = config.size.unwrap_or(root.len_bytes());
        if size_bytes < root.len_bytes() {
            return Err(Unfit::Other(Error::failure(format!(
                "VM {}: size {} is less than the {} of root {}; leave size out, or give a larger \
                 one",
                config.name,
                format_size(size_bytes),
                format_size(root.len_bytes()),
                config.root
            ))));
        }
        if size_bytes > SIZE_MAX {
            return Err(Unfit::Other(Error::failure(format!(
                "VM {}: its root {} has {}, and a disk has at most {}; give a smaller root",
                config.name,
                config.root,
                format_size(size_bytes),
                format_size(SIZE_MAX)
            ))));
        }
        let socket = match in_use {
            InUse::Refused => super::sockets::is_stale(&config.socket).map(drop),
            // Whoever listens there is not disturbed.
            InUse::Fine => super::sockets::is_there(&config.socket).map(drop),
        };
        socket.map_err(|error| explain(error, &config.socket, Need::Write))?;
        let leaf = Question { config: &config, choice, remembered, remedy }.answer();
        let leaf = leaf.map_err(|why| match why {
            Unplanned::Problem(problem) => Unfit::Leaf(problem),
            Unplanned::Leaf(error) => explain(error, &config.leaf, Need::Write).into(),
        })?;
        match leaf {
            LeafPlan::Use { .. } => {
                let size = look_at_leaf(&config, root, in_use);
                let size = size.map_err(|error| explain(error, &config.leaf, Need::Write))?;
                size.map_or(Ok(()), |size| check_blocks(&config, size))?;
            }
            LeafPlan::Without if size_bytes != root.len_bytes() => {
                return Err(Unfit::Other(Error::failure(format!(
                    "VM {}: it is readonly and has no leaf ({} does not exist), so its disk has \
                     the {} of root {}, not the {} asked for; leave size out",
                    config.name,
                    config.leaf.display(),
                    format_size(root.len_bytes()),
                    config.root,
                    format_size(size_bytes)
                ))));
            }
            LeafPlan::Without | LeafPlan::Make => check_blocks(&config, size_bytes)?,
        }
        Ok(Self { config, size_bytes, root: root.identity().clone(), leaf })
    }

    pub(super) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The UUID of the leaf, if it is there.
    pub(super) fn leaf_uuid(&self) -> Option<[u8; 16]> {
        match &self.leaf {
            LeafPlan::Use { identity, .. } => Some(identity.uuid),
            LeafPlan::Make | LeafPlan::Without => None,
        }
    }

    /// Makes the leaf, if it is to be made.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn make_leaf(&self) -> Result<Option<NewLeaf>, LeafError> {
        match self.leaf {
            LeafPlan::Make => {
                NewLeaf::create(&self.config.leaf, self.size_bytes, &self.root).map(Some)
            }
            LeafPlan::Use { .. } | LeafPlan::Without => Ok(None),
        }
    }

    /// What is done for its leaf.
    pub(super) fn leaf(&self) -> &LeafPlan {
        &self.leaf
    }

    /// Opens the leaf, if it has one.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn open_leaf(&self, root: &Root, runtime_dir: &Path) -> Result<Option<Leaf>, Unfit> {
        let config = &self.config;
        if self.leaf == LeafPlan::Without {
            return Ok(None);
        }
        let leaf = open_leaf(config, root, runtime_dir)?;
        if self.leaf_uuid().is_some_and(|uuid| uuid != leaf.uuid()) {
            drop(leaf.close());
            return Err(exchanged(config).into());
        }
        grow(config, &leaf).inspect_err(|_| drop(leaf.close()))?;
        Ok(Some(leaf))
    }
}

pub(super) fn exchanged(config: &VmConfig) -> Box<LeafProblem> {
    Box::new(LeafProblem::Exchanged { vm: config.name.clone(), leaf: config.leaf.clone() })
}

/// Looks at an existing leaf, and lets go: opening for use comes when all VMs are right.
/// The size that it will have, if it is not in use.
fn look_at_leaf(config: &VmConfig, root: &Root, in_use: InUse) -> Result<Option<u64>, LeafError> {
    let options = OpenOptions { live_map: None, read_only: true };
    let leaf = Leaf::open(&config.leaf, root.identity(), &options);
    match leaf.and_then(|leaf| check_size(config, &leaf)) {
        Err(LeafError::InUse { .. }) if in_use == InUse::Fine => Ok(None),
        other => other.map(Some),
    }
}

/// Whether so many bytes, which nobody may have asked for, are whole blocks.
fn check_blocks(config: &VmConfig, bytes: u64) -> Result<(), Error> {
    let block = config.block_size;
    if block.divides(bytes / SECTOR_SIZE) {
        return Ok(());
    }
    let (name, block) = (&config.name, u64::from(block.to_bytes()));
    let next = bytes.next_multiple_of(block);
    Err(Error::failure(format!(
        "VM {name}: its disk has {}, which is no multiple of its block-size {block}; give it \
         size={}, or leave block-size out",
        format_size(bytes),
        format_size(next)
    )))
}

/// Whether an existing leaf can have the size that is asked for: its own, or a
/// larger one, to which it grows. The size that it will have.
fn check_size(config: &VmConfig, leaf: &Leaf) -> Result<u64, LeafError> {
    let (path, have) = (config.leaf.clone(), leaf.sectors() * SECTOR_SIZE);
    let asked = config.size.unwrap_or(have);
    if asked < have || (config.readonly && asked != have) {
        return Err(LeafError::OtherSize { path, have, asked });
    }
    let most = leaf.size_max();
    if asked > most {
        return Err(LeafError::NoRoom { path, asked, most });
    }
    Ok(asked)
}

/// Makes an existing leaf as large as is asked for.
fn grow(config: &VmConfig, leaf: &Leaf) -> Result<(), Error> {
    let have = leaf.sectors() * SECTOR_SIZE;
    let Some(asked) = config.size.filter(|asked| *asked > have) else {
        return Ok(());
    };
    leaf.grow(asked).map_err(Error::failure)?;
    let (name, have, asked) = (&config.name, format_size(have), format_size(asked));
    log::info!("VM {name}: its disk had {have} and has {asked} now, as its size says");
    Ok(())
}

pub(super) fn open_leaf(config: &VmConfig, root: &Root, runtime_dir: &Path) -> Result<Leaf, Error> {
    let options = OpenOptions {
        live_map: Some(runtime_dir.join(format!("{}.map", config.name))),
        read_only: config.readonly,
    };
    let opened = Leaf::open(&config.leaf, root.identity(), &options);
    opened.map_err(|error| explain(error, &config.leaf, Need::Write))
}

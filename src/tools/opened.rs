//! A leaf as a tool opens it: locked, and with all that its last daemon
//! acknowledged.
//!
//! A daemon that was killed leaves the header "not clean" and a live map in
//! the runtime directory, which knows more than the map in the file. It is
//! looked for by its content. Where there is none, the machine may have gone
//! down (then the file's map is all there is), or the map is somewhere else:
//! that can't be told apart, so it takes a word of the operator
//! (`--flushed-only`) to work without.
//!
//! A report looks at a leaf in use too, without a lock: what it says is not of one
//! instant then.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{LeafPlace, ToolError};
use crate::config::{Environment, Settings};
use crate::io::storage::FileStorage;
use crate::leaf::header::Header;
use crate::leaf::{Holder, Leaf, LeafError, OpenOptions, offline};

/// Where live maps are: looked up only when one is needed.
#[derive(Clone, Debug)]
pub struct RuntimeDir {
    /// The flag, if given.
    pub given: Option<PathBuf>,
    /// What the default depends on.
    pub env: Environment,
}

impl RuntimeDir {
    /// The directory.
    ///
    /// # Errors
    /// Where there is no default, or the flag makes no directory.
    pub fn resolve(&self) -> Result<PathBuf, ToolError> {
        let settings = Settings { runtime_dir: self.given.clone(), ..Settings::default() };
        Ok(settings.runtime_dir(&self.env)?)
    }
}

/// How it is known what a leaf holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// It was closed: its own map is all.
    Clean,
    /// Its daemon was killed and left this live map.
    LiveMap(PathBuf),
    /// It was not closed, and its own map has what was flushed: there is no live map
    /// in this directory, or (`None`) none was to be looked for.
    FlushedOnly(Option<PathBuf>),
    /// Another process has it and goes on writing; `None` where nobody can tell which.
    InUse {
        /// That process.
        by: Option<Holder>,
        /// For this VM, if that is known.
        vm: Option<String>,
        /// Its live map; without it, what was flushed is known.
        live_map: Option<PathBuf>,
    },
}

impl State {
    /// Who has the leaf, and how true is what is said of it, in words; `None` where
    /// nobody has it.
    pub(super) fn user(&self) -> Option<String> {
        let Self::InUse { by, vm, live_map } = self else { return None };
        let who = match (vm, by) {
            (Some(vm), Some(by)) => format!("VM {vm}, {by}"),
            (Some(vm), None) => format!("VM {vm}"),
            (None, Some(by)) => by.to_string(),
            (None, None) => "another process".to_owned(),
        };
        let shown = match live_map {
            Some(_) => "this was read while it runs, and is not of one instant",
            None => {
                "its live map was not looked for, or is in another runtime directory: this is \
                 what was flushed, and not of one instant"
            }
        };
        Some(format!("in use by {who}; {shown}"))
    }
}

/// A leaf that is locked and not looked into yet.
#[derive(Debug)]
pub(super) struct Locked {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) header: Header,
    pub(super) state: State,
}

/// Against whom a leaf is locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LockedAgainst {
    /// Everybody.
    All,
    /// Whoever writes.
    Writers,
    /// As before; where somebody writes, nobody.
    WritersIfPossible,
}

/// What to do with a leaf of which more may be known elsewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unclosed {
    /// Reports say so.
    Tell,
    /// Others refuse, unless told to.
    Refuse,
}

impl Locked {
    /// Locks the leaf.
    pub(super) fn new(
        place: &LeafPlace,
        against: LockedAgainst,
        unclosed: Unclosed,
    ) -> Result<Self, ToolError> {
        // A link stays what it is: the file that it leads to is replaced.
        let path = place.path.canonicalize().unwrap_or_else(|_| place.path.clone());
        let file = match offline::lock(&path, against == LockedAgainst::All) {
            Err(LeafError::InUse { by, .. }) => {
                let vm = (place.vm_of)(&path, &place.runtime_dir);
                if against == LockedAgainst::WritersIfPossible {
                    return Self::beside(path, place, by, vm);
                }
                let runtime_dir = place.runtime_dir.given.clone();
                return Err(match vm {
                    Some(vm) => ToolError::Served { path, vm, by, runtime_dir },
                    None => ToolError::InUse { path, by, dir: place.runtime_dir.resolve()? },
                });
            }
            locked => locked?,
        };
        let (header, alone) = offline::header(&path, &file)?;
        let state = state(&path, &header, alone, place, unclosed)?;
        Ok(Self { path, file, header, state })
    }

    /// Looks at a leaf that a process has.
    fn beside(
        path: PathBuf,
        place: &LeafPlace,
        by: Option<Holder>,
        vm: Option<String>,
    ) -> Result<Self, ToolError> {
        let file = offline::open_beside(&path)?;
        let (header, alone) = offline::header(&path, &file)?;
        let live_map = match place.flushed_only {
            true => None,
            false => find_live_map(&path, &header, alone, place)?.0,
        };
        Ok(Self { path, file, header, state: State::InUse { by, vm, live_map } })
    }

    /// The leaf, to read; its root is whichever it says.
    pub(super) fn read(&self) -> Result<Leaf, ToolError> {
        if let State::InUse { live_map, .. } = &self.state {
            let storage = Box::new(self.storage()?);
            let root = &self.header.root;
            return Ok(Leaf::open_beside(&self.path, storage, root, live_map.as_deref())?);
        }
        self.open(true)
    }

    fn storage(&self) -> Result<FileStorage, LeafError> {
        Ok(FileStorage::new(offline::clone(&self.path, &self.file)?))
    }

    /// Opens the leaf to change it in place, and closes it, also where the
    /// change failed: it is as it was then.
    pub(super) fn change(
        &self,
        change: impl FnOnce(&mut Leaf) -> Result<(), LeafError>,
    ) -> Result<(), ToolError> {
        let mut leaf = self.open(false)?;
        let changed = change(&mut leaf);
        let closed = leaf.close();
        changed?;
        Ok(closed?)
    }

    fn open(&self, read_only: bool) -> Result<Leaf, ToolError> {
        let live_map = match &self.state {
            State::LiveMap(path) => Some(path.clone()),
            State::Clean | State::FlushedOnly(_) | State::InUse { .. } => None,
        };
        let storage = self.storage()?;
        let options = OpenOptions { live_map, read_only };
        Ok(Leaf::open_storage(&self.path, Box::new(storage), &self.header.root, &options)?)
    }

    /// The leaf's file has been replaced: the live map is nobody's. It is not open here.
    pub(super) fn forget_live_map(&self) {
        if let State::LiveMap(path) = &self.state {
            // It fits no leaf any more; it only takes memory.
            let _ = offline::remove_live_map(path);
        }
    }
}

fn state(
    path: &Path,
    header: &Header,
    alone: bool,
    place: &LeafPlace,
    unclosed: Unclosed,
) -> Result<State, ToolError> {
    // One of two copies may be older than the leaf's last daemon.
    if header.clean && !alone {
        return Ok(State::Clean);
    }
    if place.flushed_only {
        return Ok(if header.clean { State::Clean } else { State::FlushedOnly(None) });
    }
    let (found, dir) = find_live_map(path, header, alone, place)?;
    match found {
        Some(map) => Ok(State::LiveMap(map)),
        None if header.clean => Ok(State::Clean),
        None if unclosed == Unclosed::Tell => Ok(State::FlushedOnly(Some(dir))),
        None => Err(ToolError::NotClosed { path: path.to_owned(), dir }),
    }
}

/// The live map, if it is there, and the directory in which it was looked for.
fn find_live_map(
    path: &Path,
    header: &Header,
    alone: bool,
    place: &LeafPlace,
) -> Result<(Option<PathBuf>, PathBuf), ToolError> {
    let dir = place.runtime_dir.resolve()?;
    match offline::find_live_map(&dir, path, header, alone) {
        Ok(found) => Ok((found, dir)),
        Err(source) => Err(ToolError::LiveMaps { dir, source }),
    }
}

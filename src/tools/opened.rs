//! A leaf as a tool opens it: locked, and with all that its last daemon
//! acknowledged.
//!
//! A daemon that was killed leaves the header "not clean" and a live map in
//! the runtime directory, which knows more than the map in the file. It is
//! looked for by its content. Where there is none, the machine may have gone
//! down (then the file's map is all there is), or the map is somewhere else:
//! that can't be told apart, so it takes a word of the operator
//! (`--flushed-only`) to work without.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{LeafPlace, ToolError};
use crate::config::{Environment, Settings};
use crate::io::storage::FileStorage;
use crate::leaf::header::Header;
use crate::leaf::{Leaf, LeafError, OpenOptions, offline};

/// Where live maps are: looked up only when one is needed.
#[derive(Clone, Debug)]
pub struct RuntimeDir {
    /// The flag, if given.
    pub given: Option<PathBuf>,
    /// What the default depends on.
    pub env: Environment,
}

impl RuntimeDir {
    fn resolve(&self) -> Result<PathBuf, ToolError> {
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
}

/// A leaf that is locked and not looked into yet.
#[derive(Debug)]
pub(super) struct Locked {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) header: Header,
    pub(super) state: State,
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
    /// Locks the leaf: for itself alone if `write`.
    pub(super) fn new(
        place: &LeafPlace,
        write: bool,
        unclosed: Unclosed,
    ) -> Result<Self, ToolError> {
        // A link stays what it is: the file that it leads to is replaced.
        let path = place.path.canonicalize().unwrap_or_else(|_| place.path.clone());
        let file = offline::lock(&path, write)?;
        let (header, alone) = offline::header(&path, &file)?;
        let state = state(&path, &header, alone, place, unclosed)?;
        Ok(Self { path, file, header, state })
    }

    /// The leaf, to read; its root is whichever it says.
    pub(super) fn read(&self) -> Result<Leaf, ToolError> {
        self.open(true)
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
            State::Clean | State::FlushedOnly(_) => None,
        };
        let storage = FileStorage::new(offline::clone(&self.path, &self.file)?);
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
    let dir = place.runtime_dir.resolve()?;
    let found = offline::find_live_map(&dir, path, header, alone)
        .map_err(|source| ToolError::LiveMaps { dir: dir.clone(), source })?;
    match found {
        Some(map) => Ok(State::LiveMap(map)),
        None if header.clean => Ok(State::Clean),
        None if unclosed == Unclosed::Tell => Ok(State::FlushedOnly(Some(dir))),
        None => Err(ToolError::NotClosed { path: path.to_owned(), dir }),
    }
}

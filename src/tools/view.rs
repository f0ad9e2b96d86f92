//! What a guest would see: the leaf over its root, extent by extent.

use super::extents::Extents;
use super::opened::{Locked, LockedAgainst, State, Unclosed};
use super::root_reader::{RootPart, RootReader, read_root};
use super::{LeafPlace, ToolError, open_root};
use crate::config::RootEntry;
use crate::leaf::{Leaf, LeafError};
use crate::root::{Root, RootIdentity};
use crate::units::{Sector, SectorRange};

/// Where the content of an extent is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// In the leaf.
    Leaf,
    /// The leaf holds it, as a hole: zeros over whatever the root has.
    LeafZero,
    /// In the root.
    Root,
    /// A hole of the root, or past its end.
    RootZero,
    /// Past the root's end.
    Beyond,
}

impl Source {
    /// Whether it reads as zeros without being read.
    pub(super) fn is_zero(self) -> bool {
        matches!(self, Self::LeafZero | Self::RootZero | Self::Beyond)
    }

    /// Whether the leaf says what is there.
    pub(super) fn is_held(self) -> bool {
        matches!(self, Self::Leaf | Self::LeafZero)
    }
}

/// Sectors of one source, contiguous there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Extent {
    pub(super) range: SectorRange,
    pub(super) source: Source,
}

/// An open leaf and, if it is known, its root.
#[derive(Debug)]
pub(super) struct View {
    pub(super) locked: Locked,
    pub(super) leaf: Leaf,
    pub(super) root: Option<Root>,
}

impl View {
    /// Opens the leaf for reading, with its root if that is given.
    pub(super) fn open(
        place: &LeafPlace,
        root: Option<&RootEntry>,
        against: LockedAgainst,
        unclosed: Unclosed,
    ) -> Result<Self, ToolError> {
        let locked = Locked::new(place, against, unclosed)?;
        let root = root.map(open_root).transpose()?;
        if let Some(root) = &root {
            check_root(&locked, root.identity())?;
        }
        Self::of(locked, root)
    }

    /// Of a leaf that is locked, and its root.
    pub(super) fn of(locked: Locked, root: Option<Root>) -> Result<Self, ToolError> {
        Ok(Self { leaf: locked.read()?, locked, root })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.leaf.sectors()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.leaf.sectors() * 512
    }

    /// The leaf's file has been replaced: the live map is nobody's.
    pub(super) fn forget_live_map(self) {
        let Self { locked, leaf, .. } = self;
        // It has the map open.
        drop(leaf);
        locked.forget_live_map();
    }

    pub(super) fn state(&self) -> &State {
        &self.locked.state
    }

    /// All sectors in order.
    pub(super) fn extents(&self) -> ExtentsOfView<'_> {
        ExtentsOfView {
            view: self,
            leaf: Extents::new(&self.locked.file),
            root: self.root.as_ref().map(RootReader::new),
            at: 0,
        }
    }

    /// Reads what a guest would. Without a root, its sectors read as zeros.
    pub(super) fn read(&self, range: SectorRange, into: &mut [u8]) -> Result<(), ToolError> {
        let mut rest = range;
        let mut into = into;
        while !rest.is_empty() {
            let (held, count) = self.leaf.next_run(rest);
            let (run, more) = rest.split_at(count);
            let len = usize::try_from(run.byte_len()).unwrap_or(usize::MAX).min(into.len());
            let (here, after) = into.split_at_mut(len);
            match &self.root {
                _ if held => self.leaf.read_bytes(run.start(), here)?,
                Some(root) => read_root(root, run, here)?,
                None => here.fill(0),
            }
            (rest, into) = (more, after);
        }
        Ok(())
    }
}

/// Refuses a root that is not the leaf's.
pub(super) fn check_root(locked: &Locked, given: &RootIdentity) -> Result<(), ToolError> {
    let recorded = &locked.header.root;
    if recorded.same_content(given) {
        return Ok(());
    }
    Err(LeafError::OtherRoot {
        path: locked.path.clone(),
        recorded: recorded.to_string(),
        given: given.to_string(),
    }
    .into())
}

/// The extents of a [`View`], from any place on.
#[derive(Debug)]
pub(super) struct ExtentsOfView<'a> {
    view: &'a View,
    leaf: Extents<'a>,
    root: Option<RootReader<'a>>,
    at: u64,
}

impl ExtentsOfView<'_> {
    /// The extent at the start of the (non-empty) range, at most that range.
    pub(super) fn of(&mut self, range: SectorRange) -> Result<Extent, ToolError> {
        let (held, count) = self.view.leaf.next_run(range);
        let run = range.split_at(count).0;
        let (source, count) = if held { self.held(run)? } else { self.absent(run)? };
        Ok(Extent { range: run.split_at(count).0, source })
    }

    fn held(&mut self, run: SectorRange) -> Result<(Source, u64), ToolError> {
        let leaf = &self.view.leaf;
        let (place, count) = leaf.place(run);
        let Some(from) = place else { return Ok((Source::LeafZero, count)) };
        let to = from + count * 512;
        let (is_data, until) = self
            .leaf
            .at(from, to)
            .map_err(|source| ToolError::Read { path: self.view.locked.path.clone(), source })?;
        let source = if is_data { Source::Leaf } else { Source::LeafZero };
        Ok((source, (until - from) / 512))
    }

    fn absent(&mut self, run: SectorRange) -> Result<(Source, u64), ToolError> {
        if let Some(root) = &mut self.root {
            let (part, count) = root.part(run)?;
            let source = match part {
                RootPart::Data => Source::Root,
                RootPart::Hole => Source::RootZero,
                RootPart::Beyond => Source::Beyond,
            };
            return Ok((source, count));
        }
        let root_sectors = self.view.locked.header.root.len_bytes / 512;
        match root_sectors.checked_sub(run.start().0) {
            Some(inside) if inside > 0 => Ok((Source::Root, run.count().min(inside))),
            _ => Ok((Source::Beyond, run.count())),
        }
    }

    /// The next extent of the whole disk.
    pub(super) fn next(&mut self) -> Result<Option<Extent>, ToolError> {
        let left = self.view.sectors().saturating_sub(self.at);
        match SectorRange::new(Sector(self.at), left) {
            Some(range) if !range.is_empty() => {
                let extent = self.of(range)?;
                self.at = extent.range.end().0;
                Ok(Some(extent))
            }
            _ => Ok(None),
        }
    }
}

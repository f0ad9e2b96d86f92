//! Writing a new leaf: given what the guest is to see, it keeps only what
//! differs from the root.
//!
//! The new leaf is an ordinary one, written by [`Leaf`] itself: data, sync,
//! map, sync, header. It is named afterwards ([`Beside`]).

use super::ToolError;
use super::pieces::{Buffer, PIECE_SECTORS, pieces};
use super::progress::Progress;
use super::root_reader::{RootPart, RootReader, read_root};
use super::view::View;
use crate::io::beside::Beside;
use crate::io::storage::FileStorage;
use crate::leaf::header::Header;
use crate::leaf::{self, Layout, Leaf, OpenOptions, offline};
use crate::root::Root;
use crate::units::SectorRange;

/// A leaf that is being written.
#[derive(Debug)]
pub(super) struct LeafWriter<'a> {
    beside: Beside,
    leaf: Leaf,
    root: &'a Root,
    reader: RootReader<'a>,
    /// The root's content of the piece at hand.
    below: Buffer,
}

/// How a sector compares with the root's.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Same,
    Zero,
    Other,
}

impl<'a> LeafWriter<'a> {
    /// An empty leaf of `size_bytes` on `root`, which is no larger; to take the place of
    /// `old`, if there is one.
    pub(super) fn new(
        beside: Beside,
        size_bytes: u64,
        root: &'a Root,
        old: Option<&Header>,
    ) -> Result<Self, ToolError> {
        let path = beside.target().to_owned();
        let storage = FileStorage::new(offline::clone(&path, beside.file())?);
        let on = root.identity();
        match old {
            Some(old) => leaf::create_successor(&path, &storage, size_bytes, on, old)?,
            None => leaf::create_storage(&path, &storage, Layout::Packed, size_bytes, on)?,
        }
        let leaf =
            Leaf::open_storage(&path, Box::new(storage), root.identity(), &OpenOptions::default())?;
        Ok(Self { beside, leaf, root, reader: RootReader::new(root), below: Buffer::new() })
    }

    /// The range, one of [`pieces`], has this content.
    pub(super) fn put(&mut self, range: SectorRange, content: &[u8]) -> Result<(), ToolError> {
        let below = self.below.of(range);
        read_root(self.root, range, below)?;
        if *below == *content {
            return Ok(());
        }
        let mut kinds = content.chunks(512).zip(below.chunks(512)).map(|(new, old)| {
            if new == old {
                Kind::Same
            } else if new == [0; 512] {
                Kind::Zero
            } else {
                Kind::Other
            }
        });
        let mut kind = kinds.next();
        let mut rest = range;
        let mut bytes = content;
        while let Some(run_kind) = kind {
            let mut count = 1;
            kind = kinds.next();
            while kind == Some(run_kind) {
                count += 1;
                kind = kinds.next();
            }
            let (run, more) = rest.split_at(count);
            let len = usize::try_from(run.byte_len()).unwrap_or(usize::MAX).min(bytes.len());
            let (here, after) = bytes.split_at(len);
            match run_kind {
                Kind::Same => {}
                Kind::Zero => self.leaf.write_zeroes(run)?,
                Kind::Other => self.leaf.write_bytes(run, here)?,
            }
            (rest, bytes) = (more, after);
        }
        Ok(())
    }

    /// The range reads as zeros. Ranges come in rising order.
    pub(super) fn put_zeroes(&mut self, range: SectorRange) -> Result<(), ToolError> {
        static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
        let mut rest = range;
        while !rest.is_empty() {
            let (part, count) = self.reader.part(rest)?;
            let (run, more) = match part {
                // Only what the root doesn't hide anyway.
                RootPart::Data => {
                    let (run, more) = rest.split_at(count.min(PIECE_SECTORS));
                    let len = usize::try_from(run.byte_len()).unwrap_or(usize::MAX);
                    self.put(run, &ZEROES[..len.min(ZEROES.len())])?;
                    (run, more)
                }
                RootPart::Hole | RootPart::Beyond => rest.split_at(count),
            };
            if run.is_empty() {
                // Somebody changes the root meanwhile: an error, not a loop.
                let source = std::io::ErrorKind::UnexpectedEof.into();
                return Err(ToolError::Read { path: self.root.path().to_owned(), source });
            }
            rest = more;
        }
        Ok(())
    }

    /// Everything of `view` that the new root hasn't.
    pub(super) fn copy(&mut self, view: &View, what: &'static str) -> Result<(), ToolError> {
        let same_root = view.locked.header.root.same_content(self.root.identity());
        let work = if same_root { view.leaf.present_sectors() * 512 } else { view.size_bytes() };
        let progress = Progress::new(what, work);
        let mut buffer = Buffer::new();
        let mut extents = view.extents();
        while let Some(extent) = extents.next()? {
            if same_root && !extent.source.is_held() {
                continue;
            }
            if extent.source.is_zero() {
                self.put_zeroes(extent.range)?;
                progress.advance(extent.range.byte_len());
                continue;
            }
            for piece in pieces(extent.range) {
                let content = buffer.of(piece);
                view.read(piece, content)?;
                self.put(piece, content)?;
                progress.advance(piece.byte_len());
            }
        }
        Ok(())
    }

    /// Closes the leaf; what remains is to name it. Also how many sectors it
    /// holds and bytes it takes.
    pub(super) fn finish(self) -> Result<(Beside, Held), ToolError> {
        self.leaf.close()?;
        let allocated = self.leaf.allocated_bytes().map_err(|e| self.beside.error(e))?;
        Ok((self.beside, Held { sectors: self.leaf.present_sectors(), allocated }))
    }
}

/// What a leaf holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Held {
    pub(super) sectors: u64,
    pub(super) allocated: u64,
}

impl Held {
    pub(super) fn of(view: &View) -> Result<Self, ToolError> {
        let path = view.leaf.path();
        let allocated = view
            .leaf
            .allocated_bytes()
            .map_err(|source| ToolError::Read { path: path.to_owned(), source })?;
        Ok(Self { sectors: view.leaf.present_sectors(), allocated })
    }
}

//! A root's content for any sector of a disk: zeros in its holes and beyond
//! its end.

use std::os::unix::fs::FileExt;

use super::ToolError;
use super::extents::Extents;
use crate::root::Root;
use crate::units::SectorRange;

/// What a range of a root is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RootPart {
    /// To be read.
    Data,
    /// A hole in the image.
    Hole,
    /// Past the image's end.
    Beyond,
}

/// Reads a root in rising order.
#[derive(Debug)]
pub(super) struct RootReader<'a> {
    root: &'a Root,
    extents: Extents<'a>,
}

impl<'a> RootReader<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, extents: Extents::new(root.file()) }
    }

    /// What the first sectors of the (non-empty) range are, and how many.
    pub(super) fn part(&mut self, range: SectorRange) -> Result<(RootPart, u64), ToolError> {
        let start = range.start().0;
        if start >= self.root.sectors() {
            return Ok((RootPart::Beyond, range.count()));
        }
        let end = range.end().0.min(self.root.sectors());
        let (is_data, until) =
            self.extents.at(start * 512, end * 512).map_err(|e| read_error(self.root, e))?;
        Ok((if is_data { RootPart::Data } else { RootPart::Hole }, until / 512 - start))
    }
}

/// Fills `into` with the root's content from the range's start on, zeros
/// beyond its end.
pub(super) fn read_root(root: &Root, range: SectorRange, into: &mut [u8]) -> Result<(), ToolError> {
    let inside = root.len_bytes().saturating_sub(range.byte_offset()).min(into.len() as u64);
    let (from_root, beyond) = into.split_at_mut(usize::try_from(inside).unwrap_or(usize::MAX));
    beyond.fill(0);
    root.file().read_exact_at(from_root, range.byte_offset()).map_err(|e| read_error(root, e))
}

fn read_error(root: &Root, source: std::io::Error) -> ToolError {
    ToolError::Read { path: root.path().to_owned(), source }
}

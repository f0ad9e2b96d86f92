//! A raw image of what a guest would see: sparse, and read back.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

use super::ToolError;
use super::extents::Extents;
use super::pieces::{Buffer, pieces};
use super::progress::Progress;
use super::view::View;
use crate::io::beside::Beside;
use crate::units::SectorRange;

/// Zeros of this length and alignment are left out.
const BLOCK: usize = 4096;
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// Writes the image into the new file, makes it durable, and reads it back from
/// the disk.
pub(super) fn write_raw(view: &View, beside: &Beside) -> Result<(), ToolError> {
    beside.file().set_len(view.size_bytes()).map_err(|e| beside.error(e))?;
    let written = write(view, beside)?;
    beside.sync()?;
    // The disk is to be asked, not the page cache. Advice: it may stay there.
    let _ = fadvise(beside.file(), 0, None, Advice::DontNeed);
    let found = read_back(beside, view.sectors())?;
    if found == written {
        Ok(())
    } else {
        Err(ToolError::NotVerified { path: beside.target().to_owned() })
    }
}

/// A CRC-32C over each piece that isn't zeros, and its place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Sum(u32);

impl Sum {
    fn add(&mut self, at: SectorRange, content: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, &at.byte_offset().to_le_bytes());
        self.0 = crc32c::crc32c_append(self.0, content);
    }
}

fn whole(sectors: u64) -> SectorRange {
    SectorRange::whole(sectors).unwrap_or_default()
}

fn is_zero(content: &[u8]) -> bool {
    content.chunks(BLOCK).all(|block| *block == ZEROES[..block.len()])
}

fn write(view: &View, beside: &Beside) -> Result<Sum, ToolError> {
    let progress = Progress::new("writing", view.size_bytes());
    let mut sum = Sum::default();
    let mut buffer = Buffer::new();
    let mut extents = view.extents();
    for range in pieces(whole(view.sectors())) {
        progress.advance(range.byte_len());
        let first = extents.of(range)?;
        if first.source.is_zero() && first.range == range {
            continue;
        }
        let content = buffer.of(range);
        view.read(range, content)?;
        if !is_zero(content) {
            sum.add(range, content);
            write_blocks(beside.file(), range.byte_offset(), content)
                .map_err(|e| beside.error(e))?;
        }
    }
    Ok(sum)
}

/// Writes the blocks that aren't zeros, neighbours at once.
fn write_blocks(file: &File, offset: u64, content: &[u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < content.len() {
        let zeros = run(&content[done..], true);
        let data = run(&content[done + zeros..], false);
        let (from, to) = (done + zeros, done + zeros + data);
        if data > 0 {
            file.write_all_at(&content[from..to], offset + from as u64)?;
        }
        done = to;
    }
    Ok(())
}

/// Bytes at the start that are blocks of zeros, or that are not.
fn run(content: &[u8], zeros: bool) -> usize {
    let blocks = content.chunks(BLOCK).take_while(|block| is_zero(block) == zeros);
    blocks.map(<[u8]>::len).sum()
}

fn read_back(beside: &Beside, sectors: u64) -> Result<Sum, ToolError> {
    let progress = Progress::new("verifying", sectors * 512);
    let read_error = |source| ToolError::Read { path: beside.target().to_owned(), source };
    let mut sum = Sum::default();
    let mut buffer = Buffer::new();
    let mut extents = Extents::new(beside.file());
    for range in pieces(whole(sectors)) {
        progress.advance(range.byte_len());
        let (start, end) = (range.byte_offset(), range.byte_offset() + range.byte_len());
        if extents.at(start, end).map_err(read_error)? == (false, end) {
            continue;
        }
        let content = buffer.of(range);
        beside.file().read_exact_at(content, start).map_err(read_error)?;
        if !is_zero(content) {
            sum.add(range, content);
        }
    }
    Ok(sum)
}

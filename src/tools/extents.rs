//! Where a file has data and where holes, asked of the file system once for
//! each extent.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Extents of a file, for questions in rising order.
#[derive(Debug)]
pub(super) struct Extents<'a> {
    file: &'a File,
    known: Range<u64>,
    is_data: bool,
}

impl<'a> Extents<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, known: 0..0, is_data: false }
    }

    /// Whether there is data at `offset`, and where that ends, at `end` at the
    /// latest. What the file system can't tell is data. Both are multiples of
    /// 512, and so is the answer.
    pub(super) fn at(&mut self, offset: u64, end: u64) -> io::Result<(bool, u64)> {
        if !self.known.contains(&offset) {
            (self.is_data, self.known) = self.look_up(offset)?;
        }
        Ok((self.is_data, self.known.end.min(end)))
    }

    fn look_up(&self, offset: u64) -> io::Result<(bool, Range<u64>)> {
        let data = match seek(self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data up to the end.
            Err(Errno::NXIO) => return Ok((false, offset..u64::MAX)),
            // A block device, or a file system that doesn't know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((true, offset..u64::MAX)),
            Err(e) => return Err(e.into()),
        };
        // A hole is whole sectors; what is left of one is data.
        let hole_end = data / 512 * 512;
        if hole_end > offset {
            return Ok((false, offset..hole_end));
        }
        let hole = match seek(self.file, SeekFrom::Hole(data)) {
            Ok(hole) => hole.max(data + 1),
            Err(Errno::NXIO) => data + 1,
            Err(e) => return Err(e.into()),
        };
        Ok((true, offset..hole.next_multiple_of(512)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn data_and_holes_take_turns_and_end_at_the_limit() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 8192], 65536).unwrap();
        let mut extents = Extents::new(&file);
        assert_eq!(extents.at(0, 1 << 20).unwrap(), (false, 65536));
        assert_eq!(extents.at(512, 4096).unwrap(), (false, 4096));
        assert_eq!(extents.at(65536, 1 << 20).unwrap(), (true, 65536 + 8192));
        assert_eq!(extents.at(65536 + 8192, 1 << 20).unwrap(), (false, 1 << 20));
        assert_eq!(extents.at(1 << 20, 2 << 20).unwrap(), (false, 2 << 20), "past the end");
    }
}

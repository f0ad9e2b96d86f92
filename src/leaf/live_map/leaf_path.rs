//! Where a live map's leaf was when it was last opened: for people, who can't tell
//! from a UUID what a map is for. Nothing depends on it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{LiveMap, PAGE_LEN};

/// Where it is in the first page: two bytes of length, the path, zeros.
const OFFSET: usize = 128;
/// Bytes of a path that are kept.
const PATH_MAX: usize = if PAGE_LEN > OFFSET + 2 { PAGE_LEN - OFFSET - 2 } else { 0 };

impl LiveMap {
    /// Notes where the leaf is; a longer path than 3966 bytes is left out.
    pub(in crate::leaf) fn note_leaf_path(&self, leaf: &Path) -> io::Result<()> {
        let path = std::path::absolute(leaf).unwrap_or_else(|_| leaf.to_owned());
        let path = path.as_os_str().as_bytes();
        let len = u16::try_from(path.len()).ok().filter(|len| usize::from(*len) <= PATH_MAX);
        let Some(len) = len else { return Ok(()) };
        let mut bytes = [0; 2 + PATH_MAX];
        bytes[..2].copy_from_slice(&len.to_le_bytes());
        bytes[2..2 + path.len()].copy_from_slice(path);
        self.file.write_all_at(&bytes, OFFSET as u64)
    }
}

/// What was noted in the file of a live map.
pub(super) fn leaf_path(file: &File) -> Option<PathBuf> {
    let mut bytes = [0; 2 + PATH_MAX];
    file.read_exact_at(&mut bytes, OFFSET as u64).ok()?;
    let len = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let path = bytes[2..].get(..len).filter(|path| !path.is_empty())?;
    Some(OsString::from_vec(path.to_vec()).into())
}

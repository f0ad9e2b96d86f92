//! Whether the name that a file was opened by still leads to it.
//!
//! Who deletes or replaces a file that leafblk has open changes nothing that leafblk does,
//! and hears of it at the next start, when the old file is gone. Until then it can be
//! copied: the kernel keeps an open file, and shows it as /proc/PID/fd/N.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What has become of an open file's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Loss {
    /// There is nothing of that name, and the file has no other.
    Deleted,
    /// There is nothing of that name; the file has another.
    Moved,
    /// The name is another file's.
    Replaced,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "was deleted",
            Self::Moved => "was moved away",
            Self::Replaced => "was replaced by another file",
        })
    }
}

/// An open file, and the name that it was opened by.
#[derive(Clone, Debug)]
pub(super) struct NamedFile {
    path: PathBuf,
    /// Open for as long as whoever asks has the file.
    fd: RawFd,
}

impl NamedFile {
    pub(super) fn new(path: &Path, fd: RawFd) -> Self {
        Self { path: path.to_owned(), fd }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where another process gets at the file by.
    pub(super) fn by_number(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd)
    }

    /// What has become of the name; `None` if nothing has. The file system may hang.
    ///
    /// # Errors
    /// As stat(2).
    fn look(&self) -> io::Result<Option<Loss>> {
        let open = std::fs::metadata(format!("/proc/self/fd/{}", self.fd))?;
        let there = match std::fs::metadata(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(if open.nlink() == 0 { Loss::Deleted } else { Loss::Moved }));
            }
            Err(error) => return Err(error),
        };
        // A device's node may be made anew.
        let same_device = open.file_type().is_block_device()
            && there.file_type().is_block_device()
            && there.rdev() == open.rdev();
        let same_file = (there.dev(), there.ino()) == (open.dev(), open.ino());
        Ok((!same_file && !same_device).then_some(Loss::Replaced))
    }
}

/// What is known of an open file's name. Whoever asks its file system something looks at
/// the name as well.
#[derive(Debug, Default)]
pub(super) struct NameWatch {
    found: Mutex<Option<Loss>>,
    /// What the log has.
    said: Mutex<Option<Loss>>,
}

impl NameWatch {
    /// Looks at the name of `file`, which is open meanwhile. The file system may hang; where
    /// it fails, what was known stays.
    pub(super) fn look(&self, file: &NamedFile) {
        if let Ok(found) = file.look() {
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        }
    }

    /// What has become of the name, as it was last looked at.
    pub(super) fn loss(&self) -> Option<Loss> {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the log has it not yet; it has it then.
    pub(super) fn is_news(&self, loss: Option<Loss>) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *said, loss) != loss && loss.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_is_noticed_and_the_file_can_still_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        let named = NamedFile::new(&path, file.as_raw_fd());
        let look = || named.look().unwrap();
        assert_eq!(look(), None);
        fs::rename(&path, &other).unwrap();
        assert_eq!(look(), Some(Loss::Moved));
        fs::write(&path, "new").unwrap();
        assert_eq!(look(), Some(Loss::Replaced));
        fs::remove_file(&path).unwrap();
        fs::remove_file(&other).unwrap();
        assert_eq!(look(), Some(Loss::Deleted));
        assert_eq!(fs::read_to_string(named.by_number()).unwrap(), "old");
    }

    #[test]
    fn the_log_has_each_loss_once() {
        let watch = NameWatch::default();
        let news = [None, Some(Loss::Moved), Some(Loss::Moved), Some(Loss::Deleted), None];
        let said = news.map(|loss| watch.is_news(loss));
        assert_eq!(said, [false, true, false, true, false]);
        assert!(watch.is_news(Some(Loss::Moved)), "once more after it was well");
    }
}

//! What the file system says of a root's file. A change of the file shows here, also
//! where it touched none of the samples of the fingerprint.
//!
//! Nothing of it proves that the content is the same, or that it is another: times can
//! be set back, and a copy is another file. A digest of all of it does
//! ([`super::digest`]).

use std::fmt;
use std::io;

use jiff::Timestamp;
use rustix::fs::{FileType, StatVfsMountFlags};

use super::Root;

/// A file, as stat(2) shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileState {
    /// Bytes.
    pub(crate) size: u64,
    /// Its number in its file system.
    pub(crate) inode: u64,
    /// When its content was last changed, as far as nobody has set that back.
    pub(crate) mtime: Timestamp,
    /// When its content, permissions, owner, names or times were last changed.
    pub(crate) ctime: Timestamp,
}

/// A root's file at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RootState {
    /// `None` for a block device, which doesn't tell of changes.
    pub(crate) file: Option<FileState>,
    /// Whether nobody could write to it: its file system is mounted for reading only, or
    /// nobody has the permission (root can do it all the same).
    pub(crate) protected: bool,
}

/// How a file differs from what it was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Changes(Vec<String>);

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

fn timestamp(second: i64, nanosecond: u64) -> Timestamp {
    let nanosecond = i32::try_from(nanosecond).unwrap_or(0);
    // Out of range: as far as there are numbers.
    Timestamp::new(second, nanosecond).unwrap_or(Timestamp::MAX)
}

impl RootState {
    /// That of an open root. Asks its file system, which may hang.
    pub(crate) fn of(file: &impl std::os::fd::AsFd) -> io::Result<Self> {
        let found = rustix::fs::fstat(file)?;
        let mount = rustix::fs::fstatvfs(file)?;
        let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        let file = is_file.then(|| FileState {
            size: u64::try_from(found.st_size).unwrap_or(0),
            inode: found.st_ino,
            mtime: timestamp(found.st_mtime, found.st_mtime_nsec),
            ctime: timestamp(found.st_ctime, found.st_ctime_nsec),
        });
        let read_only = mount.f_flag.contains(StatVfsMountFlags::RDONLY);
        Ok(Self { file, protected: read_only || found.st_mode & 0o222 == 0 })
    }

    /// How the file has changed since it was in the state `before`, if that is a reason to
    /// doubt its content.
    pub(crate) fn changes_since(&self, before: &Self) -> Option<Changes> {
        // Nobody could write to it, then or now: a restore or another mount is no doubt.
        if self.protected && before.protected {
            return None;
        }
        let (now, was) = match (self.file, before.file) {
            (Some(now), Some(was)) => (now, was),
            (None, None) => return None,
            (Some(_), None) => return Some(Changes(vec!["was a block device".into()])),
            (None, Some(_)) => return Some(Changes(vec!["is a block device".into()])),
        };
        let mut changes = Vec::new();
        let mut differ = |what, was: &dyn fmt::Display, now: &dyn fmt::Display| {
            changes.push(format!("{what} was {was} and is {now}"));
        };
        if now.size != was.size {
            differ("size", &was.size, &now.size);
        }
        if now.inode != was.inode {
            differ("inode", &was.inode, &now.inode);
        }
        if now.mtime != was.mtime {
            differ("mtime", &was.mtime, &now.mtime);
        }
        // Permissions that were taken away since have changed it.
        if now.ctime != was.ctime && !self.protected {
            differ("ctime", &was.ctime, &now.ctime);
        }
        (!changes.is_empty()).then_some(Changes(changes))
    }
}

impl Root {
    /// What the file system says of the file now. It may hang.
    pub(crate) fn state(&self) -> io::Result<RootState> {
        RootState::of(&self.file)
    }

    /// What it said before the fingerprint was taken.
    pub(crate) fn state_when_opened(&self) -> &RootState {
        &self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileState = FileState {
        size: 4096,
        inode: 12,
        mtime: Timestamp::constant(1_000, 5),
        ctime: Timestamp::constant(2_000, 0),
    };

    fn state(file: FileState, protected: bool) -> RootState {
        RootState { file: Some(file), protected }
    }

    fn changes(before: RootState, now: RootState) -> Option<String> {
        now.changes_since(&before).map(|changes| changes.to_string())
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        let before = state(FILE, false);
        assert_eq!(changes(before, before), None);
        let later = Timestamp::constant(3_000, 0);
        let now = FileState { size: 512, inode: 13, mtime: later, ctime: later };
        let said = changes(before, state(now, false)).unwrap();
        assert_eq!(
            said,
            "size was 4096 and is 512, inode was 12 and is 13, mtime was \
             1970-01-01T00:16:40.000000005Z and is 1970-01-01T00:50:00Z, ctime was \
             1970-01-01T00:33:20Z and is 1970-01-01T00:50:00Z"
        );
        let nanosecond = FileState { ctime: Timestamp::constant(2_000, 1), ..FILE };
        assert!(changes(before, state(nanosecond, false)).unwrap().starts_with("ctime was "));
        let device = RootState { file: None, protected: false };
        assert_eq!(changes(before, device).unwrap(), "is a block device");
        assert_eq!(changes(device, before).unwrap(), "was a block device");
        assert_eq!(changes(device, device), None, "it does not tell");
    }

    #[test]
    fn what_nobody_could_write_raises_no_doubt() {
        let later = Timestamp::constant(3_000, 0);
        let other = FileState { inode: 13, mtime: later, ctime: later, ..FILE };
        assert_eq!(changes(state(FILE, true), state(other, true)), None);
        // Permissions were taken away.
        let taken = FileState { ctime: later, ..FILE };
        assert_eq!(changes(state(FILE, false), state(taken, true)), None);
        // But not before it was written.
        let written = FileState { mtime: later, ctime: later, ..FILE };
        assert!(changes(state(FILE, false), state(written, true)).is_some());
        assert!(changes(state(FILE, true), state(written, false)).is_some());
    }
}

//! A new file that gets its name when it is whole and durable: a new leaf, and
//! what the leaf's tools write.
//!
//! Until then it has none (O_TMPFILE), so a process that is killed leaves
//! nothing; on file systems without nameless files it has a name nobody looks
//! for, `.NAME.….new`. The order is: content, fsync, name, fsync of the
//! directory. A loss of power therefore finds the old state or the new one.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};

use super::open;

/// Why there is no such file; each with the name that it would have.
#[derive(Debug)]
pub(crate) enum BesideError {
    /// The name is taken.
    Exists(PathBuf),
    /// The path ends in no name.
    NoName(PathBuf),
    /// It can't be made, written, synced or named.
    Write(PathBuf, io::Error),
}

impl BesideError {
    /// The same without the name.
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Self::Exists(_) => io::Error::from_raw_os_error(libc::EEXIST),
            Self::NoName(_) => io::ErrorKind::InvalidInput.into(),
            Self::Write(_, source) => source,
        }
    }
}

/// A file that has no name yet, or not its last one.
#[derive(Debug)]
pub(crate) struct Beside {
    file: File,
    target: PathBuf,
    directory: PathBuf,
    /// Its name where it has one.
    temporary: Option<PathBuf>,
}

impl Beside {
    /// A new, empty file that is to be called `target`, whether that name is
    /// free ([`Self::publish`]) or another file's ([`Self::replace`]).
    pub(crate) fn new(target: &Path) -> Result<Self, BesideError> {
        Self::start(target, true)
    }

    fn start(target: &Path, nameless: bool) -> Result<Self, BesideError> {
        target.file_name().ok_or_else(|| BesideError::NoName(target.to_owned()))?;
        let directory = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let made = if nameless {
            open::nameless_file(&directory).map(|file| file.map(|file| (file, None)))
        } else {
            Ok(None)
        };
        let made = match made {
            Ok(None) => {
                let name = temporary_name(target, &directory);
                let file = open::new_file(&name);
                file.map(|file| (file, Some(name)))
            }
            Ok(Some(made)) => Ok(made),
            Err(e) => Err(e),
        };
        let (file, temporary) =
            made.map_err(|source| BesideError::Write(target.to_owned(), source))?;
        Ok(Self { file, target: target.to_owned(), directory, temporary })
    }

    /// The file, open for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What it will be called.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// An error of writing it.
    pub(crate) fn error(&self, source: io::Error) -> BesideError {
        BesideError::Write(self.target.clone(), source)
    }

    /// Makes the content durable, without a name.
    pub(crate) fn sync(&self) -> Result<(), BesideError> {
        self.file.sync_all().map_err(|e| self.error(e))
    }

    /// Syncs it and gives it its name; a file that came there meanwhile stays.
    pub(crate) fn publish(mut self) -> Result<(), BesideError> {
        self.sync()?;
        let linked = match &self.temporary {
            None => link(&self.file, &self.target),
            Some(temporary) => std::fs::hard_link(temporary, &self.target),
        };
        match linked {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(BesideError::Exists(self.target.clone()));
            }
            result => result.map_err(|e| self.error(e))?,
        }
        self.remove_temporary();
        self.sync_directory().inspect_err(|_| {
            let _ = std::fs::remove_file(&self.target);
        })
    }

    /// Syncs it and puts it in the place of the old file, with that one's
    /// owner and permissions. Where the directory can't be synced, the new file
    /// has the name, and the old one may have it after a loss of power.
    pub(crate) fn replace(mut self, old: &File) -> Result<(), BesideError> {
        self.take_after(old).map_err(|e| self.error(e))?;
        self.sync()?;
        if self.temporary.is_none() {
            // rename(2) is the only call that replaces, and needs a name.
            let name = temporary_name(&self.target, &self.directory);
            link(&self.file, &name).map_err(|e| self.error(e))?;
            self.temporary = Some(name);
        }
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.target).map_err(|e| self.error(e))?;
        }
        self.temporary = None;
        self.sync_directory()
    }

    fn take_after(&self, old: &File) -> io::Result<()> {
        let (old, new) = (old.metadata()?, self.file.metadata()?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            std::os::unix::fs::fchown(&self.file, Some(old.uid()), Some(old.gid()))?;
        }
        self.file.set_permissions(old.permissions())
    }

    fn sync_directory(&self) -> Result<(), BesideError> {
        open::directory(&self.directory).and_then(|dir| dir.sync_all()).map_err(|e| self.error(e))
    }

    fn remove_temporary(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // It has its name; this one is only in the way.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.remove_temporary();
    }
}

/// A name that nobody else has: not a tool that was killed either.
fn temporary_name(target: &Path, directory: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    directory.join(name)
}

/// Names a nameless file, as open(2) describes it.
fn link(file: &File, name: &Path) -> io::Result<()> {
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, same, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_under_its_name_only() {
        for nameless in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("new");
            let beside = Beside::start(&target, nameless).unwrap();
            beside.file().write_all(b"content").unwrap();
            assert!(!target.exists());
            assert_eq!(names(dir.path()).len(), usize::from(!nameless));
            beside.publish().unwrap();
            assert_eq!(names(dir.path()), ["new"]);
            assert_eq!(std::fs::read(&target).unwrap(), b"content");
            assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn one_that_is_given_up_leaves_nothing() {
        for nameless in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            drop(Beside::start(&dir.path().join("new"), nameless).unwrap());
            assert_eq!(names(dir.path()), [""; 0]);
        }
    }

    #[test]
    fn a_file_that_came_meanwhile_stays() {
        for nameless in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("new");
            let beside = Beside::start(&target, nameless).unwrap();
            std::fs::write(&target, b"somebody's").unwrap();
            assert!(matches!(beside.publish(), Err(BesideError::Exists(path)) if path == target));
            assert_eq!(names(dir.path()), ["new"]);
            assert_eq!(std::fs::read(&target).unwrap(), b"somebody's");
        }
    }

    #[test]
    fn a_replaced_file_hands_on_its_owner_and_permissions() {
        use std::os::unix::fs::PermissionsExt;
        for nameless in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("leaf");
            std::fs::write(&target, b"old").unwrap();
            std::fs::set_permissions(&target, PermissionsExt::from_mode(0o640)).unwrap();
            let old = File::open(&target).unwrap();
            let beside = Beside::start(&target, nameless).unwrap();
            beside.file().write_all(b"new").unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), b"old");
            beside.replace(&old).unwrap();
            assert_eq!(names(dir.path()), ["leaf"]);
            assert_eq!(std::fs::read(&target).unwrap(), b"new");
            assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o777, 0o640);
        }
    }

    #[test]
    fn what_can_not_be_made_is_an_error_with_the_target() {
        let nowhere = Path::new("/nowhere/at/all");
        let error = Beside::new(nowhere).unwrap_err();
        assert!(
            matches!(&error, BesideError::Write(path, source)
                if path == nowhere && source.kind() == io::ErrorKind::NotFound),
            "{error:?}"
        );
        assert!(matches!(Beside::new(Path::new("..")), Err(BesideError::NoName(_))));
    }
}

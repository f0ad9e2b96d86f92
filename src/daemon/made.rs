//! What a start or an attach has made so far. Dropped before it is kept, it is
//! taken back: whoever fails leaves nothing.
//!
//! Nothing is removed that was there before, or that somebody else has put
//! something into since.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::leaf_records::{LeafRecord, LeafRecords, Remembered};
use super::records_file::RecordsError;
use crate::cache::{self, Cache};
use crate::io::storage::FileStorage;
use crate::leaf::{self, Leaf, LeafError, OpenOptions, offline};
use crate::root::RootIdentity;

/// All that a start has made beside sockets, which have values of their own.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Before the leaves that they name.
    pub(super) records: Option<NewRecords>,
    // What lies in the directories goes before them: fields go in order.
    pub(super) leaves: Vec<NewLeaf>,
    pub(super) cache: Option<NewCache>,
    pub(super) directories: NewDirectories,
}

impl Made {
    /// The start has succeeded.
    pub(super) fn keep(self) {
        if let Some(records) = self.records {
            records.keep();
        }
        self.leaves.into_iter().for_each(NewLeaf::keep);
        if let Some(cache) = self.cache {
            cache.keep();
        }
        self.directories.keep();
    }
}

/// Directories that this process has made, outermost first.
#[derive(Debug, Default)]
pub(super) struct NewDirectories(Vec<PathBuf>);

impl NewDirectories {
    pub(super) fn add(&mut self, path: &Path) {
        self.0.push(path.to_owned());
    }

    pub(super) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewDirectories {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // One that is not empty stays: somebody else uses it.
            let _ = fs::remove_dir(path);
        }
    }
}

/// A leaf that this process has made. To be dropped when the leaf is closed.
#[derive(Debug)]
pub(super) struct NewLeaf {
    path: PathBuf,
    root: RootIdentity,
    is_kept: bool,
}

impl NewLeaf {
    /// Makes an empty leaf at `path`, which must not exist.
    ///
    /// # Errors
    /// As [`leaf::create`].
    pub(super) fn create(
        path: &Path,
        size_bytes: u64,
        root: &RootIdentity,
    ) -> Result<Self, LeafError> {
        leaf::create(path, size_bytes, root)?;
        Ok(Self { path: path.to_owned(), root: root.clone(), is_kept: false })
    }

    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }

    /// The leaf, locked, so that nobody else has it.
    fn lock(&self) -> Result<Leaf, LeafError> {
        let file = FileStorage::new(offline::lock(&self.path, true)?);
        let options = OpenOptions { live_map: None, read_only: true };
        Leaf::open_storage(&self.path, Box::new(file), &self.root, &options)
    }
}

impl Drop for NewLeaf {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Another process may have taken it meanwhile, and may have written to it.
        if let Ok(leaf) = self.lock()
            && leaf.present_sectors() == 0
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What was remembered of VMs' leaves, and what was known before.
#[derive(Debug)]
pub(super) struct NewRecords {
    records: Arc<LeafRecords>,
    before: Vec<(String, Option<LeafRecord>)>,
}

impl NewRecords {
    /// Remembers these VMs' leaves, and does what else is to be done to the records.
    ///
    /// # Errors
    /// As [`LeafRecords::change`].
    pub(super) fn write(
        records: &Arc<LeafRecords>,
        new: &[(String, LeafRecord)],
        more: impl FnOnce(&mut Remembered),
    ) -> Result<Self, RecordsError> {
        let before = records.change(|all| {
            more(all);
            let set = |(vm, record): &(String, LeafRecord)| {
                (vm.clone(), all.set(vm, Some(record.clone())))
            };
            new.iter().map(set).collect()
        })?;
        Ok(Self { records: Arc::clone(records), before })
    }

    pub(super) fn keep(mut self) {
        self.before.clear();
    }
}

impl Drop for NewRecords {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.before);
        if before.is_empty() {
            return;
        }
        let restored = self.records.change(|all| {
            for (vm, record) in before {
                all.set(&vm, record);
            }
        });
        if let Err(error) = restored {
            log::error!("{error}");
        }
    }
}

/// The files of a cache to be kept, where there were none before.
#[derive(Debug)]
pub(super) struct NewCache {
    /// Has the lock on the files.
    cache: Option<Arc<Cache>>,
    runtime_dir: PathBuf,
}

impl NewCache {
    /// `cache` has just made its files for `runtime_dir`.
    pub(super) fn of(cache: &Arc<Cache>, runtime_dir: &Path) -> Self {
        Self { cache: Some(Arc::clone(cache)), runtime_dir: runtime_dir.to_owned() }
    }

    fn keep(mut self) {
        self.cache = None;
    }
}

impl Drop for NewCache {
    fn drop(&mut self) {
        if self.cache.is_some() {
            cache::remove_files(&self.runtime_dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Sector, SectorRange};

    fn identity() -> RootIdentity {
        RootIdentity { len_bytes: 4096, fingerprint: [7; 32], name: "d".into() }
    }

    #[test]
    fn a_new_leaf_goes_unless_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.leaf");
        drop(NewLeaf::create(&path, 1 << 20, &identity()).unwrap());
        assert!(!path.exists());
        NewLeaf::create(&path, 1 << 20, &identity()).unwrap().keep();
        assert!(path.exists());
        NewLeaf::create(&path, 1 << 20, &identity()).unwrap_err();
        assert!(path.exists(), "it was there before");
    }

    #[test]
    fn a_new_leaf_that_somebody_else_has_taken_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.leaf");
        let new = NewLeaf::create(&path, 1 << 20, &identity()).unwrap();
        let other = Leaf::open(&path, &identity(), &OpenOptions::default()).unwrap();
        drop(new);
        assert!(path.exists(), "in use");
        let again = || NewLeaf { path: path.clone(), root: identity(), is_kept: false };
        other.write_bytes(SectorRange::new(Sector(8), 1).unwrap(), &[1; 512]).unwrap();
        other.close().unwrap();
        drop(other);
        drop(again());
        assert!(path.exists(), "it has something");
    }

    #[test]
    fn what_is_remembered_is_as_before_unless_it_is_kept() {
        use crate::daemon::leaf_records::Expected;
        let dir = tempfile::tempdir().unwrap();
        let records = Arc::new(LeafRecords::in_directory(dir.path()));
        let record = |uuid| {
            let expected = Expected::Disk { uuid: uuid::Uuid::from_u128(uuid), unused: false };
            LeafRecord { path: "/l".into(), expected, detached: None }
        };
        let write = |uuid| {
            let new = ["a", "b"].map(|vm| (vm.to_owned(), record(uuid)));
            NewRecords::write(&records, &new, |all| all.detach("c")).unwrap()
        };
        records.change(|all| all.set("a", Some(record(1)))).unwrap();
        let new = write(2);
        assert_eq!(records.read().unwrap().of("b"), Some(&record(2)));
        drop(new);
        let known = records.read().unwrap();
        assert_eq!((known.of("a"), known.of("b")), (Some(&record(1)), None));
        write(3).keep();
        assert_eq!(records.read().unwrap().of("a"), Some(&record(3)));
    }

    #[test]
    fn a_new_directory_that_somebody_else_uses_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("a"), dir.path().join("a/b"));
        let make = || {
            let mut new = NewDirectories::default();
            for path in [&outer, &inner] {
                fs::create_dir(path).unwrap();
                new.add(path);
            }
            new
        };
        drop(make());
        assert!(!outer.exists());
        let new = make();
        fs::write(outer.join("other"), "").unwrap();
        drop(new);
        assert!(outer.join("other").exists() && !inner.exists());
    }
}

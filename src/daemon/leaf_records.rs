//! STATE/leaves.toml: which leaf each VM has, so that a VM whose leaf is missing, or is
//! another one, is not served an empty or a strange disk.
//!
//! A leaf is known by the UUID of its disk, which survives a rename of the file and the
//! tools that write it anew. A record stays when its VM is detached or leaves the
//! configuration: the VM may come back. docs/control.md describes the file for people.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::records_file::{Records, RecordsFile, Wrong};

/// Records of VMs that are detached: of more, the oldest go.
const DETACHED_MAX: usize = 4096;
const HEAD: &str = "\
# Which leaf each VM has had, by the UUID of its disk (leafblk leaf info shows it). A
# VM whose leaf is missing, or is another one, is not served. leafblk writes this file.
# Without a VM's entry, its next attach takes the leaf that is there, or makes one.
";

/// What is known of a VM's leaf.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct LeafRecord {
    /// Where it was, or is to be: for people.
    pub(super) path: PathBuf,
    pub(super) expected: Expected,
    /// When its VM was detached, or was not in the configuration any more.
    pub(super) detached: Option<Timestamp>,
}

/// Which leaf a VM is to have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Expected {
    /// The one of this disk.
    Disk {
        uuid: Uuid,
        /// No guest of this VM has used it.
        unused: bool,
    },
    /// The VM came into the configuration, without a leaf, when these went, with
    /// theirs. It may be one of them under another name.
    Undecided { instead_of: Vec<String> },
}

/// All records, by the names of VMs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Remembered(BTreeMap<String, LeafRecord>);

impl Remembered {
    pub(super) fn of(&self, vm: &str) -> Option<&LeafRecord> {
        self.0.get(vm)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &LeafRecord)> {
        self.0.iter().map(|(name, record)| (name.as_str(), record))
    }

    /// What is known of a VM now; `None` for nothing. Returns what was known.
    pub(super) fn set(&mut self, vm: &str, record: Option<LeafRecord>) -> Option<LeafRecord> {
        match record {
            Some(record) => self.0.insert(vm.to_owned(), record),
            None => self.0.remove(vm),
        }
    }

    /// A VM is not served any more, for now.
    pub(super) fn detach(&mut self, vm: &str) {
        if let Some(record) = self.0.get_mut(vm) {
            record.detached.get_or_insert_with(Timestamp::now);
        }
    }

    /// A guest has begun to use the VM's leaf, of this disk.
    pub(super) fn use_disk(&mut self, vm: &str, disk: Uuid) {
        self.set_unused(vm, disk, false);
    }

    /// The VM's leaf, of this disk, is about to be reverted: no guest will have used it.
    pub(super) fn revert_disk(&mut self, vm: &str, disk: Uuid) {
        self.set_unused(vm, disk, true);
    }

    fn set_unused(&mut self, vm: &str, disk: Uuid, is_unused: bool) {
        if let Some(Expected::Disk { uuid, unused }) =
            self.0.get_mut(vm).map(|record| &mut record.expected)
            && *uuid == disk
        {
            *unused = is_unused;
        }
    }

    fn forget_oldest(&mut self) {
        let mut detached: Vec<_> =
            self.0.iter().filter_map(|(name, record)| Some((record.detached?, name))).collect();
        let Some(too_many) = detached.len().checked_sub(DETACHED_MAX) else {
            return;
        };
        detached.sort_unstable();
        let oldest: Vec<_> = detached[..too_many].iter().map(|(_, name)| (*name).clone()).collect();
        for name in oldest {
            self.0.remove(&name);
        }
    }
}

#[derive(Deserialize, Serialize)]
struct Form {
    version: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vm: Vec<RecordForm>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RecordForm {
    name: String,
    leaf: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<Uuid>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unused: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    instead_of: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detached: Option<Timestamp>,
}

impl RecordForm {
    fn of(name: &str, record: &LeafRecord) -> Self {
        let (uuid, unused, instead_of) = match &record.expected {
            Expected::Disk { uuid, unused } => (Some(*uuid), *unused, Vec::new()),
            Expected::Undecided { instead_of } => (None, false, instead_of.clone()),
        };
        let leaf = record.path.to_string_lossy().into_owned();
        Self { name: name.into(), leaf, uuid, unused, instead_of, detached: record.detached }
    }

    /// Its name and what it says; `None` where it doesn't say which leaf.
    fn into_record(self) -> (String, Option<LeafRecord>) {
        let Self { name, leaf, uuid, unused, instead_of, detached } = self;
        let expected = match uuid {
            Some(uuid) => Expected::Disk { uuid, unused },
            None if instead_of.is_empty() => return (name, None),
            None => Expected::Undecided { instead_of },
        };
        (name, Some(LeafRecord { path: leaf.into(), expected, detached }))
    }
}

/// The file.
pub(super) type LeafRecords = RecordsFile<Remembered>;

impl Records for Remembered {
    const NAME: &'static str = "leaves.toml";
    const VERSION: u64 = 1;
    const WHAT: &'static str = "the VMs' leaves";
    const WITHOUT: &'static str = "see to it yourself that each VM's leaf is in its place";

    fn parse(text: &str) -> Result<Self, Wrong> {
        let form: Form = toml::from_str(text)?;
        let mut all = BTreeMap::new();
        for (name, record) in form.vm.into_iter().map(RecordForm::into_record) {
            let no_uuid = || Wrong::Sense(format!("the entry of VM {name} has no uuid"));
            let record = record.ok_or_else(no_uuid)?;
            all.insert(name, record);
        }
        Ok(Self(all))
    }

    fn to_text(&self) -> Result<String, toml::ser::Error> {
        let vm = self.all().map(|(name, record)| RecordForm::of(name, record)).collect();
        Ok(format!("{HEAD}\n{}", toml::to_string(&Form { version: Self::VERSION, vm })?))
    }

    fn bound(&mut self) {
        self.forget_oldest();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn record(uuid: u128) -> LeafRecord {
        let expected = Expected::Disk { uuid: Uuid::from_u128(uuid), unused: uuid == 1 };
        LeafRecord { path: format!("/leaves/{uuid}").into(), expected, detached: None }
    }

    #[test]
    fn what_is_written_is_read_by_others_too() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) =
            (LeafRecords::in_directory(dir.path()), LeafRecords::in_directory(dir.path()));
        assert_eq!(*ours.read().unwrap(), Remembered::default());
        let undecided = Expected::Undecided { instead_of: vec!["a".into(), "b".into()] };
        let undecided = LeafRecord { expected: undecided, ..record(3) };
        for (name, record) in [("a", record(1)), ("b", record(2)), ("c", undecided)] {
            theirs.change(|all| all.set(name, Some(record.clone()))).unwrap();
            assert_eq!(ours.read().unwrap().of(name), Some(&record));
        }
        ours.change(|all| all.detach("a")).unwrap();
        theirs.change(|all| all.use_disk("a", Uuid::from_u128(2))).unwrap();
        let all = theirs.read().unwrap();
        let a = all.of("a").unwrap();
        assert!(a.detached.is_some() && a.expected == record(1).expected, "{a:?}");
        ours.change(|all| all.use_disk("a", Uuid::from_u128(1))).unwrap();
        let used = Expected::Disk { uuid: Uuid::from_u128(1), unused: false };
        assert_eq!(theirs.read().unwrap().of("a").unwrap().expected, used);
        for (uuid, unused) in [(2, false), (1, true)] {
            theirs.change(|all| all.revert_disk("a", Uuid::from_u128(uuid))).unwrap();
            let expected = Expected::Disk { uuid: Uuid::from_u128(1), unused };
            assert_eq!(ours.read().unwrap().of("a").unwrap().expected, expected);
        }
        assert_eq!(LeafRecords::in_directory(dir.path()).read().unwrap(), ours.read().unwrap());
    }

    #[test]
    fn nothing_is_written_where_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let records = LeafRecords::in_directory(dir.path());
        records.change(|all| all.detach("a")).unwrap();
        assert!(!records.path().exists());
        records.change(|all| all.set("a", Some(record(1)))).unwrap();
        let inode = || std::fs::metadata(records.path()).unwrap().ino();
        let before = inode();
        records.change(|all| all.set("a", Some(record(1)))).unwrap();
        assert_eq!(inode(), before);
    }

    #[test]
    fn what_many_write_at_once_is_all_there() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u128 {
                let records = LeafRecords::in_directory(dir.path());
                scope.spawn(move || {
                    for number in 0..5 {
                        let uuid = 10 + thread * 5 + number;
                        let name = format!("vm{uuid}");
                        records.change(|all| all.set(&name, Some(record(uuid)))).unwrap();
                    }
                });
            }
        });
        assert_eq!(LeafRecords::in_directory(dir.path()).read().unwrap().all().count(), 20);
    }

    #[test]
    fn of_detached_vms_the_oldest_are_forgotten_and_no_others() {
        let mut all = Remembered::default();
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        for second in 0..DETACHED_MAX as i64 + 2 {
            let detached = LeafRecord { detached: at(second), ..record(2) };
            all.set(&format!("old{second}"), Some(detached));
            all.set(&format!("here{second}"), Some(record(2)));
        }
        all.forget_oldest();
        assert!(all.of("old0").is_none() && all.of("old1").is_none());
        assert!(all.of("old2").is_some() && all.of("here0").is_some());
        assert_eq!(all.all().count(), 2 * DETACHED_MAX + 2);
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let records = LeafRecords::in_directory(dir.path());
        for (text, part) in [
            ("version = 2\nnew = 1", "has version 2"),
            ("", "damaged (line 1: missing field"),
            ("version = 1\n[[vm]]\nname = \"w\"\nleaf = \"/l\"\nuid = 1", "line 5"),
            ("version = 1\n[[vm]]\nname = \"w\"\nleaf = \"/l\"\nuuid = \"x\"", "line 5"),
            ("version = 1\n[[vm]]\nname = \"w\"\nleaf = \"/l\"", "VM w has no uuid"),
        ] {
            std::fs::write(records.path(), text).unwrap();
            let said = records.read().unwrap_err().to_string();
            assert!(said.contains("leaves.toml") && said.contains(part), "{said}");
            records.change(|all| all.detach("w")).unwrap_err();
        }
    }
}

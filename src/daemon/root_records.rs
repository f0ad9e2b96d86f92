//! STATE/roots.toml: what each root was when it was first served, so that a change of its
//! file is noticed although it touched none of the samples of the fingerprint.
//!
//! Records are by the roots' names, and stay when a root is removed: it may come back,
//! written meanwhile. Another image under the name takes the record's place.
//! docs/control.md describes the file for people.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::records_file::{Records, RecordsFile, Wrong};
use crate::root::Root;
use crate::root::digest::RootDigest;
use crate::root::state::{FileState, RootState};

/// Records at most: of more, the oldest go.
const RECORDS_MAX: usize = 4096;

const HEAD: &str = "\
# What the file of each root was when leafblk first served it, or when `leafblk root verify`
# last found it right. leafblk warns of a root whose file has changed since. It writes this
# file; without a root's entry, the next start takes the root as it is.
";

/// What a root was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct RootRecord {
    /// Where: for people.
    pub(super) path: PathBuf,
    pub(super) len_bytes: u64,
    pub(super) fingerprint: RootDigest,
    pub(super) state: RootState,
    /// When it was so.
    pub(super) at: Timestamp,
    pub(super) verified: Option<Verified>,
}

/// That all of a root was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Verified {
    pub(super) digest: RootDigest,
    /// When that was last found.
    pub(super) at: Timestamp,
}

impl RootRecord {
    /// What an open root was when it was opened, now.
    pub(super) fn of(root: &Root) -> Self {
        Self {
            path: root.path().to_owned(),
            len_bytes: root.len_bytes(),
            fingerprint: RootDigest(root.identity().fingerprint),
            state: *root.state_when_opened(),
            at: Timestamp::now(),
            verified: None,
        }
    }

    /// Whether both are of the same image, as far as samples can tell.
    pub(super) fn is_of_same_image(&self, other: &Self) -> bool {
        (self.len_bytes, self.fingerprint) == (other.len_bytes, other.fingerprint)
    }
}

/// All records, by the names of roots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct KnownRoots(BTreeMap<String, RootRecord>);

/// The file.
pub(super) type RootRecords = RecordsFile<KnownRoots>;

impl KnownRoots {
    pub(super) fn of(&self, root: &str) -> Option<&RootRecord> {
        self.0.get(root)
    }

    /// Records a root, unless that image is recorded.
    pub(super) fn add(&mut self, root: &str, record: &RootRecord) {
        if !self.of(root).is_some_and(|known| known.is_of_same_image(record)) {
            self.set(root, record.clone());
        }
    }

    /// Records a root, whatever was recorded.
    pub(super) fn set(&mut self, root: &str, record: RootRecord) {
        self.0.insert(root.to_owned(), record);
    }
}

#[derive(Deserialize, Serialize)]
struct Form {
    #[serde(rename = "version")]
    version: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    root: Vec<RecordForm>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RecordForm {
    name: String,
    path: String,
    size: u64,
    fingerprint: String,
    recorded: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    protected: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ctime: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verified: Option<Timestamp>,
}

impl RecordForm {
    fn of(name: &str, record: &RootRecord) -> Self {
        let RootState { file, protected } = record.state;
        Self {
            name: name.into(),
            path: record.path.to_string_lossy().into(),
            size: record.len_bytes,
            fingerprint: record.fingerprint.to_string(),
            recorded: record.at,
            protected,
            inode: file.map(|file| file.inode),
            mtime: file.map(|file| file.mtime),
            ctime: file.map(|file| file.ctime),
            digest: record.verified.map(|verified| verified.digest.to_string()),
            verified: record.verified.map(|verified| verified.at),
        }
    }

    /// What it says; else which of its keys make no sense.
    fn record(&self) -> Result<RootRecord, &'static str> {
        let digest = |text: &str, wrong| RootDigest::parse(text).ok_or(wrong);
        let file = match (self.inode, self.mtime, self.ctime) {
            (Some(inode), Some(mtime), Some(ctime)) => {
                Some(FileState { size: self.size, inode, mtime, ctime })
            }
            (None, None, None) => None,
            _ => return Err("some of inode, mtime and ctime, and not all of them"),
        };
        let verified = match (&self.digest, self.verified) {
            (Some(text), Some(at)) => {
                Some(Verified { digest: digest(text, "a digest that is none")?, at })
            }
            (None, None) => None,
            _ => return Err("one of digest and verified, and not the other"),
        };
        Ok(RootRecord {
            path: self.path.clone().into(),
            len_bytes: self.size,
            fingerprint: digest(&self.fingerprint, "a fingerprint that is none")?,
            state: RootState { file, protected: self.protected },
            at: self.recorded,
            verified,
        })
    }
}

impl Records for KnownRoots {
    const NAME: &'static str = "roots.toml";
    const VERSION: u64 = 1;
    const WHAT: &'static str = "what the roots were";
    const WITHOUT: &'static str = "see to it yourself that no root was written to";

    fn parse(text: &str) -> Result<Self, Wrong> {
        let form: Form = toml::from_str(text)?;
        let mut all = BTreeMap::new();
        for entry in form.root {
            let wrong = |has| Wrong::Sense(format!("the entry of root {} has {has}", entry.name));
            let record = entry.record().map_err(wrong)?;
            all.insert(entry.name, record);
        }
        Ok(Self(all))
    }

    fn to_text(&self) -> Result<String, toml::ser::Error> {
        let root = self.0.iter().map(|(name, record)| RecordForm::of(name, record)).collect();
        Ok(format!("{HEAD}\n{}", toml::to_string(&Form { version: Self::VERSION, root })?))
    }

    fn bound(&mut self) {
        while self.0.len() > RECORDS_MAX {
            let oldest = self.0.iter().min_by_key(|(_, record)| record.at);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
            self.0.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> RootRecord {
        let at = Timestamp::new(1_000 + i64::from(number), 7).unwrap();
        let file = FileState { size: 512, inode: 3, mtime: at, ctime: at };
        RootRecord {
            path: "/images/d.raw".into(),
            len_bytes: 512,
            fingerprint: RootDigest([number; 32]),
            state: RootState { file: Some(file), protected: number == 1 },
            at,
            verified: (number == 2).then_some(Verified { digest: RootDigest([9; 32]), at }),
        }
    }

    #[test]
    fn what_is_written_is_read_to_the_nanosecond() {
        let dir = tempfile::tempdir().unwrap();
        let device = RootRecord { state: RootState { file: None, protected: false }, ..record(3) };
        let records = RootRecords::in_directory(dir.path());
        for (name, record) in [("a", record(1)), ("b", record(2)), ("c", device)] {
            records.change(|all| all.set(name, record.clone())).unwrap();
            let read = RootRecords::in_directory(dir.path()).read().unwrap();
            assert_eq!(read.of(name), Some(&record));
        }
    }

    #[test]
    fn a_record_stays_until_the_name_has_another_image() {
        let mut all = KnownRoots::default();
        let later = RootRecord { at: Timestamp::MAX, verified: None, ..record(2) };
        all.add("a", &record(2));
        all.add("a", &later);
        assert_eq!(all.of("a"), Some(&record(2)));
        all.add("a", &record(3));
        assert_eq!(all.of("a"), Some(&record(3)));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_by_the_root_and_the_key() {
        let good = KnownRoots([("d".to_owned(), record(2))].into()).to_text().unwrap();
        KnownRoots::parse(&good).unwrap();
        let line = |key: &str| good.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        for (key, part) in [
            ("inode", "root d has some of inode"),
            ("verified", "root d has one of digest and verified"),
        ] {
            let Wrong::Sense(said) = KnownRoots::parse(&good.replace(&line(key), "")).unwrap_err()
            else {
                panic!("{key}");
            };
            assert!(said.contains(part), "{said}");
        }
        let fingerprint = good.replace(&line("fingerprint"), "fingerprint = \"x\"");
        assert!(matches!(KnownRoots::parse(&fingerprint), Err(Wrong::Sense(_))));
        let more = good.replace(&line("inode"), "inodes = 1");
        assert!(matches!(KnownRoots::parse(&more), Err(Wrong::Form(_))));
    }
}

//! A file of records in the state directory, of whatever kind.
//!
//! It is replaced as a whole, durably. The state directory is locked (flock(2)) while
//! the file is read and written, since leafblks without a control API may share one.
//! Whoever reads looks first whether the file was replaced, also by hand.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::replace::{Readers, replace};
use crate::config::file::line_and_message;
use crate::io::open;

/// Bytes of a file that are read: all records with long paths are far smaller.
const LEN_MAX: u64 = 64 << 20;
/// Other leafblks write the file in far less.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_WAIT_STEP: Duration = Duration::from_millis(1);

/// What such a file holds.
pub(super) trait Records: Clone + Default + PartialEq {
    /// The file's name in the state directory.
    const NAME: &'static str;
    /// The only version of its format so far: its key `version`.
    const VERSION: u64;
    /// What it remembers.
    const WHAT: &'static str;
    /// What to do without it.
    const WITHOUT: &'static str;

    /// What the text of the version says.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &str) -> Result<Self, Wrong>;

    /// The text for it.
    ///
    /// # Errors
    /// What TOML has no form for.
    fn to_text(&self) -> Result<String, toml::ser::Error>;

    /// Drops what there is too much of, before it is written.
    fn bound(&mut self);
}

/// What is wrong with a text.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It has not the form that it should have.
    Form(Box<toml::de::Error>),
    /// It says what makes no sense.
    Sense(String),
}

impl From<toml::de::Error> for Wrong {
    fn from(error: toml::de::Error) -> Self {
        Self::Form(error.into())
    }
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordsError {
    #[error(
        "{}, which remembers {what}, can't be {operation} ({source}); check --state-dir",
        path.display()
    )]
    Io { path: PathBuf, what: &'static str, operation: &'static str, source: io::Error },
    #[error(
        "{}, which remembers {what}, is damaged ({reason}); mend it, or move it away and {without}",
        path.display()
    )]
    Damaged { path: PathBuf, what: &'static str, reason: String, without: &'static str },
    #[error(
        "{} has version {version} and this leafblk knows only version {known}; run a newer leafblk",
        path.display()
    )]
    Version { path: PathBuf, version: u64, known: u64 },
}

/// Device, inode, time of change and length of a file that was read.
type Seen = (u64, u64, (i64, i64), u64);

/// The file.
#[derive(Debug)]
pub(super) struct RecordsFile<T> {
    directory: PathBuf,
    /// What was read last. Held while the file is read or written.
    last: Mutex<Option<(Seen, Arc<T>)>>,
}

impl<T: Records> RecordsFile<T> {
    /// The file in `state_dir`, neither of which need exist.
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        Self { directory: state_dir.to_owned(), last: Mutex::default() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(T::NAME)
    }

    /// What the file says; nothing where there is none.
    ///
    /// # Errors
    /// [`RecordsError`], if it is there and can't be understood.
    pub(super) fn read(&self) -> Result<Arc<T>, RecordsError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut last)
    }

    fn look(&self, last: &mut Option<(Seen, Arc<T>)>) -> Result<Arc<T>, RecordsError> {
        let path = self.path();
        let seen = match std::fs::metadata(&path) {
            Ok(found) => {
                let changed = (found.mtime(), found.mtime_nsec());
                (found.dev(), found.ino(), changed, found.len())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *last = None;
                return Ok(Arc::default());
            }
            Err(source) => return Err(self.error("read", source)),
        };
        match last {
            Some((known, records)) if *known == seen => Ok(Arc::clone(records)),
            _ => {
                let text = open::text(&path, LEN_MAX).map_err(|e| self.error("read", e))?;
                let records = Arc::new(parse(&path, &text)?);
                *last = Some((seen, Arc::clone(&records)));
                Ok(records)
            }
        }
    }

    /// Changes what the file says, durably; where nothing changes, nothing is written.
    ///
    /// # Errors
    /// [`RecordsError`]; the old content stays then, or the new one may go with the
    /// power.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, RecordsError> {
        let path = self.path();
        let error = |source| self.error("written", source);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = lock(&self.directory).map_err(error)?;
        let old = self.look(&mut last)?;
        let mut new = (*old).clone();
        let result = change(&mut new);
        if new == *old {
            return Ok(result);
        }
        new.bound();
        let text = new.to_text().map_err(|e| error(io::Error::other(e)))?;
        let beside = path.with_extension("toml.new");
        replace(&path, &beside, text.as_bytes(), Readers::Owner, true).map_err(error)?;
        Ok(result)
    }

    fn error(&self, operation: &'static str, source: io::Error) -> RecordsError {
        RecordsError::Io { path: self.path(), what: T::WHAT, operation, source }
    }
}

/// Locks the directory as long as the value lives.
fn lock(directory: &Path) -> io::Result<File> {
    let directory = open::directory(directory)?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    while let Err(held) = directory.try_lock() {
        match held {
            std::fs::TryLockError::WouldBlock if Instant::now() < deadline => {
                std::thread::sleep(LOCK_WAIT_STEP);
            }
            held => return Err(held.into()),
        }
    }
    Ok(directory)
}

#[derive(Deserialize)]
struct VersionForm {
    version: u64,
}

fn parse<T: Records>(path: &Path, text: &str) -> Result<T, RecordsError> {
    let damaged = |wrong| {
        let reason = match wrong {
            Wrong::Form(error) => {
                let (line, message) = line_and_message(text, &error);
                format!("line {line}: {message}")
            }
            Wrong::Sense(reason) => reason,
        };
        let (what, without) = (T::WHAT, T::WITHOUT);
        RecordsError::Damaged { path: path.into(), what, reason, without }
    };
    let form = toml::from_str::<VersionForm>(text).map_err(|error| damaged(error.into()))?;
    if form.version != T::VERSION {
        let (version, known) = (form.version, T::VERSION);
        return Err(RecordsError::Version { path: path.into(), version, known });
    }
    T::parse(text).map_err(damaged)
}

//! STATE/attached.toml: the roots and VMs that came through the control API, so
//! that they are there again after a restart of the daemon or of the host.
//!
//! Written whole beside itself, synced and renamed, so that a crash leaves the
//! old content or the new. One daemon at a time may write it: whoever holds
//! STATE/attached.toml.lock. docs/control.md describes it for people.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sockets::{PathLock, SocketError};
use crate::config::forms::{RootForm, VmForm};
use crate::config::{RootEntry, UsageError, VmEntry};

/// The file's name in the state directory.
const NAME: &str = "attached.toml";

/// The only version of the format so far.
const VERSION: u64 = 1;

/// Bytes of a file that are read: a full table with long paths is far smaller.
const LEN_MAX: u64 = 16 << 20;

const HEAD: &str = "\
# What was attached through leafblk's control API. leafblk writes this file
# whenever that changes; change it with `leafblk vm` and `leafblk root`, or by
# hand while leafblk is stopped.
";

/// What the file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Attached {
    pub(super) roots: Vec<RootEntry>,
    pub(super) vms: Vec<VmEntry>,
}

#[derive(Deserialize)]
struct VersionForm {
    version: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    root: Vec<RootForm>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vm: Vec<VmForm>,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("the state file {} can't be {operation} ({source}); check --state-dir", path.display())]
    Io { path: PathBuf, operation: &'static str, source: io::Error },
    #[error(
        "the state file {} is damaged ({reason}); mend it, or move it away and attach its VMs again",
        path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the state file {} has version {version} and this leafblk knows only version {VERSION}; \
         run a newer leafblk",
        path.display()
    )]
    Version { path: PathBuf, version: u64 },
    #[error(
        "the state directory {} is in use by another leafblk; stop that one, choose another \
         --state-dir, or switch the control API off with --control-socket off",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(transparent)]
    Lock(SocketError),
}

/// Reads the file in `state_dir`; nothing where there is none.
///
/// # Errors
/// [`StateError`], if it is there and can't be understood.
pub(super) fn read(state_dir: &Path) -> Result<Attached, StateError> {
    let path = state_dir.join(NAME);
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Attached::default()),
        Err(source) => return Err(StateError::Io { path, operation: "read", source }),
    };
    parse(&path, &text)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, LEN_MAX), &mut text)?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Attached, StateError> {
    let damaged = |reason: String| StateError::Damaged { path: path.into(), reason };
    let toml_error = |error: toml::de::Error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| 1 + before.bytes().filter(|byte| *byte == b'\n').count());
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        damaged(format!("line {line}: {}", message.join(", ")))
    };
    let version = toml::from_str::<VersionForm>(text).map_err(toml_error)?.version;
    if version != VERSION {
        return Err(StateError::Version { path: path.into(), version });
    }
    let form: Form = toml::from_str(text).map_err(toml_error)?;
    let rule = |error: UsageError| damaged(error.to_string());
    Ok(Attached {
        roots: form
            .root
            .into_iter()
            .map(RootForm::into_entry)
            .collect::<Result<_, _>>()
            .map_err(rule)?,
        vms: form.vm.into_iter().map(VmForm::into_entry).collect::<Result<_, _>>().map_err(rule)?,
    })
}

fn to_text(attached: &Attached) -> Result<String, toml::ser::Error> {
    let form = Form {
        version: VERSION,
        root: attached.roots.iter().map(RootForm::from).collect(),
        vm: attached.vms.iter().map(VmForm::from).collect(),
    };
    Ok(format!("{HEAD}\n{}", toml::to_string(&form)?))
}

/// The right to write the file.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    _lock: PathLock,
}

impl StateFile {
    /// Takes the file in `state_dir`, which exists.
    ///
    /// # Errors
    /// [`StateError::InUse`] if another leafblk has it.
    pub(super) fn take(state_dir: &Path) -> Result<Self, StateError> {
        let path = state_dir.join(NAME);
        match PathLock::take(&path) {
            Ok(lock) => Ok(Self { path, _lock: lock }),
            Err(SocketError::InUse(_)) => Err(StateError::InUse(state_dir.into())),
            Err(error) => Err(StateError::Lock(error)),
        }
    }

    /// Replaces the content; durable when this returns.
    ///
    /// # Errors
    /// [`StateError::Io`]; the old content stays then.
    pub(super) fn write(&self, attached: &Attached) -> Result<(), StateError> {
        let error =
            |source| StateError::Io { path: self.path.clone(), operation: "written", source };
        let text = to_text(attached).map_err(|e| error(io::Error::other(e)))?;
        let beside = self.path.with_extension("toml.new");
        let written = write_synced(&beside, text.as_bytes())
            .and_then(|()| fs::rename(&beside, &self.path))
            .and_then(|()| File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written.map_err(error)
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached() -> Attached {
        Attached {
            roots: vec![RootEntry { name: "d".into(), path: "/images/d.raw".into() }],
            vms: vec![
                VmEntry::parse("web1,root=d,size=20GiB,queues=2,readonly").unwrap(),
                VmEntry::parse("web2,root=d,leaf=/l,socket=/s,ephemeral").unwrap(),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Attached::default());
        let file = StateFile::take(dir.path()).unwrap();
        file.write(&attached()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), attached());
        file.write(&Attached::default()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Attached::default());
    }

    #[test]
    fn one_daemon_at_a_time_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateFile::take(dir.path()).unwrap();
        let text = StateFile::take(dir.path()).unwrap_err().to_string();
        assert!(text.contains("is in use by another leafblk"), "{text}");
        drop(first);
        StateFile::take(dir.path()).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_refused_with_its_line() {
        let path = Path::new("/state/attached.toml");
        let sentence = |text: &str| parse(path, text).unwrap_err().to_string();
        assert!(sentence("version = 2\nnew = 1").contains("has version 2"));
        assert!(sentence("").contains("damaged (line 1: missing field"), "{}", sentence(""));
        let text = sentence("version = 1\n[[vm]]\nname = \"w\"\nsise = 1");
        assert!(text.contains("line 4"), "{text}");
        assert!(sentence("version = 1\n[[vm]]\nname = \"../w\"").contains("has a slash"));
    }

    #[test]
    fn a_write_that_fails_keeps_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::take(dir.path()).unwrap();
        file.write(&attached()).unwrap();
        // A directory in the way of the new content.
        fs::create_dir(dir.path().join("attached.toml.new")).unwrap();
        assert!(file.write(&Attached::default()).is_err());
        assert_eq!(read(dir.path()).unwrap(), attached());
    }
}

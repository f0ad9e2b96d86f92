//! STATE/attached.toml: the roots and VMs that came through the control API, so
//! that they are there again after a restart of the daemon or of the host.
//!
//! Written whole beside itself, synced and renamed, so that a crash leaves the
//! old content or the new. One daemon at a time may write it: whoever holds
//! STATE/attached.toml.lock. docs/control.md describes it for people.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::replace::{Readers, replace};
use super::sockets::{PathLock, SocketError};
use crate::config::file::{line_and_message, line_of};
use crate::config::forms::{RootForm, VmForm};
use crate::config::{Directories, RootConfig, RootEntry, UsageError, VmConfig, VmEntry};
use crate::io::open;

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

#[derive(Serialize)]
struct Form {
    version: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    root: Vec<RootForm>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vm: Vec<VmForm>,
}

/// The same, with the places of the entries.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadForm {
    #[serde(rename = "version")]
    _version: u64,
    #[serde(default)]
    root: Vec<toml::Spanned<RootForm>>,
    #[serde(default)]
    vm: Vec<toml::Spanned<VmForm>>,
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
        "the state file {}, line {line}: {error}; mend that while leafblk is stopped, or move the \
         file away and attach its VMs again",
        path.display()
    )]
    Rule { path: PathBuf, line: usize, error: UsageError },
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

/// Reads the file in the state directory; nothing where there is none. Each entry
/// obeys the rules by itself.
///
/// # Errors
/// [`StateError`], if it is there and can't be understood, or an entry breaks a
/// rule.
pub(super) fn read(directories: &Directories) -> Result<Attached, StateError> {
    let path = directories.state.join(NAME);
    let text = match open::text(&path, LEN_MAX) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Attached::default()),
        Err(source) => return Err(StateError::Io { path, operation: "read", source }),
    };
    parse(&path, &text, directories)
}

fn parse(path: &Path, text: &str, directories: &Directories) -> Result<Attached, StateError> {
    let toml_error = |error: toml::de::Error| {
        let (line, message) = line_and_message(text, &error);
        StateError::Damaged { path: path.into(), reason: format!("line {line}: {message}") }
    };
    let rule = |offset: usize| {
        let line = line_of(text, offset);
        move |error| StateError::Rule { path: path.into(), line, error }
    };
    let version = toml::from_str::<VersionForm>(text).map_err(toml_error)?.version;
    if version != VERSION {
        return Err(StateError::Version { path: path.into(), version });
    }
    let form: ReadForm = toml::from_str(text).map_err(toml_error)?;
    let root = |root: toml::Spanned<RootForm>| {
        let at = root.span().start;
        let entry = root.into_inner().into_entry();
        let checked = entry.and_then(|entry| RootConfig::resolve(&entry).map(|_| entry));
        checked.map_err(rule(at))
    };
    let vm = |vm: toml::Spanned<VmForm>| {
        let at = vm.span().start;
        let entry = vm.into_inner().into_entry();
        let checked = entry.and_then(|entry| {
            // Whether its root is there is another question.
            VmConfig::resolve(&entry, entry.root.as_deref().into_iter(), directories)?;
            Ok(entry)
        });
        checked.map_err(rule(at))
    };
    Ok(Attached {
        roots: form.root.into_iter().map(root).collect::<Result<_, _>>()?,
        vms: form.vm.into_iter().map(vm).collect::<Result<_, _>>()?,
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
    /// [`StateError::Io`]. The old content stays then; only where syncing the
    /// directory failed, the new one is there and may go with the power.
    pub(super) fn write(&self, attached: &Attached) -> Result<(), StateError> {
        let error =
            |source| StateError::Io { path: self.path.clone(), operation: "written", source };
        let text = to_text(attached).map_err(|e| error(io::Error::other(e)))?;
        let beside = self.path.with_extension("toml.new");
        let written = replace(&self.path, &beside, text.as_bytes(), Readers::Owner, true);
        written.map(drop).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn directories(dir: &Path) -> Directories {
        Directories { state: dir.into(), runtime: "/run/leafblk".into() }
    }

    fn read(dir: &Path) -> Result<Attached, StateError> {
        super::read(&directories(dir))
    }

    fn attached() -> Attached {
        Attached {
            roots: vec![
                RootEntry::parse("d=/images/d.raw").unwrap(),
                RootEntry::parse("e=/images/e.raw,format=raw").unwrap(),
            ],
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
        let places = directories(Path::new("/state"));
        let sentence = |text: &str| parse(path, text, &places).unwrap_err().to_string();
        assert!(sentence("version = 2\nnew = 1").contains("has version 2"));
        assert!(sentence("").contains("damaged (line 1: missing field"), "{}", sentence(""));
        let text = sentence("version = 1\n[[vm]]\nname = \"w\"\nsise = 1");
        assert!(text.contains("line 4"), "{text}");
        for (entry, part) in [
            ("[[vm]]\nname = \"../w\"", "has a slash"),
            ("[[vm]]\nname = \"w\"\nroot = \"d\"\nqueues = 99", "queues is 99"),
            ("[[root]]\nname = \"d\"\npath = \"d.raw\"", "is not absolute"),
        ] {
            let text = sentence(&format!("version = 1\n\n{entry}\n"));
            assert!(text.contains("attached.toml, line 3: ") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn an_entry_that_another_runtime_directory_makes_wrong_is_not_called_damaged() {
        let path = Path::new("/state/attached.toml");
        let text = "version = 1\n[[vm]]\nname = \"w\"\nroot = \"d\"\n";
        let places =
            Directories { state: "/state".into(), runtime: format!("/{}", "r".repeat(110)).into() };
        let text = parse(path, text, &places).unwrap_err().to_string();
        assert!(text.contains("line 2: ") && text.contains("at most 107"), "{text}");
        assert!(!text.contains("damaged") && !text.contains("changed"), "{text}");
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

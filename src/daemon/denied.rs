//! Why the system refused a path, and what to change: who was refused, and which line of a
//! service's unit keeps leafblk from a place that others reach (systemd.exec(5)).
//!
//! What a service may see and write is told by what is mounted for it; a unit's own text is
//! not read.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::mounts::{Mount, Mounts};
use crate::error::Error;
use crate::io::open;

/// What a path is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Need {
    /// A root.
    Read,
    /// A leaf, a socket, or a directory for them.
    Write,
}

/// An error with what to change.
#[derive(Debug)]
struct Explained {
    error: Error,
    hint: String,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.error, self.hint)
    }
}

impl StdError for Explained {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

/// The failure `error`, met at `path`, with what to change where the system refused the
/// path.
pub(super) fn explain(
    error: impl Into<Box<dyn StdError + Send + Sync>>,
    path: &Path,
    need: Need,
) -> Error {
    let error = Error::failure(error);
    let found = kind(&error).and_then(|(kind, number)| {
        let surroundings = Surroundings::here();
        hint(&surroundings, path, need, kind, number)
    });
    match found {
        Some(hint) => Error::failure(Explained { error, hint }),
        None => error,
    }
}

/// Why nothing could be written at `path`, which need not exist; `None` if it can.
/// Nothing is opened.
pub(super) fn not_writable(what: &str, path: &Path) -> Option<Error> {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok())?;
    let needed = match there.is_dir() {
        true => Access::WRITE_OK | Access::EXEC_OK,
        false => Access::WRITE_OK,
    };
    let source = io::Error::from(accessat(CWD, there, needed, AtFlags::EACCESS).err()?);
    let unwritable = Unwritable { what: what.to_owned(), path: path.to_owned(), source };
    Some(explain(unwritable, path, Need::Write))
}

/// A place that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {} can't be written ({source})", path.display())]
struct Unwritable {
    what: String,
    path: PathBuf,
    source: io::Error,
}

/// What the system answered, and its number (errno(3)).
fn kind(error: &Error) -> Option<(ErrorKind, Option<i32>)> {
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some((error.kind(), error.raw_os_error()));
        }
        next = error.source();
    }
    None
}

/// Who asked, and what is mounted for it.
#[derive(Debug)]
struct Surroundings {
    user: String,
    unit: Option<Unit>,
    mounts: Mounts,
}

impl Surroundings {
    fn here() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let user = user.map_or_else(|| uid.to_string(), |user| user.name);
        let cgroups = open::kernel_text("/proc/self/cgroup").unwrap_or_default();
        Self { user, unit: Unit::in_cgroups(&cgroups), mounts: Mounts::own().unwrap_or_default() }
    }
}

/// The service that a process belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Unit {
    name: String,
    /// Of a user's own service manager.
    of_user: bool,
}

impl Unit {
    /// By what /proc/PID/cgroup says (cgroups(7)).
    fn in_cgroups(text: &str) -> Option<Self> {
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        paths.filter_map(Self::of_path).next()
    }

    fn of_path(path: &str) -> Option<Self> {
        let name = path.rsplit('/').find(|part| part.ends_with(".service"))?;
        // The user's service manager itself is a service as well.
        let of_user = path.contains("/user@");
        (!name.starts_with("user@")).then(|| Self { name: name.into(), of_user })
    }

    /// What to type for `lines` to be in the unit.
    fn with_lines(&self, lines: &[String]) -> String {
        let (systemctl, name) =
            (if self.of_user { "systemctl --user" } else { "systemctl" }, &self.name);
        let lines: Vec<_> = lines.iter().map(|line| format!("\"{line}\"")).collect();
        format!(
            "run \"{systemctl} edit {name}\", add the lines \"[Service]\" and {}, and run \
             \"{systemctl} restart {name}\"",
            lines.join(" and ")
        )
    }
}

/// What to change, so that the system doesn't refuse `path`.
fn hint(
    surroundings: &Surroundings,
    path: &Path,
    need: Need,
    kind: ErrorKind,
    number: Option<i32>,
) -> Option<String> {
    let there = path.ancestors().find_map(|path| path.canonicalize().ok());
    let mount = surroundings.mounts.over(there.as_deref().unwrap_or(path));
    // What is hidden can't be resolved.
    let hidden = surroundings.mounts.over(path).filter(|mount| mount.is_inaccessible());
    match kind {
        ErrorKind::ReadOnlyFilesystem => mount.map(|mount| read_only(surroundings, path, mount)),
        ErrorKind::PermissionDenied => Some(match hidden {
            Some(mount) => inaccessible(surroundings, path, need, mount),
            None => not_permitted(surroundings, path, need, number),
        }),
        ErrorKind::NotFound => own_directory(mount?),
        _ => None,
    }
}

/// A directory that a person can name in `ReadWritePaths=`.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|_| !path.is_dir()).unwrap_or(path)
}

fn read_only(surroundings: &Surroundings, path: &Path, mount: &Mount) -> String {
    let point = mount.point().display();
    match &surroundings.unit {
        Some(unit) if mount.is_read_only_here() => {
            let line = format!("ReadWritePaths={}", directory(path).display());
            format!(
                "the service may write only where its unit lets it (ProtectSystem=): {}",
                unit.with_lines(&[line])
            )
        }
        _ => format!("{point} is mounted for reading only; mount it for writing"),
    }
}

fn inaccessible(surroundings: &Surroundings, path: &Path, need: Need, mount: &Mount) -> String {
    let (point, directory) = (mount.point(), directory(path).display());
    let is_home = ["/home", "/root", "/run/user"].iter().any(|home| point == Path::new(home));
    let setting = if is_home { "ProtectHome=" } else { "InaccessiblePaths=" };
    let hidden = format!("the service can't see {} ({setting} in its unit)", point.display());
    let lines = match (need, is_home) {
        (Need::Read, true) => vec!["ProtectHome=read-only".to_owned()],
        (Need::Write, true) => {
            vec!["ProtectHome=read-only".to_owned(), format!("ReadWritePaths={directory}")]
        }
        (_, false) => vec![setting.to_owned()],
    };
    let typed = match &surroundings.unit {
        Some(unit) => unit.with_lines(&lines),
        None => format!("add to the unit: {}", lines.join(" and ")),
    };
    format!("{hidden}: choose another place, or {typed}")
}

fn not_permitted(
    surroundings: &Surroundings,
    path: &Path,
    need: Need,
    number: Option<i32>,
) -> String {
    let (user, shown) = (&surroundings.user, path.display());
    let is_disk = path.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
    if is_disk
        && number == Some(libc::EPERM)
        && let Some(unit) = &surroundings.unit
    {
        let rights = if need == Need::Read { "r" } else { "rw" };
        let line = format!("DeviceAllow={shown} {rights}");
        return format!(
            "the service may use only the devices that its unit names (DevicePolicy=): {}",
            unit.with_lines(&[line])
        );
    }
    let runs = format!("leafblk runs as the user {user}");
    match stop(path) {
        Some(directory) => {
            let directory = directory.display();
            format!(
                "{runs}, who may not pass {directory}; let that user: setfacl -m u:{user}:x \
                 {directory}"
            )
        }
        None if path.exists() => {
            let change = match need {
                Need::Read => format!("setfacl -m u:{user}:r"),
                Need::Write => format!("chown {user}"),
            };
            format!("{runs}, who may not; let that user: {change} {shown}")
        }
        None => {
            let directory = directory(path).display();
            format!(
                "{runs}, who may not write to {directory}; let that user: setfacl -m u:{user}:rwx \
                 {directory}"
            )
        }
    }
}

/// The first directory on the way to `path` that this process may not pass.
fn stop(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<_> = path.ancestors().skip(1).filter(|p| p.parent().is_some()).collect();
    above.reverse();
    let may_not = |directory: &&Path| {
        accessat(CWD, *directory, Access::EXEC_OK, AtFlags::EACCESS)
            .is_err_and(|error| io::Error::from(error).kind() == ErrorKind::PermissionDenied)
    };
    above.into_iter().find(may_not).map(Path::to_owned)
}

/// What is missing may be in the host's directory of that name.
fn own_directory(mount: &Mount) -> Option<String> {
    mount.is_private_tmp().then(|| {
        format!(
            "the service has a {} of its own, not the host's (PrivateTmp= in its unit): choose \
             another place",
            mount.point().display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn service(mounts: &str) -> Surroundings {
        let unit = Unit::in_cgroups("0::/system.slice/leafblk.service\n");
        Surroundings { user: "leafblk".into(), unit, mounts: Mounts::parse(mounts) }
    }

    fn said(mounts: &str, path: &str, need: Need, kind: ErrorKind) -> Option<String> {
        hint(&service(mounts), Path::new(path), need, kind, None)
    }

    const STRICT: &str = "\
        1 0 8:1 / / ro,noatime shared:1 master:2 - ext4 /dev/sda1 rw\n\
        2 1 0:24 /systemd/inaccessible/dir /home ro shared:3 - tmpfs tmpfs rw\n\
        3 1 0:24 /systemd/inaccessible/dir /srv/secret ro shared:3 - tmpfs tmpfs rw\n\
        4 1 8:1 /tmp/systemd-private-1-leafblk.service-x/tmp /tmp rw shared:4 - ext4 /dev/sda1 rw\n";

    #[test]
    fn a_place_that_the_unit_has_read_only_is_answered_with_its_drop_in() {
        let write =
            |mounts| said(mounts, "/none/w.leaf", Need::Write, ErrorKind::ReadOnlyFilesystem);
        let hint = write(STRICT).unwrap();
        for part in [
            "(ProtectSystem=)",
            "run \"systemctl edit leafblk.service\"",
            "\"[Service]\" and \"ReadWritePaths=/none\"",
            "run \"systemctl restart leafblk.service\"",
        ] {
            assert!(hint.contains(part), "{part}: {hint}");
        }
        // The disk's own state, which no unit changes.
        let hint = write("1 0 8:1 / / ro shared:1 - ext4 /dev/sda1 ro\n").unwrap();
        assert_eq!(hint, "/ is mounted for reading only; mount it for writing");
    }

    #[test]
    fn a_place_that_the_unit_hides_is_answered_with_the_setting() {
        let denied = ErrorKind::PermissionDenied;
        let root = said(STRICT, "/home/me/d.raw", Need::Read, denied).unwrap();
        assert!(root.contains("can't see /home (ProtectHome= in its unit)"), "{root}");
        assert!(root.contains("\"ProtectHome=read-only\", and run"), "{root}");
        let leaf = said(STRICT, "/home/me/w.leaf", Need::Write, denied).unwrap();
        assert!(leaf.contains("\"ReadWritePaths=/home/me\""), "{leaf}");
        let other = said(STRICT, "/srv/secret/d.raw", Need::Read, denied).unwrap();
        assert!(other.contains("(InaccessiblePaths= in its unit)"), "{other}");
    }

    #[test]
    fn what_is_missing_in_a_private_tmp_may_be_in_the_hosts() {
        let missing = |path| said(STRICT, path, Need::Read, ErrorKind::NotFound);
        let hint = missing("/tmp/d.raw").unwrap();
        assert!(hint.contains("has a /tmp of its own, not the host's (PrivateTmp="), "{hint}");
        assert_eq!(missing("/srv/d.raw"), None);
    }

    #[test]
    fn who_is_refused_by_the_modes_of_files_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.raw");
        let at = |need| hint(&service(""), &path, need, ErrorKind::PermissionDenied, None).unwrap();
        let new = at(Need::Write);
        assert!(new.contains("runs as the user leafblk, who may not write to"), "{new}");
        assert!(new.contains(&format!("u:leafblk:rwx {}", dir.path().display())), "{new}");
        fs::write(&path, "").unwrap();
        let old = at(Need::Read);
        assert!(old.contains(&format!("u:leafblk:r {}", path.display())), "{old}");
        // Root passes everything.
        if !rustix::process::geteuid().is_root() {
            fs::set_permissions(dir.path(), Permissions::from_mode(0o600)).unwrap();
            let stopped = at(Need::Read);
            fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
            assert!(stopped.contains("who may not pass"), "{stopped}");
        }
    }

    #[test]
    fn the_unit_of_a_process_is_known_by_its_cgroup() {
        let unit = |text: &str| Unit::in_cgroups(text);
        let system = unit("0::/system.slice/leafblk.service\n").unwrap();
        assert_eq!((system.name.as_str(), system.of_user), ("leafblk.service", false));
        let of_user = "0::/user.slice/user-7.slice/user@7.service/app.slice/l.service";
        assert!(
            unit(of_user).unwrap().with_lines(&["X=1".into()]).contains("systemctl --user edit")
        );
        let legacy = "9:name=systemd:/system.slice/l.service\n0::/\n";
        assert_eq!(unit(legacy).unwrap().name, "l.service");
        for text in ["0::/\n", "0::/user.slice/user-7.slice/session-1.scope\n", ""] {
            assert_eq!(unit(text), None, "{text}");
        }
    }

    #[test]
    fn other_failures_are_left_as_they_are() {
        let full = io::Error::from(ErrorKind::StorageFull);
        assert_eq!(explain(full, Path::new("/tmp/x"), Need::Write).to_string(), "no storage space");
        let words = explain("a sentence", Path::new("/tmp/x"), Need::Write);
        assert_eq!(words.to_string(), "a sentence");
    }
}

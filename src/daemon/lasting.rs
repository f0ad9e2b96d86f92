//! Whether what is kept in a place outlives this process, so that the next one finds it.
//!
//! A service manager can give a service directories that go with it, under names that
//! the host uses for others (systemd.exec(5)). Where a path leads is told by the mount
//! that it is on.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statfs, statx};

use super::mounts::{Mounts, is_private};

/// File systems by their numbers (statfs(2)).
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// systemd.exec(5): a service's RuntimeDirectory=, by colons.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
/// systemd tells nobody whether it keeps them, so leafblk's unit says it.
const PRESERVED: &str = "LEAFBLK_RUNTIME_DIRECTORY_PRESERVE";

/// Why what is kept in a place is gone when this process ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fleeting {
    /// A /tmp or /var/tmp that systemd makes for the service and removes with it.
    PrivateTmp,
    /// A file system in memory that only this process's mount namespace has.
    OwnTmpfs,
    /// A directory below /run that systemd makes for the service and removes with it.
    RuntimeDirectory,
    /// It has no name, or none any more.
    Nameless,
}

impl fmt::Display for Fleeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PrivateTmp => {
                "it is in a temporary directory of the service's own, not the host's, which systemd \
                 removes when the service stops (PrivateTmp= in its unit)"
            }
            Self::OwnTmpfs => {
                "it is on a tmpfs that only leafblk's mount namespace has, which goes with it \
                 (PrivateTmp= or TemporaryFileSystem= in a unit)"
            }
            Self::RuntimeDirectory => {
                "it is in the service's RuntimeDirectory=, which systemd removes when the service \
                 stops (docs/configuration.md, \"Places that last\", has what keeps it)"
            }
            Self::Nameless => "it has no name there that another process could find it by",
        })
    }
}

impl Fleeting {
    /// What becomes of `path`, which need not exist: `None` if it outlives this process,
    /// or nothing is known.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let (there, about) = nearest(path)?;
        match FileType::from_raw_mode(about.stx_mode.into()) {
            // The content is elsewhere, where no directory tells.
            FileType::BlockDevice => return None,
            _ if about.stx_nlink == 0 => return Some(Self::Nameless),
            _ => {}
        }
        let there = there.canonicalize().ok()?;
        if is_below_one_of(&there, &removed_directories()) {
            return Some(Self::RuntimeDirectory);
        }
        let mounts = Mounts::own().ok()?;
        let mount = mounts.by_id(about.stx_mnt_id)?;
        if mount.is_private_tmp() || is_private(&there) {
            return Some(Self::PrivateTmp);
        }
        let is_own = mount.is_tmpfs()
            && match Mounts::of_process_1() {
                Ok(host) => !host.have_file_system_of(mount),
                Err(_) => mounts.have_added(mount),
            };
        is_own.then_some(Self::OwnTmpfs)
    }
}

/// What there is of a path: itself, or the nearest directory above it.
fn nearest(path: &Path) -> Option<(&Path, Statx)> {
    let mask = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::MNT_ID;
    path.ancestors().find_map(|path| Some((path, statx(CWD, path, AtFlags::empty(), mask).ok()?)))
}

/// The directories that systemd makes for this service and removes with it.
fn removed_directories() -> Vec<PathBuf> {
    removed(std::env::var_os(RUNTIME_DIRECTORY), std::env::var_os(PRESERVED))
}

fn removed(directories: Option<OsString>, preserved: Option<OsString>) -> Vec<PathBuf> {
    if preserved.is_some_and(|preserved| preserved == "yes") {
        return Vec::new();
    }
    std::env::split_paths(&directories.unwrap_or_default())
        .filter_map(|directory| directory.canonicalize().ok())
        .collect()
}

fn is_below_one_of(there: &Path, directories: &[PathBuf]) -> bool {
    directories.iter().any(|directory| there.starts_with(directory))
}

/// Whether a path that exists is on a file system in memory, which a reboot of the host
/// empties.
///
/// # Errors
/// As statfs(2).
pub(super) fn is_in_memory(path: &Path) -> io::Result<bool> {
    let kind = u64::try_from(statfs(path)?.f_type);
    Ok(kind.is_ok_and(|kind| matches!(kind, TMPFS | RAMFS)))
}

/// What to say of `what`, which is kept at `path` (which need not exist), where a reboot
/// loses it.
pub(super) fn warning(what: &str, path: &Path) -> Option<String> {
    let (there, about) = nearest(path)?;
    let is_disk = FileType::from_raw_mode(about.stx_mode.into()) == FileType::BlockDevice;
    (!is_disk && is_in_memory(there).unwrap_or(false)).then(|| {
        format!(
            "{what} {} is on a file system in memory: it is lost when the host reboots; choose a \
             place on a disk if it is to stay",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_private_tmp_is_known_by_the_hosts_name_of_it() {
        let mount = |root: &str, point: &str| {
            let line = format!("300 22 8:1 {root} {point} rw - ext4 /dev/sda1 rw");
            Mounts::parse(&line).by_id(300).unwrap().clone()
        };
        let private = "/systemd-private-9f-leafblk.service-x1/tmp";
        for (root, point) in [
            (format!("/tmp{private}"), "/tmp"),
            (format!("/var/tmp{private}"), "/var/tmp"),
            // The host's /tmp is a file system of its own.
            (private.to_owned(), "/tmp"),
        ] {
            assert!(mount(&root, point).is_private_tmp(), "{root}");
        }
        assert!(!mount("/", "/").is_private_tmp() && !mount("/tmp", "/tmp").is_private_tmp());
        assert!(is_private(Path::new(&format!("/var/tmp{private}/leaves"))));
        for there in ["/tmp", "/var/tmp/leaves", "/srv/my-systemd-private-disk"] {
            assert!(!is_private(Path::new(there)), "{there}");
        }
    }

    #[test]
    fn the_unit_says_that_it_keeps_its_runtime_directory() {
        const UNIT: &str = include_str!("../../packaging/leafblk.service");
        let variable = format!("Environment={PRESERVED}=yes");
        for line in ["RuntimeDirectoryPreserve=yes", &variable] {
            assert!(UNIT.lines().any(|of_unit| of_unit == line), "{line}");
        }
    }

    #[test]
    fn a_runtime_directory_is_removed_unless_the_unit_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let both = format!("/nowhere/at/all:{}", dir.path().display());
        let removed = |preserved: Option<&str>| {
            let preserved = preserved.map(OsString::from);
            is_below_one_of(&real.join("leaves"), &removed(Some(both.clone().into()), preserved))
        };
        assert!(removed(None) && removed(Some("restart")) && removed(Some("no")));
        assert!(!removed(Some("yes")));
        assert!(!is_below_one_of(&real, &super::removed(None, None)));
    }

    #[test]
    fn what_has_no_name_is_lost_and_what_others_find_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Fleeting::of(&dir.path().join("not/yet.leaf")), None);
        let leaf = dir.path().join("vm.leaf");
        std::fs::write(&leaf, "").unwrap();
        assert_eq!(Fleeting::of(&leaf), None);
        let file = File::open(&leaf).unwrap();
        let by_number = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(Fleeting::of(&by_number), None);
        std::fs::remove_file(&leaf).unwrap();
        assert_eq!(Fleeting::of(&by_number), Some(Fleeting::Nameless));
        let memory = rustix::fs::memfd_create("leaf", rustix::fs::MemfdFlags::empty()).unwrap();
        let by_number = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
        assert_eq!(Fleeting::of(&by_number), Some(Fleeting::Nameless));
        let removed = dir.path().join("removed");
        std::fs::create_dir(&removed).unwrap();
        let place = crate::io::open::place(&removed).unwrap();
        std::fs::remove_dir(&removed).unwrap();
        let below = format!("/proc/self/fd/{}/vm.leaf", place.as_raw_fd());
        assert_eq!(Fleeting::of(Path::new(&below)), Some(Fleeting::Nameless));
    }

    #[test]
    fn a_file_system_in_memory_is_warned_of_and_a_disk_is_not() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let leaf = memory.path().join("not/yet.leaf");
        let said = warning("the leaf", &leaf).unwrap();
        assert!(said.starts_with(&format!("the leaf {} is on a file", leaf.display())), "{said}");
        assert!(said.contains("lost when the host reboots"), "{said}");
        // As the host has it, too, it outlives this process.
        assert_eq!(Fleeting::of(&leaf), None);
        assert_eq!(warning("the leaf", Path::new(env!("CARGO_MANIFEST_DIR"))), None);
    }
}

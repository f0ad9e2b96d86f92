//! What is mounted, as the kernel lists it (proc_pid_mountinfo(5)).

use std::io;
use std::path::PathBuf;

use crate::io::open;

/// One mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    /// As statx(2) has it.
    id: u64,
    /// Of the file system: `major:minor`.
    device: String,
    /// The directory of the file system that is seen there.
    root: PathBuf,
    point: PathBuf,
    file_system: String,
    /// What another mount namespace mounts there comes here, too.
    is_slave: bool,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?.to_owned();
        let (root, point) = (unescaped(fields.next()?).into(), unescaped(fields.next()?).into());
        let is_slave = fields.any(|field| field.starts_with("master:"));
        let file_system = after.split(' ').next()?.to_owned();
        Some(Self { id, device, root, point, file_system, is_slave })
    }

    /// Where it is.
    pub(super) fn point(&self) -> &PathBuf {
        &self.point
    }

    /// The directory of the file system that is seen there.
    pub(super) fn root(&self) -> &PathBuf {
        &self.root
    }

    /// Whether it is gone with the last of its mounts.
    pub(super) fn is_tmpfs(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs")
    }
}

/// Space, tab, newline and backslash are octal there.
fn unescaped(text: &str) -> String {
    // The backslash last: what follows one is no escape.
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.into_iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// All that is mounted in one mount namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    /// What this process sees.
    ///
    /// # Errors
    /// As open(2) and read(2).
    pub(super) fn own() -> io::Result<Self> {
        Ok(Self::parse(&open::kernel_text("/proc/self/mountinfo")?))
    }

    /// What process 1 sees, which is the host's or the container's.
    ///
    /// # Errors
    /// As open(2) and read(2): a service may be kept from looking (systemd.exec(5),
    /// `ProtectProc=`).
    pub(super) fn of_process_1() -> io::Result<Self> {
        Ok(Self::parse(&open::kernel_text("/proc/1/mountinfo")?))
    }

    pub(super) fn parse(mountinfo: &str) -> Self {
        Self(mountinfo.lines().filter_map(Mount::parse).collect())
    }

    /// The one of that number.
    pub(super) fn by_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// Whether the file system of `mount` is mounted here, too.
    pub(super) fn have_file_system_of(&self, mount: &Mount) -> bool {
        self.0.iter().any(|other| other.device == mount.device)
    }

    /// Whether these are a copy of another namespace's, and `mount`, one of these, was
    /// added to them: systemd makes such copies for services.
    pub(super) fn have_added(&self, mount: &Mount) -> bool {
        !mount.is_slave && self.0.iter().any(|other| other.is_slave)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SERVICE: &str = "\
        22 1 8:1 / / rw,noatime shared:80 master:1 - ext4 /dev/sda1 rw\n\
        220 22 0:40 /x\\040y /my\\040disks/a\\134040 rw master:9 - nfs4 server:/x rw\n\
        300 22 0:61 / /tmp rw shared:7 - tmpfs tmpfs rw\n\
        nonsense\n\
        400 22 0:62 / /short rw\n";

    #[test]
    fn a_mount_is_found_by_its_number_and_its_paths_are_readable() {
        let mounts = Mounts::parse(SERVICE);
        let disks = mounts.by_id(220).unwrap();
        assert_eq!(disks.point(), Path::new("/my disks/a\\040"));
        assert_eq!((disks.root().as_path(), disks.is_tmpfs()), (Path::new("/x y"), false));
        assert_eq!(mounts.by_id(22).unwrap().point(), Path::new("/"));
        assert!(mounts.by_id(300).unwrap().is_tmpfs());
        assert!(mounts.by_id(2).is_none() && mounts.by_id(400).is_none());
    }

    #[test]
    fn what_a_service_has_added_is_told_from_what_the_host_has() {
        let service = Mounts::parse(SERVICE);
        let tmp = service.by_id(300).unwrap();
        assert!(service.have_added(tmp) && !service.have_added(service.by_id(220).unwrap()));
        let host = Mounts::parse(
            "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
             25 22 0:24 / /dev/shm rw - tmpfs tmpfs rw\n",
        );
        assert!(!host.have_added(host.by_id(25).unwrap()));
        assert!(!host.have_file_system_of(tmp));
        assert!(host.have_file_system_of(service.by_id(22).unwrap()));
    }
}

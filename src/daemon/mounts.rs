//! What is mounted, as the kernel lists it (proc_pid_mountinfo(5)).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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
    /// Of the mount.
    is_read_only: bool,
    /// Of its file system.
    is_disk_read_only: bool,
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
        let is_ro = |options: &str| options.split(',').any(|option| option == "ro");
        let is_read_only = is_ro(fields.next()?);
        let is_slave = fields.any(|field| field.starts_with("master:"));
        let mut fields = after.split(' ');
        let file_system = fields.next()?.to_owned();
        let is_disk_read_only = fields.nth(1).is_some_and(is_ro);
        Some(Self {
            id,
            device,
            root,
            point,
            file_system,
            is_read_only,
            is_disk_read_only,
            is_slave,
        })
    }

    /// Where it is.
    pub(super) fn point(&self) -> &PathBuf {
        &self.point
    }

    /// Whether it is for reading only, and its file system elsewhere may not be.
    pub(super) fn is_read_only_here(&self) -> bool {
        self.is_read_only && !self.is_disk_read_only
    }

    /// systemd.exec(5): what systemd mounts over what a service is not to see.
    pub(super) fn is_inaccessible(&self) -> bool {
        let parts: Vec<_> = self.root.components().map(|part| part.as_os_str()).collect();
        parts.windows(2).any(|pair| pair[0] == "systemd" && pair[1] == "inaccessible")
    }

    /// systemd.exec(5): `/tmp/systemd-private-…/tmp` of the host is mounted on the
    /// service's /tmp, `/var/tmp/systemd-private-…/tmp` on its /var/tmp.
    pub(super) fn is_private_tmp(&self) -> bool {
        is_private(&self.root)
    }

    /// Whether it is gone with the last of its mounts.
    pub(super) fn is_tmpfs(&self) -> bool {
        matches!(self.file_system.as_str(), "tmpfs" | "ramfs")
    }
}

/// Whether a path is in a directory that systemd makes for a service's temporary files.
pub(super) fn is_private(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().as_bytes().starts_with(b"systemd-private-"))
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

    /// The one that `path` is on, by its name.
    pub(super) fn over(&self, path: &Path) -> Option<&Mount> {
        // Of two in one place the later one is seen.
        let over = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        over.max_by_key(|mount| mount.point.components().count())
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
        assert_eq!((disks.root.as_path(), disks.is_tmpfs()), (Path::new("/x y"), false));
        assert_eq!(mounts.by_id(22).unwrap().point(), Path::new("/"));
        assert!(mounts.by_id(300).unwrap().is_tmpfs());
        assert!(mounts.by_id(2).is_none() && mounts.by_id(400).is_none());
        let over = |path: &str| mounts.over(Path::new(path)).unwrap().id;
        assert_eq!((over("/tmp/x"), over("/tmpx"), over("/my disks/a\\040/b")), (300, 22, 220));
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

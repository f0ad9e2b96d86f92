//! The place of the runtime directory. Live maps lie in it, which reactors write to in
//! memory all the time: a tmpfs keeps them there, another file system writes them to its
//! disk again and again.

use std::path::Path;

use rustix::fs::statfs;

use super::lasting::{self, Fleeting};

/// File systems by their numbers (statfs(2)).
const NAMES: [(u64, &str); 9] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
    (0x9584_58f6, "hugetlbfs"),
];

/// What to say of the runtime directory `path`, which need not exist.
pub(super) fn warning(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|path| path.exists())?;
    if let Some(why) = Fleeting::of(path) {
        return Some(format!(
            "the runtime directory {} would be lost with this process: {why}; a crash would lose \
             what guests wrote and did not flush; choose another --runtime-dir",
            path.display()
        ));
    }
    if lasting::is_in_memory(there).ok()? {
        return None;
    }
    let kind = u64::try_from(statfs(there).ok()?.f_type).ok()?;
    let name = NAMES.iter().find(|(number, _)| *number == kind);
    let name = name.map_or_else(|| format!("a file system {kind:#x}"), |(_, name)| (*name).into());
    Some(format!(
        "the runtime directory {} is on {name}, not on a tmpfs: under load leafblk takes 30 to 50 % \
         more CPU, and the live maps are written to that disk; choose a --runtime-dir on a tmpfs, \
         such as below /run or /dev/shm",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_a_tmpfs_is_well_also_before_it_is_made() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(warning(dir.path()), None);
        assert_eq!(warning(&dir.path().join("not/yet")), None);
    }

    #[test]
    fn another_file_system_is_named() {
        // No tmpfs anywhere.
        let said = warning(Path::new("/proc/leafblk")).unwrap();
        assert!(said.contains("directory /proc/leafblk is on a file system 0x9fa0"), "{said}");
        assert!(said.contains("30 to 50 % more CPU") && said.contains("--runtime-dir"), "{said}");
    }
}

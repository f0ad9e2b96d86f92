//! The file systems that leafblk keeps something on, and how much room they have.
//!
//! Each is found when something on it is opened, which waits for it in any case. What
//! is looked at again and again asks it by a [`Question`], so that one that hangs
//! keeps nobody.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags};

use super::host::{Host, VmView};
use super::mounts::Mounts;
use super::question::{Answer, Question};
use super::vm::Vm;
use crate::io::open;

/// An answer that takes so long is not coming soon. Until then the last one counts: on a
/// busy host any may be late.
const HANGS_AFTER: Duration = Duration::from_secs(2);

/// How much room there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Bytes in all.
    pub size_bytes: u64,
    /// Bytes that are free for users other than root.
    pub free_bytes: u64,
    /// Inodes in all, and those that are free; `None` where they are not counted.
    pub inodes: Option<(u64, u64)>,
}

/// What is on a file system.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum FileSystemUse {
    /// VMs' leaves.
    Leaves,
    /// The state directory.
    State,
    /// The runtime directory.
    Runtime,
}

/// A file system as it was at one moment.
#[derive(Clone, Debug)]
pub struct FileSystemView {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What is on it, in order.
    pub uses: Vec<FileSystemUse>,
    /// How much room it has.
    pub room: RoomAnswer,
}

/// What a file system says of its room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RoomAnswer {
    /// So much.
    Known(Room),
    /// It says why not, or nothing yet.
    Unknown(String),
    /// It has not answered for so many seconds.
    Silent(u64),
}

/// A file system.
#[derive(Debug)]
pub(super) struct FileSystem {
    mount_point: PathBuf,
    /// A directory on it, open for its place only.
    place: Arc<OwnedFd>,
    room: Question<Result<Room, String>>,
}

/// Those that something is on, by their device.
#[derive(Debug, Default)]
pub(super) struct FileSystems(Mutex<BTreeMap<(u32, u32), Weak<FileSystem>>>);

impl FileSystems {
    /// The one that a directory is on. May wait for it.
    ///
    /// # Errors
    /// As open(2) and statx(2).
    pub(super) fn of(&self, directory: &Path) -> io::Result<Arc<FileSystem>> {
        let place = open::place(directory)?;
        // What the kernel knows will do: the device and the mount don't change.
        let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let about = rustix::fs::statx(&place, "", how, StatxFlags::MNT_ID)?;
        let device = (about.stx_dev_major, about.stx_dev_minor);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, file_system| file_system.strong_count() > 0);
        if let Some(file_system) = known.get(&device).and_then(Weak::upgrade) {
            return Ok(file_system);
        }
        let mounts = Mounts::own().unwrap_or_default();
        let mount_point = mounts.by_id(about.stx_mnt_id).map(|mount| mount.point().clone());
        let mount_point = mount_point.unwrap_or_else(|| directory.into());
        let (place, room) = (Arc::new(place), Question::default());
        let file_system = Arc::new(FileSystem { mount_point, place, room });
        known.insert(device, Arc::downgrade(&file_system));
        Ok(file_system)
    }

    /// The one that a leaf is on; `None` where that can't be told.
    pub(super) fn of_leaf(&self, leaf: &Path) -> Option<Arc<FileSystem>> {
        // Its directory: an open leaf that is removed would not give its space back.
        let leaf = leaf.canonicalize().ok()?;
        self.of(leaf.parent()?).ok()
    }
}

impl FileSystem {
    /// Asks for the room, and for these VMs' leaves.
    fn ask(&self, vms: Vec<Arc<Vm>>) {
        let place = Arc::clone(&self.place);
        self.room.ask(move || {
            vms.iter().for_each(|vm| vm.look_at_leaf());
            room(&place).map_err(|error| error.to_string())
        });
    }

    fn room(&self) -> RoomAnswer {
        let Answer { last, owed } = self.room.answer();
        match (owed.filter(|owed| *owed >= HANGS_AFTER), last) {
            (Some(owed), _) => RoomAnswer::Silent(owed.as_secs()),
            (None, Some(Ok(room))) => RoomAnswer::Known(room),
            (None, Some(Err(error))) => RoomAnswer::Unknown(error),
            (None, None) => RoomAnswer::Unknown("it has not answered yet".into()),
        }
    }
}

fn room(place: &OwnedFd) -> io::Result<Room> {
    let numbers = rustix::fs::fstatvfs(place)?;
    let bytes = |blocks: u64| blocks.saturating_mul(numbers.f_frsize);
    Ok(Room {
        size_bytes: bytes(numbers.f_blocks),
        free_bytes: bytes(numbers.f_bavail),
        inodes: (numbers.f_files > 0).then_some((numbers.f_files, numbers.f_favail)),
    })
}

impl Host {
    /// The file systems that something is on, these VMs' leaves among it, by their
    /// paths. Notes how much the leaves occupy and whether they are there, too. Waits for a moment at most.
    pub fn file_systems(&self, vms: &[VmView]) -> Vec<FileSystemView> {
        let vms = vms.iter().filter_map(|view| view.vm.as_ref());
        let homes = vms.filter_map(|vm| Some((vm.home()?, UseBy::Leaf(Arc::clone(vm)))));
        let own = self.inner().own_file_systems.iter();
        let own = own.map(|(used, file_system)| (file_system, UseBy::Directory(*used)));
        let mut groups = BTreeMap::<_, (&Arc<FileSystem>, Vec<UseBy>)>::new();
        for (file_system, by) in own.chain(homes) {
            let group = groups.entry(Arc::as_ptr(file_system));
            group.or_insert((file_system, Vec::new())).1.push(by);
        }
        // All are asked before the first is waited for.
        for (file_system, uses) in groups.values() {
            file_system.ask(uses.iter().filter_map(UseBy::vm).collect());
        }
        let views = groups.into_values().map(|(file_system, by)| {
            let mut uses: Vec<_> = by.iter().map(UseBy::kind).collect();
            uses.sort_unstable();
            uses.dedup();
            FileSystemView { path: file_system.mount_point.clone(), uses, room: file_system.room() }
        });
        let mut views: Vec<_> = views.collect();
        views.sort_by(|a, b| a.path.cmp(&b.path));
        views
    }
}

/// What makes a file system one of ours.
enum UseBy {
    Directory(FileSystemUse),
    Leaf(Arc<Vm>),
}

impl UseBy {
    fn kind(&self) -> FileSystemUse {
        match self {
            Self::Directory(used) => *used,
            Self::Leaf(_) => FileSystemUse::Leaves,
        }
    }

    fn vm(&self) -> Option<Arc<Vm>> {
        match self {
            Self::Directory(_) => None,
            Self::Leaf(vm) => Some(Arc::clone(vm)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_room_of_a_file_system_is_what_statvfs_says_and_each_is_known_once() {
        let (file_systems, dir) = (FileSystems::default(), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("vm.leaf"), "").unwrap();
        let here = file_systems.of(dir.path()).unwrap();
        let leafs = file_systems.of_leaf(&dir.path().join("vm.leaf")).unwrap();
        assert!(Arc::ptr_eq(&here, &leafs));
        assert!(dir.path().starts_with(&here.mount_point), "{here:?}");
        here.ask(Vec::new());
        let room = loop {
            match here.room() {
                RoomAnswer::Known(room) => break room,
                // It was not waited for any longer.
                RoomAnswer::Silent(_) | RoomAnswer::Unknown(_) => {}
            }
        };
        let numbers = rustix::fs::statvfs(dir.path()).unwrap();
        assert_eq!(room.size_bytes, numbers.f_blocks * numbers.f_frsize);
        assert!(room.free_bytes > 0 && room.free_bytes <= room.size_bytes);
    }

    /// A file system in user space that never answers.
    struct Hung {
        directory: tempfile::TempDir,
        _server: File,
    }

    impl Hung {
        fn mount() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let kept = rustix::io::dup(&server).expect("without O_CLOEXEC: mount(8) has it too");
            let options = "rootmode=40000,user_id=0,group_id=0";
            let mounted = Command::new("mount")
                .args(["-i", "-t", "fuse", "-o", &format!("fd={},{options}", kept.as_raw_fd())])
                .arg("leafblk-test")
                .arg(directory.path())
                .output()
                .expect("mount(8) is installed");
            let said = String::from_utf8_lossy(&mounted.stderr);
            assert!(mounted.status.success(), "this test needs FUSE, and to run as root: {said}");
            Self { directory, _server: server }
        }
    }

    impl Drop for Hung {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
        }
    }

    #[test]
    fn a_file_system_that_hangs_is_said_to_be_silent_and_holds_nobody() {
        let (file_systems, hung) = (FileSystems::default(), Hung::mount());
        let begun = std::time::Instant::now();
        let file_system = file_systems.of(hung.directory.path()).unwrap();
        assert_eq!(file_system.mount_point, hung.directory.path().canonicalize().unwrap());
        let mut looks = 0;
        while !matches!(file_system.room(), RoomAnswer::Silent(_)) {
            file_system.ask(Vec::new());
            assert!(begun.elapsed() < HANGS_AFTER * 10, "nobody says that it hangs");
            looks += 1;
        }
        assert!(looks > 1, "the first one was waited for to the end");
        // Its server ends, and with it the question.
        drop(hung);
        loop {
            match file_system.room() {
                RoomAnswer::Silent(_) => {}
                RoomAnswer::Unknown(error) => {
                    break assert!(error.contains("not connected"), "{error}");
                }
                RoomAnswer::Known(room) => panic!("{room:?}"),
            }
        }
    }
}

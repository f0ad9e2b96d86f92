//! Where a cache is kept that is to outlive its process, and whether what is
//! found there can be taken over.
//!
//! Two files, both of mode 0600 and in memory, named after the runtime
//! directory so that each daemon finds its own: the **slot directory** in the
//! runtime directory if that is a tmpfs, else in /dev/shm; the **arena** on a
//! hugetlbfs mount, or beside the directory. The directory is locked (flock(2))
//! for as long as anything can write to the arena.
//!
//! Taken over is only what fits: this boot, this layout, the very arena that the
//! directory was made with, files that belong to this user and that nobody else
//! may open. All else is removed and made anew.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statfs};
use sha2::{Digest, Sha256};

use super::arena::Arena;
use super::directory::{Directory, HEADER_LEN};
use super::hugepages::{HUGEPAGE_BYTES, Shortage};
use super::{CacheConfig, Hugepages};
use crate::boot;
use crate::io::lock;
use crate::io::open::{self, Access};

const MAGIC: [u8; 8] = *b"LEAFCCH\x01";
const TMPFS_MAGIC: i64 = 0x0102_1994;
const SHARED_MEMORY: &str = "/dev/shm";
/// Where it says that there is a mount for 2 MiB pages.
const MOUNTS: &str = "/proc/self/mounts";

/// Where an arena may be.
struct ArenaPlace {
    path: PathBuf,
    is_huge: bool,
}

/// All places of one runtime directory's cache.
struct Places {
    directory: PathBuf,
    /// Hugetlbfs mounts first.
    arenas: Vec<ArenaPlace>,
}

impl Places {
    fn of(runtime_dir: &Path) -> Result<Self, String> {
        let runtime_dir = runtime_dir
            .canonicalize()
            .map_err(|e| format!("{} can't be found: {e}", runtime_dir.display()))?;
        let hash = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
        let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let is_tmpfs = |path: &Path| statfs(path).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC);
        let shared = [runtime_dir, PathBuf::from(SHARED_MEMORY)].into_iter().find(|p| is_tmpfs(p));
        let shared = shared.ok_or("neither the runtime directory nor /dev/shm is a tmpfs")?;
        let mounts = open::kernel_text(MOUNTS).unwrap_or_default();
        let huge = hugetlbfs_mounts(&mounts).into_iter().map(|mount| ArenaPlace {
            path: mount.join(format!("leafblk-{name}.cache")),
            is_huge: true,
        });
        let beside =
            ArenaPlace { path: shared.join(format!("leafblk-{name}.cache")), is_huge: false };
        Ok(Self {
            directory: shared.join(format!("leafblk-{name}.slots")),
            arenas: huge.chain([beside]).collect(),
        })
    }

    fn names(&self) -> impl Iterator<Item = &PathBuf> + Clone {
        self.arenas.iter().map(|place| &place.path).chain([&self.directory])
    }
}

/// Mounts of hugetlbfs with pages of 2 MiB (proc_pid_mounts(5)): the size is an
/// option where it is not the system's default.
fn hugetlbfs_mounts(mounts: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, "hugetlbfs", options, ..] = fields[..] else {
            return None;
        };
        let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
        // Spaces and the like are escaped; such a mount is left alone.
        (matches!(size, None | Some("2M")) && !path.contains('\\')).then(|| PathBuf::from(path))
    };
    let is_2m = |path: &PathBuf| statfs(path).is_ok_and(|fs| fs.f_bsize == HUGEPAGE_BYTES as i64);
    mounts.lines().filter_map(of_line).filter(is_2m).collect()
}

/// The arena and directory of `runtime_dir`'s cache: an earlier process's where
/// they fit, new ones otherwise; and a warning, if hugepages were wanted and are
/// not to be had there.
///
/// # Errors
/// A sentence on why no cache can be kept.
pub(super) fn open(
    config: &CacheConfig,
    runtime_dir: &Path,
) -> Result<(Arena, Directory, Option<String>), String> {
    let places = Places::of(runtime_dir)?;
    let path = &places.directory;
    let file = open_locked(path)?;
    let len = usize::try_from(config.size_bytes)
        .ok()
        .and_then(|bytes| bytes.checked_next_multiple_of(HUGEPAGE_BYTES))
        .ok_or("its size is beyond this machine")?;
    let wanted: Vec<&ArenaPlace> = places
        .arenas
        .iter()
        .filter(|place| match config.hugepages {
            Hugepages::Auto => true,
            Hugepages::On => place.is_huge,
            Hugepages::Off => !place.is_huge,
        })
        .collect();
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{}: {what}: {e}", path.display());
    let count = config.slots(len);
    if let Some(arena) = wanted.iter().find_map(|place| found(config, &file, place, len)) {
        let directory = Directory::map(file, count).map_err(|e| failed("can't be mapped", &e))?;
        return Ok((arena, directory, None));
    }
    places.arenas.iter().for_each(|place| remove_ours(&place.path));
    file.set_len(0).map_err(|e| failed("can't be emptied", &e))?;
    let mut why = "there is no mount of hugetlbfs with pages of 2 MiB".to_owned();
    for place in wanted {
        match make(config, &file, place, len) {
            Ok(arena) => {
                let directory =
                    Directory::map(file, count).map_err(|e| failed("can't be mapped", &e))?;
                let short = config.hugepages == Hugepages::Auto && !place.is_huge;
                let warning = format!("{why}; keeping the cache in ordinary memory");
                return Ok((arena, directory, short.then_some(warning)));
            }
            Err(e) if place.is_huge => why = Shortage::describe(len, e).to_string(),
            Err(e) => why = format!("{} can't be made: {e}", place.path.display()),
        }
    }
    remove_ours(path);
    Err(why)
}

/// Removes what earlier processes left for `runtime_dir`; how many bytes that
/// was. What a running daemon uses stays.
pub fn discard(runtime_dir: &Path) -> u64 {
    let Ok(places) = Places::of(runtime_dir) else {
        return 0;
    };
    let names = places.names();
    let sizes = names.clone().filter_map(|path| Some(fs::symlink_metadata(path).ok()?.len()));
    let bytes = sizes.sum();
    if bytes == 0 || open_locked(&places.directory).is_err() {
        return 0;
    }
    names.for_each(|path| remove_ours(path));
    bytes
}

/// Whether there are files of a cache for `runtime_dir`, whoever's.
pub fn has_files(runtime_dir: &Path) -> bool {
    Places::of(runtime_dir)
        .is_ok_and(|places| places.names().any(|path| fs::symlink_metadata(path).is_ok()))
}

/// Removes the files of this process's own cache for `runtime_dir`; it goes on
/// without them, and outlives nothing.
pub fn remove_files(runtime_dir: &Path) {
    if let Ok(places) = Places::of(runtime_dir) {
        places.names().for_each(|path| remove_ours(path));
    }
}

/// Whether a file is a plain one that this user made for itself.
fn is_ours(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| {
        meta.is_file()
            && meta.uid() == rustix::process::geteuid().as_raw()
            && meta.mode() & 0o077 == 0
    })
}

/// The directory's file, made if it isn't there, and locked.
fn open_locked(path: &Path) -> Result<File, String> {
    let shown = path.display();
    loop {
        let file =
            open::own_file_or_new(path).map_err(|e| format!("{shown} can't be opened: {e}"))?;
        if !is_ours(&file) {
            return Err(format!("{shown} belongs to somebody else; remove it"));
        }
        match lock::take(&file, false) {
            Ok(true) => {}
            Ok(false) => return Err(format!("{shown} is in use by another leafblk")),
            Err(e) => return Err(format!("{shown} can't be locked: {e}")),
        }
        // The last holder may have removed it meanwhile.
        let named = fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        if file.metadata().ok().map(|meta| (meta.dev(), meta.ino())) == named {
            return Ok(file);
        }
    }
}

/// An arena that an earlier process left and that the directory is about.
fn found(config: &CacheConfig, directory: &File, place: &ArenaPlace, len: usize) -> Option<Arena> {
    let arena = open::own_file(&place.path, Access::Write).ok()?;
    let mut header = [0; HEADER_LEN];
    directory.read_exact_at(&mut header, 0).ok()?;
    let directory_len = directory.metadata().ok()?.len();
    let fits = is_ours(&arena)
        && arena.metadata().ok()?.len() == len as u64
        && directory_len == Directory::len_bytes(config.slots(len)) as u64
        && header == encode(config, &arena, len).ok()?;
    // A hugetlbfs file that fits has its pages reserved or filled.
    fits.then(|| Arena::of_file(arena, len, place.is_huge).ok()).flatten()
}

/// A new arena, and the directory's length and header for it.
fn make(
    config: &CacheConfig,
    directory: &File,
    place: &ArenaPlace,
    len: usize,
) -> io::Result<Arena> {
    let file = open::new_file(&place.path)?;
    let made = (|| {
        file.set_len(len as u64)?;
        let directory_len = Directory::len_bytes(config.slots(len)) as u64;
        directory.set_len(directory_len)?;
        // A full tmpfs shows here, rather than as SIGBUS at some later touch.
        fallocate(directory, FallocateFlags::empty(), 0, directory_len)?;
        if !place.is_huge {
            fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
        }
        let header = encode(config, &file, len)?;
        let arena = Arena::of_file(file, len, place.is_huge)?;
        directory.write_all_at(&header, 0)?;
        Ok(arena)
    })();
    if made.is_err() {
        remove_ours(&place.path);
    }
    made
}

/// What a directory begins with whose arena is this one.
fn encode(config: &CacheConfig, arena: &File, len: usize) -> io::Result<[u8; HEADER_LEN]> {
    let meta = arena.metadata()?;
    let mut header = [0; HEADER_LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        header[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&MAGIC);
    put(boot::id()?.to_string().as_bytes());
    put(&config.block_bytes.to_le_bytes());
    put(&(len as u64).to_le_bytes());
    put(&meta.dev().to_le_bytes());
    put(&meta.ino().to_le_bytes());
    Ok(header)
}

fn remove_ours(path: &Path) {
    if let Ok(file) = open::own_file(path, Access::Write)
        && is_ours(&file)
        && let Err(e) = fs::remove_file(path)
    {
        log::warn!("{} can't be removed: {e}", path.display());
    }
}

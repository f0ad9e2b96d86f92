//! Opening and closing a leaf.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::copies::read_header;
use super::header::Header;
use super::live_map::{LiveMap, Owner, PAGE_LEN};
use super::{Leaf, LeafError, WriteCache, durable_map, offline};
use crate::io::storage::{FileStorage, Storage};
use crate::root::RootIdentity;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How a leaf is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The tmpfs file for the live map; anonymous memory if `None`, which a
    /// crash of the daemon doesn't survive.
    pub live_map: Option<PathBuf>,
    /// No writes, and no trace left in the file.
    pub read_only: bool,
}

/// The kernel's id of this boot: read once, it doesn't change.
fn boot_id() -> [u8; 16] {
    static BOOT_ID: OnceLock<[u8; 16]> = OnceLock::new();
    *BOOT_ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // Without one, a random id: then no other daemon takes anything over.
        *uuid::Uuid::parse_str(text.trim()).unwrap_or_else(|_| uuid::Uuid::new_v4()).as_bytes()
    })
}

impl Owner {
    /// Who may use the live map of a leaf with this header, in this boot.
    pub(super) fn of(header: &Header) -> Self {
        Self { boot_id: boot_id(), uuid: header.uuid, generation: header.generation }
    }
}

impl Leaf {
    /// Opens the leaf at `path`, which must belong to `root`.
    ///
    /// Unless read-only, the header says "in use" from here on until
    /// [`Self::close`]. After a kill of the daemon the live map is taken over;
    /// otherwise the durable map counts.
    ///
    /// # Errors
    /// Each of [`LeafError`]'s that fits; nothing has changed then.
    pub fn open(
        path: &Path,
        root: &RootIdentity,
        options: &OpenOptions,
    ) -> Result<Self, LeafError> {
        let file = offline::lock(path, !options.read_only)?;
        Self::open_storage(path, Box::new(FileStorage::new(file)), root, options)
    }

    /// As [`Self::open`], on storage that is locked already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_storage(
        path: &Path,
        storage: Box<dyn Storage>,
        root: &RootIdentity,
        options: &OpenOptions,
    ) -> Result<Self, LeafError> {
        let copies = read_header(path, &*storage)?;
        let header = &copies.header;
        let io_error =
            |operation| move |source| LeafError::Io { path: path.to_owned(), operation, source };
        let need = header.data_offset + header.virtual_size;
        let have = storage.len_bytes().map_err(io_error("stat"))?;
        if have < need {
            return Err(LeafError::CutShort { path: path.to_owned(), have, need });
        }
        if !header.root.same_content(root) {
            return Err(LeafError::OtherRoot {
                path: path.to_owned(),
                recorded: header.root.to_string(),
                given: root.to_string(),
            });
        }
        if header.map_void && !options.read_only {
            // A reset was cut off. The header may be a killed daemon's, and not
            // durable yet: the map of the one before it must be whole until then.
            // The cleared map is durable before the header says otherwise.
            storage
                .sync_data()
                .and_then(|()| durable_map::clear(&*storage, header))
                .and_then(|()| storage.sync_data())
                .map_err(io_error("complete the reset"))?;
        }
        let (map, origin) = open_map(path, &*storage, header, options)?;
        let taken_over = origin != Origin::Durable;
        let write_cache = match taken_over {
            true => map.write_cache().map_err(io_error("read the live map"))?,
            false if header.clean => header.write_cache,
            false => WriteCache::Unknown,
        };
        let leaf = Self {
            path: path.to_owned(),
            live_map_path: options.live_map.clone(),
            data_offset: header.data_offset,
            map_offset: header.map_offset,
            sectors: AtomicU64::new(header.virtual_size / 512),
            present: AtomicU64::new(map.count()),
            map,
            read_only: options.read_only,
            // What was taken over has not been flushed.
            written: AtomicU64::new(u64::from(taken_over)),
            flushed: AtomicU64::new(0),
            unsynced_bytes: AtomicU64::new(0),
            fitness: Default::default(),
            write_cache: AtomicU8::new(write_cache as u8),
            flushing: Mutex::default(),
            marking: Mutex::default(),
            writing_back: Mutex::default(),
            storage,
            copies: Mutex::new(copies),
        };
        if !leaf.read_only {
            leaf.begin_writing(origin, write_cache)?;
        }
        Ok(leaf)
    }

    /// Makes the header say "in use", and both of its copies agree.
    fn begin_writing(&self, origin: Origin, write_cache: WriteCache) -> Result<(), LeafError> {
        let map_error = |source| self.io("write the live map", source);
        match origin {
            // The header says so already; writing it would sync whatever the killed
            // daemon left unwritten, while the guest waits.
            Origin::TakenOver => {}
            Origin::TakenOverUnsynced => {
                self.sync()?;
                self.map.own(&Owner::of(&self.header())).map_err(map_error)?;
            }
            Origin::Durable => {
                // The header may be a killed daemon's, and not durable yet.
                self.sync()?;
                if !self.header().clean {
                    // A sync may have failed before: what the page cache shows then
                    // is not on the disk, and would be gone later.
                    self.storage.drop_cached();
                }
                self.set_write_cache(write_cache).map_err(map_error)?;
                self.write_header(|header| {
                    header.generation += 1;
                    (header.clean, header.map_void) = (false, false);
                    header.write_cache = WriteCache::Unknown;
                })?;
            }
        }
        self.settle_copies()
    }

    /// A new live map in place of the one that there is, from the durable map.
    pub(super) fn reload_map(&mut self) -> Result<(), LeafError> {
        let header = self.header();
        let map = new_map(&self.path, &*self.storage, &header, self.live_map_path.as_deref())?;
        self.present.store(map.count(), Ordering::Relaxed);
        self.sectors.store(header.virtual_size / 512, Ordering::Release);
        self.map = map;
        self.set_write_cache(self.write_cache()).map_err(|e| self.io("write the live map", e))
    }

    /// Flushes, marks the leaf as clean and removes its live map. The header
    /// says then what the guest has made of its write cache.
    ///
    /// # Errors
    /// As [`Self::flush`]; the leaf is then not clean, and nothing flushed
    /// before is lost.
    pub fn close(&self) -> Result<(), LeafError> {
        if self.read_only {
            return Ok(());
        }
        self.flush()?;
        self.write_header(|header| {
            header.generation += 1;
            header.clean = true;
            header.write_cache = self.write_cache();
        })?;
        if let Some(path) = &self.live_map_path {
            // What stays fits no leaf any more.
            let _ = self.map.remove(path);
        }
        Ok(())
    }
}

/// Where a live map comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Origin {
    /// From the durable map.
    Durable,
    /// An earlier daemon's, with its header.
    TakenOver,
    /// The same, and the daemon was killed while it replaced the header: what
    /// that says, such as the disk's size, may not be durable.
    TakenOverUnsynced,
}

/// The live map: an earlier daemon's, or a new one from the durable map, of the
/// next generation.
fn open_map(
    path: &Path,
    storage: &dyn Storage,
    header: &Header,
    options: &OpenOptions,
) -> Result<(LiveMap, Origin), LeafError> {
    // A reader takes a crashed daemon's map over as well, or it would not
    // see what that one acknowledged; but it leaves no map of its own.
    let found_path = options.live_map.as_deref().filter(|_| !header.clean && !header.map_void);
    let live_path = options.live_map.as_deref().filter(|_| !options.read_only);
    if let Some(found_path) = found_path {
        let map_error = |source| LeafError::LiveMap { path: found_path.to_owned(), source };
        let (owner, sectors) = (Owner::of(header), header.virtual_size / 512);
        let read_only = options.read_only;
        let found = LiveMap::take_over(found_path, &owner, sectors, pages_max(header), read_only);
        if let Some(map) = found.map_err(map_error)? {
            log::info!("leaf {}: took over the live map of an earlier run", path.display());
            let replaced = map.is_being_replaced().map_err(map_error)?;
            if !options.read_only && !replaced {
                map.own(&owner).map_err(map_error)?;
            }
            let origin = if replaced { Origin::TakenOverUnsynced } else { Origin::TakenOver };
            return Ok((map, origin));
        }
        log::warn!(
            "leaf {}: it was not closed, and there is no live map of it beside {}: what was \
             flushed counts, as after a loss of power",
            path.display(),
            found_path.display()
        );
    }
    // A new generation: a live map that this one does not know about must
    // never be taken for current later.
    let next = Header { generation: header.generation + 1, ..header.clone() };
    Ok((new_map(path, storage, &next, live_path)?, Origin::Durable))
}

/// A live map of the header's generation, from the durable map.
fn new_map(
    path: &Path,
    storage: &dyn Storage,
    header: &Header,
    live_path: Option<&Path>,
) -> Result<LiveMap, LeafError> {
    let owner = Owner::of(header);
    let map = LiveMap::create(live_path, &owner, header.virtual_size / 512, pages_max(header))
        .map_err(|source| {
            let path = live_path.unwrap_or(Path::new("(memory)")).to_owned();
            LeafError::LiveMap { path, source }
        })?;
    durable_map::load(storage, header, &map).map_err(|source| LeafError::Io {
        path: path.to_owned(),
        operation: "read the presence map",
        source,
    })?;
    Ok(map)
}

/// Map pages that the leaf has room for.
fn pages_max(header: &Header) -> usize {
    let room = header.data_offset - header.map_offset;
    let most = super::map_len_bytes(super::SIZE_MAX);
    usize::try_from(room.min(most)).unwrap_or(usize::MAX) / PAGE_LEN
}

//! Opening and closing a leaf.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use uuid::Uuid;

use super::copies::read_header;
use super::header::Header;
use super::live_map::{LiveMap, Owner, PAGE_LEN, Shape};
use super::slots::{SLOT_LEN, Slots};
use super::{Leaf, LeafError, WriteCache, durable_map, offline};
use crate::boot;
use crate::io::storage::{FileStorage, Storage, zero};
use crate::root::RootIdentity;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// How a leaf is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The tmpfs file for the live map; anonymous memory if `None`, which a
    /// crash of the daemon doesn't survive.
    pub live_map: Option<PathBuf>,
    /// No writes, and no trace left in the file.
    pub read_only: bool,
}

/// This boot's id; where it can't be had a random one, the same all along: then
/// no other daemon takes anything over.
fn boot_id() -> [u8; 16] {
    static BOOT_ID: OnceLock<Uuid> = OnceLock::new();
    BOOT_ID.get_or_init(|| boot::id().unwrap_or_else(|_| Uuid::new_v4())).into_bytes()
}

impl Owner {
    /// Who may use the live map of a leaf with this header, in this boot.
    pub(super) fn of(header: &Header) -> Self {
        Self { boot_id: boot_id(), uuid: header.uuid, generation: header.generation }
    }
}

impl Shape {
    /// Of the live map of a leaf with this header.
    pub(super) fn of(header: &Header) -> Self {
        Self {
            sectors: header.virtual_size / 512,
            pages_max: pages_max(header),
            packed: header.table_offset.is_some(),
        }
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
        let slots_end = map.slots_end();
        let need = header.data_offset + slots_end * SLOT_LEN;
        if have < need {
            return Err(LeafError::CutShort { path: path.to_owned(), have, need });
        }
        let taken_over = !matches!(origin, Origin::Durable { .. });
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
            table_offset: header.table_offset.unwrap_or(header.data_offset),
            root_sectors: header.root.len_bytes / 512,
            slots: Mutex::new(Slots::from(slots_end)),
            sectors: AtomicU64::new(header.virtual_size / 512),
            present: AtomicU64::new(map.count()),
            map,
            read_only: options.read_only,
            // What was taken over has not been flushed.
            written: AtomicU64::new(u64::from(taken_over)),
            flushed: AtomicU64::new(0),
            unsynced_bytes: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
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
            Origin::Durable { half_written } => {
                // The header may be a killed daemon's, and not durable yet.
                self.sync()?;
                if !self.header().clean {
                    // A sync may have failed before: what the page cache shows then
                    // is not on the disk, and would be gone later.
                    self.storage.drop_cached();
                    self.forget_unflushed(half_written)?;
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

    /// After a loss of power: what was written to slots that no entry names is
    /// gone, for the next block that gets one to find zeros there; and bits and
    /// entries that stand alone don't count again when the rest is written.
    fn forget_unflushed(&self, half_written: bool) -> Result<(), LeafError> {
        if !self.map.is_packed() {
            return Ok(());
        }
        let from = self.slots_end_offset();
        let len = self.storage.len_bytes().map_err(|e| self.io("stat", e))?.saturating_sub(from);
        if len > 0 {
            zero(&*self.storage, from, len).map_err(|e| self.unfinished("punch", e))?;
        }
        if half_written {
            self.written.fetch_add(1, Ordering::Release);
            self.flush()?;
        }
        Ok(())
    }

    /// A new live map in place of the one that there is, from the durable map.
    pub(super) fn reload_map(&mut self) -> Result<(), LeafError> {
        let header = self.header();
        let (map, _) = new_map(&self.path, &*self.storage, &header, self.live_map_path.as_deref())?;
        self.slots = Mutex::new(Slots::from(map.slots_end()));
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
        self.drop_filled().map_err(|source| self.io("punch", source))?;
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
    /// From the durable map, parts of which may be half written.
    Durable { half_written: bool },
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
        let (owner, shape) = (Owner::of(header), Shape::of(header));
        let found = LiveMap::take_over(found_path, &owner, &shape, options.read_only);
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
    let (map, half_written) = new_map(path, storage, &next, live_path)?;
    Ok((map, Origin::Durable { half_written }))
}

/// A live map of the header's generation, from the durable map; whether parts of
/// that are half written.
fn new_map(
    path: &Path,
    storage: &dyn Storage,
    header: &Header,
    live_path: Option<&Path>,
) -> Result<(LiveMap, bool), LeafError> {
    let owner = Owner::of(header);
    let map = LiveMap::create(live_path, &owner, &Shape::of(header)).map_err(|source| {
        let path = live_path.unwrap_or(Path::new("(memory)")).to_owned();
        LeafError::LiveMap { path, source }
    })?;
    let half_written = durable_map::load(storage, header, &map).map_err(|source| {
        LeafError::Io { path: path.to_owned(), operation: "read the presence map", source }
    })?;
    Ok((map, half_written))
}

/// Map pages that the leaf has room for.
fn pages_max(header: &Header) -> usize {
    let room = header.map_room_end() - header.map_offset;
    let most = super::map_len_bytes(super::SIZE_MAX);
    usize::try_from(room.min(most)).unwrap_or(usize::MAX) / PAGE_LEN
}

//! Opening and closing a leaf.

mod map;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use uuid::Uuid;

use self::map::Origin;
use super::copies::read_header;
use super::header::Header;
use super::live_map::leftovers::{self, Leftovers};
use super::live_map::place::Wanted;
use super::live_map::{LiveMap, Owner};
use super::slots::{SLOT_LEN, Slots};
use super::{Leaf, LeafError, WriteCache, durable_map, offline};
use crate::boot;
use crate::io::storage::{FileStorage, Storage};
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

/// The kernel's id of this boot.
fn boot_id() -> [u8; 16] {
    // Without one, a random id: then no other daemon takes anything over.
    static SUBSTITUTE: OnceLock<Uuid> = OnceLock::new();
    let id = boot::id().unwrap_or_else(|_| *SUBSTITUTE.get_or_init(Uuid::new_v4));
    *id.as_bytes()
}

/// Removes the live maps from the directory that no leaf can need, and says which
/// of those that stay are of no leaf of `in_use`.
///
/// # Errors
/// As [`leftovers::clear`], and those of reading the kernel's boot id.
pub fn clear_leftovers(directory: &Path, in_use: &[[u8; 16]]) -> std::io::Result<Leftovers> {
    leftovers::clear(directory, boot::id()?.as_bytes(), in_use)
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
    /// otherwise the durable map counts. Where the newer copy of the header has
    /// been damaged since, the live map is joined to what the older one says.
    ///
    /// # Errors
    /// Each of [`LeafError`]'s that fits; nothing has changed then.
    pub fn open(
        path: &Path,
        root: &RootIdentity,
        options: &OpenOptions,
    ) -> Result<Self, LeafError> {
        let file = offline::lock(path, !options.read_only)?;
        let storage = FileStorage::new(file);
        storage.keep_no_access_times();
        Self::open_storage(path, Box::new(storage), root, options)
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
        Self::open_with(path, storage, root, options, |storage, header, wanted| {
            map::find(path, storage, header, wanted, options)
        })
    }

    /// Opens the leaf to read what another process goes on writing. No lock is taken and
    /// nothing written. `live_map` is that process's; without it, what was flushed
    /// counts. What is seen of each sector was so at some moment of the opening.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_beside(
        path: &Path,
        storage: Box<dyn Storage>,
        root: &RootIdentity,
        live_map: Option<&Path>,
    ) -> Result<Self, LeafError> {
        let options = OpenOptions { live_map: None, read_only: true };
        Self::open_with(path, storage, root, &options, |_, _, wanted| {
            let Some(live_map) = live_map else { return Ok(None) };
            let map = LiveMap::copied_beside(live_map, &wanted.owner, &wanted.shape);
            map.map(|map| Some((map, Origin::TakenOver)))
                .map_err(|source| LeafError::LiveMap { path: live_map.to_owned(), source })
        })
    }

    /// As [`Self::open_storage`], with the live map that `find` finds.
    fn open_with(
        path: &Path,
        storage: Box<dyn Storage>,
        root: &RootIdentity,
        options: &OpenOptions,
        find: impl FnOnce(
            &dyn Storage,
            &Header,
            &Wanted<'_>,
        ) -> Result<Option<(LiveMap, Origin)>, LeafError>,
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
        let wanted = Wanted::of(path, header, copies.is_alone());
        let found = find(&*storage, header, &wanted)?;
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
        let (map, origin) = match found {
            Some(found) => found,
            None => {
                if !options.read_only && !header.clean {
                    // A sync may have failed before: what the page cache shows then
                    // is not on the disk, and would be gone later. So before the map
                    // is read.
                    storage.sync_data().map_err(io_error("sync"))?;
                    storage.drop_cached();
                }
                let (map, half_written) = map::next(path, &*storage, header, options)?;
                (map, Origin::Durable { half_written })
            }
        };
        let slots_end = map.slots_end();
        let need = header.data_offset + slots_end * SLOT_LEN;
        // Beside a writer it may have grown.
        let have = storage.len_bytes().map_err(io_error("stat"))?;
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
            occupied: AtomicU64::new(storage.allocated().unwrap_or(u64::MAX)),
            map,
            read_only: options.read_only,
            // What was taken over has not been flushed.
            written: AtomicU64::new(u64::from(taken_over)),
            flushed: AtomicU64::new(0),
            writing_map: AtomicBool::new(false),
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
        if !matches!(origin, Origin::Durable { .. }) {
            self.clear_unnamed()?;
        }
        self.map.note_leaf_path(&self.path).map_err(map_error)?;
        match origin {
            // The header says so already; writing it would sync whatever the killed
            // daemon left unwritten, while the guest waits.
            Origin::TakenOver => {}
            Origin::TakenOverUnsynced => {
                self.sync()?;
                self.own_map().map_err(map_error)?;
            }
            Origin::Ahead(generation) => {
                // Nothing is dropped from the page cache: what was acknowledged
                // is there, and nowhere else.
                self.sync()?;
                self.set_write_cache(write_cache).map_err(map_error)?;
                // The one that was damaged: the live map fits it before and after.
                self.write_header(|header| {
                    (header.generation, header.clean) = (generation, false);
                    header.write_cache = WriteCache::Unknown;
                })?;
            }
            Origin::Durable { half_written } => {
                if self.header().clean {
                    // It may be a killed daemon's, and not durable yet.
                    self.sync()?;
                }
                // Also of a leaf that was closed: the clearing after a reset may not be
                // durable, or not have been possible.
                self.clear_unnamed()?;
                self.forget_unflushed(half_written)?;
                self.set_write_cache(write_cache).map_err(map_error)?;
                self.write_header(|header| {
                    header.generation += 1;
                    (header.clean, header.map_void) = (false, false);
                    header.write_cache = WriteCache::Unknown;
                })?;
                self.own_map().map_err(map_error)?;
            }
        }
        self.settle_copies()
    }

    /// After a loss of power: bits and entries that stand alone don't count again
    /// when the rest is written.
    fn forget_unflushed(&self, half_written: bool) -> Result<(), LeafError> {
        if half_written {
            self.written.fetch_add(1, Ordering::Release);
            self.flush()?;
        }
        Ok(())
    }

    /// Removes the live map, where the leaf is deleted: what it names is gone.
    pub fn discard_live_map(&self) {
        let _ = self.map.remove();
    }

    /// Makes the live map that of the header, which is durable.
    fn own_map(&self) -> std::io::Result<()> {
        let header = self.header();
        self.map.own(&Owner::of(&header), header.virtual_size / 512).map(drop)
    }

    /// A new live map in place of the one that there is, from the durable map.
    pub(super) fn reload_map(&mut self) -> Result<(), LeafError> {
        let header = self.header();
        // The new one may take its name.
        self.map.unlock();
        let (map, _) =
            map::new(&self.path, &*self.storage, &header, self.live_map_path.as_deref())?;
        self.slots = Mutex::new(Slots::from(map.slots_end()));
        self.present.store(map.count(), Ordering::Relaxed);
        self.sectors.store(header.virtual_size / 512, Ordering::Release);
        self.map = map;
        self.set_write_cache(self.write_cache())
            .and_then(|()| self.map.note_leaf_path(&self.path))
            .and_then(|()| self.own_map())
            .map_err(|e| self.io("write the live map", e))
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
        if let Err(error) = self.drop_filled() {
            // It is zeros, and only space.
            log::warn!("leaf {}: can't give space back: {error}", self.path.display());
        }
        self.flush()?;
        self.write_header(|header| {
            header.generation += 1;
            header.clean = true;
            header.write_cache = self.write_cache();
        })?;
        // What stays fits no leaf any more.
        self.discard_live_map();
        Ok(())
    }
}

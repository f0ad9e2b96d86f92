//! Creating, opening and closing a leaf.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::SystemTime;

use super::header::{self, Header, HeaderError};
use super::live_map::{LiveMap, Owner, PAGE_LEN};
use super::{Leaf, LeafError, lock, map_len_bytes};
use crate::io::storage::{FileStorage, Storage, read_exact, write_all};
use crate::root::RootIdentity;

/// The map begins after the two headers.
const MAP_OFFSET: u64 = 2 * header::LEN as u64;
/// A leaf can grow to this without moving its data, or to eight times its
/// first size: the map's room is a hole and costs nothing.
const GROWTH_MIN: u64 = 1 << 40;
/// Data begins at a multiple of a large page: 2 MiB.
const DATA_ALIGN: u64 = 2 << 20;

/// How a leaf is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The tmpfs file for the live map; anonymous memory if `None`, which a
    /// crash of the daemon doesn't survive.
    pub live_map: Option<PathBuf>,
    /// No writes, and no trace left in the file.
    pub read_only: bool,
}

/// Makes an empty leaf of `virtual_size` bytes at `path`, which must not exist.
/// It gets its name when it is whole and durable.
///
/// # Errors
/// [`LeafError::BadSize`], [`LeafError::Create`]; no file is left behind.
pub fn create(path: &Path, virtual_size: u64, root: &RootIdentity) -> Result<(), LeafError> {
    let room = map_len_bytes(virtual_size.saturating_mul(8).clamp(GROWTH_MIN, super::SIZE_MAX));
    let data_offset = (MAP_OFFSET + room).next_multiple_of(DATA_ALIGN);
    let file_len = data_offset.checked_add(virtual_size).filter(|len| i64::try_from(*len).is_ok());
    let file_len = match file_len {
        Some(len)
            if (512..=super::SIZE_MAX).contains(&virtual_size)
                && virtual_size.is_multiple_of(512) =>
        {
            len
        }
        _ => return Err(LeafError::BadSize { size: virtual_size }),
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let header = Header {
        clean: true,
        compatible: 0,
        uuid: *uuid::Uuid::new_v4().as_bytes(),
        generation: 1,
        virtual_size,
        map_offset: MAP_OFFSET,
        data_offset,
        created: now.as_secs(),
        root: root.clone(),
    };
    write_new(path, &header, file_len)
        .map_err(|source| LeafError::Create { path: path.to_owned(), source })
}

fn write_new(path: &Path, header: &Header, file_len: u64) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    // A name that nobody else has: not another creation of the same leaf, nor a
    // daemon that had this process id and was killed.
    name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let temporary = directory.join(name);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let result = (|| {
        file.write_all(&header.encode())?;
        file.write_all(&header.encode())?;
        file.set_len(file_len)?;
        file.sync_all()?;
        // A link, not a rename: it doesn't replace what came there meanwhile.
        std::fs::hard_link(&temporary, path)
    })();
    let _ = std::fs::remove_file(&temporary);
    result?;
    File::open(directory)?.sync_all()
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Without one, a random id: then nothing is ever taken over.
    *uuid::Uuid::parse_str(text.trim()).unwrap_or_else(|_| uuid::Uuid::new_v4()).as_bytes()
}

/// The newer of two valid copies.
fn read_header(path: &Path, storage: &dyn Storage) -> Result<Header, LeafError> {
    let path = || path.to_owned();
    let mut best: Option<Header> = None;
    let mut why = HeaderError::Magic;
    for copy in 0..2 {
        let mut bytes = [0; header::LEN];
        let offset = copy * header::LEN as u64;
        match read_exact(storage, &mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(source) => {
                return Err(LeafError::Io { path: path(), operation: "read", source });
            }
            Ok(()) => {}
        }
        match Header::decode(&bytes) {
            Ok(found) if best.as_ref().is_none_or(|b| b.generation < found.generation) => {
                best = Some(found);
            }
            Ok(_) | Err(HeaderError::Magic) => {}
            // A copy that is newer than this code counts more than its twin.
            Err(e @ (HeaderError::Version(_) | HeaderError::Features(_))) => {
                (best, why) = (None, e);
                break;
            }
            Err(HeaderError::Damaged) => why = HeaderError::Damaged,
        }
    }
    best.ok_or_else(|| match why {
        HeaderError::Magic => LeafError::NotALeaf { path: path() },
        HeaderError::Damaged => LeafError::Damaged { path: path() },
        HeaderError::Version(version) => LeafError::Version { path: path(), version },
        HeaderError::Features(bits) => LeafError::Features { path: path(), bits },
    })
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
        // Looked at first: opening a FIFO would wait for its other end.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(LeafError::NotALeaf { path: path.to_owned() });
        }
        let file = File::options()
            .read(true)
            .write(!options.read_only)
            .open(path)
            .map_err(|source| LeafError::Open { path: path.to_owned(), source })?;
        match lock::take(&file, options.read_only) {
            Ok(true) => {}
            Ok(false) => return Err(LeafError::InUse { path: path.to_owned() }),
            Err(source) => return Err(LeafError::Open { path: path.to_owned(), source }),
        }
        Self::open_storage(path, Box::new(FileStorage(file)), root, options)
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
        let mut header = read_header(path, &*storage)?;
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
        let sectors = header.virtual_size / 512;
        let (map, taken_over) = Self::open_map(path, &*storage, &mut header, options)?;
        let leaf = Self {
            path: path.to_owned(),
            live_map_path: options.live_map.clone(),
            data_offset: header.data_offset,
            map_offset: header.map_offset,
            sectors,
            present: AtomicU64::new(map.count()),
            map,
            read_only: options.read_only,
            // What was taken over has not been flushed.
            written: AtomicU64::new(u64::from(taken_over)),
            flushed: AtomicU64::new(0),
            unsynced_bytes: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
            flushing: Mutex::default(),
            marking: Mutex::default(),
            storage,
            header: Mutex::new(header),
        };
        // After a take-over the header says so already; writing it would sync
        // whatever the killed daemon left unwritten, while the guest waits.
        if !leaf.read_only && !taken_over {
            leaf.write_header(|header| header.clean = false)?;
        }
        Ok(leaf)
    }

    /// The live map: an earlier daemon's, or a new one from the durable map.
    /// The header gets the generation that the map's owner has.
    fn open_map(
        path: &Path,
        storage: &dyn Storage,
        header: &mut Header,
        options: &OpenOptions,
    ) -> Result<(LiveMap, bool), LeafError> {
        let sectors = header.virtual_size / 512;
        // A reader takes a crashed daemon's map over as well, or it would not
        // see what that one acknowledged; but it leaves no map of its own.
        let found_path = options.live_map.as_deref().filter(|_| !header.clean);
        let live_path = options.live_map.as_deref().filter(|_| !options.read_only);
        let map_error = |source| {
            let path = live_path.unwrap_or(Path::new("(memory)")).to_owned();
            LeafError::LiveMap { path, source }
        };
        let mut owner =
            Owner { boot_id: boot_id(), uuid: header.uuid, generation: header.generation };
        if let Some(found_path) = found_path {
            let found = LiveMap::take_over(found_path, &owner, sectors).map_err(map_error)?;
            if let Some(map) = found {
                log::info!("leaf {}: took over the live map of an earlier run", path.display());
                return Ok((map, true));
            }
        }
        // A new generation: a live map that this one does not know about must
        // never be taken for current later.
        header.generation += 1;
        owner.generation = header.generation;
        let map = LiveMap::create(live_path, &owner, sectors).map_err(map_error)?;
        let mut page_bytes = vec![0; PAGE_LEN];
        for page in 0..map.pages() {
            let offset = header.map_offset + (page * PAGE_LEN) as u64;
            read_exact(storage, &mut page_bytes, offset).map_err(|source| LeafError::Io {
                path: path.to_owned(),
                operation: "read the presence map",
                source,
            })?;
            if page_bytes.iter().any(|byte| *byte != 0) {
                map.load_page(page, &page_bytes).map_err(map_error)?;
            }
        }
        Ok((map, false))
    }

    /// Writes the header as `change` leaves it, to the copy that its
    /// generation names, and syncs.
    fn write_header(&self, change: impl FnOnce(&mut Header)) -> Result<(), LeafError> {
        let mut header = self.header.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Counts only once it is written: another try must not go to the copy
        // that is still good.
        let mut changed = header.clone();
        change(&mut changed);
        let offset = (changed.generation % 2) * header::LEN as u64;
        write_all(&*self.storage, &changed.encode(), offset)
            .map_err(|source| self.io("write the header", source))?;
        self.sync()?;
        *header = changed;
        Ok(())
    }

    /// Flushes, marks the leaf as clean and removes its live map.
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
        })?;
        if let Some(path) = &self.live_map_path {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

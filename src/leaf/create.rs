//! Creating a leaf.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::header::{self, Header};
use super::{LeafError, WriteCache, map_len_bytes, table_len_bytes};
use crate::io::beside::{Beside, BesideError};
use crate::io::storage::{FileStorage, Storage, write_all};
use crate::root::RootIdentity;

/// The map begins after the two headers.
const MAP_OFFSET: u64 = 2 * header::LEN as u64;
/// A leaf can grow to this without moving its data, or to eight times its
/// first size: the map's room is a hole and costs nothing.
const GROWTH_MIN: u64 = 1 << 40;
/// Data begins at a multiple of a large page: 2 MiB.
const DATA_ALIGN: u64 = 2 << 20;

/// The largest disk of a packed leaf: a slot for each block, and some that a loss of
/// power left unused.
pub(super) const PACKED_MAX: u64 = 15 << 40;

/// Where a leaf has the data of a block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layout {
    /// At the block's own place: the file is the disk, with holes.
    Direct,
    /// Where the block table says: one after the other, as they were first
    /// written.
    Packed,
}

/// Makes an empty leaf of `virtual_size` bytes, packed up to 15 TiB, at `path`, which
/// must not exist.
/// It gets its name when it is whole and durable.
///
/// # Errors
/// [`LeafError::BadSize`], [`LeafError::Create`]; no file is left behind.
pub fn create(path: &Path, virtual_size: u64, root: &RootIdentity) -> Result<(), LeafError> {
    create_as(path, Layout::Packed, virtual_size, root)
}

/// As [`create`], of another layout.
///
/// # Errors
/// As [`create`].
pub fn create_as(
    path: &Path,
    layout: Layout,
    virtual_size: u64,
    root: &RootIdentity,
) -> Result<(), LeafError> {
    let header = new_header(layout, virtual_size, root)?;
    write_new(path, &header)
        .map_err(|e| LeafError::Create { path: path.to_owned(), source: e.into_io() })
}

/// Makes empty storage an empty leaf of `virtual_size` bytes, and durable.
///
/// # Errors
/// [`LeafError::BadSize`]; [`LeafError::Create`] for `path`.
pub fn create_storage(
    path: &Path,
    storage: &dyn Storage,
    layout: Layout,
    virtual_size: u64,
    root: &RootIdentity,
) -> Result<(), LeafError> {
    write_whole(path, storage, &new_header(layout, virtual_size, root)?)
}

/// As [`create_storage`], packed if that is possible, for a leaf that is to take the place
/// of the one with the header `old`: it holds the same disk.
///
/// # Errors
/// As [`create_storage`].
pub fn create_successor(
    path: &Path,
    storage: &dyn Storage,
    virtual_size: u64,
    root: &RootIdentity,
    old: &Header,
) -> Result<(), LeafError> {
    let new = new_header(Layout::Packed, virtual_size, root)?;
    let header = Header { disk: Some(old.disk_uuid()), ..new };
    write_whole(path, storage, &header)
}

fn write_whole(path: &Path, storage: &dyn Storage, header: &Header) -> Result<(), LeafError> {
    write_header(storage, header)
        .and_then(|()| storage.sync_data())
        .map_err(|source| LeafError::Create { path: path.to_owned(), source })
}

fn new_header(layout: Layout, virtual_size: u64, root: &RootIdentity) -> Result<Header, LeafError> {
    let bad_size = || LeafError::BadSize { size: virtual_size };
    if !super::is_possible(virtual_size) {
        return Err(bad_size());
    }
    // Slots have numbers of 32 bits.
    let layout = if virtual_size > PACKED_MAX { Layout::Direct } else { layout };
    let limit = if layout == Layout::Packed { PACKED_MAX } else { super::SIZE_MAX };
    let most = virtual_size.saturating_mul(8).clamp(GROWTH_MIN, limit);
    let map_end = MAP_OFFSET + map_len_bytes(most);
    let (table_offset, end) = match layout {
        Layout::Direct => (None, map_end),
        Layout::Packed => (Some(map_end), map_end + table_len_bytes(most)),
    };
    let data_offset = end.next_multiple_of(DATA_ALIGN);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Header {
        clean: true,
        write_cache: WriteCache::Unknown,
        compatible: 0,
        map_void: false,
        uuid: *uuid::Uuid::new_v4().as_bytes(),
        disk: None,
        generation: 1,
        virtual_size,
        map_offset: MAP_OFFSET,
        table_offset,
        data_offset,
        created: now.as_secs(),
        root: root.clone(),
    })
}

/// Everything of an empty leaf but that it is durable.
fn write_header(storage: &dyn Storage, header: &Header) -> io::Result<()> {
    write_all(storage, &header.encode(), 0)?;
    write_all(storage, &header.encode(), header::LEN as u64)?;
    storage.set_len(header.data_offset + header.virtual_size)
}

fn write_new(path: &Path, header: &Header) -> Result<(), BesideError> {
    let new = Beside::new(path)?;
    let file = new.file().try_clone().map_err(|e| new.error(e))?;
    write_header(&FileStorage::new(file), header).map_err(|e| new.error(e))?;
    new.publish()
}

//! The presence map in the file: loading it, and clearing parts that count for
//! nothing. Flushes write it ([`super::flush`]).

use std::io;

use super::header::Header;
use super::live_map::{LiveMap, PAGE_LEN, PAGE_SECTORS};
use super::map_len_bytes;
use crate::io::storage::{Storage, read_exact, write_all, zero};

/// Adds to the live map what the file's has. What lies beyond the disk's end is left
/// out: a disk that shrank may have left it there.
pub(super) fn load(storage: &dyn Storage, header: &Header, map: &LiveMap) -> io::Result<()> {
    if header.map_void {
        return Ok(());
    }
    let mut bytes = [0; PAGE_LEN];
    for page in 0..map.pages() {
        read_page(storage, header, page as u64, &mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            map.load_page(page, &bytes)?;
        }
    }
    Ok(())
}

/// A page of the map, without bits past the disk's end; whether there were any.
fn read_page(
    storage: &dyn Storage,
    header: &Header,
    page: u64,
    bytes: &mut [u8; PAGE_LEN],
) -> io::Result<bool> {
    read_exact(storage, bytes, header.map_offset + page * PAGE_LEN as u64)?;
    let sectors = (header.virtual_size / 512).saturating_sub(page * PAGE_SECTORS);
    let Ok(sectors) = usize::try_from(sectors) else {
        return Ok(false);
    };
    let mut any = false;
    for (i, byte) in bytes.iter_mut().enumerate().skip(sectors / 8) {
        let valid = sectors.saturating_sub(i * 8).min(8);
        let kept = *byte & ((1u16 << valid) - 1).to_le_bytes()[0];
        any |= kept != *byte;
        *byte = kept;
    }
    Ok(any)
}

/// Clears all of the map.
pub(super) fn clear(storage: &dyn Storage, header: &Header) -> io::Result<()> {
    zero(storage, header.map_offset, map_len_bytes(header.virtual_size))
}

/// Clears what a disk of `virtual_size` bytes would have of the map beyond the
/// end of the disk as it is.
pub(super) fn clear_beyond(
    storage: &dyn Storage,
    header: &Header,
    virtual_size: u64,
) -> io::Result<()> {
    let last = header.virtual_size / 512 / PAGE_SECTORS;
    let mut bytes = [0; PAGE_LEN];
    let page_offset = |page: u64| header.map_offset + page * PAGE_LEN as u64;
    if !(header.virtual_size / 512).is_multiple_of(PAGE_SECTORS)
        && read_page(storage, header, last, &mut bytes)?
    {
        write_all(storage, &bytes, page_offset(last))?;
    }
    let pages = map_len_bytes(header.virtual_size) / PAGE_LEN as u64;
    let end = map_len_bytes(virtual_size) / PAGE_LEN as u64;
    match end.checked_sub(pages) {
        None | Some(0) => Ok(()),
        Some(count) => zero(storage, page_offset(pages), count * PAGE_LEN as u64),
    }
}

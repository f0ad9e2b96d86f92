//! The presence map and the block table in the file: loading them, and clearing
//! parts that count for nothing. Flushes write them ([`super::flush`]).

use std::io;

use super::header::Header;
use super::live_map::table::{BLOCK_SECTORS, Entry, TABLE_PAGES};
use super::live_map::{LiveMap, PAGE_LEN, PAGE_SECTORS};
use super::{map_len_bytes, table_len_bytes};
use crate::io::storage::{Storage, read_exact, write_all, zero};

const TABLE_LEN: usize = TABLE_PAGES * PAGE_LEN;
/// Blocks that a map page covers.
const BLOCKS: u64 = PAGE_SECTORS / BLOCK_SECTORS;
/// Map pages that are read at a time, and the table pages that belong to them.
const GROUP_PAGES: usize = 16;

/// Adds to the live map what the file's has. What lies beyond the disk's end is left
/// out: a disk that shrank may have left it there. So are bits without an entry
/// and zeros without all bits, where a loss of power came between their pages:
/// they were never flushed. Whether there were any: they must be gone from the
/// file before the leaf is written. Their pages are marked as changed.
pub(super) fn load(storage: &dyn Storage, header: &Header, map: &LiveMap) -> io::Result<bool> {
    let mut half_written = false;
    if header.map_void {
        return Ok(half_written);
    }
    let mut bits = [0; GROUP_PAGES * PAGE_LEN];
    let mut table =
        vec![0; if header.table_offset.is_some() { GROUP_PAGES * TABLE_LEN } else { 0 }];
    let pages = map.pages();
    let mut next = 0;
    while next < pages {
        let first = next;
        let count = GROUP_PAGES.min(pages - first);
        let bits = &mut bits[..count * PAGE_LEN];
        read_exact(storage, bits, header.map_offset + (first * PAGE_LEN) as u64)?;
        if let Some(offset) = header.table_offset {
            let table = &mut table[..count * TABLE_LEN];
            read_exact(storage, table, offset + (first * TABLE_LEN) as u64)?;
        }
        let table_len = if header.table_offset.is_some() { count * TABLE_LEN } else { 0 };
        next = first + count;
        if is_zero(bits) && is_zero(&table[..table_len]) {
            next = next_page(storage, header, next)?.min(pages);
            continue;
        }
        for i in 0..count {
            let page = first + i;
            let bits = &mut bits[i * PAGE_LEN..][..PAGE_LEN];
            cut(bits, sectors_from(header, page as u64));
            if header.table_offset.is_some() {
                let table = &mut table[i * TABLE_LEN..][..TABLE_LEN];
                half_written |= load_table(header, map, page, bits, table)?;
            }
            if !is_zero(bits) {
                map.load_page(page, bits)?;
            }
        }
    }
    Ok(half_written)
}

/// The first map page from `page` on that the file may have something of, or of whose
/// part of the table: a disk of petabytes has a map of gigabytes, nearly all of it a hole.
fn next_page(storage: &dyn Storage, header: &Header, page: usize) -> io::Result<usize> {
    let next = |start: u64, unit: usize| -> io::Result<usize> {
        let data = storage.next_data(start + (page * unit) as u64)?;
        let page = data.map(|at| usize::try_from((at - start) / unit as u64));
        Ok(page.and_then(Result::ok).unwrap_or(usize::MAX))
    };
    let of_map = next(header.map_offset, PAGE_LEN)?;
    let of_table = header.table_offset.map(|start| next(start, TABLE_LEN)).transpose()?;
    Ok(of_map.min(of_table.unwrap_or(usize::MAX)))
}

/// Fills the table's pages that belong to a map page, and takes away what of
/// both was half written.
fn load_table(
    header: &Header,
    map: &LiveMap,
    page: usize,
    bits: &mut [u8],
    table: &mut [u8],
) -> io::Result<bool> {
    let (mut of_bits, mut of_table) = (false, [false; TABLE_PAGES]);
    let blocks = sectors_from(header, page as u64).div_ceil(BLOCK_SECTORS);
    let entries = table.as_chunks_mut::<4>().0.iter_mut().zip(bits.iter_mut());
    for (i, (raw, held)) in entries.enumerate() {
        let is_beyond = i as u64 >= blocks;
        // An earlier daemon's map has it since then.
        if is_beyond || map.entry(page as u64 * BLOCKS + i as u64) != Entry::Empty {
            *raw = [0; 4];
            continue;
        }
        match Entry::decode(u32::from_le_bytes(*raw)) {
            // Kept, also where no bit is set: the slot is the block's still.
            Entry::Slot(_) => {}
            Entry::Empty if *held == 0 => {}
            Entry::Zeros if *held == 0xff => {}
            entry => {
                of_bits |= *held != 0;
                of_table[i * 4 / PAGE_LEN] |= entry == Entry::Zeros;
                (*raw, *held) = ([0; 4], 0);
            }
        }
    }
    let first = map.table_pages().start + page * TABLE_PAGES;
    for (i, bytes) in table.chunks_exact(PAGE_LEN).enumerate() {
        if of_table[i] || !is_zero(bytes) {
            map.load_page(first + i, bytes)?;
        }
        if of_table[i] {
            map.mark_changed(first + i);
        }
    }
    if of_bits {
        map.load_page(page, bits)?;
        map.mark_changed(page);
    }
    Ok(of_bits || of_table.contains(&true))
}

/// Whether all bytes are zero; most of a large disk's map is.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    let is_zero = |word: &[u8; 64]| word.iter().fold(0, |all, byte| all | byte) == 0;
    words.iter().all(is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// Sectors that the disk has from a map page's first one on.
fn sectors_from(header: &Header, page: u64) -> u64 {
    (header.virtual_size / 512).saturating_sub(page * PAGE_SECTORS)
}

/// Clears the bits of a page after so many; whether any was set.
fn cut(bytes: &mut [u8], sectors: u64) -> bool {
    let mut any = false;
    let first = usize::try_from(sectors / 8).unwrap_or(usize::MAX);
    for (i, byte) in bytes.iter_mut().enumerate().skip(first) {
        let valid = sectors.saturating_sub(i as u64 * 8).min(8);
        let kept = *byte & ((1u16 << valid) - 1).to_le_bytes()[0];
        any |= kept != *byte;
        *byte = kept;
    }
    any
}

/// Clears all of the map and the table.
pub(super) fn clear(storage: &dyn Storage, header: &Header) -> io::Result<()> {
    zero(storage, header.map_offset, map_len_bytes(header.virtual_size))?;
    match header.table_offset {
        Some(offset) => zero(storage, offset, table_len_bytes(header.virtual_size)),
        None => Ok(()),
    }
}

/// Clears what a disk of `virtual_size` bytes would have of the map and the table
/// beyond the end of the disk as it is.
pub(super) fn clear_beyond(
    storage: &dyn Storage,
    header: &Header,
    virtual_size: u64,
) -> io::Result<()> {
    let sectors = header.virtual_size / 512;
    let map_end = header.map_offset + map_len_bytes(virtual_size);
    clear_from(storage, header.map_offset, sectors / 8, map_end, |bytes| {
        cut(bytes, sectors % PAGE_SECTORS)
    })?;
    let Some(table) = header.table_offset else { return Ok(()) };
    let kept = sectors.div_ceil(BLOCK_SECTORS) * 4;
    clear_from(storage, table, kept, table + table_len_bytes(virtual_size), |bytes| {
        let within = usize::try_from(kept % PAGE_LEN as u64).unwrap_or(0);
        let beyond = &mut bytes[within..];
        let any = !is_zero(beyond);
        beyond.fill(0);
        any
    })
}

/// Clears the page that byte `kept` from `start` on is in, by `cut`, which says
/// whether there was anything; and the pages behind it, up to `end`.
fn clear_from(
    storage: &dyn Storage,
    start: u64,
    kept: u64,
    end: u64,
    cut: impl FnOnce(&mut [u8]) -> bool,
) -> io::Result<()> {
    let page = start + kept / PAGE_LEN as u64 * PAGE_LEN as u64;
    let mut bytes = [0; PAGE_LEN];
    if page < end {
        read_exact(storage, &mut bytes, page)?;
        if cut(&mut bytes) {
            write_all(storage, &bytes, page)?;
        }
    }
    match end.checked_sub(page + PAGE_LEN as u64) {
        None | Some(0) => Ok(()),
        Some(len) => zero(storage, page + PAGE_LEN as u64, len),
    }
}

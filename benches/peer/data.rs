//! What the disks hold: every 8-byte word is a function of a seed and its
//! offset, so that any read can be checked without keeping a copy.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::util::{Context, Error, Result, mix, to_u64, to_usize};

/// The seed of every root.
pub(crate) const ROOT: u64 = 1;
/// The seed of what VM 0 writes; VM `n` writes with `WRITTEN + n`, so that a
/// sector of another VM's leaf is recognised.
pub(crate) const WRITTEN: u64 = 1000;

const WORD: usize = 8;

/// Words that share one hash.
const LINE: usize = 8 * WORD;

/// What the words of the line at byte `offset`, a multiple of 64, are made of.
#[inline]
const fn line(seed: u64, offset: u64) -> u64 {
    mix((offset >> 6) ^ (seed << 48))
}

/// The word at `index` of a line. Never zero, so a hole is noticed.
#[inline]
const fn word_of(line: u64, index: u64) -> u64 {
    line.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1
}

/// The word at byte `offset`, a multiple of 8.
#[inline]
const fn word(seed: u64, offset: u64) -> u64 {
    word_of(line(seed, offset), (offset >> 3) & 7)
}

/// Fills `buffer` with what belongs at `offset`; both multiples of 64. One hash
/// a line, as the time that this takes is part of every write's in the table.
#[inline]
pub(crate) fn fill(buffer: &mut [u8], seed: u64, offset: u64) {
    let mut at = offset;
    for bytes in buffer.as_chunks_mut::<LINE>().0 {
        let line = line(seed, at);
        for (index, chunk) in (0..).zip(bytes.as_chunks_mut::<WORD>().0) {
            *chunk = word_of(line, index).to_le_bytes();
        }
        at += to_u64(LINE);
    }
}

/// Checks all of `buffer`, read at `offset`.
pub(crate) fn check(buffer: &[u8], seed: u64, offset: u64) -> Result<()> {
    let mut at = offset;
    for chunk in buffer.chunks_exact(WORD) {
        check_word(chunk, seed, at)?;
        at += 8;
    }
    Ok(())
}

/// Checks the first word of every sector of `buffer`, read at `offset`.
pub(crate) fn check_sectors(buffer: &[u8], seed: u64, offset: u64) -> Result<()> {
    for (index, sector) in buffer.chunks_exact(512).enumerate() {
        check_word(&sector[..WORD], seed, offset + 512 * to_u64(index))?;
    }
    Ok(())
}

#[inline]
fn check_word(chunk: &[u8], seed: u64, at: u64) -> Result<()> {
    if chunk == word(seed, at).to_le_bytes() {
        return Ok(());
    }
    Err(wrong_data(chunk, seed, at))
}

#[cold]
fn wrong_data(chunk: &[u8], seed: u64, at: u64) -> Error {
    let expected = word(seed, at).to_le_bytes();
    Error::from(format!(
        "wrong data at byte {at}: read {chunk:02x?}, expected {expected:02x?} (seed {seed}): \
         the figures of a disk that answers wrongly mean nothing"
    ))
}

/// Writes a root of `len` bytes, without holes, and waits until it is on disk.
pub(crate) fn create_root(path: &Path, len: u64) -> Result<()> {
    const CHUNK: u64 = 4 << 20;
    let mut file = File::create(path).context(|| format!("cannot create {}", path.display()))?;
    let mut buffer = vec![0; to_usize(CHUNK)];
    let mut offset = 0;
    while offset < len {
        let part = &mut buffer[..to_usize(CHUNK.min(len - offset))];
        fill(part, ROOT, offset);
        file.write_all(part).context(|| format!("cannot write {}", path.display()))?;
        offset += CHUNK;
    }
    file.sync_all().context(|| format!("cannot sync {}", path.display()))
}

/// Writes a root of `len` bytes that has data in `blocks` of `block_bytes` only.
pub(crate) fn create_sparse_root(
    path: &Path,
    len: u64,
    block_bytes: u64,
    blocks: impl Iterator<Item = u64>,
) -> Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)
        .context(|| format!("cannot create {}", path.display()))?;
    file.set_len(len)?;
    let mut buffer = vec![0; to_usize(block_bytes)];
    for block in blocks {
        let offset = block * block_bytes;
        let part = &mut buffer[..to_usize(block_bytes.min(len - offset))];
        fill(part, ROOT, offset);
        file.write_all_at(part, offset).context(|| format!("cannot write {}", path.display()))?;
    }
    file.sync_all().context(|| format!("cannot sync {}", path.display()))
}

/// Drops `path` from the page cache. Its data is on disk already.
pub(crate) fn drop_file(path: &Path) -> Result<()> {
    let file = File::open(path).context(|| format!("cannot open {}", path.display()))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .context(|| format!("cannot drop {} from the page cache", path.display()))
}

/// Drops all clean pages, dentries and inodes of the machine. False where that
/// is not allowed.
pub(crate) fn drop_all() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3\n").is_ok()
}

/// The last lines of a log, for the error message of the daemon that wrote it.
pub(crate) fn log_tail(path: &Path) -> String {
    let Ok(file) = File::open(path) else {
        return String::from("(no log)");
    };
    let lines: Vec<String> =
        std::io::BufReader::new(file).lines().map_while(std::result::Result::ok).collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

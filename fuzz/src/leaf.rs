//! Leaf files of arbitrary content.
//!
//! Input: flags, the file's length in sectors (u32), records of its content
//! (their number, then offset u32, length u8, bytes), then operations on the
//! leaf that opens, deaths of the daemon and damage to its live map among them.
//! What was written is there after each of them.

mod storage;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use leafblk::leaf::header::{Header, LEN};
use leafblk::leaf::{Leaf, OpenOptions, WriteCache};
use leafblk::root::RootIdentity;
use leafblk::units::{Sector, SectorRange};
use leafblk::virtqueue::GuestBuf;
use storage::Sparse;

use super::Seeds;
use super::input::{Input, Output};

const FIX_FIRST: u8 = 1;
const FIX_SECOND: u8 = 2;
const READ_ONLY: u8 = 4;
const LIVE_MAP: u8 = 8;
/// The longest file: 4 GiB, a map of 256 pages.
const SECTORS_MAX: u32 = 8 << 20;
const STEPS_MAX: usize = 64;

/// Decodes, opens, works, dies, opens again.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let file = Sparse::new(u64::from(input.u32() % (SECTORS_MAX + 1)) * 512);
    for _ in 0..input.u8() {
        let (offset, len) = (input.u32(), input.u8());
        file.put(u64::from(offset), input.bytes(usize::from(len)));
    }
    for (bit, offset) in [(FIX_FIRST, 0), (FIX_SECOND, LEN as u64)] {
        if flags & bit != 0 {
            seal(&file, offset);
        }
    }
    let mut root = None;
    for offset in [0, LEN as u64] {
        if let Some(header) = decode(&file, offset) {
            root = Some(header.root);
        }
    }
    let Some(root) = root else {
        let opened = Leaf::open_storage(
            Path::new("x"),
            Box::new(file.clone()),
            &RootIdentity::default(),
            &OpenOptions::default(),
        );
        assert!(opened.is_err(), "a leaf without a header");
        return;
    };
    let home = (flags & LIVE_MAP != 0).then(|| tempfile::tempdir().expect("a directory"));
    let options = OpenOptions {
        live_map: home.as_ref().map(|home| home.path().join("map")),
        read_only: flags & READ_ONLY != 0,
    };
    Life { file, root, options, written: HashMap::new() }.run(&mut input);
}

/// Gives 4 KiB the magic, the version and the checksum of a header, so that
/// what is between them is looked at.
fn seal(file: &Sparse, offset: u64) {
    file.put(offset, b"LEAFBLK\0");
    file.put(offset + 8, &1u32.to_le_bytes());
    let mut bytes = [0; LEN];
    file.get(offset, &mut bytes);
    let crc = crc32c(&bytes[..LEN - 4]);
    file.put(offset + LEN as u64 - 4, &crc.to_le_bytes());
}

/// CRC-32C by a table: an oracle of its own.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !bytes.iter().fold(u32::MAX, step)
}

fn decode(file: &Sparse, offset: u64) -> Option<Header> {
    let mut bytes = [0; LEN];
    file.get(offset, &mut bytes);
    let header = Header::decode(&bytes).ok()?;
    // What is read can be written and reads the same, names that are no UTF-8
    // apart: those are replaced once.
    let again = Header::decode(&header.encode()).expect("its own header");
    let third = Header::decode(&again.encode()).expect("its own header");
    assert_eq!(again, third);
    assert_eq!((again.virtual_size, again.map_offset), (header.virtual_size, header.map_offset));
    assert!(again.root.same_content(&header.root));
    Some(header)
}

struct Life {
    file: Sparse,
    root: RootIdentity,
    options: OpenOptions,
    /// What was written to which sector.
    written: HashMap<u64, u8>,
}

enum End {
    Closed,
    Died,
    Failed,
}

impl Life {
    fn run(mut self, input: &mut Input<'_>) {
        loop {
            let opened = Leaf::open_storage(
                Path::new("x"),
                Box::new(self.file.clone()),
                &self.root,
                &self.options,
            );
            let Ok(mut leaf) = opened else {
                assert!(self.written.is_empty(), "a leaf that was open opens no more");
                return;
            };
            assert!(leaf.present_sectors() <= leaf.sectors() || !self.options.read_only);
            self.check(&leaf);
            let end = self.steps(&mut leaf, input);
            drop(leaf);
            match end {
                End::Closed => {}
                End::Died => match &self.options.live_map {
                    // Without a live map, what was not flushed may be gone.
                    None => self.written.clear(),
                    Some(path) => {
                        let path = path.clone();
                        self.damage(&path, input);
                    }
                },
                End::Failed => return,
            }
            if input.is_empty() {
                return;
            }
        }
    }

    /// Writes arbitrary bytes into the live map that a death leaves.
    fn damage(&mut self, path: &PathBuf, input: &mut Input<'_>) {
        let (offset, len) = (input.u16(), input.u8());
        let bytes = input.bytes(usize::from(len));
        if bytes.is_empty() {
            return;
        }
        if let Ok(map) = std::fs::File::options().write(true).open(path) {
            map.write_all_at(bytes, u64::from(offset)).expect("a file of our own");
            self.written.clear();
        }
    }

    fn steps(&mut self, leaf: &mut Leaf, input: &mut Input<'_>) -> End {
        for _ in 0..STEPS_MAX {
            let kind = input.u8() % 9;
            let (start, count) = (u64::from(input.u32()) % leaf.sectors(), u64::from(input.u8()));
            let count = count.min(leaf.sectors() - start);
            let range = SectorRange::new(Sector(start), count).expect("inside");
            let done = match kind {
                0 | 1 => self.write(leaf, range, input.u8()),
                2 => leaf.write_zeroes(range).map(|()| self.note(range, 0)),
                3 => leaf.flush(),
                4 => {
                    self.check(leaf);
                    Ok(())
                }
                5 => {
                    let past = SectorRange::new(Sector(leaf.sectors()), 1).expect("one more");
                    assert!(leaf.write_zeroes(past).is_err(), "a write past the end");
                    Ok(())
                }
                6 => return leaf.close().map_or(End::Failed, |()| End::Closed),
                7 => {
                    let done = leaf.reset();
                    self.written.clear();
                    assert!(done.is_err() || leaf.present_sectors() == 0, "a reset leaves nothing");
                    done
                }
                _ => return End::Died,
            };
            if done.is_err() {
                assert!(self.options.read_only, "the storage never fails");
                return End::Failed;
            }
        }
        End::Died
    }

    fn write(
        &mut self,
        leaf: &Leaf,
        range: SectorRange,
        fill: u8,
    ) -> Result<(), leafblk::leaf::LeafError> {
        let mut bytes = vec![fill; usize::try_from(range.byte_len()).expect("255 sectors")];
        let bufs = [GuestBuf::new(bytes.as_mut_ptr(), bytes.len())];
        // SAFETY: the buffer outlives the call and has the range's length.
        unsafe { leaf.write(range, &bufs) }?;
        self.note(range, fill);
        Ok(())
    }

    fn note(&mut self, range: SectorRange, fill: u8) {
        (range.start().0..range.end().0).for_each(|sector| {
            self.written.insert(sector, fill);
        });
    }

    /// Runs cover the disk, and what was written is held and reads back.
    fn check(&self, leaf: &Leaf) {
        let mut at = 0;
        let mut runs = 0;
        while at < leaf.sectors() && runs < 1000 {
            let rest = SectorRange::new(Sector(at), leaf.sectors() - at).expect("inside");
            let (_, count) = leaf.next_run(rest);
            assert!(count > 0 && count <= rest.count(), "a run of {count} in {rest:?}");
            (at, runs) = (at + count, runs + 1);
        }
        // The file may say that two blocks are in one place.
        let (mut places, mut shared) = (HashSet::new(), false);
        leaf.each_slot(|_, offset| shared |= !places.insert(offset));
        let root_end = (self.root.len_bytes / 512).next_multiple_of(8);
        for (sector, fill) in &self.written {
            let range = SectorRange::new(Sector(*sector), 1).expect("inside");
            if leaf.is_packed() && *fill == 0 && *sector >= root_end && leaf.is_absent(range) {
                // Zeros past the root need no note.
                continue;
            }
            assert_eq!(leaf.next_run(range), (true, 1), "sector {sector} is lost");
            if shared {
                continue;
            }
            let mut bytes = [!*fill; 512];
            leaf.read_bytes(Sector(*sector), &mut bytes).expect("the storage never fails");
            assert!(bytes.iter().all(|byte| byte == fill), "sector {sector} has other content");
        }
    }
}

/// Inputs that reach deep.
pub fn seeds() -> Seeds {
    let virtual_size = 64 << 10;
    let any_header = |packed: bool, generation: u64, clean: bool, map_void: bool| {
        let root =
            RootIdentity { len_bytes: virtual_size, fingerprint: [7; 32], name: "debian".into() };
        let header = Header {
            clean,
            write_cache: WriteCache::On,
            map_void,
            compatible: 0,
            uuid: [3; 16],
            disk: None,
            generation,
            virtual_size,
            map_offset: 2 * LEN as u64,
            table_offset: packed.then_some(0x3000),
            data_offset: if packed { 0x7000 } else { 0x4000 },
            created: 1,
            root,
        };
        header.encode()[..160].to_vec()
    };
    let header = |generation, clean, map_void| any_header(false, generation, clean, map_void);
    let packed_header = any_header(true, 5, false, false);
    let packed_sectors = u32::try_from((0x7000 + virtual_size) / 512).expect("small");
    let piece = |offset: u32, bytes: &[u8]| {
        Output::default().u32(offset).u8(u8::try_from(bytes.len()).expect("short")).bytes(bytes).0
    };
    let sectors = u32::try_from((0x4000 + virtual_size) / 512).expect("small");
    let begin = |flags: u8, sectors: u32, pieces: &[Vec<u8>]| {
        let count = u8::try_from(pieces.len()).expect("few");
        Output::default().u8(flags).u32(sectors).u8(count).bytes(&pieces.concat())
    };
    let step = |kind: u8, start: u32, count: u8| Output::default().u8(kind).u32(start).u8(count).0;
    let work = [
        step(0, 3, 20),
        vec![0xaa],
        step(2, 30, 4),
        step(3, 0, 0),
        step(4, 0, 0),
        step(5, 0, 0),
        step(0, 100, 28),
        vec![0xbb],
        step(6, 0, 0),
        step(0, 9, 1),
        vec![0xcc],
        step(8, 0, 0),
    ]
    .concat();
    let reset_too =
        [step(0, 3, 2), vec![0xdd], step(7, 0, 0), step(0, 4, 1), vec![0xee], step(6, 0, 0)];
    let both = [piece(0, &header(2, true, false)), piece(4096, &header(1, true, false))];
    let map = piece(8192, &[0xff, 0, 0, 1, 0x80]);
    let used = [piece(4096, &header(5, false, false)), map.clone()];
    let table = |entries: [u32; 3]| piece(0x3000, &entries.map(u32::to_le_bytes).concat());
    let table_offset = piece(4096 + 384, &0x3000u64.to_le_bytes());
    let packed = |bits: &[u8], entries| {
        [piece(4096, &packed_header), table_offset.clone(), piece(8192, bits), table(entries)]
    };
    let half_written = packed(&[0xff, 1, 0x80], [u32::MAX, 0, u32::MAX]);
    let places = packed(&[0xff, 0x0f, 0xff], [2, 1, u32::MAX]);
    let shared = packed(&[0xff, 0xff, 0xff], [3, 3, 9]);

    let reset = [piece(4096, &header(5, false, true)), map];
    vec![
        ("clean", begin(FIX_FIRST | FIX_SECOND, sectors, &both).bytes(&work).0),
        ("one-header", begin(FIX_SECOND, sectors, &used).bytes(&work).0),
        (
            "live-map",
            begin(FIX_SECOND | LIVE_MAP, sectors, &used)
                .bytes(&work)
                .u16(0)
                .u8(0)
                .bytes(&work)
                .u16(4096)
                .u8(4)
                .u32(0x8421)
                .bytes(&work)
                .0,
        ),
        ("read-only", begin(FIX_SECOND | READ_ONLY, sectors, &used).bytes(&work).0),
        ("packed", begin(FIX_SECOND, packed_sectors, &places).bytes(&work).0),
        ("packed-half-written", begin(FIX_SECOND, packed_sectors, &half_written).bytes(&work).0),
        ("packed-shared", begin(FIX_SECOND | LIVE_MAP, packed_sectors, &shared).bytes(&work).0),
        ("packed-cut-short", begin(FIX_SECOND, packed_sectors - 120, &shared).bytes(&work).0),
        ("resets", begin(FIX_SECOND, sectors, &used).bytes(&reset_too.concat()).0),
        ("reset-cut-off", begin(FIX_SECOND, sectors, &reset).bytes(&work).0),
        ("cut-short", begin(FIX_FIRST, sectors - 1, &both).0),
        ("unsealed", begin(0, sectors, &both).0),
    ]
}

//! Leaves of format version 1, direct and packed, as they were first written. Each is a list of
//! pieces (offset: 8 bytes, length: 4 bytes, content) that leaves out zeros.

use std::os::unix::fs::FileExt;

use super::super::header::LEN;
use super::super::slots::SLOT_LEN;
use super::*;

const FIXTURES: [(Layout, &[u8]); 2] = [
    (
        Layout::Direct,
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/leaf-v1.pieces")),
    ),
    (
        Layout::Packed,
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/leaf-v1-packed.pieces"
        )),
    ),
];

/// Sectors that the fixture holds, and of what.
const CONTENT: [(u64, u64, u8); 4] =
    [(3, 2, 0x51), (64, 1, 0), (live_map::PAGE_SECTORS - 1, 2, 0x52), (SECTORS - 1, 1, 0x53)];

/// Puts the pieces into a file of the length that a leaf of `SIZE` has.
fn expand(pieces: &[u8], path: &Path) {
    let file = File::create(path).unwrap();
    let mut rest = pieces;
    while let Some((offset, more)) = rest.split_first_chunk::<8>() {
        let (len, more) = more.split_first_chunk::<4>().unwrap();
        let (content, more) = more.split_at(u32::from_le_bytes(*len) as usize);
        file.write_all_at(content, u64::from_le_bytes(*offset)).unwrap();
        rest = more;
    }
    assert!(rest.is_empty());
    let mut header = [0; LEN];
    File::open(path).unwrap().read_exact_at(&mut header, LEN as u64).unwrap();
    let header = Header::decode(&header).unwrap();
    file.set_len(header.data_offset + header.virtual_size).unwrap();
}

/// The 64-byte pieces of a leaf file that are not zeros: both headers, the
/// map, and the data of `CONTENT`.
fn collect(leaf: &Path) -> Vec<u8> {
    let file = File::open(leaf).unwrap();
    let mut header = [0; LEN];
    file.read_exact_at(&mut header, 0).unwrap();
    let header = Header::decode(&header).unwrap();
    let data = header.data_offset;
    let mut places = vec![(0, 2 * LEN as u64 + map_len_bytes(SIZE))];
    match header.table_offset {
        None => places.extend(CONTENT.map(|(start, count, _)| (data + start * 512, count * 512))),
        Some(table) => places.extend([(table, table_len_bytes(SIZE)), (data, 16 * SLOT_LEN)]),
    }
    let mut pieces = Vec::new();
    for (offset, len) in places {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        for (i, piece) in (0..).zip(bytes.chunks(64)).filter(|(_, p)| !is_all(p, 0)) {
            pieces.extend((offset + i * 64).to_le_bytes());
            pieces.extend((piece.len() as u32).to_le_bytes());
            pieces.extend(piece);
        }
    }
    pieces
}

#[test]
fn leaves_of_version_1_open_with_their_content() {
    FIXTURES.into_iter().for_each(|(layout, fixture)| opens_with_its_content(layout, fixture));
}

fn opens_with_its_content(layout: Layout, fixture: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v1.leaf");
    expand(fixture, &path);
    let leaf = Leaf::open(&path, &root(1), &OpenOptions::default()).unwrap();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (SECTORS, 6));
    assert_eq!(leaf.is_packed(), layout == Layout::Packed);
    let mut at = 0;
    for (start, count, fill) in CONTENT {
        assert_eq!(leaf.next_run(range(at, SECTORS - at)), (false, start - at));
        assert_eq!(leaf.next_run(range(start, SECTORS - start)), (true, count));
        assert!(is_all(&read(&leaf, start, count), fill), "sector {start}");
        at = start + count;
    }
    assert_eq!(at, SECTORS);
    write(&leaf, 0, 1, 1).unwrap();
    leaf.close().unwrap();
}

#[test]
fn leaves_made_today_are_those_of_version_1_but_for_their_identity() {
    FIXTURES.into_iter().for_each(|(layout, fixture)| is_made_today(layout, fixture));
}

fn is_made_today(layout: Layout, fixture: &[u8]) {
    let home = if layout == Layout::Packed { Home::packed() } else { Home::new() };
    let leaf = home.open();
    for (start, count, fill) in CONTENT {
        write(&leaf, start, count, fill).unwrap();
    }
    leaf.close().unwrap();
    // For the fixture of the next version.
    if let Some(directory) = std::env::var_os("LEAFBLK_NEW_FIXTURES") {
        let path = Path::new(&directory).join(format!("{layout:?}.pieces"));
        std::fs::write(path, collect(&home.leaf())).unwrap();
    }
    // The identity, the time and with them the checksum differ.
    let neutral = |path: &Path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        for copy in [0, LEN as u64] {
            for (at, len) in [(32, 16), (80, 8), (4092, 4)] {
                file.write_all_at(&[0xff; 16][..len], copy + at).unwrap();
            }
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v1.leaf");
    expand(fixture, &path);
    let fixture = path;
    let sizes = [&home.leaf(), &fixture].map(|path| path.metadata().unwrap().len());
    assert_eq!(sizes[0], sizes[1]);
    let bytes = [&home.leaf(), &fixture].map(|path| {
        let bytes = collect(path);
        neutral(path);
        (bytes.len(), read_places(path))
    });
    assert_eq!(bytes[0].0, bytes[1].0);
    assert!(bytes[0].1 == bytes[1].1, "the format changed: that needs a new version");
}

/// Headers and map, as they are.
fn read_places(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 2 * LEN + map_len_bytes(SIZE) as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

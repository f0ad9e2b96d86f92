//! The header's bytes and which of them refuse a leaf.

use std::os::unix::fs::FileExt;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::header::{HeaderError, LEN, VERSION};
use super::*;

fn any_header() -> impl Strategy<Value = Header> {
    let write_cache =
        prop_oneof![Just(WriteCache::Unknown), Just(WriteCache::On), Just(WriteCache::Off)];
    let flags = (any::<bool>(), any::<bool>(), write_cache);
    let numbers = (flags, any::<u64>(), any::<[u8; 16]>(), any::<u64>(), any::<u64>());
    let root = (any::<u64>(), any::<[u8; 32]>(), "[a-zé]{0,80}", any::<bool>());
    (numbers, 1u64..1 << 40, root).prop_map(
        |(
            ((clean, map_void, write_cache), compatible, uuid, generation, created),
            sectors,
            (len_bytes, fingerprint, name, packed),
        )| {
            let virtual_size = sectors * 512;
            let map_offset = 2 * LEN as u64;
            let map_end = map_offset + map_len_bytes(virtual_size);
            let table_len = if packed { table_len_bytes(virtual_size) } else { 0 };
            Header {
                clean,
                write_cache,
                compatible,
                map_void,
                uuid,
                disk: map_void.then_some([7; 16]),
                generation,
                virtual_size,
                map_offset,
                table_offset: packed.then_some(map_end),
                data_offset: map_end + table_len,
                created,
                root: RootIdentity { len_bytes, fingerprint, name },
            }
        },
    )
}

fn seal(bytes: &mut [u8; LEN]) {
    let crc = crc32c::crc32c(&bytes[..LEN - 4]);
    bytes[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn encoded() -> [u8; LEN] {
    let home = Home::new();
    let mut bytes = [0; LEN];
    File::open(home.leaf()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The refusal of a leaf both of whose headers are `bytes`.
fn refusal_of(bytes: &[u8; LEN]) -> LeafError {
    let home = Home::new();
    let file = File::options().write(true).open(home.leaf()).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.write_all_at(bytes, LEN as u64).unwrap();
    home.refusal(&home.options())
}

proptest! {
    #[test]
    fn a_header_reads_as_it_was_written(header in any_header()) {
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_changed_byte_never_goes_unnoticed(
        header in any_header(),
        changes in vec((0..LEN, 1u8..), 1..4),
    ) {
        let good = header.encode();
        let mut bytes = good;
        for (at, flip) in changes {
            bytes[at] ^= flip;
        }
        if bytes != good {
            let result = Header::decode(&bytes);
            prop_assert!(matches!(result, Err(HeaderError::Magic | HeaderError::Damaged)));
        }
    }

    #[test]
    fn a_sealed_header_of_any_bytes_is_refused_or_makes_sense(
        header in any_header(),
        at in prop_oneof![8..400usize, select_field()],
        field in any::<[u8; 8]>(),
    ) {
        let mut bytes = header.encode();
        bytes[at..at + 8].copy_from_slice(&field);
        seal(&mut bytes);
        if let Ok(header) = Header::decode(&bytes) {
            let map_end = header.map_offset + map_len_bytes(header.virtual_size);
            prop_assert!(header.map_offset >= 2 * LEN as u64 && map_end <= header.data_offset);
            prop_assert!(i64::try_from(header.data_offset + header.virtual_size).is_ok());
            prop_assert!(header.virtual_size > 0 && header.virtual_size % 512 == 0);
        }
    }
}

fn select_field() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![8, 12, 24, 48, 56, 64, 72, 128])
}

#[test]
fn what_a_guest_made_of_its_write_cache_is_in_the_live_map_and_in_the_header_of_a_closed_leaf() {
    let flags = |home: &Home| {
        let mut bytes = [0; 2 * LEN];
        File::open(home.leaf()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        let newest = [0, LEN].into_iter().max_by_key(|at| bytes[at + 48]).unwrap();
        bytes[newest + 12]
    };
    let home = Home::new();
    for (write_cache, closed) in [(WriteCache::On, 1 | 2), (WriteCache::Off, 1 | 4)] {
        let leaf = home.open();
        leaf.set_write_cache(write_cache).unwrap();
        drop(leaf);
        assert_eq!(std::fs::read(home.live_map()).unwrap()[52], write_cache as u8);
        let mut leaf = home.open();
        assert_eq!(leaf.write_cache(), write_cache, "after a kill");
        leaf.reset().unwrap();
        leaf.close().unwrap();
        drop(leaf);
        assert_eq!(flags(&home), closed);
        let leaf = home.open();
        assert_eq!(leaf.write_cache(), write_cache, "after a close");
        assert_eq!(flags(&home), 0, "an open leaf's header doesn't know");
    }
    // A header that says both is no known version's.
    let leaf = home.open();
    leaf.close().unwrap();
    drop(leaf);
    let file = File::options().read(true).write(true).open(home.leaf()).unwrap();
    for at in [0, LEN as u64] {
        let mut bytes = [0; LEN];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes[12] |= 6;
        seal(&mut bytes);
        file.write_all_at(&bytes, at).unwrap();
    }
    assert_eq!(home.open().write_cache(), WriteCache::Unknown);
}

#[test]
fn the_fields_are_where_the_format_says() {
    let bytes = encoded();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(&bytes[..8], b"LEAFBLK\0");
    assert_eq!(number(8), u64::from(VERSION) | 1 << 32, "version 1, clean");
    assert_eq!((number(16), number(24)), (0, 0), "no features");
    assert_eq!(number(48), 1, "the first generation");
    assert_eq!(number(56), SIZE);
    assert_eq!(number(64), 8192, "the map follows the two headers");
    assert_eq!(number(72) % (2 << 20), 0, "data begins at a large page");
    assert_eq!(number(88), 1 << 20);
    assert_eq!(&bytes[96..128], &[1; 32]);
    assert_eq!(&bytes[128..135], b"\x04\0base\0");
    assert!(is_all(&bytes[134..4092], 0));
}

#[test]
fn a_long_root_name_is_cut_between_characters() {
    let mut header = Header::decode(&encoded()).unwrap();
    header.root.name = format!("x{}", "é".repeat(200));
    let read = Header::decode(&header.encode()).unwrap();
    assert_eq!(read.root.name, format!("x{}", "é".repeat(126)));
}

#[test]
fn an_unknown_version_is_refused_by_its_number() {
    let mut bytes = encoded();
    bytes[8] = 2;
    seal(&mut bytes);
    assert_eq!(Header::decode(&bytes), Err(HeaderError::Version(2)));
    assert!(matches!(refusal_of(&bytes), LeafError::Version { version: 2, .. }));
}

#[test]
fn unknown_incompatible_features_refuse_a_leaf_and_compatible_ones_do_not() {
    let mut bytes = encoded();
    bytes[31] = 0x80;
    seal(&mut bytes);
    assert_eq!(Header::decode(&bytes), Err(HeaderError::Features(1 << 63)));
    assert!(matches!(refusal_of(&bytes), LeafError::Features { bits, .. } if bits == 1 << 63));
    let mut bytes = encoded();
    bytes[16..24].fill(0xff);
    seal(&mut bytes);
    assert_eq!(Header::decode(&bytes).unwrap().compatible, u64::MAX);
}

#[test]
fn another_kind_of_file_and_a_damaged_leaf_are_told_apart() {
    let mut bytes = encoded();
    bytes[0] = b'X';
    seal(&mut bytes);
    assert_eq!(Header::decode(&bytes), Err(HeaderError::Magic));
    assert!(matches!(refusal_of(&bytes), LeafError::NotALeaf { .. }));
    let mut bytes = encoded();
    bytes[60] ^= 1;
    assert!(matches!(refusal_of(&bytes), LeafError::Damaged { .. }));
    let home = Home::new();
    for content in ["", "short"] {
        std::fs::write(home.leaf(), content).unwrap();
        assert!(matches!(home.refusal(&home.options()), LeafError::NotALeaf { .. }));
    }
}

#[test]
fn one_good_copy_of_the_header_is_enough() {
    for copy in 0..2 {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, 0, 1, 9).unwrap();
        leaf.close().unwrap();
        drop(leaf);
        let file = File::options().write(true).open(home.leaf()).unwrap();
        file.write_all_at(&[0xff; LEN], copy * LEN as u64).unwrap();
        assert_eq!(home.open().present_sectors(), 1, "without copy {copy}");
    }
}

#[test]
fn generations_grow_and_alternate_between_the_copies() {
    let home = Home::new();
    let generations = || {
        let file = File::open(home.leaf()).unwrap();
        [0, LEN as u64].map(|at| {
            let mut bytes = [0; LEN];
            file.read_exact_at(&mut bytes, at).unwrap();
            let header = Header::decode(&bytes).unwrap();
            (header.generation, header.clean)
        })
    };
    assert_eq!(generations(), [(1, true), (1, true)]);
    let leaf = home.open();
    assert_eq!(generations(), [(2, false), (1, true)]);
    leaf.close().unwrap();
    assert_eq!(generations(), [(2, false), (3, true)]);
    drop(leaf);
    drop(home.open());
    assert_eq!(generations(), [(4, false), (3, true)]);
    drop(home.open());
    assert_eq!(generations(), [(4, false), (3, true)], "taken over, the same run goes on");
}

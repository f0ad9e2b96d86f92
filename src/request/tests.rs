//! Every command in every framing, every refusal, the configuration space.
#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_GET_ID as GET_ID,
    VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT, VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use super::config_space::{ConfigSpace, LEN, WRITEBACK_OFFSET};
use super::*;
use crate::units::{BlockSize, Sector};
use crate::virtqueue::{Chain, GuestBuf};

const LIMITS: Limits = Limits { capacity_sectors: 1000, unit: BlockSize::Sector, read_only: false };
const READ_ONLY: Limits = Limits { read_only: true, ..LIMITS };
const IN_4_KIB: Limits = Limits { unit: BlockSize::FourKib, ..LIMITS };

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xee; 4]); // reserved, once the priority: to be ignored
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn range(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), count).unwrap()
}

/// A request's memory, to be cut into buffers.
struct Memory {
    readable: Vec<u8>,
    writable: Vec<u8>,
}

/// `bytes` as buffers that end at the given places, some of them empty.
fn cut(bytes: &mut [u8], places: &[usize]) -> Vec<GuestBuf> {
    let mut places: Vec<usize> = places.iter().map(|at| at % (bytes.len() + 1)).collect();
    places.push(bytes.len());
    places.sort_unstable();
    let mut from = 0;
    let mut bufs = Vec::new();
    for to in places {
        bufs.push(GuestBuf::new(bytes[from..].as_mut_ptr(), to - from));
        from = to;
    }
    bufs
}

impl Memory {
    fn new(readable: Vec<u8>, writable_len: usize) -> Self {
        Self { readable, writable: vec![0; writable_len] }
    }

    fn chain(&mut self, readable_at: &[usize], writable_at: &[usize]) -> Chain {
        Chain::of(cut(&mut self.readable, readable_at), cut(&mut self.writable, writable_at))
    }

    /// The command, with the usual framing.
    fn command(&mut self, limits: &Limits) -> Result<Command, RequestError> {
        let mut chain = self.chain(&[16], &[self.writable.len().saturating_sub(1)]);
        parse(&mut chain, limits).command
    }
}

fn refusal(readable: Vec<u8>, writable_len: usize, limits: &Limits) -> RequestError {
    Memory::new(readable, writable_len).command(limits).unwrap_err()
}

/// Where the buffers' bytes are, in order, without empty ones.
fn addresses(bufs: &[GuestBuf]) -> Vec<usize> {
    bufs.iter().flat_map(|b| (0..b.len()).map(|i| b.ptr().addr() + i)).collect()
}

fn span(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).map(|i| bytes.as_ptr().addr() + i).collect()
}

proptest! {
    #[test]
    fn a_read_is_understood_in_any_framing(
        sectors in 0usize..4,
        readable_at in vec(any::<usize>(), 0..6),
        writable_at in vec(any::<usize>(), 0..6),
    ) {
        let mut memory = Memory::new(header(IN, 7), sectors * 512 + 1);
        let mut chain = memory.chain(&readable_at, &writable_at);
        let parsed = parse(&mut chain, &LIMITS);
        prop_assert_eq!(parsed.command, Ok(Command::Read(range(7, sectors as u64))));
        prop_assert_eq!(parsed.data_len, sectors as u64 * 512);
        let (data, status) = memory.writable.split_at(sectors * 512);
        prop_assert_eq!(addresses(&chain.writable), span(data));
        prop_assert_eq!(parsed.status.cast_const(), status.as_ptr());
    }

    #[test]
    fn a_write_is_understood_in_any_framing(
        sectors in 0usize..4,
        readable_at in vec(any::<usize>(), 0..6),
        writable_at in vec(any::<usize>(), 0..3),
    ) {
        let mut bytes = header(OUT, 900);
        bytes.resize(16 + sectors * 512, 0xdd);
        let mut memory = Memory::new(bytes, 1);
        let mut chain = memory.chain(&readable_at, &writable_at);
        let parsed = parse(&mut chain, &LIMITS);
        prop_assert_eq!(parsed.command, Ok(Command::Write(range(900, sectors as u64))));
        prop_assert_eq!(parsed.data_len, 0);
        prop_assert_eq!(addresses(&chain.readable), span(&memory.readable[16..]));
        prop_assert_eq!(parsed.status.cast_const(), memory.writable.as_ptr());
    }

    #[test]
    fn discards_and_zeroes_are_understood_in_any_framing(
        segments in vec((0u64..500, 0u32..500), 1..=RANGES_MAX),
        readable_at in vec(any::<usize>(), 0..20),
        zeroes: bool,
        unmap: bool,
    ) {
        let flags = u32::from(zeroes && unmap);
        let mut bytes = header(if zeroes { WRITE_ZEROES } else { DISCARD }, 0);
        for (sector, count) in &segments {
            bytes.extend(segment(*sector, *count, flags));
        }
        let mut memory = Memory::new(bytes, 1);
        let command = parse(&mut memory.chain(&readable_at, &[]), &LIMITS).command.unwrap();
        let found = match &command {
            Command::Discard(ranges) if !zeroes => ranges,
            Command::WriteZeroes(ranges) if zeroes => ranges,
            other => panic!("{other:?}"),
        };
        let expected: Vec<_> = segments
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(sector, count)| range(*sector, u64::from(*count)))
            .collect();
        prop_assert_eq!(found.as_slice(), &expected[..]);
    }

    #[test]
    fn any_bytes_give_a_command_inside_the_disk_or_a_refusal(
        readable in vec(any::<u8>(), 0..400),
        kind in 0u32..20,
        small: bool,
        writable in 0usize..1200,
        places in vec(any::<usize>(), 0..6),
        read_only: bool,
        in_4_kib: bool,
    ) {
        let mut readable = readable;
        if small && readable.len() >= 16 {
            readable[..4].copy_from_slice(&kind.to_le_bytes());
            readable[9..16].fill(0);
        }
        let limits = Limits { read_only, ..if in_4_kib { IN_4_KIB } else { LIMITS } };
        let mut memory = Memory::new(readable, writable);
        let mut chain = memory.chain(&places, &places);
        let parsed = parse(&mut chain, &limits);
        prop_assert_eq!(parsed.status.is_null(), writable == 0);
        let inside = |r: &SectorRange| {
            r.end().0 <= 1000 && limits.unit.divides(r.start().0 | r.count())
        };
        match parsed.command {
            Ok(Command::Read(r)) => prop_assert!(inside(&r) && r.byte_len() == parsed.data_len),
            Ok(Command::Write(r)) => prop_assert!(inside(&r) && !read_only),
            Ok(Command::Discard(r) | Command::WriteZeroes(r)) => {
                prop_assert!(r.as_slice().iter().all(inside) && !read_only);
            }
            Ok(Command::Flush | Command::GetId) => {}
            Err(e) => prop_assert_eq!(e.status().is_none(), writable == 0),
        }
    }
}

#[test]
fn a_chain_without_a_whole_header_is_refused() {
    for len in [0, 1, 15] {
        assert_eq!(refusal(header(IN, 0)[..len].to_vec(), 513, &LIMITS), RequestError::ShortHeader);
    }
}

#[test]
fn a_chain_without_a_place_for_the_status_is_refused_in_silence() {
    let mut memory = Memory::new(header(FLUSH, 0), 0);
    let mut chain = memory.chain(&[], &[]);
    let parsed = parse(&mut chain, &LIMITS);
    assert_eq!(parsed.command, Err(RequestError::NoStatus));
    assert!(parsed.status.is_null());
    assert_eq!(RequestError::NoStatus.status(), None);
    chain.writable.clear();
    assert_eq!(parse(&mut chain, &LIMITS).command, Err(RequestError::NoStatus));
}

#[test]
fn data_that_is_no_whole_number_of_sectors_is_refused() {
    assert_eq!(refusal(header(IN, 0), 512, &LIMITS), RequestError::RaggedData);
    assert_eq!(refusal(header(IN, 0), 514, &LIMITS), RequestError::RaggedData);
    let mut write = header(OUT, 0);
    write.resize(16 + 511, 0);
    assert_eq!(refusal(write, 1, &LIMITS), RequestError::RaggedData);
}

#[test]
fn a_request_past_the_end_or_around_the_number_space_is_refused() {
    let mut last = Memory::new(header(IN, 999), 513);
    assert_eq!(last.command(&LIMITS), Ok(Command::Read(range(999, 1))));
    let mut none = Memory::new(header(IN, 1000), 1);
    assert_eq!(none.command(&LIMITS), Ok(Command::Read(range(1000, 0))), "nothing at the end");
    for sector in [1000, 1001, 1 << 54, 1 << 55, 1 << 63, u64::MAX] {
        assert_eq!(refusal(header(IN, sector), 513, &LIMITS), RequestError::PastEnd, "{sector}");
        let mut write = header(OUT, sector);
        write.resize(16 + 512, 0);
        assert_eq!(refusal(write, 1, &LIMITS), RequestError::PastEnd, "{sector}");
        let mut discard = header(DISCARD, 0);
        discard.extend(segment(sector, 1, 0));
        assert_eq!(refusal(discard, 1, &LIMITS), RequestError::PastEnd, "{sector}");
    }
    assert_eq!(refusal(header(IN, 999), 1025, &LIMITS), RequestError::PastEnd);
    let mut discard = header(DISCARD, 0);
    discard.extend(segment(1, u32::MAX, 0));
    assert_eq!(refusal(discard, 1, &LIMITS), RequestError::PastEnd);
}

#[test]
fn a_read_only_disk_refuses_whatever_changes_it_and_nothing_else() {
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        let mut bytes = header(kind, 0);
        bytes.extend(segment(0, 1, 0));
        assert_eq!(refusal(bytes, 1, &READ_ONLY), RequestError::ReadOnly);
    }
    let mut read = Memory::new(header(IN, 0), 513);
    assert_eq!(read.command(&READ_ONLY), Ok(Command::Read(range(0, 1))));
    assert_eq!(Memory::new(header(FLUSH, 0), 1).command(&READ_ONLY), Ok(Command::Flush));
}

#[test]
fn a_type_that_nobody_defined_is_unsupported() {
    // SCSI commands, lifetime, secure erase, zones, barriers: not offered either.
    let others = [2, 3, 9, 10, 12, 14, 15, 16, 17, 18, 20, 22, 24, 26, 1 << 31, u32::MAX];
    for kind in others.into_iter().chain([IN, OUT, FLUSH].map(|kind| kind | 1 << 31)) {
        let error = refusal(header(kind, 0), 1, &LIMITS);
        assert_eq!(error, RequestError::UnknownType(kind));
        assert_eq!(error.status(), Some(Status::Unsupported));
    }
}

#[test]
fn a_discard_has_one_to_sixteen_whole_segments() {
    for kind in [DISCARD, WRITE_ZEROES] {
        for len in [0, 1, 15, 17, 16 * 17, 16 * 1000] {
            let mut bytes = header(kind, 0);
            bytes.resize(16 + len, 0);
            let error = refusal(bytes, 1, &LIMITS);
            assert_eq!(error, RequestError::BadRanges, "{len} bytes");
            assert_eq!(error.status(), Some(Status::IoError));
        }
    }
}

#[test]
fn a_segment_is_as_long_as_is_advertised_at_most() {
    const MOST: u32 = config_space::DISCARD_SECTORS_MAX;
    let limits = Limits { capacity_sectors: 1 << 40, ..LIMITS };
    for kind in [DISCARD, WRITE_ZEROES] {
        let request = |count| [header(kind, 0), segment(8, count, 0)].concat();
        assert!(Memory::new(request(MOST), 1).command(&limits).is_ok());
        let error = refusal(request(MOST + 1), 1, &limits);
        assert_eq!(error, RequestError::RangeTooLong);
        assert_eq!(error.status(), Some(Status::IoError));
    }
}

#[test]
fn only_write_zeroes_knows_the_unmap_flag_and_nobody_another() {
    for (kind, flags) in [(DISCARD, 1), (DISCARD, 2), (WRITE_ZEROES, 2), (WRITE_ZEROES, 1 << 31)] {
        let mut bytes = header(kind, 0);
        bytes.extend(segment(0, 1, 0));
        bytes.extend(segment(8, 1, flags));
        let error = refusal(bytes, 1, &LIMITS);
        assert_eq!(error, RequestError::BadRangeFlags);
        assert_eq!(error.status(), Some(Status::Unsupported));
    }
}

#[test]
fn an_unknown_flag_counts_more_than_what_else_is_wrong_with_a_segment() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let mut bytes = header(kind, 0);
        bytes.extend(segment(1000, 1, 0));
        assert_eq!(refusal(bytes.clone(), 1, &LIMITS), RequestError::PastEnd);
        bytes.extend(segment(0, 1, 1 << 31));
        assert_eq!(refusal(bytes, 1, &LIMITS), RequestError::BadRangeFlags);
    }
}

#[test]
fn a_flush_is_one_whatever_its_sector_its_data_and_its_name() {
    const FLUSH_OUT: u32 = 5;
    for kind in [FLUSH, FLUSH_OUT] {
        for (readable, writable) in [(16, 1), (16 + 700, 1), (16, 700), (17, 2)] {
            let mut bytes = header(kind, u64::MAX);
            bytes.resize(readable, 0);
            let mut memory = Memory::new(bytes, writable);
            let parsed = parse(&mut memory.chain(&[16], &[5]), &LIMITS);
            assert_eq!((parsed.command, parsed.data_len), (Ok(Command::Flush), 0));
            assert_eq!(parsed.operation, crate::metrics::Operation::Flush);
        }
    }
}

#[test]
fn data_of_the_other_direction_is_not_looked_at() {
    let mut read = header(IN, 7);
    read.resize(16 + 999, 0xee);
    let mut read = Memory::new(read, 513);
    assert_eq!(read.command(&LIMITS), Ok(Command::Read(range(7, 1))));
    let mut write = header(OUT, 7);
    write.resize(16 + 512, 0xee);
    let mut write = Memory::new(write, 1000);
    let parsed = parse(&mut write.chain(&[16], &[3]), &LIMITS);
    assert_eq!((parsed.command, parsed.data_len), (Ok(Command::Write(range(7, 1))), 0));
}

#[test]
fn only_what_the_driver_gets_counts_as_written() {
    let got = |bytes: Vec<u8>, writable: usize| {
        let mut memory = Memory::new(bytes, writable);
        parse(&mut memory.chain(&[16], &[]), &LIMITS).data_len
    };
    assert_eq!(got(header(IN, 0), 1025), 1024);
    assert_eq!(got(header(IN, 0), 1026), 0, "ragged");
    assert_eq!(got(header(IN, 1000), 513), 0, "past the end");
    assert_eq!(
        [0, 1, 19, 20, 21, 512].map(|n| got(header(GET_ID, 0), n + 1)),
        [0, 1, 19, 20, 20, 20]
    );
    assert_eq!(got(header(77, 0), 513), 0, "unknown");
    assert_eq!(got(header(IN, 0)[..15].to_vec(), 513), 0, "no header");
}

#[test]
fn get_id_leaves_the_data_buffers_for_the_name() {
    let mut memory = Memory::new(header(GET_ID, 0), ID_LEN + 1);
    let mut chain = memory.chain(&[3], &[5]);
    let parsed = parse(&mut chain, &READ_ONLY);
    assert_eq!((parsed.command, parsed.data_len), (Ok(Command::GetId), ID_LEN as u64));
    assert_eq!(addresses(&chain.writable), span(&memory.writable[..ID_LEN]));
}

const SPACE: ConfigSpace = ConfigSpace {
    capacity_sectors: 0x1234_5678,
    block_size: BlockSize::Sector,
    queues: 4,
    write_back: true,
};

#[test]
fn the_configuration_space_says_what_the_device_is() {
    let number = |offset, size: u32| {
        let bytes = SPACE.read(offset, size).unwrap();
        bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    // Offsets of struct virtio_blk_config (virtio 1.3, 5.2.4).
    assert_eq!(number(0, 8), 0x1234_5678, "capacity");
    assert_eq!(number(12, 4), 126, "seg_max");
    assert_eq!(number(20, 4), 512, "blk_size");
    assert_eq!(number(24, 1), 3, "physical_block_exp");
    assert_eq!(number(32, 1), 1, "writeback");
    assert_eq!(number(34, 2), 4, "num_queues");
    assert_eq!(number(40, 4), RANGES_MAX as u64, "max_discard_seg");
    assert_eq!(number(52, 4), RANGES_MAX as u64, "max_write_zeroes_seg");
    assert_eq!(number(56, 1), 1, "write_zeroes_may_unmap");
    assert_eq!(SPACE.read(0, LEN as u32).unwrap(), SPACE.to_bytes());
    assert_eq!(SPACE.read(LEN as u32, 0), Some(Vec::new()));
    for (offset, size) in [(0, 257), (256, 1), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX)] {
        assert_eq!(SPACE.read(offset, size), None, "{size} at {offset}");
    }
}

#[test]
fn a_disk_of_4_kib_blocks_says_so_and_its_capacity_stays_in_sectors() {
    let bytes = ConfigSpace { block_size: BlockSize::FourKib, ..SPACE }.to_bytes();
    let mut expected = SPACE.to_bytes();
    // blk_size, and physical_block_exp: one logical block is one physical block.
    expected[20..24].copy_from_slice(&4096u32.to_le_bytes());
    expected[24] = 0;
    assert_eq!(bytes, expected);
    // min_io_size is one logical block, discard_sector_alignment one in sectors.
    assert_eq!((bytes[26], bytes[44]), (1, 8));
}

#[test]
fn a_request_of_half_a_block_is_refused_whatever_it_does() {
    let whole = range(16, 8);
    assert_eq!(Memory::new(header(IN, 16), 4097).command(&IN_4_KIB), Ok(Command::Read(whole)));
    for (sector, sectors) in [(17, 8), (16, 7), (16, 1), (20, 4), ((1 << 40) | 1, 8)] {
        let read = refusal(header(IN, sector), sectors * 512 + 1, &IN_4_KIB);
        let mut write = header(OUT, sector);
        write.resize(16 + sectors * 512, 0);
        let mut errors = vec![read, refusal(write, 1, &IN_4_KIB)];
        for kind in [DISCARD, WRITE_ZEROES] {
            let mut bytes = header(kind, 0);
            bytes.extend(segment(8, 8, 0));
            bytes.extend(segment(sector, sectors as u32, 0));
            errors.push(refusal(bytes, 1, &IN_4_KIB));
        }
        for error in errors {
            assert_eq!(error, RequestError::Misaligned, "{sectors} at {sector}");
            assert_eq!(error.status(), Some(Status::IoError));
        }
    }
}

#[test]
fn who_does_not_know_of_larger_blocks_is_served_in_sectors() {
    use features::{BLK_SIZE, FLUSH, offered, request_unit};
    assert_eq!(request_unit(FLUSH, BlockSize::FourKib), BlockSize::Sector);
    assert_eq!(request_unit(BLK_SIZE, BlockSize::FourKib), BlockSize::FourKib);
    assert_eq!(request_unit(BLK_SIZE, BlockSize::Sector), BlockSize::Sector);
    assert!(offered(true) & offered(false) & BLK_SIZE != 0);
}

#[test]
fn only_the_writeback_byte_can_be_written() {
    assert_eq!(SPACE.write(WRITEBACK_OFFSET as u32, &[0]), Some(false));
    assert_eq!(SPACE.write(WRITEBACK_OFFSET as u32, &[1]), Some(true));
    assert_eq!(SPACE.write(WRITEBACK_OFFSET as u32, &[2]), None, "neither on nor off");
    let mut whole = SPACE.to_bytes();
    whole[WRITEBACK_OFFSET] = 0;
    assert_eq!(SPACE.write(0, &whole), Some(false), "the whole space sent back");
    whole[0] ^= 1;
    assert_eq!(SPACE.write(0, &whole), None, "the capacity is not the driver's");
    assert_eq!(SPACE.write(0, &SPACE.to_bytes()[..32]), None, "writeback is not in it");
    assert_eq!(SPACE.write(33, &[0]), None);
    assert_eq!(SPACE.write(255, &[0, 0]), None);
    assert_eq!(SPACE.write(u32::MAX, &[0]), None);
    assert_eq!(SPACE.write(32, &[]), None);
}

#[test]
fn the_cache_is_write_back_only_for_a_driver_that_can_flush() {
    use features::{CONFIG_WCE, FLUSH, is_write_back};
    assert!(!is_write_back(0, true), "a driver that can't flush gets write-through");
    assert!(is_write_back(FLUSH, false), "without CONFIG_WCE the field means nothing");
    assert!(is_write_back(FLUSH | CONFIG_WCE, true));
    assert!(!is_write_back(FLUSH | CONFIG_WCE, false));
    assert!(!is_write_back(CONFIG_WCE, true), "it can't flush, whatever it says of the field");
}

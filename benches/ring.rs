//! What the ring costs a request, next to virtio-queue on the same memory:
//! a 4 KiB read as Linux sends it (header, data, status), taken off the ring,
//! given back and published. And what parsing it costs.
#![expect(unsafe_code, reason = "plays the driver, on atomics in guest memory")]
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use leafblk::guest_memory::{Account, GuestMemory, RegionSpec};
use leafblk::request::{Limits, parse};
use leafblk::virtqueue::{Chain, GuestBuf, InflightRegion, RegionLayout, RingConfig, SplitQueue};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

const SIZE: u16 = 128;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLE: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;
const LEN: usize = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn desc(file: &File, at: u64, (addr, len): (u64, u32), flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    file.write_all_at(&bytes, at).unwrap();
}

/// A guest's memory whose ring offers the same request at every entry.
fn guest(indirect: bool) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, LEN as u64).unwrap();
    let file = File::from(fd);
    let table = if indirect { TABLE } else { 0 };
    if indirect {
        desc(&file, 0, (TABLE, 48), INDIRECT, 0);
    }
    desc(&file, table, (HEADER, 16), NEXT, 1);
    desc(&file, table + 16, (DATA, 4096), NEXT | WRITE, 2);
    desc(&file, table + 32, (STATUS, 1), WRITE, 0);
    file
}

fn map(file: &File) -> GuestMemory {
    let file = file.try_clone().unwrap();
    let size = LEN as u64;
    let spec = RegionSpec { guest_addr: 0, size, user_addr: 0, mmap_offset: 0, file };
    GuestMemory::map(vec![spec], &Account::new()).unwrap()
}

/// The driver's index.
fn avail_index(memory: &GuestMemory) -> &AtomicU16 {
    let ptr = memory.translate(AVAIL + 2, 2).unwrap().cast();
    // SAFETY: aligned, and mapped as long as `memory` is borrowed.
    unsafe { AtomicU16::from_ptr(ptr) }
}

fn ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    for (layout, indirect) in [("direct", false), ("indirect", true)] {
        let file = guest(indirect);
        let memory = map(&file);
        let config = RingConfig {
            size: SIZE,
            desc_user_addr: 0,
            avail_user_addr: AVAIL,
            used_user_addr: USED,
            event_idx: true,
            next_avail: 0,
        };
        let mut queue = SplitQueue::new(&config, &memory).unwrap();
        let mut chain = Chain::default();
        let avail = avail_index(&memory);
        group.bench_function(format!("leafblk/{layout}"), |b| {
            b.iter(|| {
                avail.store(queue.next_avail().wrapping_add(1), Ordering::Release);
                assert!(queue.pop(&memory, &mut chain).unwrap());
                black_box(&chain);
                queue.add_used(chain.head, 4097);
                black_box(queue.publish())
            });
        });

        // The same with a region in which requests in flight are noted.
        let file = guest(indirect);
        let memory = map(&file);
        let mut queue = SplitQueue::new(&config, &memory).unwrap();
        let region = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        let shape = RegionLayout::new(1, SIZE);
        ftruncate(&region, shape.len_bytes()).unwrap();
        let region = InflightRegion::map(region.into(), 0, shape, &Account::new()).unwrap();
        queue.track(Arc::new(region), 0).unwrap();
        let avail = avail_index(&memory);
        group.bench_function(format!("leafblk, tracked/{layout}"), |b| {
            b.iter(|| {
                avail.store(queue.next_avail().wrapping_add(1), Ordering::Release);
                assert!(queue.pop(&memory, &mut chain).unwrap());
                black_box(&chain);
                queue.add_used(chain.head, 4097);
                black_box(queue.publish())
            });
        });

        let file = guest(indirect);
        let driver = map(&file);
        let avail = avail_index(&driver);
        let ranges = [(GuestAddress(0), LEN, Some(FileOffset::new(file, 0)))];
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        let mut bufs = Vec::new();
        group.bench_function(format!("virtio-queue/{layout}"), |b| {
            b.iter(|| {
                avail.store(queue.next_avail().wrapping_add(1), Ordering::Release);
                let chain = queue.pop_descriptor_chain(&memory).unwrap();
                let head = chain.head_index();
                bufs.clear();
                for desc in chain {
                    let slice = memory.get_slice(desc.addr(), desc.len() as usize).unwrap();
                    bufs.push((slice.ptr_guard_mut().as_ptr(), desc.is_write_only()));
                }
                black_box(&bufs);
                queue.add_used(&memory, head, 4097).unwrap();
                black_box(queue.needs_notification(&memory).unwrap())
            });
        });
    }
    group.finish();
}

fn request(c: &mut Criterion) {
    let mut header = [0u8; 16];
    header[8] = 7;
    let mut data = vec![0u8; 4096];
    let mut status = [0u8];
    let readable = [GuestBuf::new(header.as_mut_ptr(), 16)];
    let writable = [GuestBuf::new(data.as_mut_ptr(), 4096), GuestBuf::new(status.as_mut_ptr(), 1)];
    let limits = Limits { capacity_sectors: 1 << 20, ..Limits::default() };
    let mut chain = Chain::default();
    c.bench_function("request/parse a 4 KiB read", |b| {
        b.iter(|| {
            chain.readable.clear();
            chain.readable.extend_from_slice(&readable);
            chain.writable.clear();
            chain.writable.extend_from_slice(&writable);
            black_box(parse(black_box(&mut chain), &limits))
        });
    });
}

criterion_group!(benches, ring, request);
criterion_main!(benches);

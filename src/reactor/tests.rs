//! Turns of a reactor, one by one, without its thread.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::run::Runner;
use super::{Command, EndOfAll, Mailbox, QueueSetup};
use crate::cache::{Cache, CacheConfig, Hugepages};
use crate::disk::{CachedRoot, Disk};
use crate::guest_memory::{Account, GuestMemory, RegionSpec};
use crate::root::Root;
use crate::virtqueue::RingConfig;

const BLOCK: u32 = 64 << 10;
const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3800;
const DATA: u64 = 0x4000;
const END: u64 = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A guest of one read request: its memory, where file offsets are addresses.
struct Guest {
    memory: File,
}

impl Guest {
    /// Reads 4 KiB from `sector` on.
    fn that_reads(sector: u64) -> Self {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, END).unwrap();
        let guest = Self { memory: File::from(fd) };
        let segments = [(HEADER, 16, NEXT), (DATA, 4096, NEXT | WRITE), (STATUS, 1, WRITE)];
        for (index, (addr, len, flags)) in (0u16..).zip(segments) {
            let entry = DESC + 16 * u64::from(index);
            guest.put(entry, &u64::to_le_bytes(addr));
            guest.put(entry + 8, &u32::to_le_bytes(len));
            guest.put(entry + 12, &flags.to_le_bytes());
            guest.put(entry + 14, &(index + 1).to_le_bytes());
        }
        // VIRTIO_BLK_T_IN is 0.
        guest.put(HEADER + 8, &sector.to_le_bytes());
        guest.put(STATUS, &[0xff]);
        // Chain 0 is the first that is available.
        guest.put(AVAIL + 2, &1u16.to_le_bytes());
        guest
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, addr).unwrap();
    }

    fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, addr).unwrap();
        bytes
    }

    fn map(&self) -> GuestMemory {
        let region = RegionSpec {
            guest_addr: 0,
            size: END,
            user_addr: 0,
            mmap_offset: 0,
            file: self.memory.try_clone().unwrap(),
        };
        GuestMemory::map(vec![region], &Account::new()).unwrap()
    }
}

/// A reactor that serves one VM on a root of `blocks` blocks, each of them full of
/// its number.
fn runner(dir: &Path, blocks: u8, guest: &Guest) -> Runner {
    let path = dir.join("root.raw");
    let bytes: Vec<u8> = (0..blocks).flat_map(|block| vec![block; BLOCK as usize]).collect();
    std::fs::write(&path, bytes).unwrap();
    let root = Root::open("base", &path).unwrap();
    let config = CacheConfig {
        size_bytes: 2 << 20,
        block_bytes: BLOCK,
        hugepages: Hugepages::Off,
        readers_max: 1,
    };
    let (cache, _) = Cache::new(&config).unwrap();
    let blocks = cache.add_root(root.sectors()).unwrap();
    let cached = Arc::new(CachedRoot::new(root, blocks, BLOCK));
    let disk = Arc::new(Disk::new("vm".into(), cached, None, true));
    let mailboxes = Arc::new([Mailbox::new().unwrap()]);
    let mut runner = Runner::new(0, &cache, mailboxes, 0).unwrap();
    let id = ask(&mut runner, |answer| Command::Attach(disk, answer));
    let memory = Arc::new(guest.map());
    ask(&mut runner, |answer| Command::SetMemory(id, memory, answer)).unwrap();
    let setup = Box::new(QueueSetup {
        index: 0,
        ring: RingConfig {
            size: 16,
            desc_user_addr: DESC,
            avail_user_addr: AVAIL,
            used_user_addr: USED,
            event_idx: false,
            indirect: false,
            next_avail: 0,
        },
        kick: None,
        call: None,
        enabled: true,
        inflight: None,
    });
    ask(&mut runner, |answer| Command::Start(id, setup, answer)).unwrap();
    runner
}

fn ask<T>(runner: &mut Runner, command: impl FnOnce(SyncSender<T>) -> Command) -> T {
    let (sender, answer): (_, Receiver<T>) = sync_channel(1);
    runner.command(command(sender));
    answer.try_recv().unwrap()
}

/// Waits until the disk has answered: of what the reactor sleeps on, nothing else
/// comes here.
fn wait(runner: &Runner) {
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&runner.epoll, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "the disk was not asked");
}

#[test]
fn the_disk_is_asked_in_a_devices_own_turn_for_what_its_read_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::that_reads(3 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 4, &guest);
    assert!(runner.serve_device(0));
    // Nothing else of the reactor's turn: it may take long.
    wait(&runner);
    assert_eq!(guest.get(STATUS), [0xff]);
    assert!(runner.reap());
    assert_eq!((guest.get(STATUS), guest.get(DATA)), ([0], [3; 4096]));
}

#[test]
fn a_reactor_that_panics_ends_the_process() {
    const NAME: &str = "reactor::tests::a_reactor_that_panics_ends_the_process";
    const IN_CHILD: &str = "LEAFBLK_TEST_PANICS";
    if std::env::var_os(IN_CHILD).is_some() {
        let reactor = std::thread::spawn(|| {
            let _end = EndOfAll;
            panic!("as a reactor might");
        });
        // Not reached, or the parent sees that this ends well.
        let _ = reactor.join();
        return;
    }
    let child = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
}

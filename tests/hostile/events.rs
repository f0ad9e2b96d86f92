//! Calls and kicks: what is no eventfd, and eventfds that misbehave.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

use crate::common::Client;
use crate::common::frontend::*;
use crate::common::scene::{Log, Scene, root_content};
use crate::loses_its_connection;

/// Any descriptor in an eventfd's clothes.
#[expect(unsafe_code, reason = "EventFd has no safe way in")]
fn disguised(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is owned.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

fn no_eventfds() -> Vec<EventFd> {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    let file = File::from(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let all: [OwnedFd; 5] = [read, write, one.into(), other.into(), file.into()];
    all.into_iter().map(disguised).collect()
}

#[test]
fn a_kick_that_is_no_eventfd_loses_the_connection() {
    for fd in no_eventfds() {
        loses_its_connection("must be an eventfd", |vmm| {
            vmm.share_ram();
            let ring = Ring::new(0, 256);
            vmm.frontend.set_vring_num(0, 256).unwrap();
            vmm.frontend.set_vring_addr(0, &vmm.ring_addresses(&ring)).unwrap();
            assert!(vmm.frontend.set_vring_kick(0, &fd).is_err());
        });
    }
}

#[test]
fn a_call_that_is_no_eventfd_loses_the_connection() {
    for fd in no_eventfds() {
        loses_its_connection("must be an eventfd", |vmm| {
            assert!(vmm.frontend.set_vring_call(0, &fd).is_err());
        });
    }
}

#[test]
fn a_saturated_blocking_call_blocks_nobody() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    vmm.frontend.set_vring_call(0, &full).unwrap();
    vmm.rings[0].call = full;
    for round in 0..100 {
        let header = vmm.header(T_IN, round);
        let table = vmm.rings[0].desc;
        let buffers = [(header, 16, false), (DATA, 512, true), (Vmm::STATUS, 1, true)];
        vmm.describe_chain(table, 0, &buffers);
        vmm.offer(0, 0);
        vmm.kick(0);
        scene.neighbour.goes_on(2);
    }
    // It was made non-blocking, and a call that can be given is heard again.
    vmm.rings[0].call.read().unwrap();
    for _ in 0..100 {
        assert_eq!(vmm.used(0), (0, 513));
    }
    drop(vmm);
    scene.all_is_well();
}

/// Clears O_NONBLOCK, which belongs to the open file: both sides share it.
fn make_blocking(eventfd: &EventFd) {
    #[expect(unsafe_code, reason = "EventFd does not lend itself as a descriptor")]
    // SAFETY: `eventfd` is open as long as it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
    rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::RDWR).unwrap();
}

/// An eventfd to which no write goes through.
fn full() -> EventFd {
    let full = EventFd::new(EFD_NONBLOCK).unwrap();
    full.write(u64::MAX - 1).unwrap();
    full
}

/// Makes an eventfd blocking and full for as long as the value lives, however
/// often the other side makes it non-blocking or empties it.
struct KeptBlocking {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl KeptBlocking {
    fn start(eventfd: &EventFd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (eventfd, stopped) = (eventfd.try_clone().unwrap(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                make_blocking(&eventfd);
                std::thread::yield_now();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for KeptBlocking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn offer_a_read(vmm: &mut Vmm) {
    let header = vmm.header(T_IN, 0);
    let table = vmm.rings[0].desc;
    let buffers = [(header, 16, false), (DATA, 512, true), (Vmm::STATUS, 1, true)];
    vmm.write(Vmm::STATUS, &[NO_STATUS]);
    vmm.describe_chain(table, 0, &buffers);
    vmm.offer(0, 0);
    vmm.kick(0);
}

/// What the log says of a victim whose call waited, or took its time.
const STOPS: [&str; 4] =
    ["VM victim", "its device stops", "made a call wait", "too many wait for it"];

/// Offers a read. True if it is answered, false if the device stops; the frontend is
/// heard after it as before.
fn offer_until_it_stops(vmm: &mut Vmm, log: &mut Log) -> bool {
    offer_a_read(vmm);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if log.has(&STOPS) {
            return false;
        }
        if vmm.used_within(0, Duration::from_millis(100)).is_some() {
            return true;
        }
        assert!(Instant::now() < deadline, "neither an answer nor an end");
    }
}

/// Waits until the victim's queues start again.
fn served_again(scene: &Scene) {
    let deadline = Instant::now() + PATIENCE;
    while Client::try_connect(&scene.victim).is_err() {
        assert!(Instant::now() < deadline, "the victim's queues never start again");
        // Not too often: what a VM may have logged is limited.
        scene.neighbour.goes_on(5000);
    }
}

#[test]
fn a_call_that_is_made_blocking_again_costs_the_neighbour_a_short_pause() {
    type Attack = fn(&mut Vmm, &EventFd, &mut Log);
    let attacks: [Attack; 3] = [
        // At a request's end.
        |vmm, call, _| {
            vmm.frontend.set_vring_call(0, call).unwrap();
            make_blocking(call);
            offer_a_read(vmm);
        },
        // The same, and a queue that stops is called as well.
        |vmm, call, _| {
            vmm.frontend.set_vring_call(0, call).unwrap();
            make_blocking(call);
            offer_a_read(vmm);
            // A queue that stops before it has served anything calls nobody.
            let deadline = Instant::now() + PATIENCE;
            while vmm.read(Vmm::STATUS, 1) == [NO_STATUS] {
                assert!(Instant::now() < deadline, "the device never answers");
                std::thread::yield_now();
            }
            let _ = vmm.frontend.get_vring_base(0);
        },
        // Whenever a call is set, which is called at once: between the check
        // and the call there is time to clear the flag.
        |vmm, call, log| {
            let _kept = KeptBlocking::start(call);
            let deadline = Instant::now() + PATIENCE;
            while vmm.frontend.set_vring_call(0, call).is_ok() && offer_until_it_stops(vmm, log) {
                assert!(Instant::now() < deadline, "no call ever waits");
            }
        },
    ];
    let mut scene = Scene::new();
    for attack in attacks {
        served_again(&scene);
        let mut vmm = Vmm::running(&scene.victim);
        let call = full();
        attack(&mut vmm, &call, &mut scene.log);
        scene.log.wait_for(&STOPS);
        scene.neighbour.goes_on(1000);
        // No queue may start for a while, so that the pauses don't add up.
        drop(vmm);
        let mut again = Vmm::negotiated(&scene.victim, VERSION_1);
        again.share_ram();
        assert!(again.try_start_ring(Ring::new(0, 256)).is_err());
        scene.log.wait_for(&["VM victim", "disconnected its frontend", "may start again in"]);
    }
    // Two ticks of the watchdog are 50 ms; the rest is for a loaded machine.
    let longest = scene.neighbour.longest();
    assert!(longest < Duration::from_secs(5), "the neighbour waited {longest:?}");
    served_again(&scene);
    scene.all_is_well();
}

/// Epoll sets in which an eventfd is so often that a write to it takes some 10 ms.
fn many_who_wait(eventfd: &EventFd) -> (Vec<OwnedFd>, Vec<EventFd>) {
    use rustix::event::epoll;
    let copies: Vec<_> = (0..1000).map(|_| eventfd.try_clone().unwrap()).collect();
    let set = || {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for copy in &copies {
            #[expect(unsafe_code, reason = "EventFd does not lend itself as a descriptor")]
            // SAFETY: the copy is open as long as it is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(copy.as_raw_fd()) };
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&set, fd, epoll::EventData::new_u64(0), flags).unwrap();
        }
        set
    };
    ((0..200).map(|_| set()).collect(), copies)
}

#[test]
fn a_call_that_very_many_wait_for_ends_the_device() {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let waiting = many_who_wait(&vmm.rings[0].call);
    let mut reads = 0..100;
    while reads.next().is_some() && offer_until_it_stops(&mut vmm, &mut scene.log) {}
    scene.log.wait_for(&STOPS);
    drop((vmm, waiting));
    let mut again = Vmm::negotiated(&scene.victim, VERSION_1);
    again.share_ram();
    assert!(again.try_start_ring(Ring::new(0, 256)).is_err());
    scene.log.wait_for(&["VM victim", "disconnected its frontend", "may start again in"]);
    drop(again);
    served_again(&scene);
    scene.all_is_well();
}

#[test]
fn calls_and_kicks_that_count_as_semaphores_work() {
    let scene = Scene::new();
    let mut vmm = Vmm::negotiated(&scene.victim, VERSION_1 | EVENT_IDX | INDIRECT);
    vmm.share_ram();
    let mut ring = Ring::new(0, 256);
    ring.kick = EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE).unwrap();
    ring.call = EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE).unwrap();
    vmm.start_ring(ring);
    for sector in 0..100 {
        assert!(vmm.read_sectors(sector, 1) == root_content(sector, 1));
    }
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn a_flood_of_kicks_harms_nobody() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let kick = vmm.rings[0].kick.try_clone().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let flood = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            // It fills up in no time that a test has; reading makes more edges.
            let _ = kick.write(u64::MAX / 4);
            let _ = kick.read();
        }
    });
    scene.neighbour.goes_on(500);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn a_kick_that_is_full_and_blocking_harms_nobody() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let kick = full();
    vmm.frontend.set_vring_kick(0, &kick).unwrap();
    make_blocking(&kick);
    vmm.frontend.set_vring_enable(0, true).unwrap();
    scene.neighbour.goes_on(100);
    // A real one, and the queue goes on where it stood.
    vmm.frontend.set_vring_kick(0, &vmm.rings[0].kick).unwrap();
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn one_eventfd_as_kick_and_as_call_harms_nobody() {
    let scene = Scene::new();
    let mut vmm = Vmm::negotiated(&scene.victim, VERSION_1);
    vmm.share_ram();
    let mut ring = Ring::new(0, 256);
    ring.call = ring.kick.try_clone().unwrap();
    vmm.start_ring(ring);
    // The driver must not read it, or it takes away its own kicks: each call
    // kicks, and finds nothing.
    offer_a_read(&mut vmm);
    let deadline = Instant::now() + PATIENCE;
    while vmm.read(Vmm::STATUS, 1) != [OK] {
        assert!(Instant::now() < deadline, "the device never answers");
        std::thread::yield_now();
    }
    scene.neighbour.goes_on(100);
    drop(vmm);
    scene.all_is_well();
}

//! The process dies between any two stores; the next one must take up exactly
//! what the driver still waits for, in the order in which it was offered.

use std::cell::RefCell;
use std::sync::Arc;

use super::super::inflight::Tracker;
use super::*;
use crate::guest_memory::Account;

type Hook = Box<dyn FnMut()>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Called between the stores whose order matters.
pub(in crate::virtqueue) fn crash_point() {
    HOOK.with_borrow_mut(|hook| {
        if let Some(hook) = hook {
            hook();
        }
    });
}

/// Lets `hook` see memory at each of the crash points in `act`.
fn watched<T>(hook: impl FnMut() + 'static, act: impl FnOnce() -> T) -> T {
    HOOK.set(Some(Box::new(hook)));
    let result = act();
    HOOK.set(None);
    result
}

/// What the device has written: the used ring and the inflight region.
#[derive(Clone)]
struct Memory {
    used: Vec<u8>,
    region: [Vec<u8>; 2],
}

/// Bytes of a region without extensions, for two queues.
fn parts_of(states: u16) -> u64 {
    RegionLayout::new(2, states).part_offset(2)
}

/// A driver, a ring, and a region that outlive any device.
struct World {
    rig: Rig,
    region: File,
    layout: RegionLayout,
    /// Of a part of the region.
    states: u16,
    queue: u16,
    /// Heads in the order in which they were offered; `None` once used.
    offered: Vec<Option<u16>>,
    /// Used entries that the driver has seen.
    collected: u16,
    free: Vec<u16>,
}

impl World {
    /// With a region for just this ring.
    fn new(size: u16) -> Self {
        let parts = parts_of(size);
        let layout = RegionLayout::of_len(parts, 2, size).unwrap();
        assert_eq!(layout.len_bytes(), parts, "without extensions");
        Self::with_region(size, size, layout)
    }

    /// With one that was made for queues of `states` entries.
    fn with_states(size: u16, states: u16) -> Self {
        Self::with_region(size, states, RegionLayout::new(2, states))
    }

    fn with_region(size: u16, states: u16, layout: RegionLayout) -> Self {
        let rig = Rig::new(size);
        for head in 0..size {
            rig.desc(DESC, head, (DATA, 512), 0, 0);
        }
        let region = File::from(memfd_create("region", MemfdFlags::CLOEXEC).unwrap());
        let queue = 1;
        ftruncate(&region, layout.len_bytes()).unwrap();
        Self {
            rig,
            region,
            layout,
            states,
            queue,
            offered: Vec::new(),
            collected: 0,
            free: (0..size).rev().collect(),
        }
    }

    fn region(&self) -> Arc<InflightRegion> {
        let file = self.region.try_clone().unwrap();
        Arc::new(InflightRegion::map(file, 0, self.layout, &Account::new()).unwrap())
    }

    /// A new process's device.
    fn device(&self) -> Result<SplitQueue, QueueError> {
        let mut queue = self.rig.queue();
        queue.track(self.region(), self.queue)?;
        Ok(queue)
    }

    /// The device's memory now.
    fn memory(&self) -> Memory {
        self.observer()()
    }

    /// Whoever calls it gets the device's memory as it is then. Of the queue's
    /// extension only as many states as the ring has.
    fn observer(&self) -> impl Fn() -> Memory + 'static {
        let (rig, region) = (self.rig.file.try_clone().unwrap(), self.region.try_clone().unwrap());
        let used_len = 6 + 8 * usize::from(self.rig.config.size);
        let places = self.places();
        move || {
            let mut used = vec![0; used_len];
            rig.read_exact_at(&mut used, USED).unwrap();
            let region = places.map(|(at, len)| {
                let mut bytes = vec![0; len];
                region.read_exact_at(&mut bytes, at).unwrap();
                bytes
            });
            Memory { used, region }
        }
    }

    /// Where in the region something is written: in the parts, and in the extension.
    fn places(&self) -> [(u64, usize); 2] {
        let more = 16 * usize::from(self.rig.config.size.saturating_sub(self.states));
        let parts = self.layout.part_offset(2) as usize;
        [(0, parts), (self.layout.extension_offset(self.queue), more)]
    }

    fn restore(&self, memory: &Memory) {
        self.rig.put(USED, &memory.used);
        for ((at, _), bytes) in self.places().iter().zip(&memory.region) {
            self.region.write_all_at(bytes, *at).unwrap();
        }
    }

    fn offer(&mut self, count: usize) {
        let start = self.offered.len() as u16;
        let count = count.min(self.free.len());
        let heads = self.free.split_off(self.free.len() - count);
        self.rig.offer(start, &heads);
        self.offered.extend(heads.into_iter().map(Some));
    }

    /// The driver takes what is shown as used.
    fn collect(&mut self) {
        let size = self.rig.config.size;
        let shown = self.rig.get16(USED + 2);
        while self.collected != shown {
            let entry = u64::from(self.collected % size);
            let head = self.rig.get32(USED + 4 + 8 * entry) as u16;
            let place = self.offered.iter_mut().find(|offered| **offered == Some(head));
            *place.expect("a chain comes back once") = None;
            self.free.push(head);
            self.collected = self.collected.wrapping_add(1);
        }
    }

    fn outstanding(&self) -> Vec<u16> {
        self.offered.iter().copied().flatten().collect()
    }

    /// All that a device pops now.
    fn pops(&self, device: &mut SplitQueue) -> Vec<u16> {
        let mut heads = Vec::new();
        let mut chain = Chain::default();
        while device.pop(&self.rig.memory, &mut chain).unwrap() {
            heads.push(chain.head);
        }
        heads
    }

    /// Runs `act` and returns what a crash at each of its points leaves behind.
    fn crashes<T>(&self, act: impl FnOnce() -> T) -> (T, Vec<Memory>) {
        let observe = self.observer();
        let seen = std::rc::Rc::new(RefCell::new(vec![observe()]));
        let result = {
            let seen = std::rc::Rc::clone(&seen);
            watched(move || seen.borrow_mut().push(observe()), act)
        };
        let mut seen = seen.take();
        seen.push(self.memory());
        (result, seen)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offer(usize),
    Pop(usize),
    /// Complete this many, chosen by the indices, then show them.
    Complete(Vec<prop::sample::Index>),
    Collect,
    /// Die in the middle of the step before; the driver takes what was shown
    /// and offers this many more while nobody serves it.
    Crash(prop::sample::Index, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1usize..6).prop_map(Step::Offer),
        (1usize..6).prop_map(Step::Pop),
        vec(any::<prop::sample::Index>(), 1..5).prop_map(Step::Complete),
        Just(Step::Collect),
        (any::<prop::sample::Index>(), 0usize..4).prop_map(|(at, more)| Step::Crash(at, more)),
    ];
    vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_crash_between_any_two_stores_loses_no_request_and_repeats_none_that_was_shown(
        size in select(vec![2u16, 4, 8]),
        // As many as the ring has entries, or fewer.
        states in select(vec![u16::MAX, u16::MAX, 1, 3]),
        steps in steps(),
    ) {
        let mut world = match states {
            u16::MAX => World::new(size),
            states => World::with_states(size, states),
        };
        let mut device = world.device().unwrap();
        let mut held: Vec<u16> = Vec::new();
        let mut before = Vec::new();
        for step in steps {
            let mut left = Vec::new();
            match step {
                Step::Offer(count) => world.offer(count),
                Step::Collect => world.collect(),
                Step::Pop(count) => {
                    let memory = &world.rig.memory;
                    let (popped, crashes) = world.crashes(|| {
                        let mut chain = Chain::default();
                        let mut popped = Vec::new();
                        while popped.len() < count && device.pop(memory, &mut chain).unwrap() {
                            popped.push(chain.head);
                        }
                        popped
                    });
                    held.extend(popped);
                    left = crashes;
                }
                Step::Complete(choices) => {
                    let ((), crashes) = world.crashes(|| {
                        for choice in &choices {
                            if !held.is_empty() {
                                let head = held.remove(choice.index(held.len()));
                                device.add_used(head, 512);
                            }
                        }
                        device.publish();
                    });
                    left = crashes;
                }
                Step::Crash(at, more) => {
                    let memory: Option<&Memory> =
                        (!before.is_empty()).then(|| &before[at.index(before.len())]);
                    if let Some(memory) = memory {
                        world.restore(memory);
                    }
                    world.collect();
                    world.offer(more);
                    device = world.device().unwrap();
                    held.clear();
                }
            }
            // A crash at any of these points.
            let now = world.memory();
            for memory in &left {
                world.restore(memory);
                // The driver sees what was shown, in a copy of its books.
                let books = (world.offered.clone(), world.collected, world.free.clone());
                world.collect();
                let (recovered, again) = world.crashes(|| world.device().unwrap());
                let mut recovered = recovered;
                prop_assert_eq!(world.pops(&mut recovered), world.outstanding());
                // And one more while the first is being recovered from.
                for memory in again {
                    world.restore(&memory);
                    let mut recovered = world.device().unwrap();
                    prop_assert_eq!(world.pops(&mut recovered), world.outstanding());
                }
                (world.offered, world.collected, world.free) = books;
            }
            world.restore(&now);
            before = left;
        }
    }

    #[test]
    fn whatever_is_in_a_region_recovery_ends_and_stays_inside(
        bytes in vec(any::<u8>(), 2 * 192),
        version in select(vec![0u16, 1, 1, 1, 2]),
        states in select(vec![8u16, 8, 8, 7, u16::MAX]),
        used in any::<u16>(),
        size in select(vec![8u16, 16]),
        more in vec![any::<u8>(); 8 * 16],
    ) {
        // A ring of 16 has half of its states in the extension.
        let mut world = if size == 8 { World::new(8) } else { World::with_states(16, 8) };
        world.queue = 0;
        let extension = world.layout.extension_offset(0);
        if size == 16 {
            world.region.write_all_at(&more, extension).unwrap();
        }
        world.region.write_all_at(&bytes, 0).unwrap();
        world.region.write_all_at(&version.to_ne_bytes(), 8).unwrap();
        world.region.write_all_at(&states.to_ne_bytes(), 10).unwrap();
        world.rig.put16(USED + 2, used);
        if let Ok(mut device) = world.device() {
            let mut chain = Chain::default();
            for _ in 0..40 {
                match device.pop(&world.rig.memory, &mut chain) {
                    Ok(true) => device.add_used(chain.head, 0),
                    Ok(false) | Err(_) => break,
                }
                device.publish();
            }
        }
        // The other queue's part is untouched.
        let mut after = vec![0; bytes.len()];
        world.region.read_exact_at(&mut after, 0).unwrap();
        prop_assert_eq!(&after[192..], &bytes[192..]);
        let mut beyond = vec![0; (world.layout.len_bytes() - extension) as usize];
        world.region.read_exact_at(&mut beyond, extension).unwrap();
        prop_assert!(beyond.iter().skip(8 * 16).all(|byte| *byte == 0));
    }
}

fn in_flight(world: &World, heads: &[(u16, u64)]) {
    let part = world.layout.part_offset(1);
    for (head, order) in heads {
        let state = part + 16 + 16 * u64::from(*head);
        world.region.write_all_at(&[1], state).unwrap();
        world.region.write_all_at(&order.to_ne_bytes(), state + 8).unwrap();
    }
}

#[test]
fn a_used_index_that_was_not_0_at_the_first_start_costs_no_request() {
    // libvhost-user's way to note nothing at first lets head 0 go here.
    let mut world = World::new(4);
    world.rig.put16(USED + 2, 7);
    world.rig.config.next_avail = 7;
    world.rig.offer(7, &[0]);
    let mut device = world.device().unwrap();
    assert_eq!(world.pops(&mut device), [0]);
    let mut next = world.device().unwrap();
    assert_eq!(world.pops(&mut next), [0], "head 0 is resubmitted");
    assert_eq!(next.next_avail(), 8);
}

#[test]
fn what_the_frontend_says_of_the_index_does_not_count_when_a_region_knows_better() {
    let mut world = World::new(4);
    world.offer(3);
    let mut device = world.device().unwrap();
    assert_eq!(world.pops(&mut device).len(), 3);
    for base in [0, 3, 77] {
        world.rig.config.next_avail = base;
        let mut next = world.device().unwrap();
        assert_eq!(next.next_avail(), 3);
        assert_eq!(world.pops(&mut next), world.outstanding());
    }
}

#[test]
fn a_ring_that_begins_anew_takes_the_region_of_the_old_one_if_nothing_is_in_flight() {
    let mut world = World::new(4);
    for _ in 0..3 {
        world.offer(4);
        let mut device = world.device().unwrap();
        for head in world.pops(&mut device) {
            device.add_used(head, 0);
        }
        device.publish();
        world.collect();
    }
    // The driver's reset: all indices are 0.
    world.rig.put(USED, &[0; 40]);
    world.rig.put16(AVAIL + 2, 0);
    world.offered.clear();
    world.collected = 0;
    world.offer(2);
    let mut device = world.device().unwrap();
    assert_eq!(world.pops(&mut device), world.outstanding());
}

#[test]
fn a_region_that_is_not_the_queues_is_refused() {
    let refused = |change: &dyn Fn(&mut World)| {
        let mut world = World::new(4);
        drop(world.device().unwrap());
        change(&mut world);
        world.device().unwrap_err().to_string()
    };
    let part = World::new(4).layout.part_offset(1);
    let put = |at: u64, value: u16| {
        move |world: &mut World| world.region.write_all_at(&value.to_ne_bytes(), part + at).unwrap()
    };
    assert!(refused(&put(8, 2)).contains("version"));
    assert!(refused(&put(10, 5)).contains("number of states"));
    assert!(refused(&|world| world.queue = 2).contains("no part"));
    // One chain was shown as used, and the list names one beyond the end.
    let beyond = refused(&|world| {
        world.rig.put16(USED + 2, 1);
        put(12, 4)(world);
    });
    assert!(beyond.contains("does not exist"), "{beyond}");
    let elsewhere = refused(&|world| {
        world.rig.put16(USED + 2, 5);
        in_flight(world, &[(1, 0)]);
    });
    assert!(elsewhere.contains("used ring"), "{elsewhere}");
}

#[test]
fn a_list_of_used_chains_that_loops_ends() {
    let world = World::new(4);
    drop(world.device().unwrap());
    world.rig.put16(USED + 2, 4);
    in_flight(&world, &[(0, 3), (2, 5)]);
    // The list begins at 0, whose next is 0.
    let mut device = world.device().unwrap();
    world.rig.put16(AVAIL + 2, 5);
    assert_eq!(world.pops(&mut device), [2]);
}

#[test]
fn a_region_has_the_longest_rings_states_whatever_the_frontend_asks_for() {
    for (queues, size) in [(1, 128), (64, 128), (3, 1), (2, 1000), (5, 1023)] {
        let made = RegionLayout::new(queues, size);
        let last = made.extension_offset(queues - 1) + 16 * u64::from(STATES_MAX - size);
        assert!(last <= made.len_bytes(), "{queues} queues of {size}");
        let handed_back = RegionLayout::of_len(made.len_bytes(), queues, size).unwrap();
        assert_eq!(handed_back.len_bytes(), made.len_bytes());
        // One that an older leafblk made, whose parts were where they are now.
        let older = RegionLayout::of_len(made.len_bytes() - 1, queues, size).unwrap();
        assert_eq!(older.len_bytes(), made.part_offset(queues));
        assert!(RegionLayout::of_len(older.len_bytes() - 1, queues, size).is_none());
    }
    let longest = RegionLayout::new(4, STATES_MAX);
    assert_eq!(longest.len_bytes(), longest.part_offset(4), "no extension");
}

#[test]
fn requests_beyond_the_states_that_the_frontend_asked_for_are_taken_up_too() {
    // As under QEMU's virtio-mmio, whose ring is longer than its `queue-size`.
    let mut world = World::with_states(1024, 128);
    world.offer(1024);
    let mut device = world.device().unwrap();
    let popped = world.pops(&mut device);
    assert_eq!(popped.len(), 1024);
    for head in popped.iter().filter(|head| *head % 3 != 0) {
        device.add_used(*head, 512);
        device.publish();
    }
    world.collect();
    let mut next = world.device().unwrap();
    assert_eq!(world.pops(&mut next), world.outstanding());
    assert_eq!(world.outstanding().len(), 342);
}

#[test]
fn a_ring_that_is_longer_than_its_region_is_refused_with_what_helps() {
    let mut world = World::new(256);
    world.layout = RegionLayout::of_len(parts_of(128), 2, 128).unwrap();
    let error = world.device().unwrap_err();
    assert_eq!(error, QueueError::InflightTooShort { states: 128, size: 256 });
    assert!(error.to_string().contains("reset the guest, or start the VM with queue-size=256"));
    // With an extension, only what is longer than any ring.
    world.layout = RegionLayout::new(2, 128);
    ftruncate(&world.region, world.layout.len_bytes()).unwrap();
    world.rig.config.size = 2048;
    let error = Tracker::new(world.region(), 0, 2048, 0).unwrap_err();
    assert_eq!(error, QueueError::InflightTooShort { states: 1024, size: 2048 });
}

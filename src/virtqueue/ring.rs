//! The ring itself: indices, used entries, notification. Descriptors are walked in
//! [`walk`].
#![expect(unsafe_code, reason = "raw access to rings in guest memory, checked when they are set")]

mod place;
mod walk;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use super::inflight::{Tracker, crash_point};
use super::{Chain, InflightRegion, QueueError};
use crate::guest_memory::GuestMemory;
use crate::prefetch;
pub use place::Ring;
use walk::{DESC_LEN, Descriptor, Table};

/// The largest queue (virtio 1.3, 2.7: "Queue Size … maximum 32768").
pub const QUEUE_SIZE_MAX: u16 = 32768;

const AVAIL_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Where a ring is and how it is spoken to.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingConfig {
    /// Entries; a power of two.
    pub size: u16,
    /// Descriptor table, in the frontend's address space, as all three.
    pub desc_user_addr: u64,
    /// Driver area.
    pub avail_user_addr: u64,
    /// Device area.
    pub used_user_addr: u64,
    /// VIRTIO_F_EVENT_IDX (RING_EVENT_IDX) was negotiated.
    pub event_idx: bool,
    /// The index of the next entry that the device takes.
    pub next_avail: u16,
}

/// One split virtqueue, device side. Valid as long as the memory that it was
/// made with stays mapped: its owner keeps that.
#[derive(Debug)]
pub struct SplitQueue {
    config: RingConfig,
    desc: *const Descriptor,
    avail: *mut u16,
    used: *mut u16,
    mask: u16,
    next_avail: u16,
    /// The driver's index as last loaded: a batch needs one load.
    avail_seen: u16,
    next_used: u16,
    /// Chains taken and not given back.
    in_hand: u16,
    /// `next_used` at the last publication.
    published: u16,
    /// Where requests in flight are noted, if the frontend keeps a region.
    tracking: Option<Tracking>,
    /// Chains that an earlier backend popped, the next one last. Only filled
    /// while `avail_seen` is `next_avail`, so that a batch needn't look.
    resubmit: Vec<u16>,
    /// Nothing else is taken any more.
    closed: bool,
    /// Chains with a buffer outside memory are not taken, whatever buffer it is.
    patient: bool,
    likely: Likely,
}

/// Where the last chain was read: its first descriptor, the table of its buffers,
/// its first buffer. A driver that has few requests at a time takes for the next
/// one what it got back last. Addresses for hints, not to be read from.
#[derive(Clone, Copy, Debug)]
struct Likely([*const u8; 3]);

impl Likely {
    const NOTHING: Self = Self([std::ptr::null(); 3]);

    /// Asks the CPU for all at once, where each would be known only by the one
    /// before it.
    #[inline]
    fn fetch(self) {
        self.0.into_iter().for_each(prefetch::line);
    }
}

/// A tracker, and the heads given back since the last publication: a list of
/// our own, since the used ring is the guest's to write.
#[derive(Debug)]
struct Tracking {
    tracker: Tracker,
    batch: Box<[u16]>,
}

// SAFETY: the pointers lead to guest memory, which is no thread's property (see
// `GuestMemory`); one reactor at a time owns a queue.
unsafe impl Send for SplitQueue {}

impl SplitQueue {
    /// The queue that `config` describes, its three parts checked to lie in
    /// `memory`. Used entries go on where the device area's index stands.
    ///
    /// # Errors
    /// [`QueueError::BadSize`], [`QueueError::RingOutside`].
    pub fn new(config: &RingConfig, memory: &GuestMemory) -> Result<Self, QueueError> {
        let size = config.size;
        if size == 0 || size > QUEUE_SIZE_MAX || !size.is_power_of_two() {
            return Err(QueueError::BadSize(u32::from(size)));
        }
        let mut queue = Self {
            config: *config,
            desc: std::ptr::null(),
            avail: std::ptr::null_mut(),
            used: std::ptr::null_mut(),
            mask: size - 1,
            next_avail: config.next_avail,
            avail_seen: config.next_avail,
            next_used: 0,
            in_hand: 0,
            published: 0,
            tracking: None,
            resubmit: Vec::new(),
            closed: false,
            patient: false,
            likely: Likely::NOTHING,
        };
        queue.find(memory)?;
        queue.next_used = u16::from_le(queue.used_index().load(Ordering::Relaxed));
        queue.published = queue.next_used;
        Ok(queue)
    }

    /// Notes from now on in `region`, as its queue number `index`, what is in
    /// flight; and goes on where an earlier backend stopped: how many chains
    /// are popped once more, or `None` where the region is new. To be called
    /// before the first [`Self::pop`].
    ///
    /// # Errors
    /// [`QueueError::Inflight`].
    pub fn track(
        &mut self,
        region: Arc<InflightRegion>,
        index: u16,
    ) -> Result<Option<u16>, QueueError> {
        let size = self.config.size;
        let (tracker, recovered) = Tracker::new(region, index, size, self.next_used)?;
        let batch = vec![0; usize::from(size)].into();
        self.tracking = Some(Tracking { tracker, batch });
        Ok(recovered.map(|recovered| {
            // What the frontend says of the index is not as good: QEMU takes the
            // used index after a crash, Cloud Hypervisor the driver's.
            let again = recovered.next_avail.wrapping_sub(self.next_used);
            self.next_avail = recovered.next_avail;
            self.avail_seen = recovered.next_avail;
            self.resubmit = recovered.heads;
            again
        }))
    }

    /// Finds the ring in a memory table.
    ///
    /// # Errors
    /// [`QueueError::RingOutside`]; the queue must not be used then.
    fn find(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        let size = u64::from(self.config.size);
        let find = |addr: u64, len: u64, align: u64| {
            let host = memory
                .translate_user(addr, len)
                .filter(|p| (p.addr() as u64).is_multiple_of(align));
            host.ok_or(QueueError::RingOutside(addr))
        };
        // Both rings end in an event index of 2 bytes, also without EVENT_IDX.
        self.desc = find(self.config.desc_user_addr, DESC_LEN * size, 16)?.cast();
        self.avail = find(self.config.avail_user_addr, 6 + 2 * size, 2)?.cast();
        self.used = find(self.config.used_user_addr, 6 + 8 * size, 4)?.cast();
        Ok(())
    }

    /// The index of the next entry to take: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    #[inline]
    fn word(&self, base: *mut u16, index: usize) -> &AtomicU16 {
        // SAFETY: `index` is at most the ring's last word, checked to lie in
        // memory by `find`, aligned to 2. The queue's own access to it is
        // atomic; others write there too, the driver and, where a guest lays a
        // buffer over its ring, this process's copies: any value may be read
        // (see `GuestMemory`), and none is trusted.
        unsafe { AtomicU16::from_ptr(base.wrapping_add(index)) }
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        self.word(self.used, 1)
    }

    #[inline]
    fn load_avail(&self) -> u16 {
        // Acquire: the entries behind the index are read after it.
        u16::from_le(self.word(self.avail, 1).load(Ordering::Acquire))
    }

    /// Whether the driver has put something there that was not yet taken.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.avail_seen != self.next_avail
            || !self.resubmit.is_empty()
            || (!self.closed && self.load_avail() != self.next_avail)
    }

    /// Takes no more of what the driver offers. What an earlier backend popped is
    /// behind [`Self::next_avail`], and still there to be taken.
    pub fn close(&mut self) {
        (self.closed, self.avail_seen) = (true, self.next_avail);
    }

    /// Whether a chain with a buffer outside memory is left where it is, since that
    /// memory is expected.
    fn set_patient(&mut self, patient: bool) {
        self.patient = patient;
    }

    /// Asks the CPU for the first descriptors of up to `most` chains that can be
    /// taken: the driver wrote them on another CPU.
    #[inline]
    pub fn fetch_descriptors(&self, most: u16) {
        self.likely.fetch();
        let ready = self.load_avail().wrapping_sub(self.next_avail);
        for ahead in 0..ready.min(most) {
            let entry = usize::from(self.next_avail.wrapping_add(ahead) & self.mask);
            let head = u16::from_le(self.word(self.avail, 2 + entry).load(Ordering::Relaxed));
            prefetch::line(self.desc.wrapping_add(usize::from(head)).cast());
        }
    }

    /// Takes the next chain into `chain`; false where there is none.
    ///
    /// # Errors
    /// Any [`QueueError`] but the set-up ones. The queue is broken then, unless the
    /// error [`is_about_memory`](QueueError::is_about_memory): then nothing was taken.
    #[inline]
    pub fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.avail_seen == self.next_avail {
            if let Some(head) = self.resubmit.last() {
                // It is noted as in flight, and keeps its place in the order.
                self.walk(*head, memory, chain)?;
                self.resubmit.pop();
                self.in_hand = self.in_hand.wrapping_add(1);
                return Ok(true);
            }
            let avail = self.load_avail();
            if self.closed || avail == self.next_avail {
                return Ok(false);
            }
            let ahead = avail.wrapping_sub(self.next_avail);
            if ahead > self.config.size {
                return Err(QueueError::BadAvailIndex { avail, seen: self.next_avail });
            }
            // What is kept of a request is bounded by this, not by the driver.
            if ahead > self.config.size.saturating_sub(self.in_hand) {
                return Err(QueueError::TooManyInHand { in_hand: self.in_hand, ahead });
            }
            self.avail_seen = avail;
        }
        let entry = usize::from(self.next_avail & self.mask);
        let head = u16::from_le(self.word(self.avail, 2 + entry).load(Ordering::Relaxed));
        let table = self.walk(head, memory, chain)?;
        let header = chain.readable.first().map_or(std::ptr::null(), |buf| buf.ptr().cast_const());
        let first = self.desc.wrapping_add(usize::from(head));
        self.likely = Likely([first.cast(), table.cast(), header]);
        if let Some(tracking) = &mut self.tracking {
            tracking.tracker.popped(head);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_hand = self.in_hand.wrapping_add(1);
        Ok(true)
    }

    #[inline]
    fn walk(
        &self,
        head: u16,
        memory: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<*const Descriptor, QueueError> {
        let table = walk::walk(Table::of_ring(self.desc, self.config.size), head, memory, chain)?;
        match chain.outside() {
            Some(addr) if self.patient => Err(QueueError::BufferOutside(addr)),
            _ => Ok(table),
        }
    }

    /// Gives a chain back with `len` bytes written. The driver sees it after
    /// the next [`Self::publish`].
    #[inline]
    pub fn add_used(&mut self, head: u16, len: u32) {
        let entry = usize::from(self.next_used & self.mask);
        let element = self.used.wrapping_add(2 + 4 * entry).cast::<u32>();
        // SAFETY: the element lies in the device area, checked by `find` and
        // aligned to 4. It is only written here: what others make of it is the
        // driver's loss (see `GuestMemory`).
        unsafe {
            AtomicU32::from_ptr(element).store(u32::from(head).to_le(), Ordering::Relaxed);
            AtomicU32::from_ptr(element.wrapping_add(1)).store(len.to_le(), Ordering::Relaxed);
        }
        if let Some(tracking) = &mut self.tracking {
            tracking.batch[entry] = head;
            tracking.tracker.used(head);
        }
        self.next_used = self.next_used.wrapping_add(1);
        self.in_hand = self.in_hand.wrapping_sub(1);
    }

    /// Shows the driver everything given back since the last time, and says
    /// whether it wants a call (virtio 1.3, 2.7.7 and 2.7.10).
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.next_used == self.published {
            return false;
        }
        let old = self.published;
        self.published = self.next_used;
        // Release: elements and data are visible before the index is.
        self.used_index().store(self.next_used.to_le(), Ordering::Release);
        crash_point();
        if let Some(tracking) = &self.tracking {
            let count = self.next_used.wrapping_sub(old);
            let entry = |i| usize::from(old.wrapping_add(i) & self.mask);
            let heads = (0..count).map(|i| tracking.batch[entry(i)]);
            tracking.tracker.published(heads, self.next_used);
        }
        // The driver writes its wish, then looks at the index; we write the
        // index, then look at its wish. Only full fences keep both from
        // missing the other.
        fence(Ordering::SeqCst);
        if self.config.event_idx {
            let word = 2 + usize::from(self.config.size);
            let event = u16::from_le(self.word(self.avail, word).load(Ordering::Relaxed));
            self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old)
        } else {
            u16::from_le(self.word(self.avail, 0).load(Ordering::Relaxed)) & AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for no kicks: the queue is being polled. A hint.
    pub fn disable_notifications(&mut self) {
        if !self.config.event_idx {
            self.word(self.used, 0).store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
        // With EVENT_IDX the event index is left where it is: behind the
        // driver, so that no kick comes until it wraps.
    }

    /// Asks for a kick at the next buffer; true if one came meanwhile, which
    /// then brings no kick.
    pub fn enable_notifications(&mut self) -> bool {
        if self.config.event_idx {
            let word = 2 + 4 * usize::from(self.config.size);
            self.word(self.used, word).store(self.next_avail.to_le(), Ordering::Relaxed);
        } else {
            self.word(self.used, 0).store(0, Ordering::Relaxed);
        }
        // As in `publish`, the other way round.
        fence(Ordering::SeqCst);
        self.has_available()
    }
}

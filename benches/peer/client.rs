//! One VM's side of a socket: libblkio (the `blkio` crate) with its own memory.
//!
//! Owns the connection, the memory region and the request slots. Knows nothing
//! of what the disk should hold; [`Client::drive`] hands each buffer to its
//! caller before a write and after a read.
//!
//! A slot's buffer is lent to the device from submission to completion and to
//! the caller otherwise, never to both.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, ReqFlags};

use crate::data;
use crate::util::{Context, Error, Result, check_signals, to_u64};

/// How long a request may take before the run is given up.
const HANG: Duration = Duration::from_secs(120);
const BATCH: usize = 64;

/// How completions are awaited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wait {
    /// Look at the ring again and again; the backend sends no notifications.
    Poll,
    /// Block on the completion eventfd, as a guest does on its interrupt.
    Sleep,
}

/// What a request does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
}

/// One request; bytes, multiples of 512.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub kind: Kind,
    pub offset: u64,
    pub len: usize,
}

impl Op {
    /// A flush.
    pub(crate) const FLUSH: Self = Self { kind: Kind::Flush, offset: 0, len: 0 };
}

/// What one [`Client::drive`] did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driven {
    pub ops: u64,
    pub elapsed: Duration,
}

impl Driven {
    /// Requests a second.
    pub(crate) fn per_second(&self) -> f64 {
        crate::util::to_f64(self.ops) / self.elapsed.as_secs_f64()
    }
}

/// A closed loop over the slots of a client.
pub(crate) trait Load {
    /// The next request for a free slot, with its buffer filled if it is a
    /// write; `None` ends the run once all that is in flight has completed.
    fn next(&mut self, slot: usize, buffer: &mut [u8]) -> Option<Op>;
    /// Called once for each request that completed without an error.
    fn done(&mut self, slot: usize, op: &Op, buffer: &[u8]) -> Result<()>;
}

/// A connected and started libblkio client with one queue.
pub(crate) struct Client {
    queue: Blkioq,
    // Dropped after `queue`: closes the connection. Memory goes with the last of both.
    _device: Blkio,
    /// The backend's log, to be shown where a request fails.
    log: Option<PathBuf>,
    capacity_bytes: u64,
    base: usize,
    slot_bytes: usize,
    in_flight: Vec<Option<Op>>,
    wait: Wait,
}

impl Client {
    /// Connects to `socket` with `slots` buffers of `slot_bytes` each.
    pub(crate) fn connect(socket: &Path, slots: usize, slot_bytes: usize) -> Result<Self> {
        Self::open(socket, slots, slot_bytes, false)
    }

    /// The same for a device that is read-only.
    pub(crate) fn connect_read_only(
        socket: &Path,
        slots: usize,
        slot_bytes: usize,
    ) -> Result<Self> {
        Self::open(socket, slots, slot_bytes, true)
    }

    fn open(socket: &Path, slots: usize, slot_bytes: usize, read_only: bool) -> Result<Self> {
        let start = || -> blkio::Result<(Blkio, Blkioq, usize, u64)> {
            let mut device = Blkio::new("virtio-blk-vhost-user")?;
            device.set_str("path", &socket.to_string_lossy())?;
            device.set_bool("read-only", read_only)?;
            device.connect()?;
            let capacity_bytes = device.get_u64("capacity")?;
            device.set_i32("num-queues", 1)?;
            // Three descriptors a request: 256 have room for a depth of 85.
            device.set_i32("queue-size", 256)?;
            let mut started = device.start()?;
            // libblkio maps regions only once the queues have started.
            let region = device.alloc_mem_region(slots * slot_bytes)?;
            device.map_mem_region(&region)?;
            let queue = started
                .queues
                .pop()
                .ok_or_else(|| blkio::Error::new(blkio::Errno::NODEV, "no queue"))?;
            Ok((device, queue, region.addr, capacity_bytes))
        };
        let (device, queue, base, capacity_bytes) =
            start().context(|| format!("cannot start a client on {}", socket.display()))?;
        Ok(Self {
            queue,
            _device: device,
            log: None,
            capacity_bytes,
            base,
            slot_bytes,
            in_flight: vec![None; slots],
            wait: Wait::Poll,
        })
    }

    /// Shows the end of `log` where a request fails.
    pub(crate) fn with_log(self, log: &Path) -> Self {
        Self { log: Some(log.to_path_buf()), ..self }
    }

    /// The disk's size.
    pub(crate) const fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Chooses how completions are awaited from now on.
    pub(crate) fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
        self.queue.set_completion_fd_enabled(wait == Wait::Sleep);
    }

    /// The eventfd that becomes readable on a completion, for a caller that
    /// waits on several clients.
    pub(crate) fn completion_fd(&self) -> Result<RawFd> {
        self.queue
            .get_completion_fd()
            .ok_or_else(|| Error::from("libblkio gives this queue no completion fd"))
    }

    /// The buffer of a slot that is not in flight.
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(self.in_flight[slot].is_none(), "slot {slot} is with the device");
        // SAFETY: `slot` indexes `in_flight`, so the range lies in the region of
        // `slots × slot_bytes` that libblkio mapped and keeps until both the
        // queue and the device are dropped. The device has no request for this
        // slot, and `&mut self` keeps other borrowers out.
        unsafe {
            std::slice::from_raw_parts_mut(
                (self.base + slot * self.slot_bytes) as *mut u8,
                self.slot_bytes,
            )
        }
    }

    /// Queues what `load` wants in `slot`. False when it wants nothing.
    pub(crate) fn submit(&mut self, slot: usize, load: &mut impl Load) -> Result<bool> {
        let buffer = self.buffer(slot);
        let Some(op) = load.next(slot, buffer) else {
            return Ok(false);
        };
        if op.len > self.slot_bytes && op.kind != Kind::Discard {
            return Err(Error::from("a request is larger than its buffer"));
        }
        let address = (self.base + slot * self.slot_bytes) as *mut u8;
        let flags = ReqFlags::empty();
        match op.kind {
            Kind::Read => self.queue.read(op.offset, address, op.len, slot, flags),
            Kind::Write => self.queue.write(op.offset, address, op.len, slot, flags),
            Kind::Flush => self.queue.flush(slot, flags),
            Kind::Discard => self.queue.discard(op.offset, to_u64(op.len), slot, flags),
        }
        self.in_flight[slot] = Some(op);
        Ok(true)
    }

    /// Tells the device of what was queued, and hands to `load` what completed;
    /// `freed` receives the slots. Blocks for one completion if `block`.
    pub(crate) fn reap(
        &mut self,
        block: bool,
        load: &mut impl Load,
        freed: &mut Vec<usize>,
    ) -> Result<()> {
        let mut completions = [const { MaybeUninit::<Completion>::uninit() }; BATCH];
        let mut timeout = HANG;
        let count = self
            .queue
            .do_io(&mut completions, usize::from(block), block.then_some(&mut timeout), None)
            .context(|| {
                let log = self.log.as_deref().map(data::log_tail).unwrap_or_default();
                format!("waiting for the backend, whose log ends with\n{log}\n")
            })?;
        for completion in &completions[..count] {
            // SAFETY: do_io initialised the first `count` completions.
            let completion = unsafe { completion.assume_init_ref() };
            let slot = completion.user_data;
            let op = self.in_flight[slot]
                .take()
                .ok_or_else(|| Error::from("a request completed twice"))?;
            if completion.ret != 0 {
                return Err(Error::from(format!(
                    "{op:?} failed: {}",
                    std::io::Error::from_raw_os_error(-completion.ret)
                )));
            }
            let len = op.len.min(self.slot_bytes);
            load.done(slot, &op, &self.buffer(slot)[..len])?;
            freed.push(slot);
        }
        Ok(())
    }

    /// Keeps `depth` requests in flight until `load` has no more, or `limit`
    /// has passed, and all have completed.
    pub(crate) fn drive(
        &mut self,
        depth: usize,
        limit: Duration,
        load: &mut impl Load,
    ) -> Result<Driven> {
        let started = Instant::now();
        let mut free: Vec<usize> = (0..depth).collect();
        let mut in_flight = 0;
        let mut ops = 0;
        let mut empty_polls = 0_u32;
        let mut stopping = false;
        let mut last_progress = started;
        loop {
            if !stopping {
                while let Some(&slot) = free.last() {
                    if !self.submit(slot, load)? {
                        stopping = true;
                        break;
                    }
                    free.pop();
                    in_flight += 1;
                }
            }
            if in_flight == 0 {
                break;
            }
            let before = free.len();
            self.reap(self.wait == Wait::Sleep, load, &mut free)?;
            let reaped = free.len() - before;
            in_flight -= reaped;
            ops += to_u64(reaped);
            if reaped == 0 {
                empty_polls += 1;
                std::hint::spin_loop();
            }
            // The clock costs as much as a fast request: look rarely.
            if reaped > 0 && (ops & 31) < to_u64(reaped) {
                check_signals()?;
                last_progress = Instant::now();
                stopping |= last_progress.duration_since(started) >= limit;
            } else if empty_polls >= 4096 {
                empty_polls = 0;
                check_signals()?;
                stopping |= started.elapsed() >= limit;
                if last_progress.elapsed() > HANG {
                    return Err(Error::from(format!(
                        "the backend completed nothing for {} s",
                        HANG.as_secs()
                    )));
                }
            }
        }
        Ok(Driven { ops, elapsed: started.elapsed() })
    }
}

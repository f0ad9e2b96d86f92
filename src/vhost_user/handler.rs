//! What each vhost-user message does to the device.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::inflight::Inflight;
use super::vring::{Vring, clone_fd, eventfd};
use super::{FrontendLink, QUEUE_SIZE_MAX};
use crate::disk::Disk;
use crate::guest_memory::{Account, GuestMemory, REGIONS_MAX, RegionSpec};
use crate::leaf::WriteCache;
use crate::logging::limit::log_for;
use crate::reactor::{Command, DeviceId, Mailbox};
use crate::request::config_space::ConfigSpace;
use crate::request::features;
use crate::virtqueue::QueueError;

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The device as one connection sees it.
///
/// Closing what a frontend brings and unmapping its memory can take long: for
/// the last use of a large file, for an eventfd that many wait for. So a reactor
/// is never the last to have any of it: what is here is let go only after the
/// reactor has answered that it is done with it.
pub(super) struct Handler {
    disk: Arc<Disk>,
    reactor: Arc<Mailbox>,
    link: Arc<FrontendLink>,
    device: DeviceId,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    /// The `writeback` field of the configuration space. The disk remembers
    /// it: this connection may come after others of the same guest.
    write_back_field: bool,
    /// The frontend brought an inflight region that it had before.
    came_back: bool,
    status: u8,
    account: Arc<Account>,
    memory: Arc<GuestMemory>,
    vrings: Vec<Vring>,
    inflight: Inflight,
    error: Option<String>,
}

/// The handler, also where an earlier message's handling panicked.
pub(super) fn lock(handler: &Mutex<Handler>) -> MutexGuard<'_, Handler> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler {
    /// A device that no message has come for; `None` if the reactor is gone, or
    /// nobody waits for the device any more.
    pub(super) fn attach(
        disk: Arc<Disk>,
        queues: u16,
        reactor: Arc<Mailbox>,
        link: &Arc<FrontendLink>,
    ) -> Option<Self> {
        let device = reactor.ask(|answer| Command::Attach(Arc::clone(&disk), answer))?;
        if !link.attached(device) {
            let _ = reactor.ask(|answer| Command::Detach(device, answer));
            return None;
        }
        let write_back_field = disk.write_cache() != WriteCache::Off;
        Some(Self {
            link: Arc::clone(link),
            disk,
            reactor,
            device,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            write_back_field,
            came_back: false,
            status: 0,
            account: Account::new(),
            memory: Arc::default(),
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            inflight: Inflight::default(),
            error: None,
        })
    }

    /// What the last message failed for, in words.
    pub(super) fn take_error(&mut self) -> Option<String> {
        self.error.take()
    }

    pub(super) fn has_status(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::STATUS)
    }

    pub(super) fn has_reply_ack(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// The virtio device status (virtio 1.3, 2.1), as the driver set it.
    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// Sets the status; 0 resets the device.
    pub(super) fn set_status(&mut self, status: u64) -> std::result::Result<(), String> {
        self.status = u8::try_from(status).map_err(|_| "a status is one byte".to_owned())?;
        if status == 0 {
            self.reset();
        }
        Ok(())
    }

    fn fail<T>(&mut self, why: impl ToString) -> Result<T> {
        self.error = Some(why.to_string());
        Err(Error::InvalidParam)
    }

    fn ask<T>(&self, make: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Command) -> Result<T> {
        self.reactor.ask(make).ok_or(Error::BackendInternalError)
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let known = self.vrings.len();
        match usize::try_from(index).ok().filter(|i| *i < known) {
            Some(index) => Ok(&mut self.vrings[index]),
            None => self.fail(format!("there is no queue {index}, only {known}")),
        }
    }

    fn stop(&mut self, index: usize) {
        let device = self.device;
        let vring = &mut self.vrings[index];
        if std::mem::take(&mut vring.running) {
            let Ok(queue) = u16::try_from(index) else {
                return;
            };
            let answer = self.reactor.ask(|answer| Command::Stop(device, queue, answer));
            let vring = &mut self.vrings[index];
            vring.inflight = None;
            if let Some(Some(next)) = answer {
                vring.base = next;
            }
        }
    }

    fn reset(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
            self.vrings[index] = Vring::default();
        }
        // The `writeback` field stays. After a reset it may be either (virtio
        // 1.3, 5.2.5), and QEMU, which resets a device also to pause it, goes on
        // to show the guest what it was.
        self.features = 0;
        self.status = 0;
        let _ = self.tell_write_back();
    }

    fn tell_write_back(&self) -> Result<()> {
        let write_back = features::is_write_back(self.features, self.write_back_field);
        let device = self.device;
        self.ask(|answer| Command::SetWriteBack(device, write_back, answer))
    }

    /// Sets the field, for later connections and processes too.
    fn set_write_cache(&mut self, on: bool) -> Result<()> {
        let write_cache = if on { WriteCache::On } else { WriteCache::Off };
        if let Err(e) = self.disk.set_write_cache(write_cache) {
            return self.fail(format!("the writeback field can't be remembered: {e}"));
        }
        self.write_back_field = on;
        self.tell_write_back()
    }

    /// Before a queue runs: settles the field where nothing is known of it. A
    /// guest that was there before may have cleared it, and no frontend says so
    /// again; a new one has read it.
    fn settle_write_cache(&mut self, base: u16) -> Result<()> {
        let is_open = self.disk.write_cache() == WriteCache::Unknown;
        if !is_open || self.features & features::CONFIG_WCE == 0 {
            return Ok(());
        }
        let is_new = !self.came_back && base == 0;
        if !is_new {
            let name = self.disk.name();
            log_for!(
                self.disk,
                Warn,
                "VM {name}: whether its guest has switched its write cache off isn't known, so it \
                 is off; switching it off and on again in the guest ends that"
            );
        }
        self.set_write_cache(is_new && self.write_back_field)
    }

    fn set_memory(&mut self, memory: GuestMemory) -> Result<()> {
        let memory = Arc::new(memory);
        let device = self.device;
        let rebound = self.ask(|a| Command::SetMemory(device, Arc::clone(&memory), a))?;
        self.memory = memory;
        match rebound {
            Ok(()) => Ok(()),
            Err(e) => self.fail(e),
        }
    }

    /// Runs a queue for which everything is known: after the kick, as the
    /// specification has it ("Ring states").
    fn start(&mut self, index: u8) -> Result<()> {
        let (device, features) = (self.device, self.features);
        let enabled_anyway = features & PROTOCOL_FEATURES == 0;
        let inflight = self.inflight.region();
        let base = self.vring(u32::from(index))?.base;
        self.settle_write_cache(base)?;
        let vring = self.vring(u32::from(index))?;
        vring.inflight.clone_from(&inflight);
        let setup = vring.setup(u16::from(index), features, enabled_anyway, inflight)?;
        let Some(setup) = setup else {
            return self.fail(format!("queue {index} gets a kick before its addresses"));
        };
        match self.ask(|answer| Command::Start(device, Box::new(setup), answer))? {
            Ok(()) => {
                self.vring(u32::from(index))?.running = true;
                Ok(())
            }
            Err(e @ QueueError::RingOutside(_)) if self.memory.is_empty() => self
                .fail(format!("{e}; start the VM with a shared memory backend (QEMU: share=on)")),
            Err(e) => self.fail(e),
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.link.detach(&self.reactor);
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// "This is no longer used", says the specification; it stopped all rings.
    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(features::offered(self.disk.is_read_only()) | PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_features()?;
        if features & !offered != 0 {
            let bits = features & !offered;
            return self.fail(format!("feature bits {bits:#x} were not offered"));
        }
        self.features = features;
        self.tell_write_back()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let specs = regions.iter().zip(files).map(|(region, file)| spec(region, file)).collect();
        match GuestMemory::map(specs, &self.account) {
            Ok(memory) => self.set_memory(memory).map(|()| None),
            Err(e) => self.fail(e),
        }
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|n| n.is_power_of_two() && *n <= QUEUE_SIZE_MAX);
        let Some(size) = size else {
            return self.fail(format!(
                "queue size {num} is not a power of two from 1 to {QUEUE_SIZE_MAX}"
            ));
        };
        self.vring(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return self.fail("logging of used rings was not offered");
        }
        self.vring(index)?.addresses = Some((descriptor, available, used));
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            return self.fail(format!("ring index {base} has more than 16 bits"));
        };
        self.vring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        let at = index as usize;
        self.stop(at);
        let vring = &mut self.vrings[at];
        (vring.kick, vring.call) = (None, None);
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Ok(kick) = eventfd(fd) else {
            return self.fail("a kick must be an eventfd");
        };
        self.vring(u32::from(index))?;
        // A new kick for a running queue: start it anew where it stands.
        self.stop(usize::from(index));
        self.vring(u32::from(index))?.kick = kick;
        self.start(index)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Ok(call) = eventfd(fd) else {
            return self.fail("a call must be an eventfd");
        };
        let device = self.device;
        let copy = clone_fd(call.as_ref())?;
        let vring = self.vring(u32::from(index))?;
        // Kept until the reactor has let go of it.
        let _old = std::mem::replace(&mut vring.call, call);
        if vring.running {
            self.ask(|answer| Command::SetCall(device, u16::from(index), copy, answer))?;
        }
        Ok(())
    }

    /// Errors are in the log; the frontends that take this eventfd only print.
    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.vring(u32::from(index)).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::STATUS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // Bits that were not offered are ignored, since the crate offers some
        // of its own.
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let device = self.device;
        let vring = self.vring(index)?;
        vring.enabled = enable;
        if vring.running {
            let Ok(queue) = u16::try_from(index) else {
                return Ok(());
            };
            self.ask(|answer| Command::Enable(device, queue, enable, answer))?;
        }
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.config_space().read(offset, size).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        match self.config_space().write(offset, bytes) {
            Some(write_back) => self.set_write_cache(write_back),
            None => self.fail("only the writeback field can be written, with 0 or 1"),
        }
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported("a disk has no GPU socket")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported("a disk shares no objects")
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.inflight.make(asked, self.vrings.len()).or_else(|why| self.fail(why))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        match self.inflight.take(given, file, self.vrings.len(), &self.account) {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.came_back = true;
                self.disk.counters().reconnects.add(1);
                let name = self.disk.name();
                log_for!(self.disk, Info, "VM {name}: its frontend has come back");
                Ok(())
            }
            Err(why) => self.fail(why),
        }
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        match self.memory.with_region(spec(region, file), &self.account) {
            Ok(memory) => self.set_memory(memory).map(|()| None),
            Err(e) => self.fail(e),
        }
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        match self.memory.without_region(guest, user, size) {
            Ok(memory) => self.set_memory(memory),
            Err(e) => self.fail(e),
        }
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported("device state is not transferred")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("device state is not transferred")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("a disk has no shared memory regions")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported("logging was not offered")
    }
}

impl Handler {
    fn config_space(&self) -> ConfigSpace {
        let no_flush = self.features & (features::CONFIG_WCE | features::FLUSH);
        let no_flush = no_flush == features::CONFIG_WCE;
        ConfigSpace {
            capacity_sectors: self.disk.sectors(),
            queues: u16::try_from(self.vrings.len()).unwrap_or(u16::MAX),
            // 5.2.5.2: such a driver finds it 0.
            write_back: self.write_back_field && !no_flush,
        }
    }
}

fn spec(region: &VhostUserMemoryRegion, file: File) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
        file,
    }
}

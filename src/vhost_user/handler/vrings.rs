//! Queues, as a frontend describes them, and when a reactor runs them.

use std::fs::File;
use std::mem;

use vhost::vhost_user::Result;
use vhost::vhost_user::message::VhostUserVringAddrFlags;

use super::Handler;
use crate::reactor::Command;
use crate::vhost_user::QUEUE_SIZE_MAX;
use crate::vhost_user::vring::{Vring, clone_fd, eventfd};
use crate::virtqueue::QueueError;

impl Handler {
    pub(super) fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let known = self.vrings.len();
        match usize::try_from(index).ok().filter(|i| *i < known) {
            Some(index) => Ok(&mut self.vrings[index]),
            None => self.fail(format!("there is no queue {index}, only {known}")),
        }
    }

    pub(super) fn set_size(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|n| n.is_power_of_two() && *n <= QUEUE_SIZE_MAX);
        let Some(size) = size else {
            return self.fail(format!(
                "queue size {num} is not a power of two from 1 to {QUEUE_SIZE_MAX}"
            ));
        };
        self.vring(index)?.size = size;
        Ok(())
    }

    pub(super) fn set_addresses(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        addresses: (u64, u64, u64),
    ) -> Result<()> {
        if !flags.is_empty() {
            return self.fail("logging of used rings was not offered");
        }
        self.vring(index)?.addresses = Some(addresses);
        Ok(())
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<()> {
        let Ok(base) = u16::try_from(base) else {
            return self.fail(format!("ring index {base} has more than 16 bits"));
        };
        self.vring(index)?.base = base;
        Ok(())
    }

    /// Stops a queue, lets go of its eventfds, and says where it stands.
    pub(super) fn take_base(&mut self, index: u32) -> Result<u16> {
        self.vring(index)?;
        let at = index as usize;
        self.stop(at);
        let vring = &mut self.vrings[at];
        (vring.kick, vring.call) = (None, None);
        Ok(vring.base)
    }

    pub(super) fn set_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Ok(kick) = eventfd(fd) else {
            return self.fail("a kick must be an eventfd");
        };
        self.vring(u32::from(index))?;
        // A new kick for a running queue: start it anew where it stands.
        self.stop(usize::from(index));
        self.vring(u32::from(index))?.kick = kick;
        self.start(index)
    }

    pub(super) fn set_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Ok(call) = eventfd(fd) else {
            return self.fail("a call must be an eventfd");
        };
        let device = self.device;
        let copy = clone_fd(call.as_ref())?;
        let vring = self.vring(u32::from(index))?;
        // Kept until the reactor has let go of it.
        let _old = mem::replace(&mut vring.call, call);
        if vring.running {
            self.ask(|answer| Command::SetCall(device, u16::from(index), copy, answer))?;
        }
        Ok(())
    }

    pub(super) fn enable(&mut self, index: u32, enable: bool) -> Result<()> {
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

    /// Stops all queues; nothing is known of any afterwards.
    pub(super) fn forget_vrings(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
            self.vrings[index] = Vring::default();
        }
    }

    fn stop(&mut self, index: usize) {
        let device = self.device;
        let vring = &mut self.vrings[index];
        if mem::take(&mut vring.running) {
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

    /// Runs a queue for which everything is known: after the kick, as the
    /// specification has it ("Ring states").
    fn start(&mut self, index: u8) -> Result<()> {
        let (device, features) = (self.device, self.features);
        let enabled_anyway = self.is_enabled_anyway();
        let inflight = self.inflight.region();
        let base = self.vring(u32::from(index))?.base;
        self.settle_write_cache(base)?;
        if let Some(unused) = &self.unused {
            unused.begin_use();
        }
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

//! Which devices are polled, and which wake the reactor by a kick.
//!
//! A kicked device becomes *hot*: its rings are looked at in every turn, and
//! its notifications are off. One without work cools down: its notifications
//! are on, and nobody looks at it until the epoll set says so.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use super::run::{Runner, TOKEN_MAIL, TOKEN_RING};
use super::serve::MEMORY_GONE;
use crate::virtqueue::SplitQueue;

/// Events that one look takes.
const EVENTS: usize = 64;

impl Runner {
    /// Takes events; whether there were any.
    pub(super) fn look(&mut self, timeout: i32) -> bool {
        self.counters.looks.add(1);
        self.counters.polls.set(self.turns);
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0); EVENTS];
        let count = match epoll::wait(self.epoll.as_raw_fd(), timeout, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => {
                log::error!("epoll failed: {e}");
                0
            }
        };
        for event in &events[..count] {
            // Copied out, since the struct is packed.
            let token = event.data;
            if token != TOKEN_MAIL
                && token != TOKEN_RING
                && let Ok(slot) = usize::try_from(token)
            {
                self.counters.kicks.add(1);
                if let Some(device) = self.devices.get_mut(slot).and_then(Option::as_mut) {
                    device.kicks = device.kicks.saturating_add(1);
                }
                self.heat(slot);
            }
        }
        count > 0
    }

    /// Polls a device from now on, and wants no kicks of it.
    pub(super) fn heat(&mut self, slot: usize) {
        let Some(device) = self.devices.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        device.worked = true;
        if !device.hot {
            device.hot = true;
            self.hot.push(slot);
            device.rings().for_each(SplitQueue::disable_notifications);
        }
    }

    /// Lets devices without work be kicked again instead of polled: those that
    /// had none since the last time, or `all`. Whether one had some after all.
    pub(super) fn cool(&mut self, all: bool) -> bool {
        let mut found = false;
        let mut hot = mem::take(&mut self.hot);
        hot.retain(|slot| {
            let Some(device) = self.devices.get_mut(*slot).and_then(Option::as_mut) else {
                return false;
            };
            if mem::take(&mut device.worked) && !all {
                return true;
            }
            // A ring that is gone may look like one without work.
            if device.is_faulted() {
                device.break_with(&MEMORY_GONE);
            }
            device.mind_private_memory();
            let served = device.is_served();
            let mut keep = device.is_impatient();
            for queue in device.queues.iter_mut().flatten() {
                queue.ring.here().map(SplitQueue::enable_notifications);
                let more = served && queue.has_work();
                found |= more;
                keep |= more || queue.kick.is_polled();
            }
            if keep {
                device.rings().for_each(SplitQueue::disable_notifications);
            }
            device.hot = keep;
            keep
        });
        self.hot = hot;
        found
    }
}

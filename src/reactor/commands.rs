//! What control threads ask for: devices that come and go, queues that start
//! and stop.

use std::os::fd::AsRawFd;

use super::device::{Device, Queue, forget_kick};
use super::run::Runner;
use super::{Command, DeviceId, QueueSetup};
use crate::logging::limit::log_for;
use crate::virtqueue::QueueError;

impl Runner {
    fn place_of(&self, id: DeviceId) -> Option<usize> {
        self.devices.iter().position(|d| d.as_ref().is_some_and(|d| d.id == id))
    }

    fn device(&mut self, id: DeviceId) -> Option<&mut Device> {
        let slot = self.place_of(id)?;
        self.devices[slot].as_deref_mut()
    }

    /// Does what is asked, and answers.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Attach(disk, answer) => {
                let id = DeviceId(self.next_id);
                self.next_id = self.next_id.wrapping_add(1);
                let device = Device::new(id, disk, self.mailbox());
                let free = self.devices.iter().position(Option::is_none);
                let slot = free.unwrap_or_else(|| {
                    self.devices.push(None);
                    self.devices.len() - 1
                });
                device.disk.counters().connections.add(1);
                device.disk.counters().connected.set(1);
                self.devices[slot] = Some(Box::new(device));
                self.count_devices();
                let _ = answer.send(id);
            }
            Command::Detach(id, answer) => {
                if let Some(slot) = self.place_of(id) {
                    self.with_device(slot, |device| device.detaching = Some(answer));
                }
            }
            Command::SetMemory(id, memory, answer) => {
                if let Some(slot) = self.place_of(id) {
                    self.with_device(slot, |device| device.pending_memory = Some((memory, answer)));
                }
            }
            Command::Stop(id, queue, answer) => {
                let Some(slot) = self.place_of(id) else {
                    return;
                };
                self.with_device(slot, |device| {
                    match device.queues.get_mut(usize::from(queue)).and_then(Option::as_mut) {
                        Some(queue) => queue.stopping = Some(answer),
                        None => drop(answer.send(None)),
                    }
                });
            }
            Command::Start(id, setup, answer) => {
                let result = self.start_queue(id, *setup);
                let _ = answer.send(result);
            }
            Command::Enable(id, queue, enabled, answer) => {
                self.with_queue(id, queue, |queue| queue.enabled = enabled);
                if let Some(slot) = self.place_of(id) {
                    self.heat(slot);
                }
                let _ = answer.send(());
            }
            Command::SetCall(id, queue, call, answer) => {
                self.with_queue(id, queue, |queue| queue.set_call(call));
                if let Some(device) = self.device(id) {
                    device.break_if_a_call_waits();
                }
                let _ = answer.send(());
            }
            Command::SetWriteBack(id, write_back, answer) => {
                if let Some(device) = self.device(id) {
                    device.write_back = write_back;
                }
                let _ = answer.send(());
            }
            Command::Ping(answer) => drop(answer.send(())),
            Command::Shutdown => self.stop = true,
        }
    }

    fn with_queue(&mut self, id: DeviceId, queue: u16, change: impl FnOnce(&mut Queue)) {
        let device = self.device(id);
        let queue = device.and_then(|d| d.queues.get_mut(usize::from(queue)));
        if let Some(queue) = queue.and_then(Option::as_mut) {
            change(queue);
        }
    }

    /// Changes a device, then does what may now be done with it.
    fn with_device(&mut self, slot: usize, change: impl FnOnce(&mut Device)) {
        if let Some(device) = self.devices[slot].as_deref_mut() {
            change(device);
        }
        self.settle(slot);
    }

    /// See [`Device::settle`].
    pub(super) fn settle(&mut self, slot: usize) {
        let epoll = self.epoll.as_raw_fd();
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return;
        };
        if device.settle(epoll, &self.counters) {
            device.disk.counters().connected.set(0);
            self.devices[slot] = None;
            self.count_devices();
            self.hot.retain(|hot| *hot != slot);
            self.rounds.forget(slot);
        } else if device.is_served() {
            // A queue may have been held up by what is settled now.
            self.heat(slot);
        }
    }

    fn start_queue(&mut self, id: DeviceId, setup: QueueSetup) -> Result<(), QueueError> {
        let epoll = self.epoll.as_raw_fd();
        let Some(slot) = self.place_of(id) else {
            return Ok(());
        };
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return Ok(());
        };
        let index = usize::from(setup.index);
        while device.queues.len() <= index {
            device.queues.push(None);
        }
        debug_assert!(device.queues[index].is_none(), "a queue is stopped before it starts");
        forget_kick(epoll, device.queues[index].take());
        if let Some(left) = device.caller.penalty_left() {
            return Err(QueueError::Penalty(left.as_secs() + 1));
        }
        let queue = Queue::new(setup, &device.memory, &device.caller)?;
        if let Some(kick) = &queue.kick {
            let events = epoll::Events::EPOLLIN | epoll::Events::EPOLLET;
            let event = epoll::Event::new(events, slot as u64);
            if let Err(e) =
                epoll::ctl(epoll, epoll::ControlOptions::EPOLL_CTL_ADD, kick.as_raw_fd(), event)
            {
                let name = device.disk.name();
                log_for!(device.disk, Warn, "VM {name}: can't wait for kicks, polling: {e}");
            }
        }
        if queue.resubmitted > 0 {
            let (count, name) = (u64::from(queue.resubmitted), device.disk.name());
            log_for!(
                device.disk,
                Info,
                "VM {name}: resubmitting {count} requests of queue {index}"
            );
            device.disk.counters().resubmitted.add(count);
        }
        device.queues[index] = Some(queue);
        device.broken = false;
        (device.kicks, device.rings_show) = (0, false);
        device.break_if_a_call_waits();
        // What came before the kick was watched must be looked for; and a
        // device that is hot already has to disable this queue's kicks too.
        device.hot = false;
        self.hot.retain(|hot| *hot != slot);
        self.heat(slot);
        Ok(())
    }
}

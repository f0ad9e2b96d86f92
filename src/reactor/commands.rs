//! What control threads ask for: devices that come and go, queues that start
//! and stop.

use super::device::{Device, Queue};
use super::run::Runner;
use super::{Command, DeviceId, QueueSetup};
use crate::disk::Activity;
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
                    self.with_device(slot, |device| device.change_memory(memory, answer));
                }
            }
            Command::Stop(id, queue, answer) => {
                let Some(slot) = self.place_of(id) else {
                    return;
                };
                self.with_device(slot, |device| {
                    match device.queues.get_mut(usize::from(queue)).and_then(Option::as_mut) {
                        Some(queue) => queue.stop(answer),
                        None => drop(answer.send(None)),
                    }
                });
            }
            Command::Start(id, setup, answer) => {
                let result = self.start_queue(id, *setup);
                let _ = answer.send(result);
            }
            Command::Enable(id, queue, enabled, answer) => {
                self.with_queue(id, queue, |queue| queue.enable(enabled));
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
            Command::SetAgreed(id, agreed, answer) => {
                if let Some(device) = self.device(id) {
                    device.agreed = agreed;
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
        let Some(device) = self.devices[slot].as_deref_mut() else {
            return;
        };
        if device.settle(&self.counters) {
            device.disk.counters().connected.set(0);
            device.disk.failures().begun_anew(Activity::Device);
            self.devices[slot] = None;
            self.count_devices();
            self.hot.retain(|hot| *hot != slot);
            self.rounds.forget(slot);
        } else if device.is_served() {
            // A queue may have been held up by what is settled now.
            self.heat(slot);
        }
    }

    fn start_queue(&mut self, id: DeviceId, mut setup: QueueSetup) -> Result<(), QueueError> {
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
        if device.queues[index].is_some() {
            return Err(QueueError::Running(setup.index));
        }
        if let Some(left) = device.caller.penalty_left() {
            return Err(QueueError::Penalty(left.as_secs() + 1));
        }
        let kick = setup.kick.take();
        let mut queue = Queue::new(setup, &device.memory, &device.caller)?;
        if let Some(kick) = kick
            && let Err(e) = queue.watch(&self.epoll, kick, slot as u64)
        {
            let name = device.disk.name();
            log_for!(
                device.disk,
                Warn,
                "VM {name}: can't wait for the kicks of queue {index}: {e}; the queue is polled \
                 instead, every millisecond when reactor {} has nothing else to do, until its VMM \
                 connects again; if there is no space, raise fs.epoll.max_user_watches (sysctl)",
                self.index
            );
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
        device.disk.failures().begun_anew(Activity::Device);
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

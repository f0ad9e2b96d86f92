//! The parts of reads that wait, each for a cache block or for the leaf's disk. A
//! part begins when its device has a place for it, and ends when its data is where
//! the guest wants it. What it waits for, and how, is in [`super::block_wait`] and
//! [`super::leaf_wait`].

use std::io;

use super::backlog::Backlog;
use super::block_wait::Around;
use super::budget;
use super::device::Device;
use super::mailbox::Mail;
use super::run::Runner;
use super::serve::{MEMORY_GONE, is_memory_gone};
use super::slab::Slab;
use super::step::{Failure, Step};
use super::task::{Part, Read, Task, Wait};
use crate::cache::{FillOutcome, Waiter};
use crate::disk::{Activity, Disk};
use crate::logging::internal;

/// A part, the read that it is a part of, and that one's device.
type Parties<'a> = (&'a mut Part, &'a mut Read, &'a mut Device);

fn parties<'a>(
    parts: &'a mut Slab<Part>,
    tasks: &'a mut Slab<Task>,
    devices: &'a mut [Option<Box<Device>>],
    id: u32,
) -> Option<Parties<'a>> {
    let part = parts.get(id)?;
    let task = tasks.get(part.task)?;
    let device = devices.get_mut(task.slot)?.as_deref_mut()?;
    Some((part, task.read()?, device))
}

impl Runner {
    /// Goes on with a part that there is, by `work`.
    fn with_part<T>(
        &mut self,
        id: u32,
        work: impl FnOnce(&mut Wait, &mut Around<'_>) -> T,
    ) -> Option<T> {
        let Self { parts, tasks, devices, reader, engine, aside, waiters, .. } = self;
        let (part, read, device) = parties(parts, tasks, devices, id)?;
        let (bufs, name) = (&read.bufs, Waiter { reactor: self.index, token: id });
        let mut around = Around { reader, engine, aside, waiters, device, bufs, name };
        Some(work(&mut part.wait, &mut around))
    }

    /// Gets a part what it waits for, or puts it off until there is room.
    /// What it cost, or `None` if it could not be started.
    pub(super) fn start_part(&mut self, id: u32) -> Option<u64> {
        let step = self.with_part(id, |wait, around| match wait {
            Wait::Block(wait) => wait.start(around),
            Wait::Leaf(wait) => wait.start(around.engine, around.device, id),
        });
        self.stepped(id, step)
    }

    /// Takes what the io_uring has done, until the turn is over; whether there
    /// was anything.
    pub(super) fn reap(&mut self) -> bool {
        let (mut any, mut left) = (false, self.turn_cost());
        while left > 0
            && let Some((id, result)) = self.engine.reap()
        {
            any = true;
            left = left.saturating_sub(budget::PART + self.reaped(id, result));
        }
        any
    }

    /// A read of a part has an answer; what was copied.
    fn reaped(&mut self, id: u32, result: io::Result<u32>) -> u64 {
        let stepped = self.with_part(id, |wait, around| match wait {
            Wait::Block(wait) => wait.reaped(result, around),
            Wait::Leaf(wait) => (wait.reaped(result, around.engine, around.device, id), None),
        });
        let (step, fill) = stepped.map_or((None, None), |(step, fill)| (Some(step), fill));
        let copied = self.stepped(id, step).unwrap_or(0);
        if let Some(outcome) = fill {
            self.tell_waiters(outcome == FillOutcome::Data);
        }
        copied
    }

    /// Does what follows from a step of a part; what it cost, or `None` if there was no
    /// room for it.
    fn stepped(&mut self, id: u32, step: Option<Step>) -> Option<u64> {
        match step {
            Some(Step::Done(cost)) => {
                self.part_done(id, true);
                Some(cost)
            }
            Some(Step::Waits(cost)) => Some(cost),
            Some(Step::NoRoom) => {
                self.schedule_part(id, Backlog::put_back_part);
                None
            }
            Some(Step::Failed(failure)) => {
                self.part_failed(id, &failure);
                Some(budget::PART)
            }
            None => {
                self.part_is_lost(id);
                Some(budget::PART)
            }
        }
    }

    /// A part's device goes on with it when it has a turn.
    fn schedule_part(&mut self, id: u32, schedule: fn(&mut Backlog, u32)) {
        let Self { parts, tasks, devices, rounds, .. } = self;
        let slot = parts.get(id).and_then(|part| tasks.get(part.task)).map(|task| task.slot);
        match slot.and_then(|slot| Some((slot, devices.get_mut(slot)?.as_deref_mut()?))) {
            Some((slot, device)) => {
                schedule(&mut device.backlog, id);
                rounds.add(slot, &mut device.backlog);
            }
            None => self.part_is_lost(id),
        }
    }

    fn part_is_lost(&mut self, id: u32) {
        internal::note(format_args!("part {id} is of no read of a device"));
        self.parts.remove(id);
    }

    /// A fill has ended: tells those who waited for it.
    fn tell_waiters(&mut self, ok: bool) {
        let mut waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters.drain(..) {
            if waiter.reactor == self.index {
                self.filled(waiter.token, ok);
            } else if let Some(peer) = self.peers.get(usize::from(waiter.reactor)) {
                peer.post(Mail::Filled { part: waiter.token, ok });
            }
        }
        self.waiters = waiters;
    }

    /// The block that a part waits for was filled by another (and may be gone
    /// again), or could not be. It is copied when it is the device's turn: any
    /// number may have waited for one block.
    pub(super) fn filled(&mut self, part: u32, ok: bool) {
        if !ok {
            // Who filled it has said why.
            return self.part_done(part, false);
        }
        self.schedule_part(part, Backlog::add_part);
    }

    /// A part's data can't be had: its read fails.
    fn part_failed(&mut self, id: u32, failure: &Failure) {
        if let Failure::Lost(what) = failure {
            internal::note(format_args!("{what} (part {id})"));
        }
        if let Some((_, _, device)) =
            parties(&mut self.parts, &mut self.tasks, &mut self.devices, id)
        {
            match failure {
                Failure::Leaf(error) if is_memory_gone(error) => device.break_with(&MEMORY_GONE),
                Failure::Root(_) | Failure::RootEndsEarly => {
                    let path = device.disk.root().root().path().display();
                    device.disk.root_failed(format_args!("root {path} {failure}"));
                }
                Failure::Leaf(_) | Failure::LeafEndsEarly => {
                    device.disk.failed(Activity::LeafRead, format_args!("{failure}"));
                }
                Failure::Lost(_) => {}
            }
        }
        self.part_done(id, false);
    }

    fn part_done(&mut self, id: u32, ok: bool) {
        let Some(Part { task: task_id, place, wait }) = self.parts.remove(id) else {
            return internal::note(format_args!("part {id} has ended before"));
        };
        let succeeded: fn(&Disk) = match wait {
            Wait::Block(_) => Disk::root_succeeded,
            Wait::Leaf(wait) => {
                self.lists.give_back(wait.into_bufs());
                |disk| disk.failures().succeeded(Activity::LeafRead)
            }
        };
        let Some((slot, read)) = self.tasks.get(task_id).and_then(|task| {
            let slot = task.slot;
            Some((slot, task.read()?))
        }) else {
            return internal::note(format_args!("part {id} was of no read"));
        };
        read.pending -= 1;
        read.failed |= !ok;
        let goes_on = !read.scheduled && read.goes_on();
        read.scheduled |= goes_on;
        let idles = !read.scheduled;
        if let Some(device) = self.devices[slot].as_deref_mut() {
            if ok {
                succeeded(&device.disk);
            }
            device.backlog.give_back_place(place);
            if goes_on {
                device.backlog.add_task(task_id);
            }
            // Others of the device may have waited for the place.
            self.rounds.add(slot, &mut device.backlog);
        }
        if idles {
            self.end_read_if_over(task_id);
        }
    }
}

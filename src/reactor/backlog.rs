//! Whose turn it is among the devices with reads that could not be answered at
//! once.
//!
//! Each device has a [`Backlog`] of its own, and [`Rounds`] lets one after the
//! other do a little: so a device that has asked for gigabytes delays another's
//! read by one step of its own. How many parts of a device wait is bounded as
//! well, since the disk behind them knows no devices.
//!
//! Knows numbers of devices, tasks and parts; not what they are.

use std::collections::VecDeque;

/// Parts of one device that may wait at a time: enough for a fast disk, and few
/// enough for a neighbour's read to come soon after them.
pub(super) const PLACES: u32 = 64;

/// What a device goes on with when it is its turn.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Parts whose block was filled, or that must be tried again.
    parts: VecDeque<u32>,
    /// Tasks with something to do, the next one first.
    tasks: VecDeque<u32>,
    /// Parts that there are.
    waiting: u32,
    /// In the list of [`Rounds`].
    queued: bool,
}

/// One of a device's places: given back once.
#[must_use]
#[derive(Debug)]
pub(super) struct Place(());

/// What is next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    Part(u32),
    Task(u32),
}

impl Backlog {
    /// A task has something to do.
    pub(super) fn add_task(&mut self, task: u32) {
        self.tasks.push_back(task);
    }

    /// A task could not go on for lack of a place: it is the first again.
    pub(super) fn put_back_task(&mut self, task: u32) {
        self.tasks.push_front(task);
    }

    /// What a part waited for is there.
    pub(super) fn add_part(&mut self, part: u32) {
        self.parts.push_back(part);
    }

    /// A part could not be started: it is the first again.
    pub(super) fn put_back_part(&mut self, part: u32) {
        self.parts.push_front(part);
    }

    /// What to go on with.
    pub(super) fn take(&mut self) -> Option<Next> {
        let part = self.parts.pop_front().map(Next::Part);
        part.or_else(|| self.tasks.pop_front().map(Next::Task))
    }

    /// Whether there is nothing to go on with.
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tasks.is_empty()
    }

    /// A place for another part to wait in, if it may, where `room` more reads may be in
    /// flight in all. Never more than what is left: so there is always something left
    /// for a device that has none, whoever came before it.
    pub(super) fn take_place(&mut self, room: u32) -> Option<Place> {
        let is_free = self.waiting < PLACES.min(room);
        self.waiting += u32::from(is_free);
        is_free.then_some(Place(()))
    }

    /// A part is done that waited in this place, which was taken here.
    pub(super) fn give_back_place(&mut self, place: Place) {
        let Place(()) = place;
        self.waiting -= 1;
    }

    /// The device has the turn that [`Rounds::next`] gave it.
    pub(super) fn turn_began(&mut self) {
        self.queued = false;
    }

    /// Whether the device comes back by itself once something is done: nobody
    /// need ask it until then.
    fn is_waiting(&self) -> bool {
        self.parts.is_empty() && self.waiting > 0
    }
}

/// The devices with a backlog, in the order of their turns.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    places: VecDeque<usize>,
}

impl Rounds {
    /// How many devices have something to do.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The device at `place` gets a turn, after those that have one already.
    pub(super) fn add(&mut self, place: usize, backlog: &mut Backlog) {
        if !backlog.is_empty() && !std::mem::replace(&mut backlog.queued, true) {
            self.places.push_back(place);
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.places.pop_front()
    }

    /// A turn ends that was begun by [`Backlog::turn_began`]; whether it was of
    /// any use.
    pub(super) fn ended(&mut self, place: usize, backlog: &mut Backlog, useful: bool) {
        if useful || !backlog.is_waiting() {
            self.add(place, backlog);
        }
    }

    /// The device is gone.
    pub(super) fn forget(&mut self, place: usize) {
        self.places.retain(|other| *other != place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives turns in which each device does one thing, and says whose they were.
    fn turns(rounds: &mut Rounds, backlogs: &mut [Backlog], count: usize) -> Vec<usize> {
        let mut whose = Vec::new();
        while whose.len() < count
            && let Some(place) = rounds.next()
        {
            let backlog = &mut backlogs[place];
            backlog.turn_began();
            let next = backlog.take().unwrap();
            if next == Next::Task(0) {
                // It has more to do.
                backlog.add_task(0);
            }
            rounds.ended(place, backlog, true);
            whose.push(place);
        }
        whose
    }

    #[test]
    fn a_device_with_little_to_do_waits_for_one_step_of_each_other() {
        let mut rounds = Rounds::default();
        let mut backlogs: [Backlog; 3] = Default::default();
        for place in [0, 1] {
            for _ in 0..1000 {
                backlogs[place].add_task(0);
                rounds.add(place, &mut backlogs[place]);
            }
        }
        assert_eq!(turns(&mut rounds, &mut backlogs, 4), [0, 1, 0, 1]);
        backlogs[2].add_part(7);
        rounds.add(2, &mut backlogs[2]);
        assert_eq!(turns(&mut rounds, &mut backlogs, 5), [0, 1, 2, 0, 1]);
        rounds.forget(0);
        assert_eq!(turns(&mut rounds, &mut backlogs, 2), [1, 1]);
    }

    #[test]
    fn a_device_that_waits_for_the_disk_comes_back_when_a_part_is_done() {
        let (mut rounds, mut backlog) = (Rounds::default(), Backlog::default());
        backlog.add_task(1);
        let place = backlog.take_place(1).unwrap();
        rounds.add(0, &mut backlog);
        assert_eq!(rounds.next(), Some(0));
        backlog.turn_began();
        assert_eq!(backlog.take(), Some(Next::Task(1)));
        backlog.put_back_task(1);
        rounds.ended(0, &mut backlog, false);
        assert!(rounds.is_empty(), "its next turn would be as useless");
        backlog.give_back_place(place);
        rounds.add(0, &mut backlog);
        // With nothing that could bring it back it is asked again and again.
        rounds.next();
        backlog.turn_began();
        rounds.ended(0, &mut backlog, false);
        assert_eq!(rounds.len(), 1);
    }

    #[test]
    fn however_many_devices_read_all_they_can_there_is_a_place_for_another() {
        const ROOM: u32 = 256;
        let mut taken = 0;
        for number in 0..60 {
            let mut greedy = Backlog::default();
            while greedy.take_place(ROOM - taken).is_some() {
                taken += 1;
            }
            if number < 5 {
                let other = Backlog::default().take_place(ROOM - taken);
                assert!(other.is_some(), "after {number}");
            }
            assert!(greedy.waiting <= PLACES);
        }
        assert_eq!(taken, ROOM, "nothing is left unused");
    }
}

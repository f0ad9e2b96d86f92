//! Lets frontends in: one thread for all sockets, and one for each connection.
//!
//! Owns the VMs' sockets while they are served: VMs come and go by [`Acceptor`]
//! while others' connections go on. What one socket does with its clients is in
//! [`door`].
//!
//! Nobody here waits for what a frontend may delay. The last close of its socket
//! is its connection's thread's business, or that of a thread that does nothing
//! else ([`super::apart`]). Where a connection's thread is stuck in a close, its
//! device is detached without it after [`CUT_OFF_AFTER`].
//!
//! Where accept(2) fails for want of descriptors or memory, the sockets rest
//! for [`REST`], or until a connection ends: clients wait in the backlog.

mod door;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vm::{ListeningVm, Vm};
use door::{Door, Exhausted};

/// How long nobody is let in after accept(2) failed.
const REST: Duration = Duration::from_millis(500);

/// How long a connection's thread has to detach its device once it is cut off.
const CUT_OFF_AFTER: Duration = Duration::from_secs(5);

/// Why a VM is not taken out.
#[derive(Debug)]
pub(super) enum Kept {
    /// Its client is connected, and nobody used force.
    Connected,
    /// It is not here; nothing is, once the acceptor has stopped.
    Gone,
}

type Removed = SyncSender<Result<ListeningVm, Kept>>;

enum Order {
    Add(Box<ListeningVm>),
    Remove {
        id: u64,
        force: bool,
        answer: Removed,
    },
    /// The VM's device was detached without its connection's thread.
    GivenUp(u64),
    Stop,
}

/// What became of a VM's clients.
#[derive(Clone, Copy)]
enum Event {
    /// The device is detached and drained.
    Drained,
    /// The connection's last descriptor is closed.
    Closed,
    /// A client that was turned away is closed.
    TurnedAway,
}

/// What other threads say. Bounded by the changes under way and the
/// connections.
#[derive(Default)]
struct News {
    orders: Vec<Order>,
    events: Vec<(u64, Event)>,
}

struct Shared {
    news: Mutex<News>,
    wake: EventFd,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = self.wake.write(1);
    }

    fn order(&self, order: Order) {
        self.change(|news| news.orders.push(order));
    }

    fn tell(&self, id: u64, event: Event) {
        self.change(|news| news.events.push((id, event)));
    }

    /// Waits for news, for at most `timeout`, or for one of the listeners of
    /// `open`; whose were ready.
    fn wait<'a>(
        &self,
        open: impl Iterator<Item = (u64, BorrowedFd<'a>)>,
        timeout: Option<Duration>,
    ) -> Result<Vec<u64>, rustix::io::Errno> {
        let (ids, mut fds): (Vec<u64>, Vec<_>) =
            open.map(|(id, fd)| (id, PollFd::from_borrowed_fd(fd, PollFlags::IN))).unzip();
        #[expect(unsafe_code, reason = "EventFd does not lend itself as a descriptor")]
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        let wake = unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) };
        fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        let ready = ids.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(id, _)| *id).collect())
    }

    fn take(&self) -> News {
        let _ = self.wake.read();
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The running acceptor.
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Vec<ListeningVm>>>>,
}

impl Acceptor {
    pub(super) fn start() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let shared = Arc::new(Shared { news: Mutex::default(), wake });
        let accepting =
            Accepting { shared: Arc::clone(&shared), doors: BTreeMap::new(), rest_until: None };
        let thread =
            std::thread::Builder::new().name("acceptor".into()).spawn(|| accepting.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Lets clients in to a VM.
    pub(super) fn add(&self, vm: ListeningVm) {
        self.shared.order(Order::Add(Box::new(vm)));
    }

    /// Takes a VM out: lets nobody in any more and returns when its device is
    /// drained. A client that is connected keeps it, or is cut off with `force`.
    pub(super) fn remove(&self, vm: &Vm, force: bool) -> Result<ListeningVm, Kept> {
        let (answer, answered) = sync_channel(1);
        self.shared.order(Order::Remove { id: vm.id(), force, answer });
        match answered.recv_timeout(CUT_OFF_AFTER) {
            Err(RecvTimeoutError::Timeout) => {}
            answer => return answer.unwrap_or(Err(Kept::Gone)),
        }
        if give_up(vm) {
            self.shared.order(Order::GivenUp(vm.id()));
        }
        answered.recv().unwrap_or(Err(Kept::Gone))
    }

    /// Closes all connections, and returns when their devices are drained; the
    /// VMs that were served. Nothing the second time.
    pub(super) fn stop(&self) -> Vec<ListeningVm> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.order(Order::Stop);
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// Detaches the device of a connection whose thread is stuck; false where the
/// thread is doing it.
fn give_up(vm: &Vm) -> bool {
    let given_up = vm.link().give_up(vm.reactor());
    if given_up {
        log::warn!(
            "VM {}: its connection hangs in closing what its frontend sent; its device is \
             detached without it",
            vm.disk().name()
        );
    }
    given_up
}

struct Accepting {
    shared: Arc<Shared>,
    doors: BTreeMap<u64, Door>,
    rest_until: Option<Instant>,
}

impl Accepting {
    fn run(mut self) -> Vec<ListeningVm> {
        loop {
            let ready = self.wait_for_clients();
            let news = self.shared.take();
            news.events.into_iter().for_each(|(id, event)| self.heed(id, event));
            let mut stopping = false;
            for order in news.orders {
                match order {
                    Order::Add(vm) => self.add(*vm),
                    Order::Remove { id, force, answer } => self.remove(id, force, answer),
                    Order::GivenUp(id) => self.drained(id),
                    Order::Stop => stopping = true,
                }
            }
            if stopping {
                return self.close();
            }
            self.try_again();
            for id in ready {
                self.with_door(id, |door, shared| match door.listener() {
                    Some(_) => door.accept(shared),
                    None => Ok(()),
                });
            }
        }
    }

    /// Waits for news; the VMs that somebody wants to connect to.
    fn wait_for_clients(&mut self) -> Vec<u64> {
        let rest = self.rest_until.map(|until| until.saturating_duration_since(Instant::now()));
        let rest = rest.filter(|rest| !rest.is_zero());
        if rest.is_none() {
            self.rest_until = None;
        }
        let open = self.doors.iter().filter(|_| rest.is_none());
        let open = open.filter_map(|(id, door)| Some((*id, door.listener()?)));
        match self.shared.wait(open, rest) {
            Ok(ready) => ready,
            Err(e) => {
                log::error!(
                    "can't wait for connections, trying again in {} ms: {e}; VMs that are \
                     connected go on",
                    REST.as_millis()
                );
                self.rest_until = Some(Instant::now() + REST);
                Vec::new()
            }
        }
    }

    fn heed(&mut self, id: u64, event: Event) {
        match event {
            Event::Drained => self.drained(id),
            Event::Closed => {
                // Its descriptors may be what was missing.
                self.rest_until = None;
                self.with_door(id, Door::closed);
            }
            Event::TurnedAway => self.with_door(id, Door::is_rid),
        }
    }

    /// Does something with a VM's socket; rests where it lacks a thread or a
    /// descriptor.
    fn with_door(
        &mut self,
        id: u64,
        work: impl FnOnce(&mut Door, &Arc<Shared>) -> Result<(), Exhausted>,
    ) {
        if let Some(door) = self.doors.get_mut(&id)
            && work(door, &self.shared).is_err()
        {
            self.rest_until = Some(Instant::now() + REST);
        }
    }

    /// Starts the threads that could not be had before, unless it rests.
    fn try_again(&mut self) {
        let doors = self.doors.iter().filter(|(_, door)| door.has_work());
        let ids: Vec<u64> = doors.map(|(id, _)| *id).collect();
        for id in ids {
            if self.rest_until.is_none() {
                self.with_door(id, Door::go_on);
            }
        }
    }

    fn add(&mut self, vm: ListeningVm) {
        if let Err(e) = vm.listener().set_nonblocking(true) {
            log::error!(
                "VM {}: its socket can't be made non-blocking: {e}; detach the VM and attach it \
                 again",
                vm.vm().disk().name()
            );
        }
        self.doors.insert(vm.vm().id(), Door::new(vm));
    }

    fn remove(&mut self, id: u64, force: bool, answer: Removed) {
        let Some(door) = self.doors.get_mut(&id) else {
            return drop(answer.send(Err(Kept::Gone)));
        };
        if !force && door.is_in_use() {
            return drop(answer.send(Err(Kept::Connected)));
        }
        door.leaving = Some(answer);
        if door.has_client() {
            door.cut_off(Shutdown::Both);
        } else {
            self.drained(id);
        }
    }

    fn drained(&mut self, id: u64) {
        let Some(door) = self.doors.get_mut(&id) else {
            return;
        };
        door.drained();
        if let Some(answer) = door.leaving.take()
            && let Some(door) = self.doors.remove(&id)
        {
            drop(answer.send(Ok(door.into_vm())));
        }
    }

    /// Ends all connections, and returns when their devices are drained.
    fn close(mut self) -> Vec<ListeningVm> {
        // The frontends learn of the end by the close, when all is drained.
        self.doors.values().for_each(|door| door.cut_off(Shutdown::Read));
        let mut deadline = Some(Instant::now() + CUT_OFF_AFTER);
        while self.doors.values().any(Door::has_client) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let waited = self.shared.wait(std::iter::empty(), left);
            for (id, event) in self.shared.take().events {
                if let (Event::Drained, Some(door)) = (event, self.doors.get_mut(&id)) {
                    door.drained();
                }
            }
            if waited.is_err() || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                deadline = None;
                let clients = self.doors.values_mut().filter(|door| door.has_client());
                clients.filter(|door| give_up(door.vm())).for_each(Door::drained);
            }
        }
        let mut vms = Vec::new();
        for mut door in self.doors.into_values() {
            match door.leaving.take() {
                Some(answer) => drop(answer.send(Ok(door.into_vm()))),
                None => vms.push(door.into_vm()),
            }
        }
        vms
    }
}

//! Lets frontends in: one thread for all sockets, and one for each connection.
//!
//! Owns the VMs' sockets while they are served: VMs come and go by [`Acceptor`]
//! while others' connections go on. A socket has one client at a time. A second
//! one is turned away at once, unless the first has hung up and only its device
//! is still being drained, as when a VMM restarts: then the newcomer waits for
//! that.
//!
//! Where accept(2) fails for want of descriptors or memory, the sockets rest
//! for [`REST`], or until a connection ends: clients wait in the backlog.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vm::{ListeningVm, Vm};
use crate::vhost_user;

/// Enough for the vhost crate's message buffers; a hundred of these threads
/// sleep in recv(2).
const STACK_BYTES: usize = 128 << 10;

/// How long nobody is let in after accept(2) failed.
const REST: Duration = Duration::from_millis(500);

struct Connection {
    /// A clone, for shutting it down from outside.
    stream: UnixStream,
    thread: JoinHandle<()>,
    /// A newcomer that waits until this one is drained.
    waiting: Option<UnixStream>,
}

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
    Remove { id: u64, force: bool, answer: Removed },
    Stop,
}

/// What other threads say. Bounded by the changes under way and the
/// connections.
#[derive(Default)]
struct News {
    orders: Vec<Order>,
    /// VMs whose connection has ended.
    ended: Vec<u64>,
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
}

/// Tells the acceptor of a connection's end, however it comes.
struct Ended {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.shared.change(|news| news.ended.push(self.id));
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
        self.shared.change(|news| news.orders.push(Order::Add(Box::new(vm))));
    }

    /// Takes a VM out: lets nobody in any more and returns when its device is
    /// drained. A client that is connected keeps it, or is cut off with `force`.
    pub(super) fn remove(&self, id: u64, force: bool) -> Result<ListeningVm, Kept> {
        let (answer, answered) = sync_channel(1);
        self.shared.change(|news| news.orders.push(Order::Remove { id, force, answer }));
        answered.recv().unwrap_or(Err(Kept::Gone))
    }

    /// Closes all connections, and returns when their devices are drained; the
    /// VMs that were served. Nothing the second time.
    pub(super) fn stop(&self) -> Vec<ListeningVm> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.change(|news| news.orders.push(Order::Stop));
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// A VM's socket and who came through it.
struct Door {
    vm: ListeningVm,
    connection: Option<Connection>,
    /// Closed: somebody waits for the device to be drained.
    leaving: Option<Removed>,
}

struct Accepting {
    shared: Arc<Shared>,
    doors: BTreeMap<u64, Door>,
    rest_until: Option<Instant>,
}

impl Accepting {
    fn run(mut self) -> Vec<ListeningVm> {
        loop {
            let ready = self.wait();
            let _ = self.shared.wake.read();
            let news = std::mem::take(
                &mut *self.shared.news.lock().unwrap_or_else(PoisonError::into_inner),
            );
            for id in news.ended {
                self.ended(id);
            }
            let mut stopping = false;
            for order in news.orders {
                match order {
                    Order::Add(vm) => self.add(*vm),
                    Order::Remove { id, force, answer } => self.remove(id, force, answer),
                    Order::Stop => stopping = true,
                }
            }
            if stopping {
                return self.close();
            }
            for id in ready {
                self.accept(id);
            }
        }
    }

    fn close(self) -> Vec<ListeningVm> {
        for connection in self.doors.values().filter_map(|door| door.connection.as_ref()) {
            // The frontend learns of the end by the close, when all is drained.
            let _ = connection.stream.shutdown(std::net::Shutdown::Read);
        }
        let mut vms = Vec::new();
        for mut door in self.doors.into_values() {
            if let Some(connection) = door.connection.take() {
                let _ = connection.thread.join();
            }
            match door.leaving {
                Some(answer) => drop(answer.send(Ok(door.vm))),
                None => vms.push(door.vm),
            }
        }
        vms
    }

    /// Waits for news; the VMs that somebody wants to connect to.
    fn wait(&mut self) -> Vec<u64> {
        let rest = self.rest_until.map(|until| until.saturating_duration_since(Instant::now()));
        let resting = rest.is_some_and(|rest| !rest.is_zero());
        if !resting {
            self.rest_until = None;
        }
        let open = self.doors.iter().filter(|(_, door)| !resting && door.leaving.is_none());
        let (ids, mut fds): (Vec<u64>, Vec<_>) =
            open.map(|(id, door)| (*id, PollFd::new(door.vm.listener(), PollFlags::IN))).unzip();
        #[expect(unsafe_code, reason = "EventFd does not lend itself as a descriptor")]
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        let wake = unsafe {
            let raw = std::os::fd::AsRawFd::as_raw_fd(&self.shared.wake);
            std::os::fd::BorrowedFd::borrow_raw(raw)
        };
        fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        let timeout = rest.filter(|_| resting).and_then(|rest| rest.try_into().ok());
        if let Err(e) = poll(&mut fds, timeout.as_ref())
            && e != rustix::io::Errno::INTR
        {
            log::error!("can't wait for connections: {e}");
            self.rest_until = Some(Instant::now() + REST);
            return Vec::new();
        }
        let ready = ids.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|(id, _)| *id).collect()
    }

    fn add(&mut self, vm: ListeningVm) {
        if let Err(e) = vm.listener().set_nonblocking(true) {
            log::error!("VM {}: its socket can't be used: {e}", vm.vm().disk().name());
        }
        self.doors.insert(vm.vm().id(), Door { vm, connection: None, leaving: None });
    }

    fn remove(&mut self, id: u64, force: bool, answer: Removed) {
        let Some(door) = self.doors.get_mut(&id) else {
            return drop(answer.send(Err(Kept::Gone)));
        };
        let Some(connection) = &mut door.connection else {
            if let Some(door) = self.doors.remove(&id) {
                drop(answer.send(Ok(door.vm)));
            }
            return;
        };
        if !force && !has_hung_up(&connection.stream) {
            return drop(answer.send(Err(Kept::Connected)));
        }
        connection.waiting = None;
        let _ = connection.stream.shutdown(std::net::Shutdown::Both);
        door.leaving = Some(answer);
    }

    fn accept(&mut self, id: u64) {
        let Some(door) = self.doors.get_mut(&id).filter(|door| door.leaving.is_none()) else {
            return;
        };
        let name = door.vm.vm().disk().name();
        let stream = match door.vm.listener().accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // The client is gone again.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => return,
            Err(e) => {
                crate::disk::log_seldom(&format_args!(
                    "VM {name}: can't accept a connection, resting for {} ms: {e}",
                    REST.as_millis()
                ));
                self.rest_until = Some(Instant::now() + REST);
                return;
            }
        };
        match &mut door.connection {
            None => self.connect(id, stream),
            Some(old) if old.waiting.is_none() && has_hung_up(&old.stream) => {
                old.waiting = Some(stream);
            }
            Some(_) => log::warn!(
                "VM {name}: a second client was turned away; one is connected to {} already",
                door.vm.vm().config().socket.display()
            ),
        }
    }

    fn connect(&mut self, id: u64, stream: UnixStream) {
        let Some(door) = self.doors.get_mut(&id) else {
            return;
        };
        let vm = Arc::clone(door.vm.vm());
        let name = vm.disk().name().to_owned();
        let shared = Arc::clone(&self.shared);
        let result = stream.try_clone().and_then(|in_thread| {
            std::thread::Builder::new()
                .name(format!("vhost-{}", name.chars().take(9).collect::<String>()))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    let _ended = Ended { shared, id };
                    serve(&vm, in_thread);
                })
        });
        match result {
            Ok(thread) => door.connection = Some(Connection { stream, thread, waiting: None }),
            Err(e) => {
                crate::disk::log_seldom(&format_args!(
                    "VM {name}: can't start a thread for its connection: {e}"
                ));
                self.rest_until = Some(Instant::now() + REST);
            }
        }
    }

    fn ended(&mut self, id: u64) {
        // Its descriptors may be what was missing.
        self.rest_until = None;
        let Some(connection) = self.doors.get_mut(&id).and_then(|door| door.connection.take())
        else {
            return;
        };
        let _ = connection.thread.join();
        let leaving = self.doors.get_mut(&id).and_then(|door| door.leaving.take());
        match (leaving, connection.waiting) {
            (Some(answer), _) => {
                if let Some(door) = self.doors.remove(&id) {
                    drop(answer.send(Ok(door.vm)));
                }
            }
            (None, Some(stream)) => self.connect(id, stream),
            (None, None) => {}
        }
    }
}

fn serve(vm: &Vm, stream: UnixStream) {
    let name = vm.disk().name();
    log::info!("VM {name}: connected");
    match vhost_user::serve(stream, vm.disk(), vm.config().queues, vm.reactor(), vm.link()) {
        Ok(()) => log::info!("VM {name}: disconnected"),
        Err(why) => log::warn!("VM {name}: disconnected its frontend: {why}"),
    }
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = rustix::event::Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

//! Lets frontends in: one thread for all sockets, and one for each connection.
//!
//! A socket has one client at a time. A second one is turned away at once,
//! unless the first has hung up and only its device is still being drained, as
//! when a VMM restarts: then the newcomer waits for that.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vm::Vm;
use crate::vhost_user;

/// Enough for the vhost crate's message buffers; a hundred of these threads
/// sleep in recv(2).
const STACK_BYTES: usize = 128 << 10;

struct Connection {
    /// A clone, for shutting it down from outside.
    stream: UnixStream,
    thread: JoinHandle<()>,
    /// A newcomer that waits until this one is drained.
    waiting: Option<UnixStream>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// Places of VMs whose connection has ended.
    ended: Vec<usize>,
}

struct Shared {
    state: Mutex<State>,
    wake: EventFd,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = self.wake.write(1);
    }
}

/// Tells the acceptor of a connection's end, however it comes.
struct Ended {
    shared: Arc<Shared>,
    place: usize,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.shared.change(|state| state.ended.push(self.place));
    }
}

/// The running acceptor.
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    pub(super) fn start(vms: Arc<[Vm]>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake });
        for vm in vms.iter() {
            vm.listener().set_nonblocking(true)?;
        }
        let in_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("acceptor".into()).spawn(move || {
            Accepting { vms, shared: in_thread, connections: HashMap::new() }.run()
        })?;
        Ok(Self { shared, thread })
    }

    /// Closes all connections, and returns when their devices are drained.
    pub(super) fn stop(self) {
        self.shared.change(|state| state.stopping = true);
        let _ = self.thread.join();
    }
}

struct Accepting {
    vms: Arc<[Vm]>,
    shared: Arc<Shared>,
    connections: HashMap<usize, Connection>,
}

impl Accepting {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            let _ = self.shared.wake.read();
            let state = std::mem::take(
                &mut *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner),
            );
            for place in state.ended {
                self.ended(place);
            }
            if state.stopping {
                break;
            }
            for place in ready {
                self.accept(place);
            }
        }
        for (_, connection) in self.connections {
            let _ = connection.stream.shutdown(std::net::Shutdown::Both);
            let _ = connection.thread.join();
        }
    }

    /// Waits for news; the VMs that somebody wants to connect to.
    fn wait(&self) -> Vec<usize> {
        let listeners = self.vms.iter().map(|vm| PollFd::new(vm.listener(), PollFlags::IN));
        let mut fds: Vec<_> = listeners.collect();
        #[expect(unsafe_code, reason = "EventFd does not lend itself as a descriptor")]
        // SAFETY: the eventfd is open as long as `self` is borrowed.
        let wake = unsafe {
            let raw = std::os::fd::AsRawFd::as_raw_fd(&self.shared.wake);
            std::os::fd::BorrowedFd::borrow_raw(raw)
        };
        fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        if let Err(e) = poll(&mut fds, None)
            && e != rustix::io::Errno::INTR
        {
            log::error!("can't wait for connections: {e}");
        }
        let ready = |(place, fd): (usize, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(place);
        fds[..self.vms.len()].iter().enumerate().filter_map(ready).collect()
    }

    fn accept(&mut self, place: usize) {
        let name = self.vms[place].disk().name();
        let stream = match self.vms[place].listener().accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) => {
                return crate::disk::log_seldom(&format_args!("VM {name}: can't accept: {e}"));
            }
        };
        match self.connections.get_mut(&place) {
            None => self.connect(place, stream),
            Some(old) if old.waiting.is_none() && has_hung_up(&old.stream) => {
                old.waiting = Some(stream);
            }
            Some(_) => log::warn!(
                "VM {name}: a second client was turned away; one is connected to {} already",
                self.vms[place].socket_path().display()
            ),
        }
    }

    fn connect(&mut self, place: usize, stream: UnixStream) {
        let name = self.vms[place].disk().name().to_owned();
        let result = stream.try_clone().and_then(|in_thread| {
            let (vms, shared) = (Arc::clone(&self.vms), Arc::clone(&self.shared));
            std::thread::Builder::new()
                .name(format!("vhost-{}", name.chars().take(9).collect::<String>()))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    let _ended = Ended { shared, place };
                    serve(&vms[place], in_thread);
                })
        });
        match result {
            Ok(thread) => {
                self.connections.insert(place, Connection { stream, thread, waiting: None });
            }
            Err(e) => log::error!("VM {name}: can't start a thread for its connection: {e}"),
        }
    }

    fn ended(&mut self, place: usize) {
        if let Some(connection) = self.connections.remove(&place) {
            let _ = connection.thread.join();
            if let Some(stream) = connection.waiting {
                self.connect(place, stream);
            }
        }
    }
}

fn serve(vm: &Vm, stream: UnixStream) {
    let name = vm.disk().name();
    log::info!("VM {name}: connected");
    match vhost_user::serve(stream, vm.disk(), vm.queues(), vm.reactor()) {
        Ok(()) => log::info!("VM {name}: disconnected"),
        Err(why) => log::warn!("VM {name}: disconnected its frontend: {why}"),
    }
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = rustix::event::Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

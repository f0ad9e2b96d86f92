//! One VM's socket, and who came through it.
//!
//! A socket has one client at a time. A second one is turned away at once,
//! unless the first has hung up and only its device is still being drained, as
//! when a VMM restarts: then the newcomer waits for that. While a client is
//! still being turned away, the next ones wait in the backlog.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{PollFd, PollFlags, poll};

use super::{Event, REST, Removed, Shared};
use crate::daemon::apart::{drop_apart, drop_apart_or_never};
use crate::daemon::vm::{ListeningVm, Vm};
use crate::logging::limit::log_for;
use crate::vhost_user::{self, Session};

/// Enough for the vhost crate's message buffers; a hundred of these threads
/// sleep in recv(2).
const STACK_BYTES: usize = 128 << 10;

/// A thread or a descriptor can't be had now.
pub(super) struct Exhausted;

/// A client with a thread of its own, which has the stream too and closes it
/// when the one here is gone.
struct Connection {
    stream: Arc<UnixStream>,
    // After the stream: its drop lets the thread go on.
    _release: SyncSender<()>,
}

enum Inside {
    Nobody,
    Client(Connection),
    /// The device is detached; the thread closes what is left of the client.
    Closing,
}

#[derive(Default)]
enum TurnedAway {
    #[default]
    Nobody,
    /// There was no thread for it.
    Waits(UnixStream),
    /// Being closed.
    Goes,
}

pub(super) struct Door {
    vm: ListeningVm,
    inside: Inside,
    /// A newcomer that waits for the one inside to be closed, or for a thread.
    waiting: Option<Arc<UnixStream>>,
    turned_away: TurnedAway,
    /// Closed: somebody waits for the device to be drained.
    pub(super) leaving: Option<Removed>,
}

impl Door {
    pub(super) fn new(vm: ListeningVm) -> Self {
        let (inside, turned_away) = (Inside::Nobody, TurnedAway::Nobody);
        Self { vm, inside, waiting: None, turned_away, leaving: None }
    }

    pub(super) fn vm(&self) -> &Arc<Vm> {
        self.vm.vm()
    }

    /// The listener, while somebody may be let in.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        let open = self.leaving.is_none()
            && self.waiting.is_none()
            && matches!(self.turned_away, TurnedAway::Nobody);
        open.then(|| self.vm.listener().as_fd())
    }

    /// Whether there is a device that is not drained yet.
    pub(super) fn has_client(&self) -> bool {
        matches!(self.inside, Inside::Client(_))
    }

    /// Whether a client is there that has not hung up.
    pub(super) fn is_in_use(&self) -> bool {
        matches!(&self.inside, Inside::Client(client) if !has_hung_up(&client.stream))
    }

    /// Ends the connection, if there is one: its thread sees to the rest.
    pub(super) fn cut_off(&self, how: Shutdown) {
        if let Inside::Client(client) = &self.inside {
            let _ = client.stream.shutdown(how);
        }
    }

    /// The VM, without its clients: nobody waits for those to be closed.
    pub(super) fn into_vm(self) -> ListeningVm {
        let unwanted = match self.turned_away {
            TurnedAway::Waits(stream) => Some(stream),
            TurnedAway::Nobody | TurnedAway::Goes => None,
        };
        if self.waiting.is_some() || unwanted.is_some() {
            drop_apart_or_never((self.waiting, unwanted));
        }
        self.vm
    }

    /// Takes the next client off the backlog.
    pub(super) fn accept(&mut self, shared: &Arc<Shared>) -> Result<(), Exhausted> {
        let name = self.vm().disk().name();
        let stream = match self.vm.listener().accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The client is gone again.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => return Ok(()),
            Err(e) => {
                self.vm().disk().log_error(format_args!(
                    "can't accept a connection, trying again in {} ms: {e}; raise the limit that \
                     it names, or detach VMs",
                    REST.as_millis()
                ));
                return Err(Exhausted);
            }
        };
        if self.is_in_use() {
            let socket = self.vm().config().socket.display();
            log_for!(
                self.vm().disk(),
                Warn,
                "VM {name}: a second client was turned away; one is connected to {socket} already"
            );
            self.turned_away = TurnedAway::Waits(stream);
        } else {
            self.waiting = Some(Arc::new(stream));
        }
        self.go_on(shared)
    }

    /// Whether [`Self::go_on`] has something to do.
    pub(super) fn has_work(&self) -> bool {
        let may_connect = self.leaving.is_none() && matches!(self.inside, Inside::Nobody);
        matches!(self.turned_away, TurnedAway::Waits(_)) || (self.waiting.is_some() && may_connect)
    }

    /// Starts the threads that clients wait for.
    pub(super) fn go_on(&mut self, shared: &Arc<Shared>) -> Result<(), Exhausted> {
        if !self.has_work() {
            return Ok(());
        }
        match std::mem::take(&mut self.turned_away) {
            TurnedAway::Waits(stream) => self.close_apart(stream, shared)?,
            other => self.turned_away = other,
        }
        match self.waiting.take() {
            Some(stream) if matches!(self.inside, Inside::Nobody) => self.connect(stream, shared),
            other => {
                self.waiting = other;
                Ok(())
            }
        }
    }

    fn close_apart(&mut self, stream: UnixStream, shared: &Arc<Shared>) -> Result<(), Exhausted> {
        let (id, shared) = (self.vm().id(), Arc::clone(shared));
        match drop_apart(stream, move || shared.tell(id, Event::TurnedAway)) {
            Ok(()) => {
                self.turned_away = TurnedAway::Goes;
                Ok(())
            }
            Err(stream) => {
                self.turned_away = TurnedAway::Waits(stream);
                Err(Exhausted)
            }
        }
    }

    fn connect(&mut self, stream: Arc<UnixStream>, shared: &Arc<Shared>) -> Result<(), Exhausted> {
        let vm = Arc::clone(self.vm());
        let name: String = vm.disk().name().chars().take(9).collect();
        let (release, released) = sync_channel(0);
        let (in_thread, shared) = (Arc::clone(&stream), Arc::clone(shared));
        let thread =
            std::thread::Builder::new().name(format!("vhost-{name}")).stack_size(STACK_BYTES);
        let session = vm.link().let_in(&stream);
        match thread.spawn(move || run(vm, &session, in_thread, &released, shared)) {
            Ok(_) => {
                self.inside = Inside::Client(Connection { stream, _release: release });
                Ok(())
            }
            Err(e) => {
                let disk = self.vm().disk();
                disk.log_error(format_args!(
                    "can't start a thread for its connection, trying again in {} ms: {e}; raise \
                     the limit of tasks (TasksMax=, ulimit -u)",
                    REST.as_millis()
                ));
                self.waiting = Some(stream);
                Err(Exhausted)
            }
        }
    }

    /// The device is detached: the thread may close the connection.
    pub(super) fn drained(&mut self) {
        if self.has_client() {
            self.inside = Inside::Closing;
        }
    }

    /// Nothing is left of the connection.
    pub(super) fn closed(&mut self, shared: &Arc<Shared>) -> Result<(), Exhausted> {
        // Where somebody else detaches the device, that is not done yet.
        if !self.has_client() {
            self.inside = Inside::Nobody;
        }
        self.go_on(shared)
    }

    /// Nothing is left of the client that was turned away.
    pub(super) fn is_rid(&mut self, shared: &Arc<Shared>) -> Result<(), Exhausted> {
        self.turned_away = TurnedAway::Nobody;
        self.go_on(shared)
    }
}

/// Tells the acceptor of what has come, also where a panic brought it.
struct Telling {
    shared: Arc<Shared>,
    id: u64,
    event: Event,
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.shared.tell(self.id, self.event);
    }
}

/// A connection's thread.
fn run(
    vm: Arc<Vm>,
    session: &Arc<Session>,
    stream: Arc<UnixStream>,
    released: &Receiver<()>,
    shared: Arc<Shared>,
) {
    let id = vm.id();
    let _closed = Telling { shared: Arc::clone(&shared), id, event: Event::Closed };
    // Closed before that is told.
    let stream = stream;
    serve(&vm, session, &stream, shared);
    drop(vm);
    // The acceptor must not be the last to have it. It never sends anything.
    let _ = released.recv();
    drop(stream);
}

fn serve(vm: &Vm, session: &Arc<Session>, stream: &UnixStream, shared: Arc<Shared>) {
    /// Not told where somebody else detaches the device, who tells it then.
    struct Drained<'a>(&'a Session, Option<Telling>);
    impl Drop for Drained<'_> {
        fn drop(&mut self) {
            if self.0.is_given_up() {
                std::mem::forget(self.1.take());
            }
        }
    }
    let telling = Telling { shared, id: vm.id(), event: Event::Drained };
    let _drained = Drained(session, Some(telling));
    let name = vm.disk().name();
    log_for!(vm.disk(), Info, "VM {name}: connected");
    let served =
        stream.try_clone().map_err(|e| format!("can't use its socket: {e}")).and_then(|stream| {
            vhost_user::serve(
                stream,
                vm.disk(),
                vm.config().queues,
                vm.reactor(),
                session,
                vm.unused_leaf(),
            )
        });
    match served {
        Ok(()) => log_for!(vm.disk(), Info, "VM {name}: disconnected"),
        Err(why) => {
            // One that was given up ends with its VM: that is no trouble of the frontend's.
            if !session.is_given_up() {
                vm.disk().connection_failed(&why);
            }
            log_for!(vm.disk(), Warn, "VM {name}: disconnected its frontend: {why}");
        }
    }
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = rustix::event::Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

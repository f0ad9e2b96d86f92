//! The control API: HTTP/1.1 with JSON over a Unix socket.
//!
//! Owns a thread with a small asynchronous runtime, the bounds on what clients
//! may take (connections, sizes, time), and the paths (`router.rs`, a file for
//! each resource). It knows the daemon's [`Host`], and neither reactors nor
//! devices. What the daemon does may block, so it is done on the runtime's
//! blocking threads, a bounded number at a time.
//!
//! docs/control.md describes the API by example, docs/openapi.json exactly.

pub mod client;
mod connection;
mod json;
mod problem;
mod reload;
mod responses;
mod roots;
pub mod router;
mod seeing;
mod status;
mod stream;
mod turns;
mod verification;
mod vm_info;
mod vms;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub use problem::{Problem, ProblemKind};
pub use reload::{ReloadPart, ReloadResult};
pub use roots::RootInfo;
pub use status::{CacheInfo, CachePages, Counts, Health, HealthState, Status, Version};
pub use verification::{Verification, VerificationOutcome};
pub use vm_info::{
    Origin, ResizeRequest, ResizeResult, State, Told, TroubleInfo, VmCounters, VmInfo,
};

use crate::daemon::sockets::OwnedSocket;
use crate::daemon::{Host, HostError};
use crate::error::{CHECK_LIMITS, Error};
use problem::Kind;
use turns::{Gates, Turns};

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time; more wait in the socket's backlog.
    pub connections_max: usize,
    /// For a request's line and headers, and between two requests.
    pub header_time_max: Duration,
    /// For a request's body.
    pub body_time_max: Duration,
    /// In a request's body.
    pub body_bytes_max: usize,
    /// For a client to take something of an answer.
    pub write_time_max: Duration,
    /// Changes (attach, detach, …) at a time; more wait.
    pub changes_max: usize,
    /// Looks (list, show, …) at a time through one listener; more wait.
    pub looks_max: usize,
    /// For such a wait.
    pub turn_time_max: Duration,
    /// For requests that are under way when the server stops.
    pub stop_time_max: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 64,
            header_time_max: Duration::from_secs(10),
            body_time_max: Duration::from_secs(10),
            body_bytes_max: 64 << 10,
            write_time_max: Duration::from_secs(10),
            changes_max: 16,
            looks_max: 8,
            turn_time_max: Duration::from_secs(30),
            stop_time_max: Duration::from_secs(5),
        }
    }
}

/// What may be done through a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Everything.
    Full,
    /// Looking at what the host does, by rules for browsers ([`crate::web`]).
    ReadOnly,
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(OwnedSocket),
    /// A TCP port; the caller has bound it to the loopback address.
    Tcp(TcpListener),
}

/// What every request can reach.
#[derive(Clone)]
pub struct App(Arc<AppInner>);

struct AppInner {
    host: Host,
    bounds: Bounds,
    access: Access,
    turns: Turns,
}

impl App {
    /// The API of `host`, within `bounds`.
    pub fn new(host: Host, bounds: Bounds) -> Self {
        let turns = Turns::new(&bounds);
        Self(Arc::new(AppInner { host, bounds, access: Access::Full, turns }))
    }

    /// The same for those who come in by another listener, which have such
    /// access. They wait for each other, and for nobody else.
    fn at_door(&self, access: Access) -> Self {
        let AppInner { host, bounds, turns, .. } = &*self.0;
        let (host, turns) = (host.clone(), turns.at_another_door(bounds));
        Self(Arc::new(AppInner { host, bounds: *bounds, access, turns }))
    }

    fn access(&self) -> Access {
        self.0.access
    }

    fn bounds(&self) -> &Bounds {
        &self.0.bounds
    }

    /// Looks at the host, on a thread that may block.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Host) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Problem> {
        self.on_thread(&self.0.turns.look(), look).await
    }

    /// As [`Self::look`], for one that costs much: one at a time.
    pub(super) async fn look_long<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Host) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Problem> {
        self.on_thread(&self.0.turns.long_look(), look).await
    }

    /// Changes the host, on a thread that may block. Goes on where the client
    /// hangs up meanwhile.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Host) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Problem> {
        self.on_thread(&self.0.turns.change(), change).await
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        gates: &Gates,
        work: impl FnOnce(&Host) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, Problem> {
        let Some(turn) = turns::take(gates, self.0.bounds.turn_time_max).await else {
            return Err(Kind::TooBusy.because("too many requests are under way; try again later"));
        };
        let host = self.0.host.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&host)
        });
        match done.await {
            Ok(result) => result.map_err(Problem::from),
            Err(_) => Err(Kind::Failed.because("a part of leafblk failed; its log says more")),
        }
    }
}

/// The running control server.
#[derive(Debug)]
pub struct Server {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Serves `host` on a thread of its own.
    ///
    /// # Errors
    /// Where the thread can't be had.
    pub fn start(listeners: Vec<(Listener, Access)>, host: &Host) -> Result<Self, Error> {
        Self::start_within(listeners, host, Bounds::default())
    }

    /// As [`Self::start`], within other bounds.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_within(
        listeners: Vec<(Listener, Access)>,
        host: &Host,
        bounds: Bounds,
    ) -> Result<Self, Error> {
        let failed = |source: std::io::Error| {
            Error::failure(format!("can't start the control API: {source}; {CHECK_LIMITS}"))
        };
        let runtime = runtime(&bounds, listeners.len()).map_err(failed)?;
        let app = App::new(host.clone(), bounds);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                runtime.block_on(connection::serve(listeners, app, stopped));
                // Dropping the runtime waits for changes that are under way.
            })
            .map_err(failed)?;
        Ok(Self { stop, thread })
    }

    /// Lets nobody in any more, and returns when what is under way is done.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn runtime(bounds: &Bounds, doors: usize) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control-work")
        .max_blocking_threads(turns::threads_max(bounds, doors))
        .build()
}

//! From listeners to requests: accepting, and the bounds on each connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_io_timeout::TimeoutStream;

use super::stream::UnixClient;
use super::{Access, App, Bounds, Listener, router};
use crate::daemon::sockets::OwnedSocket;
use crate::logging::limit::Seldom;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Bytes of a request's line and headers; hyper takes no less than 8 KiB.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// How long nobody is let in after accept(2) failed.
const REST: Duration = Duration::from_millis(500);

/// A listener that the runtime polls. The socket's file goes with it.
enum Polled {
    Unix(UnixListener, #[expect(dead_code, reason = "owns the socket's file")] OwnedSocket),
    Tcp(TcpListener),
}

impl Polled {
    fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Unix(socket) => {
                let listener = socket.listener().try_clone()?;
                rustix::net::listen(&listener, BACKLOG)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(UnixListener::from_std(listener)?, socket))
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
        }
    }
}

/// Serves until `stopped` is told or dropped.
pub(super) async fn serve(
    listeners: Vec<(Listener, Access)>,
    app: App,
    stopped: oneshot::Receiver<()>,
) {
    let bounds = *app.bounds();
    let graceful = Arc::new(GracefulShutdown::new());
    let mut doors = Vec::new();
    for (listener, access) in listeners {
        match Polled::new(listener) {
            Ok(listener) => {
                let door = Door {
                    router: router::build(&app, access),
                    bounds,
                    // Each its own: those who come in by one take none from
                    // the others.
                    places: Arc::new(Semaphore::new(bounds.connections_max)),
                    graceful: Arc::clone(&graceful),
                };
                doors.push(tokio::spawn(door.let_in(listener)));
            }
            Err(error) => log::error!("the control API can't listen: {error}"),
        }
    }
    let _ = stopped.await;
    // Aborted and awaited: then their listeners are gone, and the socket files.
    for door in doors {
        door.abort();
        let _ = door.await;
    }
    if let Some(graceful) = Arc::into_inner(graceful) {
        let _ = tokio::time::timeout(bounds.stop_time_max, graceful.shutdown()).await;
    }
}

/// What is needed to serve those who come in by one listener.
struct Door {
    router: Router,
    bounds: Bounds,
    places: Arc<Semaphore>,
    graceful: Arc<GracefulShutdown>,
}

impl Door {
    async fn let_in(self, listener: Polled) {
        let refused = Seldom::new();
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            let accepted = match &listener {
                Polled::Unix(listener, _) => {
                    let accepted = listener.accept().await;
                    accepted
                        .map(|(stream, _)| self.connection(UnixClient::new(stream, place), None))
                }
                Polled::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| self.connection(stream, Some(place)))
                }
            };
            if let Err(error) = accepted {
                refused.error(format_args!("the control API can't accept a connection: {error}"));
                tokio::time::sleep(REST).await;
            }
        }
    }

    /// Serves a client; `place` is free again when its last answer is made, unless
    /// the stream has it.
    fn connection<S>(&self, stream: S, place: Option<OwnedSemaphorePermit>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.bounds.write_time_max));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.header_time_max)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(self.router.clone()),
            );
        let watched = self.graceful.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = watched.await {
                log::debug!("a control connection ended: {error}");
            }
        });
    }
}

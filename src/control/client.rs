//! The other side: how the command line asks a running leafblk.
//!
//! One connection, one request, one answer, by the same HTTP library as the
//! server's, within bounds of time: a leafblk that stands still is an error, and
//! nothing to wait for.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::unistd::{Group, User};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::problem::Problem;
use crate::error::Error;

/// Bytes of an answer that are taken: a thousand VMs take a megabyte.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long a look may take. leafblk needs milliseconds for one.
const LOOK_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a change may take: a detach flushes the leaf, gigabytes on a slow
/// disk.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(600);
/// Between two tries to get into a backlog that is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no answer that helps.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no leafblk listens on {} ({source}); start it (leafblk serve, or systemctl start \
         leafblk), or pass the --socket or --runtime-dir of the one that runs",
        socket.display()
    )]
    NobodyThere {
        /// The control socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// This user may not.
    #[error(
        "the control socket {} can't be used ({source}){whose}; run this as the user that runs \
         leafblk, or as root (sudo), or let a group of yours in: control-group = \"GROUP\" in its \
         leafblk.toml, and a restart",
        socket.display()
    )]
    NotAllowed {
        /// The control socket.
        socket: PathBuf,
        /// Who may, as far as that can be told: the end of a clause.
        whose: String,
        /// The reason.
        source: io::Error,
    },
    /// It took too long.
    #[error(
        "leafblk at {} has not answered within {} s; {}",
        socket.display(),
        waited.as_secs_f32(),
        if *was_change {
            "the change may still be under way: look with leafblk vm list and root list"
        } else {
            "it is overloaded or stands still: its log says more, and systemctl restart leafblk \
             starts it again"
        }
    )]
    Silent {
        /// The control socket.
        socket: PathBuf,
        /// How long it was waited for.
        waited: Duration,
        /// Whether something was to be changed.
        was_change: bool,
    },
    /// The conversation broke off.
    #[error("leafblk at {} gives no answer ({reason}); its log says more", socket.display())]
    Broken {
        /// The control socket.
        socket: PathBuf,
        /// How.
        reason: String,
    },
    /// An answer, but a problem.
    #[error("{}", .0.detail)]
    Refused(Problem),
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        let refusal = match &error {
            ClientError::Refused(problem) => problem.refusal(),
            _ => None,
        };
        match refusal {
            Some(refusal) => Self::refused(refusal, error),
            None => Self::failure(error),
        }
    }
}

/// A way to ask the leafblk behind one socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    look_time_max: Duration,
    change_time_max: Duration,
}

impl Client {
    /// One for the leafblk behind `socket`. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        let (look_time_max, change_time_max) = (LOOK_TIME_MAX, CHANGE_TIME_MAX);
        Self { socket: socket.into(), look_time_max, change_time_max }
    }

    /// The same, which waits no longer than `time` for an answer.
    #[cfg(test)]
    fn within(self, time: Duration) -> Self {
        Self { look_time_max: time, change_time_max: time, ..self }
    }

    /// Asks for what is at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(&Method::GET, path, None)
    }

    /// Posts `body`, if there is one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post<T: Serialize>(&self, path: &str, body: Option<&T>) -> Result<Value, ClientError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| self.broken(error))?;
        self.ask(&Method::POST, path, body)
    }

    /// Deletes what is at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.ask(&Method::DELETE, path, None)
    }

    /// Takes an answer for what it should be.
    ///
    /// # Errors
    /// [`ClientError::Broken`], where the other leafblk is of another version.
    pub fn read<T: DeserializeOwned>(&self, answer: Value) -> Result<T, ClientError> {
        serde_json::from_value(answer).map_err(|error| {
            self.broken(format!("an answer that this version doesn't understand: {error}"))
        })
    }

    fn broken(&self, reason: impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), reason: reason.to_string() }
    }

    fn ask(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Value, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| self.broken(error))?;
        let was_change = *method != Method::GET;
        let waited = if was_change { self.change_time_max } else { self.look_time_max };
        let exchange = self.exchange(method, path, body);
        let answer = runtime.block_on(async { tokio::time::timeout(waited, exchange).await });
        let silent = |_| ClientError::Silent { socket: self.socket.clone(), waited, was_change };
        let (status, body) = answer.map_err(silent)??;
        if status.is_success() {
            // 204 has no body.
            return match body.is_empty() {
                true => Ok(Value::Null),
                false => serde_json::from_slice(&body).map_err(|error| self.broken(error)),
            };
        }
        match serde_json::from_slice(&body) {
            Ok(problem) => Err(ClientError::Refused(problem)),
            // `/v1/health` answers 503 with what is wrong, and that is an answer.
            Err(_) => serde_json::from_slice(&body)
                .map_err(|_| self.broken(format!("status {status} and no problem document"))),
        }
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = self.connect().await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "leafblk")
            .header("content-type", "application/json")
            .body(Full::<Bytes>::from(body.unwrap_or_default()))
            .map_err(|error| self.broken(error))?;
        let answer = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| self.broken(error))?.to_bytes()))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        loop {
            let source = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(source) => source,
            };
            let socket = self.socket.clone();
            match source.kind() {
                // connect(2) on a Unix socket doesn't wait for a place in the
                // backlog where it doesn't block.
                io::ErrorKind::WouldBlock => tokio::time::sleep(BACKLOG_PAUSE).await,
                io::ErrorKind::PermissionDenied => {
                    let whose = whose(&socket);
                    return Err(ClientError::NotAllowed { socket, whose, source });
                }
                _ => return Err(ClientError::NobodyThere { socket, source }),
            }
        }
    }
}

/// Whom a socket belongs to.
fn whose(socket: &Path) -> String {
    let Ok(meta) = std::fs::metadata(socket) else {
        return String::new();
    };
    let user = User::from_uid(meta.uid().into()).ok().flatten();
    let user = user.map_or_else(|| meta.uid().to_string(), |user| user.name);
    let group = Group::from_gid(meta.gid().into()).ok().flatten();
    let group = group.map_or_else(|| meta.gid().to_string(), |group| group.name);
    match meta.mode() & 0o060 {
        0o060 => format!(": it is for the user {user} and the group {group}"),
        _ => format!(": it is for the user {user} alone"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_leafblk_that_lets_in_and_says_nothing_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket).within(Duration::from_millis(50));
        let look = client.get("/v1/status").unwrap_err().to_string();
        assert!(look.contains("has not answered within 0.05 s; it is overloaded"), "{look}");
        let change = client.delete("/v1/vms/web1").unwrap_err().to_string();
        assert!(change.contains("the change may still be under way"), "{change}");
        // As many as the backlog takes, and one more.
        rustix::net::listen(&listener, 0).unwrap();
        let look = client.get("/v1/status").unwrap_err();
        assert!(matches!(look, ClientError::Silent { .. }), "{look}");
    }

    #[test]
    fn whom_a_socket_is_for_is_told_by_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let user = User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
        for (mode, end) in [(0o600, format!("the user {user} alone")), (0o660, "the group".into())]
        {
            std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode)).unwrap();
            let said = whose(&socket);
            assert!(said.contains(&end) && said.contains(&user), "{said}");
        }
        assert_eq!(whose(&dir.path().join("none")), "");
    }

    #[test]
    fn an_answer_that_breaks_off_in_the_middle_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // A busy machine may begin the answer when it has been given up already.
        for millis in [200, 2_000, 20_000] {
            let has_begun = std::thread::scope(|scope| {
                let server = scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{";
                    // Open until it has been given up.
                    std::io::Write::write_all(&mut stream, head).map(|()| stream)
                });
                let client = Client::new(&socket).within(Duration::from_millis(millis));
                let look = client.get("/v1/status").unwrap_err();
                assert!(matches!(look, ClientError::Silent { .. }), "{look}");
                server.join().unwrap().is_ok()
            });
            if has_begun {
                return;
            }
        }
        panic!("no answer has begun within seconds");
    }
}

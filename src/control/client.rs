//! The other side: how the command line asks a running leafblk.
//!
//! One connection, one request, one answer, by the same HTTP library as the
//! server's.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::problem::Problem;

/// Bytes of an answer that are taken: a thousand VMs take a megabyte.
const ANSWER_BYTES_MAX: usize = 64 << 20;

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
        "the control socket {} can't be used ({source}); run this as the user that runs leafblk, \
         or as a member of its control-group",
        socket.display()
    )]
    NotAllowed {
        /// The control socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
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

/// A way to ask the leafblk behind one socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// One for the leafblk behind `socket`. Nothing is connected yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into() }
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
        let (status, body) = runtime.block_on(self.exchange(method, path, body))?;
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
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket, source },
                _ => ClientError::NobodyThere { socket, source },
            }
        })?;
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
}

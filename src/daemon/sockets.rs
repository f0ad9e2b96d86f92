//! Unix sockets that a hypervisor connects to: mode 0600, never beside a live
//! one, gone when their owner is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum SocketError {
    #[error("socket {} is in use by another process; stop that one, or choose another path", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is no socket; remove it, or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("socket {} can't be made: {source}; check the directory and its permissions", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// Whether a socket could be bound at `path`: nothing there, or a stale one.
///
/// # Errors
/// [`SocketError::InUse`], [`SocketError::NotASocket`].
pub fn check(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            Err(SocketError::NotASocket { path: path.to_owned() })
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => Err(SocketError::InUse { path: path.to_owned() }),
        },
    }
}

/// A bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl BoundSocket {
    /// Binds a socket at `path`, replacing a stale one. It gets its name when
    /// its mode is right, so nobody else can connect in between.
    ///
    /// # Errors
    /// Each of [`SocketError`]'s.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        check(path)?;
        Self::bind_unchecked(path)
            .map_err(|source| SocketError::Bind { path: path.to_owned(), source })
    }

    fn bind_unchecked(path: &Path) -> io::Result<Self> {
        // Short: the limit of 107 bytes holds for this name too.
        let temporary = path.with_extension(format!("{:x}", std::process::id() & 0xffff));
        let listener = UnixListener::bind(&temporary)?;
        let made = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&temporary))
            .and_then(|meta| fs::rename(&temporary, path).map(|()| meta.ino()));
        if made.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        Ok(Self { listener, path: path.to_owned(), inode: made? })
    }

    /// The listening socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Only our own: another process may have taken the name since.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web1.sock");
        drop(UnixListener::bind(&path).unwrap());
        let bound = BoundSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(BoundSocket::bind(&path), Err(SocketError::InUse { .. })));
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web1.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(BoundSocket::bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_somebody_else_has_bound_since_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web1.sock");
        let bound = BoundSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }
}

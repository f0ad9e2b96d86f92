//! Sockets that hypervisors connect to: made private, taken over when stale,
//! refused when live, removed on the way out.
//!
//! Knows paths and file modes; knows nothing of vhost-user or of who connects.
//!
//! Two daemons that start at once are kept apart by a lock file beside the
//! socket (PATH.lock, flock(2)), held from before the look at the socket until
//! after its removal: whoever holds it is the only leafblk that binds, probes
//! or unlinks PATH. A kill -9 releases it; the socket that then remains answers
//! ECONNREFUSED and is replaced. A server that knows no such lock (another
//! backend) is found by connecting.
//!
//! Invariants:
//! 1. The socket is mode 0600 from its first moment: the mode is set on the
//!    socket before bind(2), which gives it to the file. A group is let in
//!    afterwards.
//! 2. Nothing but a socket that nobody listens on is ever unlinked.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::apart::drop_apart_or_never;
use super::made::NewDirectories;
use crate::io::open;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Connections that may wait while one is served.
const BACKLOG: i32 = 4;

/// How often a lock file that its last holder removes is opened anew.
const LOCK_TRIES: usize = 16;

/// Why a socket or its directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another leafblk holds the lock.
    #[error(
        "the socket {} is in use by another leafblk; stop that one or choose another socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Someone else listens there.
    #[error(
        "another process listens on the socket {}; stop it or choose another socket",
        .0.display()
    )]
    Live(PathBuf),
    /// Something else has that name.
    #[error("{} exists and is no socket; move it away or choose another socket", .0.display())]
    NoSocket(PathBuf),
    /// Something else has the directory's name.
    #[error("{} exists and is no directory; move it away or choose another one", .0.display())]
    NoDirectory(PathBuf),
    /// The system refused.
    #[error("{} cannot be {operation} ({source}); check its directory and permissions", path.display())]
    System {
        /// The socket, its lock or the directory.
        path: PathBuf,
        /// What was tried: `created`, `locked`.
        operation: &'static str,
        /// The reason.
        source: io::Error,
    },
}

fn system(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> SocketError + use<> {
    let path = path.to_owned();
    move |source| SocketError::System { path, operation, source }
}

/// Makes `path` and what is missing above it, mode 0700. One that exists is
/// left as it is.
///
/// # Errors
/// [`SocketError::NoDirectory`] or [`SocketError::System`]; nothing is left
/// behind then.
pub(super) fn create_private_dir(path: &Path) -> Result<NewDirectories, SocketError> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    let mut new = NewDirectories::default();
    for directory in missing.iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => new.add(directory),
            // Another process makes the same one at this moment, or it is no directory.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(system(path, "created")(error)),
        }
    }
    if !path.is_dir() {
        return Err(SocketError::NoDirectory(path.into()));
    }
    // A leaf in it is durable only if its name and the directory's are.
    missing.into_iter().try_for_each(sync_name).map_err(system(path, "made durable"))?;
    Ok(new)
}

fn sync_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    match open::directory(parent.unwrap_or(Path::new("."))) {
        // One may be made in a directory that can't be opened for reading.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        parent => parent?.sync_all(),
    }
}

/// Lets the members of `group` reach what is in a directory, not list it: mode
/// 0710.
///
/// # Errors
/// As chown(2) and chmod(2), with the path.
pub fn let_pass(directory: &Path, group: u32) -> Result<(), SocketError> {
    std::os::unix::fs::chown(directory, None, Some(group))
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o710)))
        .map_err(system(directory, "given to its group"))
}

/// Lets everybody reach what is in a directory, not list it: mode 0711. What
/// they may do there is said by the modes of what they reach.
///
/// # Errors
/// As chmod(2), with the path.
pub fn let_all_pass(directory: &Path) -> Result<(), SocketError> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711))
        .map_err(system(directory, "opened for the sockets' group"))
}

/// The directory on the way to `path` that members of `group` can't pass by its
/// mode; `None` if there is none. What else they may be (another group's members,
/// root) is not known.
pub fn where_stopped(path: &Path, group: u32) -> Option<PathBuf> {
    let passes = |directory: &&Path| {
        // One that can't be looked at says nothing.
        fs::metadata(directory).map_or(true, |meta| match meta.gid() == group {
            true => meta.mode() & 0o010 != 0,
            false => meta.mode() & 0o001 != 0,
        })
    };
    let stop = path.ancestors().skip(1).find(|directory| !passes(directory));
    stop.map(Path::to_owned)
}

/// A listening socket at a path that belongs to this value: dropping it removes
/// the file, if it is still the same one, and then lets others have the path.
#[derive(Debug)]
pub struct OwnedSocket {
    /// There until it is dropped.
    listener: Option<UnixListener>,
    path: PathBuf,
    identity: Identity,
    // Dropped last: fields go in order, after `Drop::drop` removed the socket.
    _lock: PathLock,
}

/// Device and inode: which file a path means.
type Identity = (u64, u64);

impl OwnedSocket {
    /// Binds `path`, whose directory exists, and listens.
    ///
    /// Blocks on nobody, not even on a live server with a full backlog.
    ///
    /// # Errors
    /// [`SocketError`]; nothing is left behind then.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let lock = PathLock::take(path)?;
        remove_stale(path)?;
        let (listener, identity) = bind_private(path)?;
        Ok(Self { listener: Some(listener), path: path.into(), identity, _lock: lock })
    }

    /// Lets the members of `group` use the socket: mode 0660 instead of 0600.
    ///
    /// # Errors
    /// As chown(2) and chmod(2), with the path.
    pub fn share_with(&self, group: u32) -> Result<(), SocketError> {
        std::os::unix::fs::chown(&self.path, None, Some(group))
            .map_err(system(&self.path, "given to its group"))?;
        let mode = fs::Permissions::from_mode(0o660);
        fs::set_permissions(&self.path, mode).map_err(system(&self.path, "given to its group"))
    }

    /// The listener, blocking.
    pub fn listener(&self) -> &UnixListener {
        match &self.listener {
            Some(listener) => listener,
            None => unreachable!("it is there until the value is dropped"),
        }
    }
}

impl AsFd for OwnedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener().as_fd()
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        remove_same(&self.path, self.identity);
        // Its backlog may have connections that are slow to close.
        drop_apart_or_never(self.listener.take());
    }
}

fn identity_of(meta: &fs::Metadata) -> Identity {
    (meta.dev(), meta.ino())
}

/// Removes `path` if it still is that file; there is nobody to tell otherwise.
fn remove_same(path: &Path, identity: Identity) {
    if fs::symlink_metadata(path).is_ok_and(|meta| identity_of(&meta) == identity) {
        let _ = fs::remove_file(path);
    }
}

/// Whether a stale socket is at `path`; nothing there is fine too. Changes
/// nothing: for a look before anything else is done.
///
/// # Errors
/// [`SocketError`] where [`OwnedSocket::bind`] would refuse.
pub fn is_stale(path: &Path) -> Result<bool, SocketError> {
    if !is_there(path)? {
        return Ok(false);
    }
    match probe(path) {
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        // PROTOTYPE: bound by a socket of another type. AGAIN: a full backlog.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(SocketError::Live(path.into())),
        Err(errno) => Err(system(path, "examined")(errno.into())),
    }
}

/// Whether a socket is at `path`, whoever has it: nobody is asked.
///
/// # Errors
/// [`SocketError::NoSocket`] for what is none; [`SocketError::System`].
pub(super) fn is_there(path: &Path) -> Result<bool, SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(system(path, "examined")(error)),
        // A symbolic link counts as no socket: what it points to is not ours.
        Ok(meta) if !meta.file_type().is_socket() => Err(SocketError::NoSocket(path.into())),
        Ok(_) => Ok(true),
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    if is_stale(path)? {
        fs::remove_file(path).map_err(system(path, "removed"))?;
        log::debug!("replaced the stale socket {}", path.display());
    }
    Ok(())
}

fn stream_socket(path: &Path) -> Result<(rustix::fd::OwnedFd, SocketAddrUnix), Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    Ok((socket, SocketAddrUnix::new(path)?))
}

fn probe(path: &Path) -> Result<(), Errno> {
    let (socket, address) = stream_socket(path)?;
    connect(&socket, &address)
}

fn bind_private(path: &Path) -> Result<(UnixListener, Identity), SocketError> {
    let error = |errno: Errno| system(path, "bound")(errno.into());
    let (socket, address) = stream_socket(path).map_err(error)?;
    // unix_bind() in Linux gives the file the mode of the socket, less umask.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(error)?;
    bind(&socket, &address).map_err(error)?;
    let meta = fs::symlink_metadata(path).map_err(system(path, "examined"))?;
    let identity = identity_of(&meta);
    let listener = UnixListener::from(socket);
    let ready = listen(&listener, BACKLOG)
        .map_err(io::Error::from)
        .and_then(|()| listener.set_nonblocking(false));
    if let Err(source) = ready {
        remove_same(path, identity);
        return Err(system(path, "listened on")(source));
    }
    Ok((listener, identity))
}

/// The right to decide about a path. The lock file goes with the value.
#[derive(Debug)]
pub(super) struct PathLock {
    path: PathBuf,
    file: File,
}

impl PathLock {
    pub(super) fn take(socket: &Path) -> Result<Self, SocketError> {
        let path = lock_path(socket);
        for _ in 0..LOCK_TRIES {
            let opened = open::own_file_or_new(&path);
            let file = opened.map_err(|e| system(&path, "created")(e.into()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(SocketError::InUse(socket.into())),
                Err(TryLockError::Error(source)) => return Err(system(&path, "locked")(source)),
            }
            if let Some(lock) = Self::confirm(&path, file)? {
                return Ok(lock);
            }
        }
        Err(SocketError::InUse(socket.into()))
    }

    /// The last holder may have removed the file between our open and our
    /// lock: then the lock is on a file that nobody else will open, and `None`.
    fn confirm(path: &Path, file: File) -> Result<Option<Self>, SocketError> {
        let ours = file.metadata().map_err(system(path, "examined"))?;
        let there = fs::symlink_metadata(path);
        let same = there.is_ok_and(|meta| identity_of(&meta) == identity_of(&ours));
        Ok(same.then(|| Self { path: path.into(), file }))
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = OsString::from(socket);
    name.push(".lock");
    name.into()
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // Removed while locked, so that it is ours. Closing it unlocks.
        if let Ok(meta) = self.file.metadata() {
            remove_same(&self.path, identity_of(&meta));
        }
    }
}

#[cfg(test)]
mod tests;

//! Opening files by names that others chose: a flag, a configuration, a request, an
//! image that names its backing file.
//!
//! Opening is an act. It lets a FIFO's writer go, arms a watchdog, rewinds a tape,
//! hangs up a modem line. So a name is first resolved without opening what it leads
//! to (open(2), O_PATH), the object is looked at, and only one of the expected kind is
//! opened, through /proc/self/fd: the very object that was looked at, whatever the name
//! means by then.
//!
//! This is the only file of the library that opens files; clippy.toml keeps it so.
#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "these are what others call instead")
)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// How often a name is tried again that comes and goes meanwhile.
const TRIES: u32 = 8;

/// What a name leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileKind(FileType);

impl FileKind {
    fn is_file(self) -> bool {
        self.0 == FileType::RegularFile
    }

    fn is_disk(self) -> bool {
        self.0 == FileType::BlockDevice
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            FileType::RegularFile => "a regular file",
            FileType::Directory => "a directory",
            FileType::Symlink => "a symbolic link",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice => "a character device",
            FileType::BlockDevice => "a block device",
            FileType::Unknown => "no file",
        })
    }
}

/// Why a file was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// It is of another kind, and was not opened.
    #[error("it is {0}")]
    Kind(FileKind),
    /// As open(2).
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for OpenError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io(error) => error,
            OpenError::Kind(kind) if kind.0 == FileType::Directory => {
                Self::new(io::ErrorKind::IsADirectory, error)
            }
            OpenError::Kind(_) => Self::other(error),
        }
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// Whether the last part of a name may be a symbolic link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Links {
    Follow,
    Refuse,
}

/// An object that was looked at and not opened.
struct Looked {
    handle: OwnedFd,
    kind: FileKind,
}

impl Looked {
    fn at(path: &Path, links: Links) -> Result<Self, OpenError> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if links == Links::Refuse {
            flags |= OFlags::NOFOLLOW;
        }
        let handle = openat(CWD, path, flags, Mode::empty())?;
        let kind = FileKind(FileType::from_raw_mode(fstat(&handle)?.st_mode));
        Ok(Self { handle, kind })
    }

    fn open(&self, access: Access) -> Result<File, OpenError> {
        Ok(again(&self.handle, access, OFlags::NOCTTY)?)
    }
}

/// Opens a regular file.
///
/// # Errors
/// [`OpenError`].
pub(crate) fn file(path: &Path, access: Access) -> Result<File, OpenError> {
    regular(path, access, Links::Follow)
}

/// As [`file`]; the name is no symbolic link, which this user didn't make.
///
/// # Errors
/// [`OpenError`].
pub(crate) fn own_file(path: &Path, access: Access) -> Result<File, OpenError> {
    regular(path, access, Links::Refuse)
}

fn regular(path: &Path, access: Access, links: Links) -> Result<File, OpenError> {
    let looked = Looked::at(path, links)?;
    if looked.kind.is_file() { looked.open(access) } else { Err(OpenError::Kind(looked.kind)) }
}

/// Opens a disk image, a regular file or a block device, for reading.
///
/// # Errors
/// [`OpenError`].
pub(crate) fn image(path: &Path) -> Result<File, OpenError> {
    let looked = Looked::at(path, Links::Follow)?;
    if looked.kind.is_file() || looked.kind.is_disk() {
        looked.open(Access::Read)
    } else {
        Err(OpenError::Kind(looked.kind))
    }
}

/// Opens a directory, to sync or lock it.
///
/// # Errors
/// As open(2): ENOTDIR for anything else, which is not opened.
pub(crate) fn directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?.into())
}

/// Opens a directory for its place in the file systems only (open(2), O_PATH): neither
/// its content nor its server is asked for.
///
/// # Errors
/// As open(2): ENOTDIR for anything else.
pub(crate) fn place(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, directory, flags, Mode::empty())?)
}

/// Opens a file of our own for reading and writing, mode 0600; makes it where there
/// is none.
///
/// # Errors
/// [`OpenError`].
pub(crate) fn own_file_or_new(path: &Path) -> Result<File, OpenError> {
    for _ in 0..TRIES {
        match own_file(path, Access::Write) {
            Err(OpenError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match new_file(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return Ok(made?),
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy).into())
}

/// Makes a file, for reading and writing, mode 0600; the name is free.
///
/// # Errors
/// As open(2): EEXIST for whatever has the name.
pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    private().create_new(true).open(path)
}

/// Makes a file without a name in the directory, for reading and writing, mode 0600;
/// `None` where the file system can't do that.
///
/// # Errors
/// As open(2).
pub(crate) fn nameless_file(directory: &Path) -> io::Result<Option<File>> {
    match private().custom_flags(libc::O_TMPFILE).open(directory) {
        Ok(file) => Ok(Some(file)),
        // open(2): kernels and file systems without O_TMPFILE.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn private() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

/// Opens an open file once more, with other flags. By its descriptor: its name may be
/// another file's by now.
///
/// # Errors
/// As open(2).
pub(crate) fn again(file: &impl AsFd, access: Access, flags: OFlags) -> io::Result<File> {
    File::options()
        .read(true)
        .write(access == Access::Write)
        .custom_flags(flags.bits().cast_signed())
        .open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// What a file says that a person named on the command line, which may be a pipe
/// (`<(…)` of a shell); at most `len_max` bytes of it.
///
/// # Errors
/// As open(2) and read(2); IsADirectory, FileTooLarge, InvalidData.
pub(crate) fn text_of_any(path: &Path, len_max: u64) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    text_in(file, len_max)
}

/// What a regular file says; at most `len_max` bytes of it.
///
/// # Errors
/// As open(2) and read(2); FileTooLarge, InvalidData, and another for what is no
/// regular file.
pub(crate) fn text(path: &Path, len_max: u64) -> io::Result<String> {
    text_in(file(path, Access::Read)?, len_max)
}

fn text_in(file: File, len_max: u64) -> io::Result<String> {
    let mut text = String::new();
    // One byte more than is allowed tells a full file from one that is cut.
    io::Read::read_to_string(&mut io::Read::take(file, len_max.saturating_add(1)), &mut text)?;
    if text.len() as u64 > len_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// What the kernel says in a file of /proc or /sys, whose name is nobody's choice.
///
/// # Errors
/// As open(2) and read(2).
pub(crate) fn kernel_text(path: impl AsRef<Path>) -> io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests;

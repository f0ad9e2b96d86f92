//! The root: the read-only image that many VMs share.
//!
//! Owns the file and its identity. Nothing here writes. It knows neither the
//! cache nor the leaves; the cache's fills read its descriptor.

pub(crate) mod digest;
pub(crate) mod lock;
pub(crate) mod probe;
pub(crate) mod state;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use self::probe::Foreign;
use self::state::RootState;
use crate::io::open::{self, Access, OpenError};
use crate::io::storage::{FileStorage, Storage, read_exact};

/// Which root a leaf belongs to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RootIdentity {
    /// Length in bytes.
    pub len_bytes: u64,
    /// SHA-256 over the length and samples of the content.
    pub fingerprint: [u8; 32],
    /// The name it was given; for people only.
    pub name: String,
}

impl RootIdentity {
    /// The identity of a raw image, whatever it looks like, that this process has made
    /// and nobody else has.
    ///
    /// # Errors
    /// As pread(2).
    pub(crate) fn of_raw(name: &str, file: &FileStorage) -> io::Result<Self> {
        let len_bytes = file.len_bytes()?;
        let fingerprint = fingerprint(file, len_bytes)?;
        Ok(Self { len_bytes, fingerprint, name: name.to_owned() })
    }

    /// Whether both are the same image, whatever its name.
    pub fn same_content(&self, other: &Self) -> bool {
        self.len_bytes == other.len_bytes && self.fingerprint == other.fingerprint
    }
}

impl fmt::Display for RootIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.fingerprint[..4] {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "… of {} bytes, \"{}\"", self.len_bytes, self.name)
    }
}

/// Why an image can't be a root.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum RootError {
    #[error("root {} can't be read: {source}; check the path and its permissions", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("root {} is {found}, neither a file nor a block device, and was not opened; give a raw disk image", path.display())]
    Kind { path: PathBuf, found: String },
    #[error("root {} is empty; give a raw disk image", path.display())]
    Empty { path: PathBuf },
    #[error("root {} has {len} bytes, which is no multiple of 512; give a raw disk image", path.display())]
    Ragged { path: PathBuf, len: u64 },
    #[error(
        "root {} is {found} and no raw disk image; {}; where these bytes are a guest's disk as it \
         is, declare them so: format=raw",
        path.display(),
        found.conversion(path)
    )]
    Format { path: PathBuf, found: Foreign },
    #[error("root {} is open for writing in another program, such as QEMU; close it there first", path.display())]
    InUse { path: PathBuf },
}

/// Bytes of content that a fingerprint samples at the start and at the end.
const SAMPLE_HEAD: u64 = 1 << 20;
const SAMPLE_TAIL: u64 = 64 << 10;
/// Blocks of 4 KiB in between, evenly spread.
const SAMPLES: u64 = 64;
const SAMPLE_LEN: u64 = 4096;

/// Extents that are looked up at opening; a file with more of them simply has
/// its later holes found by reading.
const EXTENTS_MAX: usize = 1 << 20;

/// The format that a person has declared a root to have.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RootFormat {
    /// The file's bytes are the disk's, whatever they look like.
    Raw,
}

/// How a root is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RootAccess {
    /// Past the page cache (O_DIRECT) where that works.
    #[default]
    Direct,
    /// Through the page cache: reads of any range, into any buffer.
    Buffered,
}

/// How a root is opened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RootOptions {
    /// What it is; where nobody has said so, what looks like another format than raw is
    /// refused.
    pub format: Option<RootFormat>,
    /// How it is read.
    pub access: RootAccess,
}

/// An open root.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    file: File,
    identity: RootIdentity,
    direct: bool,
    /// Before the fingerprint was taken.
    opened: RootState,
}

impl Root {
    /// As [`Self::open_as`], of no declared format, with O_DIRECT where that works.
    ///
    /// # Errors
    /// Each of [`RootError`]'s.
    pub fn open(name: &str, path: &Path) -> Result<Self, RootError> {
        Self::open_as(name, path, RootOptions::default())
    }

    /// As [`Self::open`], through the page cache.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_buffered(name: &str, path: &Path) -> Result<Self, RootError> {
        Self::open_as(name, path, RootOptions { format: None, access: RootAccess::Buffered })
    }

    /// Opens the raw file or block device at `path`, and takes the locks that keep QEMU
    /// from writing to it.
    ///
    /// # Errors
    /// Each of [`RootError`]'s.
    pub fn open_as(name: &str, path: &Path, options: RootOptions) -> Result<Self, RootError> {
        let at = || path.to_owned();
        let open_error = |source| RootError::Open { path: at(), source };
        let plain = open::image(path).map_err(|error| match error {
            OpenError::Kind(kind) => RootError::Kind { path: at(), found: kind.to_string() },
            OpenError::Io(source) => open_error(source),
        })?;
        let lock = |file: &File| {
            lock::lock_image(file).map_err(|e| match e.kind() {
                io::ErrorKind::WouldBlock => RootError::InUse { path: at() },
                _ => open_error(e),
            })
        };
        // Before any look at length or content: what is seen from here on stays.
        lock(&plain)?;
        let len_bytes =
            rustix::fs::seek(&plain, SeekFrom::End(0)).map_err(|e| open_error(e.into()))?;
        if len_bytes == 0 {
            return Err(RootError::Empty { path: at() });
        }
        let plain = FileStorage::new(plain);
        // Before the length, which is ragged in many an image of another format.
        let found = match options.format {
            None => probe::probe(&plain, len_bytes).map_err(open_error)?,
            Some(RootFormat::Raw) => None,
        };
        if let Some(found) = found {
            return Err(RootError::Format { path: at(), found });
        }
        if !len_bytes.is_multiple_of(512) {
            return Err(RootError::Ragged { path: at(), len: len_bytes });
        }
        // What changes while the fingerprint is taken differs from this.
        let opened = RootState::of(plain.file()).map_err(open_error)?;
        let fingerprint = fingerprint(&plain, len_bytes).map_err(open_error)?;
        let reopened = match options.access {
            RootAccess::Direct => reopen_direct(plain.file(), len_bytes),
            RootAccess::Buffered => None,
        };
        let (file, direct) = match reopened {
            Some(file) => {
                // A lock belongs to one opening; the first one's is held until here.
                lock(&file)?;
                (file, true)
            }
            None => (plain.into_file(), false),
        };
        let identity = RootIdentity { len_bytes, fingerprint, name: name.to_owned() };
        Ok(Self { path: at(), file, identity, direct, opened })
    }

    /// The name that VMs refer to.
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes, a multiple of 512.
    pub fn len_bytes(&self) -> u64 {
        self.identity.len_bytes
    }

    /// Length in sectors.
    pub fn sectors(&self) -> u64 {
        self.identity.len_bytes / 512
    }

    /// Its identity.
    pub fn identity(&self) -> &RootIdentity {
        &self.identity
    }

    /// Names this image in its present state: another file, or the same after
    /// any change, has another name. `None` for a block device, which does not
    /// tell of changes.
    pub fn state_key(&self) -> Option<[u8; 16]> {
        let meta = self.file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let mut hash = Sha256::new();
        for number in [meta.dev(), meta.ino(), self.identity.len_bytes] {
            hash.update(number.to_le_bytes());
        }
        for time in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
            hash.update(time.to_le_bytes());
        }
        hash.update(self.identity.fingerprint);
        hash.finalize()[..16].try_into().ok()
    }

    /// The descriptor that fills read from.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Ranges in bytes, (start, end), that are holes: they read as zeros
    /// without being read. None on block devices and where the file system
    /// doesn't tell.
    pub fn holes(&self) -> Vec<(u64, u64)> {
        let len = self.len_bytes();
        let mut holes = Vec::new();
        let mut at = 0;
        while at < len && holes.len() < EXTENTS_MAX {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.min(len),
                Err(rustix::io::Errno::NXIO) => len,
                Err(_) => break,
            };
            if data > at {
                holes.push((at, data));
            }
            match rustix::fs::seek(&self.file, SeekFrom::Hole(data)) {
                Ok(hole) if hole > data => at = hole,
                _ => break,
            }
        }
        holes
    }
}

/// The same file opened for O_DIRECT, if reads of 512-aligned ranges at its
/// start and end work that way.
fn reopen_direct(plain: &File, len_bytes: u64) -> Option<File> {
    #[repr(align(4096))]
    struct Aligned([u8; 8192]);
    let file = open::again(plain, Access::Read, OFlags::DIRECT).ok()?;
    let file = FileStorage::new(file);
    let mut buffer = Box::new(Aligned([0; 8192]));
    let last = (len_bytes - 1) / 4096 * 4096;
    let len = usize::try_from(len_bytes - last).ok()?;
    // A fill reads whole blocks, the last one up to the file's end.
    read_exact(&file, &mut buffer.0[..len], last).ok()?;
    Some(file.into_file())
}

fn fingerprint(file: &FileStorage, len: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(len.to_le_bytes());
    let mut add = |start: u64, count: u64| {
        let count = count.min(len - start);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        read_exact(file, &mut bytes, start)?;
        hash.update(&bytes);
        io::Result::Ok(())
    };
    add(0, SAMPLE_HEAD)?;
    for i in 1..=SAMPLES {
        let at = u128::from(len) * u128::from(i) / u128::from(SAMPLES + 1);
        let at = u64::try_from(at).unwrap_or(0) / SAMPLE_LEN * SAMPLE_LEN;
        add(at, SAMPLE_LEN)?;
    }
    add(len.saturating_sub(SAMPLE_TAIL), SAMPLE_TAIL)?;
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests;

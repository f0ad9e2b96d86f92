//! A file that is replaced as a whole: written beside itself and renamed, so that
//! whoever reads it finds the old content or the new.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use crate::io::open;

/// Who may read the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Readers {
    /// Its owner: mode 0600.
    Owner,
    /// The members of a group too: mode 0640.
    Group(u32),
}

/// Replaces `path` by way of `beside`, which is in the same directory; device and
/// inode of the new file. `durable` or not, a crash of this process leaves the
/// old or the new; if `durable`, so does a loss of power, and the new one once
/// this returns.
///
/// # Errors
/// As open(2), write(2), fsync(2) and rename(2); the old content stays then. Where
/// only the directory can't be synced at last, the new one is there and may go
/// with the power.
pub(super) fn replace(
    path: &Path,
    beside: &Path,
    content: &[u8],
    readers: Readers,
    durable: bool,
) -> io::Result<(u64, u64)> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let directory = durable.then(|| open::directory(directory)).transpose()?;
    let renamed = write(beside, content, readers, durable)
        .and_then(|identity| fs::rename(beside, path).map(|()| identity))
        .inspect_err(|_| drop(fs::remove_file(beside)))?;
    directory.map_or(Ok(()), |directory| directory.sync_all())?;
    Ok(renamed)
}

fn write(path: &Path, content: &[u8], readers: Readers, durable: bool) -> io::Result<(u64, u64)> {
    // One that a killed process left, or whatever else has the name, goes unopened.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = open::new_file(path)?;
    if let Readers::Group(group) = readers {
        fchown(&file, None, Some(group))?;
        file.set_permissions(Permissions::from_mode(0o640))?;
    }
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

//! The lock that keeps a file to one process: flock(2) on the open file.
//!
//! A killed process's lock may outlive it by a moment: its io_uring is taken
//! apart by a kernel thread once its last request is done, and until then holds
//! the files that it read from. Whoever starts the next daemon at once must not
//! be told that a leaf is in use, so a lock that no living process holds is
//! waited for.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// Far longer than the kernel takes; somebody whom we can't see holds the lock
/// then (another PID namespace).
const WAIT_MAX: Duration = Duration::from_secs(5);
const WAIT_STEP: Duration = Duration::from_millis(1);

/// Locks the file for one writer or for many readers; false if a process that
/// is alive holds it otherwise.
pub(crate) fn take(file: &File, shared: bool) -> io::Result<bool> {
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let deadline = Instant::now() + WAIT_MAX;
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e.into()),
        }
        if Instant::now() >= deadline || is_held_by_the_living(file.metadata()?.ino())? {
            return Ok(false);
        }
        std::thread::sleep(WAIT_STEP);
    }
}

/// Whether /proc/locks (proc_locks(5)) names a process that exists as holder of
/// a lock on the inode. By the number alone: what it says of devices is not what
/// stat(2) does on btrfs. A dead holder is not listed, or as process 0.
fn is_held_by_the_living(inode: u64) -> io::Result<bool> {
    let locks = std::fs::read_to_string("/proc/locks")?;
    Ok(locks.lines().any(|line| {
        // 1: FLOCK ADVISORY WRITE 708 08:01:12345 0 EOF
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = fields[..] else {
            return false;
        };
        let is_it = place.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
        let process = process.parse::<u32>().unwrap_or(0);
        is_it && process > 0 && std::fs::exists(format!("/proc/{process}")).unwrap_or(true)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_the_living_hold_is_refused_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (a, b) = (open(), open());
        assert!(take(&a, false).unwrap());
        let begun = Instant::now();
        assert!(!take(&b, true).unwrap());
        assert!(begun.elapsed() < WAIT_MAX / 2, "it waited");
        drop(a);
        assert!(take(&b, true).unwrap());
        assert!(take(&open(), true).unwrap(), "readers share it");
    }
}

//! The lock that keeps a file to one process: flock(2) on the open file.
//!
//! A killed process's lock may outlive it by a moment: its io_uring is taken
//! apart by a kernel thread once its last request is done, and until then holds
//! the files that it read from. Whoever starts the next daemon at once must not
//! be told that a leaf is in use, so a lock that no living process holds is
//! waited for.

use std::fmt;
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
/// lives, and isn't ending, holds it otherwise.
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

fn is_held_by_the_living(inode: u64) -> io::Result<bool> {
    Ok(living_holder(inode)?.is_some())
}

/// A process that lives and that /proc/locks (proc_locks(5)) names as holder of a lock
/// on the inode. By the number alone: what it says of devices is not what stat(2) does
/// on btrfs. A dead holder is not listed, or as process 0.
fn living_holder(inode: u64) -> io::Result<Option<u32>> {
    let locks = crate::io::open::kernel_text("/proc/locks")?;
    let mut holders = locks.lines().filter_map(|line| {
        // 1: FLOCK ADVISORY WRITE 708 08:01:12345 0 EOF
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = fields[..] else {
            return None;
        };
        let is_it = place.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
        process.parse::<u32>().ok().filter(|process| is_it && *process > 0)
    });
    Ok(holders.find(|process| lives(*process)))
}

/// A process that holds a lock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// The name of its program, as far as the kernel keeps it.
    pub program: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.process, self.program)
    }
}

/// Who holds the file's lock, if that can be told.
pub(crate) fn holder(file: &File) -> Option<Holder> {
    let process = living_holder(file.metadata().ok()?.ino()).ok()??;
    let program = crate::io::open::kernel_text(format!("/proc/{process}/comm")).ok()?;
    Some(Holder { process, program: program.trim_end().to_owned() })
}

/// Whether there is such a process, and it isn't ending: one that was killed
/// lets go of its locks by itself, once the kernel has done what it waits for.
fn lives(process: u32) -> bool {
    let read = |name: &str| crate::io::open::kernel_text(format!("/proc/{process}/{name}"));
    match (read("stat"), read("status")) {
        (Ok(stat), Ok(status)) => !is_exiting(&stat) && !is_killed(&status),
        // Gone, or hidden; a look that failed otherwise says nothing.
        _ => std::fs::exists(format!("/proc/{process}")).unwrap_or(true),
    }
}

/// By /proc/PID/stat (proc_pid_stat(5)): a zombie, or its flags say that it is
/// ending.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    // The name before it may have any characters.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let state = fields.next();
    let flags = fields.nth(5).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    matches!(state, Some("Z" | "X")) || flags & PF_EXITING != 0
}

/// By /proc/PID/status (proc_pid_status(5)): a SIGKILL is on its way.
fn is_killed(status: &str) -> bool {
    let pending = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    let mut sets = pending.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok());
    sets.any(|set| set & 1 << (libc::SIGKILL - 1) != 0)
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
        let who = holder(&b).unwrap();
        assert_eq!(who.process, std::process::id());
        assert!(who.to_string().starts_with(&format!("process {} (", who.process)), "{who}");
        assert!(begun.elapsed() < WAIT_MAX / 2, "it waited");
        drop(a);
        assert!(take(&b, true).unwrap());
        assert!(take(&open(), true).unwrap(), "readers share it");
    }

    #[test]
    fn a_process_that_was_killed_does_not_live_though_it_is_still_listed() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(lives(child.id()) && lives(std::process::id()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // Not waited for: it stays, as a zombie.
        while lives(child.id()) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(std::fs::exists(format!("/proc/{}", child.id())).unwrap());
        assert!(!lives(child.id()));
        child.wait().unwrap();
        assert!(!lives(child.id()));
    }

    #[test]
    fn what_proc_says_of_a_process_tells_whether_it_is_ending() {
        let stat = |state, flags| format!("708 (a) b (c) {state} 1 708 708 0 -1 {flags} 5 0");
        assert!(!is_exiting(&stat("S", 4_194_560)) && !is_exiting(&stat("D", 4_194_304)));
        assert!(is_exiting(&stat("Z", 4_194_304)) && is_exiting(&stat("D", 4_194_564)));
        let status = |own, shared| format!("State:\tD\nSigPnd:\t{own}\nShdPnd:\t{shared}\n");
        let (none, kill, others) = ("0000000000000000", "0000000000000100", "fffffffffffffeff");
        assert!(!is_killed(&status(none, others)));
        assert!(is_killed(&status(kill, none)) && is_killed(&status(none, kill)));
    }
}

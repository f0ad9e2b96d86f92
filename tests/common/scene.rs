//! Two VMs on one reactor: one to be attacked, and its neighbour, which reads
//! all the while and looks at what it gets.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each test file uses some of it"
)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::frontend::PATIENCE;
use super::{Client, Daemon, make_root, root_sector};

/// Sectors of the root that both VMs are on.
pub(crate) const ROOT_SECTORS: u64 = 4096;

/// What `count` sectors of the root hold.
pub(crate) fn root_content(sector: u64, count: u64) -> Vec<u8> {
    (sector..sector + count).flat_map(root_sector).collect()
}

/// The daemon's log, line by line.
pub(crate) struct Log {
    lines: Receiver<String>,
    /// What was looked at, and not waited for.
    ahead: VecDeque<String>,
    seen: Vec<String>,
}

impl Log {
    pub(crate) fn follow(from: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // Ends with the daemon; the sending fails when the test is over.
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { lines, ahead: VecDeque::new(), seen: Vec::new() }
    }

    fn next_until(&mut self, deadline: Instant) -> Result<String, RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.ahead.pop_front().map_or_else(|| self.lines.recv_timeout(left), Ok)
    }

    /// Whether there is a line by now that contains all of `parts`, and that
    /// [`Self::wait_for`] would find.
    pub(crate) fn has(&mut self, parts: &[&str]) -> bool {
        self.ahead.extend(self.lines.try_iter());
        self.ahead.iter().any(|line| parts.iter().all(|part| line.contains(part)))
    }

    /// Waits for a new line that contains all of `parts`.
    pub(crate) fn wait_for(&mut self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next_until(deadline) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if parts.iter().all(|part| line.contains(part)) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("the log never says {parts:?}, but\n{}", self.seen.join("\n"))
                }
            }
        }
    }
}

impl Log {
    /// What a daemon that has ended said and nobody waited for.
    pub(crate) fn rest(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            match self.next_until(deadline) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return lines.join("\n"),
                Err(RecvTimeoutError::Timeout) => panic!("the log never ends"),
            }
        }
    }
}

#[derive(Default)]
struct Progress {
    reads: Mutex<(u64, Duration)>,
    news: Condvar,
    stop: AtomicBool,
}

/// A VM that reads, checks, and reads on.
pub(crate) struct Neighbour {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    pub(crate) fn start(socket: &Path) -> Self {
        let progress = Arc::new(Progress::default());
        let (socket, shared) = (socket.to_owned(), Arc::clone(&progress));
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(&socket);
            let mut seed = 1u64;
            while !shared.stop.load(Ordering::Relaxed) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let sector = (seed >> 33) % (ROOT_SECTORS - 8);
                let begun = Instant::now();
                let data = client.read(sector * 512, 4096);
                let took = begun.elapsed();
                assert!(data == root_content(sector, 8), "wrong data at sector {sector}");
                let mut reads = shared.reads.lock().unwrap();
                *reads = (reads.0 + 1, reads.1.max(took));
                shared.news.notify_all();
            }
        });
        Self { progress, thread: Some(thread) }
    }

    /// Reads so far.
    pub(crate) fn reads(&self) -> u64 {
        self.progress.reads.lock().unwrap().0
    }

    /// The longest read so far.
    pub(crate) fn longest(&self) -> Duration {
        self.progress.reads.lock().unwrap().1
    }

    /// Waits for `count` more reads.
    pub(crate) fn goes_on(&self, count: u64) {
        let wanted = self.reads() + count;
        let reads = self.progress.reads.lock().unwrap();
        let (reads, timeout) = self
            .progress
            .news
            .wait_timeout_while(reads, PATIENCE, |reads| reads.0 < wanted)
            .unwrap();
        assert!(!timeout.timed_out(), "the neighbour stands still at {} reads", reads.0);
    }

    /// Ends it; panics if it ever read something wrong.
    pub(crate) fn stop(mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the neighbour reads what it should");
    }
}

/// The daemon with both VMs, `victim` and `neighbour`.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) log: Log,
    pub(crate) neighbour: Neighbour,
    pub(crate) victim: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with_victim("victim")
    }

    /// With these options for the victim: `victim,size=1GiB`.
    pub(crate) fn with_victim(victim: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = make_root(dir.path(), ROOT_SECTORS);
        let args = [
            "--root",
            root.to_str().unwrap(),
            "--vm",
            victim,
            "--vm",
            "neighbour",
            "--reactors",
            "1",
        ];
        let (daemon, log) = Daemon::start_logged(dir.path(), &args);
        let neighbour = Neighbour::start(&daemon.socket("neighbour"));
        neighbour.goes_on(1);
        let victim = daemon.socket("victim");
        Self { daemon, log, neighbour, victim, _dir: dir }
    }

    /// After an attack: the neighbour reads on, the attacked VM's socket takes
    /// a well-behaved client that reads and writes, and the daemon ends well.
    pub(crate) fn all_is_well(self) {
        self.neighbour.goes_on(20);
        let mut client = Client::connect(&self.victim);
        assert!(client.read(0, 65536) == root_content(0, 128));
        client.write(1 << 20, &[0x77; 4096]);
        assert!(client.read(1 << 20, 4096) == [0x77; 4096]);
        client.flush();
        drop(client);
        self.neighbour.goes_on(20);
        self.neighbour.stop();
        self.daemon.stop();
    }
}

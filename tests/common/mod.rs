//! What the socket tests share: a daemon of their own, and a libblkio client.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "each test file uses some of it"
)]

pub(crate) mod faulty_storage;
pub(crate) mod frontend;
pub(crate) mod http;
pub(crate) mod lingering;
pub(crate) mod scene;
pub(crate) mod small_disk;
pub(crate) mod terminal;
pub(crate) mod unopened;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open};

/// Content of a root: every sector tells its number, some are zeros.
pub(crate) fn root_sector(sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    if sector % 11 != 3 && !(4096..8192).contains(&sector) {
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(
                &(sector.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes(),
            );
        }
    }
    bytes
}

/// Makes a root of so many sectors; returns its path.
pub(crate) fn make_root(dir: &Path, sectors: u64) -> PathBuf {
    let path = dir.join("root.raw");
    let content: Vec<u8> = (0..sectors).flat_map(root_sector).collect();
    std::fs::write(&path, content).unwrap();
    path
}

/// Asks again and again until it is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + frontend::PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// A running `leafblk serve`, ended by SIGTERM when it is dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) dir: PathBuf,
    /// The lines that it printed until it was ready, that one included.
    pub(crate) announced: Vec<String>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Daemon {
    /// Starts it in `dir` with the given extra arguments and waits for the
    /// ready line.
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_with(dir, args, Stdio::inherit())
    }

    /// The same, with its log.
    pub(crate) fn start_logged(dir: &Path, args: &[&str]) -> (Self, scene::Log) {
        let mut daemon = Self::start_with(dir, args, Stdio::piped());
        let log = scene::Log::follow(daemon.child.stderr.take().unwrap());
        (daemon, log)
    }

    pub(crate) fn start_with(dir: &Path, args: &[&str], stderr: Stdio) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leafblk"))
            .arg("serve")
            .args(["--hugepages", "off"])
            .args(if args.contains(&"--cache-size") { &[][..] } else { &["--cache-size", "64MiB"] })
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--runtime-dir")
            .arg(dir.join("run"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut announced = Vec::new();
        while !announced.last().is_some_and(|line: &String| line.starts_with("ready")) {
            let mut line = String::new();
            let len = stdout.read_line(&mut line).unwrap();
            assert!(len > 0, "the daemon ended before it was ready");
            announced.push(line.trim_end_matches('\n').to_owned());
        }
        Self { child, dir: dir.to_owned(), announced, stdout }
    }

    pub(crate) fn socket(&self, vm: &str) -> PathBuf {
        self.dir.join("run").join(format!("{vm}.sock"))
    }

    pub(crate) fn leaf(&self, vm: &str) -> PathBuf {
        self.dir.join("state").join(format!("{vm}.leaf"))
    }

    pub(crate) fn control(&self) -> http::Control {
        http::Control::at(&self.dir.join("run/control.sock"))
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Does something while it stands still.
    pub(crate) fn while_paused<T>(&self, work: impl FnOnce() -> T) -> T {
        use rustix::process::{WaitOptions, waitpid};
        self.signal(Signal::STOP);
        let stopped = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
        let result = work();
        self.signal(Signal::CONT);
        result
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// SIGTERM; what it printed at the end. Panics unless it ends with 0.
    pub(crate) fn stop(self) -> String {
        self.stop_by(Signal::TERM)
    }

    /// The same by this signal.
    pub(crate) fn stop_by(mut self, signal: Signal) -> String {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Fills the pipe that it prints into, which nobody reads: the next line that it
    /// prints waits, and it with that line.
    pub(crate) fn fill_stdout(&self) {
        use std::os::unix::fs::OpenOptionsExt;
        let pipe = format!("/proc/self/fd/{}", self.stdout.get_ref().as_raw_fd());
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut pipe = File::options().write(true).custom_flags(nonblock).open(pipe).unwrap();
        while pipe.write(&[b'-'; 4096]).is_ok() {}
    }

    /// Waits until it has ended; how it did. Panics where it doesn't.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let process = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        if !frontend::readable(&process, frontend::PATIENCE) {
            self.child.kill().unwrap();
            panic!("the daemon never ends");
        }
        self.child.wait().unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid(), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// A client by libblkio.
pub(crate) struct Client {
    // Before `blkio`, which owns its memory.
    queue: Blkioq,
    pub(crate) region: MemoryRegion,
    _blkio: Blkio,
    pub(crate) capacity: u64,
}

/// What a request does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

impl Client {
    /// Connects; again and again for a while, since another test's fork can
    /// hold an earlier client's connection open until its exec.
    pub(crate) fn connect(socket: &Path) -> Self {
        for _ in 0..1000 {
            if let Ok(client) = Self::try_connect(socket) {
                return client;
            }
            std::thread::yield_now();
        }
        Self::try_connect(socket).unwrap()
    }

    pub(crate) fn try_connect(socket: &Path) -> blkio::Result<Self> {
        Self::open(socket, false)
    }

    pub(crate) fn open(socket: &Path, read_only: bool) -> blkio::Result<Self> {
        Self::open_with_memory(socket, read_only, 4 << 20)
    }

    /// With so many bytes for data.
    pub(crate) fn open_with_memory(
        socket: &Path,
        read_only: bool,
        memory_len: usize,
    ) -> blkio::Result<Self> {
        let mut blkio = Blkio::new("virtio-blk-vhost-user")?;
        blkio.set_str("path", socket.to_str().unwrap())?;
        blkio.set_bool("read-only", read_only)?;
        blkio.connect()?;
        let capacity = blkio.get_u64("capacity")?;
        blkio.set_i32("num-queues", 1)?;
        let mut queues = blkio.start()?.queues;
        let region = blkio.alloc_mem_region(memory_len)?;
        blkio.map_mem_region(&region)?;
        let queue = queues.remove(0);
        Ok(Self { queue, region, _blkio: blkio, capacity })
    }

    #[expect(unsafe_code, reason = "the region is mapped as long as the client lives")]
    pub(crate) fn memory(&mut self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset + len <= self.region.len);
        // SAFETY: inside the region, which is only used between requests.
        unsafe { std::slice::from_raw_parts_mut((self.region.addr + offset) as *mut u8, len) }
    }

    /// Queues a request on the memory at `offset`.
    pub(crate) fn submit(&mut self, op: Op, start: u64, len: usize, offset: usize, id: usize) {
        let ptr = (self.region.addr + offset) as *mut u8;
        match op {
            Op::Read => self.queue.read(start, ptr, len, id, ReqFlags::empty()),
            Op::Write => self.queue.write(start, ptr.cast_const(), len, id, ReqFlags::empty()),
            Op::Zero => self.queue.write_zeroes(start, len as u64, id, ReqFlags::empty()),
            Op::Discard => self.queue.discard(start, len as u64, id, ReqFlags::empty()),
            Op::Flush => self.queue.flush(id, ReqFlags::empty()),
        }
    }

    /// As [`Self::submit`] for a read into these pieces of the memory, one after the
    /// other. They stay as they are until the request is complete.
    pub(crate) fn submit_read_into(&mut self, start: u64, pieces: &[libc::iovec], id: usize) {
        let count = pieces.len() as u32;
        self.queue.readv(start, pieces.as_ptr(), count, id, ReqFlags::empty());
    }

    /// Waits for `count` completions; their (id, result).
    pub(crate) fn complete(&mut self, count: usize) -> Vec<(usize, i32)> {
        // A flush may wait long for a disk that others write to.
        let done = self.complete_some(count, count, 2 * frontend::PATIENCE).unwrap();
        assert_eq!(done.len(), count);
        done
    }

    /// Waits for `least` completions, and takes up to `most`.
    pub(crate) fn complete_some(
        &mut self,
        least: usize,
        most: usize,
        patience: Duration,
    ) -> blkio::Result<Vec<(usize, i32)>> {
        let mut completions: Vec<_> =
            (0..most).map(|_| std::mem::MaybeUninit::<Completion>::uninit()).collect();
        let mut timeout = Some(patience);
        let done = self.queue.do_io(&mut completions, least, timeout.as_mut(), None)?;
        #[expect(unsafe_code, reason = "do_io has filled them")]
        // SAFETY: the first `done` entries are initialised.
        let done = completions[..done].iter().map(|c| unsafe { c.assume_init_ref() });
        Ok(done.map(|c| (c.user_data, c.ret)).collect())
    }

    /// One request, waited for; its result.
    pub(crate) fn run(&mut self, op: Op, start: u64, len: usize) -> i32 {
        self.submit(op, start, len, 0, 7);
        let done = self.complete(1);
        assert_eq!(done[0].0, 7);
        done[0].1
    }

    pub(crate) fn read(&mut self, start: u64, len: usize) -> Vec<u8> {
        self.memory(0, len).fill(0xa5);
        assert_eq!(self.run(Op::Read, start, len), 0, "read of {len} at {start}");
        self.memory(0, len).to_vec()
    }

    pub(crate) fn write(&mut self, start: u64, bytes: &[u8]) {
        self.memory(0, bytes.len()).copy_from_slice(bytes);
        assert_eq!(self.run(Op::Write, start, bytes.len()), 0, "write at {start}");
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.run(Op::Flush, 0, 0), 0);
    }
}

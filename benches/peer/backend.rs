//! Starts the two daemons and stops them again, whatever happens.
//!
//! Knows their command lines and nothing of what is measured. A daemon ends
//! with its [`Backend`], also when the benchmark panics or is killed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::cli::{Cli, Daemon};
use crate::data;
use crate::proc_stat::Process;
use crate::util::{Context, Error, Result, check_signals};

const START_LIMIT: Duration = Duration::from_secs(120);

/// What the peer exports for a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Export {
    /// The root itself, read-only.
    RawReadOnly,
    /// A fresh overlay on the root.
    Overlay,
}

/// What a daemon is to serve.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    /// The root that all VMs share.
    pub root: &'a Path,
    /// VMs, each with a fresh leaf.
    pub vms: usize,
    /// What the peer exports; leafblk always serves a leaf on the root.
    pub export: Export,
    /// leafblk's cache.
    pub cache_bytes: u64,
    /// Threads that move data: reactors, or the peer's iothreads.
    pub threads: usize,
}

/// A running daemon with its sockets, in a directory of its own.
pub(crate) struct Backend {
    daemon: Daemon,
    child: Child,
    sockets: Vec<PathBuf>,
    /// Whether its exports are read-only.
    read_only: bool,
    log: PathBuf,
    runtime_dir: tempfile::TempDir,
    // Dropped last: the files go once the process has gone.
    _dir: tempfile::TempDir,
}

impl Backend {
    /// Starts `daemon` and waits until it serves.
    pub(crate) fn start(cli: &Cli, work: &Path, daemon: Daemon, setup: &Setup) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("backend-").disable_cleanup(cli.keep);
        let dir = builder.tempdir_in(work).context(|| "cannot make a directory".to_owned())?;
        let dirs = Dirs { files: dir, runtime: runtime_dir()? };
        match daemon {
            Daemon::Leafblk => {
                let built = || PathBuf::from(env!("CARGO_BIN_EXE_leafblk"));
                start_leafblk(&cli.leafblk.clone().unwrap_or_else(built), cli, dirs, setup)
            }
            Daemon::LeafblkB => {
                let program = cli.leafblk_b.clone().ok_or("leafblk-b needs --leafblk-b FILE")?;
                start_leafblk(&program, cli, dirs, setup)
            }
            Daemon::Qsd => start_qsd(dirs, setup),
        }
    }

    /// The socket of VM `index`.
    pub(crate) fn socket(&self, index: usize) -> &Path {
        &self.sockets[index]
    }

    /// The column's name.
    pub(crate) const fn daemon(&self) -> Daemon {
        self.daemon
    }

    /// Whether clients must ask for a read-only device.
    pub(crate) const fn read_only(&self) -> bool {
        self.read_only
    }

    /// What it says on stderr.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Its figures in /proc.
    pub(crate) fn process(&self) -> Process {
        Process::new(self.child.id())
    }

    /// Where the sockets are, and leafblk's live maps.
    pub(crate) fn runtime_dir(&self) -> &Path {
        self.runtime_dir.path()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Killed, not asked: nothing of what it would still write is wanted.
        // Both fail only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directories of one daemon.
struct Dirs {
    files: tempfile::TempDir,
    runtime: tempfile::TempDir,
}

/// A directory for sockets, whose names must be short, and for live maps, which
/// belong on tmpfs as in /run.
fn runtime_dir() -> Result<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new()
        .prefix("leafblk-peer-")
        .tempdir_in(parent)
        .context(|| "cannot make a runtime directory".to_owned())
}

/// Starts `command` so that it dies with this process.
fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let stderr = File::create(log).context(|| format!("cannot create {}", log.display()))?;
    command.stdin(Stdio::null()).stderr(stderr);
    // SAFETY: between fork and exec only one prctl is called, which is
    // async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .map_err(Into::into)
        });
    }
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().context(|| format!("cannot start {program}"))
}

fn start_leafblk(program: &Path, cli: &Cli, dirs: Dirs, setup: &Setup) -> Result<Backend> {
    let mut command = Command::new(program);
    command
        .arg("serve")
        .arg("--state-dir")
        .arg(dirs.files.path())
        .arg("--runtime-dir")
        .arg(dirs.runtime.path())
        .arg("--root")
        .arg(format!("root={}", setup.root.display()))
        .args(["--cache-size", &format!("{}MiB", setup.cache_bytes >> 20)])
        .args(["--cache-block", &format!("{}KiB", cli.cache_block_kib)])
        .args(["--reactors", &setup.threads.to_string()])
        .args(&cli.leafblk_arg)
        .stdout(Stdio::piped());
    let mut sockets = Vec::with_capacity(setup.vms);
    for vm in 0..setup.vms {
        command.args(["--vm", &format!("vm{vm},root=root")]);
        sockets.push(dirs.runtime.path().join(format!("vm{vm}.sock")));
    }
    let log = dirs.files.path().join("log");
    let mut child = spawn(&mut command, &log)?;
    let stdout = child.stdout.take();
    let backend = Backend {
        daemon: Daemon::Leafblk,
        child,
        sockets,
        read_only: false,
        log: log.clone(),
        runtime_dir: dirs.runtime,
        _dir: dirs.files,
    };
    let stdout = stdout.ok_or_else(|| Error::from("leafblk has no stdout"))?;
    wait_for_ready_line(stdout, &log)?;
    Ok(backend)
}

/// Waits for the line that starts with `ready`; the rest of the output is read
/// by a thread, so that the daemon never blocks on it.
fn wait_for_ready_line(stdout: ChildStdout, log: &Path) -> Result<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            if line.trim_start().starts_with("ready") {
                // Nobody listens any more after the limit.
                let _ = sender.send(());
            }
        }
    });
    match receiver.recv_timeout(START_LIMIT) {
        Ok(()) => Ok(()),
        Err(RecvTimeoutError::Timeout) => Err(Error::from(format!(
            "leafblk printed no ready line within {} s: {}",
            START_LIMIT.as_secs(),
            data::log_tail(log)
        ))),
        Err(RecvTimeoutError::Disconnected) => Err(Error::from(format!(
            "leafblk ended before its ready line: {}",
            data::log_tail(log)
        ))),
    }
}

/// Runs qemu-img to make an overlay of `bytes`. The backing file is named on the
/// daemon's command line, not in the overlay.
fn create_overlay(path: &Path, bytes: u64) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(bytes.to_string())
        .output()
        .context(|| "cannot run qemu-img (Debian: qemu-utils)".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::from(format!("qemu-img create failed: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Options for the threads. A block node belongs to one thread, so each opens
/// the root for itself; they share its page cache.
fn qsd_threads(command: &mut Command, setup: &Setup) {
    for thread in 0..setup.threads {
        command.args([
            "--object",
            &format!("iothread,id=io{thread},poll-max-ns=32768"),
            "--blockdev",
            &format!(
                "driver=file,node-name=f{thread},filename={},read-only=on,aio=io_uring",
                setup.root.display()
            ),
            "--blockdev",
            &format!("driver=raw,node-name=r{thread},file=f{thread},read-only=on"),
        ]);
    }
}

/// Options for an overlay on the root of `thread`.
fn qsd_overlay(command: &mut Command, vm: usize, thread: usize, overlay: &Path) {
    command.args([
        "--blockdev",
        &format!(
            "driver=file,node-name=o{vm},filename={},aio=io_uring,discard=unmap",
            overlay.display()
        ),
        "--blockdev",
        &format!("driver=qcow2,node-name=q{vm},file=o{vm},backing=r{thread},discard=unmap"),
    ]);
}

fn start_qsd(dirs: Dirs, setup: &Setup) -> Result<Backend> {
    let pid_file = dirs.files.path().join("pid");
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--pidfile").arg(&pid_file).stdout(Stdio::null());
    qsd_threads(&mut command, setup);
    let template = dirs.files.path().join("template.qcow2");
    if setup.export == Export::Overlay {
        create_overlay(&template, std::fs::metadata(setup.root)?.len())?;
    }
    let mut sockets = Vec::with_capacity(setup.vms);
    for vm in 0..setup.vms {
        let thread = vm % setup.threads;
        let socket = dirs.runtime.path().join(format!("vm{vm}.sock"));
        let (node, writable) = match setup.export {
            Export::RawReadOnly => (format!("r{thread}"), "off"),
            Export::Overlay => {
                let overlay = dirs.files.path().join(format!("vm{vm}.qcow2"));
                std::fs::copy(&template, &overlay)?;
                qsd_overlay(&mut command, vm, thread, &overlay);
                (format!("q{vm}"), "on")
            }
        };
        command.args([
            "--export",
            &format!(
                "type=vhost-user-blk,id=e{vm},node-name={node},addr.type=unix,addr.path={},\
                 writable={writable},num-queues=1,iothread=io{thread}",
                socket.display()
            ),
        ]);
        sockets.push(socket);
    }
    let log = dirs.files.path().join("log");
    let child = spawn(&mut command, &log)?;
    let mut backend = Backend {
        daemon: Daemon::Qsd,
        child,
        sockets,
        read_only: setup.export == Export::RawReadOnly,
        log: log.clone(),
        runtime_dir: dirs.runtime,
        _dir: dirs.files,
    };
    wait_for_pid_file(&mut backend.child, &pid_file, &log)?;
    Ok(backend)
}

/// Waits until qemu-storage-daemon has made all exports: then it writes its
/// process id.
fn wait_for_pid_file(child: &mut Child, pid_file: &Path, log: &Path) -> Result<()> {
    let started = Instant::now();
    while !pid_file.exists() {
        if let Some(status) = child.try_wait()? {
            return Err(Error::from(format!(
                "qemu-storage-daemon ended with {status}: {}",
                data::log_tail(log)
            )));
        }
        if started.elapsed() > START_LIMIT {
            return Err(Error::from("qemu-storage-daemon does not start"));
        }
        check_signals()?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

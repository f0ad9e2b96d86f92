//! Whether anybody opens a file: asked of the kernel (inotify(7), IN_OPEN), so that
//! there is no waiting for something that must not happen. Opening with O_PATH is
//! none.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use rustix::fs::{CWD, Mode};

/// A file that nobody opens from here on.
pub(crate) struct Unopened {
    events: OwnedFd,
    path: PathBuf,
}

impl Unopened {
    pub(crate) fn watch(path: &Path) -> Self {
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        add_watch(&events, path, WatchFlags::OPEN).unwrap();
        Self { events, path: path.to_owned() }
    }

    /// Whether somebody has opened it since the last time.
    pub(crate) fn was_opened(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        match Reader::new(&self.events, &mut buffer).next() {
            Ok(_) => true,
            Err(rustix::io::Errno::AGAIN) => false,
            Err(e) => panic!("{}: {e}", self.path.display()),
        }
    }
}

/// A FIFO with a writer that waits for somebody to read.
pub(crate) struct WaitingWriter {
    fifo: Unopened,
    let_go: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl WaitingWriter {
    /// At `path`, which is free.
    pub(crate) fn at(path: &Path) -> Self {
        rustix::fs::mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
        let fifo = Unopened::watch(path);
        let let_go = Arc::new(AtomicBool::new(false));
        let (went, its) = (Arc::clone(&let_go), path.to_owned());
        let writer = std::thread::spawn(move || {
            let opened = std::fs::File::options().write(true).open(its).unwrap();
            went.store(true, Ordering::SeqCst);
            drop(opened);
        });
        Self { fifo, let_go, writer: Some(writer) }
    }

    /// That nobody has opened it, and the writer waits.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert!(!self.fifo.was_opened(), "{} was opened", self.fifo.path.display());
        assert!(!self.let_go.load(Ordering::SeqCst), "the writer was let go");
    }
}

impl Drop for WaitingWriter {
    fn drop(&mut self) {
        let reader = std::fs::File::open(&self.fifo.path).unwrap();
        self.writer.take().unwrap().join().unwrap();
        drop(reader);
    }
}

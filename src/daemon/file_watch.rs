//! Looks once a minute whether the files of roots and leaves are still where they were,
//! though nobody asks for health or metrics: who deletes a leaf hears of it in the log
//! while it can still be saved.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::host::Host;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(60);

/// The thread that looks. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct FileWatch {
    /// There until it is dropped.
    thread: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl FileWatch {
    /// # Errors
    /// Where there is no thread to be had.
    pub(super) fn start(host: &Host) -> io::Result<Self> {
        let host = host.clone();
        Self::every(EVERY, move || host.look_at_files())
    }

    fn every(time: Duration, look: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = sync_channel(1);
        let thread = std::thread::Builder::new().name("file-watch".into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(time) {
                look();
            }
        })?;
        Ok(Self { thread: Some((stop, thread)) })
    }
}

impl Drop for FileWatch {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn it_looks_again_and_again_and_ends_when_it_is_dropped() {
        let (looks, looked) = channel();
        let watch = FileWatch::every(Duration::from_millis(1), move || {
            // Nobody looks any more when the test is over.
            let _ = looks.send(());
        });
        for _ in 0..3 {
            looked.recv().unwrap();
        }
        drop(watch.unwrap());
        // The thread has ended, and its end of the channel with it: else this waits for ever.
        while looked.recv().is_ok() {}
    }
}

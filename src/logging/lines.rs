//! Lines on their way to stderr.
//!
//! Whoever reads stderr may stall: a journal that waits for its disk, a pipe
//! that nobody empties. So a thread of its own writes, and whoever logs only
//! leaves its line in a buffer, for which it waits no longer than others take to
//! do the same. Lines that find the buffer full are left out, and counted: the
//! next line that gets through says how many.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What may wait: some thousand lines.
const WAITING_BYTES_MAX: usize = 256 << 10;

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that found no room since.
    left_out: u64,
    /// The thread has taken some and not written them yet.
    writing: bool,
}

/// The buffer.
#[derive(Default)]
pub(super) struct Lines {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

impl Lines {
    /// Starts the thread, which writes to `out`; `left_out` makes the line that
    /// tells how many there was no room for.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        left_out: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let in_thread = Arc::clone(&lines);
        let thread = std::thread::Builder::new().name("log".into());
        thread.spawn(move || in_thread.write_to(out, left_out))?;
        Ok(lines)
    }

    /// Leaves a line to be written, if there is room.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + line.len() <= WAITING_BYTES_MAX {
            state.waiting.extend_from_slice(line);
        } else {
            state.left_out += 1;
        }
        self.filled.notify_one();
    }

    /// Returns when all lines are written, or after `patience`.
    pub(super) fn wait_written(&self, patience: Duration) {
        let all =
            |state: &mut State| !state.waiting.is_empty() || state.left_out > 0 || state.writing;
        let _ = self.written.wait_timeout_while(self.lock(), patience, all);
    }

    fn write_to(&self, mut out: impl Write, left_out: impl Fn(u64) -> String) {
        let mut taken = Vec::new();
        loop {
            let nothing = |state: &mut State| state.waiting.is_empty() && state.left_out == 0;
            let waited = self.filled.wait_while(self.lock(), nothing);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut state.waiting, &mut taken);
            let lost = mem::take(&mut state.left_out);
            state.writing = true;
            drop(state);
            // Where stderr is gone there is nobody to tell.
            let _ = out.write_all(&taken);
            if lost > 0 {
                let _ = out.write_all(left_out(lost).as_bytes());
            }
            let _ = out.flush();
            taken.clear();
            self.lock().writing = false;
            self.written.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way in for a writer of lines, which gives each in one piece.
pub(super) struct Pen(pub(super) Arc<Lines>);

impl Write for Pen {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Takes a write for each permit.
    struct Stalling(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Stalling {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_delays_no_line_and_is_told_how_many_are_missing() {
        let (permit, permits) = channel();
        let (sender, written) = channel();
        let left_out = |count| format!("{count} left out\n");
        let lines = Lines::start(Stalling(permits, sender), left_out).unwrap();
        let line = [b'x'; 1023];
        let line = [&line[..], b"\n"].concat();
        lines.push(&line);
        // The thread has taken that one, and waits in its write.
        while !lines.lock().writing {
            std::thread::yield_now();
        }
        for _ in 0..WAITING_BYTES_MAX / 1024 + 7 {
            lines.push(&line);
        }
        lines.wait_written(Duration::from_millis(1));
        assert!(lines.lock().writing, "it gave up waiting");
        (0..3).for_each(|_| permit.send(()).unwrap());
        lines.wait_written(PATIENCE);
        let all: Vec<Vec<u8>> = written.try_iter().collect();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [1024, WAITING_BYTES_MAX, 11]);
        assert_eq!(all[2], b"7 left out\n");
        // From here on it goes as before.
        permit.send(()).unwrap();
        lines.push(b"more\n");
        lines.wait_written(PATIENCE);
        assert_eq!(written.recv_timeout(PATIENCE).unwrap(), b"more\n");
    }
}

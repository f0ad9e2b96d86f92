//! Readings taken on a thread of their own, so that keys and signals are heeded
//! however long one takes.
//!
//! One reading at a time is under way. The thread ends with the [`Reader`], or
//! with the process while a reading still hangs.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::stats::HostStats;

/// The values, or why there are none.
pub(super) type Reading = Result<HostStats, String>;

pub(super) struct Reader {
    ask: SyncSender<()>,
    readings: Receiver<(Reading, Instant)>,
    asked: Option<Instant>,
}

impl Reader {
    /// Takes readings by `read`.
    ///
    /// # Errors
    /// As pthread_create(3).
    pub(super) fn start(mut read: impl FnMut() -> Reading + Send + 'static) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let (give, readings) = sync_channel(1);
        std::thread::Builder::new().name("readings".into()).spawn(move || {
            while asked.recv().is_ok() {
                if give.send((read(), Instant::now())).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { ask, readings, asked: None })
    }

    /// Begins a reading, unless one is under way.
    pub(super) fn ask(&mut self) {
        if self.asked.is_none() && self.ask.try_send(()).is_ok() {
            self.asked = Some(Instant::now());
        }
    }

    /// The reading that was asked for, and when it was there; `None` while it is
    /// under way.
    pub(super) fn take(&mut self) -> Option<(Reading, Instant)> {
        let reading = self.readings.try_recv().ok()?;
        self.asked = None;
        Some(reading)
    }

    /// For how long the reading that is under way has been waited for.
    pub(super) fn waiting(&self) -> Option<Duration> {
        self.asked.map(|asked| asked.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::sample;

    #[test]
    fn a_reading_that_hangs_holds_up_nobody_and_is_the_only_one() {
        let (let_go, gate) = sync_channel::<()>(0);
        let mut reader = Reader::start(move || {
            let _ = gate.recv();
            Ok(sample::host(1))
        })
        .unwrap();
        assert!(reader.take().is_none() && reader.waiting().is_none());
        for _ in 0..3 {
            reader.ask();
            assert!(reader.take().is_none());
        }
        assert!(reader.waiting().is_some());
        let_go.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (reading, _) = loop {
            if let Some(reading) = reader.take() {
                break reading;
            }
            assert!(Instant::now() < deadline, "the reading never comes");
            std::thread::yield_now();
        };
        assert_eq!(reading, Ok(sample::host(1)));
        assert!(reader.waiting().is_none());
        // None of the three times that it was asked is made up for.
        assert!(let_go.try_send(()).is_err() && reader.take().is_none());
    }
}

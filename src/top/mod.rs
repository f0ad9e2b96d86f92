//! `leafblk top`: a live view of a running leafblk, in a terminal.
//!
//! Owns the loop: ask for a reading, show it, take keys. [`model`] holds what
//! is shown and what keys do to it, [`view`] draws it, [`terminal`] sees to it
//! that the terminal is left as it was found, [`text`] writes the same for
//! pipes. Readings are taken on a thread (`reader.rs`). It knows the daemon only
//! by the readings it is given.

pub mod format;
pub mod model;
mod reader;
pub mod terminal;
pub mod text;
pub mod view;

use std::io;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyEventKind};

use crate::stats::HostStats;
use model::{Model, Next};
use reader::Reader;
use terminal::Screen;

/// The shortest time between two readings.
pub const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// The longest.
pub const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How long keys and signals may wait to be noticed.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long a reading may wait to be noticed.
const ANSWER_PATIENCE: Duration = Duration::from_millis(10);

/// Shows readings, one every `interval`, until the person leaves or a signal
/// ends the process's work. A reading that fails is shown as such and tried
/// again.
///
/// # Errors
/// The terminal's.
pub fn run(
    read: impl FnMut() -> Result<HostStats, String> + Send + 'static,
    interval: Duration,
) -> io::Result<()> {
    let ended = terminal::watch_signals()?;
    let mut reader = Reader::start(read)?;
    let mut screen = Screen::open()?;
    let mut model = Model::new(interval.clamp(INTERVAL_MIN, INTERVAL_MAX));
    let mut due = Instant::now();
    while !ended.load(std::sync::atomic::Ordering::Relaxed) {
        if let Some((reading, at)) = reader.take() {
            model.take(reading, at);
            due = Instant::now() + model.interval();
        }
        if Instant::now() >= due && !model.is_paused() {
            reader.ask();
        }
        model.waiting = reader.waiting();
        screen.draw(|frame| view::draw(frame, &mut model))?;
        let left = due.saturating_duration_since(Instant::now());
        let wait = match (model.waiting, model.is_paused()) {
            (Some(_), _) => ANSWER_PATIENCE,
            (None, true) => PATIENCE,
            (None, false) => left.min(PATIENCE),
        };
        if !event::poll(wait)? {
            continue;
        }
        // Another kind of event changes the size, which the next draw sees.
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match model.key(key) {
                Next::Stay => {}
                Next::Read => due = Instant::now(),
                Next::Leave => break,
            }
        }
    }
    Ok(())
}

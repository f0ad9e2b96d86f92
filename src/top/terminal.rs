//! The terminal: taken over, and given back on every way out.
//!
//! The ways out are the end of [`Screen`]'s life, a panic (the hook gives the
//! terminal back before the message is printed), the signals that ask a process
//! to end, which are only noted, so that the loop ends by itself, and SIGHUP,
//! which ends the process from a thread: crossterm 0.29 reads a terminal that has
//! hung up for ever, so the loop would not come to look.
//! After a SIGKILL nothing can be done; `reset` helps then.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether both ends are a terminal.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Turns true when the process is asked to end; SIGHUP ends it.
///
/// # Errors
/// As sigaction(2) and pthread_create(3).
pub(super) fn watch_signals() -> io::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGQUIT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let mut hang_up = Signals::new([SIGHUP])?;
    std::thread::Builder::new().name("hang-up".into()).spawn(move || {
        if hang_up.forever().next().is_some() {
            // It may have been sent by hand, and the terminal still be there.
            let _ = ratatui::try_restore();
            std::process::exit(1);
        }
    })?;
    Ok(ended)
}

/// The whole screen, in raw mode.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal over, and hooks panics.
    pub(super) fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.0.draw(draw).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Where the terminal is gone there is nobody to tell.
        let _ = ratatui::try_restore();
    }
}

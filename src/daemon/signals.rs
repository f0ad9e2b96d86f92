//! The signals that the process heeds.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::reload_report::Reloaded;
use crate::error::{CHECK_LIMITS, Error};

/// The exit status of a second signal: as if the first had killed.
const STATUS_STOPPED_AT_ONCE: i32 = 130;

/// Reloads that may be asked for while one is under way; more say nothing new.
const PENDING_MAX: usize = 4;

/// What a signal asks for, or a client of the control API.
#[derive(Debug)]
pub(super) enum Wish {
    /// SIGTERM, SIGINT: end well.
    Stop,
    /// SIGHUP, or a client, who waits for the answer: read the configuration again.
    Reload(Option<SyncSender<Arc<Reloaded>>>),
}

/// A receiver that hears of SIGHUPs and of the first SIGTERM or SIGINT; the
/// second ends the process. By the sender, others wish for something, too.
pub(super) fn watch() -> Result<(SyncSender<Wish>, Receiver<Wish>), Error> {
    let failed =
        |source| Error::failure(format!("can't watch for signals: {source}; {CHECK_LIMITS}"));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    let (sender, wishes) = mpsc::sync_channel(PENDING_MAX);
    let of_others = sender.clone();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut stopping = false;
            for signal in signals.forever() {
                match signal {
                    SIGHUP => {
                        // Full: the reloads that wait will see what this one would.
                        let _ = sender.try_send(Wish::Reload(None));
                    }
                    _ if stopping => {
                        log::warn!("stopping at once, without draining");
                        crate::logging::say_last(None);
                        std::process::exit(STATUS_STOPPED_AT_ONCE);
                    }
                    _ => {
                        stopping = true;
                        let sender = sender.clone();
                        // Waits for room, which the next signal must not.
                        std::thread::spawn(move || sender.send(Wish::Stop));
                    }
                }
            }
        })
        .map_err(failed)?;
    Ok((of_others, wishes))
}

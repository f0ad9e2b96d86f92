//! Letting go of what a peer may have filled.
//!
//! A Unix socket's queue can hold descriptors (SCM_RIGHTS) that nobody has
//! received. Closing the socket closes them, and that may wait as long as the
//! peer likes: for a TCP socket with SO_LINGER, for a file of its own FUSE. The
//! same goes for connections in a listener's backlog. So the last close of such
//! a socket is done on a thread that nobody waits for.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

/// Closing needs next to nothing.
const STACK_BYTES: usize = 32 << 10;

/// Drops `thing` on a thread of its own, then calls `done` there.
///
/// # Errors
/// `thing`, where there is no thread to be had.
pub(crate) fn drop_apart<T: Send + 'static>(
    thing: T,
    done: impl FnOnce() + Send + 'static,
) -> Result<(), T> {
    // What a thread that does not start was to do is dropped right here.
    let place = Arc::new(Mutex::new(Some(thing)));
    let in_thread = Arc::clone(&place);
    let take =
        |place: &Mutex<Option<T>>| place.lock().unwrap_or_else(PoisonError::into_inner).take();
    let thread = std::thread::Builder::new().name("closer".into()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        let thing = take(&in_thread);
        drop(thing);
        done();
    });
    match started {
        Ok(_) => Ok(()),
        Err(_) => take(&place).map_or(Ok(()), Err),
    }
}

/// Drops `thing` on a thread of its own; where there is none to be had, never:
/// for what is dropped seldom, where a lost descriptor is the lesser evil.
pub(crate) fn drop_apart_or_never<T: Send + 'static>(thing: T) {
    if let Err(thing) = drop_apart(thing, || ()) {
        mem::forget(thing);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_drop_that_waits_is_waited_for_by_nobody() {
        struct Slow(std::sync::mpsc::Receiver<()>);
        impl Drop for Slow {
            fn drop(&mut self) {
                self.0.recv().unwrap();
            }
        }
        let (go, wait) = channel();
        let (done, is_done) = channel();
        assert!(drop_apart(Slow(wait), move || done.send(()).unwrap()).is_ok());
        assert!(is_done.try_recv().is_err());
        go.send(()).unwrap();
        is_done.recv().unwrap();
    }
}

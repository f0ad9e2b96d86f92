//! Whose turn it is: how many requests work at a time, so that nobody can keep
//! others from the API.
//!
//! Who comes in by one listener takes no turn from those who come in by another:
//! the port for looking is open to every user of the host, the control socket
//! isn't. A look that costs much is made one at a time, and those that wait for
//! it keep no short look waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Bounds;

/// What a request has to get through before it works, in this order.
pub(super) type Gates = Vec<Arc<Semaphore>>;

/// The turns at one listener.
pub(super) struct Turns {
    changes: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    /// One of this listener's requests at a time gets as far as `long_looks`, so
    /// that there the listeners take turns.
    long_looks_here: Arc<Semaphore>,
    long_looks: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            changes: Arc::new(Semaphore::new(bounds.changes_max)),
            looks: Arc::new(Semaphore::new(bounds.looks_max)),
            long_looks_here: Arc::new(Semaphore::new(1)),
            long_looks: Arc::new(Semaphore::new(1)),
        }
    }

    /// The turns at another listener of the same API.
    pub(super) fn at_another_door(&self, bounds: &Bounds) -> Self {
        let (changes, long_looks) = (Arc::clone(&self.changes), Arc::clone(&self.long_looks));
        Self { changes, long_looks, ..Self::new(bounds) }
    }

    pub(super) fn change(&self) -> Gates {
        vec![Arc::clone(&self.changes)]
    }

    pub(super) fn look(&self) -> Gates {
        vec![Arc::clone(&self.looks)]
    }

    pub(super) fn long_look(&self) -> Gates {
        vec![Arc::clone(&self.long_looks_here), Arc::clone(&self.long_looks)]
    }
}

/// Threads that all turns together may need.
pub(super) fn threads_max(bounds: &Bounds, doors: usize) -> usize {
    bounds.changes_max + bounds.looks_max * doors + 1
}

/// Waits for a turn, which ends when what is returned is dropped; `None` where
/// that takes longer than `time_max`.
pub(super) async fn take(gates: &Gates, time_max: Duration) -> Option<Vec<OwnedSemaphorePermit>> {
    let all = async {
        let mut permits = Vec::with_capacity(gates.len());
        for gate in gates {
            // A semaphore is never closed.
            permits.push(Arc::clone(gate).acquire_owned().await.ok()?);
        }
        Some(permits)
    };
    tokio::time::timeout(time_max, all).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    fn runs(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn those_at_one_door_take_no_look_from_those_at_another() {
        runs(async {
            let bounds = Bounds { looks_max: 2, ..Bounds::default() };
            let socket = Turns::new(&bounds);
            let port = socket.at_another_door(&bounds);
            let (one, two) =
                (take(&port.look(), LONG).await.unwrap(), take(&port.look(), LONG).await);
            assert!(take(&port.look(), SOON).await.is_none(), "both turns are taken");
            assert!(take(&socket.look(), LONG).await.is_some());
            drop(one);
            assert!(take(&port.look(), LONG).await.is_some());
            drop(two);
        });
    }

    #[test]
    fn long_looks_are_made_one_at_a_time_and_hold_up_no_short_ones() {
        runs(async {
            let bounds = Bounds { looks_max: 1, ..Bounds::default() };
            let socket = Turns::new(&bounds);
            let port = socket.at_another_door(&bounds);
            let first = take(&port.long_look(), LONG).await.unwrap();
            // Many wait at the port, none of them ahead of the socket's.
            let gates = port.long_look();
            let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(take(&gates, LONG))).collect();
            for wait in &mut waiting {
                assert!(tokio::time::timeout(SOON, wait).await.is_err());
            }
            assert!(take(&port.look(), LONG).await.is_some());
            let gates = socket.long_look();
            let mut at_socket = Box::pin(take(&gates, LONG));
            assert!(tokio::time::timeout(SOON, &mut at_socket).await.is_err());
            drop(first);
            assert!(at_socket.await.is_some(), "it is the socket's turn");
        });
    }

    #[test]
    fn changes_are_counted_together() {
        runs(async {
            let bounds = Bounds { changes_max: 1, ..Bounds::default() };
            let one = Turns::new(&bounds);
            let other = one.at_another_door(&bounds);
            let change = take(&one.change(), LONG).await.unwrap();
            assert!(take(&other.change(), SOON).await.is_none());
            drop(change);
            assert!(take(&other.change(), LONG).await.is_some());
        });
    }
}

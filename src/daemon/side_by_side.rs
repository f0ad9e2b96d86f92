//! Work on many leaves at once.
//!
//! Opening, flushing and closing a leaf each wait for the disk, which can do
//! several syncs together: one after the other, a hundred VMs wait for a hundred.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};

/// Threads at most.
const AT_ONCE: usize = 16;

/// What `act` makes of each item, in the items' order.
pub(super) fn map<T: Send, R: Send>(items: Vec<T>, act: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = items.len().min(AT_ONCE);
    let rest = Mutex::new(items.into_iter().enumerate());
    let next = || rest.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(next).map(|(i, item)| (i, act(item))).collect::<Vec<_>>();
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_item_is_worked_on_once_and_the_order_stays() {
        for count in [0, 1, 15, 16, 17, 200] {
            let items: Vec<u32> = (0..count).collect();
            let expected: Vec<u32> = items.iter().map(|i| i * 3).collect();
            assert_eq!(super::map(items, |i| i * 3), expected);
        }
    }
}

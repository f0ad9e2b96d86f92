//! Who waits for a fill that somebody else runs.
//!
//! Owns a fixed pool of waiters, strung on one list a fill, first come first
//! served. Knows nothing of fills: a list is two numbers that its owner keeps.
//!
//! Invariant: every node is either on the free list or on exactly one list.

/// Names a request that waits: a reactor and whatever that reactor finds the
/// request by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct Waiter {
    /// The reactor to tell.
    pub reactor: u16,
    /// The reactor's own name for the request.
    pub token: u32,
}

const NONE: u32 = u32::MAX;

/// The waiters of one fill.
#[derive(Debug)]
pub(super) struct WaiterList {
    first: u32,
    last: u32,
}

impl WaiterList {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };
}

#[derive(Debug)]
struct Node {
    waiter: Waiter,
    next: u32,
}

/// All waiters of a cache.
#[derive(Debug)]
pub(super) struct WaiterPool {
    nodes: Vec<Node>,
    free: u32,
}

impl WaiterPool {
    pub(super) fn new(waiters_max: u16) -> Self {
        let waiter = Waiter { reactor: 0, token: 0 };
        let last = u32::from(waiters_max);
        let next = |n: u32| if n + 1 < last { n + 1 } else { NONE };
        Self {
            nodes: (0..last).map(|n| Node { waiter, next: next(n) }).collect(),
            free: if last == 0 { NONE } else { 0 },
        }
    }

    /// Puts the waiter at the list's end; `false` where the pool is used up.
    #[must_use]
    pub(super) fn push(&mut self, list: &mut WaiterList, waiter: Waiter) -> bool {
        let index = self.free;
        let Some(node) = self.nodes.get_mut(index as usize) else {
            return false;
        };
        self.free = node.next;
        *node = Node { waiter, next: NONE };
        match self.nodes.get_mut(list.last as usize) {
            Some(last) => last.next = index,
            None => list.first = index,
        }
        list.last = index;
        true
    }

    /// Takes all waiters off the list, in the order in which they came.
    pub(super) fn drain(&mut self, list: &mut WaiterList, into: &mut Vec<Waiter>) {
        let mut index = list.first;
        while let Some(node) = self.nodes.get_mut(index as usize) {
            into.push(node.waiter);
            let next = std::mem::replace(&mut node.next, self.free);
            self.free = index;
            index = next;
        }
        *list = WaiterList::EMPTY;
    }

    /// Moves all waiters of `from` to the end of `to`.
    pub(super) fn append(&mut self, to: &mut WaiterList, from: &mut WaiterList) {
        let from = std::mem::replace(from, WaiterList::EMPTY);
        if from.first == NONE {
            return;
        }
        match self.nodes.get_mut(to.last as usize) {
            Some(last) => last.next = from.first,
            None => to.first = from.first,
        }
        to.last = from.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn waiter(token: u32) -> Waiter {
        Waiter { reactor: 0, token }
    }

    fn tokens(pool: &mut WaiterPool, list: &mut WaiterList) -> Vec<u32> {
        let mut waiters = Vec::new();
        pool.drain(list, &mut waiters);
        waiters.iter().map(|waiter| waiter.token).collect()
    }

    #[test]
    fn waiters_come_back_once_in_order_and_their_places_are_reused() {
        let mut pool = WaiterPool::new(3);
        for _ in 0..3 {
            let (mut a, mut b) = (WaiterList::EMPTY, WaiterList::EMPTY);
            assert!(pool.push(&mut a, waiter(1)));
            assert!(pool.push(&mut b, waiter(2)));
            assert!(pool.push(&mut a, waiter(3)));
            assert!(!pool.push(&mut b, waiter(4)), "the pool holds three");
            assert_eq!(tokens(&mut pool, &mut a), [1, 3]);
            assert!(tokens(&mut pool, &mut a).is_empty());
            assert_eq!(tokens(&mut pool, &mut b), [2]);
        }
    }

    #[test]
    fn appended_lists_keep_their_order() {
        let mut pool = WaiterPool::new(4);
        let (mut a, mut b) = (WaiterList::EMPTY, WaiterList::EMPTY);
        assert!(pool.push(&mut b, waiter(1)));
        pool.append(&mut a, &mut b);
        assert!(pool.push(&mut b, waiter(2)));
        pool.append(&mut a, &mut b);
        pool.append(&mut a, &mut b);
        assert!(pool.push(&mut a, waiter(3)));
        assert_eq!(tokens(&mut pool, &mut a), [1, 2, 3]);
    }

    #[test]
    fn an_empty_pool_takes_nobody() {
        let mut pool = WaiterPool::new(0);
        let mut list = WaiterList::EMPTY;
        assert!(!pool.push(&mut list, waiter(0)));
    }
}

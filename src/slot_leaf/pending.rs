//! What is dirty, in the order in which it became so, and the flushes that wait for it.

use std::collections::VecDeque;

use super::batch::Part;
use super::blocks::{Blocks, What};
use super::record::ENTRIES_MAX;
use super::take_first_if;
use crate::write_cache::Memory;

#[derive(Clone, Copy, Debug)]
struct Item {
    order: u64,
    since: u64,
    what: What,
}

/// A flush that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flush {
    /// As it was given.
    pub(super) tag: u64,
    /// What it covers: changes up to this one.
    order: u64,
    since: u64,
}

/// What a batch is to hold.
#[derive(Debug)]
pub(super) struct Taken {
    /// Its parts.
    pub(super) parts: Vec<Part>,
    /// The oldest order among them.
    pub(super) oldest: u64,
}

/// What is dirty and in no batch.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queue: VecDeque<Item>,
    /// Items whose block is in a batch, or under a run that is not durable.
    held_back: Vec<Item>,
    flushes: VecDeque<Flush>,
}

impl Pending {
    /// This is dirty, newer than all before it.
    pub(super) fn push(&mut self, order: u64, since: u64, what: What) {
        self.queue.push_back(Item { order, since, what });
    }

    /// A flush of all changes up to `order`.
    pub(super) fn push_flush(&mut self, tag: u64, order: u64, since: u64) {
        self.flushes.push_back(Flush { tag, order, since });
    }

    /// Whether a flush waits.
    pub(super) fn has_flushes(&self) -> bool {
        !self.flushes.is_empty()
    }

    /// The change of this order stands for older ones that nothing holds any more: a flush
    /// that covers them needs it.
    pub(super) fn cover(&mut self, order: u64) {
        for flush in &mut self.flushes {
            flush.order = order;
        }
    }

    /// What is to be written now: all of it with `much`, else what is older than `age_max` or
    /// covered by a flush. `None` where there is nothing.
    pub(super) fn take<M: Memory>(
        &mut self,
        blocks: &mut Blocks<M>,
        now: u64,
        age_max: u64,
        much: bool,
    ) -> Option<Taken> {
        let front = self.queue.front()?;
        let covered = self.flushes.iter().map(|flush| flush.order).max();
        let limit =
            if much || now.saturating_sub(front.since) >= age_max { u64::MAX } else { covered? };
        let (mut parts, mut oldest) = (Vec::new(), u64::MAX);
        while parts.len() < ENTRIES_MAX {
            let Some(item) = take_first_if(&mut self.queue, |item| item.order <= limit) else {
                break;
            };
            if !blocks.is_dirty(item.what) {
                continue;
            }
            match blocks.part_of(item.what) {
                Some(part) => {
                    oldest = oldest.min(item.order);
                    parts.push(part);
                }
                None => self.held_back.push(item),
            }
        }
        (!parts.is_empty()).then_some(Taken { parts, oldest })
    }

    /// Batches are durable: what waited for them comes first now, in its order.
    pub(super) fn release(&mut self) {
        self.held_back.sort_by_key(|item| item.order);
        while let Some(item) = self.held_back.pop() {
            self.queue.push_front(item);
        }
    }

    /// The oldest order of what is here.
    pub(super) fn oldest<M: Memory>(&mut self, blocks: &Blocks<M>) -> Option<u64> {
        while take_first_if(&mut self.queue, |item| !blocks.is_dirty(item.what)).is_some() {}
        let queued = self.queue.front().map(|item| item.order);
        let held_back = self.held_back.iter().map(|item| item.order).min();
        queued.into_iter().chain(held_back).min()
    }

    /// The next flush that ends, and whether all that it covers is durable: what isn't is as
    /// old as `oldest`. Where writes fail, a flush ends when it has waited since before
    /// `waits_since`.
    pub(super) fn end_flush(
        &mut self,
        oldest: Option<u64>,
        waits_since: Option<u64>,
    ) -> Option<(Flush, bool)> {
        let is_durable = |flush: &Flush| oldest.is_none_or(|oldest| oldest > flush.order);
        let flush = take_first_if(&mut self.flushes, |flush| {
            is_durable(flush) || waits_since.is_some_and(|since| flush.since <= since)
        })?;
        Some((flush, is_durable(&flush)))
    }
}

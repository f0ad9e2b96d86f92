//! What a request is about, as far as counting goes.

/// The number of [`Operation`]s.
pub const OPERATIONS: usize = 6;

/// The kinds of requests that are counted apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(usize)]
pub enum Operation {
    /// Reading sectors.
    Read,
    /// Writing sectors.
    Write,
    /// Making writes durable.
    Flush,
    /// Forgetting sectors.
    Discard,
    /// Zeroing sectors.
    WriteZeroes,
    /// Reading the serial number, and whatever is not understood.
    #[default]
    Other,
}

impl Operation {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; OPERATIONS] =
        [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes, Self::Other];

    /// Its place in arrays that have one element each.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write_zeroes",
            Self::Other => "other",
        }
    }
}

/// How many requests of each kind a turn has answered.
#[derive(Debug, Default)]
pub struct Tally {
    counts: [u32; OPERATIONS],
    /// A bit for each operation whose count is not zero.
    any: u32,
}

impl Tally {
    /// Counts one.
    #[inline]
    pub fn note(&mut self, operation: Operation) {
        self.counts[operation.index()] += 1;
        self.any |= 1 << operation.index();
    }

    /// Takes the next kind with its count, until there is none.
    #[inline]
    pub fn take(&mut self) -> Option<(usize, u64)> {
        if self.any == 0 {
            return None;
        }
        let index = self.any.trailing_zeros() as usize;
        self.any &= self.any - 1;
        Some((index, u64::from(std::mem::take(&mut self.counts[index]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_at_its_index() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation.index(), index);
        }
    }

    #[test]
    fn a_tally_gives_each_kind_once() {
        let mut tally = Tally::default();
        for operation in [Operation::Write, Operation::Read, Operation::Write] {
            tally.note(operation);
        }
        assert_eq!(tally.take(), Some((Operation::Read.index(), 1)));
        assert_eq!(tally.take(), Some((Operation::Write.index(), 2)));
        assert_eq!(tally.take(), None);
        tally.note(Operation::Other);
        assert_eq!(tally.take(), Some((Operation::Other.index(), 1)));
    }
}

//! What the VMs are sorted by.

use std::cmp::Ordering;

use crate::stats::rates::VmRates;

/// What the VMs are sorted by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SortKey {
    /// The name, from a to z.
    Name,
    /// The root, from a to z.
    Root,
    /// Requests, the most first.
    Iops,
    /// Bytes read, the most first.
    Read,
    /// Bytes written, the most first.
    Written,
    /// The 99th percentile of latency, the longest first.
    P99,
    /// The 99th percentile of the latency of flushes, the longest first.
    FlushP99,
    /// Requests answered with an error, the most first.
    Errors,
    /// The share of hits, the smallest first.
    Hits,
    /// The leaf's size, the largest first.
    Leaf,
    /// The leaf's growth, the fastest first.
    Growth,
}

impl SortKey {
    /// All, in the order of the columns.
    pub const ALL: [Self; 11] = [
        Self::Name,
        Self::Root,
        Self::Iops,
        Self::Read,
        Self::Written,
        Self::P99,
        Self::FlushP99,
        Self::Errors,
        Self::Hits,
        Self::Leaf,
        Self::Growth,
    ];

    /// The key on the keyboard.
    pub const fn letter(self) -> char {
        match self {
            Self::Name => 'n',
            Self::Root => 'o',
            Self::Iops => 'i',
            Self::Read => 'd',
            Self::Written => 'w',
            Self::P99 => 'l',
            Self::FlushP99 => 'u',
            Self::Errors => 'e',
            Self::Hits => 'h',
            Self::Leaf => 'f',
            Self::Growth => 'g',
        }
    }

    /// What it does, in words.
    pub const fn explained(self) -> &'static str {
        match self {
            Self::Name => "sort by name",
            Self::Root => "sort by root",
            Self::Iops => "sort by requests",
            Self::Read => "sort by bytes read",
            Self::Written => "sort by bytes written",
            Self::P99 => "sort by the 99th percentile of latency",
            Self::FlushP99 => "sort by the 99th percentile of flushes",
            Self::Errors => "sort by errors",
            Self::Hits => "sort by hits, the fewest first",
            Self::Leaf => "sort by the leaf's size",
            Self::Growth => "sort by the leaf's growth",
        }
    }

    pub(super) fn compare(self, a: &VmRates, b: &VmRates) -> Ordering {
        let most_first = |value: fn(&VmRates) -> f64| value(b).total_cmp(&value(a));
        let by_key = match self {
            Self::Name => Ordering::Equal,
            Self::Root => natural(&a.root, &b.root),
            Self::Iops => most_first(|vm| vm.iops),
            Self::Read => most_first(|vm| vm.read_bytes),
            Self::Written => most_first(|vm| vm.written_bytes),
            Self::P99 => most_first(|vm| vm.p99_us.unwrap_or(-1.0)),
            Self::FlushP99 => most_first(|vm| vm.flush_p99_us.unwrap_or(-1.0)),
            Self::Errors => most_first(|vm| vm.errors),
            Self::Hits => most_first(|vm| -vm.hit_ratio.unwrap_or(2.0)),
            Self::Leaf => b.leaf_held_bytes.cmp(&a.leaf_held_bytes),
            Self::Growth => most_first(|vm| vm.leaf_growth),
        };
        by_key.then_with(|| natural(&a.name, &b.name))
    }
}

/// Names with numbers in the order of the numbers: `web2` before `web10`.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.chars().peekable(), b.chars().peekable());
    loop {
        match (x.peek().copied(), y.peek().copied()) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(c), Some(d)) if c.is_ascii_digit() && d.is_ascii_digit() => {
                let digits = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                    let mut text = String::new();
                    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                        text.push(digit);
                    }
                    let significant = text.trim_start_matches('0');
                    (significant.len(), significant.to_owned())
                };
                match digits(&mut x).cmp(&digits(&mut y)) {
                    Ordering::Equal => {}
                    unequal => return unequal,
                }
            }
            (Some(c), Some(d)) if c == d => {
                x.next();
                y.next();
            }
            (Some(c), Some(d)) => return c.cmp(&d),
        }
    }
}

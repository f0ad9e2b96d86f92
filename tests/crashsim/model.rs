//! The promise, as a model: a root, and for each sector that was ever touched
//! what it is and what a power cut may make of it.

use std::collections::BTreeMap;

/// Sectors of the root; behind them a disk is zeros.
pub(crate) const ROOT_SECTORS: u64 = 22;

/// What a sector holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Value {
    /// The root's content.
    Root,
    /// Zeros.
    Zeros,
    /// What write number so and so wrote.
    Written(u32),
}

/// The root: every sector tells its number.
pub(crate) fn root() -> Vec<u8> {
    (0..ROOT_SECTORS).flat_map(|sector| [0xa0 + u8::try_from(sector).unwrap(); 512]).collect()
}

impl Value {
    /// The bytes of it at this sector: what another sector, or another write,
    /// has nowhere.
    pub(crate) fn content(self, sector: u64, root: &[u8]) -> [u8; 512] {
        let mut bytes = [0; 512];
        match self {
            Self::Root => {
                let at = usize::try_from(sector * 512).unwrap();
                if let Some(content) = root.get(at..at + 512) {
                    bytes.copy_from_slice(content);
                }
            }
            Self::Zeros => {}
            Self::Written(number) => {
                for (i, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let word_value = u64::from(number) << 32 | sector << 8 | i as u64;
                    *word = (word_value.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes();
                }
            }
        }
        bytes
    }
}

/// What a leaf may be found as: its size, and of each touched sector the
/// values that are right. Others are the root's.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) sectors: u64,
    pub(crate) may_be: BTreeMap<u64, Vec<Value>>,
}

impl World {
    pub(crate) fn allows(&self, sector: u64, value: impl Fn(Value) -> bool) -> bool {
        match self.may_be.get(&sector) {
            Some(values) => values.iter().any(|v| value(*v)),
            None => value(Value::Root),
        }
    }
}

/// What was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) sectors: u64,
    now: BTreeMap<u64, Value>,
    /// The value at the last flush, and all since.
    may_be: BTreeMap<u64, Vec<Value>>,
}

impl Model {
    pub(crate) fn new(sectors: u64) -> Self {
        Self { sectors, now: BTreeMap::new(), may_be: BTreeMap::new() }
    }

    pub(crate) fn now(&self, sector: u64) -> Value {
        self.now.get(&sector).copied().unwrap_or(Value::Root)
    }

    /// Sectors that something was ever done to.
    pub(crate) fn touched(&self) -> impl Iterator<Item = u64> {
        self.may_be.keys().copied()
    }

    /// A write has begun: its content may get to the disk.
    pub(crate) fn begin(&mut self, start: u64, count: u64, value: Value) {
        for sector in start..start + count {
            let now = self.now(sector);
            let values = self.may_be.entry(sector).or_insert_with(|| vec![now]);
            values.push(value);
        }
    }

    /// The write was acknowledged.
    pub(crate) fn end(&mut self, start: u64, count: u64, value: Value) {
        self.now.extend((start..start + count).map(|sector| (sector, value)));
    }

    /// A flush was acknowledged that began when the model was `at_begin`.
    pub(crate) fn flushed(&mut self, at_begin: &Self) {
        for (sector, values) in &mut self.may_be {
            let before = at_begin.may_be.get(sector).map_or(0, Vec::len);
            values.drain(..before);
            values.insert(0, at_begin.now(*sector));
        }
    }

    /// Every change is gone, durably.
    pub(crate) fn reset(&mut self) {
        self.now.values_mut().for_each(|value| *value = Value::Root);
        self.may_be.values_mut().for_each(|values| *values = vec![Value::Root]);
    }

    /// The size is another, durably; what was beyond a smaller one is gone.
    pub(crate) fn resize(&mut self, sectors: u64) {
        self.sectors = sectors;
        self.now.split_off(&sectors);
        self.may_be.range_mut(sectors..).for_each(|(_, values)| *values = vec![Value::Root]);
    }

    /// The leaf was found so, durably.
    pub(crate) fn found(&mut self, sectors: u64, values: &BTreeMap<u64, Value>) {
        self.sectors = sectors;
        self.now = values.clone();
        for (sector, may_be) in &mut self.may_be {
            *may_be = vec![values.get(sector).copied().unwrap_or(Value::Root)];
        }
    }

    /// After a kill and an opening: a sector in a write that was cut off is what
    /// it is, and so is the size, durably.
    pub(crate) fn seen(&mut self, sectors: u64, values: &BTreeMap<u64, Value>) {
        self.resize(sectors);
        self.now = values.clone();
    }

    /// What a power cut may leave.
    pub(crate) fn after_power_cut(&self) -> World {
        World { sectors: self.sectors, may_be: self.may_be.clone() }
    }

    /// What a kill may leave: all that was acknowledged, and of a write that
    /// was cut off (here `unfinished`) each sector or not.
    pub(crate) fn after_kill(&self, unfinished: &[(u64, u64, Value)]) -> World {
        let mut may_be: BTreeMap<u64, Vec<Value>> =
            self.touched().map(|sector| (sector, vec![self.now(sector)])).collect();
        for (start, count, value) in unfinished {
            for sector in *start..start + count {
                may_be.entry(sector).or_insert_with(|| vec![Value::Root]).push(*value);
            }
        }
        World { sectors: self.sectors, may_be }
    }
}

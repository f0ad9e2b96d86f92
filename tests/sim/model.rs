//! What each sector may hold: one value while the process lives or is killed, several after
//! a power cut.

/// What a sector holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Value {
    /// The root's.
    Root,
    /// Zeros.
    Zeros,
    /// What the guest wrote then.
    Version(u32),
}

impl Value {
    /// The bytes of that sector.
    pub(crate) fn bytes(self, sector: u64) -> [u8; 512] {
        let Self::Version(version) = self else { return [0; 512] };
        let mut bytes = [0; 512];
        let mut x = sector << 32 | u64::from(version);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&x.to_le_bytes());
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        }
        bytes
    }

    /// What these bytes of that sector are, if it is anything that was ever written there.
    pub(crate) fn of(bytes: &[u8], sector: u64) -> Option<Self> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Some(Self::Zeros);
        }
        let first = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        let value = Self::Version(u32::try_from(first & 0xffff_ffff).ok()?);
        (value.bytes(sector) == bytes).then_some(value)
    }
}

/// What one sector was, in the order of the changes: the first is durable.
#[derive(Clone, Debug)]
struct History(Vec<(u64, Value)>);

/// A disk's sectors.
pub(crate) struct Model {
    sectors: Vec<History>,
    /// Changes so far.
    pub(crate) now: u64,
}

impl Model {
    pub(crate) fn new(sectors: u64) -> Self {
        let root = History(vec![(0, Value::Root)]);
        Self { sectors: vec![root; usize::try_from(sectors).unwrap_or(0)], now: 0 }
    }

    fn at(&self, sector: u64) -> &History {
        &self.sectors[usize::try_from(sector).unwrap_or(usize::MAX)]
    }

    fn at_mut(&mut self, sector: u64) -> &mut History {
        &mut self.sectors[usize::try_from(sector).unwrap_or(usize::MAX)]
    }

    /// What the guest was told last.
    pub(crate) fn current(&self, sector: u64) -> Value {
        self.at(sector).0.last().map_or(Value::Root, |(_, value)| *value)
    }

    /// The guest was told that the sector is this.
    pub(crate) fn set(&mut self, sector: u64, value: Value) {
        self.now += 1;
        let now = self.now;
        self.at_mut(sector).0.push((now, value));
    }

    /// All changes up to `until` are durable.
    pub(crate) fn flushed(&mut self, until: u64) {
        for history in &mut self.sectors {
            let last = history.0.iter().rposition(|(at, _)| *at <= until).unwrap_or(0);
            history.0.drain(..last);
        }
    }

    /// Whether it may be this after a power cut.
    pub(crate) fn may_be(&self, sector: u64, value: Value) -> bool {
        self.at(sector).0.iter().any(|(_, possible)| *possible == value)
    }

    /// It is this, durably.
    pub(crate) fn settle(&mut self, sector: u64, value: Value) {
        let now = self.now;
        self.at_mut(sector).0 = vec![(now, value)];
    }

    pub(crate) fn describe(&self, sector: u64) -> String {
        format!("{:?}", self.at(sector).0)
    }
}

//! How much a frontend may make this process map.
//!
//! A mapping costs no memory before it is touched, so a frontend could share a
//! sparse file of any length, again and again, until the process has no
//! addresses left, or none of the mappings that Linux allows it: then no thread
//! starts, no allocation succeeds, and no other VM connects. Limits prevent it. A
//! memory table has at most [`table_bytes_max`] bytes, which is more than a host can
//! give a guest. And what all frontends map fits in half of the process's addresses
//! (128 TiB on x86-64 and on arm64) and in three quarters of its mappings
//! (vm.max_map_count, 65530 by default): a [`SHARE`] of both is each frontend's own,
//! whatever the others do, and what goes beyond comes out of one [`Pool`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{GuestMemoryError, REGIONS_MAX};

/// Frontends whose shares are there at a time.
const FRONTENDS: usize = 1024;

/// What a frontend may map whatever others have, in bytes: all shares are a quarter of
/// the process's addresses.
const SHARE_BYTES: u64 = 32 << 30;

/// The same in mappings. QEMU has some ten regions without DIMMs and virtio-mem.
pub(super) const MAPPINGS_SHARE: usize = 24;

const SHARE: Amount = Amount { bytes: SHARE_BYTES, mappings: MAPPINGS_SHARE };

/// What all of them may map beyond their shares: as much as all shares.
const POOL: Amount =
    Amount { bytes: FRONTENDS as u64 * SHARE_BYTES, mappings: FRONTENDS * MAPPINGS_SHARE };

/// Mappings that a frontend may have: a memory table, a second one that replaces
/// it (one that comes as a whole has at most 32 regions with the `vhost` crate), and
/// inflight regions.
pub const MAPPINGS_MAX: usize = REGIONS_MAX + 48;

/// Mappings that all may have.
pub(super) const ALL_MAPPINGS_MAX: usize = 2 * FRONTENDS * MAPPINGS_SHARE;

/// Bytes that one memory table may have. Memory can be overcommitted, so a
/// guest may have more than the host; and on a small host, as much as costs
/// nobody anything.
pub fn table_bytes_max() -> u64 {
    let info = rustix::system::sysinfo();
    // Words of 32 or 64 bits, in units: a C type of this CPU's.
    #[allow(clippy::unnecessary_cast, clippy::allow_attributes, reason = "32 bits elsewhere")]
    let bytes = |units| (units as u64).saturating_mul(u64::from(info.mem_unit));
    let host = bytes(info.totalram).saturating_mul(2).saturating_add(bytes(info.totalswap));
    host.max(2 * SHARE_BYTES)
}

/// Of what is limited.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Amount {
    bytes: u64,
    mappings: usize,
}

impl Amount {
    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            mappings: self.mappings.saturating_add(more.mappings),
        }
    }

    /// Nothing where it would be less.
    fn minus(self, less: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(less.bytes),
            mappings: self.mappings.saturating_sub(less.mappings),
        }
    }
}

/// What all frontends may map beyond their shares.
#[derive(Debug)]
struct Pool {
    all: Amount,
    taken: Mutex<Amount>,
}

static THE_POOL: Pool = Pool { all: POOL, taken: Mutex::new(Amount { bytes: 0, mappings: 0 }) };

impl Pool {
    fn take(&self, more: Amount) -> Result<(), GuestMemoryError> {
        let mut taken = self.lock();
        let sum = taken.plus(more);
        if more.bytes > 0 && sum.bytes > self.all.bytes {
            return Err(GuestMemoryError::PoolEmpty);
        }
        if more.mappings > 0 && sum.mappings > self.all.mappings {
            return Err(GuestMemoryError::NoMappingsLeft);
        }
        *taken = sum;
        Ok(())
    }

    fn give_back(&self, less: Amount) {
        let mut taken = self.lock();
        *taken = taken.minus(less);
    }

    fn lock(&self) -> MutexGuard<'_, Amount> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one frontend has mapped.
#[derive(Debug)]
pub struct Account {
    pool: &'static Pool,
    used: Mutex<Amount>,
}

impl Account {
    /// Of a frontend that has nothing mapped.
    pub fn new() -> Arc<Self> {
        Self::with_pool(&THE_POOL)
    }

    fn with_pool(pool: &'static Pool) -> Arc<Self> {
        Arc::new(Self { pool, used: Mutex::default() })
    }

    /// Counts a mapping, until the answer is dropped.
    pub(super) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, GuestMemoryError> {
        let mut used = self.lock();
        if used.mappings >= MAPPINGS_MAX {
            return Err(GuestMemoryError::TooManyMappings);
        }
        let sum = used.plus(Amount { bytes, mappings: 1 });
        self.pool.take(sum.minus(SHARE).minus(used.minus(SHARE)))?;
        *used = sum;
        Ok(Charge { account: Arc::clone(self), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, Amount> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One mapping in an account. To be dropped after it is unmapped.
#[derive(Debug)]
pub(super) struct Charge {
    account: Arc<Account>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut used = self.account.lock();
        let left = used.minus(Amount { bytes: self.bytes, mappings: 1 });
        self.account.pool.give_back(used.minus(SHARE).minus(left.minus(SHARE)));
        *used = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(bytes: u64) -> &'static Pool {
        pool_of(Amount { bytes, mappings: MAPPINGS_MAX })
    }

    fn pool_of(all: Amount) -> &'static Pool {
        Box::leak(Box::new(Pool { all, taken: Mutex::default() }))
    }

    #[test]
    fn a_frontend_has_its_share_whatever_others_have_taken() {
        let pool = pool(100);
        let greedy = Account::with_pool(pool);
        let all = greedy.charge(SHARE_BYTES + 100).unwrap();
        assert!(matches!(greedy.charge(1), Err(GuestMemoryError::PoolEmpty)));
        let other = Account::with_pool(pool);
        let share = other.charge(SHARE_BYTES).unwrap();
        assert!(matches!(other.charge(1), Err(GuestMemoryError::PoolEmpty)));
        drop(all);
        let more = other.charge(100).unwrap();
        drop((share, more));
        assert_eq!(*pool.lock(), Amount::default());
        assert_eq!(*other.lock(), Amount::default());
    }

    #[test]
    fn what_is_given_back_in_any_order_can_be_had_again() {
        let pool = pool(SHARE_BYTES);
        let account = Account::with_pool(pool);
        for _ in 0..3 {
            let charges: Vec<_> =
                (0..8).map(|_| account.charge(SHARE_BYTES / 4).unwrap()).collect();
            assert!(account.charge(1).is_err());
            let (odd, even): (Vec<_>, Vec<_>) =
                charges.into_iter().enumerate().partition(|(i, _)| i % 2 == 1);
            drop(odd);
            let again: Vec<_> = (0..4).map(|_| account.charge(SHARE_BYTES / 4).unwrap()).collect();
            drop((even, again));
        }
        assert_eq!(*pool.lock(), Amount::default());
    }

    #[test]
    fn mappings_are_counted_also_where_they_are_small() {
        let account = Account::with_pool(pool(0));
        let all: Vec<_> = (0..MAPPINGS_MAX).map(|_| account.charge(1).unwrap()).collect();
        assert!(matches!(account.charge(1), Err(GuestMemoryError::TooManyMappings)));
        drop(all);
        account.charge(1).unwrap();
    }

    #[test]
    fn a_frontend_has_its_share_of_mappings_whatever_others_have_taken() {
        let pool = pool_of(Amount { bytes: 0, mappings: 100 });
        let greedy = Account::with_pool(pool);
        let mut all: Vec<_> =
            (0..MAPPINGS_SHARE + 100).map(|_| greedy.charge(1).unwrap()).collect();
        assert!(matches!(greedy.charge(1), Err(GuestMemoryError::NoMappingsLeft)));
        let other = Account::with_pool(pool);
        let share: Vec<_> = (0..MAPPINGS_SHARE).map(|_| other.charge(1).unwrap()).collect();
        assert!(matches!(other.charge(1), Err(GuestMemoryError::NoMappingsLeft)));
        all.pop();
        let more = other.charge(1).unwrap();
        assert!(greedy.charge(1).is_err());
        drop((all, share, more));
        assert_eq!(*pool.lock(), Amount::default());
    }

    #[test]
    fn a_table_may_have_more_than_the_host() {
        let info = rustix::system::sysinfo();
        let host = info.totalram as u64 * u64::from(info.mem_unit);
        assert!(table_bytes_max() >= 2 * host.max(SHARE_BYTES));
    }
}

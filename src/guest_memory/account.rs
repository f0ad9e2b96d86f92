//! How much a frontend may make this process map.
//!
//! A mapping costs no memory before it is touched, so a frontend could share a
//! sparse file of any length, again and again, until the process has no
//! addresses left: then no thread starts, no allocation succeeds, and no other
//! VM connects. Two limits prevent it. A memory table has at most
//! [`table_bytes_max`] bytes, which is more than a host can give a guest. And
//! the mappings of all frontends fit in half of the process's addresses (128
//! TiB on x86-64 and on arm64): [`SHARE_BYTES`] are each frontend's own,
//! whatever the others do, and what goes beyond comes out of one [`Pool`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::GuestMemoryError;

/// What a frontend may map whatever others have: with 1024 of them, a quarter
/// of the process's addresses.
const SHARE_BYTES: u64 = 32 << 30;

/// What all of them may map beyond their shares: another quarter.
const POOL_BYTES: u64 = 32 << 40;

/// Mappings that a frontend may have: two memory tables, of which one replaces
/// the other (a table that comes as a whole has at most 8 regions), and inflight
/// regions. With 1024 frontends they stay below what Linux allows a process by
/// default (vm.max_map_count, 65530).
pub const MAPPINGS_MAX: usize = 48;

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

/// What all frontends may map beyond their shares.
#[derive(Debug)]
struct Pool {
    bytes: u64,
    taken: Mutex<u64>,
}

static POOL: Pool = Pool { bytes: POOL_BYTES, taken: Mutex::new(0) };

impl Pool {
    fn take(&self, bytes: u64) -> Result<(), GuestMemoryError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.checked_add(bytes).filter(|sum| *sum <= self.bytes || bytes == 0) {
            Some(sum) => *taken = sum,
            None => return Err(GuestMemoryError::PoolEmpty),
        }
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(bytes);
    }
}

#[derive(Debug, Default)]
struct Used {
    bytes: u64,
    mappings: usize,
}

/// What one frontend has mapped.
#[derive(Debug)]
pub struct Account {
    pool: &'static Pool,
    used: Mutex<Used>,
}

impl Account {
    /// Of a frontend that has nothing mapped.
    pub fn new() -> Arc<Self> {
        Self::with_pool(&POOL)
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
        let sum = used.bytes.checked_add(bytes).ok_or(GuestMemoryError::BadRange)?;
        self.pool.take(beyond(sum) - beyond(used.bytes))?;
        *used = Used { bytes: sum, mappings: used.mappings + 1 };
        Ok(Charge { account: Arc::clone(self), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn beyond(bytes: u64) -> u64 {
    bytes.saturating_sub(SHARE_BYTES)
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
        let left = used.bytes.saturating_sub(self.bytes);
        self.account.pool.give_back(beyond(used.bytes) - beyond(left));
        *used = Used { bytes: left, mappings: used.mappings.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(bytes: u64) -> &'static Pool {
        Box::leak(Box::new(Pool { bytes, taken: Mutex::new(0) }))
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
        assert_eq!(*pool.taken.lock().unwrap(), 0);
        assert_eq!(other.lock().bytes, 0);
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
        assert_eq!(*pool.taken.lock().unwrap(), 0);
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
    fn a_table_may_have_more_than_the_host() {
        let info = rustix::system::sysinfo();
        let host = info.totalram as u64 * u64::from(info.mem_unit);
        assert!(table_bytes_max() >= 2 * host.max(SHARE_BYTES));
    }
}

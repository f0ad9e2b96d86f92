//! Hugepages for leafblk's arena, reserved for the run and given back after it.

use std::fs;

use crate::util::{Context, Error, Result};

const POOL: &str = "/proc/sys/vm/nr_hugepages";
const PAGE_BYTES: u64 = 2 << 20;

/// Gives back what it added to the pool when dropped.
pub(crate) struct Reservation {
    added: u64,
}

impl Reservation {
    /// Makes sure that `bytes` of 2 MiB hugepages are free.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let wanted = bytes.div_ceil(PAGE_BYTES);
        let missing = wanted.saturating_sub(read("HugePages_Free:")?);
        let mut reservation = Self { added: 0 };
        if missing > 0 {
            let before = read("HugePages_Total:")?;
            set(before + missing)?;
            // The kernel gives as many as it finds, which may be fewer.
            reservation.added = read("HugePages_Total:")?.saturating_sub(before);
            let free = read("HugePages_Free:")?;
            if free < wanted {
                return Err(Error::from(format!(
                    "only {free} of {wanted} hugepages could be reserved"
                )));
            }
        }
        Ok(reservation)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Others may have changed the pool meanwhile, so only the difference
        // goes. At worst the pool stays larger.
        if self.added > 0
            && let Ok(total) = read("HugePages_Total:")
        {
            let _ = set(total.saturating_sub(self.added));
        }
    }
}

fn set(pages: u64) -> Result<()> {
    fs::write(POOL, pages.to_string()).context(|| format!("cannot write {POOL}"))
}

fn read(name: &str) -> Result<u64> {
    fs::read_to_string("/proc/meminfo")
        .context(|| "cannot read /proc/meminfo".to_owned())?
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().parse().ok())
        .ok_or_else(|| Error::from(format!("/proc/meminfo has no {name}")))
}

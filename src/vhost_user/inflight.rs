//! GET_INFLIGHT_FD and SET_INFLIGHT_FD: who makes the inflight region, and what
//! is taken of a frontend that brings one.
//!
//! At a VM's first start the frontend asks for a region and hands it back at
//! once; after a reconnect it hands back the one that it has kept. What is in
//! it, `virtqueue` knows. It has room for longer rings than the frontend speaks of,
//! which keeps what it gets.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;

use super::QUEUE_SIZE_MAX;
use crate::guest_memory::Account;
use crate::virtqueue::{InflightRegion, RegionLayout, STATES_MAX};

const _: () = assert!(QUEUE_SIZE_MAX <= STATES_MAX, "any ring can be noted");

/// What a connection has of it.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    region: Option<Arc<InflightRegion>>,
    /// A region was made on this connection: the one that comes back is new.
    made: bool,
}

impl Inflight {
    /// Where queues that start from now on note what is in flight.
    pub(super) fn region(&self) -> Option<Arc<InflightRegion>> {
        self.region.clone()
    }

    /// Makes an empty region.
    ///
    /// # Errors
    /// A sentence: more or longer queues than the device has, or no memory.
    pub(super) fn make(
        &mut self,
        asked: &VhostUserInflight,
        queues: usize,
    ) -> Result<(VhostUserInflight, File), String> {
        check(asked, queues)?;
        let size = RegionLayout::new(asked.num_queues, asked.queue_size).len_bytes();
        let no_memory = |e: rustix::io::Errno| format!("no memory for an inflight region: {e}");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = memfd_create("leafblk-inflight", flags).map_err(no_memory)?;
        ftruncate(&memfd, size).map_err(no_memory)?;
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW).map_err(no_memory)?;
        self.made = true;
        let made = VhostUserInflight::new(size, 0, asked.num_queues, asked.queue_size);
        Ok((made, memfd.into()))
    }

    /// Takes a region for the queues that start from now on. True if it was
    /// kept from an earlier connection: the frontend has come back.
    ///
    /// # Errors
    /// A sentence: another layout than [`Self::make`]'s, or a bad file.
    pub(super) fn take(
        &mut self,
        given: &VhostUserInflight,
        file: File,
        queues: usize,
        account: &Arc<Account>,
    ) -> Result<bool, String> {
        check(given, queues)?;
        let (len, count, size) = (given.mmap_size, given.num_queues, given.queue_size);
        let Some(layout) = RegionLayout::of_len(len, count, size) else {
            return Err(format!(
                "the inflight region has {len} bytes, too few for {count} queues of {size}"
            ));
        };
        let region = InflightRegion::map(file, given.mmap_offset, layout, account)
            .map_err(|e| format!("the inflight region can't be used: {e}"))?;
        // Again and again on one connection: the guest was only paused.
        let is_first = self.region.replace(Arc::new(region)).is_none();
        Ok(is_first && !self.made)
    }
}

/// Whether the device can have such queues.
fn check(asked: &VhostUserInflight, queues: usize) -> Result<(), String> {
    let (count, size) = (asked.num_queues, asked.queue_size);
    if count == 0 || usize::from(count) > queues {
        return Err(format!("an inflight region is for {count} queues, and there are {queues}"));
    }
    if size == 0 || size > QUEUE_SIZE_MAX {
        return Err(format!("an inflight region has queues of {size}, not 1 to {QUEUE_SIZE_MAX}"));
    }
    Ok(())
}

//! The guest's memory, as a frontend describes it: all at once, or region by
//! region.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::Result;
use vhost::vhost_user::message::VhostUserMemoryRegion;

use super::Handler;
use crate::guest_memory::{GuestMemory, RegionSpec};
use crate::reactor::Command;

impl Handler {
    /// Maps these regions instead of all that are there.
    pub(super) fn map_all(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<()> {
        let specs = regions.iter().zip(files).map(|(region, file)| spec(region, file)).collect();
        match GuestMemory::map(specs, &self.account) {
            Ok(memory) => self.set_memory(memory),
            Err(e) => self.fail(e),
        }
    }

    /// Maps one region beside those that are there.
    pub(super) fn map_one(&mut self, region: &VhostUserMemoryRegion, file: File) -> Result<()> {
        match self.memory.with_region(spec(region, file), &self.account) {
            Ok(memory) => self.set_memory(memory),
            Err(e) => self.fail(e),
        }
    }

    /// Unmaps one.
    pub(super) fn unmap_one(&mut self, region: &VhostUserMemoryRegion) -> Result<()> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        match self.memory.without_region(guest, user, size) {
            Ok(memory) => self.set_memory(memory),
            Err(e) => self.fail(e),
        }
    }

    fn set_memory(&mut self, memory: GuestMemory) -> Result<()> {
        let memory = Arc::new(memory);
        let device = self.device;
        self.ask(|answer| Command::SetMemory(device, Arc::clone(&memory), answer))?;
        self.memory = memory;
        Ok(())
    }
}

fn spec(region: &VhostUserMemoryRegion, file: File) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        mmap_offset: region.mmap_offset,
        file,
    }
}

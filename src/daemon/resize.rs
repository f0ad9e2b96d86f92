//! Growing a disk while its guest runs.

use super::error::HostError;
use super::host::{Host, VmView};
use super::table::Origin;
use super::vm::Vm;
use crate::config::name::NameOf;
use crate::config::size::format_size;
use crate::config::{check_blocks, check_disk_size};
use crate::error::Error;
use crate::leaf::LeafError;
use crate::units::SECTOR_SIZE;
use crate::vhost_user::Told;

/// What a resize did.
#[derive(Clone, Debug)]
pub struct Resized {
    /// The VM afterwards.
    pub vm: VmView,
    /// Who was told of the new size.
    pub told: Told,
}

impl Host {
    /// Makes a VM's disk larger while it runs; the guest sees it if its
    /// frontend can be told. `bytes` may be the size that it has already.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn resize(&self, name: &str, bytes: u64) -> Result<Resized, HostError> {
        check_disk_size(name, bytes)?;
        let vm = self.writable(name, "resize")?;
        {
            let mut table = self.table();
            let row = &table.vm(name)?.row;
            let fixed = row.origin == Origin::Configuration && row.config.size.is_some();
            if fixed && row.config.size != Some(bytes) {
                return Err(HostError::SizeOfConfiguration { name: name.into() });
            }
        }
        self.grow(&vm, bytes)?;
        {
            let mut table = self.table();
            let row = table.vm(name)?;
            if row.row.origin == Origin::Api {
                // Not `bytes`: another resize may have come in between.
                let size = Some(vm.disk().sectors() * SECTOR_SIZE);
                (row.entry.size, row.row.config.size) = (size, size);
            }
        }
        let told = vm.link().config_changed();
        if let Err(error) = self.keep() {
            // The leaf knows its size; the file's counts only for a new leaf.
            log::warn!("VM {name}: its disk has grown, but its new size is not kept: {error}");
        }
        log::info!("VM {name}: its disk has {} now", format_size(bytes));
        Ok(Resized { vm: self.vm(name)?, told })
    }

    /// Grows the leaf, and with it what the reactor and the frontend see.
    pub(super) fn grow(&self, vm: &Vm, bytes: u64) -> Result<(), HostError> {
        let name = vm.disk().name();
        check_blocks(name, bytes, vm.config().block_size)?;
        let locked = vm.lock_leaf();
        let locked = locked.ok_or_else(|| HostError::Busy {
            of: NameOf::Vm,
            name: name.into(),
            doing: "closed",
        })?;
        let have = locked.leaf.sectors() * SECTOR_SIZE;
        if bytes < have {
            return Err(HostError::Shrink { name: name.into(), have, asked: bytes });
        }
        locked.leaf.grow(bytes).map_err(|error| match error {
            LeafError::NoRoom { .. } | LeafError::BadSize { .. } => {
                HostError::Unfit(Error::failure(error))
            }
            other => other.into(),
        })
    }
}

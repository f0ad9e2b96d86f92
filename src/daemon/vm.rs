//! One VM: its disk, its socket, and whether a frontend is connected.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{self, PublishedRecord};
use super::sockets::OwnedSocket;
use crate::config::{Config, Endpoint, VmConfig};
use crate::disk::{CachedRoot, Disk};
use crate::error::Error;
use crate::leaf::{self, Leaf, OpenOptions};
use crate::reactor::Mailbox;
use crate::root::Root;

/// A VM whose settings have been held against its root and its files.
pub(super) struct PlannedVm<'a> {
    pub(super) vm: &'a VmConfig,
    size_bytes: u64,
}

/// Checks every VM before anything is created.
///
/// # Errors
/// Sizes that are impossible; leaves and sockets that can't be used.
pub(super) fn plan<'a>(config: &'a Config, roots: &[Root]) -> Result<Vec<PlannedVm<'a>>, Error> {
    config.vms.iter().map(|vm| plan_one(vm, roots)).collect()
}

fn plan_one<'a>(vm: &'a VmConfig, roots: &[Root]) -> Result<PlannedVm<'a>, Error> {
    let root = roots.iter().find(|root| root.name() == vm.root);
    let root = root.ok_or_else(|| Error::failure(format!("there is no root {}", vm.root)))?;
    let size_bytes = vm.size.unwrap_or(root.len_bytes());
    if size_bytes < root.len_bytes() {
        return Err(Error::failure(format!(
            "VM {}: size {size_bytes} is less than the {} bytes of root {}; leave size out, or \
             give a larger one",
            vm.name,
            root.len_bytes(),
            vm.root
        )));
    }
    super::sockets::is_stale(&vm.socket).map_err(Error::failure)?;
    if vm.leaf.exists() {
        // Looks, and lets go: opening for use comes when all VMs are right.
        let options = OpenOptions { live_map: None, read_only: true };
        let leaf = Leaf::open(&vm.leaf, root.identity(), &options).map_err(Error::failure)?;
        if let Some(asked) = vm.size.filter(|size| *size != leaf.sectors() * 512) {
            let (path, have) = (vm.leaf.clone(), leaf.sectors() * 512);
            return Err(Error::failure(leaf::LeafError::OtherSize { path, have, asked }));
        }
    }
    Ok(PlannedVm { vm, size_bytes })
}

impl<'a> PlannedVm<'a> {
    /// Binds the socket, and lets `group` use it.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn bind(self, group: Option<u32>) -> Result<BoundVm<'a>, Error> {
        let socket = OwnedSocket::bind(&self.vm.socket).map_err(Error::failure)?;
        if let Some(group) = group {
            socket.share_with(group).map_err(|error| {
                let hint = "the user of leafblk must be a member of the socket-group";
                Error::failure(format!("{error}; {hint}"))
            })?;
        }
        Ok(BoundVm { plan: self, socket })
    }
}

/// A VM that has its socket: nobody else will serve it.
pub(super) struct BoundVm<'a> {
    pub(super) plan: PlannedVm<'a>,
    socket: OwnedSocket,
}

impl BoundVm<'_> {
    /// Opens or creates the leaf.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn attach(
        self,
        root: &Arc<CachedRoot>,
        runtime_dir: &Path,
        reactor: Arc<Mailbox>,
    ) -> Result<Vm, Error> {
        let vm = self.plan.vm;
        let leaf = self.plan.open_leaf(root.root(), runtime_dir)?.map(Arc::new);
        let endpoint =
            Endpoint { vm: vm.name.clone(), socket: vm.socket.clone(), queues: vm.queues };
        let record = record::publish(runtime_dir, &endpoint).map_err(Error::failure)?;
        let disk = Disk::new(vm.name.clone(), Arc::clone(root), leaf, vm.readonly);
        Ok(Vm {
            disk: Arc::new(disk),
            socket: self.socket,
            _record: record,
            queues: vm.queues,
            leaf_path: vm.leaf.clone(),
            ephemeral: vm.ephemeral,
            reactor,
        })
    }
}

impl PlannedVm<'_> {
    fn open_leaf(&self, root: &Root, runtime_dir: &Path) -> Result<Option<Leaf>, Error> {
        let vm = self.vm;
        if !vm.leaf.exists() {
            if vm.readonly {
                return Ok(None);
            }
            leaf::create(&vm.leaf, self.size_bytes, root.identity()).map_err(Error::failure)?;
        }
        let options = OpenOptions {
            live_map: Some(runtime_dir.join(format!("{}.map", vm.name))),
            read_only: vm.readonly,
        };
        Leaf::open(&vm.leaf, root.identity(), &options).map(Some).map_err(Error::failure)
    }
}

/// A VM that is served.
pub(super) struct Vm {
    disk: Arc<Disk>,
    socket: OwnedSocket,
    /// Tells `leafblk qemu-args` where the VM is reached.
    _record: PublishedRecord,
    queues: u16,
    leaf_path: PathBuf,
    ephemeral: bool,
    reactor: Arc<Mailbox>,
}

impl Vm {
    pub(super) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub(super) fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }

    pub(super) fn socket_path(&self) -> &Path {
        self.socket.path()
    }

    pub(super) fn queues(&self) -> u16 {
        self.queues
    }

    pub(super) fn leaf_path(&self) -> &Path {
        &self.leaf_path
    }

    pub(super) fn reactor(&self) -> &Arc<Mailbox> {
        &self.reactor
    }

    /// Flushes and closes the leaf, or throws it away.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn close(&self) -> Result<(), Error> {
        let Some(leaf) = self.disk.leaf().filter(|_| !self.disk.is_read_only()) else {
            return Ok(());
        };
        leaf.close().map_err(Error::failure)?;
        if self.ephemeral {
            std::fs::remove_file(&self.leaf_path).map_err(|source| {
                let path = self.leaf_path.display();
                Error::failure(format!("can't remove the ephemeral leaf {path}: {source}"))
            })?;
        }
        Ok(())
    }
}

//! One VM: how it comes to be served, what others may know of it, and its end.
//!
//! Three steps, so that a start can look at everything before it changes
//! anything: [`PlannedVm`] (looked at), [`BoundVm`] (has its socket, and then a
//! leaf), [`ListeningVm`] (its leaf is open; clients may come).

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::made::NewLeaf;
use super::record::{self, PublishedRecord};
use super::sockets::{OwnedSocket, SocketError};
use crate::config::size::format_size;
use crate::config::{Endpoint, VmConfig};
use crate::disk::{CachedRoot, Disk};
use crate::error::Error;
use crate::leaf::{Leaf, LeafError, OpenOptions, SIZE_MAX};
use crate::reactor::Mailbox;
use crate::root::{Root, RootIdentity};
use crate::units::SECTOR_SIZE;
use crate::vhost_user::FrontendLink;

/// A VM whose settings have been held against its root and its files.
pub(super) struct PlannedVm {
    config: VmConfig,
    size_bytes: u64,
    root: RootIdentity,
}

/// What to think of files and sockets that another process uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum InUse {
    /// They can't be had.
    Refused,
    /// It may be this VM's own, in the leafblk that serves it.
    Fine,
}

impl PlannedVm {
    /// Looks at a VM, and changes nothing.
    ///
    /// # Errors
    /// Sizes that are impossible; leaves and sockets that can't be used.
    pub(super) fn new(config: VmConfig, root: &Root) -> Result<Self, Error> {
        Self::look(config, root, InUse::Refused)
    }

    /// As [`Self::new`], but what another process uses is no mistake.
    pub(super) fn look(config: VmConfig, root: &Root, in_use: InUse) -> Result<Self, Error> {
        let size_bytes = config.size.unwrap_or(root.len_bytes());
        if size_bytes < root.len_bytes() {
            return Err(Error::failure(format!(
                "VM {}: size {size_bytes} is less than the {} bytes of root {}; leave size out, \
                 or give a larger one",
                config.name,
                root.len_bytes(),
                config.root
            )));
        }
        if size_bytes > SIZE_MAX {
            return Err(Error::failure(format!(
                "VM {}: its root {} has {size_bytes} bytes, and a disk has at most {}; give a \
                 smaller root",
                config.name,
                config.root,
                format_size(SIZE_MAX)
            )));
        }
        match super::sockets::is_stale(&config.socket) {
            Err(SocketError::Live(_)) if in_use == InUse::Fine => {}
            Err(error) => return Err(Error::failure(error)),
            Ok(_) => {}
        }
        if config.leaf.exists() {
            // Looks, and lets go: opening for use comes when all VMs are right.
            let options = OpenOptions { live_map: None, read_only: true };
            let leaf = Leaf::open(&config.leaf, root.identity(), &options);
            match leaf.and_then(|leaf| check_size(&config, &leaf)) {
                Err(LeafError::InUse { .. }) if in_use == InUse::Fine => {}
                other => other.map_err(Error::failure)?,
            }
        } else if config.readonly && size_bytes != root.len_bytes() {
            return Err(Error::failure(format!(
                "VM {}: it is readonly and has no leaf ({} does not exist), so its disk has the {} \
                 bytes of root {}, not the {size_bytes} asked for; leave size out",
                config.name,
                config.leaf.display(),
                root.len_bytes(),
                config.root
            )));
        }
        Ok(Self { config, size_bytes, root: root.identity().clone() })
    }

    /// Binds the socket, and lets `group` use it.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn bind(self, group: Option<u32>) -> Result<BoundVm, Error> {
        let socket = OwnedSocket::bind(&self.config.socket).map_err(Error::failure)?;
        if let Some(group) = group {
            socket.share_with(group).map_err(|error| {
                let hint = "the user of leafblk must be a member of the socket-group";
                Error::failure(format!("{error}; {hint}"))
            })?;
        }
        Ok(BoundVm { plan: self, new_leaf: None, socket, group })
    }

    fn open_leaf(&self, root: &Root, runtime_dir: &Path) -> Result<Option<Leaf>, Error> {
        let config = &self.config;
        if config.readonly && !config.leaf.exists() {
            return Ok(None);
        }
        let leaf = open_leaf(config, root, runtime_dir)?;
        grow(config, &leaf).inspect_err(|_| drop(leaf.close()))?;
        Ok(Some(leaf))
    }
}

/// Whether an existing leaf can have the size that is asked for: its own, or a
/// larger one, to which it grows.
fn check_size(config: &VmConfig, leaf: &Leaf) -> Result<(), LeafError> {
    let (path, have) = (config.leaf.clone(), leaf.sectors() * SECTOR_SIZE);
    let asked = config.size.unwrap_or(have);
    if asked < have || (config.readonly && asked != have) {
        return Err(LeafError::OtherSize { path, have, asked });
    }
    let most = leaf.size_max();
    if asked > most {
        return Err(LeafError::NoRoom { path, asked, most });
    }
    Ok(())
}

/// Makes an existing leaf as large as is asked for.
fn grow(config: &VmConfig, leaf: &Leaf) -> Result<(), Error> {
    let have = leaf.sectors() * SECTOR_SIZE;
    let Some(asked) = config.size.filter(|asked| *asked > have) else {
        return Ok(());
    };
    leaf.grow(asked).map_err(Error::failure)?;
    let (name, have, asked) = (&config.name, format_size(have), format_size(asked));
    log::info!("VM {name}: its disk had {have} and has {asked} now, as its size says");
    Ok(())
}

fn open_leaf(config: &VmConfig, root: &Root, runtime_dir: &Path) -> Result<Leaf, Error> {
    let options = OpenOptions {
        live_map: Some(runtime_dir.join(format!("{}.map", config.name))),
        read_only: config.readonly,
    };
    Leaf::open(&config.leaf, root.identity(), &options).map_err(Error::failure)
}

/// A VM that has its socket: nobody else will serve it.
pub(super) struct BoundVm {
    plan: PlannedVm,
    /// Goes with this value.
    new_leaf: Option<NewLeaf>,
    socket: OwnedSocket,
    /// Who may use the socket beside its owner.
    group: Option<u32>,
}

impl BoundVm {
    pub(super) fn config(&self) -> &VmConfig {
        &self.plan.config
    }

    /// Makes the leaf, unless there is one or none is needed.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn with_leaf(mut self) -> Result<Self, Error> {
        let PlannedVm { config, size_bytes, root } = &self.plan;
        if !config.readonly && !config.leaf.exists() {
            let new = NewLeaf::create(&config.leaf, *size_bytes, root).map_err(Error::failure)?;
            self.new_leaf = Some(new);
        }
        Ok(self)
    }

    /// Opens the leaf that [`Self::with_leaf`] has seen to.
    ///
    /// # Errors
    /// The leaf's and the record's; what was made is gone then.
    pub(super) fn attach(
        self,
        root: &Arc<CachedRoot>,
        runtime_dir: &Path,
        reactor: Arc<Mailbox>,
    ) -> Result<ListeningVm, Error> {
        let config = self.plan.config.clone();
        let endpoint = Endpoint {
            vm: config.name.clone(),
            socket: config.socket.clone(),
            queues: config.queues,
        };
        let record = record::publish(runtime_dir, &endpoint, self.group).map_err(Error::failure)?;
        // Last, as an open leaf has to be closed again.
        let leaf = self.plan.open_leaf(root.root(), runtime_dir)?.map(Arc::new);
        let disk = Disk::new(config.name.clone(), Arc::clone(root), leaf, config.readonly);
        let vm = Arc::new(Vm::new(config, disk, reactor));
        Ok(ListeningVm { vm, new_leaf: self.new_leaf, socket: self.socket, _record: record })
    }
}

/// A VM that clients can connect to. Dropping it removes its socket and record.
pub(super) struct ListeningVm {
    vm: Arc<Vm>,
    /// Until somebody takes it.
    new_leaf: Option<NewLeaf>,
    socket: OwnedSocket,
    /// Tells `leafblk qemu-args` where the VM is reached.
    _record: PublishedRecord,
}

impl ListeningVm {
    pub(super) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    pub(super) fn listener(&self) -> &UnixListener {
        self.socket.listener()
    }

    /// The leaf, if it was made for this VM; it is the caller's to keep.
    pub(super) fn take_new_leaf(&mut self) -> Option<NewLeaf> {
        self.new_leaf.take()
    }

    /// Undoes the attach: a leaf that was made for it goes, another is closed.
    pub(super) fn take_back(self) {
        if let Err(error) = self.vm.close() {
            log::debug!("{error}");
        }
        // Where it could not be closed, its live map is still there.
        if let Some(leaf) = self.vm.disk.leaf().filter(|_| self.new_leaf.is_some()) {
            leaf.discard_live_map();
        }
    }

    /// The same VM, whose leaf was closed, with its leaf opened again and
    /// reset; and whether the reset succeeded.
    ///
    /// # Errors
    /// Why the leaf can't be opened.
    pub(super) fn with_leaf_reset(
        mut self,
        runtime_dir: &Path,
    ) -> Result<(Self, Result<(), LeafError>), Error> {
        let root = self.vm.disk.root().root();
        let mut leaf = open_leaf(&self.vm.config, root, runtime_dir)?;
        let reset = leaf.reset();
        self.vm = Arc::new(self.vm.reopened(leaf));
        Ok((self, reset))
    }
}

/// A VM that is served, as any thread may look at it.
#[derive(Debug)]
pub struct Vm {
    id: u64,
    config: VmConfig,
    disk: Arc<Disk>,
    reactor: Arc<Mailbox>,
    link: Arc<FrontendLink>,
    /// Whether the leaf is closed. Held while somebody other than its reactor
    /// works on the leaf.
    closed: Mutex<bool>,
}

/// The right to work on a VM's leaf from a control thread: it is not closed
/// meanwhile.
pub(super) struct LeafGuard<'a> {
    pub(super) leaf: &'a Arc<Leaf>,
    _closed: MutexGuard<'a, bool>,
}

impl Vm {
    fn new(config: VmConfig, disk: Disk, reactor: Arc<Mailbox>) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            config,
            disk: Arc::new(disk),
            reactor,
            link: Arc::default(),
            closed: Mutex::new(false),
        }
    }

    fn reopened(&self, leaf: Leaf) -> Self {
        let config = self.config.clone();
        let root = Arc::clone(self.disk.root());
        let leaf = Some(Arc::new(leaf));
        let disk = Disk::new(config.name.clone(), root, leaf, config.readonly);
        Self::new(config, disk, Arc::clone(&self.reactor))
    }

    /// Names it within the process; a VM that is attached again has another.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Its settings, as it was attached with.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Its disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Its frontend, and what can be told to it.
    pub fn link(&self) -> &Arc<FrontendLink> {
        &self.link
    }

    pub(super) fn reactor(&self) -> &Arc<Mailbox> {
        &self.reactor
    }

    /// The leaf that guests write to, for work on it; `None` if there is none,
    /// or it is closed.
    pub(super) fn lock_leaf(&self) -> Option<LeafGuard<'_>> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let leaf = self.disk.leaf().filter(|_| !self.disk.is_read_only() && !*closed)?;
        Some(LeafGuard { leaf, _closed: closed })
    }

    /// Flushes and closes the leaf, and lets others have it. No frontend is
    /// connected any more.
    ///
    /// # Errors
    /// The leaf's; it is closed even so.
    pub(super) fn close(&self) -> Result<(), Error> {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        let Some(leaf) = self.disk.leaf() else {
            return Ok(());
        };
        let result = leaf.close();
        // A lane's idle thread may keep the leaf open for seconds.
        leaf.release();
        result.map_err(Error::failure)
    }

    /// Closes the leaf for good, at a detach: an ephemeral one is thrown away.
    ///
    /// # Errors
    /// As [`Self::close`], and as unlink(2).
    pub(super) fn end(&self) -> Result<(), Error> {
        let closed = self.close();
        if !self.config.ephemeral || self.disk.is_read_only() {
            return closed;
        }
        // Whether its content got to the disk makes no difference.
        let path = &self.config.leaf;
        std::fs::remove_file(path).map_err(|source| {
            let path = path.display();
            Error::failure(format!(
                "can't remove the ephemeral leaf {path}: {source}; remove it by hand"
            ))
        })?;
        // Where it could not be closed, its live map is still there.
        if let Some(leaf) = self.disk.leaf() {
            leaf.discard_live_map();
        }
        Ok(())
    }
}

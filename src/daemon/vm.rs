//! One VM: how it comes to be served, what others may know of it, and its end.
//!
//! Three steps, so that a start can look at everything before it changes
//! anything: [`PlannedVm`] (looked at), [`BoundVm`] (has its socket, and then a
//! leaf), [`ListeningVm`] (its leaf is open; clients may come).

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::denied::{Need, explain};
use super::file_systems::FileSystem;
use super::host::Inner;
use super::leaf_choice::LeafPlan;
use super::leaf_records::{Expected, LeafRecord, LeafRecords};
use super::made::{NewLeaf, NewRecords};
use super::named_file::{Loss, NameWatch, NamedFile};
use super::planned_vm::{PlannedVm, Unfit, exchanged, open_leaf};
use super::record::{self, PublishedRecord};
use super::sockets::OwnedSocket;
use crate::config::{Endpoint, VmConfig};
use crate::disk::{CachedRoot, Disk};
use crate::error::Error;
use crate::leaf::{Leaf, LeafError};
use crate::reactor::Mailbox;
use crate::vhost_user::{FrontendLink, FrontendProcess, UnusedLeaf};

/// The disk as its settings have it.
fn disk(config: &VmConfig, root: &Arc<CachedRoot>, leaf: Option<Arc<Leaf>>) -> Disk {
    Disk::new(config.name.clone(), Arc::clone(root), leaf, config.readonly)
        .with_serial(config.serial.clone())
        .in_blocks(config.block_size)
}

/// What becomes of a VM's leaf when the VM is detached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LeafFate {
    /// It stays, and the VM's next attach has it again. An ephemeral one goes.
    #[default]
    Keep,
    /// It is deleted, and forgotten.
    Delete,
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
    /// Binds the socket of a VM that was looked at, and lets `group` use it.
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn bind(plan: PlannedVm, group: Option<u32>) -> Result<Self, Error> {
        let path = &plan.config().socket;
        let socket = OwnedSocket::bind(path).map_err(|error| explain(error, path, Need::Write))?;
        if let Some(group) = group {
            socket.share_with(group).map_err(|error| {
                let hint = "the user of leafblk must be a member of the socket-group";
                Error::failure(format!("{error}; {hint}"))
            })?;
        }
        Ok(Self { plan, new_leaf: None, socket, group })
    }

    /// What was planned.
    pub(super) fn plan(&self) -> &PlannedVm {
        &self.plan
    }

    /// Makes the leaf, if it is to be made.
    ///
    /// # Errors
    /// The leaf's.
    pub(super) fn with_leaf(mut self) -> Result<Self, Error> {
        let leaf = &self.plan.config().leaf;
        let made = self.plan.make_leaf();
        self.new_leaf = made.map_err(|error| explain(error, leaf, Need::Write))?;
        Ok(self)
    }

    /// Opens the leaf that [`Self::with_leaf`] has seen to.
    ///
    /// # Errors
    /// The leaf's and the record's; what was made is gone then.
    pub(super) fn attach(
        self,
        root: &Arc<CachedRoot>,
        host: &Inner,
        reactor: Arc<Mailbox>,
    ) -> Result<ListeningVm, Unfit> {
        let runtime_dir = &host.directories.runtime;
        let config = self.plan.config().clone();
        let endpoint = Endpoint {
            vm: config.name.clone(),
            socket: config.socket.clone(),
            queues: config.queues,
        };
        let record = record::publish(runtime_dir, &endpoint, self.group).map_err(Error::failure)?;
        for warning in self.plan.leaf().warnings(&config, &host.directories.state) {
            log::warn!("{warning}");
        }
        // Last, as an open leaf has to be closed again.
        let leaf = self.plan.open_leaf(root.root(), runtime_dir)?.map(Arc::new);
        let novelty = Novelty::of(self.plan.leaf(), &config, leaf.as_deref(), &host.records);
        let home = leaf.as_ref().and_then(|leaf| host.file_systems.of_leaf(leaf.path()));
        let disk = disk(&config, root, leaf);
        let vm = Arc::new(Vm::new(config, disk, reactor, (home, novelty)));
        Ok(ListeningVm {
            vm,
            new_records: None,
            new_leaf: self.new_leaf,
            socket: self.socket,
            _record: record,
        })
    }
}

/// What a leaf is to its VM.
#[derive(Clone, Debug, Default)]
struct Novelty {
    /// It was made when the VM was attached.
    is_new: bool,
    /// There if no guest may have used it.
    unused: Option<Arc<UnusedLeaf>>,
}

impl Novelty {
    fn of(
        plan: &LeafPlan,
        config: &VmConfig,
        leaf: Option<&Leaf>,
        records: &Arc<LeafRecords>,
    ) -> Self {
        let (is_new, unused) = match plan {
            LeafPlan::Make => (true, true),
            LeafPlan::Use { unused, .. } => (false, *unused),
            LeafPlan::Without => (false, false),
        };
        // What it holds, a guest has written.
        let unused = leaf.filter(|leaf| unused && leaf.present_sectors() == 0);
        Self { is_new, unused: unused.map(|leaf| unused_leaf(config, leaf, None, records)) }
    }

    /// What a reverted leaf is.
    fn reverted(
        &self,
        config: &VmConfig,
        leaf: &Leaf,
        kept_out: Option<FrontendProcess>,
        records: &Arc<LeafRecords>,
    ) -> Self {
        Self { is_new: self.is_new, unused: Some(unused_leaf(config, leaf, kept_out, records)) }
    }
}

fn unused_leaf(
    config: &VmConfig,
    leaf: &Leaf,
    kept_out: Option<FrontendProcess>,
    records: &Arc<LeafRecords>,
) -> Arc<UnusedLeaf> {
    let (records, name) = (Arc::clone(records), config.name.clone());
    let disk = Uuid::from_bytes(leaf.disk_uuid());
    Arc::new(UnusedLeaf::new(&config.leaf, kept_out, move || {
        if let Err(error) = records.change(|all| all.use_disk(&name, disk)) {
            log::error!("VM {name}: that its leaf is in use is not remembered: {error}");
        }
    }))
}

/// A VM that clients can connect to. Dropping it removes its socket and record.
pub(super) struct ListeningVm {
    vm: Arc<Vm>,
    /// Until they are kept. Before the leaf that they name.
    new_records: Option<NewRecords>,
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

    /// Remembers the VM's leaf. What is remembered goes with this value until it is kept.
    ///
    /// # Errors
    /// Where a new leaf can't be remembered. Of another one that is only logged: it
    /// will be there the next time.
    pub(super) fn remember_leaf(&mut self, records: &Arc<LeafRecords>) -> Result<(), Error> {
        let Some(record) = self.vm.leaf_record() else {
            return Ok(());
        };
        match NewRecords::write(records, &[record], |_| ()) {
            Ok(new) => self.new_records = Some(new),
            Err(error) if self.new_leaf.is_some() => return Err(Error::failure(error)),
            Err(error) => log::warn!("VM {}: {error}", self.vm.disk.name()),
        }
        Ok(())
    }

    /// What is remembered of the leaf stays.
    pub(super) fn keep_records(&mut self) {
        if let Some(records) = self.new_records.take() {
            records.keep();
        }
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

    /// The same VM, whose leaf was closed, with its leaf opened again and reverted to the
    /// root; and whether the revert succeeded. No guest has used the leaf then, and
    /// `kept_out` goes on with what it was.
    ///
    /// # Errors
    /// Why the leaf can't be opened.
    pub(super) fn with_leaf_reverted(
        mut self,
        runtime_dir: &Path,
        kept_out: Option<FrontendProcess>,
        records: &Arc<LeafRecords>,
    ) -> Result<(Self, Result<(), LeafError>), Error> {
        let root = self.vm.disk.root().root();
        let mut leaf = open_leaf(&self.vm.config, root, runtime_dir)?;
        if self.vm.disk.leaf().is_some_and(|old| old.uuid() != leaf.uuid()) {
            drop(leaf.close());
            return Err(Error::failure(exchanged(&self.vm.config)));
        }
        let reverted = leaf.reset();
        let novelty = match leaf.present_sectors() {
            0 => self.vm.novelty.reverted(&self.vm.config, &leaf, kept_out, records),
            // It failed, and the guest that has run with the leaf may go on.
            _ => self.vm.novelty.clone(),
        };
        self.vm = Arc::new(self.vm.reopened(leaf, novelty));
        Ok((self, reverted))
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
    /// What its leaf is on.
    home: Option<Arc<FileSystem>>,
    novelty: Novelty,
    /// Whether its leaf is where it was.
    leaf_name: NameWatch,
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

/// What has become of a leaf that is in use, and what to do.
fn loss_of_leaf(vm: &str, loss: Loss, leaf: &NamedFile) -> String {
    let (path, by_number) = (leaf.path().display(), leaf.by_number());
    let gone = "it is gone when the VM is detached or leafblk stops";
    match loss {
        Loss::Moved => format!(
            "its leaf {path} {loss} while it is in use: move it back, or its next start finds none"
        ),
        Loss::Deleted => format!(
            "its leaf {path} {loss} while it is in use, and {gone}: with its guest shut down or \
             paused, leafblk vm flush {vm}, and cp --sparse=always {by_number} {path}"
        ),
        Loss::Replaced => format!(
            "its leaf {path} {loss} while it is in use, and {gone} unless it has another name: with \
             its guest shut down or paused, leafblk vm flush {vm}, and cp --sparse=always \
             {by_number} {path}.saved, which is the VM's leaf"
        ),
    }
}

impl Vm {
    fn new(
        config: VmConfig,
        disk: Disk,
        reactor: Arc<Mailbox>,
        (home, novelty): (Option<Arc<FileSystem>>, Novelty),
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            config,
            disk: Arc::new(disk),
            reactor,
            link: Arc::default(),
            home,
            novelty,
            leaf_name: NameWatch::default(),
            closed: Mutex::new(false),
        }
    }

    fn reopened(&self, leaf: Leaf, novelty: Novelty) -> Self {
        let config = self.config.clone();
        let disk = disk(&config, self.disk.root(), Some(Arc::new(leaf)));
        let of_leaf = (self.home.clone(), novelty);
        Self::new(config, disk, Arc::clone(&self.reactor), of_leaf)
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

    pub(super) fn home(&self) -> Option<&Arc<FileSystem>> {
        self.home.as_ref()
    }

    /// Whether its leaf was made when it was attached.
    pub fn has_new_leaf(&self) -> bool {
        self.novelty.is_new
    }

    /// Why its frontend was kept out, if it was.
    pub fn trouble(&self) -> Option<String> {
        self.unused_leaf().and_then(|leaf| leaf.trouble())
    }

    /// Asks its leaf's file system, which may hang: whether the leaf is where it was, and how
    /// much it occupies.
    pub(super) fn look_at_leaf(&self) {
        if let Some(leaf) = self.disk.leaf() {
            leaf.measure();
        }
        if let Some(file) = self.named_leaf() {
            self.leaf_name.look(&file);
        }
    }

    fn named_leaf(&self) -> Option<NamedFile> {
        let leaf = self.disk.leaf()?;
        Some(NamedFile::new(leaf.path(), leaf.raw_fd()?))
    }

    /// What has become of its leaf's name, and what to do, as it was last looked at. The log
    /// has each once.
    pub fn lost_leaf(&self) -> Option<String> {
        let (loss, name) = (self.leaf_name.loss(), self.disk.name());
        let is_news = self.leaf_name.is_news(loss);
        let sentence = loss_of_leaf(name, loss?, &self.named_leaf()?);
        if is_news {
            log::error!("VM {name}: {sentence}");
        }
        Some(sentence)
    }

    /// Its leaf, where no guest may have used it.
    pub(super) fn unused_leaf(&self) -> Option<&Arc<UnusedLeaf>> {
        self.novelty.unused.as_ref()
    }

    /// What is to be remembered of its leaf; `None` if it has none.
    pub(super) fn leaf_record(&self) -> Option<(String, LeafRecord)> {
        let uuid = Uuid::from_bytes(self.disk.leaf()?.disk_uuid());
        let expected = Expected::Disk { uuid, unused: self.novelty.unused.is_some() };
        let path = self.config.leaf.clone();
        Some((self.config.name.clone(), LeafRecord { path, expected, detached: None }))
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

    /// Whether its leaf goes whenever it is detached.
    pub(super) fn loses_leaf(&self) -> bool {
        self.config.ephemeral && !self.disk.is_read_only()
    }

    /// Closes the leaf for good, at a detach, and deletes it if that is its fate.
    ///
    /// # Errors
    /// As [`Self::close`], and as unlink(2).
    pub(super) fn end(&self, leaf: LeafFate) -> Result<(), Error> {
        let closed = self.close();
        if leaf == LeafFate::Keep {
            return closed;
        }
        // Whether its content got to the disk makes no difference.
        let path = &self.config.leaf;
        std::fs::remove_file(path).map_err(|source| {
            let path = path.display();
            Error::failure(format!("can't delete the leaf {path}: {source}; delete it by hand"))
        })?;
        // Where it could not be closed, its live map is still there.
        if let Some(leaf) = self.disk.leaf() {
            leaf.discard_live_map();
        }
        Ok(())
    }
}

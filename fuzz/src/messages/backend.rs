//! What stands behind the fuzzed connection: one disk and one reactor, for the
//! whole process.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use leafblk::cache::{Cache, CacheConfig, Hugepages};
use leafblk::disk::{CachedRoot, Disk};
use leafblk::leaf::{self, Leaf, OpenOptions};
use leafblk::reactor::{Command, Mailbox, Reactor, Watchdog};
use leafblk::root::Root;
use leafblk::vhost_user::Session;

const ROOT_LEN: usize = 1 << 20;
const BLOCK: u32 = 64 << 10;
/// Longer than an answer takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A backend that serves one VM.
pub(super) struct Backend {
    disk: Arc<Disk>,
    mailbox: Arc<Mailbox>,
    _reactor: Reactor,
    _watchdog: Watchdog,
}

impl Backend {
    pub(super) fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let root_path = home.path().join("root.raw");
        std::fs::write(&root_path, vec![0x5a; ROOT_LEN]).expect("a file");
        let root = Root::open("root", &root_path).expect("a root");
        let leaf_path = home.path().join("vm.leaf");
        leaf::create(&leaf_path, ROOT_LEN as u64, root.identity()).expect("a leaf");
        let leaf = Leaf::open(&leaf_path, root.identity(), &OpenOptions::default());
        let config = CacheConfig {
            size_bytes: 16 << 20,
            block_bytes: BLOCK,
            hugepages: Hugepages::Off,
            readers_max: 1,
        };
        let (cache, _) = Cache::new(&config).expect("a cache");
        let table = cache.add_root(root.sectors()).expect("a table");
        let root = Arc::new(CachedRoot::new(root, table, BLOCK));
        let disk = Disk::new("vm".into(), root, Some(Arc::new(leaf.expect("a leaf"))), false);
        let mailboxes: Arc<[_]> = [Mailbox::new().expect("a mailbox")].into();
        let watchdog = Watchdog::start(Arc::clone(&mailboxes)).expect("a thread");
        let reactor = Reactor::start(0, cache, Arc::clone(&mailboxes), 50).expect("a reactor");
        // The files stay open; their names go with `home`.
        Self {
            disk: Arc::new(disk),
            mailbox: Arc::clone(&mailboxes[0]),
            _reactor: reactor,
            _watchdog: watchdog,
        }
    }

    pub(super) fn serve(&self, stream: UnixStream) -> Result<(), String> {
        let session = std::sync::Arc::new(Session::default());
        leafblk::vhost_user::serve(stream, &self.disk, 2, &self.mailbox, &session, None)
    }

    /// Panics unless the reactor answers.
    pub(super) fn answers(&self) {
        let (answer, answered) = sync_channel(1);
        self.mailbox.send(Command::Ping(answer));
        answered.recv_timeout(PATIENCE).expect("the reactor answers");
    }
}

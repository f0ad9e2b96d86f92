//! What the guest has made of its write cache, through all that may come between
//! it and its disk.

use std::path::{Path, PathBuf};

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::common::frontend::*;
use super::common::scene::{ROOT_SECTORS, root_content};
use super::common::{Client, Daemon, make_root};
use super::{change_status, config};

/// A host whose one VM's guest knows CONFIG_WCE and whose VMM keeps an inflight
/// region, as QEMU does.
struct CachedGuest {
    dir: tempfile::TempDir,
    daemon: Option<Daemon>,
    vmm: Vmm,
}

impl CachedGuest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_root(dir.path(), ROOT_SECTORS);
        let daemon = Self::start(&dir);
        let features = VERSION_1 | EVENT_IDX | F_FLUSH | F_CONFIG_WCE;
        let vmm = Vmm::tracked_with(&daemon.socket("web1"), features, 1, 64);
        Self { dir, daemon: Some(daemon), vmm }
    }

    fn start(dir: &tempfile::TempDir) -> Daemon {
        let root = dir.path().join("root.raw");
        Daemon::start(dir.path(), &["--root", root.to_str().unwrap(), "--vm", "web1"])
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/web1.sock")
    }

    fn set_field(&mut self, value: u8) {
        self.vmm.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[value]).unwrap();
    }

    fn field(&mut self) -> u8 {
        config(&mut self.vmm.frontend, 32, 1)[0]
    }

    /// Another process, after `end` of this one and `meanwhile`; the frontend
    /// comes back to it.
    fn restart(&mut self, end: fn(Daemon), meanwhile: impl FnOnce(&Path)) {
        end(self.daemon.take().unwrap());
        meanwhile(self.dir.path());
        self.daemon = Some(Self::start(&self.dir));
        self.vmm.reconnect(&self.socket()).unwrap();
    }

    /// Writes a sector, which is acknowledged, and cuts the power; whether the
    /// sector is there then.
    fn makes_a_write_durable(mut self, sector: u64) -> bool {
        self.vmm.write_sectors(sector, &[0x6b; 512]);
        self.daemon.take().unwrap().kill();
        std::fs::remove_dir_all(self.dir.path().join("run")).unwrap();
        let daemon = Self::start(&self.dir);
        let found = Client::connect(&daemon.socket("web1")).read(sector * 512, 512);
        daemon.stop();
        assert!(found == [0x6b; 512] || found == root_content(sector, 1));
        found == [0x6b; 512]
    }
}

fn stop(daemon: Daemon) {
    daemon.stop();
}

#[test]
fn a_write_cache_that_is_off_stays_off_for_a_guest_that_nobody_tells_otherwise() {
    type Interruption = fn(&mut CachedGuest);
    let interruptions: [(&str, Interruption); 5] = [
        ("the socket breaks", |guest| guest.vmm.reconnect(&guest.socket()).unwrap()),
        ("a planned restart", |guest| guest.restart(stop, |_| {})),
        ("a kill", |guest| guest.restart(Daemon::kill, |_| {})),
        // As QEMU does when a guest is paused, and when it boots again.
        ("a reset", |guest| {
            assert_eq!(change_status(&guest.vmm.stream, 0), (0, 0));
            guest.vmm.reconnect(&guest.socket()).unwrap();
        }),
        ("one after the other", |guest| {
            guest.restart(stop, |_| {});
            guest.restart(Daemon::kill, |_| {});
            guest.vmm.reconnect(&guest.socket()).unwrap();
            guest.restart(Daemon::kill, |_| {});
            guest.restart(stop, |_| {});
        }),
    ];
    for (what, interruption) in interruptions {
        let mut guest = CachedGuest::new();
        assert_eq!(guest.field(), 1);
        guest.set_field(0);
        interruption(&mut guest);
        assert_eq!(guest.field(), 0, "{what}");
        assert!(guest.makes_a_write_durable(77), "{what}: acknowledged and not durable");
    }
}

#[test]
fn a_write_cache_that_is_on_stays_on_through_restarts() {
    for switched in [false, true] {
        let mut guest = CachedGuest::new();
        if switched {
            guest.set_field(0);
            guest.set_field(1);
        }
        guest.restart(stop, |_| {});
        guest.restart(Daemon::kill, |_| {});
        guest.vmm.reconnect(&guest.socket()).unwrap();
        assert_eq!(guest.field(), 1);
        assert!(!guest.makes_a_write_durable(77), "its writes went through");
    }
}

#[test]
fn a_write_cache_of_which_nothing_is_known_is_off_for_a_guest_that_was_there_before() {
    // As after a version that noted nothing.
    let forget = |dir: &Path| {
        let map = std::fs::File::options().write(true).open(dir.join("run/web1.map")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&map, &[0], 52).unwrap();
    };
    let mut guest = CachedGuest::new();
    guest.restart(Daemon::kill, forget);
    assert_eq!(guest.field(), 0);
    // The guest can say what it wants, and then that counts.
    guest.set_field(1);
    guest.restart(Daemon::kill, |_| {});
    assert_eq!(guest.field(), 1);
    guest.restart(Daemon::kill, forget);
    assert!(guest.makes_a_write_durable(77));
}

#[test]
fn the_log_says_what_an_unknown_write_cache_means_and_what_to_type() {
    let mut guest = CachedGuest::new();
    guest.daemon.take().unwrap().kill();
    let map = guest.dir.path().join("run/web1.map");
    let map = std::fs::File::options().write(true).open(map).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&map, &[0], 52).unwrap();
    let root = guest.dir.path().join("root.raw");
    let args = ["--root", root.to_str().unwrap(), "--vm", "web1"];
    let (daemon, mut log) = Daemon::start_logged(guest.dir.path(), &args);
    guest.vmm.reconnect(&guest.socket()).unwrap();
    let line = log.wait_for(&["VM web1: whether its guest has switched its write cache off"]);
    for part in
        ["nothing is at risk", "echo \"write through\" > /sys", "echo \"write back\" > /sys"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    drop(guest.vmm);
    daemon.stop();
}

//! `--keep-cache`: a restarted daemon finds its cache warm, after an orderly stop
//! and after a kill, and never a block of a root that has changed.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::scene::{ROOT_SECTORS, root_content};
use common::{Client, Daemon, make_root};

struct Host {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = make_root(dir.path(), ROOT_SECTORS);
        Self { dir, root }
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let args = ["--root", self.root.to_str().unwrap(), "--vm", "web1"];
        Daemon::start(self.dir.path(), &[&args, more].concat())
    }

    /// Files that are kept for this host.
    fn kept(&self) -> Vec<PathBuf> {
        let path = self.dir.path().join("run").canonicalize().unwrap();
        let hash = sha2::Digest::finalize(sha2::Digest::chain_update(
            <sha2::Sha256 as sha2::Digest>::new(),
            path.as_os_str().as_encoded_bytes(),
        ));
        let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let in_dir = |dir: &Path| {
            ["slots", "cache"].map(|suffix| dir.join(format!("leafblk-{name}.{suffix}")))
        };
        let all = in_dir(Path::new("/dev/shm")).into_iter().chain(in_dir(&path));
        all.filter(|path| path.exists()).collect()
    }
}

fn read_all(daemon: &Daemon) -> Vec<u8> {
    let mut client = Client::connect(&daemon.socket("web1"));
    (0..ROOT_SECTORS / 128).flat_map(|i| client.read(i * 65536, 65536)).collect()
}

/// What the daemon says that it read from the root.
fn from_root(said: &str) -> &str {
    let before = said.split(" from the root").next().unwrap();
    before.rsplit(", ").next().unwrap()
}

#[test]
fn after_a_stop_and_after_a_kill_the_next_daemon_reads_nothing_from_the_root_again() {
    let host = Host::new();
    let keep = ["--keep-cache"];
    let daemon = host.start(&keep);
    assert!(read_all(&daemon) == root_content(0, ROOT_SECTORS));
    assert_ne!(from_root(&daemon.stop()), "0B");
    assert_eq!(host.kept().len(), 2, "{:?}", host.kept());

    let daemon = host.start(&keep);
    assert!(read_all(&daemon) == root_content(0, ROOT_SECTORS));
    assert_eq!(from_root(&daemon.stop()), "0B");

    let daemon = host.start(&keep);
    assert!(read_all(&daemon) == root_content(0, ROOT_SECTORS));
    daemon.kill();
    let daemon = host.start(&keep);
    assert!(read_all(&daemon) == root_content(0, ROOT_SECTORS));
    assert_eq!(from_root(&daemon.stop()), "0B");

    // Without the flag it is cold, and the memory is given back.
    let daemon = host.start(&[]);
    assert_eq!(host.kept(), Vec::<PathBuf>::new());
    assert!(read_all(&daemon) == root_content(0, ROOT_SECTORS));
    assert_ne!(from_root(&daemon.stop()), "0B");
    assert_eq!(host.kept(), Vec::<PathBuf>::new());
}

#[test]
fn a_root_that_was_changed_between_two_starts_is_read_anew() {
    let host = Host::new();
    let keep = ["--keep-cache"];
    let daemon = host.start(&keep);
    assert!(read_all(&daemon) == root_content(0, ROOT_SECTORS));
    daemon.stop();
    // A sector that no fingerprint samples, and which lets the leaf still open.
    let sector = 3001;
    let file = std::fs::File::options().write(true).open(&host.root).unwrap();
    file.write_all_at(&[0x3c; 512], sector * 512).unwrap();
    drop(file);
    let daemon = host.start(&keep);
    let mut expected = root_content(0, ROOT_SECTORS);
    let at = sector as usize * 512;
    expected[at..at + 512].fill(0x3c);
    assert!(read_all(&daemon) == expected);
    assert_ne!(from_root(&daemon.stop()), "0B");
    host.start(&[]).stop();
}

#[test]
fn a_daemon_that_is_killed_while_it_fills_leaves_only_whole_blocks() {
    let host = Host::new();
    for round in 0..12u64 {
        let daemon = host.start(&["--keep-cache"]);
        let mut client = Client::connect(&daemon.socket("web1"));
        // What is there is right; the rest is asked for and not waited for.
        for block in 0..round * 2 {
            assert!(client.read(block * 65536, 65536) == root_content(block * 128, 128));
        }
        for i in 0..8 {
            let block = round * 2 + i;
            client.submit(common::Op::Read, block * 65536, 65536, i as usize * 65536, i as usize);
        }
        daemon.kill();
        drop(client);
    }
    host.start(&[]).stop();
}

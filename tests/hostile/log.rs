//! A log that nobody reads.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::common::frontend::*;
use crate::common::scene::{Neighbour, ROOT_SECTORS, root_content};
use crate::common::{Client, Daemon, make_root};

/// The write end of a pipe that takes nothing, and the read end.
fn full_pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let mut write = File::from(write);
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    while write.write(&[b'x'; 4096]).is_ok() {}
    while write.write(b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&write, false).unwrap();
    (write, read.into())
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let root = root.to_str().unwrap();
    let (stderr, _read) = full_pipe();
    let args = ["--root", root, "--vm", "victim", "--vm", "neighbour", "--reactors", "1"];
    let daemon = Daemon::start_with(dir.path(), &args, stderr.into());
    let neighbour = Neighbour::start(&daemon.socket("neighbour"));
    neighbour.goes_on(20);
    let socket = daemon.socket("victim");
    for _ in 0..10 {
        let mut vmm = Vmm::running(&socket);
        assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
        let second = UnixStream::connect(&socket).unwrap();
        second.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_closed(&second));
        // The reactor says that the device stops.
        vmm.show(0, 10_000);
        neighbour.goes_on(20);
    }
    Client::connect(&socket).read(0, 512);
    neighbour.stop();
    let begun = Instant::now();
    daemon.stop();
    assert!(begun.elapsed() < PATIENCE, "took {:?}", begun.elapsed());
}

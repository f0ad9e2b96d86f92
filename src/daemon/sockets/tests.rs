use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;

use super::*;

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web1.sock");
    (dir, path)
}

/// A socket file as a killed server leaves it. It never listened, so that a
/// copy of its descriptor, in a child that another test just forked, does not
/// make it live.
fn leave_stale(path: &Path) {
    let (socket, address) = stream_socket(path).unwrap();
    bind(&socket, &address).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_bound_socket_is_private_and_accepts() {
    let (_dir, path) = place();
    let socket = OwnedSocket::bind(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _client = UnixStream::connect(&path).unwrap();
    socket.listener().accept().unwrap();
    assert_eq!(socket.path, path);
}

#[test]
fn dropping_it_leaves_nothing_behind() {
    let (dir, path) = place();
    let socket = OwnedSocket::bind(&path).unwrap();
    assert_eq!(names(dir.path()), ["web1.sock", "web1.sock.lock"]);
    drop(socket);
    assert!(names(dir.path()).is_empty());
    OwnedSocket::bind(&path).unwrap();
}

#[test]
fn a_stale_socket_is_replaced() {
    let (_dir, path) = place();
    leave_stale(&path);
    fs::write(path.with_file_name("web1.sock.lock"), "").unwrap();
    let _socket = OwnedSocket::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn another_leafblks_socket_is_refused_and_keeps_working() {
    let (_dir, path) = place();
    let first = OwnedSocket::bind(&path).unwrap();
    let error = OwnedSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::InUse(_)), "{error}");
    assert!(error.to_string().contains("in use by another leafblk"));
    UnixStream::connect(&path).unwrap();
    drop(first);
}

#[test]
fn a_live_socket_of_another_program_is_refused_and_keeps_working() {
    let (dir, path) = place();
    let _server = UnixListener::bind(&path).unwrap();
    let error = OwnedSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Live(_)), "{error}");
    UnixStream::connect(&path).unwrap();
    assert_eq!(names(dir.path()), ["web1.sock"]);
}

#[test]
fn a_live_socket_with_a_full_backlog_does_not_block_the_look_at_it() {
    let (_dir, path) = place();
    let (server, address) = stream_socket(&path).unwrap();
    bind(&server, &address).unwrap();
    listen(&server, 0).unwrap();
    let mut clients = Vec::new();
    while probe_kept(&path, &mut clients) {}
    let error = OwnedSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Live(_)), "{error}");
}

/// Takes one place in the backlog, if there is one.
fn probe_kept(path: &Path, clients: &mut Vec<rustix::fd::OwnedFd>) -> bool {
    assert!(clients.len() < 100, "the backlog has no end");
    let (client, address) = stream_socket(path).unwrap();
    let connected = connect(&client, &address).is_ok();
    clients.push(client);
    connected
}

#[test]
fn a_datagram_socket_counts_as_live() {
    let (_dir, path) = place();
    let _server = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let error = OwnedSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Live(_)), "{error}");
}

#[test]
fn what_is_no_socket_is_refused_and_stays() {
    let (dir, path) = place();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = dir.path().join("link");
    leave_stale(&dir.path().join("target"));
    std::os::unix::fs::symlink("target", &link).unwrap();
    fs::create_dir(&path).unwrap();
    let before = names(dir.path());
    for path in [file, link, path] {
        let error = OwnedSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket(_)), "{error}");
    }
    assert_eq!(names(dir.path()), before);
}

#[test]
fn a_socket_that_someone_put_there_instead_is_not_removed() {
    let (_dir, path) = place();
    let ours = OwnedSocket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn of_many_that_start_at_once_exactly_one_gets_a_stale_socket() {
    let (_dir, path) = place();
    for _ in 0..50 {
        leave_stale(&path);
        let barrier = Barrier::new(4);
        let winners: Vec<OwnedSocket> = thread::scope(|scope| {
            let starts: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        OwnedSocket::bind(&path)
                    })
                })
                .collect();
            starts
                .into_iter()
                .filter_map(|start| match start.join().unwrap() {
                    Ok(socket) => Some(socket),
                    Err(SocketError::InUse(_)) => None,
                    Err(other) => panic!("{other}"),
                })
                .collect()
        });
        assert_eq!(winners.len(), 1);
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn handing_over_again_and_again_never_has_two_owners() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (dir, path) = place();
    let owners = AtomicUsize::new(0);
    let turns = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let socket = match OwnedSocket::bind(&path) {
                        Ok(socket) => socket,
                        Err(SocketError::InUse(_)) => continue,
                        Err(other) => panic!("{other}"),
                    };
                    assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                    turns.fetch_add(1, Ordering::SeqCst);
                    owners.fetch_sub(1, Ordering::SeqCst);
                    drop(socket);
                }
            });
        }
    });
    assert!(turns.load(Ordering::SeqCst) > 0);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_lock_file_that_its_last_holder_removed_is_no_lock() {
    let (_dir, path) = place();
    let last = OwnedSocket::bind(&path).unwrap();
    let opened_before = crate::io::open::own_file_or_new(&lock_path(&path)).unwrap();
    drop(last);
    assert!(PathLock::confirm(&lock_path(&path), opened_before).unwrap().is_none());

    let opened_before = crate::io::open::own_file_or_new(&lock_path(&path)).unwrap();
    fs::remove_file(lock_path(&path)).unwrap();
    let _next = OwnedSocket::bind(&path).unwrap();
    assert!(PathLock::confirm(&lock_path(&path), opened_before).unwrap().is_none());
}

#[test]
fn a_missing_directory_is_an_error_that_names_the_path() {
    let (dir, _) = place();
    let error = OwnedSocket::bind(&dir.path().join("none/web1.sock")).unwrap_err();
    assert!(error.to_string().contains("none/web1.sock"), "{error}");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_made_directory_is_private_and_an_existing_one_keeps_its_mode() {
    let (dir, _) = place();
    let path = dir.path().join("a/b");
    create_private_dir(&path).unwrap().keep();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o700, 0o700));
    fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
    create_private_dir(&path).unwrap().keep();
    assert_eq!(mode(&path), 0o750);
}

#[test]
fn a_made_directory_goes_with_those_above_it_and_one_that_was_there_stays() {
    let (dir, _) = place();
    let path = dir.path().join("a/b/c");
    drop(create_private_dir(&path).unwrap());
    assert!(names(dir.path()).is_empty());
    fs::create_dir(dir.path().join("a")).unwrap();
    drop(create_private_dir(&path).unwrap());
    assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
    // Of what can't be made, nothing is.
    fs::write(dir.path().join("a/file"), "").unwrap();
    create_private_dir(&dir.path().join("a/file/b")).unwrap_err();
    create_private_dir(&dir.path().join(format!("a/b/{}", "c".repeat(300)))).unwrap_err();
    assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
}

#[test]
fn a_file_in_the_directorys_place_is_refused() {
    let (dir, path) = place();
    fs::write(&path, "").unwrap();
    let error = create_private_dir(&path).unwrap_err();
    assert!(matches!(error, SocketError::NoDirectory(_)), "{error}");
    let error = create_private_dir(&path.join("below")).unwrap_err();
    assert!(error.to_string().contains("below"), "{error}");
    drop(dir);
}

#[test]
fn the_directory_that_keeps_a_group_out_is_found() {
    const GROUP: u32 = 65533;
    let (dir, _) = place();
    let run = dir.path().join("run");
    create_private_dir(&run).unwrap().keep();
    let socket = run.join("web1.sock");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    mode(dir.path(), 0o755);
    assert_eq!(where_stopped(&socket, GROUP), Some(run.clone()));
    // Of another group, however open it is to that.
    mode(&run, 0o770);
    assert_eq!(where_stopped(&socket, GROUP), Some(run.clone()));
    mode(&run, 0o711);
    assert_eq!(where_stopped(&socket, GROUP), None);
    mode(dir.path(), 0o700);
    assert_eq!(where_stopped(&socket, GROUP), Some(dir.path().to_owned()));
    mode(dir.path(), 0o711);
    // The owner's own group, which need not be named by number.
    let own = fs::metadata(&run).unwrap().gid();
    mode(&run, 0o701);
    assert_eq!(where_stopped(&socket, own), Some(run.clone()), "others may, the group may not");
    let_pass(&run, own).unwrap();
    assert_eq!(where_stopped(&socket, own), None);
}

//! Nothing but what is asked for is opened, not even for a moment.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;
use crate::unopened::{Unopened, WaitingWriter};

fn each_opening(path: &Path) -> Vec<Result<File, OpenError>> {
    vec![
        file(path, Access::Read),
        file(path, Access::Write),
        own_file(path, Access::Write),
        own_file_or_new(path),
        image(path),
        text(path, 100).map(|_| unreachable!("it says nothing")).map_err(OpenError::Io),
        directory(path).map_err(OpenError::Io),
        nameless_file(path).map(Option::unwrap).map_err(OpenError::Io),
        new_file(path).map_err(OpenError::Io),
    ]
}

#[test]
fn a_fifo_is_refused_and_its_writer_goes_on_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    let writer = WaitingWriter::at(&path);
    for (which, opened) in each_opening(&path).into_iter().enumerate() {
        assert!(opened.is_err(), "opening {which}");
        writer.check();
    }
}

#[test]
fn a_socket_or_character_device_is_refused_unopened_by_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let link = dir.path().join("link");
    symlink("/dev/full", &link).unwrap();
    for (path, kind) in
        [(socket, "a socket"), (PathBuf::from("/dev/full"), "a character device"), (link, "a ")]
    {
        let watch = Unopened::watch(&path);
        for (which, opened) in each_opening(&path).into_iter().enumerate() {
            let said = opened.expect_err("refused").to_string();
            let by_kind = which < 6;
            assert!(!by_kind || said.contains(kind), "{}, {which}: {said}", path.display());
        }
        assert!(!watch.was_opened(), "{}", path.display());
    }
    let watch = Unopened::watch(Path::new("/dev/full"));
    File::open("/dev/full").unwrap();
    assert!(watch.was_opened(), "the judge sees an opening");
}

#[test]
fn a_directory_is_a_directory_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for opened in &each_opening(dir.path())[..6] {
        let said = opened.as_ref().unwrap_err().to_string();
        assert!(said.contains("directory"), "{said}");
    }
    directory(dir.path()).unwrap();
}

#[test]
fn a_file_is_opened_for_what_is_asked_and_a_link_to_it_where_links_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("file"), dir.path().join("link"));
    std::fs::write(&path, "content").unwrap();
    symlink("file", &link).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    for opened in [file(&link, Access::Read), file(&path, Access::Write), image(&link)] {
        assert_eq!(opened.unwrap().metadata().unwrap().ino(), inode);
    }
    use std::io::Write;
    assert!(file(&path, Access::Read).unwrap().write_all(b"x").is_err());
    own_file(&path, Access::Write).unwrap().write_all(b"C").unwrap();
    for refused in [own_file(&link, Access::Read), own_file_or_new(&link)] {
        assert_eq!(refused.unwrap_err().to_string(), "it is a symbolic link");
    }
    assert_eq!(text(&link, 7).unwrap(), "Content");
    assert_eq!(text(&path, 6).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn a_file_of_ones_own_is_made_once_and_for_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own");
    let made = own_file_or_new(&path).unwrap().metadata().unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o600);
    assert_eq!(own_file_or_new(&path).unwrap().metadata().unwrap().ino(), made.ino());
    // A link to nothing is no free name.
    let link = dir.path().join("link");
    symlink("nothing", &link).unwrap();
    assert!(own_file_or_new(&link).is_err());
    assert!(!dir.path().join("nothing").exists());
}

#[test]
fn what_is_not_there_or_not_allowed_is_the_systems_error() {
    let missing = Path::new("/nowhere/at/all");
    for opened in each_opening(missing) {
        let error = io::Error::from(opened.unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}

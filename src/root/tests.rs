//! What can be a root, what tells two apart, and the locks.
#![expect(unsafe_code, reason = "OFD locks by fcntl(2), as QEMU takes them")]

use std::os::unix::fs::FileExt;

use tempfile::TempDir;

use super::*;

const LEN: u64 = 4 << 20;

/// A directory with an image of `LEN` bytes of no pattern.
fn image() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.raw");
    let mut state = 1u64;
    let words = (0..LEN / 8).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()
    });
    std::fs::write(&path, words.collect::<Vec<u8>>()).unwrap();
    (dir, path)
}

fn identity(path: &Path) -> RootIdentity {
    Root::open("base", path).unwrap().identity().clone()
}

/// Changes one byte.
fn poke(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_root_knows_its_name_path_and_size() {
    let (_dir, path) = image();
    let root = Root::open("base", &path).unwrap();
    assert_eq!((root.name(), root.path()), ("base", &*path));
    assert_eq!((root.len_bytes(), root.sectors()), (LEN, LEN / 512));
    let shown = root.identity().to_string();
    assert!(shown.contains("\"base\"") && shown.contains(&LEN.to_string()), "{shown}");
}

#[test]
fn a_copy_under_another_name_is_the_same_root() {
    let (dir, path) = image();
    let copy = dir.path().join("copy.raw");
    std::fs::copy(&path, &copy).unwrap();
    let other = Root::open("other", &copy).unwrap();
    assert!(identity(&path).same_content(other.identity()));
    assert_ne!(&identity(&path), other.identity(), "the names differ");
}

#[test]
fn a_change_at_the_start_a_sample_or_the_end_makes_another_root() {
    let (_dir, path) = image();
    let sample = LEN * 40 / 65 / 4096 * 4096;
    for offset in [0, (1 << 20) - 1, sample, LEN - (64 << 10), LEN - 1] {
        let before = identity(&path);
        poke(&path, offset);
        assert!(!before.same_content(&identity(&path)), "byte {offset}");
    }
}

#[test]
fn the_same_bytes_and_a_sector_more_make_another_root() {
    let (_dir, path) = image();
    let before = identity(&path);
    File::options().write(true).open(&path).unwrap().set_len(LEN + 512).unwrap();
    assert!(!before.same_content(&identity(&path)));
}

#[test]
fn a_root_as_small_as_a_sector_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.raw");
    std::fs::write(&path, [7; 512]).unwrap();
    let root = Root::open("tiny", &path).unwrap();
    assert_eq!((root.sectors(), root.holes()), (1, vec![]));
}

#[test]
fn holes_are_found_where_nothing_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.raw");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[1; 65536], 2 << 20).unwrap();
    file.write_all_at(&[1; 65536], 5 << 20).unwrap();
    file.sync_all().unwrap();
    let holes = Root::open("sparse", &path).unwrap().holes();
    let data = |start: u64| start << 20..(start << 20) + 65536;
    for (start, end) in &holes {
        assert!(start < end && *end <= 8 << 20);
        for data in [data(2), data(5)] {
            assert!(*end <= data.start || *start >= data.end, "{start}..{end} has data");
        }
    }
    assert!(holes.windows(2).all(|pair| pair[0].1 < pair[1].0), "in order, not adjoining");
    let total: u64 = holes.iter().map(|(start, end)| end - start).sum();
    assert!(total > 7 << 20, "{total} bytes of holes: does this file system tell them?");
    assert_eq!(holes.last().unwrap().1, 8 << 20);
}

#[test]
fn a_root_that_is_all_hole_or_all_data_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hole.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(Root::open("hole", &path).unwrap().holes(), [(0, 1 << 20)]);
    let (_dir, path) = image();
    assert_eq!(Root::open("data", &path).unwrap().holes(), []);
}

#[test]
fn what_is_no_raw_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    assert!(matches!(Root::open("r", &path), Err(RootError::Open { .. })), "missing");
    assert!(matches!(Root::open("r", dir.path()), Err(RootError::Kind { .. })), "a directory");
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Root::open("r", &path), Err(RootError::Empty { .. })));
    std::fs::write(&path, [1; 1000]).unwrap();
    assert!(matches!(Root::open("r", &path), Err(RootError::Ragged { len: 1000, .. })));
}

#[test]
fn an_image_of_another_format_is_refused_unless_it_is_declared_raw() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it's one.qcow2");
    let mut qcow2 = vec![0; 4096];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    std::fs::write(&path, &qcow2).unwrap();
    for open in [Root::open, Root::open_buffered] {
        let said = open("r", &path).unwrap_err().to_string();
        let quoted = path.to_str().unwrap().replace('\'', "'\\''");
        let line = format!("qemu-img convert -f qcow2 -O raw '{quoted}' NEW.raw");
        assert!(said.contains("is a qcow2 image") && said.contains(&line), "{said}");
        assert!(said.contains("format=raw"), "{said}");
    }
    for access in [RootAccess::Direct, RootAccess::Buffered] {
        let options = RootOptions { format: Some(RootFormat::Raw), access };
        let root = Root::open_as("r", &path, options).unwrap();
        let mut content = vec![0; 4096];
        read_exact(
            &FileStorage::new(open::again(root.file(), Access::Read, OFlags::empty()).unwrap()),
            &mut content,
            0,
        )
        .unwrap();
        assert_eq!(content, qcow2);
        let made = FileStorage::new(File::open(&path).unwrap());
        assert_eq!(*root.identity(), RootIdentity::of_raw("r", &made).unwrap());
    }
    // Declared or not, a disk is whole sectors.
    std::fs::write(&path, &qcow2[..1000]).unwrap();
    let options = RootOptions { format: Some(RootFormat::Raw), ..RootOptions::default() };
    assert!(matches!(Root::open_as("r", &path, options), Err(RootError::Ragged { .. })));
    assert!(matches!(Root::open("r", &path), Err(RootError::Format { .. })), "before its length");
}

#[test]
fn a_fifo_is_refused_without_waiting_for_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    assert!(matches!(Root::open("r", &path), Err(RootError::Kind { .. })));
}

/// Locks one byte as another program does; whether it got the lock.
fn lock_byte(file: &File, kind: libc::c_int, at: i64) -> bool {
    // SAFETY: a plain C struct of numbers, for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap();
    lock.l_start = at;
    lock.l_len = 1;
    // SAFETY: the lock outlives the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
}

#[test]
fn a_root_that_qemu_writes_to_or_wants_alone_is_in_use() {
    let (_dir, path) = image();
    // Write (101) or resize (103) in use; reading (200) not shared; and the
    // bytes that we take, locked for good (some tools do that).
    for (kind, at) in [
        (libc::F_RDLCK, 101),
        (libc::F_RDLCK, 103),
        (libc::F_RDLCK, 200),
        (libc::F_WRLCK, 100),
        (libc::F_WRLCK, 201),
    ] {
        let qemu = File::options().read(true).write(true).open(&path).unwrap();
        assert!(lock_byte(&qemu, kind, at));
        let result = Root::open("base", &path);
        assert!(matches!(result, Err(RootError::InUse { .. })), "byte {at}: {result:?}");
        drop(qemu);
        Root::open("base", &path).unwrap();
    }
}

#[test]
fn an_open_root_can_be_read_by_others_and_not_written() {
    let (_dir, path) = image();
    let first = Root::open("base", &path).unwrap();
    let _second = Root::open("again", &path).unwrap();
    let qemu = File::options().read(true).write(true).open(&path).unwrap();
    assert!(lock_byte(&qemu, libc::F_RDLCK, 100), "QEMU reads it as a backing file");
    assert!(lock_byte(&qemu, libc::F_RDLCK, 201), "and forbids writing, as we do");
    // QEMU looks for others' locks on 200 + n before it uses permission n.
    assert!(!lock_byte(&qemu, libc::F_WRLCK, 201), "writing is forbidden");
    assert!(!lock_byte(&qemu, libc::F_WRLCK, 203), "resizing is forbidden");
    assert!(lock_byte(&qemu, libc::F_WRLCK, 200), "reading is not");
    drop(first);
}

#[test]
fn the_lock_is_taken_before_the_content_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    // Each of these would be refused for its content or length.
    for content in [&b""[..], &[1; 1000], b"QFI\xfb\0\0\0\x03"] {
        std::fs::write(&path, content).unwrap();
        let qemu = File::options().read(true).write(true).open(&path).unwrap();
        assert!(lock_byte(&qemu, libc::F_RDLCK, 101));
        for open in [Root::open, Root::open_buffered] {
            let result = open("base", &path);
            assert!(matches!(result, Err(RootError::InUse { .. })), "{result:?}");
        }
    }
}

#[test]
fn reopening_for_direct_reads_finds_the_same_file_when_its_name_went_to_another() {
    use std::os::unix::fs::MetadataExt;
    let (dir, path) = image();
    let plain = File::open(&path).unwrap();
    let other = dir.path().join("other.raw");
    std::fs::write(&other, [9; 1 << 20].repeat(4)).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let direct = reopen_direct(&plain, LEN).expect("this file system has O_DIRECT");
    let inode = |file: &File| file.metadata().unwrap().ino();
    assert_eq!(inode(&direct), inode(&plain));
    assert_ne!(inode(&direct), std::fs::metadata(&path).unwrap().ino());
}

#[test]
fn a_root_opened_for_direct_reads_or_through_the_page_cache_keeps_writers_out() {
    let (_dir, path) = image();
    for open in [Root::open, Root::open_buffered] {
        let root = open("base", &path).unwrap();
        let qemu = File::options().read(true).write(true).open(&path).unwrap();
        assert!(!lock_byte(&qemu, libc::F_WRLCK, 201), "direct: {}", root.is_direct());
        drop(root);
        assert!(lock_byte(&qemu, libc::F_WRLCK, 201), "the lock goes with the root");
    }
    let (direct, buffered) =
        (Root::open("a", &path).unwrap(), Root::open_buffered("a", &path).unwrap());
    assert!(!buffered.is_direct());
    assert_eq!(direct.identity(), buffered.identity());
}

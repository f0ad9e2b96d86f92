//! Live maps that are not where they are looked for, or are in another's way.

use super::*;

/// Two leaves with one runtime directory.
struct Two {
    dir: TempDir,
}

impl Two {
    fn new() -> Self {
        let two = Self { dir: tempfile::tempdir().unwrap() };
        for leaf in ["a", "b"] {
            create(&two.path(leaf, "leaf"), SIZE, &root(1)).unwrap();
        }
        two
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.dir.path().join(name).with_extension(extension)
    }

    /// The leaf, as the VM of that name has it.
    fn open(&self, leaf: &str, vm: &str, read_only: bool) -> Leaf {
        let options = OpenOptions { live_map: Some(self.path(vm, "map")), read_only };
        Leaf::open(&self.path(leaf, "leaf"), &root(1), &options).unwrap()
    }

    /// Writes through a daemon that is then killed.
    fn killed_after(&self, leaf: &str, vm: &str, sector: u64) {
        write(&self.open(leaf, vm, false), sector, 1, 0x41).unwrap();
    }

    fn maps(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut maps: Vec<_> = names.filter(|name| name.ends_with(".map")).collect();
        maps.sort();
        maps
    }
}

#[test]
fn a_live_map_is_taken_over_after_its_vm_was_renamed() {
    let two = Two::new();
    two.killed_after("a", "web1", 5);
    let reader = two.open("a", "web2", true);
    assert_eq!(reader.next_run(range(5, 9)), (true, 1));
    drop(reader);
    assert_eq!(two.maps(), ["web1.map"], "a reader changes nothing");
    let leaf = two.open("a", "web2", false);
    assert_eq!(leaf.next_run(range(5, 9)), (true, 1));
    assert_eq!(two.maps(), ["web2.map"]);
    leaf.close().unwrap();
    assert_eq!(two.maps(), [""; 0]);
}

#[test]
fn a_live_map_survives_its_vms_name_being_given_to_another_leaf() {
    let two = Two::new();
    two.killed_after("a", "web1", 5);
    two.killed_after("b", "web1", 6);
    assert_eq!(two.maps().len(), 2);
    // Back again, and once more.
    for _ in 0..2 {
        assert_eq!(two.open("a", "web1", false).next_run(range(5, 9)), (true, 1));
        assert_eq!(two.open("b", "web1", false).next_run(range(6, 9)), (true, 1));
    }
    two.open("a", "web1", false).close().unwrap();
    two.open("b", "web1", false).close().unwrap();
    assert_eq!(two.maps(), [""; 0], "and goes when its leaf is closed");
}

#[test]
fn vms_that_swap_their_leaves_find_both_maps_though_they_open_at_once() {
    for _ in 0..50 {
        let two = Two::new();
        two.killed_after("a", "web1", 5);
        two.killed_after("b", "web2", 6);
        std::thread::scope(|scope| {
            let a = scope.spawn(|| two.open("a", "web2", false).next_run(range(5, 9)));
            let b = scope.spawn(|| two.open("b", "web1", false).next_run(range(6, 9)));
            assert_eq!((a.join().unwrap(), b.join().unwrap()), ((true, 1), (true, 1)));
        });
    }
}

#[test]
fn a_map_that_no_leaf_of_this_boot_needs_is_replaced() {
    for change in ["another boot", "no map", "an older run"] {
        let two = Two::new();
        two.killed_after("b", "web1", 6);
        let mut bytes = std::fs::read(two.path("web1", "map")).unwrap();
        match change {
            "another boot" => {
                bytes[8] ^= 1;
                let crc = crc32c::crc32c(&bytes[..48]);
                bytes[48..52].copy_from_slice(&crc.to_le_bytes());
            }
            "no map" => bytes[0] ^= 1,
            _ => {
                // Of this very leaf.
                two.open("b", "web1", false).close().unwrap();
            }
        }
        std::fs::write(two.path("web1", "map"), &bytes).unwrap();
        let leaf = if change == "an older run" { "b" } else { "a" };
        two.open(leaf, "web1", false).close().unwrap();
        assert_eq!(two.maps(), [""; 0], "{change}");
    }
}

#[test]
fn closing_a_leaf_removes_its_own_map_only() {
    let two = Two::new();
    let a = two.open("a", "web1", false);
    // As a daemon beside a tool that works on leaf a: the name is the VM's.
    let b = two.open("b", "web1", false);
    write(&b, 6, 1, 0x41).unwrap();
    a.close().unwrap();
    drop(b);
    assert_eq!(two.open("b", "web1", false).next_run(range(6, 9)), (true, 1));
}

#[test]
fn of_the_maps_of_no_vm_those_are_removed_that_no_leaf_can_need() {
    use std::os::unix::fs::FileExt;
    let two = Two::new();
    // Of another boot; given up, as after a failed sync; and needed by a leaf that
    // is not in use, or by one that is.
    for (name, change) in [("boot", Some((8, 16))), ("void", Some((0, 124))), ("needed", None)] {
        create(&two.path(name, "leaf"), SIZE, &root(1)).unwrap();
        two.killed_after(name, name, 5);
        let Some((at, len)) = change else { continue };
        let map = File::options().read(true).write(true).open(two.path(name, "map")).unwrap();
        map.write_all_at(&[0; 124][..len], at).unwrap();
        let mut record = [0; 48];
        map.read_exact_at(&mut record, 0).unwrap();
        if name == "boot" {
            map.write_all_at(&crc32c::crc32c(&record).to_le_bytes(), 48).unwrap();
        }
    }
    let used = two.open("a", "web1", false);
    let owner = live_map::Owner::of(&used.header());
    let shape = live_map::Shape { sectors: SECTORS, pages_max: 3, packed: true };
    let filling = two.path("filling", "map");
    let filling = LiveMap::create(Some(&filling), &owner, Path::new("x.leaf"), &shape).unwrap();
    std::fs::write(two.path("other", "map"), "not a live map").unwrap();
    let found = clear_leftovers(two.dir.path(), &[used.uuid()]).unwrap();
    assert_eq!(two.maps(), ["filling.map", "needed.map", "other.map", "web1.map"]);
    assert_eq!(found.removed, 2);
    let [left] = &found.kept[..] else { panic!("{found:?}") };
    assert_eq!(
        (&left.map, left.leaf.clone()),
        (&two.path("needed", "map"), Some(two.path("needed", "leaf")))
    );
    assert_eq!(left.bytes, 12288);
    let taken_over = two.open("needed", "vm", false);
    assert_eq!(taken_over.next_run(range(5, 9)), (true, 1));
    drop(filling);
    let found = clear_leftovers(two.dir.path(), &[]).unwrap();
    assert_eq!(found.removed, 1, "cut off while it was filled");
    assert!(found.kept.is_empty(), "what others use is not named: {found:?}");
}

// Copies of a leaf: one UUID and one generation in two files.

/// Copies a file with its holes.
fn copy_sparse(from: &Path, to: &Path) {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let (old, new) = (File::open(from).unwrap(), File::create(to).unwrap());
    let len = old.metadata().unwrap().len();
    new.set_len(len).unwrap();
    let mut at = 0;
    while let Ok(data) = seek(&old, SeekFrom::Data(at)) {
        at = seek(&old, SeekFrom::Hole(data)).unwrap();
        let mut bytes = vec![0; (at - data) as usize];
        old.read_exact_at(&mut bytes, data).unwrap();
        new.write_all_at(&bytes, data).unwrap();
    }
}

impl Two {
    /// Copies leaf `a`.
    fn copy(&self, name: &str) {
        copy_sparse(&self.path("a", "leaf"), &self.path(name, "leaf"));
    }

    fn try_open(&self, leaf: &str, vm: &str, read_only: bool) -> Result<Leaf, LeafError> {
        let options = OpenOptions { live_map: Some(self.path(vm, "map")), read_only };
        Leaf::open(&self.path(leaf, "leaf"), &root(1), &options)
    }

    fn bytes_of(&self, map: &str) -> Vec<u8> {
        std::fs::read(self.path(map, "map")).unwrap()
    }
}

#[test]
fn a_copy_that_is_opened_beside_its_running_original_leaves_the_originals_map_alone() {
    let two = Two::new();
    let original = two.open("a", "web1", false);
    write(&original, 5, 1, 0x41).unwrap();
    original.flush().unwrap();
    two.copy("copy");
    write(&original, 6, 1, 0x42).unwrap();
    let map = two.bytes_of("web1");
    for vm in ["web1", "web2"] {
        let reader = two.open("copy", vm, true);
        assert_eq!(reader.next_run(range(5, 9)), (true, 1), "what was flushed");
    }
    // The name is the original's as long as that is open.
    two.open("copy", "web1", false).close().unwrap();
    assert_eq!(two.maps(), ["web1.map"]);
    let copy = two.open("copy", "web2", false);
    write(&copy, 7, 1, 0x43).unwrap();
    assert_eq!(two.maps(), ["web1.map", "web2.map"]);
    assert!(two.bytes_of("web1") == map, "nothing was written to it");
    // Both are killed, and opened again in the other order.
    drop((original, copy));
    let copy = two.open("copy", "web2", false);
    assert_eq!(copy.next_run(range(5, 9)), (true, 1));
    assert_eq!(copy.next_run(range(6, 9)), (false, 1));
    assert_eq!(copy.next_run(range(7, 9)), (true, 1));
    let original = two.open("a", "web1", false);
    assert_eq!(original.next_run(range(5, 9)), (true, 2));
}

#[test]
fn a_copy_does_not_get_the_map_of_its_killed_original_under_any_name() {
    for closed_before in [false, true] {
        for vm in ["web1", "web2"] {
            let two = Two::new();
            if closed_before {
                // A backup, and the original goes on.
                two.copy("copy");
            }
            two.killed_after("a", "web1", 5);
            if !closed_before {
                two.copy("copy");
            }
            let case = format!("closed before: {closed_before}, as {vm}");
            let reader = two.open("copy", vm, true);
            assert_eq!(reader.next_run(range(5, 9)), (false, 9), "{case}");
            drop(reader);
            assert_eq!(two.maps(), ["web1.map"], "{case}");
            // The copy runs, too, and is killed.
            let copy = two.open("copy", vm, false);
            write(&copy, 7, 1, 0x43).unwrap();
            drop(copy);
            assert_eq!(two.maps().len(), 2, "{case}");
            assert_eq!(two.open("a", "web1", false).next_run(range(5, 9)), (true, 1), "{case}");
            let copy = two.open("copy", vm, false);
            assert_eq!(copy.next_run(range(5, 2)), (false, 2), "{case}");
            assert_eq!(copy.next_run(range(7, 9)), (true, 1), "{case}");
        }
    }
}

#[test]
fn a_map_that_another_process_has_is_not_taken_though_its_leaf_is_not_where_it_was() {
    let two = Two::new();
    let original = two.open("a", "web1", false);
    write(&original, 5, 1, 0x41).unwrap();
    two.copy("copy");
    std::fs::rename(two.path("a", "leaf"), two.path("moved", "leaf")).unwrap();
    for (vm, read_only) in [("web1", true), ("web2", true), ("web1", false), ("web2", false)] {
        let error = two.try_open("copy", vm, read_only).unwrap_err();
        assert!(
            matches!(&error, LeafError::LiveMapInUse { map, .. } if *map == two.path("web1", "map")),
            "{error}"
        );
    }
    assert_eq!(two.maps(), ["web1.map"]);
    drop(original);
    // Killed: it was moved.
    assert_eq!(two.open("moved", "web1", false).next_run(range(5, 9)), (true, 1));
}

#[test]
fn maps_of_many_copies_lie_aside_each_for_itself() {
    let two = Two::new();
    let copies = ["a", "copy1", "copy2", "copy3"];
    copies[1..].iter().for_each(|name| two.copy(name));
    for (sector, copy) in (5..).zip(copies) {
        two.killed_after(copy, "web1", sector);
    }
    assert_eq!(two.maps().len(), 4);
    for (sector, copy) in (5..).zip(copies) {
        let leaf = two.open(copy, copy, false);
        let held: Vec<u64> = (0..SECTORS).filter(|s| leaf.next_run(range(*s, 1)).0).collect();
        assert_eq!(held, [sector], "{copy}");
        leaf.close().unwrap();
    }
    assert_eq!(two.maps(), [""; 0]);
}

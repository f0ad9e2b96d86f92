//! qcow2 images that lost their end: refused, or whole all the same. Never a disk with
//! zeros where data was, and never a panic, whatever an image says.

use std::fs::File;
use std::os::unix::fs::FileExt;

use leafblk::config::RootEntry;
use leafblk::tools::{ToolError, import};
use proptest::prelude::*;

use crate::scene::*;

const IMAGE: &str = "cut.qcow2";

/// Imports [`IMAGE`] in this process; what the guest would see.
fn import(scene: &Scene) -> Result<Vec<u8>, String> {
    let leaf = scene.path("cut.leaf");
    let root = RootEntry { name: "root".into(), path: scene.root(), format: None };
    let what = import::Import { image: scene.path(IMAGE), path: leaf.clone(), root };
    let imported = {
        let _open = leaves_are_open();
        import::run(&what).map_err(|error: ToolError| error.to_string())
    };
    imported?;
    let content = scene.content(&leaf, &scene.root());
    std::fs::remove_file(&leaf).unwrap();
    Ok(content)
}

/// An image that QEMU makes by these lines of a shell.
fn make(scene: &Scene, lines: &str) {
    let _ = std::fs::remove_file(scene.path(IMAGE));
    let mut shell = std::process::Command::new("sh");
    let output = output(shell.arg("-ec").arg(lines).current_dir(scene.path("")));
    assert!(output.status.success(), "{lines}: {}", text(&output.stderr));
}

fn size() -> u64 {
    LEAF_SECTORS * 512
}

/// Images with data in many places, each with what makes it another way to end.
fn images() -> Vec<(&'static str, String)> {
    let size = size();
    let create = |options: &str| format!("qemu-img create -q -f qcow2 {options} cut.qcow2 {size}");
    let io = |commands: &str| format!("qemu-io -f qcow2 {commands} cut.qcow2 > /dev/null");
    let writes = "-c 'write -P 7 1k 3k' -c 'write -P 9 300k 70k' -c 'write -z 600k 128k' \
                  -c 'write -P 3 2100k 65k'";
    let end = format!("-c 'write -P 5 {} 512'", size - 512);
    let with = |options: &str, commands: &str| format!("{}; {}", create(options), io(commands));
    let overlay = "-b root.raw -F raw";
    let convert =
        |options: &str| format!("qemu-img convert -f raw -O qcow2 {options} content.raw cut.qcow2");
    vec![
        ("an overlay", with(overlay, writes)),
        ("its last sector", with(overlay, &end)),
        ("version 2", with(&format!("-o compat=0.10 {overlay}"), writes)),
        ("small clusters", with(&format!("-o cluster_size=512 {overlay}"), writes)),
        ("large clusters", with(&format!("-o cluster_size=2M {overlay}"), writes)),
        ("no backing file", convert("")),
        ("no backing file, small clusters", convert("-o cluster_size=4096")),
        ("preallocated tables", with("-o preallocation=metadata", writes)),
        ("preallocated", with("-o preallocation=full", &end)),
        ("compressed", convert("-c")),
        ("compressed, small clusters", convert("-c -o cluster_size=4096")),
        // QEMU leaves the last sector short here.
        ("one compressed", with(overlay, "-c 'write -c -P 6 128k 64k'")),
        ("with a snapshot", with(overlay, writes) + "; qemu-img snapshot -c s cut.qcow2"),
        ("lazy refcounts", with(&format!("-o lazy_refcounts=on {overlay}"), writes)),
    ]
}

#[test]
fn an_image_cut_anywhere_is_refused_or_whole() {
    let scene = Scene::new();
    std::fs::write(scene.path("content.raw"), scene.leaf("a.leaf")).unwrap();
    for (name, lines) in images() {
        make(&scene, &lines);
        scene.qemu_img(&["convert", "-O", "raw", IMAGE, "flat.raw"]);
        let content = std::fs::read(scene.path("flat.raw")).unwrap();
        assert!(import(&scene).unwrap() == content, "{name}, whole");
        let file = File::options().write(true).open(scene.path(IMAGE)).unwrap();
        let len = file.metadata().unwrap().len();
        // At the end, in between, and in the header.
        let near = [1, 511, 512, 513, 4096].map(|less| len - less);
        let even = (1..12).map(|part| len * part / 12);
        let first = [0, 71, 72, 103, 104, 512, 65_535];
        let all = near.into_iter().chain(even).chain(first).filter(|cut| *cut < len);
        let mut cuts: Vec<u64> = all.collect();
        cuts.sort_unstable_by(|a, b| b.cmp(a));
        cuts.dedup();
        let (mut taken, all) = (0, cuts.len());
        for cut in cuts {
            file.set_len(cut).unwrap();
            match import(&scene) {
                Ok(found) => {
                    assert!(found == content, "{name}, {cut} of {len}: other content");
                    taken += 1;
                }
                Err(said) => {
                    let by_length = said.contains("is cut short: ")
                        && said.contains(&format!("of the file, which has {cut};"));
                    assert!(by_length || cut < 4096, "{name}, {cut} of {len}: {said}");
                }
            }
        }
        // Only where nothing was lost but the rest of a table's or a cluster's room.
        assert!(taken * 3 < all, "{name}: {taken} cuts of {all} were taken");
    }
}

#[test]
fn what_is_missing_is_named_by_its_place() {
    let scene = Scene::new();
    let create = format!("qemu-img create -q -f qcow2 -b root.raw -F raw cut.qcow2 {}", size());
    let write = "qemu-io -f qcow2 -c 'write -P 7 256k 64k' cut.qcow2 > /dev/null";
    make(&scene, &format!("{create}; {write}"));
    let file = File::options().read(true).write(true).open(scene.path(IMAGE)).unwrap();
    let u64_at = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let place = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let (l1, refcounts) = (u64_at(40), u64_at(48));
    let (l2, block) = (place(u64_at(l1)), u64_at(refcounts));
    let data = place(u64_at(l2 + 4 * 8));
    for (cut, part, end) in [
        (data + 100, "the data of guest offset 0x40000", data + 65_536),
        (l2 + 65_535, "the L2 table for guest offset 0x0", l2 + 65_536),
        (l1 + 7, "its L1 table", l1 + 8),
        (block + 1, "its refcount block 0", block + 65_536),
        (refcounts, "its refcount table", refcounts + 65_536),
    ] {
        file.set_len(cut).unwrap();
        let refused = scene.refusal(&["import", IMAGE, "b.leaf", "--root", "root.raw"], 1);
        let said = format!("cut.qcow2 is cut short: {part} ends at byte {end} of the file");
        assert!(refused.contains(&said), "{cut}: {refused}");
        assert!(refused.contains(&format!("which has {cut}; copy it again")), "{refused}");
    }
}

#[test]
fn tables_that_no_image_has_are_refused_before_they_are_read() {
    let scene = Scene::new();
    for (at, bytes, said) in [
        (36, &u32::MAX.to_be_bytes()[..], "its L1 table is larger than any"),
        (36, &0_u32.to_be_bytes(), "its L1 table is too small"),
        (56, &u32::MAX.to_be_bytes(), "its refcount table is larger than any"),
        (24, &(1_u64 << 60).to_be_bytes(), "its L1 table is too small"),
        (24, &4_000_001_u64.to_be_bytes(), "no multiple of 512"),
        (20, &31_u32.to_be_bytes(), "its cluster size is none"),
        (40, &u64::MAX.to_be_bytes(), "is cut short: its L1 table"),
        (48, &(1_u64 << 62).to_be_bytes(), "is cut short: its refcount table"),
    ] {
        make(&scene, &format!("qemu-img create -q -f qcow2 cut.qcow2 {}", size()));
        let file = File::options().write(true).open(scene.path(IMAGE)).unwrap();
        file.write_all_at(bytes, at).unwrap();
        let refused = scene.refusal(&["import", IMAGE, "b.leaf", "--root", "root.raw"], 1);
        assert!(refused.contains(said), "{at}: {refused}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// In headers, in tables, which begin clusters, and anywhere.
    #[test]
    fn no_damage_makes_an_import_panic(seed in any::<u64>()) {
        let scene = Scene::new();
        std::fs::write(scene.path("content.raw"), scene.leaf("a.leaf")).unwrap();
        let images = images();
        let (_, lines) = &images[(seed % images.len() as u64) as usize];
        make(&scene, lines);
        let whole = std::fs::read(scene.path(IMAGE)).unwrap();
        for round in 0..20 {
            let mut bytes = whole.clone();
            for damage in noise(seed ^ round, 64).chunks_exact(8) {
                let number = u64::from_le_bytes(damage.try_into().unwrap());
                let place = match number % 3 {
                    0 => number / 8 % 120,
                    1 => number / 8 % 64 * 65_536 + number / 512 % 64,
                    _ => number / 8,
                };
                let at = (place % bytes.len() as u64) as usize;
                bytes[at] ^= (number >> 56) as u8;
            }
            std::fs::write(scene.path(IMAGE), &bytes).unwrap();
            let _ = import(&scene);
            let _ = std::fs::remove_file(scene.path("cut.leaf"));
        }
    }
}

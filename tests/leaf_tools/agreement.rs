//! export and import, with qemu-img as the judge.

use std::os::unix::fs::FileExt;

use crate::common::unopened::{Unopened, WaitingWriter};
use crate::scene::*;

fn export(scene: &Scene, leaf: &str, format: &str, output: &str) -> String {
    let args = ["--root", "root.raw", "--format", format, "--output", output];
    scene.line(&[&["export", leaf][..], &args].concat())
}

#[test]
fn an_exported_overlay_is_whole_and_has_the_leafs_content_for_qemu() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    let said = export(&scene, "a.leaf", "qcow2", "a.qcow2");
    let root = scene.root().canonicalize().unwrap();
    assert!(said.contains(&format!("backing file {}", root.display())), "{said}");
    scene.qemu_img(&["check", "a.qcow2"]);
    std::fs::write(scene.path("content.raw"), &content).unwrap();
    let compared = scene.qemu_img(&["compare", "-F", "raw", "a.qcow2", "content.raw"]);
    assert!(compared.contains("identical"), "{compared}");
    let info: serde_json::Value =
        serde_json::from_str(&scene.qemu_img(&["info", "--output=json", "a.qcow2"])).unwrap();
    assert_eq!(info["backing-filename"], root.to_str().unwrap());
    assert_eq!(info["backing-filename-format"], "raw");
    assert_eq!(info["virtual-size"], content.len());
    assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
}

#[test]
fn an_exported_raw_image_is_the_content() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    export(&scene, "a.leaf", "raw", "a.raw");
    assert!(std::fs::read(scene.path("a.raw")).unwrap() == content);
}

#[test]
fn map_and_qemu_img_map_of_the_overlay_agree_cluster_by_cluster() {
    let scene = Scene::new();
    // Whole clusters, so that copying up plays no part; the root ends in one.
    scene.leaf_with(
        "a.leaf",
        &[Op::Write(128, 128, 1), Op::Write(256, 256, 2), Op::Zero(640, 256), Op::Zero(2176, 128)],
    );
    export(&scene, "a.leaf", "qcow2", "a.qcow2");
    let ours = scene.json(&["map", "a.leaf", "--root", "root.raw", "--json"]);
    let theirs: serde_json::Value =
        serde_json::from_str(&scene.qemu_img(&["map", "--output=json", "a.qcow2"])).unwrap();
    let rows = |map: &serde_json::Value| -> Vec<(u64, u64, u64, bool, bool, bool)> {
        let row = |row: &serde_json::Value| {
            let number = |key: &str| row[key].as_u64().unwrap();
            let truth = |key: &str| row[key].as_bool().unwrap();
            (
                number("start"),
                number("length"),
                number("depth"),
                truth("present"),
                truth("zero"),
                truth("data"),
            )
        };
        map.as_array().unwrap().iter().map(row).collect()
    };
    assert_eq!(rows(&ours), rows(&theirs));
    assert!(rows(&ours).len() >= 8, "{ours}");
    // Rows of the root name the same offset in it.
    for (ours, theirs) in ours.as_array().unwrap().iter().zip(theirs.as_array().unwrap()) {
        if ours["depth"] == 1 {
            assert_eq!(ours["offset"], theirs["offset"]);
        }
    }
}

#[test]
fn an_overlay_that_qemu_made_comes_in_with_its_content() {
    let scene = Scene::new();
    let size = (LEAF_SECTORS * 512).to_string();
    for (name, cluster) in [("a", "4096"), ("b", "65536"), ("c", "2097152")] {
        let (image, leaf) = (format!("{name}.qcow2"), format!("{name}.leaf"));
        let options = format!("cluster_size={cluster}");
        let args = ["-q", "-f", "qcow2", "-o", &options, "-b", "root.raw", "-F", "raw"];
        scene.qemu_img(&[&["create"][..], &args, &[&image, &size]].concat());
        let mut io = std::process::Command::new("qemu-io");
        io.current_dir(scene.path(""))
            .args(["-f", "qcow2", "-c", "write -P 7 1k 3k", "-c", "write -P 9 300k 70k"])
            .args(["-c", "write -z 100k 128k", "-c", "write -P 3 2100k 65k", &image]);
        let io = output(&mut io);
        assert!(io.status.success(), "{io:?}");
        let said = scene.line(&["import", &image, &leaf, "--root", "root.raw"]);
        assert!(said.starts_with(&format!("imported {image} as {leaf}: ")), "{said}");
        let content = scene.content(&scene.path(&leaf), &scene.root());
        std::fs::write(scene.path("content.raw"), &content).unwrap();
        scene.qemu_img(&["compare", "-F", "raw", &image, "content.raw"]);
        // Copied-up sectors that the root has too are no changes.
        assert!(scene.held(&leaf) <= 2 * (3 + 70 + 128 + 65), "{said}");
    }
}

#[test]
fn an_image_without_a_backing_file_and_a_compressed_one_come_in_too() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    std::fs::write(scene.path("content.raw"), &content).unwrap();
    for (name, flags) in [("plain", &[][..]), ("packed", &["-c"])] {
        let (image, leaf) = (format!("{name}.qcow2"), format!("{name}.leaf"));
        let args = ["-q", "-f", "raw", "-O", "qcow2", "content.raw", &image];
        scene.qemu_img(&[&["convert"][..], flags, &args].concat());
        scene.line(&["import", &image, &leaf, "--root", "root.raw"]);
        assert!(scene.content(&scene.path(&leaf), &scene.root()) == content, "{name}");
        let same = ["diff", &leaf, "a.leaf", "--root", "root.raw", "--exit-code"];
        scene.say(&same);
    }
}

#[test]
fn an_exported_overlay_comes_back_as_the_same_leaf() {
    let scene = Scene::new();
    let content = scene.leaf("a.leaf");
    export(&scene, "a.leaf", "qcow2", "a.qcow2");
    scene.line(&["import", "a.qcow2", "b.leaf", "--root", "root.raw"]);
    assert!(scene.content(&scene.path("b.leaf"), &scene.root()) == content);
    scene.line(&["compact", "a.leaf", "--root", "root.raw"]);
    assert_eq!(scene.held("a.leaf"), scene.held("b.leaf"));
}

#[test]
fn an_overlay_of_another_root_is_refused() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    scene.other_root("other.raw");
    export(&scene, "a.leaf", "qcow2", "a.qcow2");
    let args = ["import", "a.qcow2", "b.leaf", "--root", "other.raw"];
    let refused = scene.refusal(&args, 1);
    assert!(refused.contains("is an overlay of ") && refused.contains("not the given root"));
    // The root moved: QEMU's own way to say so helps.
    std::fs::create_dir(scene.path("moved")).unwrap();
    std::fs::rename(scene.root(), scene.path("moved/root.raw")).unwrap();
    let args = ["import", "a.qcow2", "b.leaf", "--root", "moved/root.raw"];
    let refused = scene.refusal(&args, 1);
    assert!(refused.contains("qemu-img rebase -u -F raw -b ROOT a.qcow2"), "{refused}");
    scene.qemu_img(&["rebase", "-u", "-F", "raw", "-b", "moved/root.raw", "a.qcow2"]);
    scene.line(&args);
}

#[test]
fn what_an_image_says_of_itself_stays_on_one_line() {
    let scene = Scene::new();
    let args = ["-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "a\n\u{1b}[31mb"];
    scene.qemu_img(&[&["create"][..], &args, &["odd.qcow2", "4M"]].concat());
    let refused = scene.refusal(&["import", "odd.qcow2", "b.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("overlay of a") && !refused.contains('\u{1b}'), "{refused:?}");
}

#[test]
fn what_is_no_importable_image_is_refused_by_name() {
    let scene = Scene::new();
    let refuse = |image: &str| scene.refusal(&["import", image, "b.leaf", "--root", "root.raw"], 1);
    assert!(refuse("none.qcow2").contains("none.qcow2 can't be read"));
    assert!(refuse("root.raw").contains("is no qcow2 image"));
    assert!(refuse("run").contains("is no qcow2 image"));
    let writer = WaitingWriter::at(&scene.path("fifo"));
    assert!(refuse("fifo").contains("it is a FIFO"));
    // Nor is what an image names opened by a look.
    let options = ["-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "fifo"];
    scene.qemu_img(&[&["create"][..], &options, &["named.qcow2", "4M"]].concat());
    assert!(refuse("named.qcow2").contains("is a FIFO"));
    writer.check();
    std::os::unix::fs::symlink("/dev/full", scene.path("device")).unwrap();
    let device = Unopened::watch(&scene.path("device"));
    assert!(refuse("device").contains("it is a character device"));
    scene.qemu_img(&["rebase", "-u", "-F", "raw", "-b", "device", "named.qcow2"]);
    assert!(refuse("named.qcow2").contains("is a character device"));
    assert!(!device.was_opened());
    // Too small, on a qcow2 backing file, with data elsewhere, marked dirty.
    scene.qemu_img(&["create", "-q", "-f", "qcow2", "small.qcow2", "1M"]);
    assert!(refuse("small.qcow2").contains("qemu-img resize small.qcow2 2163200"));
    scene.qemu_img(&["create", "-q", "-f", "qcow2", "base.qcow2", "4M"]);
    scene.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.qcow2",
        "-F",
        "qcow2",
        "chain.qcow2",
    ]);
    assert!(refuse("chain.qcow2").contains("whose format is qcow2"));
    let data = ["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "data.qcow2", "4M"];
    scene.qemu_img(&data);
    assert!(refuse("data.qcow2").contains("external data file"));
    let dirty = std::fs::File::options().write(true).open(scene.path("base.qcow2")).unwrap();
    dirty.write_all_at(&[1], 79).unwrap();
    assert!(refuse("base.qcow2").contains("is marked as dirty"));
    // Cut off in the middle of its tables.
    std::fs::write(
        scene.path("cut.qcow2"),
        &std::fs::read(scene.path("base.qcow2")).unwrap()[..99],
    )
    .unwrap();
    assert!(refuse("cut.qcow2").contains("is no qcow2 image that can be read"));
}

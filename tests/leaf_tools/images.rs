//! What comes in of QEMU's images and what doesn't: encryption, features, backing files
//! by any name, images on block devices. Where a sentence says what to run, it is run.

use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::unopened::WaitingWriter;
use crate::scene::*;

const IMPORT: [&str; 5] = ["import", "o.qcow2", "b.leaf", "--root", "root.raw"];

#[track_caller]
fn shell(scene: &Scene, line: &str) {
    let mut command = Command::new("sh");
    let output = output(command.arg("-ec").arg(line).current_dir(scene.path("")));
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
}

/// The line that a sentence says to run.
#[track_caller]
fn line_of(sentence: &str) -> &str {
    let from = sentence.find("qemu-img ").unwrap_or_else(|| panic!("no line: {sentence}"));
    sentence[from..].trim_end()
}

/// An overlay of the root with some changes; options of `qemu-img create` before it.
fn overlay(scene: &Scene, options: &str) {
    let size = LEAF_SECTORS * 512;
    let create = format!("qemu-img create -q -f qcow2 {options} o.qcow2 {size}");
    shell(scene, &format!("rm -f o.qcow2; {create}"));
}

fn write_some(scene: &Scene, options: &str, image: &str) {
    let writes = "-c 'write -P 7 1k 3k' -c 'write -P 9 300k 70k' -c 'write -z 600k 128k'";
    shell(scene, &format!("qemu-io {options} {writes} {image} > /dev/null"));
}

/// Imports `image`, whose content QEMU says with these options.
#[track_caller]
fn comes_in(scene: &Scene, image: &str) {
    scene.line(&["import", image, "b.leaf", "--root", "root.raw"]);
    scene.qemu_img(&["convert", "-O", "raw", image, "flat.raw"]);
    let content = std::fs::read(scene.path("flat.raw")).unwrap();
    assert!(scene.content(&scene.path("b.leaf"), &scene.root()) == content, "{image}");
    std::fs::remove_file(scene.path("b.leaf")).unwrap();
}

/// Runs what the sentence says, and imports what that makes, which has the content of
/// `flat.raw`.
#[track_caller]
fn comes_in_after(scene: &Scene, sentence: &str) {
    let line = line_of(sentence).replace("PASSPHRASE-FILE", "key").replace("NEW.", "new.");
    shell(scene, &format!("rm -f new.qcow2; {line}"));
    let image = if line.contains("new.qcow2") { "new.qcow2" } else { "o.qcow2" };
    scene.line(&["import", image, "b.leaf", "--root", "root.raw"]);
    let content = std::fs::read(scene.path("flat.raw")).unwrap();
    assert!(scene.content(&scene.path("b.leaf"), &scene.root()) == content, "{line}");
    std::fs::remove_file(scene.path("b.leaf")).unwrap();
}

#[test]
fn an_encrypted_image_is_refused_and_the_line_decrypts_it() {
    let scene = Scene::new();
    std::fs::write(scene.path("key"), "secret").unwrap();
    let secret = "--object secret,id=s,file=key";
    for (format, name, backing) in [("luks", "LUKS", "-b root.raw -F raw"), ("aes", "AES", "")] {
        let how = format!("-o encrypt.format={format},encrypt.key-secret=s");
        let time = if format == "luks" { ",encrypt.iter-time=10" } else { "" };
        overlay(&scene, &format!("{secret} {how}{time} {backing}"));
        let image = "driver=qcow2,encrypt.key-secret=s,file.filename=o.qcow2";
        write_some(&scene, &format!("{secret} --image-opts"), image);
        let flat = format!("qemu-img convert {secret} --image-opts {image} -O raw flat.raw");
        shell(&scene, &flat);
        let refused = scene.refusal(&IMPORT, 1);
        assert!(refused.contains(&format!("o.qcow2 is encrypted ({name})")), "{refused}");
        comes_in_after(&scene, &refused);
    }
    // A name that an option has to quote, and a method that nobody knows.
    std::fs::rename(scene.path("o.qcow2"), scene.path("a, 'b'.qcow2")).unwrap();
    let refused = scene.refusal(&["import", "a, 'b'.qcow2", "b.leaf", "--root", "root.raw"], 1);
    comes_in_after(&scene, &refused);
    overlay(&scene, "");
    let file = std::fs::File::options().write(true).open(scene.path("o.qcow2")).unwrap();
    file.write_all_at(&[0, 0, 0, 3], 32).unwrap();
    assert!(scene.refusal(&IMPORT, 1).contains("is encrypted (by an unknown method)"));
}

#[test]
fn encryption_below_an_image_is_named_too() {
    let scene = Scene::new();
    std::fs::write(scene.path("key"), "secret").unwrap();
    let secret = "--object secret,id=s,file=key";
    // The old method: opening such an image takes no time.
    let aes = "-o encrypt.format=aes,encrypt.key-secret=s";
    overlay(&scene, &format!("{secret} {aes} -b root.raw -F raw"));
    let image = "driver=qcow2,encrypt.key-secret=s,file.filename=o.qcow2";
    write_some(&scene, &format!("{secret} --image-opts"), image);
    shell(&scene, &format!("qemu-img convert {secret} --image-opts {image} -O raw flat.raw"));
    shell(&scene, "mv o.qcow2 base.qcow2");
    for below in ["base.qcow2", "mid.qcow2"] {
        for declared in [true, false] {
            overlay(&scene, &format!("-u -b {below} -F qcow2"));
            if !declared {
                forget_backing_format(&scene.path("o.qcow2"));
            }
            let refused = scene.refusal(&IMPORT, 1);
            assert!(refused.contains("base.qcow2 is encrypted (AES)"), "{refused}");
            comes_in_after(&scene, &refused);
        }
        shell(&scene, "cp o.qcow2 mid.qcow2");
    }
}

#[test]
fn a_luks_container_is_refused_as_encrypted_by_itself_and_below_an_image() {
    let scene = Scene::new();
    let mut container = vec![0; (LEAF_SECTORS * 512) as usize];
    container[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    std::fs::write(scene.path("x.luks"), container).unwrap();
    let refused = scene.refusal(&["import", "x.luks", "b.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("x.luks is encrypted (LUKS)"), "{refused}");
    assert!(refused.contains("driver=luks,key-secret=key,file.filename=x.luks "), "{refused}");
    overlay(&scene, "-u -b x.luks -F luks");
    let refused = scene.refusal(&IMPORT, 1);
    assert!(refused.contains("x.luks is encrypted (LUKS)"), "{refused}");
    let options = "driver=qcow2,backing.key-secret=key,file.filename=o.qcow2 ";
    assert!(refused.contains(options), "{refused}");
}

/// Makes the header's extension with the format one that is unknown.
fn forget_backing_format(image: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let mut head = [0; 1024];
    file.read_exact_at(&mut head, 0).unwrap();
    let at = head.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    file.write_all_at(&[0x11; 4], at as u64).unwrap();
}

#[test]
fn features_that_are_not_read_are_named_and_the_line_converts_them() {
    for (options, said) in [
        ("-o compression_type=zstd", "has zstd compression"),
        ("-o extended_l2=on", "has extended L2 entries"),
        ("-o data_file=data.raw", "keeps its data in another file"),
        ("-o data_file=data.raw,data_file_raw=on", "keeps its data in another file"),
    ] {
        let scene = Scene::new();
        let backing = if options.contains("data_file_raw") { "" } else { "-b root.raw -F raw" };
        overlay(&scene, &format!("{options} {backing}"));
        write_some(&scene, "-f qcow2", "o.qcow2");
        scene.qemu_img(&["convert", "-O", "raw", "o.qcow2", "flat.raw"]);
        let refused = scene.refusal(&IMPORT, 1);
        assert!(refused.contains(&format!("o.qcow2 {said}")), "{refused}");
        comes_in_after(&scene, &refused);
    }
}

#[test]
fn an_image_that_is_marked_or_has_unknown_features_is_refused() {
    let scene = Scene::new();
    overlay(&scene, "-b root.raw -F raw");
    write_some(&scene, "-f qcow2", "o.qcow2");
    scene.qemu_img(&["convert", "-O", "raw", "o.qcow2", "flat.raw"]);
    let whole = std::fs::read(scene.path("o.qcow2")).unwrap();
    for (bits, mark) in [(1, "dirty"), (2, "corrupt"), (3, "corrupt")] {
        let mut bytes = whole.clone();
        bytes[79] = bits;
        std::fs::write(scene.path("o.qcow2"), bytes).unwrap();
        let refused = scene.refusal(&IMPORT, 1);
        assert!(refused.contains(&format!("o.qcow2 is marked as {mark}; repair it")), "{refused}");
        comes_in_after(&scene, &refused);
    }
    let mut bytes = whole;
    bytes[72] = 0x80;
    std::fs::write(scene.path("o.qcow2"), bytes).unwrap();
    let refused = scene.refusal(&IMPORT, 1);
    assert!(refused.contains("unknown here (bits 0x8000000000000000)"), "{refused}");
}

#[test]
fn an_external_data_file_is_never_opened() {
    let scene = Scene::new();
    overlay(&scene, "-o data_file=data.raw");
    std::fs::remove_file(scene.path("data.raw")).unwrap();
    let writer = WaitingWriter::at(&scene.path("data.raw"));
    assert!(scene.refusal(&IMPORT, 1).contains("which import doesn't open"));
    writer.check();
}

#[test]
fn images_of_other_formats_are_named_and_the_line_converts_them() {
    let scene = Scene::new();
    std::fs::write(scene.path("flat.raw"), scene.leaf("a.leaf")).unwrap();
    for (format, said) in [
        ("vmdk", "is a VMDK image"),
        ("vdi", "is a VDI image"),
        ("qcow", "is a qcow image (version 1)"),
        ("qed", "is a QED image"),
        ("raw", "is no qcow2 image; make one"),
    ] {
        shell(&scene, &format!("qemu-img convert -f raw -O {format} flat.raw o.img"));
        let refused = scene.refusal(&["import", "o.img", "b.leaf", "--root", "root.raw"], 1);
        assert!(refused.contains(&format!("o.img {said}")), "{refused}");
        comes_in_after(&scene, &refused);
    }
    shell(&scene, "gzip -k flat.raw");
    let refused = scene.refusal(&["import", "flat.raw.gz", "b.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("gunzip < flat.raw.gz > NEW.raw"), "{refused}");
}

#[test]
fn a_backing_file_is_found_by_each_name_that_qemu_takes() {
    let scene = Scene::new();
    overlay(&scene, "-b root.raw -F raw");
    write_some(&scene, "-f qcow2", "o.qcow2");
    let root = scene.root();
    let root = root.to_str().unwrap();
    symlink("root.raw", scene.path("a:b.raw")).unwrap();
    let file = |path: &str| format!(r#"{{"driver":"file","filename":"{path}"}}"#);
    for name in [
        root.to_owned(),
        "./a:b.raw".into(),
        format!("file:{root}"),
        // From the working directory, which is the image's here.
        "file:root.raw".into(),
        format!(r#"json:{{"driver":"raw","file":{}}}"#, file(root)),
        format!(r#"json:{{"driver":"raw","file":{}}}"#, file("root.raw")),
        format!(r#"json:{{"driver":"raw","file.driver":"file","file.filename":"{root}"}}"#),
        format!(r#"json:{{"file":{{"filename":"{root}"}}}}"#),
        format!(r#"json:{{"driver":"raw","file":{{"driver":"raw","file":{}}}}}"#, file(root)),
    ] {
        for format in ["raw", "file"] {
            if format == "file" && name.starts_with("json") {
                continue;
            }
            scene.qemu_img(&["rebase", "-u", "-F", format, "-b", &name, "o.qcow2"]);
            comes_in(&scene, "o.qcow2");
        }
    }
    scene.qemu_img(&["rebase", "-u", "-F", "raw", "-b", "root.raw", "o.qcow2"]);
    forget_backing_format(&scene.path("o.qcow2"));
    comes_in(&scene, "o.qcow2");
}

#[test]
fn a_backing_file_that_is_no_file_here_is_refused_for_what_it_is() {
    let scene = Scene::new();
    overlay(&scene, "-b root.raw -F raw");
    write_some(&scene, "-f qcow2", "o.qcow2");
    scene.qemu_img(&["convert", "-O", "raw", "o.qcow2", "flat.raw"]);
    for (name, driver) in [
        ("nbd://127.0.0.1:1/x", "nbd"),
        ("https://127.0.0.1/root.raw", "https"),
        ("rbd:pool/image", "rbd"),
        (r#"json:{"driver":"raw","file":{"driver":"nbd","host":"127.0.0.1","port":"1"}}"#, "nbd"),
    ] {
        scene.qemu_img(&["rebase", "-u", "-F", "raw", "-b", name, "o.qcow2"]);
        let refused = scene.refusal(&IMPORT, 1);
        let said = format!("o.qcow2 is an overlay of {name}, which QEMU reaches by {driver}");
        assert!(refused.contains(&said), "{refused}");
        let line = line_of(&refused).split(')').next().unwrap().replace("COPY", "root.raw");
        shell(&scene, &line);
        comes_in(&scene, "o.qcow2");
    }
    let part =
        r#"json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"root.raw"}}"#;
    for (name, said) in [(part, "a part of a file"), ("json:{}", "options can't be understood")] {
        scene.qemu_img(&["rebase", "-u", "-F", "raw", "-b", name, "o.qcow2"]);
        assert!(scene.refusal(&IMPORT, 1).contains(said), "{name}");
    }
}

#[test]
fn an_overlay_of_an_overlay_comes_in_after_the_line_has_put_it_onto_the_root() {
    for (format, below) in [("qcow2", "mid.qcow2"), ("", "mid.qcow2"), ("vmdk", "mid.vmdk")] {
        let scene = Scene::new();
        overlay(&scene, "-b root.raw -F raw");
        write_some(&scene, "-f qcow2", "o.qcow2");
        if format == "vmdk" {
            scene.qemu_img(&["convert", "-O", "vmdk", "o.qcow2", "mid.vmdk"]);
        } else {
            shell(&scene, "mv o.qcow2 mid.qcow2");
        }
        let declared = if format.is_empty() { "qcow2" } else { format };
        overlay(&scene, &format!("-b {below} -F {declared}"));
        shell(&scene, "qemu-io -f qcow2 -c 'write -P 4 1500k 5k' o.qcow2 > /dev/null");
        scene.qemu_img(&["convert", "-O", "raw", "o.qcow2", "flat.raw"]);
        if format.is_empty() {
            forget_backing_format(&scene.path("o.qcow2"));
        }
        let refused = scene.refusal(&IMPORT, 1);
        let said = format!("is an overlay of {below}, whose format is {declared}");
        assert!(refused.contains(&said), "{refused}");
        comes_in_after(&scene, &refused);
    }
    // One that is its own backing file ends, too.
    let scene = Scene::new();
    overlay(&scene, "");
    scene.qemu_img(&["rebase", "-u", "-F", "qcow2", "-b", "o.qcow2", "o.qcow2"]);
    assert!(scene.refusal(&IMPORT, 1).contains("whose format is qcow2"));
}

/// A loop device over a file.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Self {
        let said = output(Command::new("losetup").args(["-f", "--show"]).arg(file));
        let error = text(&said.stderr);
        assert!(said.status.success(), "this test needs loop devices, and so root: {error}");
        Self(PathBuf::from(text(&said.stdout).trim()))
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn images_and_roots_on_block_devices_come_in() {
    let scene = Scene::new();
    let size = LEAF_SECTORS * 512;
    std::fs::File::create(scene.path("disk")).unwrap().set_len(8 << 20).unwrap();
    let (image, root) = (LoopDevice::over(&scene.path("disk")), LoopDevice::over(&scene.root()));
    let create = |options: &str| {
        shell(&scene, &format!("qemu-img create -q -f qcow2 {options} {} {size}", image.name()));
        write_some(&scene, "-f qcow2", image.name());
    };
    // The image on a device, its backing file by each name and format of a device.
    for backing in [
        format!("-F raw -b {}", scene.root().display()),
        format!("-F raw -b {}", root.name()),
        format!("-F host_device -b {}", root.name()),
        format!("-F raw -b host_device:{}", root.name()),
        format!(r#"-F raw -b 'json:{{"driver":"host_device","filename":"{}"}}'"#, root.name()),
    ] {
        // As a format, QEMU's driver wants no other one above it.
        let backing = match backing.contains("json") {
            true => backing.replace("-F raw", "-F host_device"),
            false => backing,
        };
        create(&backing);
        comes_in(&scene, image.name());
        scene.line(&["import", image.name(), "c.leaf", "--root", root.name()]);
        let content = std::fs::read(scene.path("flat.raw")).unwrap();
        assert!(scene.content(&scene.path("c.leaf"), &scene.root()) == content, "{backing}");
        std::fs::remove_file(scene.path("c.leaf")).unwrap();
    }
    // A device that is too small for what is on it.
    create(&format!("-F raw -b {}", scene.root().display()));
    shell(&scene, "head -c 400k disk > small");
    let small = LoopDevice::over(&scene.path("small"));
    let refused = scene.refusal(&["import", small.name(), "c.leaf", "--root", "root.raw"], 1);
    assert!(refused.contains("is cut short") && refused.contains("which has 409600"), "{refused}");
}

#[test]
fn an_overlay_names_its_backing_file_as_the_person_did() {
    let scene = Scene::new();
    scene.leaf("a.leaf");
    let device = LoopDevice::over(&scene.root());
    symlink(&device.0, scene.path("golden")).unwrap();
    std::fs::create_dir(scene.path("vg")).unwrap();
    symlink("../golden", scene.path("vg/root")).unwrap();
    let absolute = |name: &str| scene.path(name).to_str().unwrap().to_owned();
    for (given, named) in [
        ("golden", absolute("golden")),
        ("./vg/root", absolute("vg/root")),
        ("vg/../root.raw", absolute("vg/../root.raw")),
        (&absolute("vg/root"), absolute("vg/root")),
        (device.name(), device.name().to_owned()),
    ] {
        let output = ["--format", "qcow2", "--output", "x.qcow2"];
        let said = scene.line(&[&["export", "a.leaf", "--root", given][..], &output].concat());
        assert!(said.ends_with(&format!(", backing file {named}\n")), "{said}");
        let info = scene.qemu_img(&["info", "--output=json", "x.qcow2"]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename"], named);
        comes_in(&scene, "x.qcow2");
        std::fs::remove_file(scene.path("x.qcow2")).unwrap();
    }
}

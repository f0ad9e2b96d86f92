//! A directory with a root and leaves on it, and what a guest would see.
//!
//! The content is read by the library's leaf and by plain reads of the root,
//! not by the tools' own code.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use leafblk::leaf::{self, Leaf, OpenOptions};
use leafblk::root::Root;
use leafblk::units::{Sector, SectorRange};

pub(crate) const SECTOR: usize = 512;
/// Sectors of the scene's root: an odd number, so that clusters end in it.
pub(crate) const ROOT_SECTORS: u64 = 4096 + 129;
/// Sectors of a leaf made by [`Scene::leaf`].
pub(crate) const LEAF_SECTORS: u64 = ROOT_SECTORS + 1000;

pub(crate) fn range(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), count).unwrap()
}

/// Bytes of no pattern.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state ^ (state >> 29)).to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(len);
    bytes
}

/// A root with data, zeros that are written, and a hole.
pub(crate) fn root_content(seed: u64) -> Vec<u8> {
    let mut bytes = noise(seed, ROOT_SECTORS as usize * SECTOR);
    bytes[300 * SECTOR..340 * SECTOR].fill(0);
    bytes[2048 * SECTOR..3072 * SECTOR].fill(0);
    bytes
}

/// Writes the image, zeros as holes.
pub(crate) fn write_sparse(path: &Path, content: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (i, block) in content.chunks(65536).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, i as u64 * 65536).unwrap();
        }
    }
}

/// Tests run in threads, and a process that one of them is about to start has
/// for a moment every descriptor of all the others, with the locks on leaves. So
/// nothing is started while a leaf is open here.
static OPEN_LEAVES: RwLock<()> = RwLock::new(());

/// To be held while a leaf is open in this process.
pub(crate) fn leaves_are_open() -> RwLockReadGuard<'static, ()> {
    OPEN_LEAVES.read().unwrap_or_else(PoisonError::into_inner)
}

/// To be held while a process is started.
pub(crate) fn no_leaf_is_open() -> RwLockWriteGuard<'static, ()> {
    OPEN_LEAVES.write().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process that gets none of our leaves.
pub(crate) fn spawn(command: &mut Command) -> Child {
    let _none = no_leaf_is_open();
    command.spawn().unwrap()
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(command).wait_with_output().unwrap()
}

/// A leaf that is open in this process.
pub(crate) struct OpenLeaf {
    leaf: Leaf,
    _open: RwLockReadGuard<'static, ()>,
}

impl std::ops::Deref for OpenLeaf {
    type Target = Leaf;

    fn deref(&self) -> &Leaf {
        &self.leaf
    }
}

/// One change of a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Start, sectors, seed.
    Write(u64, u64, u64),
    Zero(u64, u64),
    /// The root's own content.
    Same(u64, u64),
}

pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        write_sparse(&scene.root(), &root_content(1));
        std::fs::create_dir(scene.path("run")).unwrap();
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root.raw")
    }

    /// Another root, of other content in the second half.
    pub(crate) fn other_root(&self, name: &str) -> Vec<u8> {
        let mut content = root_content(1);
        let half = content.len() / 2 / SECTOR * SECTOR;
        let other = root_content(2);
        content[half..].copy_from_slice(&other[half..]);
        write_sparse(&self.path(name), &content);
        content
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// An empty leaf of [`LEAF_SECTORS`].
    pub(crate) fn empty_leaf(&self, name: &str) -> PathBuf {
        let root = Root::open_buffered("root", &self.root()).unwrap();
        let path = self.path(name);
        leaf::create(&path, LEAF_SECTORS * 512, root.identity()).unwrap();
        path
    }

    /// The leaf, open for writing as a daemon opens it.
    pub(crate) fn open(&self, name: &str) -> OpenLeaf {
        let open = leaves_are_open();
        let root = Root::open_buffered("root", &self.root()).unwrap();
        let live_map = Some(self.path("run").join(format!("{name}.map")));
        let options = OpenOptions { live_map, read_only: false };
        let leaf = Leaf::open(&self.path(name), root.identity(), &options).unwrap();
        OpenLeaf { leaf, _open: open }
    }

    /// A leaf with these changes; what a guest sees of it.
    pub(crate) fn leaf_with(&self, name: &str, ops: &[Op]) -> Vec<u8> {
        self.empty_leaf(name);
        let leaf = self.open(name);
        let root = std::fs::read(self.root()).unwrap();
        let content = apply(&leaf, &root, ops);
        leaf.close().unwrap();
        content
    }

    /// A leaf with a bit of everything, closed.
    pub(crate) fn leaf(&self, name: &str) -> Vec<u8> {
        self.leaf_with(name, &MIXED)
    }

    /// What a guest would see of the leaf on the root at `root`.
    pub(crate) fn content(&self, leaf: &Path, root: &Path) -> Vec<u8> {
        let identity = Root::open_buffered("root", root).unwrap().identity().clone();
        let options = OpenOptions { live_map: None, read_only: true };
        let _open = leaves_are_open();
        let leaf = Leaf::open(leaf, &identity, &options).unwrap();
        let mut content = std::fs::read(root).unwrap();
        content.resize(leaf.sectors() as usize * SECTOR, 0);
        let mut at = 0;
        while at < leaf.sectors() {
            let (held, count) = leaf.next_run(range(at, leaf.sectors() - at));
            if held {
                let bytes = &mut content[at as usize * SECTOR..(at + count) as usize * SECTOR];
                leaf.read_bytes(Sector(at), bytes).unwrap();
            }
            at += count;
        }
        content
    }

    /// Has another process lock the leaf, with `-x` for itself alone or with
    /// `-s`, until the value is dropped.
    pub(crate) fn in_use(&self, leaf: &str, how: &str) -> InUse {
        let mut command = Command::new("flock");
        command.current_dir(self.dir.path()).args([how, leaf, "-c", "echo locked; exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(&mut command);
        let mut said = [0; 7];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        InUse(child)
    }

    /// Sectors that the leaf holds.
    pub(crate) fn held(&self, leaf: &str) -> u64 {
        let info = self.json(&["info", leaf, "--json"]);
        info["changed_sectors"].as_u64().unwrap()
    }

    /// `leafblk leaf ARGS` here, with this scene's runtime directory where the
    /// command knows one.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leafblk"));
        command.current_dir(self.dir.path()).env_clear().arg("leaf").args(args);
        if !matches!(args[0], "create" | "import") && !args.contains(&"--runtime-dir") {
            command.args(["--runtime-dir", "run"]);
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        output(&mut self.command(args))
    }

    /// Runs a command that succeeds, quietly but for what it says.
    #[track_caller]
    pub(crate) fn say(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        text(&output.stdout)
    }

    /// Runs a command that changes something and says so in one line.
    #[track_caller]
    pub(crate) fn line(&self, args: &[&str]) -> String {
        let said = self.say(args);
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        said
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.say(args)).unwrap()
    }

    /// Runs a command that fails with one sentence and leaves everything as it
    /// was; the sentence.
    #[track_caller]
    pub(crate) fn refusal(&self, args: &[&str], status: i32) -> String {
        let before = self.names();
        let output = self.run(args);
        let sentence = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {sentence}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
        assert!(sentence.starts_with("leafblk: "), "{args:?}: {sentence}");
        assert_eq!(sentence.lines().count(), 1, "{args:?}: {sentence}");
        assert_eq!(self.names(), before, "{args:?} left something behind");
        sentence
    }

    /// Runs qemu-img (of qemu-utils) here; what it says.
    #[track_caller]
    pub(crate) fn qemu_img(&self, args: &[&str]) -> String {
        let output = output(Command::new("qemu-img").current_dir(self.dir.path()).args(args));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "qemu-img {args:?}: {said}");
        said
    }
}

/// A leaf that another process has locked.
pub(crate) struct InUse(Child);

impl InUse {
    pub(crate) fn process(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Partial and whole clusters, zeros over data and over holes, the root's end,
/// content that the root has too.
pub(crate) const MIXED: [Op; 9] = [
    Op::Write(3, 2, 11),
    Op::Write(128, 256, 12),
    Op::Zero(512, 128),
    Op::Zero(700, 3),
    Op::Same(900, 40),
    Op::Zero(2100, 50),
    Op::Write(2500, 1, 13),
    Op::Write(ROOT_SECTORS - 5, 30, 14),
    Op::Zero(LEAF_SECTORS - 60, 50),
];

/// Makes the changes, to the leaf and to what the guest sees.
pub(crate) fn apply(leaf: &Leaf, root: &[u8], ops: &[Op]) -> Vec<u8> {
    let mut content = root.to_vec();
    content.resize(leaf.sectors() as usize * SECTOR, 0);
    for op in ops {
        let (start, count, bytes) = match *op {
            Op::Write(start, count, seed) => {
                (start, count, Some(noise(seed, count as usize * SECTOR)))
            }
            Op::Zero(start, count) => (start, count, None),
            Op::Same(start, count) => {
                let mut bytes = vec![0; count as usize * SECTOR];
                let from = (start as usize * SECTOR).min(root.len());
                let len = bytes.len().min(root.len() - from);
                bytes[..len].copy_from_slice(&root[from..from + len]);
                (start, count, Some(bytes))
            }
        };
        let place = &mut content[start as usize * SECTOR..(start + count) as usize * SECTOR];
        match bytes {
            Some(bytes) => {
                leaf.write_bytes(range(start, count), &bytes).unwrap();
                place.copy_from_slice(&bytes);
            }
            None => {
                leaf.write_zeroes(range(start, count)).unwrap();
                place.fill(0);
            }
        }
    }
    content
}

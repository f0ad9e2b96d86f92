//! Random leaves: out to QEMU and back, onto another root and back, compacted,
//! committed; the guest sees the same, and each leaf holds what it must.

use leafblk::config::{Environment, RootEntry};
use leafblk::tools::{self, LeafPlace, RuntimeDir};
use proptest::prelude::*;

use crate::scene::*;

fn any_op() -> impl Strategy<Value = Op> {
    let place = (0..LEAF_SECTORS, prop_oneof![1..4u64, 1..300u64]);
    (place, 0..5u8, any::<u64>()).prop_map(|((start, count), kind, seed)| {
        let count = count.min(LEAF_SECTORS - start);
        match kind {
            0 | 1 => Op::Write(start, count, seed),
            2 => Op::Zero(start, count),
            3 => Op::Same(start, count),
            // Where clusters are whole.
            _ => Op::Zero(
                start / 128 * 128,
                (count.next_multiple_of(128)).min(LEAF_SECTORS - start / 128 * 128),
            ),
        }
    })
}

/// The library's tools on a scene, as the command calls them.
struct Tools<'a>(&'a Scene);

impl Tools<'_> {
    fn place(&self, name: &str) -> LeafPlace {
        let runtime_dir =
            RuntimeDir { given: Some(self.0.path("run")), env: Environment::current().unwrap() };
        LeafPlace { path: self.0.path(name), runtime_dir, flushed_only: false, vm_of: |_, _| None }
    }

    fn root(&self, name: &str) -> RootEntry {
        RootEntry { name: "root".into(), path: self.0.path(name), format: None }
    }

    fn differs(&self, a: &str, b: &str, roots: &[&str]) -> u64 {
        let what = tools::diff::Diff {
            a: self.place(a),
            b: Some(self.place(b)),
            roots: roots.iter().map(|root| self.root(root)).collect(),
            json: false,
        };
        let _open = leaves_are_open();
        tools::diff::run(&what, &mut Vec::new()).unwrap().sectors
    }
}

/// Runs a tool in this process.
fn open(tool: &dyn Fn() -> Result<String, tools::ToolError>) {
    let _open = leaves_are_open();
    tool().unwrap();
}

fn differing(a: &[u8], b: &[u8]) -> u64 {
    let pairs = a.chunks(SECTOR).zip(b.chunks(SECTOR));
    pairs.filter(|(a, b)| a != b).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_leaf_goes_out_and_comes_back_the_same(
        ops in proptest::collection::vec(any_op(), 0..40),
        more in proptest::collection::vec(any_op(), 0..10),
    ) {
        let scene = Scene::new();
        let tools = Tools(&scene);
        let content = scene.leaf_with("a.leaf", &ops);
        let path = |name: &str| scene.path(name);
        let root = || scene.root();
        let guest = |leaf: &str, root: &str| scene.content(&path(leaf), &path(root));
        prop_assert!(guest("a.leaf", "root.raw") == content, "the scene's own model");

        // To QEMU and back.
        let (leaf, image) = (tools.place("a.leaf"), path("a.qcow2"));
        open(&|| tools::export::run(&tools::export::Export {
            leaf: leaf.clone(),
            root: tools.root("root.raw"),
            format: tools::export::Format::Qcow2,
            output: image.clone(),
        }));
        scene.qemu_img(&["check", "-q", "a.qcow2"]);
        open(&|| tools::import::run(&tools::import::Import {
            image: image.clone(),
            path: path("b.leaf"),
            root: tools.root("root.raw"),
        }));
        prop_assert_eq!(tools.differs("a.leaf", "b.leaf", &["root.raw"]), 0);
        prop_assert!(guest("b.leaf", "root.raw") == content);

        // Compacted: exactly what differs from the root remains.
        let compact = tools::compact::Compact {
            leaf: tools.place("a.leaf"),
            root: tools.root("root.raw"),
        };
        open(&|| tools::compact::run(&compact));
        prop_assert!(guest("a.leaf", "root.raw") == content);
        let mut below = std::fs::read(root()).unwrap();
        below.resize(content.len(), 0);
        prop_assert_eq!(scene.held("a.leaf"), differing(&content, &below));

        // On another root, and what was committed as one.
        let mut other = scene.other_root("other.raw");
        let rebase = |from: &str, to: &str| open(&|| tools::rebase::run(&tools::rebase::Rebase {
            leaf: tools.place("b.leaf"),
            from: tools.root(from),
            to: tools.root(to),
        }));
        rebase("root.raw", "other.raw");
        prop_assert!(guest("b.leaf", "other.raw") == content);
        other.resize(content.len(), 0);
        prop_assert_eq!(scene.held("b.leaf"), differing(&content, &other));
        open(&|| tools::commit::run(&tools::commit::Commit {
            leaf: tools.place("b.leaf"),
            root: tools.root("other.raw"),
            output: path("c.raw"),
        }));
        prop_assert!(std::fs::read(path("c.raw")).unwrap() == content);
        rebase("other.raw", "c.raw");
        prop_assert_eq!(scene.held("b.leaf"), 0);
        prop_assert_eq!(tools.differs("a.leaf", "b.leaf", &["root.raw", "c.raw"]), 0);

        // Two leaves that differ are told to, to the sector.
        let second = scene.leaf_with("d.leaf", &more);
        let differs = tools.differs("d.leaf", "a.leaf", &["root.raw"]);
        prop_assert_eq!(differs, differing(&second, &content));
    }
}

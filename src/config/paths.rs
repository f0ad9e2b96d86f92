//! Which file is used for what: no path may serve two VMs.
//!
//! Looks at the file system only to tell whether two paths are one file.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::{RootConfig, UsageError, VmConfig};

/// One use of one path.
#[derive(Clone, Debug)]
pub struct PathClaim {
    path: PathBuf,
    identity: PathBuf,
    /// `the leaf of VM web1`.
    by: String,
    /// Others of the kind may use the same file.
    shared: bool,
}

impl PathClaim {
    fn new(path: &Path, by: String, shared: bool) -> Self {
        Self { path: path.into(), identity: identity(path), by, shared }
    }

    /// A root's image; roots may share one.
    pub fn of_root(root: &RootConfig) -> Self {
        Self::new(&root.path, format!("root {}", root.name), true)
    }

    /// A VM's leaf and socket.
    pub fn of_vm(vm: &VmConfig) -> [Self; 2] {
        [
            Self::new(&vm.leaf, format!("the leaf of VM {}", vm.name), false),
            Self::new(&vm.socket, format!("the socket of VM {}", vm.name), false),
        ]
    }

    /// The control socket.
    pub fn of_control(socket: &Path) -> Self {
        Self::new(socket, "the control socket".into(), false)
    }
}

/// The paths that are in use, each with what for.
#[derive(Debug, Default)]
pub struct PathUses(HashMap<PathBuf, Vec<PathClaim>>);

impl PathUses {
    /// Takes a path.
    ///
    /// # Errors
    /// [`UsageError::PathShared`] if it is taken; nothing has changed then.
    pub fn claim(&mut self, claim: &PathClaim) -> Result<(), UsageError> {
        let uses = self.0.entry(claim.identity.clone()).or_default();
        match uses.iter().find(|used| !(used.shared && claim.shared)) {
            Some(used) => Err(UsageError::PathShared {
                path: claim.path.clone(),
                first: used.by.clone(),
                second: claim.by.clone(),
            }),
            None => {
                uses.push(claim.clone());
                Ok(())
            }
        }
    }

    /// Takes all of `claims`, or none.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_all(&mut self, claims: &[PathClaim]) -> Result<(), UsageError> {
        for (taken, claim) in claims.iter().enumerate() {
            if let Err(error) = self.claim(claim) {
                self.release_all(&claims[..taken]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives back what was claimed.
    pub fn release_all(&mut self, claims: &[PathClaim]) {
        for claim in claims {
            if let Some(uses) = self.0.get_mut(&claim.identity) {
                uses.retain(|used| used.by != claim.by);
                if uses.is_empty() {
                    self.0.remove(&claim.identity);
                }
            }
        }
    }
}

/// The same for every spelling of one file, as far as the file system tells.
fn identity(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => without_dot_dot(path),
    }
}

/// Takes `..` at face value: right where nothing exists yet.
fn without_dot_dot(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(path: &str, by: &str, shared: bool) -> PathClaim {
        PathClaim::new(Path::new(path), by.into(), shared)
    }

    #[test]
    fn a_path_is_free_again_after_its_release() {
        let mut uses = PathUses::default();
        let first = [claim("/nowhere/a", "one", false), claim("/nowhere/b", "two", false)];
        uses.claim_all(&first).unwrap();
        let second = [claim("/nowhere/c", "three", false), claim("/nowhere/x/../b", "four", false)];
        assert!(uses.claim_all(&second).unwrap_err().to_string().contains("both two and four"));
        // Nothing of the refused claim stays.
        uses.claim(&claim("/nowhere/c", "five", false)).unwrap();
        uses.release_all(&first);
        uses.claim(&second[1]).unwrap();
    }

    #[test]
    fn roots_share_an_image_but_not_with_a_leaf() {
        let mut uses = PathUses::default();
        uses.claim(&claim("/nowhere/a", "root a", true)).unwrap();
        uses.claim(&claim("/nowhere/a", "root b", true)).unwrap();
        assert!(uses.claim(&claim("/nowhere/a", "the leaf of VM c", false)).is_err());
        uses.release_all(&[claim("/nowhere/a", "root a", true)]);
        assert!(uses.claim(&claim("/nowhere/a", "the leaf of VM c", false)).is_err());
    }
}

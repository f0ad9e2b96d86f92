//! What came of an attempt to go on with a part.

use std::fmt;
use std::io;

/// How it stands.
#[must_use]
#[derive(Debug)]
pub(super) enum Step {
    /// Its data is where the guest wants it; what that cost.
    Done(u64),
    /// It waits for a read, its own or another's; what that cost.
    Waits(u64),
    /// There is no room for it now.
    NoRoom,
    /// Its data can't be had.
    Failed(Failure),
}

/// Why a part's data can't be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// The root's disk fails.
    Root(io::Error),
    /// The root's file is shorter than it was: somebody has cut it.
    RootEndsEarly,
    /// The leaf's disk fails.
    Leaf(io::Error),
    /// The leaf's file is shorter than its data: somebody has cut it.
    LeafEndsEarly,
    /// A mistake in leafblk.
    Lost(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(error) => write!(f, "can't be read: {error}"),
            Self::Leaf(error) => write!(f, "its leaf can't be read: {error}"),
            Self::RootEndsEarly => f.write_str("can't be read: it ends early"),
            Self::LeafEndsEarly => f.write_str("its leaf can't be read: it ends early"),
            Self::Lost(what) => f.write_str(what),
        }
    }
}

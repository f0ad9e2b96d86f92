//! Why a change of what is served was refused or failed.

use std::io::{self, ErrorKind};

use super::leaf_choice::LeafProblem;
use super::planned_vm::Unfit;
use crate::config::UsageError;
use crate::config::name::NameOf;
use crate::config::nearest;
use crate::config::size::format_size;
use crate::error::Error;
use crate::leaf::LeafError;

/// A change that did not happen, unless its sentence says otherwise. Sorted by
/// what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum HostError {
    /// The request breaks a rule of the configuration.
    #[error(transparent)]
    Invalid(#[from] UsageError),
    #[error("there is no {of} {name}; list them to see which there are{hint}")]
    NoSuch { of: NameOf, name: String, hint: String },
    #[error("there is a {of} {name} already; choose another name, or take that one away first")]
    Exists { of: NameOf, name: String },
    #[error(
        "{of} {name} is in the configuration but not served; run leafblk reload to have it \
         again"
    )]
    OfConfiguration { of: NameOf, name: String },
    #[error("{of} {name} is being {doing} at this moment; try again when that is done")]
    Busy { of: NameOf, name: String, doing: &'static str },
    #[error("{of} {name} could not be attached ({reason}); mend that and reload, or take it away")]
    NotServed { of: NameOf, name: String, reason: String },
    #[error(
        "VM {name} has a client connected; shut the guest down first, or use force to cut it off"
    )]
    Connected { name: String },
    #[error("VM {name} is served and has its leaf; detach it first to give it another one")]
    Served { name: String },
    /// Its leaf is not what it should be.
    #[error(transparent)]
    Leaf(#[from] Box<LeafProblem>),
    #[error("root {name} is used by {users}; detach what uses it first")]
    RootUsed { name: String, users: String },
    #[error("VM {name} has {what}, so there is nothing to {verb}")]
    NoLeaf { name: String, what: &'static str, verb: &'static str },
    #[error(
        "VM {name} has {} and can't shrink to {} while it is attached; only growing is possible",
        format_size(*have),
        format_size(*asked)
    )]
    Shrink { name: String, have: u64, asked: u64 },
    #[error(
        "the size of VM {name} is set in the configuration; change it there, then run leafblk reload"
    )]
    SizeOfConfiguration { name: String },
    /// What is on disk doesn't fit the request.
    #[error("{0}")]
    Unfit(#[source] Error),
    /// It should have worked.
    #[error("{0}")]
    Failed(#[source] Error),
    #[error("a reload is under way and others wait for it; run leafblk reload again later")]
    ReloadsWait,
    #[error("leafblk is stopping; ask again when it has started anew")]
    Stopping,
}

impl HostError {
    /// There is nothing of that name among `known`.
    pub(super) fn no_such<'a>(
        of: NameOf,
        name: &str,
        known: impl IntoIterator<Item = &'a String>,
    ) -> Self {
        let hint = nearest::hint(name, known.into_iter().map(String::as_str));
        Self::NoSuch { of, name: name.into(), hint }
    }

    /// A file that can't be made where it is wanted: where the place is to blame, it
    /// doesn't fit the request, else the work failed.
    pub(super) fn of_new_file(error: Error) -> Self {
        if is_of_place(&error) { Self::Unfit(error) } else { Self::Failed(error) }
    }

    /// A failure in these words.
    pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(Error::failure(error))
    }
}

/// Whether a file could not be had for where it is, or was to be.
fn is_of_place(error: &Error) -> bool {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::AlreadyExists
                    | ErrorKind::NotADirectory
                    | ErrorKind::IsADirectory
                    | ErrorKind::InvalidFilename
                    | ErrorKind::InvalidInput
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::FileTooLarge
            );
        }
        next = error.source();
    }
    false
}

impl From<Unfit> for HostError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Leaf(problem) => Self::Leaf(problem),
            Unfit::Other(error) => Self::Unfit(error),
        }
    }
}

impl From<LeafError> for HostError {
    fn from(error: LeafError) -> Self {
        Self::failed(error)
    }
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Invalid(error) => error.into(),
            HostError::Unfit(error) | HostError::Failed(error) => error,
            other => Self::failure(other),
        }
    }
}

//! Why a change of what is served was refused or failed.

use crate::config::UsageError;
use crate::config::name::NameOf;
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
    #[error("there is no {of} {name}; list them to see which there are")]
    NoSuch { of: NameOf, name: String },
    #[error("there is a {of} {name} already; choose another name, or take that one away first")]
    Exists { of: NameOf, name: String },
    #[error(
        "{of} {name} is in the configuration but not served; reload the configuration (SIGHUP) \
         to have it again"
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
    #[error("root {name} is used by {users}; detach what uses it first")]
    RootUsed { name: String, users: String },
    #[error("VM {name} has {what}, so there is nothing to {verb}")]
    NoLeaf { name: String, what: &'static str, verb: &'static str },
    #[error(
        "VM {name} has {have} bytes and can't shrink to {asked} while it is attached; only \
         growing is possible"
    )]
    Shrink { name: String, have: u64, asked: u64 },
    #[error(
        "the size of VM {name} is set in the configuration; change it there and reload (SIGHUP)"
    )]
    SizeOfConfiguration { name: String },
    /// What is on disk doesn't fit the request.
    #[error("{0}")]
    Unfit(#[source] Error),
    /// It should have worked.
    #[error("{0}")]
    Failed(#[source] Error),
    #[error("leafblk is stopping; ask again when it has started anew")]
    Stopping,
}

impl HostError {
    /// A failure in these words.
    pub(super) fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(Error::failure(error))
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

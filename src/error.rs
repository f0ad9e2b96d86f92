//! What can go wrong as a person at the terminal sees it: their own mistake in
//! the settings, or a failure of the work itself.
//!
//! Every `Display` here is one sentence that names what is wrong, where, and
//! what to do next; `main` puts `leafblk: ` in front of it.

pub use crate::config::UsageError;

/// What to do where a thread or a descriptor can't be had.
pub(crate) const CHECK_LIMITS: &str =
    "check the limits of tasks and open files (TasksMax=, LimitNOFILE=; ulimit -u, -n)";

/// The end of a command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict themselves or the rules; nothing was done.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The settings are fine, the work failed.
    #[error("{0}")]
    Failure(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps what a part of the daemon reports.
    pub fn failure(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failure(error.into())
    }

    /// The process's exit status: 2 for a usage error, 1 for a failure.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failure(_) => 1,
        }
    }
}

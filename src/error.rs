//! What can go wrong as a person at the terminal sees it: their own mistake in
//! the settings, a refusal, or a failure of the work itself.
//!
//! Every `Display` here is one sentence that names what is wrong, where, and
//! what to do next; `main` puts `leafblk: ` in front of it.

use serde_json::{Value, json};

pub use crate::config::UsageError;

/// What to do where a thread or a descriptor can't be had.
pub(crate) const CHECK_LIMITS: &str =
    "check the limits of tasks and open files (TasksMax=, LimitNOFILE=; ulimit -u, -n)";

/// The exit statuses, for help texts.
pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  failed
  2  a mistake in the command line or the configuration; nothing was done
  3  exists already: a VM or root of that name
  4  absent: there is no VM or root of that name
  5  busy: a client is connected, VMs have the root, or another change is under way

With several names each is tried; if they fail in different ways, the status is 1. With
--json an error is an object on stderr, with the keys error, exit_status and detail.";

/// The end of a command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict themselves or the rules; nothing was done.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// What is there doesn't allow it.
    #[error("{source}")]
    Refused {
        /// In which way.
        refusal: Refusal,
        /// The sentence.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The settings are fine, the work failed.
    #[error("{0}")]
    Failure(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Several things were asked for, and these failed. Never empty.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

/// What a script does something about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// What is to be made is there.
    Exists,
    /// What is asked for is not there.
    Absent,
    /// It is in use, or being changed.
    Busy,
}

impl Error {
    /// Wraps what a part of the daemon reports.
    pub fn failure(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failure(error.into())
    }

    /// Wraps a refusal.
    pub fn refused(
        refusal: Refusal,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Refused { refusal, source: error.into() }
    }

    /// In which way it was refused.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            Self::Usage(_) | Self::Failure(_) | Self::Several(_) => None,
        }
    }

    /// The process's exit status, as [`EXIT_STATUS`] has it.
    pub fn exit_status(&self) -> u8 {
        self.about().0
    }

    /// The exit status and its word.
    fn about(&self) -> (u8, &'static str) {
        const FAILED: (u8, &str) = (1, "failed");
        match self {
            Self::Failure(_) => FAILED,
            Self::Usage(_) => (2, "usage"),
            Self::Refused { refusal: Refusal::Exists, .. } => (3, "exists"),
            Self::Refused { refusal: Refusal::Absent, .. } => (4, "absent"),
            Self::Refused { refusal: Refusal::Busy, .. } => (5, "busy"),
            Self::Several(errors) => {
                let mut abouts = errors.iter().map(Self::about);
                let first = abouts.next().unwrap_or(FAILED);
                if abouts.all(|about| about == first) { first } else { FAILED }
            }
        }
    }

    /// The lines that tell of it: a sentence each, or as JSON an object each.
    pub fn lines(&self, as_json: bool) -> Vec<String> {
        if let Self::Several(errors) = self {
            return errors.iter().flat_map(|error| error.lines(as_json)).collect();
        }
        if !as_json {
            return vec![format!("leafblk: {self}")];
        }
        let (exit_status, error) = self.about();
        let object: Value =
            json!({ "error": error, "exit_status": exit_status, "detail": self.to_string() });
        vec![object.to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_can_tell_the_ends_apart() {
        let error = |refusal| Error::refused(refusal, "why");
        let usage = Error::Usage(UsageError::CommandLine("why".into()));
        let ends = [
            (Error::failure("why"), 1, "failed"),
            (usage, 2, "usage"),
            (error(Refusal::Exists), 3, "exists"),
            (error(Refusal::Absent), 4, "absent"),
            (error(Refusal::Busy), 5, "busy"),
        ];
        for (error, status, word) in ends {
            assert_eq!(error.exit_status(), status);
            assert!(EXIT_STATUS.contains(&format!("\n  {status}  ")), "{status}");
            let object: Value = serde_json::from_str(&error.lines(true)[0]).unwrap();
            assert_eq!(object, json!({"error": word, "exit_status": status, "detail": "why"}));
            assert_eq!(error.lines(false), ["leafblk: why"]);
        }
    }

    #[test]
    fn of_several_ends_the_status_is_theirs_or_a_failure() {
        let busy = || Error::refused(Refusal::Busy, "why");
        let same = Error::Several(vec![busy(), busy()]);
        assert_eq!((same.exit_status(), same.lines(false).len()), (5, 2));
        let mixed = Error::Several(vec![busy(), Error::refused(Refusal::Absent, "why")]);
        assert_eq!((mixed.exit_status(), mixed.lines(true).len()), (1, 2));
    }
}

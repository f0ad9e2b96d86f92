//! What a reload came to, entry by entry: for who asked for it, for the log, and for the
//! host's health afterwards.

use std::fmt;
use std::time::SystemTime;

use jiff::Timestamp;

use super::problems::Subject;
use crate::error::Error;

/// What became of one entry of the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// It is as it was.
    Same,
    /// It is served now.
    Added,
    /// It is gone.
    Removed,
    /// It is another way now.
    Changed(String),
    /// It is to be another way, and can't be yet: what has to happen first.
    Pending(String),
    /// It can't be had: why.
    Failed(String),
}

/// An entry of the configuration. Displayed, a sentence with its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReloadedPart {
    /// What it is.
    pub subject: Subject,
    /// Its name.
    pub name: String,
    /// What there is to say; empty where the list that it is in says all.
    pub detail: String,
    /// It is known as failed, so it is shown by itself until it is served.
    is_known_as_failed: bool,
}

impl fmt::Display for ReloadedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, name, detail, .. } = self;
        match (name.is_empty(), detail.is_empty()) {
            (true, _) => write!(f, "{subject}: {detail}"),
            (false, true) => write!(f, "{subject} {name}"),
            (false, false) => write!(f, "{subject} {name}: {detail}"),
        }
    }
}

/// How a reload went.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// When it was done.
    pub at: SystemTime,
    /// Roots and VMs that are served now, and were not before.
    pub added: Vec<ReloadedPart>,
    /// Roots and VMs that are not there any more.
    pub removed: Vec<ReloadedPart>,
    /// What is another way now.
    pub changed: Vec<ReloadedPart>,
    /// What the configuration says and is not so yet.
    pub pending: Vec<ReloadedPart>,
    /// What the configuration says and can't be had.
    pub failed: Vec<ReloadedPart>,
}

impl Reloaded {
    /// One of which nothing is known yet.
    pub(super) fn begin() -> Self {
        Self {
            at: SystemTime::now(),
            added: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
            pending: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// The configuration could not be read, so nothing has changed.
    pub(super) fn refused(error: &Error) -> Self {
        let mut refused = Self::begin();
        refused.failed.push(ReloadedPart {
            subject: Subject::Configuration,
            name: String::new(),
            detail: error.to_string(),
            is_known_as_failed: false,
        });
        refused
    }

    /// Notes what became of an entry, and says in the log what a person has to do
    /// something about.
    pub(super) fn note(&mut self, subject: Subject, name: &str, outcome: Outcome) {
        let part =
            |detail| ReloadedPart { subject, name: name.into(), detail, is_known_as_failed: false };
        match outcome {
            Outcome::Same => {}
            Outcome::Added => self.added.push(part(String::new())),
            Outcome::Removed => self.removed.push(part(String::new())),
            Outcome::Changed(how) => self.changed.push(part(how)),
            Outcome::Pending(until) => {
                let part = part(until);
                log::warn!("reload: {part}");
                self.pending.push(part);
            }
            Outcome::Failed(why) => {
                let part = part(why);
                log::error!("reload: {part}");
                self.failed.push(part);
            }
        }
    }

    /// Finds out which of the failures are shown by themselves.
    pub(super) fn mark_known(&mut self, is_failed: impl Fn(Subject, &str) -> bool) {
        for part in &mut self.failed {
            part.is_known_as_failed = is_failed(part.subject, &part.name);
        }
    }

    /// Whether all that the configuration says could be had, now or later.
    pub fn is_successful(&self) -> bool {
        self.failed.is_empty()
    }

    /// A sentence on what failed and is shown nowhere else.
    pub(super) fn problem(&self) -> Option<String> {
        let mut unknown = self.failed.iter().filter(|part| !part.is_known_as_failed);
        let first = unknown.next()?;
        let more = match unknown.count() {
            0 => String::new(),
            more => format!(" (and {more} more: leafblk status --json)"),
        };
        let at = Timestamp::try_from(self.at).unwrap_or_default();
        Some(format!("failed at {at:.0}: {first}{more}; mend that, then run leafblk reload"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_a_problem_unless_it_is_shown_by_itself() {
        let mut report = Reloaded::begin();
        report.at = SystemTime::UNIX_EPOCH;
        report.note(Subject::Vm, "same", Outcome::Same);
        report.note(Subject::Vm, "late", Outcome::Pending("later".into()));
        assert!(report.is_successful());
        assert_eq!(report.problem(), None);
        report.note(Subject::Vm, "a", Outcome::Failed("no leaf".into()));
        report.mark_known(|_, name| name == "a");
        assert!(!report.is_successful());
        assert_eq!(report.problem(), None);
        report.note(Subject::Vm, "b", Outcome::Failed("can't shrink".into()));
        let problem = report.problem().unwrap();
        assert_eq!(
            problem,
            "failed at 1970-01-01T00:00:00Z: VM b: can't shrink; mend that, then run leafblk reload"
        );
        report.note(Subject::Root, "c", Outcome::Failed("gone".into()));
        assert!(report.problem().unwrap().contains("(and 1 more: leafblk status --json)"));
    }

    #[test]
    fn a_configuration_that_is_refused_needs_no_name() {
        let report = Reloaded::refused(&Error::failure("c.toml, line 1: no"));
        assert_eq!(report.failed[0].to_string(), "configuration: c.toml, line 1: no");
        assert!(!report.is_successful());
    }
}

//! What is wrong on the host now: for its health, for status, and for all that shows
//! what the host does.

use std::fmt;
use std::time::Instant;

use jiff::Timestamp;

use super::file_systems::{FileSystemUse, FileSystemView, RoomAnswer};
use super::host::{RootView, State, VmView};
use super::reload_report::Reloaded;
use crate::disk::{Activity, CachedRoot, Failing, HOLD, Trouble};

/// What has a problem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A root.
    Root,
    /// A VM.
    Vm,
    /// A file system that leafblk keeps something on.
    FileSystem,
    /// The configuration as a whole.
    Configuration,
    /// One of its settings.
    Setting,
    /// What leafblk keeps in its state directory.
    Records,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Vm => "VM",
            Self::FileSystem => "file system",
            Self::Configuration => "configuration",
            Self::Setting => "setting",
            Self::Records => "state directory",
        })
    }
}

/// A problem. Displayed, a sentence with the name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostProblem {
    /// Of what.
    pub subject: Subject,
    /// Its name; a file system's path; `reload` for the configuration as last reloaded.
    pub name: String,
    /// The problem.
    pub sentence: String,
}

impl fmt::Display for HostProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.subject, self.name, self.sentence)
    }
}

/// What is wanted and not served, a sentence each.
pub fn not_served(roots: &[RootView], vms: &[VmView]) -> Vec<String> {
    let failed = |subject: Subject, name: &str, state: &State| match state {
        State::Failed(why) => Some(format!("{subject} {name} is not served: {why}")),
        State::Attaching | State::Serving | State::Changing => None,
    };
    let roots = roots.iter().map(|root| failed(Subject::Root, &root.config.name, &root.state));
    let vms = vms.iter().map(|vm| failed(Subject::Vm, &vm.config.name, &vm.state));
    roots.chain(vms).flatten().collect()
}

/// What is served, or used, and fails. What a root has is not said again of its VMs.
pub fn failing(
    roots: &[RootView],
    vms: &[VmView],
    file_systems: &[FileSystemView],
    last_reload: Option<&Reloaded>,
) -> Vec<HostProblem> {
    let mut all = Vec::new();
    let mut add = |subject, name: &str, sentences: Vec<String>| {
        let problem = |sentence| HostProblem { subject, name: name.to_owned(), sentence };
        all.extend(sentences.into_iter().map(problem));
    };
    for root in roots {
        let users = match root.users.len() {
            0 => String::new(),
            _ => format!(" (VMs on it: {})", root.users.join(", ")),
        };
        let with_users = |sentence| format!("{sentence}{users}");
        let sentences = root.problems().into_iter().map(with_users);
        add(Subject::Root, &root.config.name, sentences.collect());
    }
    for vm in vms {
        add(Subject::Vm, &vm.config.name, vm.own_problems());
    }
    for view in file_systems {
        add(Subject::FileSystem, &view.path.to_string_lossy(), view.problems());
    }
    let of_reload = last_reload.and_then(Reloaded::problem);
    add(Subject::Configuration, "reload", of_reload.into_iter().collect());
    all
}

impl RootView {
    /// What fails of what it does, and why it may not be what it was, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let fails = self.root.as_ref().map_or_else(Vec::new, |root| root_problems(root));
        let hangs = self.watch.as_ref().and_then(|watch| watch.hangs()).map(|owed| {
            let seconds = owed.as_secs();
            format!("its file system has not answered for {seconds} s; look in dmesg")
        });
        let doubt = self.watch.as_ref().and_then(|watch| watch.doubt());
        fails.into_iter().chain(hangs).chain(doubt).collect()
    }
}

fn root_problems(root: &CachedRoot) -> Vec<String> {
    root.failures().at(Instant::now()).iter().map(sentence).collect()
}

impl VmView {
    /// What fails of what it does, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let mut all = self.own_problems();
        if let Some(vm) = &self.vm {
            let of_root = root_problems(vm.disk().root());
            all.extend(of_root.iter().map(|sentence| format!("its root: {sentence}")));
        }
        all
    }

    fn own_problems(&self) -> Vec<String> {
        let Some(disk) = self.vm.as_ref().map(|vm| vm.disk()) else {
            return Vec::new();
        };
        let failing = disk.failures().at(Instant::now());
        let refusal = disk.leaf().and_then(|leaf| leaf.refusal()).map(|error| error.to_string());
        let kept_out = self.vm.as_ref().and_then(|vm| vm.trouble());
        let lost = self.vm.as_ref().and_then(|vm| vm.lost_leaf());
        // What is said more precisely is not said again.
        let is_said = kept_out.is_some() || failing.iter().any(|f| f.activity == Activity::Device);
        let connection = disk.connection_trouble().filter(|_| !is_said);
        let connection = connection.as_ref().map(trouble);
        let others = refusal.into_iter().chain(kept_out).chain(lost).chain(connection);
        failing.iter().map(sentence).chain(others).collect()
    }
}

fn trouble(trouble: &Trouble) -> String {
    let Trouble { at, why, times, .. } = trouble;
    let at = Timestamp::try_from(*at).unwrap_or_default();
    match times {
        1 => format!("its last connection failed at {at:.0}: {why}"),
        times => format!("its last {times} connections failed, the last at {at:.0}: {why}"),
    }
}

fn sentence(failing: &Failing) -> String {
    let what = match failing.activity {
        Activity::Write => "writes",
        Activity::Flush => "flushes",
        Activity::LeafRead => "reads of its leaf",
        Activity::RootRead => "reads",
        Activity::Device => return format!("its device is stopped: {}", failing.why),
    };
    match failing.in_part {
        false => format!("its {what} fail: {}", failing.why),
        true => {
            format!("some of its {what} failed in the last {} s: {}", HOLD.as_secs(), failing.why)
        }
    }
}

impl FileSystemView {
    /// What is wrong with it.
    fn problems(&self) -> Vec<String> {
        let RoomAnswer::Silent(seconds) = self.room else {
            return Vec::new();
        };
        let uses: Vec<_> = self.uses.iter().map(|used| used.name()).collect();
        vec![format!(
            "it has not answered for {seconds} s, and has on it: {}; look at the server or device that \
             it is on, and in dmesg",
            uses.join(", ")
        )]
    }
}

impl FileSystemUse {
    /// For people, and for the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leaves => "leaves",
            Self::State => "state",
            Self::Runtime => "runtime",
        }
    }
}

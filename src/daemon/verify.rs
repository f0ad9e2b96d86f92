//! `root verify`: all of a root is read, and its digest recorded, or held against the one
//! that is.
//!
//! It takes as long as the disk needs, on a thread of its own, one root at a time. It
//! can be watched and called off; whoever asked for it need not stay.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::error::HostError;
use super::host::Host;
use super::root_records::{RootRecord, RootRecords, Verified};
use super::root_watch::RootWatch;
use crate::config::name::NameOf;
use crate::disk::CachedRoot;
use crate::error::CHECK_LIMITS;
use crate::root::digest::RootDigest;

/// What is done with a digest that is recorded already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Recorded {
    /// The root is held against it.
    Compared,
    /// It gives way to the one that is found.
    Replaced,
}

/// How it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
enum End {
    /// No digest was recorded, or it was to be replaced: this one is.
    New(RootDigest),
    /// It is the one that was recorded.
    Same(RootDigest),
    /// It is another.
    Other {
        found: RootDigest,
        recorded: Verified,
    },
    Failed(String),
    CalledOff,
}

/// One verification, under way or done.
#[derive(Debug)]
pub(super) struct Verification {
    size_bytes: u64,
    read_bytes: AtomicU64,
    called_off: AtomicBool,
    end: Mutex<Option<End>>,
}

/// What has come of a verification.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// None was begun since the daemon started.
    None,
    /// It is under way.
    Running,
    /// The digest is recorded from now on.
    Recorded,
    /// The content is what it was.
    Same,
    /// The content is not what it was.
    Differs,
    /// It could not be done.
    Failed,
    /// Somebody called it off.
    CalledOff,
}

/// A verification at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerificationView {
    /// What has come of it.
    pub outcome: Outcome,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of the root.
    pub size_bytes: u64,
    /// The digest that was found, in hexadecimal.
    pub digest: Option<String>,
    /// A sentence on it.
    pub sentence: String,
}

impl Verification {
    fn new(size_bytes: u64) -> Self {
        let (read_bytes, called_off) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { size_bytes, read_bytes, called_off, end: Mutex::new(None) }
    }

    fn end(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ends(&self, end: End) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn is_running(&self) -> bool {
        self.end().is_none()
    }

    pub(super) fn call_off(&self) {
        self.called_off.store(true, Ordering::Relaxed);
    }

    fn view(&self, name: &str) -> VerificationView {
        let end = self.end();
        let digest = match &end {
            Some(End::New(digest) | End::Same(digest) | End::Other { found: digest, .. }) => {
                Some(digest.to_string())
            }
            Some(End::Failed(_) | End::CalledOff) | None => None,
        };
        let (outcome, sentence) = match end {
            None => (Outcome::Running, format!("root {name} is being read")),
            Some(End::New(digest)) => (
                Outcome::Recorded,
                format!("root {name}: its digest, SHA-256 {digest}, is recorded"),
            ),
            Some(End::Same(digest)) => {
                (Outcome::Same, format!("root {name} is what was recorded: SHA-256 {digest}"))
            }
            Some(End::Other { found, recorded }) => (
                Outcome::Differs,
                format!(
                    "root {name} is not what it was on {}: SHA-256 was {} and is {found}; put the \
                     image back that it was, as its leaves belong to that; if it was changed on \
                     purpose and has no leaves, leafblk root verify {name} --renew records it",
                    recorded.at, recorded.digest
                ),
            ),
            Some(End::Failed(why)) => {
                (Outcome::Failed, format!("root {name} was not verified: {why}"))
            }
            Some(End::CalledOff) => {
                (Outcome::CalledOff, format!("the verification of root {name} was called off"))
            }
        };
        let read_bytes = self.read_bytes.load(Ordering::Relaxed);
        VerificationView { outcome, read_bytes, size_bytes: self.size_bytes, digest, sentence }
    }
}

/// A root to be read, and what is to be made of it.
struct Job {
    records: Arc<RootRecords>,
    root: Arc<CachedRoot>,
    watch: Arc<RootWatch>,
    verification: Arc<Verification>,
    recorded: Recorded,
}

impl Drop for Job {
    /// However it ends, others hear of it.
    fn drop(&mut self) {
        if self.verification.is_running() {
            let why = "a part of leafblk failed; its log says more";
            self.verification.ends(End::Failed(why.into()));
        }
    }
}

impl Job {
    fn run(self) {
        let name = self.root.root().name().to_owned();
        let end = self.read().unwrap_or_else(|error| End::Failed(error.to_string()));
        self.verification.ends(end);
        let VerificationView { outcome, sentence, .. } = self.verification.view(&name);
        match outcome {
            Outcome::Differs | Outcome::Failed => log::error!("{sentence}"),
            _ => log::info!("{sentence}"),
        }
    }

    fn read(&self) -> Result<End, Box<dyn std::error::Error>> {
        let root = self.root.root();
        let before = root.state()?;
        let digest = root.digest(|count| {
            self.verification.read_bytes.fetch_add(count, Ordering::Relaxed);
            match self.verification.called_off.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        let Some(found) = digest.map_err(read_error)? else {
            return Ok(End::CalledOff);
        };
        let state = root.state()?;
        if state.file != before.file {
            return Err("its file was changed while it was read".into());
        }
        let known = self.watch.recorded().verified;
        if let Some(known) = known.filter(|known| known.digest != found)
            && self.recorded == Recorded::Compared
        {
            return Ok(End::Other { found, recorded: known });
        }
        let at = Timestamp::now();
        let verified = Some(Verified { digest: found, at });
        let record = RootRecord { state, at, verified, ..self.watch.opened().clone() };
        let name = root.name();
        self.records.change(|all| all.set(name, record.clone()))?;
        self.watch.set_recorded(record);
        Ok(if known.is_some_and(|known| known.digest == found) {
            End::Same(found)
        } else {
            End::New(found)
        })
    }
}

fn read_error(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "its file has become shorter".into(),
        _ => format!("it can't be read: {error}"),
    }
}

impl Host {
    /// Begins to verify a root.
    ///
    /// # Errors
    /// [`HostError`]: there is no such root, or one is being verified.
    pub fn verify_root(
        &self,
        name: &str,
        recorded: Recorded,
    ) -> Result<VerificationView, HostError> {
        let (root, watch) = self.watched(name)?;
        let mut current = self.inner().verifying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((other, verification)) = &*current
            && verification.is_running()
        {
            let (of, name) = (NameOf::Root, other.clone());
            return Err(HostError::Busy { of, name, doing: "verified" });
        }
        let verification = Arc::new(Verification::new(root.root().len_bytes()));
        let kept = Arc::clone(&verification);
        let job = Job {
            records: Arc::clone(&self.inner().root_records),
            root,
            watch: Arc::clone(&watch),
            verification: Arc::clone(&verification),
            recorded,
        };
        let thread = std::thread::Builder::new().name("verify".into()).spawn(move || job.run());
        thread.map_err(|source| {
            HostError::failed(format!("can't start a thread: {source}; {CHECK_LIMITS}"))
        })?;
        watch.set_verification(&verification);
        *current = Some((name.to_owned(), kept));
        Ok(verification.view(name))
    }

    /// The last verification of a root.
    ///
    /// # Errors
    /// [`HostError`]: there is no such root.
    pub fn verification(&self, name: &str) -> Result<VerificationView, HostError> {
        let (root, watch) = self.watched(name)?;
        let none = || VerificationView {
            outcome: Outcome::None,
            read_bytes: 0,
            size_bytes: root.root().len_bytes(),
            digest: None,
            sentence: format!("root {name} was not verified since leafblk was started"),
        };
        Ok(watch.verification().map_or_else(none, |verification| verification.view(name)))
    }

    /// Calls the verification of a root off, if it is under way.
    ///
    /// # Errors
    /// [`HostError`]: there is no such root.
    pub fn call_off_verification(&self, name: &str) -> Result<(), HostError> {
        let (_, watch) = self.watched(name)?;
        if let Some(verification) = watch.verification() {
            verification.call_off();
        }
        Ok(())
    }

    /// Calls off whatever verification is under way.
    pub(super) fn call_off_verifications(&self) {
        let current = self.inner().verifying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, verification)) = &*current {
            verification.call_off();
        }
    }

    fn watched(&self, name: &str) -> Result<(Arc<CachedRoot>, Arc<RootWatch>), HostError> {
        let mut table = self.table();
        let served = table.root(name)?.serving(NameOf::Root, name)?;
        Ok((Arc::clone(served.cached()), Arc::clone(served.watch())))
    }
}

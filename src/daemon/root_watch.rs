//! Whether a root's file is still what it was when it was recorded.
//!
//! The fingerprint samples a root; a root that was mounted for writing for a moment
//! changes elsewhere. So its file's size, inode and times are compared with those in
//! [`super::root_records`]: when it is opened, and whenever somebody looks. The file
//! system may hang then, and is asked by a [`Question`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::host::{Host, RootView};
use super::named_file::{Loss, NameWatch, NamedFile};
use super::question::{Answer, Question};
use super::root_records::{KnownRoots, RootRecord, Verified};
use super::verify::Verification;
use crate::disk::CachedRoot;
use crate::root::Root;
use crate::root::state::{Changes, RootState};

/// As for other file systems: an answer that takes so long is not coming soon.
const HANGS_AFTER: Duration = Duration::from_secs(2);

/// A root that is served, and what is known of its file.
#[derive(Debug)]
pub(super) struct ServedRoot {
    cached: Arc<CachedRoot>,
    watch: Arc<RootWatch>,
}

impl ServedRoot {
    pub(super) fn new(cached: CachedRoot, watch: RootWatch) -> Self {
        Self { cached: Arc::new(cached), watch: Arc::new(watch) }
    }

    pub(super) fn cached(&self) -> &Arc<CachedRoot> {
        &self.cached
    }

    pub(super) fn watch(&self) -> &Arc<RootWatch> {
        &self.watch
    }
}

/// What is known of a root's file.
#[derive(Debug)]
pub(super) struct RootWatch {
    name: String,
    /// As it was when it was opened.
    opened: RootRecord,
    /// What it is held against.
    recorded: Mutex<RootRecord>,
    state: Question<Result<RootState, String>>,
    asked: Mutex<Option<Instant>>,
    file: NamedFile,
    /// Whether it is where it was.
    file_name: Arc<NameWatch>,
    /// The changes that the log has.
    said: Mutex<Option<Changes>>,
    verification: Mutex<Option<Arc<Verification>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a root is in doubt, and what to do.
fn doubt(name: &str, recorded: &RootRecord, changes: &Changes) -> String {
    let since = recorded.at;
    let what_next = match recorded.verified {
        Some(Verified { at, .. }) => format!(
            "leafblk root verify {name} holds all of it against the digest of {at}, and ends this \
             warning if it is the same"
        ),
        None => format!(
            "if nobody has written to it (a copy, a restore), leafblk root verify {name} ends this \
             warning and records a digest; if somebody has, put the image back, as its leaves \
             belong to what it was"
        ),
    };
    format!(
        "its file has changed since {since}, though the samples of its content are the same: \
         {changes}; {what_next}"
    )
}

/// What has become of a root that is served, and what to do.
fn loss_of_root(loss: Loss, file: &NamedFile) -> String {
    let (path, by_number) = (file.path().display(), file.by_number());
    match loss {
        Loss::Moved => format!(
            "its file {path} {loss} while VMs read it: move it back before leafblk's next start"
        ),
        Loss::Deleted => format!(
            "its file {path} {loss} while VMs read it, and is gone when leafblk stops: \
             cp --sparse=always {by_number} {path} saves it"
        ),
        Loss::Replaced => format!(
            "its file {path} {loss} while VMs read the old one, which the next start doesn't find: \
             add the new one under another name; cp --sparse=always {by_number} {path}.saved \
             saves the old one"
        ),
    }
}

/// What a start would warn of, of a root that was opened.
pub(super) fn warning(known: &KnownRoots, root: &Root) -> Option<String> {
    let (opened, name) = (RootRecord::of(root), root.name());
    let recorded = known.of(name).filter(|known| known.is_of_same_image(&opened))?;
    let changes = opened.state.changes_since(&recorded.state)?;
    Some(format!("root {name}: {}", doubt(name, recorded, &changes)))
}

impl RootWatch {
    /// The watch over a root that was opened a moment ago; the log has what is wrong.
    pub(super) fn new(root: &Root, known: &KnownRoots) -> Self {
        let (name, opened) = (root.name().to_owned(), RootRecord::of(root));
        let recorded = match known.of(&name) {
            Some(recorded) if recorded.is_of_same_image(&opened) => recorded.clone(),
            Some(recorded) => {
                log::info!("root {name}: another image than the one of {}", recorded.at);
                opened.clone()
            }
            None => opened.clone(),
        };
        let watch = Self {
            name,
            opened,
            recorded: Mutex::new(recorded),
            state: Question::default(),
            asked: Mutex::default(),
            file: NamedFile::new(root.path(), root.raw_fd()),
            file_name: Arc::default(),
            said: Mutex::default(),
            verification: Mutex::default(),
        };
        watch.doubt();
        watch
    }

    /// What it is held against.
    pub(super) fn recorded(&self) -> RootRecord {
        lock(&self.recorded).clone()
    }

    /// It is right as it is described.
    pub(super) fn set_recorded(&self, record: RootRecord) {
        *lock(&self.recorded) = record;
        // What was known of it before says nothing of it now.
        *lock(&self.said) = None;
    }

    /// As it was when it was opened.
    pub(super) fn opened(&self) -> &RootRecord {
        &self.opened
    }

    /// The last verification, under way or done.
    pub(super) fn verification(&self) -> Option<Arc<Verification>> {
        lock(&self.verification).clone()
    }

    pub(super) fn set_verification(&self, verification: &Arc<Verification>) {
        *lock(&self.verification) = Some(Arc::clone(verification));
    }

    /// Asks how the file is, unless that was asked within `age`.
    fn ask(&self, root: &Arc<CachedRoot>, age: Duration) {
        let mut asked = lock(&self.asked);
        if asked.is_some_and(|asked| asked.elapsed() < age) {
            return;
        }
        *asked = Some(Instant::now());
        drop(asked);
        let (root, file, name) = (Arc::clone(root), self.file.clone(), Arc::clone(&self.file_name));
        self.state.ask(move || {
            name.look(&file);
            root.root().state().map_err(|error| error.to_string())
        });
    }

    /// Why the file may not be what it was, as far as is known: what was asked for is
    /// waited for, for a moment. The log has each once.
    pub(super) fn doubt(&self) -> Option<String> {
        let Answer { last, .. } = self.state.answer();
        let loss = self.file_name.loss();
        let is_news = self.file_name.is_news(loss);
        if let Some(loss) = loss {
            let sentence = loss_of_root(loss, &self.file);
            if is_news {
                log::error!("root {}: {sentence}", self.name);
            }
            // Its times have changed with that.
            return Some(sentence);
        }
        let state = match last {
            Some(Ok(state)) => state,
            // Else as it was last known to be.
            Some(Err(_)) | None => self.opened.state,
        };
        let recorded = lock(&self.recorded).clone();
        let changes = state.changes_since(&recorded.state)?;
        let sentence = doubt(&self.name, &recorded, &changes);
        let mut said = lock(&self.said);
        if said.as_ref() != Some(&changes) {
            log::warn!("root {}: {sentence}", self.name);
            *said = Some(changes);
        }
        Some(sentence)
    }

    /// For how long its file system has owed an answer, if it hangs.
    pub(super) fn hangs(&self) -> Option<Duration> {
        self.state.answer().owed.filter(|owed| *owed >= HANGS_AFTER)
    }
}

impl RootView {
    /// Whether its file may not be what it was.
    pub fn is_changed(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.doubt().is_some())
    }

    /// The digest with which all of it was last found right, in hexadecimal, and when
    /// that was, in seconds since 1970.
    pub fn verified(&self) -> Option<(String, u64)> {
        let verified = self.watch.as_ref()?.recorded().verified?;
        let at = u64::try_from(verified.at.as_second()).unwrap_or(0);
        Some((verified.digest.to_string(), at))
    }
}

impl Host {
    /// Asks how the files of these roots are, unless that was asked within `age`; their
    /// views know then. Waits for nothing.
    pub fn look_at_roots(&self, roots: &[RootView], age: Duration) {
        for view in roots {
            if let Some((root, watch)) = view.root.as_ref().zip(view.watch.as_ref()) {
                watch.ask(root, age);
            }
        }
    }

    /// Looks at the files of all roots and leaves, for the log. Waits for a moment at most.
    pub(super) fn look_at_files(&self) {
        let (roots, vms) = (self.roots(), self.vms());
        self.look_at_roots(&roots, Duration::ZERO);
        self.file_systems(&vms);
        roots.iter().filter_map(|root| root.watch.as_ref()).for_each(|watch| drop(watch.doubt()));
        vms.iter().filter_map(|vm| vm.vm.as_ref()).for_each(|vm| drop(vm.lost_leaf()));
    }

    /// Records the roots that are not recorded yet, or were other images. Not while a start
    /// may fail still, which leaves nothing.
    pub(super) fn record_roots(&self) {
        let views = self.roots();
        let watches = || views.iter().filter_map(|view| view.watch.as_ref());
        let written = self.inner().root_records.change(|all| {
            watches().for_each(|watch| all.add(&watch.name, &watch.opened));
        });
        if let Err(error) = written {
            log::warn!("changes of roots will not be noticed: {error}");
        }
    }

    /// What is recorded of roots; nothing, with a warning, where that can't be read.
    pub(super) fn known_roots(&self) -> Arc<KnownRoots> {
        self.inner().root_records.read().unwrap_or_else(|error| {
            log::warn!("changes of roots are not noticed: {error}");
            Arc::default()
        })
    }
}

//! A bar on stderr for work that takes long; nothing where stderr is no
//! terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// The bar of one step of work; it goes when the step ends.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// For `bytes` bytes of work.
    pub(crate) fn new(what: &'static str, bytes: u64) -> Self {
        // Draws to stderr if that is a terminal, else nowhere.
        let bar = ProgressBar::new(bytes);
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}");
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Self(bar)
    }

    /// So much more is done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

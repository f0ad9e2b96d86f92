//! Words for a shell, in the lines that leafblk tells people to run.

use std::path::Path;

/// `text` as one word of a POSIX shell.
pub(crate) fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A path likewise.
pub(crate) fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

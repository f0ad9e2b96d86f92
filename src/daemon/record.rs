//! What a running daemon tells other commands about a VM: RUNTIME/NAME.vm.toml
//! with its socket and queues, so that `leafblk qemu-args NAME` needs nothing
//! but the name.
//!
//! Information, not a lock: nobody decides by it whether a VM is served. Who may
//! connect to the socket may read the record, and nobody else. The file appears
//! whole (written beside, renamed) and goes with the value that published it,
//! unless another process has replaced it meanwhile. After a kill -9 it stays, and
//! the next start overwrites it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::replace::{Readers, replace};
use crate::config::Endpoint;
use crate::io::open;

/// Bytes of a record that are read; ours are far shorter.
const RECORD_MAX_BYTES: u64 = 64 << 10;

#[derive(Deserialize, Serialize)]
struct RecordForm {
    socket: PathBuf,
    queues: u16,
}

/// A record that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("the record {} cannot be {operation} ({source}); {}", path.display(), hint(source))]
pub struct RecordError {
    path: PathBuf,
    operation: &'static str,
    source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "run this as root, as the user that runs leafblk, or as a member of its socket-group"
        }
        _ => "check --runtime-dir",
    }
}

/// A record that is there for as long as this value.
#[derive(Debug)]
pub struct PublishedRecord {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for PublishedRecord {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours {
            // Nothing depends on the file being gone.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn record_path(runtime_dir: &Path, vm: &str) -> PathBuf {
    runtime_dir.join(format!("{vm}.vm.toml"))
}

/// Writes the record of `endpoint` into `runtime_dir`, which exists: mode 0600,
/// or 0640 for the members of `group`.
///
/// # Errors
/// [`RecordError`]; the VM works without its record.
pub fn publish(
    runtime_dir: &Path,
    endpoint: &Endpoint,
    group: Option<u32>,
) -> Result<PublishedRecord, RecordError> {
    let path = record_path(runtime_dir, &endpoint.vm);
    let error = |source| RecordError { path: path.clone(), operation: "written", source };
    let form = RecordForm { socket: endpoint.socket.clone(), queues: endpoint.queues };
    let text = toml::to_string(&form)
        .map_err(|source| error(io::Error::new(io::ErrorKind::InvalidInput, source)))?;
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let readers = group.map_or(Readers::Owner, Readers::Group);
    let identity = replace(&path, &beside, text.as_bytes(), readers, false).map_err(error)?;
    Ok(PublishedRecord { path, identity })
}

/// The endpoint that a daemon published for `vm`; `None` if there is none.
///
/// # Errors
/// [`RecordError`] if it is there and cannot be read.
pub fn find(runtime_dir: &Path, vm: &str) -> Result<Option<Endpoint>, RecordError> {
    let path = record_path(runtime_dir, vm);
    let error = |source| RecordError { path: path.clone(), operation: "read", source };
    let text = match open::text(&path, RECORD_MAX_BYTES) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let form: RecordForm = toml::from_str(&text)
        .map_err(|_| error(io::Error::new(io::ErrorKind::InvalidData, "no valid record")))?;
    Ok(Some(Endpoint { vm: vm.to_owned(), socket: form.socket, queues: form.queues }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(queues: u16) -> Endpoint {
        Endpoint { vm: "web.1".into(), socket: "/run/x/web \"1\".sock".into(), queues }
    }

    #[test]
    fn a_published_record_is_found_and_goes_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let record = publish(dir.path(), &endpoint(3), None).unwrap();
        let mode = fs::metadata(record_path(dir.path(), "web.1")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(find(dir.path(), "web.1").unwrap(), Some(endpoint(3)));
        assert_eq!(find(dir.path(), "web").unwrap(), None);
        drop(record);
        assert_eq!(find(dir.path(), "web.1").unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_was_replaced_stays() {
        let dir = tempfile::tempdir().unwrap();
        let old = publish(dir.path(), &endpoint(1), None).unwrap();
        let _new = publish(dir.path(), &endpoint(2), None).unwrap();
        drop(old);
        assert_eq!(find(dir.path(), "web.1").unwrap(), Some(endpoint(2)));
    }

    #[test]
    fn a_damaged_record_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.vm.toml"), "queues = 70000").unwrap();
        let text = find(dir.path(), "a").unwrap_err().to_string();
        assert!(text.contains("a.vm.toml"), "{text}");
    }
}

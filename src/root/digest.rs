//! The digest of a whole root: SHA-256 of its bytes.
//!
//! It reads as the cache's fills do, past the page cache where that works: what the disk
//! has counts, and not what the host's memory still has of it.

use std::fmt::{self, Write};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::Root;

/// Bytes that are read at a time: as much as one waits for before it hears of the end.
const STEP: usize = 1 << 20;
/// What O_DIRECT wants of a buffer (open(2)); no disk wants more.
const ALIGNMENT: usize = 4096;

/// SHA-256 of all of a root.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct RootDigest(pub(crate) [u8; 32]);

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootDigest({self})")
    }
}

impl RootDigest {
    /// The one that is written so.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let pairs = text.as_bytes().as_chunks::<2>();
        if !pairs.1.is_empty() || pairs.0.len() != bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs.0) {
            let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        let digest = Self(bytes);
        // In small letters only: there is one way to write each.
        let mut again = String::new();
        let _ = write!(again, "{digest}");
        (again == text).then_some(digest)
    }
}

impl Root {
    /// Reads all of it. `go_on` hears after each step how many bytes that were; `None`
    /// where it breaks off.
    ///
    /// # Errors
    /// As pread(2); UnexpectedEof where the file has become shorter.
    pub(crate) fn digest(
        &self,
        mut go_on: impl FnMut(u64) -> ControlFlow<()>,
    ) -> io::Result<Option<RootDigest>> {
        let mut room = vec![0; STEP + ALIGNMENT];
        let skip = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let buffer = &mut room[skip..skip + STEP];
        let (mut hash, mut done) = (Sha256::new(), 0);
        while done < self.len_bytes() {
            // Whole steps, also at the end: O_DIRECT takes no odd lengths.
            let count = match self.file.read_at(buffer, done) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            // A file may have grown meanwhile.
            let count = count.min(self.len_bytes() - done);
            hash.update(&buffer[..usize::try_from(count).unwrap_or(STEP)]);
            done += count;
            if go_on(count).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(RootDigest(hash.finalize().into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_all_bytes_however_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.raw");
        for len in [512, STEP, 2 * STEP + 1536] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
            std::fs::write(&path, &bytes).unwrap();
            let expected = RootDigest(Sha256::digest(&bytes).into());
            for root in [Root::open("r", &path).unwrap(), Root::open_buffered("r", &path).unwrap()]
            {
                let mut steps = Vec::new();
                let digest = root.digest(|count| {
                    steps.push(count);
                    ControlFlow::Continue(())
                });
                assert_eq!(digest.unwrap(), Some(expected));
                assert_eq!(steps.iter().sum::<u64>(), len as u64);
            }
        }
        let root = Root::open("r", &path).unwrap();
        assert_eq!(root.digest(|_| ControlFlow::Break(())).unwrap(), None);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let short = root.digest(|_| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_digest_is_written_in_one_way_only() {
        let digest = RootDigest(std::array::from_fn(|i| u8::try_from(i * 8).unwrap()));
        let text = digest.to_string();
        assert_eq!(RootDigest::parse(&text), Some(digest));
        for bad in
            ["", &text[1..], &text.to_uppercase(), &format!("{text}00"), &text.replace('0', "g")]
        {
            assert_eq!(RootDigest::parse(bad), None, "{bad}");
        }
    }
}

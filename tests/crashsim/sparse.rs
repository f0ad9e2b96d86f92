//! A sparse file, kept with its holes: a live map has room for a large disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

/// What a file has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    len: u64,
    data: Vec<(u64, Vec<u8>)>,
}

/// The file's content; `None` if there is no file.
pub(crate) fn read(path: &Path) -> Option<Sparse> {
    let file = File::open(path).ok()?;
    let mut sparse = Sparse { len: file.metadata().unwrap().len(), data: Vec::new() };
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; usize::try_from(at - start).unwrap()];
        file.read_exact_at(&mut bytes, start).unwrap();
        sparse.data.push((start, bytes));
    }
    Some(sparse)
}

/// Makes it the file's content, or, without, that there is no file.
pub(crate) fn put(path: &Path, content: Option<&Sparse>) {
    let _ = std::fs::remove_file(path);
    let Some(sparse) = content else { return };
    let file = File::create(path).unwrap();
    file.set_len(sparse.len).unwrap();
    for (offset, bytes) in &sparse.data {
        file.write_all_at(bytes, *offset).unwrap();
    }
}

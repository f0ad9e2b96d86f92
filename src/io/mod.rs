//! Input and output: positioned I/O on one file ([`storage`]), the io_uring of a
//! reactor, the lock that keeps a file to one process, and a new file that gets its
//! name when it is whole.

pub(crate) mod beside;
pub(crate) mod engine;
pub(crate) mod lock;
pub mod storage;

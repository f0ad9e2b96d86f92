//! Input and output: positioned I/O on one file ([`storage`]), the io_uring of a
//! reactor, and the lock that keeps a file to one process.

pub(crate) mod engine;
pub(crate) mod lock;
pub mod storage;

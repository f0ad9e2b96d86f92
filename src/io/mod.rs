//! Input and output: positioned I/O on one file ([`storage`]), the io_uring of a
//! reactor, the lock that keeps a file to one process, a new file that gets its
//! name when it is whole, and the opening of files by others' names.

pub(crate) mod available;
pub(crate) mod beside;
pub(crate) mod engine;
pub(crate) mod lock;
pub(crate) mod open;
pub mod storage;

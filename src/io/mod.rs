//! Input and output: positioned I/O on one file ([`storage`]) and the io_uring
//! of a reactor.

pub(crate) mod engine;
pub mod storage;

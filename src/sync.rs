//! Mutexes and atomics of the code that loom checks: the standard library's,
//! and under `--cfg loom` those that try every interleaving and every value
//! that the memory model allows (docs/ARCHITECTURE.md says how to run it).

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

//! Mutexes and atomics of the code that loom checks: the standard library's,
//! and in tests with the feature `loom` those that try every interleaving and every value
//! that the memory model allows (docs/ARCHITECTURE.md says how to run it).

#[cfg(all(test, feature = "loom"))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(test, feature = "loom")))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

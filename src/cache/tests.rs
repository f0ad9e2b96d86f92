//! The cache as a whole, on one thread.

use super::*;

//! One process per host: what is served, from start to stop.
//!
//! The pieces that hold no state of their own:

pub mod record;
pub mod sockets;

//! Which thread this is.

/// The current thread, as the kernel numbers it (gettid(2)); above 0.
pub(crate) fn own_id() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

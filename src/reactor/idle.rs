//! How long a reactor polls before it sleeps.
//!
//! Waking across CPUs costs about 50 µs, so polling for about that long after
//! the last work pays when work comes back soon. Whether it does is learnt
//! from how long the reactor was idle in the end, as KVM's halt polling does:
//! idle times that polling would have covered make the window grow, long ones
//! shrink it to nothing. So an idle host costs no CPU, and the share that
//! polling may waste is bounded: a window is at most `poll_us`, and it is only
//! kept while idle times stay below [`WASTE`] windows.
//!
//! Times are nanoseconds since the last work; the reactor's clock tells them.

/// Idle times longer than this many times the longest window shrink it.
const WASTE: u64 = 4;
/// The first step up from nothing.
const FIRST_NS: u64 = 10_000;

/// The polling window of one reactor.
#[derive(Debug)]
pub(super) struct IdleWindow {
    window_ns: u64,
    longest_ns: u64,
}

impl IdleWindow {
    pub(super) fn new(poll_us: u32) -> Self {
        let longest_ns = u64::from(poll_us) * 1000;
        Self { window_ns: longest_ns, longest_ns }
    }

    /// Whether there is no polling at all.
    pub(super) fn is_zero(&self) -> bool {
        self.window_ns == 0
    }

    /// There was no work for so long; whether it is time to sleep.
    pub(super) fn is_over(&self, idle_ns: u64) -> bool {
        idle_ns >= self.window_ns
    }

    /// Sleep is over after so long without work.
    pub(super) fn woke(&mut self, idle_ns: u64) {
        if idle_ns <= self.longest_ns * 2 {
            self.window_ns = (self.window_ns * 2).max(FIRST_NS).min(self.longest_ns);
        } else if idle_ns > self.longest_ns * WASTE {
            self.window_ns /= 2;
            if self.window_ns < FIRST_NS / 4 {
                self.window_ns = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn after_idle(mut window: IdleWindow, idle_ns: u64) -> u64 {
        window.woke(idle_ns);
        window.window_ns
    }

    #[test]
    fn without_polling_it_sleeps_at_once() {
        let mut window = IdleWindow::new(0);
        assert!(window.is_zero() && window.is_over(0));
        window.woke(0);
        assert!(window.is_over(0), "short sleeps don't turn polling on");
    }

    #[test]
    fn it_polls_until_the_window_is_over() {
        let window = IdleWindow::new(50);
        assert!(!window.is_over(49_999));
        assert!(window.is_over(50_000));
    }

    #[test]
    fn long_idle_times_shrink_the_window_and_short_ones_grow_it() {
        assert_eq!(after_idle(IdleWindow::new(50), SECOND), 25_000);
        let mut off = IdleWindow::new(50);
        for _ in 0..8 {
            off.woke(SECOND);
        }
        assert!(off.is_zero());
        assert_eq!(after_idle(off, 0), FIRST_NS);
    }
}

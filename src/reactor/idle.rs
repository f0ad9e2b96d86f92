//! How long a reactor polls before it sleeps.
//!
//! Waking across CPUs costs about 50 µs, so polling for about that long after
//! the last work pays when work comes back soon. Whether it does is learnt
//! from how long the reactor was idle in the end, as KVM's halt polling does:
//! idle times that polling would have covered make the window grow, long ones
//! shrink it to nothing. So an idle host costs no CPU, and the share that
//! polling may waste is bounded: a window is at most `poll_us`, and it is only
//! kept while idle times stay below [`WASTE`] windows.

use std::time::{Duration, Instant};

/// Idle times longer than this many times the longest window shrink it.
const WASTE: u32 = 4;
/// The first step up from nothing.
const FIRST: Duration = Duration::from_micros(10);

/// The polling window of one reactor.
#[derive(Debug)]
pub(super) struct IdleWindow {
    window: Duration,
    longest: Duration,
    idle_since: Option<Instant>,
}

impl IdleWindow {
    pub(super) fn new(poll_us: u32) -> Self {
        let longest = Duration::from_micros(u64::from(poll_us));
        Self { window: longest, longest, idle_since: None }
    }

    /// There was work.
    #[inline]
    pub(super) fn worked(&mut self) {
        self.idle_since = None;
    }

    /// Whether there is no polling at all.
    pub(super) fn is_zero(&self) -> bool {
        self.window.is_zero()
    }

    /// There was none; whether it is time to sleep.
    pub(super) fn is_over(&mut self) -> bool {
        if self.window.is_zero() {
            self.idle_since.get_or_insert_with(Instant::now);
            return true;
        }
        let now = Instant::now();
        now.duration_since(*self.idle_since.get_or_insert(now)) >= self.window
    }

    /// Sleep is over and there is work again.
    pub(super) fn woke(&mut self) {
        let Some(since) = self.idle_since.take() else {
            return;
        };
        let idle = since.elapsed();
        if idle <= self.longest * 2 {
            self.window = (self.window * 2).max(FIRST).min(self.longest);
        } else if idle > self.longest * WASTE {
            self.window /= 2;
            if self.window < FIRST / 4 {
                self.window = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_idle(mut window: IdleWindow, idle: Duration) -> Duration {
        window.idle_since = Instant::now().checked_sub(idle);
        window.woke();
        window.window
    }

    #[test]
    fn without_polling_it_sleeps_at_once() {
        let mut window = IdleWindow::new(0);
        assert!(window.is_over());
        window.woke();
        assert!(window.is_over(), "short sleeps don't turn polling on");
    }

    #[test]
    fn long_idle_times_shrink_the_window_and_short_ones_grow_it() {
        let second = Duration::from_secs(1);
        assert_eq!(after_idle(IdleWindow::new(50), second), Duration::from_micros(25));
        let mut off = IdleWindow::new(50);
        for _ in 0..8 {
            off.idle_since = Instant::now().checked_sub(second);
            off.woke();
        }
        assert!(off.window.is_zero());
        assert_eq!(after_idle(off, Duration::ZERO), FIRST);
    }
}

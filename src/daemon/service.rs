//! What the service manager hears (sd_notify(3)): ready, reloading, stopping,
//! and again and again that the process lives.
//!
//! Alive means that every reactor has taken a message out of its mailbox and
//! answered: a process whose reactors are stuck is killed and started again by
//! systemd, and its VMs go on after their reconnect. Without a service manager
//! nothing here does anything.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sd_notify::NotifyState;

use super::pulse::Pulse;
use crate::reactor::Mailbox;

/// Signs of life within the time after which systemd gives up (WatchdogSec=).
const SIGNS: u32 = 3;

/// The way to the service manager.
#[derive(Debug)]
pub(super) struct Service {
    signs: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Service {
    /// Gives signs of life from now on, if systemd asks for them, as long as
    /// all of `reactors` answer.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub(super) fn start(reactors: &[Arc<Mailbox>]) -> io::Result<Self> {
        let Some(patience) = sd_notify::watchdog_enabled() else {
            return Ok(Self { signs: None });
        };
        let (stop, stopped) = sync_channel(1);
        let pulse = Pulse::new(reactors);
        let every = patience / SIGNS;
        let thread = std::thread::Builder::new().name("signs-of-life".into()).spawn(move || {
            let mut reported = Vec::new();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                let stuck = pulse.stuck(every);
                if stuck.is_empty() {
                    notify(&[NotifyState::Watchdog]);
                }
                for reactor in stuck.iter().filter(|reactor| !reported.contains(*reactor)) {
                    log::error!(
                        "reactor {reactor} does not answer; the VMs on it stand still, and systemd \
                         restarts leafblk unless it recovers"
                    );
                }
                reported = stuck;
            }
        })?;
        Ok(Self { signs: Some((stop, thread)) })
    }

    /// All is served; `status` says how much.
    pub(super) fn ready(&self, status: &str) {
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A new configuration is being taken up; [`Self::ready`] ends it.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(e) => {
                log::warn!("systemd isn't told of the reload, as there is no monotonic clock: {e}")
            }
        }
    }

    /// No longer: it stops, which may take a while where much is to be flushed.
    pub(super) fn stopping(mut self) {
        notify(&[NotifyState::Stopping, NotifyState::Status("flushing the leaves")]);
        // systemd expects no signs of life from here on, and the reactors go.
        if let Some((stop, thread)) = self.signs.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        log::warn!("the service manager can't be told {state:?}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    const UNIT: &str = include_str!("../../packaging/leafblk.service");

    fn value(key: &str) -> &'static str {
        UNIT.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"))
    }

    #[test]
    fn the_unit_tries_five_times_before_cloud_hypervisor_gives_a_disk_up() {
        // How long it tries to connect again (virtio-devices, `connect_vhost_user`).
        const PATIENCE: Duration = Duration::from_secs(60);
        assert_eq!(value("Restart="), "on-failure");
        assert_eq!(value("StartLimitIntervalSec="), "0");
        let millis = value("RestartSec=").strip_suffix("ms").unwrap().parse().unwrap();
        let (_, seconds) = value("ExecStopPost=").split_once("sleep ").unwrap();
        let seconds = seconds.trim_end_matches('\'').parse().unwrap();
        let pause = Duration::from_millis(millis) + Duration::from_secs(seconds);
        assert!(5 * pause < PATIENCE, "{pause:?}");
        // A crash, which leaves no time for a look: guests hardly notice.
        assert!(Duration::from_millis(millis) <= Duration::from_secs(1));
    }
}

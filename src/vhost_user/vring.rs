//! What a frontend has said of a queue, and the eventfds that it brings.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::{Error, Result};

use crate::reactor::QueueSetup;
use crate::request::features;
use crate::virtqueue::{InflightRegion, RingConfig};

/// A queue as far as the frontend has described it.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: u16,
    pub(super) base: u16,
    /// Descriptor table, driver area, device area.
    pub(super) addresses: Option<(u64, u64, u64)>,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    /// What a running queue notes its requests in, which may not be what queues
    /// that start now get.
    pub(super) inflight: Option<Arc<InflightRegion>>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

impl Vring {
    /// All that a reactor needs to run it as queue `index` of a device with
    /// these negotiated features; `None` while its addresses are not known.
    ///
    /// # Errors
    /// Where descriptors are used up.
    pub(super) fn setup(
        &self,
        index: u16,
        features: u64,
        enabled_anyway: bool,
        inflight: Option<Arc<InflightRegion>>,
    ) -> Result<Option<QueueSetup>> {
        let Some((desc, avail, used)) = self.addresses else {
            return Ok(None);
        };
        Ok(Some(QueueSetup {
            index,
            ring: RingConfig {
                size: self.size,
                desc_user_addr: desc,
                avail_user_addr: avail,
                used_user_addr: used,
                event_idx: features & features::EVENT_IDX != 0,
                next_avail: self.base,
            },
            kick: clone_fd(self.kick.as_ref())?,
            call: clone_fd(self.call.as_ref())?,
            enabled: self.enabled || enabled_anyway,
            inflight,
        }))
    }
}

pub(super) fn clone_fd(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>> {
    fd.map(OwnedFd::try_clone).transpose().map_err(Error::ReqHandlerError)
}

/// Takes only eventfds: anything else could block a writer, or never wake.
pub(super) fn eventfd(file: Option<File>) -> Result<Option<OwnedFd>> {
    let Some(file) = file else { return Ok(None) };
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let target = std::fs::read_link(link).map_err(Error::ReqHandlerError)?;
    if target.as_os_str() != "anon_inode:[eventfd]" {
        return Err(Error::InvalidParam);
    }
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| Error::ReqHandlerError(e.into()))?;
    rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::NONBLOCK)
        .map_err(|e| Error::ReqHandlerError(e.into()))?;
    Ok(Some(file.into()))
}

//! The configuration space, and the guest's write cache: its `writeback` field
//! (virtio 1.3, 5.2.5.2), which outlives the connection.

use vhost::vhost_user::{Error, Result};

use super::Handler;
use crate::leaf::WriteCache;
use crate::logging::limit::log_for;
use crate::reactor::{Agreed, Command};
use crate::request::config_space::ConfigSpace;
use crate::request::features;

impl Handler {
    pub(super) fn read_config(&self, offset: u32, size: u32) -> Result<Vec<u8>> {
        self.config_space().read(offset, size).ok_or(Error::InvalidParam)
    }

    pub(super) fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        match self.config_space().write(offset, bytes) {
            Some(write_back) => self.set_write_cache(write_back),
            None => self.fail("only the writeback field can be written, with 0 or 1"),
        }
    }

    fn config_space(&self) -> ConfigSpace {
        let no_flush = self.features & (features::CONFIG_WCE | features::FLUSH);
        let no_flush = no_flush == features::CONFIG_WCE;
        ConfigSpace {
            capacity_sectors: self.disk.sectors(),
            block_size: self.disk.block_size(),
            queues: u16::try_from(self.vrings.len()).unwrap_or(u16::MAX),
            // 5.2.5.2: such a driver finds it 0.
            write_back: self.write_back_field && !no_flush,
        }
    }

    /// Tells the reactor what of the features and the field concerns requests.
    pub(super) fn tell_agreed(&self) -> Result<()> {
        let agreed = Agreed {
            write_back: features::is_write_back(self.features, self.write_back_field),
            unit: features::request_unit(self.features, self.disk.block_size()),
        };
        let device = self.device;
        self.ask(|answer| Command::SetAgreed(device, agreed, answer))
    }

    /// Sets the field, for later connections and processes too.
    fn set_write_cache(&mut self, on: bool) -> Result<()> {
        let write_cache = if on { WriteCache::On } else { WriteCache::Off };
        // The leaf may be closed once the session is given up.
        match self.session.while_served(|| self.disk.set_write_cache(write_cache)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                return self.fail(format!("the writeback field can't be remembered: {e}"));
            }
            Err(given_up) => return self.fail(given_up),
        }
        self.write_back_field = on;
        self.tell_agreed()
    }

    /// Before a queue runs: settles the field where nothing is known of it. A
    /// guest that was there before may have cleared it, and no frontend says so
    /// again; a new one has read it.
    pub(super) fn settle_write_cache(&mut self, base: u16) -> Result<()> {
        let is_open = self.disk.write_cache() == WriteCache::Unknown;
        if !is_open || self.features & features::CONFIG_WCE == 0 {
            return Ok(());
        }
        let is_new = !self.came_back && base == 0;
        if !is_new {
            let name = self.disk.name();
            log_for!(
                self.disk,
                Warn,
                "VM {name}: whether its guest has switched its write cache off isn't known, so \
                 each write is made durable before it is answered: nothing is at risk, and writes \
                 are slower; to end that in a Linux guest: echo \"write through\" > \
                 /sys/block/vda/cache_type; echo \"write back\" > /sys/block/vda/cache_type"
            );
        }
        self.set_write_cache(is_new && self.write_back_field)
    }
}

//! What both sides agree to: virtio features, protocol features, and the status
//! that the driver sets.

use vhost::vhost_user::Result;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use super::Handler;
use crate::request::features;

/// The feature bit that vhost-user takes for itself.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The part of the protocol that is not there by itself and is served here.
pub(super) fn offered_protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::STATUS
}

impl Handler {
    /// The feature bits that the device offers.
    pub(super) fn offered(&self) -> u64 {
        features::offered(self.disk.is_read_only()) | PROTOCOL_FEATURES
    }

    pub(super) fn agree(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return self.fail(format!("feature bits {unknown:#x} were not offered"));
        }
        self.features = features;
        self.tell_agreed()
    }

    pub(super) fn agree_protocol(&mut self, features: u64) {
        // Bits that were not offered are ignored, since the crate offers some
        // of its own.
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
    }

    /// Whether queues run without being enabled, as the specification has it
    /// where protocol features were not agreed to.
    pub(super) fn is_enabled_anyway(&self) -> bool {
        self.features & PROTOCOL_FEATURES == 0
    }

    pub(in crate::vhost_user) fn has_status(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::STATUS)
    }

    pub(in crate::vhost_user) fn has_reply_ack(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// The virtio device status (virtio 1.3, 2.1), as the driver set it.
    pub(in crate::vhost_user) fn status(&self) -> u8 {
        self.status
    }

    /// Sets the status; 0 resets the device.
    pub(in crate::vhost_user) fn set_status(
        &mut self,
        status: u64,
    ) -> std::result::Result<(), String> {
        self.status = u8::try_from(status).map_err(|_| "a status is one byte".to_owned())?;
        if status == 0 {
            self.reset();
        }
        Ok(())
    }
}

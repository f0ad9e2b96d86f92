//! SET_STATUS and GET_STATUS (vhost-user, protocol feature STATUS), which the
//! `vhost` crate has no handler for.

use super::handler::Handler;
use super::socket::{GET_STATUS, HEADER_LEN, MessageSocket};

const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 4;
const FLAG_NEED_REPLY: u32 = 8;

/// Answers one of the two messages.
///
/// # Errors
/// A sentence, where the message is malformed or the peer is gone.
pub(super) fn answer(
    socket: &MessageSocket,
    message: &[u8],
    handler: &mut Handler,
) -> Result<(), String> {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        let field = message.get(at..).unwrap_or_default();
        let len = field.len().min(8);
        bytes[..len].copy_from_slice(&field[..len]);
        u64::from_le_bytes(bytes)
    };
    let (code, flags) = (number(0) & 0xffff_ffff, (number(4) & 0xffff_ffff));
    if !handler.has_status() {
        return Err("a status message comes without the feature being negotiated".into());
    }
    let reply = if code == u64::from(GET_STATUS) {
        u64::from(handler.status())
    } else {
        if message.len() != HEADER_LEN + 8 {
            return Err("a status message has the wrong length".into());
        }
        let accepted = handler.set_status(number(HEADER_LEN));
        if flags & u64::from(FLAG_NEED_REPLY) == 0 || !handler.has_reply_ack() {
            return accepted;
        }
        u64::from(accepted.is_err())
    };
    let mut bytes = Vec::with_capacity(HEADER_LEN + 8);
    bytes.extend_from_slice(&message[..4]);
    bytes.extend_from_slice(&(VERSION | FLAG_REPLY).to_le_bytes());
    bytes.extend_from_slice(&8u32.to_le_bytes());
    bytes.extend_from_slice(&reply.to_le_bytes());
    socket.send(&bytes).map_err(|e| format!("it doesn't take an answer: {e}"))
}

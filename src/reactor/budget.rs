//! What a turn may cost, so that everybody's next turn comes soon.
//!
//! The unit is a byte read from the cache: 4 KiB take half a microsecond. All
//! that a guest can make the reactor do has a price in it, also where no byte
//! is moved: otherwise it would be for nothing.

use crate::virtqueue::Chain;

/// What a device's turn may cost where others wait for theirs: about 30 µs.
const SHARED_TURN: u64 = 256 << 10;
/// The same where nobody does.
const ALONE_TURN: u64 = 1 << 20;
/// What a byte written costs: 4 KiB are written to a leaf in 5 to 8 µs.
const WRITE: u64 = 16;
/// What a segment costs beside its data: its descriptor is read and translated
/// (10 to 20 ns), and its page is likely in no cache of this CPU. A descriptor costs
/// as much where no segment comes of it, as with a length of zero.
const SEGMENT: u64 = 512;
/// What it costs to have a read started, or its end taken.
pub(super) const PART: u64 = 8 << 10;
/// What a task may do before it is another's turn.
pub(super) const STEP: u64 = 128 << 10;

/// What a turn may cost.
#[inline]
pub(super) const fn of_turn(alone: bool) -> u64 {
    if alone { ALONE_TURN } else { SHARED_TURN }
}

/// What a request costs at most, if it is served at once.
#[inline]
pub(super) fn of_chain(chain: &Chain) -> u64 {
    let total = |list: &[crate::virtqueue::GuestBuf]| -> u64 {
        list.iter().map(|buf| buf.len() as u64).sum()
    };
    let data = total(&chain.readable) * WRITE + total(&chain.writable);
    data + u64::from(chain.descriptors()).max(chain.segments() as u64) * SEGMENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::rig::Rig;
    use crate::virtqueue::{GuestBuf, SEGMENTS_MAX};

    fn chain(readable: &[usize], writable: &[usize]) -> Chain {
        let list = |lens: &[usize]| {
            lens.iter().map(|len| GuestBuf::new(std::ptr::null_mut(), *len)).collect()
        };
        Chain::of(list(readable), list(writable))
    }

    #[test]
    fn a_turn_has_room_for_a_queue_of_small_reads_and_for_few_small_writes() {
        let read = of_chain(&chain(&[16], &[4096, 1]));
        assert!(32 * read < of_turn(false), "{read}");
        let write = of_chain(&chain(&[16, 4096], &[1]));
        assert!((3..=8).contains(&(of_turn(false) / write)), "{write}");
    }

    #[test]
    fn descriptors_without_data_use_a_turn_up_too() {
        for len in [0, 1] {
            let longest = chain(&[16], &[len; SEGMENTS_MAX - 1]);
            assert!(of_chain(&longest) >= of_turn(false));
        }
        // Of those of no bytes no segment is left.
        assert!(of_chain(&Rig::chain_of_empty_descriptors()) >= of_turn(false));
        // Nor do many short ones come for nothing.
        assert!(of_chain(&chain(&[0], &[])) * 512 >= of_turn(false));
    }
}

//! Work in pieces of at most 1 MiB, whatever a disk's size.

use crate::units::SectorRange;

/// Bytes that are copied or compared at a time.
const PIECE_BYTES: usize = 1 << 20;
/// The same in sectors.
pub(super) const PIECE_SECTORS: u64 = PIECE_BYTES as u64 / 512;

/// The range in pieces, in order.
pub(super) fn pieces(range: SectorRange) -> impl Iterator<Item = SectorRange> {
    let mut rest = range;
    std::iter::from_fn(move || {
        let (piece, more) = rest.split_at(PIECE_SECTORS);
        rest = more;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Room for the content of a piece.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) fn new() -> Self {
        Self(vec![0; PIECE_BYTES])
    }

    /// As much of it as a piece has bytes.
    pub(super) fn of(&mut self, piece: SectorRange) -> &mut [u8] {
        let len = usize::try_from(piece.byte_len()).unwrap_or(usize::MAX);
        &mut self.0[..len.min(PIECE_BYTES)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sector;

    #[test]
    fn pieces_cover_a_range_once_and_fit_the_buffer() {
        for count in [0, 1, PIECE_SECTORS, 2 * PIECE_SECTORS + 7] {
            let range = SectorRange::new(Sector(5), count).unwrap();
            let mut at = range.start();
            for piece in pieces(range) {
                assert_eq!(piece.start(), at);
                assert_eq!(Buffer::new().of(piece).len() as u64, piece.byte_len());
                at = piece.end();
            }
            assert_eq!(at, range.end());
        }
    }
}

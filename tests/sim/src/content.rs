//! The content that programs write: pieces of sixteen bytes, each with its own number, so that every one of them can be
//! found again.

use std::collections::BTreeMap;

/// Bytes of a piece.
pub const PIECE: usize = 16;
/// Pieces of a large write: more than metadata holds inline.
const LARGE_PIECES: u32 = 320;
/// Distance of the offsets at which programs write.
pub const SLOT: u64 = LARGE_PIECES as u64 * PIECE as u64;

/// A piece, identified by its write and its index there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Piece {
    /// Number of the write.
    pub write: u32,
    /// Index of the piece in the write.
    pub index: u32,
}

/// Returns how many pieces a write has.
#[must_use]
pub fn pieces(large: bool) -> u32 {
    if large { LARGE_PIECES } else { 1 }
}

/// Returns the bytes of a piece.
#[must_use]
pub fn piece(write: u32, index: u32) -> Vec<u8> {
    let bytes = format!("<{write:08}.{index:05}>").into_bytes();
    debug_assert_eq!(bytes.len(), PIECE);
    bytes
}

/// Returns the bytes of a write.
#[must_use]
pub fn bytes(write: u32, large: bool) -> Vec<u8> {
    (0..pieces(large)).flat_map(|index| piece(write, index)).collect()
}

/// Returns the pieces of a content by their offsets; `None` where there is a hole.
///
/// # Errors
/// Returns bytes that were never written.
pub fn parse(content: &[u8]) -> Result<Vec<Option<Piece>>, String> {
    let parse = |bytes: &[u8]| match bytes {
        [b'<', write @ .., b'.', a, b, c, d, e, b'>'] if write.len() == 8 => {
            let piece = number(write).zip(number(&[*a, *b, *c, *d, *e]));
            piece.map(|(write, index)| Some(Piece { write, index }))
        }
        bytes => bytes.iter().all(|byte| *byte == 0).then_some(None),
    };
    let judged = |bytes| parse(bytes).ok_or_else(|| format!("nobody wrote {:?}", String::from_utf8_lossy(bytes)));
    content.chunks(PIECE).map(judged).collect()
}

/// Returns the number that a few decimal digits say.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')))
}

/// Returns how often each piece is there.
#[must_use]
pub fn count(pieces: &[Option<Piece>]) -> BTreeMap<Piece, u32> {
    let mut counts = BTreeMap::new();
    for piece in pieces.iter().flatten() {
        *counts.entry(*piece).or_insert(0) += 1;
    }
    counts
}

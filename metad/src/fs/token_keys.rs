//! The keys of join tokens and of their uses, in the tables `F` and `H` ([`keys`](super::keys)).

use super::keys::{Key, below, key};
use std::ops::Range;
use wire::ids::TokenId;

/// A join token.
#[must_use]
pub fn join_token(token: TokenId) -> Key {
    key(b'F', &[token.0], &[])
}

/// All join tokens; the token is the first number.
#[must_use]
pub fn join_tokens() -> Range<Key> {
    below(vec![b'F'])
}

/// Bytes of a key of [`enrolled`].
pub const ENROLLED_BYTES: usize = 41;

/// The use of a join token by the owner of a key.
#[must_use]
pub fn enrolled(token: TokenId, key_hash: &[u8; 32]) -> Key {
    key(b'H', &[token.0], key_hash)
}

/// All uses of a join token.
#[must_use]
pub fn uses_of(token: TokenId) -> Range<Key> {
    below(key(b'H', &[token.0], &[]))
}

/// All uses of all join tokens; the token is the first number.
#[must_use]
pub fn all_enrolled() -> Range<Key> {
    below(vec![b'H'])
}

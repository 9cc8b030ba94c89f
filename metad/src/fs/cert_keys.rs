//! The keys of issued identities, of revocations and of the audit, in the tables `M`, `V` and `N` ([`keys`](super::keys)).

use super::keys::{Key, below, key};
use std::ops::Range;
use wire::cert::KeyId;
use wire::codec;
use wire::revoked::Revoked;

/// An identity that was issued for a key.
#[must_use]
pub fn issued(of: &KeyId) -> Key {
    key(b'M', &[], &of.0)
}

/// All of them, in the order of their keys.
#[must_use]
pub fn all_issued() -> Range<Key> {
    below(vec![b'M'])
}

/// A revocation. Those of one name have one key, whatever their times.
#[must_use]
pub fn revocation(revoked: &Revoked) -> Key {
    let named = match revoked {
        Revoked::Name { role, name, .. } => codec::encode(&(0_u8, role, name)),
        Revoked::Key(of) => codec::encode(&(1_u8, of)),
        Revoked::Issuer(of) => codec::encode(&(2_u8, of)),
    };
    key(b'V', &[], blake3::hash(&named).as_bytes())
}

/// All revocations.
#[must_use]
pub fn all_revocations() -> Range<Key> {
    below(vec![b'V'])
}

/// A record of the audit, by its number.
#[must_use]
pub fn audit(number: u64) -> Key {
    key(b'N', &[number], &[])
}

/// All records of the audit, the oldest first.
#[must_use]
pub fn all_audit() -> Range<Key> {
    below(vec![b'N'])
}

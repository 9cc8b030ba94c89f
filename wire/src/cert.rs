//! The fields of a certificate besides its subject: its key, which distinguishes it from others of the same name, the key of
//! its issuer, the time of its issue, and its end.

use crate::attr::Timestamp;
use crate::codec;
use crate::subject::extension_of;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Private extension with the encoded time at which a certificate was issued. `notBefore` does not tell: it lies far back,
/// for the sake of machines whose clocks are behind.
pub(crate) const ISSUED_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 32473, 83, 3];
/// Certificates that end after this second (the beginning of the year 2100) were made to last.
const LASTING_FROM_SECS: i64 = 4_102_444_800;
/// Bytes of a key's name that are shown to people: nobody finds another key with the same ones.
const SHOWN_BYTES: usize = 10;

/// A key, by the BLAKE3 hash of its public part. It is the same in each certificate for the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub [u8; 32]);

impl KeyId {
    /// Returns that of a public key, as the bits of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn of(public_key: &[u8]) -> Self {
        Self(*blake3::hash(public_key).as_bytes())
    }

    /// Returns all 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The digits that are shown to people.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..SHOWN_BYTES].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = ();

    /// Reads all 64 digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        let mut key = [0; 32];
        for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| ())?;
        }
        Ok(Self(key))
    }
}

/// A CA, by the BLAKE3 hash of its name, of which a part is random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthorityId(pub [u8; 16]);

impl AuthorityId {
    fn of_name(name: &[u8]) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(name).as_bytes()[..16]);
        Self(id)
    }

    /// Returns that of a CA's certificate (DER), if it is one.
    #[must_use]
    pub fn of_ca(ca: &[u8]) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(ca).ok()?;
        Some(Self::of_name(parsed.tbs_certificate.subject.as_raw()))
    }

    /// Returns that of the CA by which a certificate (DER) says to be signed.
    pub(crate) fn of_signer(cert: &[u8]) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
        Some(Self::of_name(parsed.issuer().as_raw()))
    }
}

/// The digits that are shown to people.
impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..SHOWN_BYTES].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For how long a certificate is issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Term {
    /// When it is issued.
    pub issued: Timestamp,
    /// When it ends, in whole seconds; `None` for one that lasts.
    pub ends: Option<Timestamp>,
}

impl Term {
    /// Returns the term of a certificate that lasts.
    #[must_use]
    pub fn lasting() -> Self {
        Self { issued: Timestamp::now(), ends: None }
    }
}

/// What a certificate says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Certificate {
    /// Its key.
    pub key: KeyId,
    /// The key of the issuer that has signed it; `None` if the CA itself has.
    pub issuer: Option<KeyId>,
    /// The CA below which it stands.
    pub authority: AuthorityId,
    /// When it was issued. Certificates of earlier releases do not say, and count as issued in 1970, as those do that name a
    /// time at which they have ended.
    pub issued: Timestamp,
    /// When it ends.
    pub ends: Timestamp,
    /// Its public key (SubjectPublicKeyInfo, DER).
    pub public_key: Vec<u8>,
}

/// Returns the name of the signer in a certificate (DER), as it is coded there.
pub(crate) fn issuer_name(cert: &[u8]) -> Option<&[u8]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    Some(parsed.tbs_certificate.issuer.as_raw())
}

impl Certificate {
    /// Reads a certificate (DER) that was verified before, or is our own, and that of its issuer if it has one.
    pub(crate) fn read(leaf: &[u8], issuer: Option<&[u8]>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let authority = AuthorityId::of_signer(issuer.unwrap_or(leaf))?;
        let issuer = match issuer {
            Some(issuer) => Some(key_of(issuer)?),
            None => None,
        };
        let issued = extension_of(leaf, ISSUED_OID).and_then(|coded| codec::decode(&coded).ok());
        let ends = Timestamp { secs: parsed.validity().not_after.timestamp(), nanos: 0 };
        Some(Self {
            key: KeyId::of(&parsed.public_key().subject_public_key.data),
            issuer,
            authority,
            issued: plausible(issued, ends),
            ends,
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    /// Returns whether it is valid no more.
    #[must_use]
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.ends <= now
    }

    /// Returns whether it was made to last, so that it is never renewed.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        self.ends.secs >= LASTING_FROM_SECS
    }
}

/// Returns when a certificate was issued, as it says. One that says nothing, or a time at which it has ended, or one for which
/// nobody issues any today, counts as issued in 1970: it is covered by whatever is revoked of its name, and does not make a
/// revocation of its name last for ever.
fn plausible(issued: Option<Timestamp>, ends: Timestamp) -> Timestamp {
    issued.filter(|issued| *issued < ends && issued.secs < LASTING_FROM_SECS).unwrap_or_default()
}

/// Returns the key of a certificate (DER).
pub(crate) fn key_of(cert: &[u8]) -> Option<KeyId> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).ok()?;
    Some(KeyId::of(&parsed.public_key().subject_public_key.data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_says_it_was_issued_after_its_end_counts_as_old() {
        let at = |secs| Timestamp { secs, nanos: 0 };
        assert_eq!(plausible(Some(at(5)), at(9)), at(5));
        assert_eq!(plausible(None, at(9)), at(0));
        let lasting = at(LASTING_FROM_SECS + 1_000_000_000);
        for (issued, ends) in [(9, 9), (i64::MAX, 9), (i64::MAX, lasting.secs), (LASTING_FROM_SECS, lasting.secs)] {
            assert_eq!(plausible(Some(at(issued)), at(ends)), at(0), "{issued} {ends}");
        }
        assert_eq!(plausible(Some(at(LASTING_FROM_SECS - 1)), lasting), at(LASTING_FROM_SECS - 1));
        // Also as it stands in a certificate.
        let ca = crate::tls::ClusterCa::create("t").unwrap();
        let subject = crate::subject::Subject::new(crate::subject::Role::Client, "a");
        let read = |issued| {
            let term = Term { issued, ends: Some(at(4_000_000_000)) };
            ca.issue_for(&subject, &term).unwrap().certificate().issued
        };
        assert_eq!((read(at(5)), read(at(i64::MAX))), (at(5), at(0)));
    }

    #[test]
    fn a_key_is_read_from_all_of_its_digits_and_from_nothing_else() {
        let key = KeyId::of(b"key");
        assert_eq!(key.to_hex().parse(), Ok(key));
        assert!(key.to_hex().starts_with(&key.to_string()) && key.to_string().len() == 2 * SHOWN_BYTES);
        for wrong in [String::new(), key.to_string(), format!("{}0", key.to_hex()), "ä".repeat(32), "+f".repeat(32)] {
            assert_eq!(wrong.parse::<KeyId>(), Err(()), "{wrong}");
        }
    }
}

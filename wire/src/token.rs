//! Join tokens: what a new machine needs to get an identity, as one word of text.
//!
//! A token names the cluster by the hash of its CA's certificate, so that the machine knows whom it talks to before it
//! shows the secret. The cluster stores a hash of the secret, never the secret.

use crate::attr::Timestamp;
use crate::codec::{self, bounded};
use crate::ids::TokenId;
use crate::limits::{CLUSTER_NAME_BYTES_MAX, TOKEN_METADS_MAX};
use crate::tls::{ClientGrant, Role};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use thiserror::Error;

/// Beginning of every token, with the version of its form.
const PREFIX: &str = "surf1-";
/// Bytes of the checksum at the end, by which a token that was not copied whole is noticed.
const CHECKSUM_BYTES: usize = 4;
/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// The secret of a token, and what the cluster stores of it.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// Makes one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Returns its hash.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key("surf 2026 join token", &self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The hash of a secret. Comparing takes the same time wherever two of them differ.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(pub [u8; 32]);

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        // BLAKE3's own comparison takes constant time.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for SecretHash {}

/// A token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinToken {
    /// Name of the cluster, for people.
    pub cluster: String,
    /// Addresses of metads.
    #[serde(deserialize_with = "bounded::<_, _, TOKEN_METADS_MAX>")]
    pub metads: Vec<SocketAddr>,
    /// BLAKE3 hash of the certificate (DER) of the cluster's CA.
    pub ca: [u8; 32],
    /// The role that it gives, for people: the cluster decides.
    pub role: Role,
    /// Its number.
    pub id: TokenId,
    /// Its secret.
    pub secret: Secret,
}

/// Returns the hash of a CA's certificate (DER) by which tokens name a cluster.
#[must_use]
pub fn hash_of(ca: &[u8]) -> [u8; 32] {
    *blake3::hash(ca).as_bytes()
}

impl JoinToken {
    /// Returns whether this is the certificate (DER) of the cluster's CA.
    #[must_use]
    pub fn is_of(&self, ca: &[u8]) -> bool {
        hash_of(ca) == self.ca
    }

    /// Returns the token as one word, of letters, digits, `-` and `_`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = codec::encode(self);
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(&sum.as_bytes()[..CHECKSUM_BYTES]);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// A token that is to be made. The cluster never learns the secret from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewToken {
    /// Its number, chosen at random.
    pub id: TokenId,
    /// Hash of its secret.
    pub hash: SecretHash,
    /// The role that it gives.
    pub role: Role,
    /// The name that it gives; without one, each machine gets a name of its own. A token with a name is for one machine.
    pub name: Option<String>,
    /// What a client may do.
    pub grant: ClientGrant,
    /// For how many machines it is, 1 to [`TOKEN_USES_MAX`](crate::limits::TOKEN_USES_MAX).
    pub uses: u32,
    /// How long it is valid, in milliseconds, up to [`TOKEN_VALID_MAX_MS`](crate::limits::TOKEN_VALID_MAX_MS).
    pub valid_ms: u64,
}

/// A token, as operators see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its number.
    pub id: TokenId,
    /// The role that it gives.
    pub role: Role,
    /// The name that it gives.
    pub name: Option<String>,
    /// What a client may do.
    pub grant: ClientGrant,
    /// For how many machines it is.
    pub uses: u32,
    /// The names of those that have used it.
    pub used_by: Vec<String>,
    /// When it was made.
    pub made: Timestamp,
    /// Until when it is valid.
    pub until: Timestamp,
    /// What keeps it from being used.
    pub state: TokenState,
}

/// Whether a token can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TokenState {
    /// It can.
    Valid,
    /// Its time is over.
    Expired,
    /// It was used as often as it may be.
    UsedUp,
    /// An operator has revoked it.
    Revoked,
}

/// Why a text is no token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error("this is no token: a token is made by `surf token create`, and begins with {PREFIX}")]
    NoToken,
    /// It is not whole.
    #[error("the token is damaged: copy it whole, without spaces and line breaks in it")]
    Damaged,
    /// It is whole, and this program does not understand it.
    #[error("the token was made by another release of Surf: use the same release as the cluster")]
    OtherRelease,
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let coded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NoToken)?;
        if coded.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| TokenError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
        if blake3::hash(body).as_bytes()[..CHECKSUM_BYTES] != sum[..] {
            return Err(TokenError::Damaged);
        }
        let token: Self = codec::decode(body).map_err(|_| TokenError::OtherRelease)?;
        let is_bounded = token.cluster.len() <= CLUSTER_NAME_BYTES_MAX && !token.metads.is_empty();
        if is_bounded { Ok(token) } else { Err(TokenError::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            cluster: "home".to_owned(),
            metads: vec!["10.0.0.1:7101".parse().unwrap(), "[2001:db8::1]:7101".parse().unwrap()],
            ca: *blake3::hash(b"ca").as_bytes(),
            role: Role::Client,
            id: TokenId(7),
            secret: Secret([9; 32]),
        }
    }

    #[test]
    fn a_token_is_one_word_that_says_the_same_when_it_is_read() {
        let text = token().to_text();
        assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{text}");
        let again: JoinToken = format!(" {text}\n").parse().unwrap();
        assert_eq!(again.to_text(), text);
        assert!(again.is_of(b"ca") && !again.is_of(b"cb"));
        assert!(again.secret.hash() == token().secret.hash() && again.secret.hash() != Secret([8; 32]).hash());
        assert!(!format!("{again:?}").contains("9, 9"), "logs do not have the secret");
    }

    #[test]
    fn a_token_that_was_not_copied_whole_is_refused_for_that() {
        let text = token().to_text();
        for cut in PREFIX.len()..text.len() {
            assert_eq!(text[..cut].parse::<JoinToken>().unwrap_err(), TokenError::Damaged, "{cut}");
        }
        assert_eq!("surf-other".parse::<JoinToken>().unwrap_err(), TokenError::NoToken);
        assert_eq!(text.replacen('A', "B", 1).parse::<JoinToken>().unwrap_err(), TokenError::Damaged);
        let none = JoinToken { metads: Vec::new(), ..token() }.to_text();
        assert_eq!(none.parse::<JoinToken>().unwrap_err(), TokenError::Damaged);
    }
}

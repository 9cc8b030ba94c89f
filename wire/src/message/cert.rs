//! Certificates in messages: what was issued and revoked, renewals, and the audit.

use crate::attr::Timestamp;
use crate::cert::{KeyId, Term};
use crate::codec::bounded;
use crate::ids::MetadId;
use crate::limits::{AUDIT_MAX, ISSUED_MAX, ISSUERS_MAX, REVOKED_MAX};
use crate::revoked::Revoked;
use crate::tls::{Role, Subject};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use thiserror::Error;

/// An identity that the cluster has issued, by token or by renewal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IssuedInfo {
    /// Whom it is for.
    pub subject: Subject,
    /// Its key.
    pub key: KeyId,
    /// The keys of the issuers that have signed for it, the last one at the end.
    #[serde(deserialize_with = "bounded::<_, _, ISSUERS_MAX>")]
    pub issuers: Vec<KeyId>,
    /// The metad that has signed it last.
    pub by: MetadId,
    /// When the last certificate was issued, and when it ends.
    pub term: Term,
    /// Whence it was asked for last.
    pub addr: SocketAddr,
    /// Since when it is revoked.
    pub revoked: Option<Timestamp>,
}

/// Something that is revoked. It stays on the list until an operator takes it off.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RevokedInfo {
    /// What.
    pub revoked: Revoked,
    /// Since when.
    pub at: Timestamp,
    /// Who has revoked it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// All certificates that metad knows of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CertList {
    /// What the cluster has issued.
    #[serde(deserialize_with = "bounded::<_, _, ISSUED_MAX>")]
    pub issued: Vec<IssuedInfo>,
    /// What is revoked.
    #[serde(deserialize_with = "bounded::<_, _, REVOKED_MAX>")]
    pub revoked: Vec<RevokedInfo>,
    /// Life of the certificates that are issued from now on, in milliseconds.
    pub life_ms: u64,
}

/// What an operator wants to revoke, or to let in again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CertTarget {
    /// A name, or the first 8 digits or more of a key.
    pub text: String,
    /// The role of the name, if it is not clear.
    pub role: Option<Role>,
    /// The key is that of an issuer, or the name that of the metad that has signed with it.
    pub issuer: bool,
}

/// A metad asks the leader to note a renewal, before it signs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Renewal {
    /// Whom the certificate is for.
    pub subject: Subject,
    /// Its key.
    pub key: KeyId,
    /// When the certificate that was shown was issued.
    pub issued: Timestamp,
    /// When the certificate that was shown ends.
    pub ends: Timestamp,
    /// The key of the issuer that has signed the certificate that was shown; `None` if the CA itself has.
    pub shown: Option<KeyId>,
    /// The key of the issuer that is to sign.
    pub issuer: KeyId,
    /// The metad that is to sign.
    pub by: MetadId,
    /// Whence it was asked for.
    pub addr: SocketAddr,
}

/// Answer to somebody who asked for the renewal of the certificate that it has shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RenewReply {
    /// A certificate for the same key and subject.
    Renewed {
        /// The certificate (DER).
        certificate: Vec<u8>,
        /// The certificate of its issuer (DER).
        issuer: Vec<u8>,
    },
    /// There is none.
    Refused(RenewRefusal),
}

/// Why a certificate is not renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub enum RenewRefusal {
    /// This metad has no issuer that signs the role: another one may have.
    #[error("metad-{0} has no issuer that signs this role")]
    NoIssuer(MetadId),
    /// The certificate was made to last.
    #[error("the certificate was made to last, and is not renewed")]
    Lasting,
    /// The identity was revoked.
    #[error("the identity was revoked")]
    Revoked,
    /// The cluster does not remember to have issued the certificate, which has ended, or which an issuer has signed.
    #[error("the cluster does not remember the certificate: get a new identity by a token")]
    Unknown,
    /// The cluster remembers as many identities as it can.
    #[error("the cluster remembers as many identities as it can: revoke those that are not used")]
    Full,
    /// Nothing was decided: it may be asked for again later.
    #[error("no metad could decide")]
    Later,
    /// A certificate that were issued now would end no later.
    #[error("a certificate that were issued now would end no later than this one")]
    TooEarly,
}

impl RenewRefusal {
    /// Returns whether asking again may help.
    #[must_use]
    pub fn may_change(self) -> bool {
        matches!(self, Self::NoIssuer(_) | Self::Later | Self::Full | Self::TooEarly)
    }
}

/// Something that has happened to an identity, or that an operator did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AuditEvent {
    /// A newcomer has got its first certificate.
    Enrolled,
    /// A certificate was renewed.
    Renewed,
    /// Somebody was refused: a newcomer, a renewal, or a revoked certificate.
    Refused,
    /// An identity was revoked.
    Revoked,
    /// An identity is no longer revoked.
    Allowed,
    /// A join token was made.
    TokenCreated,
    /// A join token was revoked.
    TokenRevoked,
    /// A session was ended.
    Evicted,
    /// A metad was added.
    MetadAdded,
    /// A metad was removed.
    MetadRemoved,
    /// A block daemon has joined.
    BlockdJoined,
    /// A block daemon was removed.
    BlockdRemoved,
    /// The life of certificates was set.
    LifeSet,
}

impl AuditEvent {
    /// Returns its name, the same in logs and lists.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Renewed => "renewed",
            Self::Refused => "refused",
            Self::Revoked => "revoked",
            Self::Allowed => "allowed",
            Self::TokenCreated => "token-created",
            Self::TokenRevoked => "token-revoked",
            Self::Evicted => "evicted",
            Self::MetadAdded => "metad-added",
            Self::MetadRemoved => "metad-removed",
            Self::BlockdJoined => "blockd-joined",
            Self::BlockdRemoved => "blockd-removed",
            Self::LifeSet => "life-set",
        }
    }
}

impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A line of the audit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: AuditEvent,
    /// Whom or what it is about.
    pub who: String,
    /// Whence it was asked for.
    pub addr: Option<SocketAddr>,
    /// Who did it, or why.
    pub detail: String,
}

/// Records of the audit, the oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AuditRecords {
    /// The records.
    #[serde(deserialize_with = "bounded::<_, _, AUDIT_MAX>")]
    pub records: Vec<AuditRecord>,
}

//! Certificates in messages: what was issued and revoked, renewals, and the audit.

use crate::attr::Timestamp;
use crate::cert::{AuthorityId, KeyId, Term};
use crate::codec::{self, bounded};
use crate::ids::MetadId;
use crate::limits::{AUDIT_MAX, ISSUED_MAX, ISSUERS_MAX, METADS_MAX, REVOKED_MAX, UNMOVED_MAX};
use crate::revoked::Revoked;
use crate::tls::{Role, Subject};
use crate::trust::Trust;
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
    /// The CA of the last one of them.
    pub authority: AuthorityId,
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
    /// So many more were issued, which have no room in a message.
    pub left_out: u64,
}

impl CertList {
    /// Leaves out issued ones until the rest has room in so many bytes: first those that are revoked, for what is revoked is
    /// listed in any case.
    #[must_use]
    pub fn within(self, bytes: usize) -> Self {
        let rest = Self { issued: Vec::new(), ..self };
        let mut room = bytes.saturating_sub(codec::encoded_len(&rest));
        let (valid, revoked): (Vec<_>, Vec<_>) = self.issued.into_iter().partition(|info| info.revoked.is_none());
        let all = valid.len() + revoked.len();
        let mut has_room = |info: &IssuedInfo| {
            let needed = codec::encoded_len(info);
            let fits = needed <= room;
            room = if fits { room - needed } else { 0 };
            fits
        };
        let mut issued: Vec<IssuedInfo> = valid.into_iter().chain(revoked).take_while(|info| has_room(info)).collect();
        issued.sort_by_cached_key(|info| (info.subject.role.to_string(), info.subject.name.clone(), info.key));
        let left_out = (all - issued.len()) as u64;
        Self { issued, left_out, ..rest }
    }
}

/// Somebody who shows a certificate of an older CA, or shows none, while another CA takes its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unmoved {
    /// Who.
    pub subject: Subject,
    /// How it is known.
    pub what: UnmovedKind,
    /// Where it is, if that is known.
    pub addr: Option<SocketAddr>,
    /// It was not reached, so it is not known what it has.
    pub is_away: bool,
}

/// How somebody is known who shows a certificate of an older CA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum UnmovedKind {
    /// It is a member of the metads.
    Metad,
    /// It is in the layout.
    Blockd,
    /// It has a session.
    Session,
    /// The cluster has issued its certificate, which is valid.
    Issued,
}

/// What a metad signs with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MetadIssuer {
    /// An issuer below this CA.
    Of(AuthorityId),
    /// It has no issuer, or one that is refused.
    None,
    /// It was not reached.
    Unknown,
}

/// How far a change of the CA has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RotationStatus {
    /// The CAs that are trusted.
    pub trust: Trust,
    /// The metad that leads.
    pub leader: MetadId,
    /// What each metad signs with, by their numbers.
    #[serde(deserialize_with = "bounded::<_, _, METADS_MAX>")]
    pub issuers: Vec<(MetadId, MetadIssuer)>,
    /// Who shows no certificate of the newest CA yet: the first [`UNMOVED_MAX`].
    #[serde(deserialize_with = "bounded::<_, _, UNMOVED_MAX>")]
    pub unmoved: Vec<Unmoved>,
    /// So many more.
    pub left_out: u64,
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
    /// The CA that has signed that issuer.
    pub authority: AuthorityId,
    /// That CA takes the place of the one of the certificate that was shown.
    pub moves: bool,
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
    /// A new CA is trusted beside the one in use.
    CaAdded,
    /// The older one of two CAs is not trusted any more.
    CaReplaced,
    /// The newer one of two CAs is not trusted any more.
    CaAborted,
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
            Self::CaAdded => "ca-added",
            Self::CaReplaced => "ca-replaced",
            Self::CaAborted => "ca-aborted",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CERT_TEXT_BYTES_MAX, HEAD_BYTES_MAX, SUBJECT_NAME_BYTES_MAX};

    #[test]
    fn a_list_at_its_bounds_has_room_in_a_message_and_says_how_much_it_leaves_out() {
        let at = Timestamp { secs: i64::MAX, nanos: 999_999_999 };
        let long = |number: usize, bytes: usize| format!("{number:0bytes$}");
        let key = |number: usize| {
            let mut key = [0xff; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            KeyId(key)
        };
        let issued = |number: usize| IssuedInfo {
            subject: Subject::new(Role::Client, &long(number, SUBJECT_NAME_BYTES_MAX)),
            key: key(number),
            issuers: vec![key(number); ISSUERS_MAX],
            authority: AuthorityId([0xff; 16]),
            by: MetadId(u64::MAX),
            term: Term { issued: at, ends: Some(at) },
            addr: ([0xffff; 8], 7001).into(),
            revoked: (number % 2 == 1).then_some(at),
        };
        let revoked = |number: usize| RevokedInfo {
            revoked: Revoked::Name { role: Role::Client, name: long(number, CERT_TEXT_BYTES_MAX), until: at },
            at,
            by: long(number, SUBJECT_NAME_BYTES_MAX),
            reason: long(number, CERT_TEXT_BYTES_MAX),
        };
        let list = CertList {
            issued: (0..ISSUED_MAX).map(issued).collect(),
            revoked: (0..REVOKED_MAX).map(revoked).collect(),
            life_ms: 1,
            left_out: 0,
        };
        assert!(codec::encoded_len(&list) > HEAD_BYTES_MAX);
        let cut = list.clone().within(HEAD_BYTES_MAX - 64);
        let valid = cut.issued.iter().filter(|info| info.revoked.is_none()).count();
        assert!(codec::encoded_len(&cut) <= HEAD_BYTES_MAX - 64);
        assert_eq!((cut.revoked.len(), valid), (REVOKED_MAX, ISSUED_MAX / 2));
        assert!(cut.left_out > 0 && cut.issued.len() + cut.left_out as usize == ISSUED_MAX);
        assert!(cut.issued.is_sorted_by_key(|info| &info.subject.name));
        let small = CertList { issued: list.issued[..9].to_vec(), ..list };
        assert_eq!(small.clone().within(HEAD_BYTES_MAX), small);
    }
}

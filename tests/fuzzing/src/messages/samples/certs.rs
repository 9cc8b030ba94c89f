//! What messages about certificates have in them.

use super::{AT, addr, coded};
use crate::Samples;
use wire::cert::{AuthorityId, KeyId};
use wire::codec;
use wire::ids::{ClusterId, MetadId};
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::cert::{
    AuditEvent, AuditRecord, AuditRecords, CertTarget, MetadIssuer, RenewRefusal, RenewReply, Renewal, RotationStatus,
    Unmoved, UnmovedKind,
};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::revoked::{Revocations, Revoked};
use wire::tls::{Role, Subject};
use wire::trust::{SignedTrust, Trust};

/// Messages to metads and their answers.
pub fn meta() -> Samples {
    vec![
        coded("renew", MetaRequest::Renew),
        coded("trust", MetaRequest::Trust { version: 1 }),
        coded("trusted", MetaReply::Trust { steps: vec![step()] }),
        coded("issuer", MetaRequest::Issuer),
        coded("issuer-of", MetaReply::Issuer(Some(AuthorityId([4; 16])))),
        coded("note-renewal", MetaRequest::NoteRenewal(renewal())),
        coded("not-renewed", MetaReply::Renewal(RenewReply::Refused(RenewRefusal::Unknown))),
    ]
}

/// Messages to and from operators.
pub fn admin() -> Samples {
    vec![
        coded("revoke-cert", revoke()),
        coded("audit", AdminReply::Audit(audit())),
        coded("set-trust", AdminRequest::SetTrust { step: step(), force: false }),
        coded("rotation", AdminReply::Rotation(Box::new(rotation()))),
    ]
}

fn renewal() -> Renewal {
    Renewal {
        subject: Subject::new(Role::Client, "laptop"),
        key: KeyId([1; 32]),
        issued: AT,
        ends: AT,
        shown: Some(KeyId([3; 32])),
        issuer: KeyId([2; 32]),
        authority: AuthorityId([4; 16]),
        moves: true,
        by: MetadId(1),
        addr: addr(7001),
    }
}

pub fn revocations() -> Revocations {
    let name = Revoked::Name { role: Role::Client, name: "laptop".to_owned(), until: AT };
    Revocations { version: 3, list: vec![name, Revoked::Key(KeyId([1; 32])), Revoked::Issuer(KeyId([2; 32]))] }
}

fn trust() -> Trust {
    Trust { version: 1, authorities: vec![vec![0x30; 40], vec![0x31; 40]], ..Trust::original(ClusterId([7; 16])) }
}

/// A step with a signature that is none: real ones are different each time.
pub fn step() -> SignedTrust {
    let signatures = vec![(vec![0x30_u8; 40], 0x0403_u16, vec![0x30_u8; 70])];
    let coded = codec::encode(&(codec::encode(&trust()), signatures));
    codec::decode(&coded).expect("it has the form of one")
}

fn rotation() -> RotationStatus {
    let subject = Subject::new(Role::Client, "laptop");
    let unmoved = vec![Unmoved { subject, what: UnmovedKind::Session, addr: Some(addr(7001)), is_away: true }];
    let issuers = vec![
        (MetadId(1), MetadIssuer::Of(AuthorityId([4; 16]))),
        (MetadId(2), MetadIssuer::None),
        (MetadId(3), MetadIssuer::Unknown),
    ];
    RotationStatus { trust: trust(), leader: MetadId(1), issuers, unmoved, left_out: 3 }
}

fn revoke() -> AdminRequest {
    let target = CertTarget { text: "laptop".to_owned(), role: Some(Role::Client), issuer: false };
    AdminRequest::RevokeCert { target, force: false, reason: "lost".to_owned() }
}

fn audit() -> AuditRecords {
    let (who, detail) = ("client laptop".to_owned(), "by admin: lost".to_owned());
    let record = AuditRecord { at: AT, event: AuditEvent::Revoked, who, addr: Some(addr(7001)), detail };
    AuditRecords { records: vec![record] }
}

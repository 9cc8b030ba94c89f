//! What messages about certificates have in them.

use super::{AT, addr};
use wire::cert::{AuthorityId, KeyId};
use wire::ids::MetadId;
use wire::message::admin::AdminRequest;
use wire::message::cert::{AuditEvent, AuditRecord, AuditRecords, CertTarget, Renewal};
use wire::revoked::{Revocations, Revoked};
use wire::tls::{Role, Subject};

pub fn renewal() -> Renewal {
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

pub fn revoke() -> AdminRequest {
    let target = CertTarget { text: "laptop".to_owned(), role: Some(Role::Client), issuer: false };
    AdminRequest::RevokeCert { target, force: false, reason: "lost".to_owned() }
}

pub fn audit() -> AuditRecords {
    let (who, detail) = ("client laptop".to_owned(), "by admin: lost".to_owned());
    let record = AuditRecord { at: AT, event: AuditEvent::Revoked, who, addr: Some(addr(7001)), detail };
    AuditRecords { records: vec![record] }
}

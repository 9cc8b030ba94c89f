//! What the certificate of a node says, whether the CA or an issuer signs it.

use crate::cert::{ISSUED_OID, Term};
use crate::codec;
use crate::subject::{Role, SUBJECT_OID, Subject};
use rcgen::{CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use std::time::Duration;

/// Name in every certificate, which the TLS library requires; peers are known by CA and role instead.
pub(crate) const SERVER_NAME: &str = "node.surf.internal";

/// Returns the certificate of this subject, to be signed.
pub(crate) fn leaf_params(subject: &Subject, coded: Vec<u8>, term: &Term) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, format!("{} {}", subject.role, subject.name));
    params.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_OID, coded));
    params.custom_extensions.push(CustomExtension::from_oid_content(ISSUED_OID, codec::encode(&term.issued)));
    // RFC 5280 §4.2.1.12: both ends of a handshake look at this. Clients and operators serve nothing.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match subject.role {
        Role::Client | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Metad | Role::Blockd => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
    };
    params.not_after = match term.ends.and_then(|ends| u64::try_from(ends.secs).ok()) {
        Some(secs) => rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(secs),
        None => rcgen::date_time_ymd(2125, 1, 1),
    };
    Ok(params)
}

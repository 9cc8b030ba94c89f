//! Verification of chains of certificates: a leaf is signed by the CA, or by an issuer that the CA has signed.
//!
//! Signatures, validity and the length of the path are webpki's to check. What an issuer may sign is checked here: the
//! roles that its own certificate names, and never an operator: a stolen issuer makes no operators.

use crate::cert::{Certificate, issuer_name};
use crate::revoked::Refusals;
use crate::subject::{Role, issued_roles, subject_of};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;

/// Roles that an issuer can be allowed to sign.
pub(crate) const ISSUABLE: [Role; 3] = [Role::Client, Role::Blockd, Role::Metad];

/// Checks what webpki does not know: what the issuer of a verified chain may sign. webpki has looked at the issuer only if no CA
/// has signed the leaf itself: one that comes beside such a leaf was made by anybody, and is refused.
fn check_issuer(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[DistinguishedName],
) -> Result<(), Error> {
    let issuer = match intermediates {
        [] => return Ok(()),
        [issuer] => issuer,
        _ => return Err(CertificateError::UnknownIssuer.into()),
    };
    let signer = issuer_name(leaf);
    if signer.is_none_or(|name| roots.iter().any(|root| root.as_ref() == name)) {
        return Err(CertificateError::UnknownIssuer.into());
    }
    let role = subject_of(leaf).map(|subject| subject.role).filter(|role| ISSUABLE.contains(role));
    match (role, issued_roles(issuer)) {
        (Some(role), Some(roles)) if roles.contains(&role) => Ok(()),
        _ => Err(CertificateError::ApplicationVerificationFailure.into()),
    }
}

/// Checks that a certificate is not revoked. Whatever cannot be read was refused before.
fn check_revoked(
    refusals: Option<&Refusals>,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), Error> {
    let Some(refusals) = refusals else { return Ok(()) };
    let read = subject_of(leaf).zip(Certificate::read(leaf, intermediates.first().map(|cert| cert.as_ref())));
    match read {
        Some((subject, certificate)) if refusals.refuse(&subject, &certificate) => {
            Err(CertificateError::Revoked.into())
        }
        _ => Ok(()),
    }
}

/// Returns the last time at which a certificate was valid, or `now` if it is still valid. A server that lets
/// ended certificates in for renewal judges them at that time.
fn while_valid(leaf: &CertificateDer<'_>, now: UnixTime) -> UnixTime {
    let ends = Certificate::read(leaf, None).and_then(|certificate| u64::try_from(certificate.ends.secs).ok());
    UnixTime::since_unix_epoch(Duration::from_secs(ends.map_or(now.as_secs(), |ends| ends.min(now.as_secs()))))
}

/// Verifies clients. Revocation is looked up after the handshake: then the subject is known, and the peer can be sent the
/// reason.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    /// Whether somebody without a certificate, or with one that has ended, gets through the handshake.
    admits_strangers: bool,
}

impl ClientVerifier {
    /// Accepts certificates below these roots.
    pub(crate) fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { webpki, admits_strangers: false })
    }

    /// Whether those without any certificate, or with one that has ended, get through, too. The caller then looks whether
    /// there is one, and whether it has ended.
    pub(crate) fn admitting_strangers(self, admits_strangers: bool) -> Self {
        Self { admits_strangers, ..self }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.admits_strangers
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = if self.admits_strangers { while_valid(end_entity, now) } else { now };
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now)?;
        check_issuer(end_entity, intermediates, self.webpki.root_hint_subjects())?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Verifies servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// The names of the CAs. They are sent to the other side, which may have a certificate of each of several CAs.
    names: Vec<DistinguishedName>,
    refusals: Option<Arc<Refusals>>,
}

impl ServerVerifier {
    /// Accepts certificates below these roots.
    pub(crate) fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        let names = roots.subjects();
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { webpki, names, refusals: None })
    }

    /// Refuses what is revoked.
    pub(crate) fn refusing(self, refusals: Arc<Refusals>) -> Self {
        Self { refusals: Some(refusals), ..self }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.names)
    }

    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        check_issuer(end_entity, intermediates, &self.names)?;
        check_revoked(self.refusals.as_deref(), end_entity, intermediates)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cert::Term;
    use crate::issuer::{IssuerKey, NewKey, SigningRequest};
    use crate::subject::Subject;
    use crate::tls::ClusterCa;

    /// Otherwise its holder could say of itself that it stands below another CA than it does.
    #[test]
    fn an_issuer_that_comes_beside_what_the_ca_itself_has_signed_is_refused() {
        let ca = ClusterCa::create("t").unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.cert().unwrap().into()).unwrap();
        let roots = roots.subjects();
        let issuer = IssuerKey::create(&ca, "m", &[Role::Client]).unwrap();
        let request = SigningRequest::decode(&NewKey::generate().unwrap().request().unwrap()).unwrap();
        let leaf = issuer.sign(&request, &Subject::new(Role::Client, "c"), &Term::lasting()).unwrap();
        let beside = [CertificateDer::from(issuer.cert().to_vec())];
        assert_eq!(check_issuer(&leaf.into(), &beside, &roots), Ok(()));
        // The CA has signed its own certificate.
        let signed = CertificateDer::from(ca.cert().unwrap());
        assert_eq!(check_issuer(&signed, &[], &roots), Ok(()));
        assert_eq!(check_issuer(&signed, &beside, &roots), Err(CertificateError::UnknownIssuer.into()));
    }
}

//! Identities: a cluster CA, certificates with roles, and reading a peer's certificate.
//!
//! A node's certificate carries its [`Subject`] (role, name, and a client's grant) in a private extension, signed by
//! the cluster's CA or by an issuer below it ([`crate::issuer`]). Both ends of every connection verify each other against
//! that CA alone; host names play no part.

pub use crate::subject::{ClientGrant, Role, Squash, Subject};

use crate::attr::Timestamp;
use crate::cert::{Certificate, Term};
use crate::chain::ClientVerifier;
use crate::ids::ClusterId;
use crate::key_files::{read_file, sections, write_private};
use crate::leaf::leaf_params;
use crate::subject;
use crate::trust::{Besides, CLUSTER_OID, Former, SignedTrust, Trust, cluster_of, roots_of};
use crate::{Error, codec};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// A peer, known by its verified certificate.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// Whom its certificate is for.
    pub subject: Subject,
    /// What else the certificate says.
    pub certificate: Certificate,
    /// The cluster that both belong to.
    pub cluster: ClusterId,
    /// Where it connects from, or was reached.
    pub addr: SocketAddr,
}

/// The authority that makes all certificates of a cluster. Its key belongs to operators, not to daemons.
pub struct ClusterCa {
    cert_pem: String,
    key_pem: String,
}

pub(crate) fn crypto_failed(what: &str, error: impl fmt::Display) -> Error {
    Error::Identity { file: what.to_owned(), reason: error.to_string() }
}

impl ClusterCa {
    /// Makes a new CA.
    ///
    /// # Errors
    /// [`Error::Identity`] when no key can be made.
    pub fn create(cluster: &str) -> Result<Self, Error> {
        Self::create_for(cluster, None)
    }

    /// Makes a new CA that takes the place of another one of this cluster.
    ///
    /// # Errors
    /// As [`ClusterCa::create`].
    pub fn succeeding(cluster: &str, id: ClusterId) -> Result<Self, Error> {
        Self::create_for(cluster, Some(id))
    }

    fn create_for(cluster: &str, id: Option<ClusterId>) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(|error| crypto_failed("cluster CA", error))?;
        let mut params = CertificateParams::new(Vec::new()).map_err(|error| crypto_failed("cluster CA", error))?;
        // Below it there are issuers, and below these nothing that signs.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // The random part distinguishes clusters of one name: the error is then an unknown issuer, not a bad signature.
        params.distinguished_name.push(DnType::CommonName, format!("Surf {cluster} {:016x}", rand::random::<u64>()));
        params.not_after = rcgen::date_time_ymd(2125, 1, 1);
        let named = id.map(|id| CustomExtension::from_oid_content(CLUSTER_OID, codec::encode(&id)));
        params.custom_extensions.extend(named);
        let cert = params.self_signed(&key).map_err(|error| crypto_failed("cluster CA", error))?;
        Ok(Self { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Reads a CA that [`ClusterCa::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Identity`] when the file cannot be read, or is no CA.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::from_pem(path, &read_file(path)?)
    }

    /// Reads a CA from text with its certificate and key, in that order; `origin` is named in errors.
    ///
    /// # Errors
    /// [`Error::Identity`] when the text is no CA.
    pub fn from_pem(origin: &Path, text: &str) -> Result<Self, Error> {
        let [cert_pem, key_pem] = sections(origin, text, &["CERTIFICATE", "PRIVATE KEY"])?;
        Ok(Self { cert_pem, key_pem })
    }

    /// The CA's certificate, by which others know the cluster. No secret.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's key.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The id of the cluster of this CA.
    ///
    /// # Errors
    /// [`Error::Identity`] when the certificate is damaged.
    pub fn cluster_id(&self) -> Result<ClusterId, Error> {
        self.cert().map(|der| cluster_of(&der))
    }

    /// The CA's certificate (DER).
    ///
    /// # Errors
    /// As [`ClusterCa::cluster_id`].
    pub fn cert(&self) -> Result<Vec<u8>, Error> {
        let der = pem::parse(&self.cert_pem).map_err(|error| crypto_failed("cluster CA", error))?;
        Ok(der.into_contents())
    }

    /// Writes certificate and key to a file that only its owner can read.
    ///
    /// # Errors
    /// [`Error::Identity`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &format!("{}{}", self.cert_pem, self.key_pem))
    }

    /// Makes an identity.
    ///
    /// # Errors
    /// [`Error::Identity`] when the CA's key is unusable.
    pub fn issue(&self, subject: &Subject) -> Result<Identity, Error> {
        self.issue_for(subject, &Term::lasting())
    }

    /// Makes an identity that ends.
    ///
    /// # Errors
    /// As [`ClusterCa::issue`].
    pub fn issue_for(&self, subject: &Subject, term: &Term) -> Result<Identity, Error> {
        self.issue_coded(subject, codec::encode(subject), term)
    }

    fn issue_coded(&self, subject: &Subject, coded: Vec<u8>, term: &Term) -> Result<Identity, Error> {
        let failed = |error: rcgen::Error| crypto_failed("cluster CA", error);
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, ca_key).map_err(failed)?;
        let key = KeyPair::generate().map_err(failed)?;
        let cert = leaf_params(subject, coded, term).map_err(failed)?.signed_by(&key, &issuer).map_err(failed)?;
        let parts = Parts { ca: self.cert_pem.clone(), cert: cert.pem(), issuer: None, key: key.serialize_pem() };
        Identity::of_parts(Path::new("new identity"), parts)
    }
}

/// The parts of an identity, as PEM.
#[derive(Clone)]
struct Parts {
    ca: String,
    cert: String,
    /// The issuer that has signed the certificate, unless the CA itself did.
    issuer: Option<String>,
    key: String,
}

/// A node's own certificate and key, and the CA by which it knows others.
#[derive(Clone)]
pub struct Identity {
    parts: Parts,
    ca: CertificateDer<'static>,
    cert: CertificateDer<'static>,
    issuer: Option<CertificateDer<'static>>,
    key: Vec<u8>,
    subject: Subject,
    certificate: Certificate,
    besides: Besides,
}

impl Identity {
    /// Reads an identity from a file with CA certificate, own certificate, the certificate of its issuer if that is not
    /// the CA, and key, in that order.
    ///
    /// # Errors
    /// [`Error::Identity`] when the file cannot be read, or is no identity.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::from_pem(path, &read_file(path)?)
    }

    /// Reads an identity from text; `origin` is named in errors.
    ///
    /// # Errors
    /// [`Error::Identity`] when the text is no identity.
    pub fn from_pem(origin: &Path, text: &str) -> Result<Self, Error> {
        let damaged = |reason: String| Error::Identity {
            file: origin.display().to_string(),
            reason: format!("is damaged ({reason}): restore or issue it again"),
        };
        let (text, besides) = Besides::cut_off(text).map_err(damaged)?;
        let parts = match pem::parse_many(text) {
            Ok(found) if found.len() == 4 => {
                let wanted = ["CERTIFICATE", "CERTIFICATE", "CERTIFICATE", "PRIVATE KEY"];
                let [ca, cert, issuer, key] = sections(origin, text, &wanted)?;
                Parts { ca, cert, issuer: Some(issuer), key }
            }
            _ => {
                let [ca, cert, key] = sections(origin, text, &["CERTIFICATE", "CERTIFICATE", "PRIVATE KEY"])?;
                Parts { ca, cert, issuer: None, key }
            }
        };
        let identity = Self::of_parts(origin, parts)?;
        let Some(besides) = besides else { return Ok(identity) };
        if besides.trust.cluster != identity.cluster_id() {
            return Err(damaged("it trusts the CAs of another cluster".to_owned()));
        }
        if let Some(Former { ca, cert, issuer }) = &besides.former {
            let former = Self::of_chain(ca, cert, issuer.as_deref(), &identity.parts.key)
                .map_err(|error| damaged(error.to_string()))?;
            if former.subject != identity.subject || former.cluster_id() != identity.cluster_id() {
                return Err(damaged("its former certificate is another node's".to_owned()));
            }
        }
        Ok(Self { besides, ..identity })
    }

    /// Puts an identity together from certificates (DER) that a cluster has issued and the key (PEM) that they are for.
    ///
    /// # Errors
    /// [`Error::Identity`] when they do not belong together.
    pub(crate) fn of_issued(ca: &[u8], cert: &[u8], issuer: &[u8], key_pem: &str) -> Result<Self, Error> {
        Self::of_chain(ca, cert, Some(issuer), key_pem)
    }

    fn of_chain(ca: &[u8], cert: &[u8], issuer: Option<&[u8]>, key_pem: &str) -> Result<Self, Error> {
        let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        let parts = Parts { ca: pem(ca), cert: pem(cert), issuer: issuer.map(pem), key: key_pem.to_owned() };
        Self::of_parts(Path::new("issued identity"), parts)
    }

    fn of_parts(origin: &Path, parts: Parts) -> Result<Self, Error> {
        let der = |text: &str| match pem::parse(text) {
            Ok(section) => Ok(section.into_contents()),
            Err(error) => {
                Err(crypto_failed(&origin.display().to_string(), format!("is damaged ({error}): restore it")))
            }
        };
        let cert = der(&parts.cert)?;
        let unusable = |reason| Error::Identity { file: origin.display().to_string(), reason };
        let subject = match subject::coded_in(&cert) {
            Some(Ok(subject)) => subject,
            // One of another version says so.
            Some(Err(Error::Malformed(why))) => {
                return Err(unusable(format!("its certificate cannot be used: {why}")));
            }
            _ => {
                let why = "its certificate names no role, so it is damaged or not one of Surf's: restore it";
                return Err(unusable(why.to_owned()));
            }
        };
        let issuer = parts.issuer.as_deref().map(der).transpose()?.map(CertificateDer::from);
        let Some(certificate) = Certificate::read(&cert, issuer.as_deref()) else {
            return Err(unusable("its certificate is damaged: restore or issue it again".to_owned()));
        };
        let ca = der(&parts.ca)?;
        let identity = Self {
            besides: Besides::original(&ca),
            ca: CertificateDer::from(ca),
            cert: CertificateDer::from(cert),
            issuer,
            key: der(&parts.key)?,
            parts,
            subject,
            certificate,
        };
        identity.check(origin)?;
        Ok(identity)
    }

    /// Checks that the parts belong together: otherwise every peer would refuse us, and none could say why.
    fn check(&self, origin: &Path) -> Result<(), Error> {
        let wrong = |what: &str, error: &dyn fmt::Display| Error::Identity {
            file: origin.display().to_string(),
            reason: format!("{what} ({error}): restore or issue it again"),
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(|error| wrong("its CA certificate is damaged", &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        CertifiedKey::from_der(self.chain(), self.key(), &provider)
            .map_err(|error| wrong("its key is damaged, or does not fit its certificate", &error))?;
        let stranger = "its certificate is damaged, or not of the CA beside it";
        let verifier = ClientVerifier::new(roots, provider).map_err(|error| wrong(stranger, &error))?;
        // One that has ended is as good as ever for its renewal.
        let verifier = verifier.admitting_strangers(true);
        let verified = verifier.verify_client_cert(&self.cert, self.issuer.as_slice(), UnixTime::now());
        verified.map(|_| ()).map_err(|error| wrong(stranger, &error))
    }

    /// The identity as text, in the form that [`Identity::from_pem`] reads.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let Parts { ca, cert, issuer, key } = &self.parts;
        format!("{ca}{cert}{}{key}{}", issuer.as_deref().unwrap_or_default(), self.besides.to_pem())
    }

    /// Writes the identity to a file that only its owner can read.
    ///
    /// # Errors
    /// [`Error::Identity`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.to_pem())
    }

    /// Whom it is for.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What its certificate says besides.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Returns this identity with a newer certificate (DER) for its key, and that of its issuer. If that is below another CA
    /// that is trusted, the certificate that it has is retained for those who trust the older CA alone.
    ///
    /// # Errors
    /// [`Error::Identity`] when they do not belong together, or the certificate is for somebody else.
    pub fn renewed(&self, cert: &[u8], issuer: &[u8]) -> Result<Self, Error> {
        let renewed = Self::of_any(&self.authorities(), cert, issuer, &self.parts.key)?;
        if renewed.subject != self.subject {
            let reason = format!("is for {} {}", renewed.subject.role, renewed.subject.name);
            return Err(Error::Identity { file: "renewed certificate".to_owned(), reason });
        }
        let former = if renewed.ca == self.ca { self.besides.former.clone() } else { Some(self.as_former()) };
        Ok(Self { besides: Besides { former, trust: self.besides.trust.clone() }, ..renewed })
    }

    /// Puts an identity together that is below one of these CAs.
    fn of_any(authorities: &[Vec<u8>], cert: &[u8], issuer: &[u8], key_pem: &str) -> Result<Self, Error> {
        let mut made = authorities.iter().rev().map(|ca| Self::of_issued(ca, cert, issuer, key_pem));
        let first = made.next().unwrap_or_else(|| Err(crypto_failed("issued identity", "no CA is trusted")));
        first.or_else(|error| made.find_map(Result::ok).ok_or(error))
    }

    fn as_former(&self) -> Former {
        let issuer = self.issuer.as_ref().map(|issuer| issuer.to_vec());
        Former { ca: self.ca.to_vec(), cert: self.cert.to_vec(), issuer }
    }

    /// Returns that of the two which is newer, if both are of one key and for one subject; otherwise this one.
    #[must_use]
    pub fn or_later(self, other: Self) -> Self {
        let is_same = self.key == other.key && self.subject == other.subject && self.cluster_id() == other.cluster_id();
        let (version, of_other) = (self.besides.trust.version, other.besides.trust.version);
        let is_newer = of_other > version || (of_other == version && other.supersedes(&self));
        if is_same && is_newer { other } else { self }
    }

    /// Returns whether this one is below a newer CA of those that are trusted, or the same one, and ends later.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        let rank = |identity: &Self| self.besides.trust.authorities.iter().position(|ca| *ca == *identity.ca);
        (rank(self), self.certificate.ends) > (rank(other), other.certificate.ends)
    }

    /// Returns whether another CA is to be used than the one below which this one is.
    #[must_use]
    pub fn is_to_move(&self) -> bool {
        self.besides.trust.newest().is_some_and(|newest| newest != self.certificate.authority)
    }

    /// The CAs that it trusts.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.besides.trust
    }

    /// The certificates (DER) of the CAs that it trusts, the one to use at the end.
    #[must_use]
    pub fn authorities(&self) -> Vec<Vec<u8>> {
        let trusted = &self.besides.trust.authorities;
        if trusted.is_empty() { vec![self.ca.to_vec()] } else { trusted.clone() }
    }

    /// Returns whether it has a certificate below one of these CAs.
    #[must_use]
    pub fn is_below_one_of(&self, trust: &Trust) -> bool {
        let former = self.besides.former.as_ref().map(|former| former.ca.as_slice());
        trust.authorities.iter().any(|ca| *ca == *self.ca || Some(ca.as_slice()) == former)
    }

    /// Returns this identity with other CAs that it trusts. Its former certificate is in use again if only that is below one of
    /// them.
    ///
    /// # Errors
    /// [`Error::Identity`] when the former certificate is damaged.
    pub fn trusting(&self, trust: &Trust) -> Result<Self, Error> {
        let is_trusted = |ca: &[u8]| trust.authorities.iter().any(|trusted| trusted == ca);
        let former = self.besides.former.as_ref().filter(|former| is_trusted(&former.ca));
        let (identity, former) = match former {
            Some(former) if !is_trusted(&self.ca) => {
                let Former { ca, cert, issuer } = former;
                (Self::of_chain(ca, cert, issuer.as_deref(), &self.parts.key)?, None)
            }
            former => (self.clone(), former.cloned()),
        };
        Ok(Self { besides: Besides { trust: trust.clone(), former }, ..identity })
    }

    /// Signs the CAs to trust, together with another operator.
    ///
    /// # Errors
    /// [`Error::Identity`] when a key cannot sign.
    pub fn sign_trust(&self, trust: &Trust, other: Option<&Self>) -> Result<SignedTrust, Error> {
        let signers = std::iter::once(self).chain(other).map(|one| (one.cert.as_ref(), one.key())).collect();
        SignedTrust::sign(trust, signers)
    }

    /// Returns the part of its life that is left at this time: 1 for a new one, 0 or less for one that has ended.
    #[must_use]
    pub fn life_left(&self, now: Timestamp) -> f64 {
        let Certificate { issued, ends, .. } = &self.certificate;
        ends.nanos_since(now) as f64 / ends.nanos_since(*issued).max(1) as f64
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        cluster_of(&self.ca)
    }

    /// A secret for one use, named by `context`, that stays the same as long as this identity does.
    pub(crate) fn derive_key(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.key)
    }

    pub(crate) fn roots(&self) -> Result<rustls::RootCertStore, Error> {
        roots_of(&self.authorities())
    }

    /// The chain below the older CA and that CA's certificate, if there is one.
    pub(crate) fn former(&self) -> Option<(Vec<CertificateDer<'static>>, Vec<u8>)> {
        let Former { ca, cert, issuer } = self.besides.former.clone()?;
        Some((std::iter::once(cert).chain(issuer).map(CertificateDer::from).collect(), ca))
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.cert).chain(&self.issuer).cloned().collect()
    }

    /// The certificate of the CA (DER).
    #[must_use]
    pub fn ca(&self) -> &[u8] {
        &self.ca
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Identity").field("subject", &self.subject).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_identity_of_another_version_is_refused_as_one() {
        let subject = Subject::new(Role::Blockd, "blockd-1");
        let mut coded = codec::encode(&subject);
        coded[0] -= 1;
        let error =
            ClusterCa::create("test").unwrap().issue_coded(&subject, coded, &Term::lasting()).unwrap_err().to_string();
        assert!(error.contains("use the release that wrote it") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn an_identity_knows_its_role_and_cluster_after_a_round_trip() {
        let ca = ClusterCa::create("test").unwrap();
        let identity = ca.issue(&Subject::new(Role::Blockd, "blockd-1")).unwrap();
        let again = Identity::from_pem(Path::new("x"), &identity.to_pem()).unwrap();
        assert_eq!(again.subject(), &Subject::new(Role::Blockd, "blockd-1"));
        assert_eq!(again.cluster_id(), identity.cluster_id());
        let other = ClusterCa::create("test").unwrap().issue(&Subject::new(Role::Blockd, "blockd-1")).unwrap();
        assert_ne!(other.cluster_id(), identity.cluster_id());
        assert_eq!(ca.cluster_id().unwrap(), identity.cluster_id());
    }

    #[test]
    fn a_clients_grant_is_in_its_certificate() {
        let ca = ClusterCa::create("test").unwrap();
        let ca = ClusterCa::from_pem(Path::new("x"), &format!("{}{}", ca.cert_pem(), ca.key_pem())).unwrap();
        let mut subject = Subject::new(Role::Client, "laptop");
        subject.grant = ClientGrant {
            read_only: true,
            subtree: Some("/home/a".to_owned()),
            squash: Squash::Root { uid: 65534, gid: 65534 },
        };
        assert_eq!(ca.issue(&subject).unwrap().subject(), &subject);
    }

    #[test]
    fn only_the_owner_can_read_a_saved_key() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        fs::write(dir.path().join("ca.pem.partial"), "left by a crash").unwrap();
        ClusterCa::create("test").unwrap().save(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        ClusterCa::load(&path).unwrap();
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let issue = |ca: &ClusterCa| ca.issue(&Subject::new(Role::Metad, "m")).unwrap();
        let ca = ClusterCa::create("test").unwrap();
        let (one, two, foreign) = (issue(&ca), issue(&ca), issue(&ClusterCa::create("test").unwrap()));
        let load = |ca: &str, cert: &str, key: &str| Identity::from_pem(Path::new("x"), &format!("{ca}{cert}{key}"));
        assert!(load(&one.parts.ca, &one.parts.cert, &one.parts.key).is_ok());
        let error = load(&one.parts.ca, &one.parts.cert, &two.parts.key).unwrap_err().to_string();
        assert!(error.contains("x: its key"), "{error}");
        let error = load(&foreign.parts.ca, &one.parts.cert, &one.parts.key).unwrap_err().to_string();
        assert!(error.contains("not of the CA beside it"), "{error}");
    }

    #[test]
    fn a_truncated_identity_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.pem");
        let identity = ClusterCa::create("test").unwrap().issue(&Subject::new(Role::Admin, "a")).unwrap();
        let text = identity.to_pem();
        for cut in [0, 10, text.len() / 2, text.len() - 30] {
            fs::write(&path, &text[..cut]).unwrap();
            let error = Identity::load(&path).unwrap_err().to_string();
            assert!(error.contains("node.pem"), "{error}");
        }
    }
}

//! Identities: a cluster CA, certificates with roles, and reading a peer's certificate.
//!
//! A node's certificate carries its [`Subject`] (role, name, and a client's grant) in a private extension, signed by
//! the cluster's CA. Both ends of every connection verify each other against that CA alone; host names play no part.

use crate::ids::ClusterId;
use crate::{Error, codec, durable};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Name in every certificate, which the TLS library requires; peers are known by CA and role instead.
pub(crate) const SERVER_NAME: &str = "node.surf.internal";
/// Private extension that holds the encoded [`Subject`], below the arc for documentation and experiments.
const SUBJECT_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 32473, 83, 1];

/// Role of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A metadata daemon.
    Metad,
    /// A block daemon.
    Blockd,
    /// A mount.
    Client,
    /// An operator.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Metad => "metad",
            Role::Blockd => "blockd",
            Role::Client => "client",
            Role::Admin => "admin",
        })
    }
}

/// What a client may do. It is part of the certificate, so that no program of the client's can change it. The daemons
/// enforce it, or refuse its holder ([`Subject::check_enforced`]).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClientGrant {
    /// Only reading.
    pub read_only: bool,
    /// Absolute path of the directory that is the client's root; `None` for the whole filesystem.
    pub subtree: Option<String>,
    /// Whose rights the client's users have.
    pub squash: Squash,
}

/// Replacement of the user ids that a client reports, as in exports(5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Squash {
    /// Ids are taken as they come.
    #[default]
    None,
    /// Root becomes this user and group (`root_squash`).
    Root {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// Everyone becomes this user and group (`all_squash`).
    All {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// Whom a certificate is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// What it is.
    pub role: Role,
    /// Its name, such as `metad-1`.
    pub name: String,
    /// What a client may do; default for other roles.
    pub grant: ClientGrant,
}

impl Subject {
    /// A subject without restrictions.
    #[must_use]
    pub fn new(role: Role, name: &str) -> Self {
        Self { role, name: name.to_owned(), grant: ClientGrant::default() }
    }

    /// Checks that daemons enforce everything that the certificate says: they serve no other. It counts for every role,
    /// because whoever wrote a restriction into a certificate relies on it.
    ///
    /// # Errors
    /// [`Error::NotEnforced`].
    pub fn check_enforced(&self) -> Result<(), Error> {
        let restriction = match &self.grant {
            ClientGrant { subtree: Some(path), .. } => format!("the subtree {path:?}"),
            ClientGrant { squash: Squash::Root { .. } | Squash::All { .. }, .. } => {
                "other user ids for its users".to_owned()
            }
            ClientGrant { subtree: None, squash: Squash::None, read_only: _ } => return Ok(()),
        };
        Err(Error::NotEnforced { name: self.name.clone(), restriction })
    }
}

/// A peer, known by its verified certificate.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// Whom its certificate is for.
    pub subject: Subject,
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

fn crypto_failed(what: &str, error: impl fmt::Display) -> Error {
    Error::Identity { file: what.to_owned(), reason: error.to_string() }
}

impl ClusterCa {
    /// Makes a new CA.
    ///
    /// # Errors
    /// [`Error::Identity`] when no key can be made.
    pub fn create(cluster: &str) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(|error| crypto_failed("cluster CA", error))?;
        let mut params = CertificateParams::new(Vec::new()).map_err(|error| crypto_failed("cluster CA", error))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // The random part distinguishes clusters of one name: the error is then an unknown issuer, not a bad signature.
        params.distinguished_name.push(DnType::CommonName, format!("Surf {cluster} {:016x}", rand::random::<u64>()));
        params.not_after = rcgen::date_time_ymd(2125, 1, 1);
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
        let der = pem::parse(&self.cert_pem).map_err(|error| crypto_failed("cluster CA", error))?;
        Ok(cluster_of(der.contents()))
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
        self.issue_coded(subject, codec::encode(subject))
    }

    fn issue_coded(&self, subject: &Subject, coded: Vec<u8>) -> Result<Identity, Error> {
        let failed = |error: rcgen::Error| crypto_failed("cluster CA", error);
        let ca_key = KeyPair::from_pem(&self.key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, ca_key).map_err(failed)?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, format!("{} {}", subject.role, subject.name));
        params.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_OID, coded));
        params.not_after = rcgen::date_time_ymd(2125, 1, 1);
        let cert = params.signed_by(&key, &issuer).map_err(failed)?;
        Identity::from_pems(Path::new("new identity"), &self.cert_pem, &cert.pem(), &key.serialize_pem())
    }
}

/// A node's own certificate and key, and the CA by which it knows others.
#[derive(Clone)]
pub struct Identity {
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
    ca: CertificateDer<'static>,
    cert: CertificateDer<'static>,
    key: Vec<u8>,
    subject: Subject,
}

impl Identity {
    /// Reads an identity from a file with CA certificate, own certificate and key, in that order.
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
        let [ca, cert, key] = sections(origin, text, &["CERTIFICATE", "CERTIFICATE", "PRIVATE KEY"])?;
        Self::from_pems(origin, &ca, &cert, &key)
    }

    fn from_pems(origin: &Path, ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let der = |text: &str| match pem::parse(text) {
            Ok(section) => Ok(section.into_contents()),
            Err(error) => {
                Err(crypto_failed(&origin.display().to_string(), format!("is damaged ({error}): restore it")))
            }
        };
        let cert = der(cert_pem)?;
        let unusable = |reason| Error::Identity { file: origin.display().to_string(), reason };
        let subject = match coded_subject(&cert) {
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
        let identity = Self {
            ca: CertificateDer::from(der(ca_pem)?),
            cert: CertificateDer::from(cert),
            key: der(key_pem)?,
            ca_pem: ca_pem.to_owned(),
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            subject,
        };
        identity.check(origin)?;
        Ok(identity)
    }

    /// Checks that the three parts belong together: otherwise every peer would refuse us, and none could say why.
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
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verified = verifier.map_err(|error| wrong(stranger, &error))?;
        let verified = verified.verify_client_cert(&self.cert, &[], UnixTime::now());
        verified.map(|_| ()).map_err(|error| wrong(stranger, &error))
    }

    /// The identity as text, in the form that [`Identity::from_pem`] reads.
    #[must_use]
    pub fn to_pem(&self) -> String {
        format!("{}{}{}", self.ca_pem, self.cert_pem, self.key_pem)
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
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).map_err(|error| crypto_failed("CA certificate", error))?;
        Ok(roots)
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.cert.clone()]
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

/// The cluster whose CA has this certificate (DER).
fn cluster_of(ca: &[u8]) -> ClusterId {
    let mut id = [0_u8; 16];
    id.copy_from_slice(&blake3::hash(ca).as_bytes()[..16]);
    ClusterId(id)
}

/// The subject in a certificate (DER) that was verified before, or is our own.
pub(crate) fn subject_of(cert: &[u8]) -> Option<Subject> {
    coded_subject(cert)?.ok()
}

/// The subject in a certificate, if it has one, or why it cannot be decoded.
fn coded_subject(cert: &[u8]) -> Option<Result<Subject, Error>> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let wanted: Vec<u64> = SUBJECT_OID.to_vec();
    let extension = cert
        .extensions()
        .iter()
        .find(|extension| extension.oid.iter().is_some_and(|parts| parts.eq(wanted.iter().copied())))?;
    Some(codec::decode(extension.value))
}

fn read_file(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::Identity {
        file: path.display().to_string(),
        reason: format!("cannot be read ({error}): restore it, or correct the path"),
    })
}

/// Cuts PEM text into exactly the wanted sections.
fn sections<const N: usize>(origin: &Path, text: &str, wanted: &[&str; N]) -> Result<[String; N], Error> {
    let wrong = |reason: String| Error::Identity { file: origin.display().to_string(), reason };
    let found =
        pem::parse_many(text).map_err(|error| wrong(format!("is damaged ({error}): restore or issue it again")))?;
    let tags: Vec<&str> = found.iter().map(pem::Pem::tag).collect();
    if tags != wanted {
        return Err(wrong(format!("holds {tags:?} where {wanted:?} is expected: restore or issue it again")));
    }
    let texts: Vec<String> = found.iter().map(pem::encode).collect();
    texts.try_into().map_err(|_| wrong("is damaged: restore or issue it again".to_owned()))
}

/// Writes a secret: complete or not at all, readable by its owner alone, durable on return.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    durable::replace(path, text.as_bytes()).map_err(|error| Error::Identity {
        file: path.display().to_string(),
        reason: format!("cannot be written: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_of_another_version_is_refused_as_one() {
        let subject = Subject::new(Role::Blockd, "blockd-1");
        let mut coded = codec::encode(&subject);
        coded[0] -= 1;
        let error = ClusterCa::create("test").unwrap().issue_coded(&subject, coded).unwrap_err().to_string();
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
        assert!(load(&one.ca_pem, &one.cert_pem, &one.key_pem).is_ok());
        let error = load(&one.ca_pem, &one.cert_pem, &two.key_pem).unwrap_err().to_string();
        assert!(error.contains("x: its key"), "{error}");
        let error = load(&foreign.ca_pem, &one.cert_pem, &one.key_pem).unwrap_err().to_string();
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

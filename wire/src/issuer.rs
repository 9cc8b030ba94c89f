//! Issuers: keys below the CA with which metads sign identities of newcomers, so that the CA's key can stay offline.
//!
//! A newcomer makes its key itself and sends a [signing request](NewKey::request), which proves that it has the key and
//! asks for nothing: what a certificate says comes from the token. What an issuer may sign stands in its own certificate,
//! and every verifier holds it to that ([`crate::chain`]).

use crate::cert::{AuthorityId, Certificate, KeyId, Term, key_of};
use crate::chain::ISSUABLE;
use crate::key_files::{read_file, read_private, sections, write_private};
use crate::leaf::leaf_params;
use crate::subject::{ISSUER_OID, issued_roles};
use crate::tls::{ClusterCa, Identity, Role, Subject, crypto_failed};
use crate::trust::SignedTrust;
use crate::{Error, codec};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DistinguishedName, DnType,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData, SubjectPublicKeyInfo,
};
use std::fmt;
use std::path::Path;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Largest signing request, in bytes: one with a key and nothing else has some 200.
pub const REQUEST_BYTES_MAX: usize = 1 << 10;
/// How the public key of a [`NewKey`] begins (SubjectPublicKeyInfo in DER, RFC 5480): ECDSA, the curve P-256, and a point
/// that is not compressed.
const KEY_HEAD: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// The two coordinates of its point, in bytes.
const KEY_COORDINATES_BYTES: usize = 64;

/// The right to sign identities, and the key for it.
pub struct IssuerKey {
    cert_pem: String,
    cert: Vec<u8>,
    key_pem: String,
    signer: Issuer<'static, KeyPair>,
    roles: Vec<Role>,
    key: KeyId,
    authority: AuthorityId,
}

impl IssuerKey {
    /// Has the CA sign a new issuer of identities of these roles. The name is for people.
    ///
    /// # Errors
    /// [`Error::Identity`] when a role is not an issuer's to sign, or the CA's key is unusable.
    pub fn create(ca: &ClusterCa, name: &str, roles: &[Role]) -> Result<Self, Error> {
        if let Some(role) = roles.iter().find(|role| !ISSUABLE.contains(role)) {
            let reason = format!("an issuer cannot sign the role {role}: only the CA itself can");
            return Err(Error::Identity { file: "new issuer".to_owned(), reason });
        }
        Self::create_unchecked(ca, name, roles)
    }

    fn create_unchecked(ca: &ClusterCa, name: &str, roles: &[Role]) -> Result<Self, Error> {
        let failed = |error: rcgen::Error| crypto_failed("cluster CA", error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        // The random part distinguishes issuers of one name, as for a CA.
        let name = format!("Surf issuer {name} {:016x}", rand::random::<u64>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.custom_extensions.push(CustomExtension::from_oid_content(ISSUER_OID, codec::encode(roles)));
        params.not_after = rcgen::date_time_ymd(2125, 1, 1);
        let ca_key = KeyPair::from_pem(ca.key_pem()).map_err(failed)?;
        let ca = Issuer::from_ca_cert_pem(ca.cert_pem(), ca_key).map_err(failed)?;
        let cert = params.signed_by(&key, &ca).map_err(failed)?;
        Self::of_parts(Path::new("new issuer"), cert.pem(), key.serialize_pem())
    }

    /// Reads what [`IssuerKey::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Identity`] when the file cannot be read, or is no issuer.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let [cert, key] = sections(path, &read_file(path)?, &["CERTIFICATE", "PRIVATE KEY"])?;
        Self::of_parts(path, cert, key)
    }

    fn of_parts(origin: &Path, cert_pem: String, key_pem: String) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Identity { file: origin.display().to_string(), reason };
        let damaged = |error: &dyn fmt::Display| wrong(format!("is damaged ({error}): restore or make it again"));
        let cert = pem::parse(&cert_pem).map_err(|error| damaged(&error))?.into_contents();
        let Some(roles) = issued_roles(&cert) else {
            return Err(wrong("is no issuer: make one with `surf cluster issuer`".to_owned()));
        };
        let Some((key, authority)) = key_of(&cert).zip(AuthorityId::of_signer(&cert)) else {
            return Err(wrong("is damaged: restore or make it again".to_owned()));
        };
        let pair = KeyPair::from_pem(&key_pem).map_err(|error| damaged(&error))?;
        let signer = Issuer::from_ca_cert_pem(&cert_pem, pair).map_err(|error| damaged(&error))?;
        Ok(Self { cert_pem, cert, key_pem, signer, roles, key, authority })
    }

    /// Writes certificate and key to a file that only its owner can read.
    ///
    /// # Errors
    /// [`Error::Identity`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &format!("{}{}", self.cert_pem, self.key_pem))
    }

    /// Returns the roles that it may sign.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Returns its certificate (DER), which belongs to each identity that it signs.
    #[must_use]
    pub fn cert(&self) -> &[u8] {
        &self.cert
    }

    /// Returns its key, by which it can be revoked.
    #[must_use]
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Returns the CA that has signed it.
    #[must_use]
    pub fn authority(&self) -> AuthorityId {
        self.authority
    }

    /// Checks that it signs for the cluster of this identity, by signing something.
    ///
    /// # Errors
    /// [`Error::Identity`] when what it signs is not accepted there.
    pub fn check(&self, origin: &Path, identity: &Identity) -> Result<(), Error> {
        let Some(role) = self.roles.first() else { return Ok(()) };
        let key = NewKey::generate()?;
        let request = SigningRequest::decode(&key.request()?)?;
        let cert = self.sign(&request, &Subject::new(*role, "probe"), &Term::lasting())?;
        let is_accepted = |ca: &Vec<u8>| key.identity(ca, &cert, &self.cert).is_ok();
        identity.authorities().iter().any(is_accepted).then_some(()).ok_or_else(|| {
            let reason = "its key does not fit its certificate, or it is of another cluster than the identity: make one \
                with this cluster's ca.pem by `surf cluster issuer`";
            Error::Identity { file: origin.display().to_string(), reason: reason.to_owned() }
        })
    }

    /// Signs a certificate for the key of a request. Returns it as DER.
    ///
    /// # Errors
    /// [`Error::Identity`] when the role is none that it may sign.
    pub fn sign(&self, request: &SigningRequest, subject: &Subject, term: &Term) -> Result<Vec<u8>, Error> {
        self.check_role(subject)?;
        self.sign_unchecked(&request.key, subject, term)
    }

    /// Signs another certificate for the key of one that its holder has shown. Returns it as DER.
    ///
    /// # Errors
    /// As [`IssuerKey::sign`].
    pub fn renew(&self, shown: &Certificate, subject: &Subject, term: &Term) -> Result<Vec<u8>, Error> {
        self.check_role(subject)?;
        let key = SubjectPublicKeyInfo::from_der(&shown.public_key).map_err(|error| crypto_failed("issuer", error))?;
        self.sign_unchecked(&key, subject, term)
    }

    fn check_role(&self, subject: &Subject) -> Result<(), Error> {
        if self.roles.contains(&subject.role) {
            return Ok(());
        }
        let reason = format!("does not sign the role {}", subject.role);
        Err(Error::Identity { file: "issuer".to_owned(), reason })
    }

    fn sign_unchecked(&self, key: &impl PublicKeyData, subject: &Subject, term: &Term) -> Result<Vec<u8>, Error> {
        let failed = |error: rcgen::Error| crypto_failed("issuer", error);
        let params = leaf_params(subject, codec::encode(subject), term).map_err(failed)?;
        Ok(params.signed_by(key, &self.signer).map_err(failed)?.der().to_vec())
    }
}

impl fmt::Debug for IssuerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("IssuerKey").field("roles", &self.roles).finish_non_exhaustive()
    }
}

/// A key that asks for a certificate; its owner has shown that it has the private part.
pub struct SigningRequest {
    key: PublicKey,
}

impl SigningRequest {
    /// Reads a request (DER) of a stranger.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it is too large or damaged, not signed by its key, of another kind of key than
    /// [`NewKey`] makes, or asks for more than a certificate for its key.
    pub fn decode(der: &[u8]) -> Result<Self, Error> {
        let wrong = |why: String| Error::Malformed(format!("the signing request {why}"));
        if der.len() > REQUEST_BYTES_MAX {
            return Err(wrong(format!("has {} bytes, which are too many", der.len())));
        }
        let found = CertificateSigningRequestParams::from_der(&der.to_vec().into());
        let CertificateSigningRequestParams { params, public_key } =
            found.map_err(|error| wrong(format!("cannot be used: {error}")))?;
        // The algorithm of the signature does not say which curve the key has.
        let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|error| wrong(error.to_string()))?;
        let key = parsed.certification_request_info.subject_pki.raw;
        let is_p256 = key.starts_with(&KEY_HEAD) && key.len() == KEY_HEAD.len() + KEY_COORDINATES_BYTES;
        if !is_p256 || public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(wrong("has a key that is not ECDSA P-256, uncompressed".to_owned()));
        }
        if !rest.is_empty() {
            return Err(wrong("goes on behind its end".to_owned()));
        }
        let asks_for_nothing = params.distinguished_name == DistinguishedName::new()
            && params.subject_alt_names.is_empty()
            && params.key_usages.is_empty()
            && params.extended_key_usages.is_empty()
            && params.is_ca == IsCa::NoCa;
        if !asks_for_nothing {
            return Err(wrong("asks for names or extensions, which only the token decides".to_owned()));
        }
        Ok(Self { key: public_key })
    }

    /// Returns a hash of the key, by which a repeated request is recognised.
    #[must_use]
    pub fn key_hash(&self) -> [u8; 32] {
        KeyId::of(self.key.der_bytes()).0
    }
}

/// A newcomer's key, which never leaves its machine.
pub struct NewKey(KeyPair);

impl NewKey {
    /// Makes one.
    ///
    /// # Errors
    /// [`Error::Identity`] when none can be made.
    pub fn generate() -> Result<Self, Error> {
        KeyPair::generate().map(Self).map_err(|error| crypto_failed("new key", error))
    }

    /// Reads one that an earlier attempt of this user has written, if there is one.
    ///
    /// # Errors
    /// [`Error::Identity`] when the file cannot be read, others may know what is in it, or it is no key.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let wrong = |error: rcgen::Error| Error::Identity {
            file: path.display().to_string(),
            reason: format!("is no key ({error}): remove it"),
        };
        let Some(text) = read_private(path)? else { return Ok(None) };
        KeyPair::from_pem(&text).map(|key| Some(Self(key))).map_err(wrong)
    }

    /// Returns whether an identity has this key.
    #[must_use]
    pub fn is_of(&self, identity: &Identity) -> bool {
        self.0.serialize_der() == identity.key().secret_der()
    }

    /// Writes it to a file that only its owner can read.
    ///
    /// # Errors
    /// [`Error::Identity`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.to_pem())
    }

    /// Makes the identity of certificates (DER) that a cluster has issued for this key.
    ///
    /// # Errors
    /// [`Error::Identity`] when they do not belong together.
    pub fn identity(&self, ca: &[u8], cert: &[u8], issuer: &[u8]) -> Result<Identity, Error> {
        Identity::of_issued(ca, cert, issuer, &self.to_pem())
    }

    /// Makes the identity of somebody who knows one CA (DER) of a cluster, which has told it of these steps since.
    ///
    /// # Errors
    /// As [`NewKey::identity`].
    pub fn identity_after(
        &self,
        ca: &[u8],
        steps: &[SignedTrust],
        cert: &[u8],
        issuer: &[u8],
    ) -> Result<Identity, Error> {
        let mut known = vec![ca.to_vec()];
        let mut trust = None;
        for step in steps {
            // One that is signed by others is of before, or of no use.
            if let Ok(verified) = step.verified(&known) {
                known.clone_from(&verified.authorities);
                trust = Some(verified);
            }
        }
        let mut made = known.iter().rev().map(|ca| self.identity(ca, cert, issuer));
        let first = made.next().unwrap_or_else(|| self.identity(ca, cert, issuer));
        let identity = first.or_else(|error| made.find_map(Result::ok).ok_or(error))?;
        match trust {
            Some(trust) => identity.trusting(&trust),
            None => Ok(identity),
        }
    }

    fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Returns a signing request (DER) for it.
    ///
    /// # Errors
    /// [`Error::Identity`] when it cannot sign.
    pub fn request(&self) -> Result<Vec<u8>, Error> {
        self.request_of(bare_params())
    }

    fn request_of(&self, params: CertificateParams) -> Result<Vec<u8>, Error> {
        let request = params.serialize_request(&self.0).map_err(|error| crypto_failed("new key", error))?;
        Ok(request.der().to_vec())
    }
}

/// A request without a name: rcgen's default has one.
fn bare_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ClientGrant;
    use base64::Engine;
    use rcgen::SanType;
    use rcgen::string::Ia5String;

    fn request(key: &NewKey) -> SigningRequest {
        SigningRequest::decode(&key.request().unwrap()).unwrap()
    }

    fn identity(ca: &ClusterCa, cert: &[u8], issuer: &[u8], key: &NewKey) -> Result<Identity, Error> {
        let ca = pem::parse(ca.cert_pem()).unwrap().into_contents();
        key.identity(&ca, cert, issuer)
    }

    #[test]
    fn an_identity_that_an_issuer_has_signed_is_kept_and_read_like_one_of_the_ca() {
        let ca = ClusterCa::create("t").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("issuer.pem");
        IssuerKey::create(&ca, "metad-1", &ISSUABLE).unwrap().save(&path).unwrap();
        let issuer = IssuerKey::load(&path).unwrap();
        let mut subject = Subject::new(Role::Client, "laptop");
        subject.grant = ClientGrant { read_only: true, ..ClientGrant::default() };
        let key = NewKey::generate().unwrap();
        let cert = issuer.sign(&request(&key), &subject, &Term::lasting()).unwrap();
        let made = identity(&ca, &cert, issuer.cert(), &key).unwrap();
        let again = Identity::from_pem(Path::new("x"), &made.to_pem()).unwrap();
        assert_eq!((again.subject(), again.cluster_id()), (&subject, ca.cluster_id().unwrap()));
        assert_eq!(again.chain().len(), 2);
        assert!(key.is_of(&again) && !NewKey::generate().unwrap().is_of(&again));
        issuer.check(&path, &again).unwrap();
        let error = issuer.check(&path, &ClusterCa::create("t").unwrap().issue(&subject).unwrap()).unwrap_err();
        assert!(error.to_string().contains("issuer.pem: ") && error.to_string().contains("another cluster"), "{error}");
        let error = IssuerKey::load(&{
            let other = dir.path().join("ca.pem");
            ca.save(&other).unwrap();
            other
        });
        assert!(error.unwrap_err().to_string().contains("ca.pem: is no issuer"));
    }

    #[test]
    fn what_an_issuer_signs_beyond_its_roles_is_accepted_by_nobody() {
        let ca = ClusterCa::create("t").unwrap();
        let key = NewKey::generate().unwrap();
        let clients = IssuerKey::create(&ca, "clients", &[Role::Client]).unwrap();
        assert!(clients.sign(&request(&key), &Subject::new(Role::Metad, "m"), &Term::lasting()).is_err());
        // Somebody who has stolen the key signs what they like.
        for role in [Role::Metad, Role::Blockd, Role::Admin] {
            let cert =
                clients.sign_unchecked(&request(&key).key, &Subject::new(role, "forged"), &Term::lasting()).unwrap();
            let error = identity(&ca, &cert, clients.cert(), &key).unwrap_err().to_string();
            assert!(error.contains("not of the CA beside it"), "{role}: {error}");
        }
        assert!(IssuerKey::create(&ca, "all", &[Role::Client, Role::Admin]).is_err());
        // Even a CA that allows an issuer to sign operators does not have its way.
        let all = IssuerKey::create_unchecked(&ca, "all", &[Role::Admin]).unwrap();
        let cert =
            all.sign_unchecked(&request(&key).key, &Subject::new(Role::Admin, "forged"), &Term::lasting()).unwrap();
        assert!(identity(&ca, &cert, all.cert(), &key).is_err());
    }

    #[test]
    fn what_a_certificate_says_cannot_be_changed_afterwards() {
        let ca = ClusterCa::create("t").unwrap();
        let issuer = IssuerKey::create(&ca, "i", &ISSUABLE).unwrap();
        let (key, mut subject) = (NewKey::generate().unwrap(), Subject::new(Role::Client, "laptop"));
        subject.grant.read_only = true;
        subject.grant.subtree = Some("/home".to_owned());
        let cert = issuer.sign(&request(&key), &subject, &Term::lasting()).unwrap();
        let coded = codec::encode(&subject);
        let at = cert.windows(coded.len()).position(|part| part == coded).unwrap();
        subject.grant.read_only = false;
        for forged in [subject.clone(), Subject { grant: ClientGrant::default(), ..subject }] {
            let mut cert = cert.clone();
            let mut other = codec::encode(&forged);
            other.resize(coded.len(), 0);
            cert[at..at + coded.len()].copy_from_slice(&other);
            assert!(identity(&ca, &cert, issuer.cert(), &key).is_err());
        }
    }

    #[test]
    fn neither_a_leaf_nor_an_issuer_makes_issuers() {
        let ca = ClusterCa::create("t").unwrap();
        let issuer = IssuerKey::create(&ca, "i", &ISSUABLE).unwrap();
        // An "issuer" that an issuer has signed, and a leaf of it.
        let as_ca = |issuer: &IssuerKey| {
            ClusterCa::from_pem(Path::new("x"), &format!("{}{}", issuer.cert_pem, issuer.key_pem)).unwrap()
        };
        let below = IssuerKey::create(&as_ca(&issuer), "below", &ISSUABLE).unwrap();
        let key = NewKey::generate().unwrap();
        let cert = below.sign(&request(&key), &Subject::new(Role::Client, "c"), &Term::lasting()).unwrap();
        assert!(identity(&ca, &cert, below.cert(), &key).is_err());
        // A leaf that signs.
        let leaf = ca.issue(&Subject::new(Role::Client, "leaf")).unwrap().to_pem();
        let parts = pem::parse_many(&leaf).unwrap();
        let signer = format!("{}{}", pem::encode(&parts[1]), pem::encode(&parts[2]));
        let signer = ClusterCa::from_pem(Path::new("x"), &signer).unwrap();
        let Ok(made) = IssuerKey::create(&signer, "made", &ISSUABLE) else { return };
        let cert = made.sign(&request(&key), &Subject::new(Role::Client, "c"), &Term::lasting()).unwrap();
        assert!(identity(&ca, &cert, made.cert(), &key).is_err());
    }

    #[test]
    fn a_request_that_asks_for_names_or_extensions_is_refused() {
        let key = NewKey::generate().unwrap();
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = bare_params();
            change(&mut params);
            let request = params.serialize_request(&key.0).unwrap();
            SigningRequest::decode(request.der()).err().map(|error| error.to_string())
        };
        assert_eq!(with(&|_| {}), None);
        let name = |text: &str| SanType::DnsName(Ia5String::try_from(text).unwrap());
        let admin = codec::encode(&Subject::new(Role::Admin, "me"));
        for refused in [
            with(&|params| params.distinguished_name.push(DnType::CommonName, "admin me")),
            with(&|params| params.subject_alt_names.push(name("node.surf.internal"))),
            with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            with(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            with(&|params| {
                let own = CustomExtension::from_oid_content(crate::subject::SUBJECT_OID, admin.clone());
                params.custom_extensions.push(own);
            }),
        ] {
            assert!(refused.is_some());
        }
    }

    #[test]
    fn a_key_of_another_curve_gets_no_certificate_though_its_signature_is_made_like_ours() {
        // `openssl req -new -sha256` with a key of the curve P-384.
        let request = "MIH3MH8CAQAwADB2MBAGByqGSM49AgEGBSuBBAAiA2IABKMExJdcQ/mGc6n2fj4KcjAvZf8BW/mp0VgKMvYw8kz0r3zK+66w\
            IUztLdP5M0JXeZEu0Mzdo0MiTB/XmvDcjE5EaGzqjmZbtXXxhAvmomhPkwa4PFXhCpTUb9XMAlf9X6AAMAoGCCqGSM49BAMCA2gAMGUCMB\
            xpr8GQo1QckehRAO1uvH6VolHgqFraBTEOXwXHnIe5TjEEBFZ+Z9TLW3vjUbhGVQIxANNdKdt9HWYEnK0BlgXnZT4yeSQhMiNtJDKx3XuX\
            I+lLT7RCbd3WX2J2OsdW4SJiaQ==";
        let request = base64::engine::general_purpose::STANDARD.decode(request).unwrap();
        let found = CertificateSigningRequestParams::from_der(&request.clone().into()).unwrap();
        assert_eq!(found.public_key.algorithm(), &PKCS_ECDSA_P256_SHA256, "the signature does not tell");
        let refused = SigningRequest::decode(&request).err().unwrap().to_string();
        assert!(refused.contains("not ECDSA P-256"), "{refused}");
        let mut longer = NewKey::generate().unwrap().request().unwrap();
        longer.push(0);
        assert!(SigningRequest::decode(&longer).is_err());
    }

    #[test]
    fn a_request_that_its_key_has_not_signed_is_refused_and_so_are_damaged_and_huge_ones() {
        let (one, two) = (NewKey::generate().unwrap(), NewKey::generate().unwrap());
        let (good, other) = (one.request().unwrap(), two.request().unwrap());
        // The key of one, the signature of the other: the signature is at the end.
        let mut mixed = good.clone();
        let at = good.len() - 40;
        if good.len() == other.len() {
            mixed[at..].copy_from_slice(&other[at..]);
        } else {
            mixed[at] ^= 1;
        }
        assert!(SigningRequest::decode(&mixed).is_err());
        for cut in 0..good.len() {
            assert!(SigningRequest::decode(&good[..cut]).is_err());
        }
        let huge = SigningRequest::decode(&vec![0x30; REQUEST_BYTES_MAX + 1]).err().unwrap().to_string();
        assert!(huge.contains("too many"), "{huge}");
        assert_eq!(request(&one).key_hash(), request(&one).key_hash());
        assert_ne!(request(&one).key_hash(), request(&two).key_hash());
    }
}

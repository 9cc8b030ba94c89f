//! Which CAs a cluster trusts, while a new one takes the place of an older one and afterwards.
//!
//! Operators sign each step. Their certificates are signed by a CA itself, so nobody who has taken a metad or an issuer over can
//! bring in a CA, and whoever hands a step on need not be believed.

use crate::Error;
use crate::cert::{AuthorityId, Certificate};
use crate::chain::ClientVerifier;
use crate::codec::{self, bounded};
use crate::ids::ClusterId;
use crate::limits::{AUTHORITIES_MAX, AUTHORITY_BYTES_MAX, TRUST_BYTES_MAX};
use crate::revoked::Refusals;
use crate::subject::{Role, Subject, extension_of, subject_of};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Private extension of a CA that has taken the place of another one: the encoded id of its cluster.
pub(crate) const CLUSTER_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 32473, 83, 4];
/// How a message begins that operators sign, so that it is none of TLS.
const SIGNED_HEAD: &[u8] = b"surf: the CAs that a cluster trusts\0";
/// Operators that sign one step: one of each CA.
const SIGNATURES_MAX: usize = 2;
/// Schemes with which operators may sign.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// The cluster of a CA, by its certificate (DER): the one that it names, or else the hash of the certificate.
pub(crate) fn cluster_of(ca: &[u8]) -> ClusterId {
    let named = extension_of(ca, CLUSTER_OID).and_then(|coded| codec::decode::<ClusterId>(&coded).ok());
    named.unwrap_or_else(|| {
        let mut id = [0_u8; 16];
        id.copy_from_slice(&blake3::hash(ca).as_bytes()[..16]);
        ClusterId(id)
    })
}

/// The CAs that a cluster trusts. Version 0, which has none, means that of each identity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trust {
    /// The cluster.
    pub cluster: ClusterId,
    /// Grows by one with each step.
    pub version: u64,
    /// Their certificates (DER). The last one is the one to use.
    #[serde(deserialize_with = "bounded::<_, _, AUTHORITIES_MAX>")]
    pub authorities: Vec<Vec<u8>>,
    /// Only identities that the cluster remembers get certificates of the new CA: somebody else may have had the key of the
    /// older one.
    pub remembered_only: bool,
}

impl Trust {
    /// Returns that of a cluster whose CA was never replaced.
    #[must_use]
    pub fn original(cluster: ClusterId) -> Self {
        Self { cluster, version: 0, authorities: Vec::new(), remembered_only: false }
    }

    /// Checks what can be checked without other nodes: these are CAs of the cluster, with different names.
    ///
    /// # Errors
    /// [`Error::Malformed`], with the reason.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |why: &str| Err(Error::Malformed(format!("the CAs to trust are not usable: {why}")));
        if self.authorities.is_empty() || self.authorities.len() > AUTHORITIES_MAX {
            return wrong("there are one or two");
        }
        for ca in &self.authorities {
            if ca.len() > AUTHORITY_BYTES_MAX {
                return wrong("a certificate is too large");
            }
            let is_ca =
                x509_parser::parse_x509_certificate(ca).is_ok_and(|(rest, parsed)| rest.is_empty() && parsed.is_ca());
            if !is_ca || roots_of(std::slice::from_ref(ca)).is_err() {
                return wrong("a certificate is none of a CA");
            }
            if cluster_of(ca) != self.cluster {
                return wrong("a CA names another cluster");
            }
        }
        let ids = self.ids();
        if ids.len() != self.authorities.len() || (ids.len() == 2 && ids[0] == ids[1]) {
            return wrong("two CAs have the same name");
        }
        Ok(())
    }

    /// Returns the CAs, in their order.
    #[must_use]
    pub fn ids(&self) -> Vec<AuthorityId> {
        self.authorities.iter().filter_map(|ca| AuthorityId::of_ca(ca)).collect()
    }

    /// Returns whether a new CA is about to take the place of an older one.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.authorities.len() > 1
    }

    /// Returns the CA to use, if another one was ever brought in.
    #[must_use]
    pub fn newest(&self) -> Option<AuthorityId> {
        self.authorities.last().and_then(|ca| AuthorityId::of_ca(ca))
    }
}

/// The signature of an operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct TrustSignature {
    /// The operator's certificate (DER), signed by a CA itself.
    #[serde(deserialize_with = "bounded::<_, _, AUTHORITY_BYTES_MAX>")]
    certificate: Vec<u8>,
    /// The scheme, as TLS numbers it.
    scheme: u16,
    #[serde(deserialize_with = "bounded::<_, _, AUTHORITY_BYTES_MAX>")]
    signature: Vec<u8>,
}

/// A step, signed by operators.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedTrust {
    /// The encoded [`Trust`], as it was signed.
    #[serde(deserialize_with = "bounded::<_, _, TRUST_BYTES_MAX>")]
    coded: Vec<u8>,
    #[serde(deserialize_with = "bounded::<_, _, SIGNATURES_MAX>")]
    signatures: Vec<TrustSignature>,
}

/// An operator's certificate (DER), and its key.
pub(crate) type Signer<'a> = (&'a [u8], PrivateKeyDer<'static>);

impl SignedTrust {
    /// Has operators sign a step.
    pub(crate) fn sign(trust: &Trust, signers: Vec<Signer<'_>>) -> Result<Self, Error> {
        let failed = |reason: String| Error::Identity { file: "operator's key".to_owned(), reason };
        let coded = codec::encode(trust);
        let mut signatures = Vec::new();
        for (certificate, key) in signers {
            let key =
                rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| failed(error.to_string()))?;
            let signer =
                key.choose_scheme(&SCHEMES).ok_or_else(|| failed("is of a kind that cannot sign".to_owned()))?;
            let signature = signer.sign(&message(&coded)).map_err(|error| failed(error.to_string()))?;
            signatures.push(TrustSignature {
                certificate: certificate.to_vec(),
                scheme: signer.scheme().into(),
                signature,
            });
        }
        Ok(Self { coded, signatures })
    }

    /// Returns what it says, whoever has signed it.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it does not decode, or cannot be right.
    pub fn trust(&self) -> Result<Trust, Error> {
        let trust: Trust = codec::decode(&self.coded)?;
        trust.check()?;
        Ok(trust)
    }

    /// Returns the operators below these CAs (DER) that have signed it. Their certificates may have ended since.
    #[must_use]
    pub fn signers(&self, authorities: &[Vec<u8>]) -> Vec<(Subject, Certificate)> {
        let Ok(roots) = roots_of(authorities) else { return Vec::new() };
        let Ok(verifier) = ClientVerifier::new(roots, Arc::new(rustls::crypto::ring::default_provider())) else {
            return Vec::new();
        };
        let verifier = verifier.admitting_strangers(true);
        let message = message(&self.coded);
        let holds = |one: &&TrustSignature| {
            let leaf = CertificateDer::from(one.certificate.as_slice());
            verifier.verify_client_cert(&leaf, &[], UnixTime::now()).is_ok() && one.holds(&message)
        };
        let who = |one: &TrustSignature| subject_of(&one.certificate).zip(Certificate::read(&one.certificate, None));
        let found = self.signatures.iter().filter(holds).filter_map(who);
        found.filter(|(subject, _)| subject.role == Role::Admin).collect()
    }

    /// Returns what it says, if an operator below one of these CAs has signed it.
    ///
    /// # Errors
    /// [`Error::Malformed`] when there is none, or as [`SignedTrust::trust`].
    pub fn verified(&self, authorities: &[Vec<u8>]) -> Result<Trust, Error> {
        self.verified_unless(authorities, &Refusals::default())
    }

    /// As [`SignedTrust::verified`], for a node with a list of what is revoked: an operator who is on it has no say.
    ///
    /// # Errors
    /// As [`SignedTrust::verified`].
    pub fn verified_unless(&self, authorities: &[Vec<u8>], refusals: &Refusals) -> Result<Trust, Error> {
        let trust = self.trust()?;
        let signers = self.signers(authorities);
        if signers.iter().all(|(subject, certificate)| refusals.refuse(subject, certificate)) {
            return Err(Error::Malformed("no operator of a CA that is trusted has signed the CAs to trust".to_owned()));
        }
        Ok(trust)
    }
}

impl TrustSignature {
    fn holds(&self, message: &[u8]) -> bool {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&self.certificate) else { return false };
        let key = &parsed.public_key().subject_public_key.data;
        let wanted = SCHEMES.into_iter().find(|scheme| u16::from(*scheme) == self.scheme);
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let mut algorithms =
            known.mapping.iter().filter(|(scheme, _)| Some(*scheme) == wanted).flat_map(|(_, all)| *all);
        algorithms.any(|algorithm| algorithm.verify_signature(key, message, &self.signature).is_ok())
    }
}

fn message(coded: &[u8]) -> Vec<u8> {
    [SIGNED_HEAD, coded].concat()
}

/// Returns these CAs (DER) as roots.
pub(crate) fn roots_of(authorities: &[Vec<u8>]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for ca in authorities {
        roots
            .add(CertificateDer::from(ca.clone()))
            .map_err(|error| Error::Identity { file: "CA certificate".to_owned(), reason: error.to_string() })?;
    }
    Ok(roots)
}

/// What an identity has besides its certificate, once another CA was brought in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Besides {
    /// The CAs that it trusts.
    pub(crate) trust: Trust,
    /// Its certificate below the older CA, for those who do not trust the newer one yet.
    pub(crate) former: Option<Former>,
}

/// A certificate for the key of an identity, below another CA than the one in use (DER).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Former {
    pub(crate) ca: Vec<u8>,
    pub(crate) cert: Vec<u8>,
    pub(crate) issuer: Option<Vec<u8>>,
}

/// Tag of the section of a PEM file that holds it, the last one.
const SECTION: &str = "SURF TRUST";

impl Besides {
    /// Returns that of an identity whose CA was never replaced.
    pub(crate) fn original(ca: &[u8]) -> Self {
        Self { trust: Trust::original(cluster_of(ca)), former: None }
    }

    /// Returns its section of a PEM file; nothing if no CA was ever brought in.
    pub(crate) fn to_pem(&self) -> String {
        if self.trust.version == 0 {
            return String::new();
        }
        pem::encode(&pem::Pem::new(SECTION, codec::encode(self)))
    }

    /// Cuts the section off a PEM file, if there is one. Returns the rest as well.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn cut_off(text: &str) -> Result<(&str, Option<Self>), String> {
        let Some(at) = text.find(&format!("-----BEGIN {SECTION}-----")) else { return Ok((text, None)) };
        let (rest, section) = text.split_at(at);
        let section = pem::parse(section).map_err(|error| error.to_string())?;
        let found: Self = codec::decode(section.contents()).map_err(|error| error.to_string())?;
        found.trust.check().map_err(|error| error.to_string())?;
        if found.trust.version == 0 {
            return Err("no CA was brought in".to_owned());
        }
        Ok((rest, Some(found)))
    }
}

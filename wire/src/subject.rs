//! Whom a certificate is for: role, name, and what a client may do.

use crate::ids::PartyId;
use crate::{Error, codec};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Private extension that holds the encoded [`Subject`], below the arc for documentation and experiments.
pub(crate) const SUBJECT_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 32473, 83, 1];
/// Private extension of an issuer: the encoded list of roles that it may sign.
pub(crate) const ISSUER_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 32473, 83, 2];

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

    /// The party that the holder is, whatever connections it has.
    #[must_use]
    pub fn party(&self) -> PartyId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&codec::encode(&self.role)).update(self.name.as_bytes());
        let mut first = [0_u8; 16];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        PartyId(first)
    }

    /// Returns whether it is a client that is confined: it sees a subtree alone, or its user ids are replaced.
    #[must_use]
    pub fn is_confined(&self) -> bool {
        self.grant.subtree.is_some() || self.grant.squash != Squash::None
    }

    /// Checks that daemons enforce everything that the certificate says: they serve no other. They confine clients; whoever
    /// wrote a restriction into the certificate of another role relies on it in vain.
    ///
    /// # Errors
    /// [`Error::NotEnforced`].
    pub fn check_enforced(&self) -> Result<(), Error> {
        let restriction = match &self.grant {
            _ if self.role == Role::Client => return Ok(()),
            ClientGrant { subtree: Some(path), .. } => format!("the subtree {path:?}"),
            ClientGrant { squash: Squash::Root { .. } | Squash::All { .. }, .. } => {
                "other user ids for its users".to_owned()
            }
            ClientGrant { subtree: None, squash: Squash::None, read_only: _ } => return Ok(()),
        };
        Err(Error::NotEnforced { name: self.name.clone(), restriction })
    }
}

/// The subject in a certificate (DER) that was verified before, or is our own.
pub(crate) fn subject_of(cert: &[u8]) -> Option<Subject> {
    coded_in(cert)?.ok()
}

/// The subject in a certificate, if it has one, or why it cannot be decoded.
pub(crate) fn coded_in(cert: &[u8]) -> Option<Result<Subject, Error>> {
    Some(codec::decode(&extension_of(cert, SUBJECT_OID)?))
}

/// The roles that an issuer's certificate (DER) allows it to sign.
pub(crate) fn issued_roles(cert: &[u8]) -> Option<Vec<Role>> {
    codec::decode(&extension_of(cert, ISSUER_OID)?).ok()
}

/// The value of a private extension.
pub(crate) fn extension_of(cert: &[u8], oid: &[u64]) -> Option<Vec<u8>> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let is_wanted = |parts: &mut dyn Iterator<Item = u64>| parts.eq(oid.iter().copied());
    let mut extensions = cert.extensions().iter();
    let found = extensions.find(|extension| extension.oid.iter().is_some_and(|mut parts| is_wanted(&mut parts)))?;
    Some(found.value.to_vec())
}

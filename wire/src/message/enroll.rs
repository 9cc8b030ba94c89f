//! What newcomers, who have no certificate, say to a metad: one request, and nothing else.

use crate::attr::Timestamp;
use crate::codec::bounded;
use crate::ids::{MetadId, TokenId};
use crate::issuer::REQUEST_BYTES_MAX;
use crate::limits::{METADS_MAX, TRUST_STEPS_MAX};
use crate::tls::Role;
use crate::token::Secret;
use crate::trust::SignedTrust;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use thiserror::Error;

/// A newcomer asks for a certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// Number of its token.
    pub token: TokenId,
    /// The token's secret.
    pub secret: Secret,
    /// Signing request (DER) for its key.
    #[serde(deserialize_with = "bounded::<_, _, REQUEST_BYTES_MAX>")]
    pub request: Vec<u8>,
    /// Its host's name, of which the name in the certificate is made if the token has none.
    pub host: String,
}

/// The answer to a newcomer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum EnrollReply {
    /// A certificate for the key of the request.
    Issued {
        /// The cluster's name.
        cluster: String,
        /// The certificate (DER).
        certificate: Vec<u8>,
        /// The certificate of its issuer (DER).
        issuer: Vec<u8>,
        /// The addresses of all metads.
        #[serde(deserialize_with = "bounded::<_, _, METADS_MAX>")]
        metads: Vec<SocketAddr>,
        /// How the CAs that are trusted have come to be, as operators have signed it.
        #[serde(deserialize_with = "bounded::<_, _, TRUST_STEPS_MAX>")]
        steps: Vec<SignedTrust>,
    },
    /// This metad does not lead, so it does not judge tokens.
    NotLeader {
        /// The leader, if it is known.
        leader: Option<SocketAddr>,
    },
    /// There is no certificate for this request, now or later.
    Refused {
        /// Why.
        why: EnrollRefusal,
        /// The leader's clock.
        now: Timestamp,
    },
    /// Nothing was decided: the same request may be sent again.
    Busy,
}

/// Why a newcomer gets no certificate.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub enum EnrollRefusal {
    /// There is no token of this number with this secret.
    #[error("the cluster knows no such token (any more): make a new one with `surf token create`")]
    Unknown,
    /// The time of the token is over.
    #[error("the token has expired: make a new one with `surf token create`")]
    Expired {
        /// Since when.
        at: Timestamp,
    },
    /// Others have used the token as often as it may be used.
    #[error("the token is used up: make a new one with `surf token create`, for several machines with --uses")]
    UsedUp,
    /// An operator has revoked the token.
    #[error("the token was revoked: make a new one with `surf token create`")]
    Revoked,
    /// The metad that leads has no issuer.
    #[error(
        "metad-{0}, which leads, has no issuer, so it cannot sign certificates: make one with `surf cluster issuer`, and \
         name it as `issuer` in its configuration"
    )]
    NoIssuer(MetadId),
    /// The issuer of the metad that leads does not sign this role.
    #[error(
        "the issuer of metad-{0}, which leads, does not sign the role {1}: make one that does with `surf cluster issuer`"
    )]
    RoleNotIssued(MetadId, Role),
    /// The signing request is not what this version expects.
    #[error("the signing request was refused: use the same release of Surf as the cluster")]
    BadRequest,
    /// By the clock of the metad that leads, the token was not made yet: that clock cannot say whether it has ended.
    #[error("the clock of the metad that leads is behind the time at which the token was made: set it, and try again")]
    ClockBehind {
        /// When the token was made.
        made: Timestamp,
    },
    /// The identity was revoked, or the cluster has forgotten it.
    #[error("the identity that the token has given was revoked, or is forgotten: begin with a new token and a new key")]
    Gone,
    /// The cluster remembers as many identities as it can.
    #[error("the cluster remembers as many identities as it can: an operator revokes those that are not used")]
    Full,
}

//! Whether an identity is let in, before it takes the place of the one that is in use: one that nobody accepts must not
//! destroy one that everybody does.

use super::endpoint::Endpoint;
use crate::Error;
use crate::leader::WHO_LEADS;
use crate::message::meta::MetaReply;
use crate::tls::{Identity, Role};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long one metad may take, its handshake included.
const TRIAL_LIMIT: Duration = Duration::from_secs(3);

/// Shows an identity to these metads, until one of them lets it in.
///
/// # Errors
/// Why the first one that has refused the identity has done so; if none has, why the last one did not answer.
pub(super) async fn try_identity(endpoint: &Endpoint, identity: &Identity, metads: &[SocketAddr]) -> Result<(), Error> {
    let trial = Endpoint::bind_within((endpoint.local_addr().ip(), 0).into(), identity, Handle::current())?;
    let mut reported = Error::Closed;
    for addr in metads {
        match trial.peer(*addr, Role::Metad).request::<_, MetaReply>(&WHO_LEADS, &[], TRIAL_LIMIT).await {
            Ok(_) => {
                trial.close().await;
                return Ok(());
            }
            Err(error) if is_refusal(&reported) => {
                tracing::debug!(%addr, %error, "another metad does not accept it either")
            }
            Err(error) => reported = error,
        }
    }
    trial.close().await;
    Err(reported)
}

/// Returns whether a peer has judged our identity, and does not accept it.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Revoked { .. } | Error::Ended { .. } | Error::Refused { .. } | Error::WrongCluster { .. })
}

//! Whether an identity is let in, before it takes the place of the one that is in use: one that nobody accepts must not
//! destroy one that everybody does.

use super::endpoint::Endpoint;
use crate::Error;
use crate::leader::WHO_LEADS;
use crate::message::meta::MetaReply;
use crate::tls::{Identity, Role};
use futures::future::join_all;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long one metad may take, its handshake included.
const TRIAL_LIMIT: Duration = Duration::from_secs(3);

/// Shows an identity to all of these metads. It is let in if more of them let it in than refuse it: one that was taken over must
/// neither bring in an identity that the others refuse, nor keep out one that they let in.
///
/// # Errors
/// Why a metad has refused the identity; if none has, why the last one did not answer.
pub(super) async fn try_identity(endpoint: &Endpoint, identity: &Identity, metads: &[SocketAddr]) -> Result<(), Error> {
    let trial = Endpoint::bind_within((endpoint.local_addr().ip(), 0).into(), identity, Handle::current())?;
    let ask = |addr: &SocketAddr| {
        let metad = trial.peer(*addr, Role::Metad);
        async move { metad.request::<_, MetaReply>(&WHO_LEADS, &[], TRIAL_LIMIT).await.map(|_| ()) }
    };
    let judged = join_all(metads.iter().map(ask)).await;
    trial.close().await;
    judge(judged)
}

fn judge(judged: Vec<Result<(), Error>>) -> Result<(), Error> {
    let (accepted, failed): (Vec<_>, Vec<_>) = judged.into_iter().partition(Result::is_ok);
    let failed: Vec<Error> = failed.into_iter().filter_map(Result::err).collect();
    let refused = failed.iter().filter(|error| is_refusal(error)).count();
    if accepted.len() > refused {
        return Ok(());
    }
    let telling = failed.iter().find(|error| is_refusal(error)).or(failed.last());
    Err(telling.cloned().unwrap_or(Error::Closed))
}

/// Returns whether a peer has judged our identity, and does not accept it.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Revoked { .. } | Error::Ended { .. } | Error::Refused { .. } | Error::WrongCluster { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_metads_that_judge_most_decide_and_one_that_is_not_reached_judges_nothing() {
        let away = || Err(Error::NotSent { peer: "p".to_owned(), reason: String::new() });
        let refused = || Err(Error::Revoked { peer: "p".to_owned() });
        assert!(judge(vec![away(), Ok(()), away()]).is_ok());
        assert!(judge(vec![Ok(()), refused(), Ok(())]).is_ok());
        for outvoted in
            [vec![Ok(()), refused(), refused()], vec![Ok(()), away(), refused()], vec![away(), refused(), away()]]
        {
            assert!(matches!(judge(outvoted), Err(Error::Revoked { .. })));
        }
        assert!(matches!(judge(vec![away()]), Err(Error::NotSent { .. })));
        assert!(matches!(judge(Vec::new()), Err(Error::Closed)));
    }
}

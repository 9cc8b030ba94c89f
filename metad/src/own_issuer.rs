//! What this node signs with: the issuer of its configuration, and whatever operators put in its place while the node runs.

use crate::config::Config;
use parking_lot::RwLock;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use wire::Error;
use wire::issuer::IssuerKey;
use wire::quic::Endpoint;
use wire::tls::Identity;

/// Pause between looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What this node signs with.
#[derive(Debug, Default)]
pub struct OwnIssuer(RwLock<Option<Arc<IssuerKey>>>);

impl OwnIssuer {
    /// Signs with that of the configuration at first.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self(RwLock::new(config.issuer.clone()))
    }

    /// Returns it, also if it is refused.
    #[must_use]
    pub fn get(&self) -> Option<Arc<IssuerKey>> {
        self.0.read().clone()
    }

    /// Signs with this one from now on.
    fn take(&self, issuer: IssuerKey) {
        let mut own = self.0.write();
        if own.as_ref().is_none_or(|own| own.key() != issuer.key()) {
            tracing::info!(key = %issuer.key(), authority = %issuer.authority(), "this metad signs with another issuer");
            *own = Some(Arc::new(issuer));
        }
    }
}

/// What is known of the file.
#[derive(Debug, Default)]
struct Seen {
    /// What distinguishes a rewritten file from the one before: inode, length, and the time of its last change.
    stamp: Option<(u64, u64, i64, i64)>,
    is_taken: bool,
    was_refused: bool,
}

impl Seen {
    /// Reads the file if it has changed since the last look but one, and is of use to this identity. One that has changed
    /// since the last look may still be written.
    fn look(&mut self, file: &Path, identity: &Identity) -> Option<Result<IssuerKey, Error>> {
        let stamp = fs::metadata(file).ok().map(|it| (it.ino(), it.len(), it.mtime(), it.mtime_nsec()));
        if stamp != self.stamp {
            *self = Self { stamp, ..Self::default() };
            return None;
        }
        if stamp.is_none() || self.is_taken {
            return None;
        }
        let loaded = IssuerKey::load(file).and_then(|issuer| issuer.check(file, identity).map(|()| issuer));
        self.is_taken = loaded.is_ok();
        // It is looked at again: the CA that has signed it may be trusted later.
        let is_news = loaded.is_ok() || !self.was_refused;
        self.was_refused = loaded.is_err();
        is_news.then_some(loaded)
    }
}

/// Takes the issuer that operators put in the place of the one in use, until cancelled.
pub async fn watch(own: Arc<OwnIssuer>, file: PathBuf, endpoint: Endpoint) {
    let mut seen = Seen::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (path, identity) = (file.clone(), endpoint.identity());
        let looked = tokio::task::spawn_blocking(move || {
            let found = seen.look(&path, &identity);
            (seen, found)
        });
        let Ok((known, found)) = looked.await else { return };
        seen = known;
        match found {
            Some(Ok(issuer)) => own.take(issuer),
            Some(Err(error)) => {
                tracing::warn!(%error, "the issuer is not taken, so the one before it stays in use");
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::tls::{ClusterCa, Role, Subject};

    #[test]
    fn a_file_is_taken_once_it_rests_and_one_that_is_of_no_use_is_reported_once_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("issuer.pem");
        let [old, other] = ["a", "b"].map(|name| ClusterCa::create(name).unwrap());
        let of = |ca: &ClusterCa| ca.issue(&Subject::new(Role::Metad, "m")).unwrap();
        let put = |ca: &ClusterCa| {
            let issuer = IssuerKey::create(ca, "m", &[Role::Metad]).unwrap();
            issuer.save(&file).unwrap();
            issuer.key()
        };
        let mut seen = Seen::default();
        assert!(seen.look(&file, &of(&old)).is_none(), "there is none");
        let first = put(&old);
        assert!(seen.look(&file, &of(&old)).is_none(), "it may still be written");
        assert_eq!(seen.look(&file, &of(&old)).unwrap().unwrap().key(), first);
        assert!(seen.look(&file, &of(&old)).is_none(), "it is taken");
        let second = put(&other);
        assert!(seen.look(&file, &of(&old)).is_none());
        assert!(seen.look(&file, &of(&old)).unwrap().is_err(), "its CA is not trusted");
        assert!(seen.look(&file, &of(&old)).is_none(), "that was reported");
        assert_eq!(seen.look(&file, &of(&other)).unwrap().unwrap().key(), second, "its CA is trusted by now");
        fs::remove_file(&file).unwrap();
        assert!(seen.look(&file, &of(&other)).is_none() && seen.look(&file, &of(&other)).is_none());
    }
}

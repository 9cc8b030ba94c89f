//! Damage to this node's own snapshot, which is noticed when the snapshot is sent: peers verify what they receive, and
//! refuse it. Then this node reads its file again, and takes another snapshot if the file is damaged.
//!
//! A peer may refuse again and again for reasons of its own, such as a full disk. So a file that was found to be whole
//! is not read again for a while, and no snapshot is taken for this reason soon after another.

use super::machine::Machine;
use super::snapshot;
use super::types::{LogId, SnapshotFile, TypeConfig};
use futures::FutureExt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

/// A snapshot that was found to be whole is taken to be so for this time: a disk does not damage it just now, and peers
/// are asked five times a second.
const WHOLE_FOR: Duration = Duration::from_secs(600);
/// Pause between two snapshots that are taken because of damage: a disk that damages each would do nothing else.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(10);

/// What is known about damage to this node's own snapshot.
#[derive(Default)]
pub(super) struct OwnSnapshot {
    /// Notified when it is to be replaced.
    pub(super) damaged: Notify,
    /// Which one was found to be whole, and when. Held while a file is read: peers that refuse it at the same time make
    /// it be read once.
    whole: Mutex<Option<(Option<LogId>, Instant)>>,
}

impl OwnSnapshot {
    /// Checks a snapshot of this position, all of which a peer has refused.
    pub(super) async fn check(&self, file: SnapshotFile, at: Option<LogId>) {
        let mut whole = self.whole.lock().await;
        if whole.is_some_and(|(of, since)| of == at && since.elapsed() < WHOLE_FOR) {
            return;
        }
        let path = file.path.clone();
        match spawn_blocking(move || snapshot::verify(&file)).await {
            Ok(Ok(())) => *whole = Some((at, Instant::now())),
            Ok(Err(error)) => {
                *whole = None;
                self.report(&path, &error);
            }
            // This node ends.
            Err(_) => {}
        }
    }

    /// Has a snapshot replaced that cannot be used.
    pub(super) fn report(&self, path: &Path, error: &io::Error) {
        snapshot::log_damage(path, error);
        self.damaged.notify_one();
    }
}

/// Takes a snapshot whenever the last one is found to be damaged: from the state, which is good.
pub(super) async fn replace_damaged(raft: openraft::Raft<TypeConfig, Machine>, own: Arc<OwnSnapshot>) {
    loop {
        own.damaged.notified().await;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        tokio::time::sleep(SNAPSHOT_PAUSE).await;
        // What was reported meanwhile may have been the old one. If it was the new one, it is refused again.
        let _ = own.damaged.notified().now_or_never();
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::SnapshotMeta;
    use super::*;
    use crate::store::Store;
    use std::fs;

    fn log_id(index: u64) -> Option<LogId> {
        Some(openraft::testing::log_id::<TypeConfig>(1, 1, index))
    }

    fn is_reported(own: &OwnSnapshot) -> bool {
        own.damaged.notified().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_is_whole_is_not_read_again_for_a_while_however_often_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state"), 8 << 20).unwrap();
        let path = snapshot::path_in(dir.path());
        store.begin_snapshot();
        assert!(snapshot::write(&path, &SnapshotMeta::default(), &store).unwrap());
        let (_, file) = snapshot::open(&path).unwrap().unwrap();
        let own = OwnSnapshot::default();
        own.check(file.clone(), log_id(7)).await;
        assert!(!is_reported(&own));

        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        own.check(file.clone(), log_id(7)).await;
        assert!(!is_reported(&own), "it was read again");
        own.check(file.clone(), log_id(8)).await;
        assert!(is_reported(&own), "another one is read");
        own.check(file.clone(), log_id(8)).await;
        assert!(is_reported(&own), "and as long as it is damaged");

        *own.whole.lock().await = Some((log_id(7), Instant::now()));
        tokio::time::advance(WHOLE_FOR).await;
        own.check(file, log_id(7)).await;
        assert!(is_reported(&own), "a disk may damage it later");
    }
}

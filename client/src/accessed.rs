//! Access times, kept as `relatime` asks and stored a second later, many at once: reading must not wait for a write.
//!
//! What the kernel answers from its page cache is not seen here, and moves no access time.

use crate::file::state::FileState;
use crate::ordered::{Ordered, Rank};
use crate::{Client, NOTICES, Notice};
use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::ids::Ino;
use wire::op::Op;

/// Between two rounds of storing.
const PAUSE: Duration = Duration::from_secs(1);
/// Access times in one batch.
const TOGETHER: usize = 1024;
/// Access times that wait; more are forgotten.
const WAITING_MAX: usize = 65_536;
/// What was read and is not stored yet.
pub(crate) struct Accessed {
    waiting: Ordered<BTreeMap<Ino, Timestamp>>,
}

impl Default for Accessed {
    fn default() -> Self {
        Self { waiting: Ordered::new(Rank::Leaf, BTreeMap::new()) }
    }
}

impl Client {
    /// A file was read.
    pub(crate) fn note_access(&self, file: &FileState) {
        if !self.config.access_times {
            return;
        }
        let now = Timestamp::now();
        if !file.note_access(now) {
            return;
        }
        let mut waiting = self.accessed.waiting.lock();
        if waiting.len() < WAITING_MAX {
            waiting.insert(file.ino(), now);
        }
    }

    /// Stores what waits. What cannot be stored is forgotten: an access time is no promise.
    pub(crate) async fn store_access_times(&self) {
        let waiting: Vec<(Ino, Timestamp)> = std::mem::take(&mut *self.accessed.waiting.lock()).into_iter().collect();
        for some in waiting.chunks(TOGETHER) {
            let ops = some.iter().map(|(ino, at)| Op::Accessed { ino: *ino, at: *at }).collect();
            match self.session.submit(ops).await {
                Ok(_) => {
                    for (ino, _) in some {
                        // Others must not be pushed out by these, which the kernel may also believe for a while.
                        if self.notices.len() >= NOTICES / 2 {
                            break;
                        }
                        self.notify(Notice::Accessed(*ino));
                    }
                }
                Err(error) => tracing::debug!(%error, "access times are not stored"),
            }
        }
    }
}

/// Stores access times until the client is gone.
pub(crate) async fn run(weak: Weak<Client>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(client) = weak.upgrade() else { return };
        client.store_access_times().await;
    }
}

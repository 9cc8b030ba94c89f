//! Access times. They move as `relatime` asks and are stored a second later, many at once: reading must not wait for a
//! write.
//!
//! What the kernel answers from its page cache is not seen here, and moves no access time.

use crate::file::state::FileState;
use crate::kernel::{Kernel, Notice};
use crate::known::leased::LeasedSession;
use crate::ordered::{Ordered, Rank};
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::attr::Timestamp;
use wire::ids::Ino;
use wire::op::Op;

/// Access times in one batch.
const BATCH_OPS_MAX: usize = 1024;
/// Access times that wait; beyond this number, more are forgotten.
const WAITING_MAX: usize = 65_536;

/// Access times that have moved and are not stored yet.
pub(crate) struct Accessed {
    session: Arc<LeasedSession>,
    kernel: Arc<Kernel>,
    /// Whether access times move at all.
    enabled: bool,
    waiting: Ordered<BTreeMap<Ino, Timestamp>>,
}

impl Accessed {
    /// Starts with nothing to store.
    pub fn new(session: Arc<LeasedSession>, kernel: Arc<Kernel>, enabled: bool) -> Self {
        Self { session, kernel, enabled, waiting: Ordered::new(Rank::Leaf, BTreeMap::new()) }
    }

    /// Notes that a file was read.
    pub fn note(&self, file: &FileState) {
        if !self.enabled {
            return;
        }
        let now = Timestamp::now();
        if !file.note_access(now) {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() < WAITING_MAX {
            waiting.insert(file.ino(), now);
        }
    }

    /// Stores the access times that wait. What cannot be stored is forgotten: an access time is not a promise.
    pub async fn store(&self) {
        let waiting: Vec<(Ino, Timestamp)> = std::mem::take(&mut *self.waiting.lock()).into_iter().collect();
        for some in waiting.chunks(BATCH_OPS_MAX) {
            let ops = some.iter().map(|(ino, at)| Op::Accessed { ino: *ino, at: *at }).collect();
            match self.session.submit(ops).await {
                Ok(_) => {
                    for (ino, _) in some {
                        // These notices must not push out others, and the kernel may believe the old time for a while.
                        if self.kernel.is_busy() {
                            break;
                        }
                        self.kernel.notify(Notice::Accessed(*ino));
                    }
                }
                Err(error) => tracing::debug!(%error, "access times are not stored"),
            }
        }
    }
}

//! Keep-alives of the session.

use crate::block::layout::Layouts;
use crate::known::leased::LeasedSession;
use crate::meta::session::Alive;
use crate::open::OpenFiles;
use crate::work::Work;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use wire::ids::Ino;
use wire::limits::LEASE_MS;
use wire::message::meta::LeaseState;

/// Time between keep-alives while leases are held.
const EXTEND_EVERY: Duration = Duration::from_millis(LEASE_MS / 4);
/// Keep-alives per lifetime of a session.
const BEATS_PER_TTL: u32 = 8;

/// Keeps the session alive.
pub(crate) struct Upkeep {
    session: Arc<LeasedSession>,
    layouts: Arc<Layouts>,
    open_files: Arc<OpenFiles>,
    /// Notified when metad sends us no events, although we have asked for them.
    detached: Notify,
    /// Whether unlinked inodes are being retained or released.
    releasing: Arc<AtomicBool>,
    work: Work,
}

impl Upkeep {
    /// Creates the upkeep of this session.
    pub fn new(session: Arc<LeasedSession>, layouts: Arc<Layouts>, open_files: Arc<OpenFiles>, work: Work) -> Self {
        let (detached, releasing) = (Notify::new(), Arc::default());
        Self { session, layouts, open_files, detached, releasing, work }
    }

    /// Keeps a session with this lifetime alive.
    pub async fn run(self: Arc<Self>, ttl: Duration) {
        let every = (ttl / BEATS_PER_TTL).min(EXTEND_EVERY);
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                // The answer brings the layout, if there is a newer one.
                () = self.layouts.wanted() => {}
            }
            self.beat(every).await;
        }
    }

    /// Waits until the leader answers that it sends us no events. Cancel-safe.
    pub async fn wait_detached(&self) {
        self.detached.notified().await;
    }

    /// Sends a keep-alive, and handles the leader's answer.
    pub async fn beat(&self, limit: Duration) {
        let layout = self.layouts.newest();
        match self.session.keep_alive(&layout, limit).await {
            Ok(Alive::Yes { orphans, layout, leases, .. }) => {
                if let Some(layout) = layout {
                    self.layouts.learn(layout);
                }
                if leases == LeaseState::None {
                    self.detached.notify_waiters();
                }
                self.retain_or_release(orphans);
            }
            Ok(Alive::No(expired)) => {
                if let Err(error) = self.session.renew(expired).await {
                    tracing::warn!(%error, "no new session yet");
                }
            }
            Err(error) => tracing::debug!(%error, "no sign of life from metad"),
        }
    }

    /// Answers about unlinked inodes, which may take long on a busy metad: the next keep-alive must not wait for it. metad
    /// asks again about those that are left out.
    fn retain_or_release(&self, orphans: Vec<Ino>) {
        if orphans.is_empty() || self.releasing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (open_files, releasing) = (self.open_files.clone(), self.releasing.clone());
        self.work.spawn_until_stopped(async move {
            open_files.retain_or_release(&orphans).await;
            releasing.store(false, Ordering::Release);
        });
    }
}

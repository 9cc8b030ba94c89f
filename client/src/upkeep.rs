//! Keep-alives of the session.

use crate::block::layout::Layouts;
use crate::known::leased::LeasedSession;
use crate::meta::session::Alive;
use crate::open::OpenFiles;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
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
}

impl Upkeep {
    /// Creates the upkeep of this session.
    pub fn new(session: Arc<LeasedSession>, layouts: Arc<Layouts>, open_files: Arc<OpenFiles>) -> Self {
        Self { session, layouts, open_files, detached: Notify::new() }
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
                self.open_files.retain_or_release(&orphans).await;
            }
            Ok(Alive::No(expired)) => {
                if let Err(error) = self.session.renew(expired).await {
                    tracing::warn!(%error, "no new session yet");
                }
            }
            Err(error) => tracing::debug!(%error, "no sign of life from metad"),
        }
    }
}

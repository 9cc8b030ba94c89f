//! Signs of life of the session.

use crate::meta::session::Alive;
use crate::{Client, events, timers, writeback};
use std::sync::{Arc, Weak};
use std::time::Duration;
use wire::limits::LEASE_MS;
use wire::message::meta::LeaseState;

/// Signs of life while leases are held.
const EXTENSION: Duration = Duration::from_millis(LEASE_MS / 4);
/// Signs of life per lifetime of a session.
const BEATS: u32 = 8;

impl Client {
    pub(crate) fn start_upkeep(self: &Arc<Self>, ttl: Duration) {
        let mut tasks = self.tasks.lock();
        tasks.spawn(keep_alive(self.me.clone(), (ttl / BEATS).min(EXTENSION)));
        tasks.spawn(events::run(self.me.clone()));
        timers::start(&self.me, &mut tasks);
        tasks.spawn(writeback::run(self.me.clone(), self.writeback.clone()));
    }

    /// Shows that the session lives, and takes in what the leader says of it.
    pub(crate) async fn beat(&self, limit: Duration) {
        let layout = self.layouts.newest();
        match self.session.keep_alive(&layout, limit).await {
            Ok(Alive::Yes { orphans, layout, leases, .. }) => {
                if let Some(layout) = layout {
                    self.layouts.learn(layout);
                }
                if leases == LeaseState::None {
                    self.detached.notify_waiters();
                }
                self.open_files.keep_or_release(&orphans).await;
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

async fn keep_alive(client: Weak<Client>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(client) = client.upgrade() else { return };
        client.beat(every).await;
    }
}

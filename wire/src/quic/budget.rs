//! How much of a server one connection may use.

use super::stream::broken;
use crate::Error;
use crate::limits::{CLIENT_BYTES_MAX, DAEMON_BYTES_MAX, DEADLINE_MAX_MS, DEADLINE_TRUSTED_MAX_MS};
use crate::tls::Role;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits for one connection: the bytes that the server holds, and the longest deadline that it grants.
#[derive(Clone)]
pub(super) struct Budget {
    /// For requests, in KiB.
    held: Arc<Semaphore>,
    /// For answers, in KiB: a caller with many answers on their way can still ask.
    answers: Arc<Semaphore>,
    pub(super) deadline_max: Duration,
}

impl Budget {
    /// The budget of a connection of this role.
    pub(super) fn of(role: Role) -> Self {
        let bytes = if role == Role::Client { CLIENT_BYTES_MAX } else { DAEMON_BYTES_MAX };
        let deadline_ms = match role {
            Role::Client | Role::Blockd => DEADLINE_MAX_MS,
            Role::Metad | Role::Admin => DEADLINE_TRUSTED_MAX_MS,
        };
        let (held, answers) = (Semaphore::new(bytes >> 10), Semaphore::new(bytes >> 11));
        Self { held: Arc::new(held), answers: Arc::new(answers), deadline_max: Duration::from_millis(deadline_ms) }
    }

    /// Waits until the connection's requests leave room for so many bytes.
    pub(super) async fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        Self::part(&self.held, bytes).await
    }

    /// Waits until the connection's answers leave room for so many bytes.
    pub(super) async fn hold_answer(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        Self::part(&self.answers, bytes).await
    }

    async fn part(of: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        // Every single message fits, so nobody waits for more than there is.
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        of.clone().acquire_many_owned(kib).await.map_err(broken)
    }
}

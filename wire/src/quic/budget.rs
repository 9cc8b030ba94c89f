//! How much of a server one connection may use, and all connections of one certificate together.

use super::stream::broken;
use crate::Error;
use crate::limits::{CERTIFICATE_SHARE, CLIENT_BYTES_MAX, DAEMON_BYTES_MAX, DEADLINE_MAX_MS, DEADLINE_TRUSTED_MAX_MS};
use crate::tls::Role;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits for one connection: the bytes that the server holds, and the longest deadline that it grants.
#[derive(Clone)]
pub(super) struct Budget {
    own: Room,
    /// That of all connections of its certificate.
    shared: Room,
    pub(super) deadline_max: Duration,
}

/// Room for what the server holds, in KiB.
#[derive(Clone)]
pub(super) struct Room {
    requests: Arc<Semaphore>,
    /// Apart from requests: a caller with many answers on their way can still ask.
    answers: Arc<Semaphore>,
}

/// A part of the budgets of a connection and of its certificate, given back when it is dropped.
pub struct Held {
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

impl Room {
    fn of(bytes: usize) -> Self {
        let (requests, answers) = (Semaphore::new(bytes >> 10), Semaphore::new(bytes >> 11));
        Self { requests: Arc::new(requests), answers: Arc::new(answers) }
    }

    /// The room of all connections of a certificate of this role.
    pub(super) fn of_certificate(role: Role) -> Self {
        Self::of(CERTIFICATE_SHARE * connection_bytes(role))
    }
}

/// Bytes of requests that the server holds for one connection.
fn connection_bytes(role: Role) -> usize {
    if role == Role::Client { CLIENT_BYTES_MAX } else { DAEMON_BYTES_MAX }
}

impl Budget {
    /// The budget of a connection of this role, whose certificate has this room.
    pub(super) fn of(role: Role, shared: Room) -> Self {
        let deadline_ms = match role {
            Role::Client | Role::Blockd => DEADLINE_MAX_MS,
            Role::Metad | Role::Admin => DEADLINE_TRUSTED_MAX_MS,
        };
        let own = Room::of(connection_bytes(role));
        Self { own, shared, deadline_max: Duration::from_millis(deadline_ms) }
    }

    /// Waits until the requests of the connection, and of its certificate, leave room for so many bytes.
    pub(super) async fn hold(&self, bytes: usize) -> Result<Held, Error> {
        Self::part(&self.own.requests, &self.shared.requests, bytes).await
    }

    /// Waits until the answers of the connection, and of its certificate, leave room for so many bytes.
    pub(super) async fn hold_answer(&self, bytes: usize) -> Result<Held, Error> {
        Self::part(&self.own.answers, &self.shared.answers, bytes).await
    }

    /// The connection's own room is taken first: what waits for it keeps none of the room that others wait for.
    async fn part(own: &Arc<Semaphore>, shared: &Arc<Semaphore>, bytes: usize) -> Result<Held, Error> {
        // Every single message fits, so nobody waits for more than there is.
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let own = own.clone().acquire_many_owned(kib).await.map_err(broken)?;
        let shared = shared.clone().acquire_many_owned(kib).await.map_err(broken)?;
        Ok(Held { _own: own, _shared: shared })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn many_connections_of_a_certificate_hold_no_more_than_a_few_and_leave_others_their_room() {
        let shared = Room::of_certificate(Role::Client);
        let connections = || Budget::of(Role::Client, shared.clone());
        let half = CLIENT_BYTES_MAX / 2;
        let mut held: Vec<Held> = Vec::new();
        for _ in 0..2 * CERTIFICATE_SHARE {
            held.push(connections().hold(half).now_or_never().expect("there is room").unwrap());
        }
        assert!(connections().hold(1).now_or_never().is_none(), "a new connection brings no room of its own");
        assert!(connections().hold_answer(half / 2).now_or_never().is_some(), "answers have room of their own");
        let other = Budget::of(Role::Client, Room::of_certificate(Role::Client));
        assert!(other.hold(half).now_or_never().is_some());
        held.pop();
        assert!(connections().hold(half).now_or_never().is_some());
    }

    #[test]
    fn one_connection_holds_no_more_than_its_own_budget_though_its_certificate_has_room() {
        let budget = Budget::of(Role::Client, Room::of_certificate(Role::Client));
        let _all = budget.hold(CLIENT_BYTES_MAX).now_or_never().expect("there is room").unwrap();
        assert!(budget.hold(1).now_or_never().is_none());
    }
}

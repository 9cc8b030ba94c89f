//! For how long events are waited for: until the session's leases run out, and beyond that, while it is heard of, until the
//! patience is spent.
//!
//! What sessions of other clients wait is paid by the client, whatever sessions it uses. What sessions of the same client
//! wait for each other is a matter of that client, and paid by the one session: hundreds of mounts may share a certificate,
//! and one that has much to send leaves the others their time. A session that attaches dirty keeps everybody waiting, and
//! its client always pays.

use super::{Holder, Notice, Table};
use crate::lease::patience::Patience;
use std::collections::HashMap;
use tokio::time::Instant;
use wire::ids::SessionId;

/// Clients whose patience is remembered. With more, those whose patience is whole are forgotten.
const CLIENTS_REMEMBERED: usize = 4_096;

/// Until when a session is waited for beyond its leases.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    /// By other sessions of its client.
    own: Instant,
    /// By everybody else.
    others: Instant,
}

impl Table {
    /// Returns `None` once all these events are acknowledged, or nobody has to wait for their sessions any more; otherwise
    /// the next moment to look. Whoever looks waits until then, or until it looks again: a `client`, if it is one.
    #[must_use]
    pub fn unsettled_until(&mut self, client: Option<u64>, notices: &[Notice], now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for Notice { session, seq } in notices {
            let Some(holder) = self.holders.get_mut(session) else { continue };
            if holder.has_acked(*seq) {
                if holder.acked == holder.sent {
                    self.waits_no_more(*session, now);
                }
                continue;
            }
            let is_own = client.is_some() && client == holder.client && holder.dirty.is_none();
            let beyond = holder.credit.map(|credit| if is_own { credit.own } else { credit.others });
            let Some(until) = holder.until.max(beyond).filter(|until| *until > now) else { continue };
            next = next.max(Some(until));
            let from = holder.until.map_or(now, |leased| leased.max(now));
            if from < until {
                let asked = client_of(*session, holder);
                let payer = if is_own { &mut holder.patience } else { patience_with(&mut self.clients, asked, now) };
                payer.spends(*session, from, until, now);
            }
        }
        next
    }

    /// Has others wait for a session that is heard of and has something to send, as long as there is patience.
    pub(super) fn wait_longer(&mut self, session: SessionId, now: Instant) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let client = client_of(session, holder);
        let others = now + patience_with(&mut self.clients, client, now).left_at(now).min(self.lease);
        let own = if holder.dirty.is_some() { others } else { now + holder.patience.left_at(now).min(self.lease) };
        // What was given before is given: somebody may know that it waits until then.
        let (own, others) =
            holder.credit.map_or((own, others), |before| (own.max(before.own), others.max(before.others)));
        holder.credit = Some(Credit { own, others });
    }

    /// Records that nobody waits any more for what a session was asked to send.
    pub(super) fn waits_no_more(&mut self, session: SessionId, now: Instant) {
        let Some(holder) = self.holders.get_mut(&session).filter(|holder| holder.credit.is_some()) else { return };
        holder.credit = None;
        holder.patience.rests(session, now);
        let client = client_of(session, holder);
        patience_with(&mut self.clients, client, now).rests(session, now);
    }
}

/// Returns the client whose patience a session uses.
fn client_of(session: SessionId, holder: &Holder) -> u64 {
    holder.client.unwrap_or(session.0)
}

/// Returns the patience with a client.
fn patience_with(clients: &mut HashMap<u64, Patience>, client: u64, now: Instant) -> &mut Patience {
    if clients.len() >= CLIENTS_REMEMBERED && !clients.contains_key(&client) {
        clients.retain(|_, patience| !patience.is_whole(now));
    }
    clients.entry(client).or_default()
}

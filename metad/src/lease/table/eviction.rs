//! Eviction: an operator ends a session that lives, and that may hold leases until then.

use super::{Notice, Table};
use wire::ids::SessionId;

/// Evicted sessions that are remembered. A request that began before its session had ended may still be under way; the
/// requests of older ones are not.
const EVICTED_MAX: usize = 1_024;

impl Table {
    /// Grants a session nothing from now on, and does not extend what it holds. Returns the event that recalls all of
    /// it, if it has attached here: nothing is left when the event is acknowledged, or the leases have run out.
    pub fn evict(&mut self, session: SessionId) -> Option<Notice> {
        if !self.is_evicted(session) {
            if self.evicted.len() == EVICTED_MAX {
                self.evicted.pop_front();
            }
            self.evicted.push_back(session);
        }
        let holder = self.holders.get_mut(&session)?;
        let seq = holder.next_seq();
        holder.emptying = Some(seq);
        Some(Notice { session, seq })
    }

    pub(super) fn is_evicted(&self, session: SessionId) -> bool {
        self.evicted.contains(&session)
    }
}

//! Shortage of space: what a session does under delegations could only be refused later, so it gives them back.

use super::{Notice, Table};
use tokio::time::Instant;
use wire::ids::{Ino, SessionId};

/// Inodes that one event names at most.
const NAMED_MAX: usize = 1024;

impl Table {
    /// Ends all delegations of a session; it keeps its leases. Returns the events to send, each with its inodes.
    pub fn undelegate(&mut self, session: SessionId, now: Instant) -> Vec<(Notice, Vec<Ino>)> {
        if self.delegated.is_empty() {
            return Vec::new();
        }
        let Some(holder) = self.holders.get(&session) else { return Vec::new() };
        let is_delegated = |ino: &Ino| self.delegated.get(ino) == Some(&session);
        let mut delegated: Vec<Ino> = holder.inos.iter().copied().filter(is_delegated).collect();
        delegated.sort_unstable();
        // As if somebody else read all of it: none has this number.
        delegated.chunks(NAMED_MAX).flat_map(|inos| self.share(SessionId::default(), inos, now).0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_session_that_gives_its_delegations_back_keeps_its_leases_and_is_waited_for_until_it_has_sent() {
        let now = Instant::now();
        let mut table = Table::new(Duration::from_secs(5), now);
        let (one, other) = (SessionId(1), SessionId(2));
        for session in [one, other] {
            table.introduce(session, session.0, true, None);
            table.attach(session, session.0, false, now);
            table.extend(session, now, false);
        }
        let inos: Vec<Ino> = (10..10 + NAMED_MAX as u64 + 1).map(Ino).collect();
        assert!(table.grant(one, &inos, table.stamp()).0);
        assert_eq!(table.delegate(one, &inos, now), inos);
        assert!(table.undelegate(other, now).is_empty());
        let events = table.undelegate(one, now);
        assert_eq!(events.iter().map(|(_, named)| named.len()).collect::<Vec<_>>(), [NAMED_MAX, 1]);
        assert!(table.undelegate(one, now).is_empty(), "it has none any more");
        let (asked, waits) = table.share(other, &inos, now);
        assert!(asked.is_empty(), "it was asked already");
        assert!(table.unsettled_until(None, &waits, now).is_some());
        let seqs: Vec<_> = events.iter().map(|(notice, _)| notice.seq).collect();
        assert!(table.acknowledge(one, &seqs));
        assert_eq!(table.unsettled_until(None, &waits, now), None);
        assert!(table.begin(other, &inos[..1], now).0.iter().any(|notice| notice.session == one), "it has its leases");
    }
}

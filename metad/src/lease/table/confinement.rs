//! Confined sessions: when a directory is moved out of the subtree of one, all of its leases are recalled, because they may be
//! on anything below that directory. Until the change has ended it is granted none.

use super::{Holder, Notice, Table};
use std::collections::BTreeMap;
use wire::ids::{Ino, SessionId};

/// What the table knows of a confined session.
#[derive(Debug)]
pub(super) struct Bounds {
    root: Ino,
    /// Changes under way that move directories out of its subtree.
    crossing: u32,
    /// The number of changes that had ended when the last one of them did.
    crossed_at: u64,
}

impl Bounds {
    pub(super) fn of(root: Ino) -> Self {
        Self { root, crossing: 0, crossed_at: 0 }
    }

    /// Returns whether what was read since the stamp may have left the subtree.
    pub(super) fn may_be_left(&self, stamp: u64) -> bool {
        self.crossing > 0 || stamp < self.crossed_at
    }
}

impl Table {
    /// Returns the bounds of a session that is confined.
    pub(super) fn bounds_of(&self, session: SessionId) -> Option<&Bounds> {
        if self.confined == 0 {
            return None;
        }
        self.holders.get(&session)?.bounds.as_ref()
    }

    /// Returns the roots of the confined sessions that have attached.
    #[must_use]
    pub fn roots(&self) -> Vec<(SessionId, Ino)> {
        if self.confined == 0 {
            return Vec::new();
        }
        let bounds = |(id, holder): (&SessionId, &Holder)| Some((*id, holder.bounds.as_ref()?.root));
        self.holders.iter().filter_map(bounds).collect()
    }

    /// Returns on which of some inodes each confined session holds leases, if any does.
    #[must_use]
    pub fn held_by_confined(&self, inos: &[Ino]) -> BTreeMap<SessionId, Vec<Ino>> {
        let mut held: BTreeMap<SessionId, Vec<Ino>> = BTreeMap::new();
        if self.confined == 0 {
            return held;
        }
        for ino in inos {
            let holders = self.held.get(ino).into_iter().flatten();
            for session in holders.filter(|session| self.bounds_of(**session).is_some()) {
                held.entry(*session).or_default().push(*ino);
            }
        }
        held
    }

    /// Begins a change that moves directories out of the subtrees of these sessions. Returns the events that recall all
    /// that they hold.
    pub fn cross(&mut self, sessions: &[SessionId]) -> Vec<Notice> {
        let mut notices = Vec::new();
        for session in sessions {
            let Some(holder) = self.holders.get_mut(session) else { continue };
            let seq = holder.next_seq();
            if let Some(bounds) = &mut holder.bounds {
                bounds.crossing += 1;
            }
            holder.emptying = Some(seq);
            notices.push(Notice { session: *session, seq });
        }
        notices
    }

    /// Ends such a change, after [`Table::end`].
    pub fn crossed(&mut self, sessions: &[SessionId]) {
        let ended = self.ended;
        for session in sessions {
            // A session that has attached anew meanwhile holds nothing of the time before.
            if let Some(bounds) = self.holders.get_mut(session).and_then(|holder| holder.bounds.as_mut()) {
                bounds.crossing = bounds.crossing.saturating_sub(1);
                bounds.crossed_at = ended;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::Instant;

    const FREE: SessionId = SessionId(1);
    const CONFINED: SessionId = SessionId(2);
    const HOME: Ino = Ino(7);
    const DEEP: Ino = Ino(9);

    fn table(now: Instant) -> Table {
        let mut table = Table::new(Duration::from_secs(10), now);
        for (session, root) in [(FREE, None), (CONFINED, Some(HOME))] {
            table.introduce(session, session.0, true, root);
            table.attach(session, 0, false, now);
            table.extend(session, now, false);
        }
        table
    }

    #[test]
    fn what_was_read_before_a_directory_left_the_subtree_is_not_leased_afterwards() {
        let now = Instant::now();
        let mut table = table(now);
        assert_eq!(table.roots(), [(CONFINED, HOME)]);
        let early = table.stamp();
        assert!(table.grant(CONFINED, &[DEEP], early).0);
        table.begin(FREE, &[HOME], now);
        let notices = table.cross(&[CONFINED]);
        assert!(table.unsettled_until(None, &notices, now).is_some(), "it may answer from its cache");
        table.acknowledge(CONFINED, &[notices[0].seq]);
        assert!(table.unsettled_until(None, &notices, now).is_none());
        let late = table.stamp();
        assert!(!table.grant(CONFINED, &[DEEP], late).0, "the move is under way");
        assert!(table.grant(FREE, &[DEEP], late).0, "that is no matter of others");
        table.end(FREE, &[HOME]);
        table.crossed(&[CONFINED]);
        for stamp in [early, late] {
            assert!(!table.grant(CONFINED, &[DEEP], stamp).0, "it was read before the move");
        }
        let stamp = table.stamp();
        assert!(table.grant(CONFINED, &[DEEP], stamp).0);
    }

    #[test]
    fn a_confined_session_is_told_of_exactly_what_it_holds() {
        let now = Instant::now();
        let mut table = table(now);
        let (inos, stamp) = ([HOME, DEEP, Ino(11)], table.stamp());
        assert_eq!(table.held_by_confined(&inos), BTreeMap::new());
        assert!(table.grant(CONFINED, &[DEEP, Ino(12)], stamp).0 && table.grant(FREE, &inos, stamp).0);
        // Whether it lies in the subtree is not asked: after a move it does not, and the lease has to be ended all the same.
        assert_eq!(table.held_by_confined(&inos), BTreeMap::from([(CONFINED, vec![DEEP])]));
        let notified: Vec<SessionId> =
            table.begin(SessionId(3), &inos, now).0.into_iter().map(|one| one.session).collect();
        assert_eq!(notified, [FREE, CONFINED]);
        assert_eq!(table.held_by_confined(&inos), BTreeMap::new());
    }

    #[test]
    fn confined_sessions_get_no_delegations_and_no_leases_for_their_own_changes() {
        let now = Instant::now();
        let mut table = table(now);
        for (session, given) in [(CONFINED, Vec::new()), (FREE, vec![DEEP])] {
            let stamp = table.stamp();
            assert!(table.grant(session, &[DEEP], stamp).0);
            assert_eq!(table.delegate(session, &[DEEP], now), given);
            table.release_all(session);
            table.begin(session, &[DEEP], now);
            assert_eq!(table.end(session, &[DEEP]), session == FREE);
            table.release_all(session);
        }
        table.remove(CONFINED);
        assert_eq!((table.roots(), table.confined), (Vec::new(), 0));
    }
}

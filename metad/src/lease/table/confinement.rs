//! Confined sessions: when a directory is moved out of the subtree of one, all of its leases are recalled, because they may be
//! on anything below that directory. Until the change has ended it is granted none.

use super::{Holder, Notice, Table};
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

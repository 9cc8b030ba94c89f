//! About which removed files a session is asked next. One answer to a keep-alive has room for some thousand. A session
//! may hold more than that open for as long as it likes, so the next answer goes on where the last one ended: otherwise
//! the session would never be asked about the others, and their content would never be freed.
//!
//! This is memory of one leader. Where it is lost, the answers begin anew with the first file.

use crate::fs::session::SESSIONS_MAX;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use wire::ids::{Ino, SessionId};

/// Where the last answer to each session ended, for those that did not fit in one.
#[derive(Default)]
pub struct OrphanTurns {
    next: Mutex<BTreeMap<SessionId, Ino>>,
}

impl OrphanTurns {
    /// Returns what the next answer to a session lists. `list` returns at most `limit` inodes from one on, and goes on
    /// with those before it.
    pub fn next(&self, session: SessionId, limit: usize, list: impl FnOnce(Ino) -> Vec<Ino>) -> Vec<Ino> {
        let first = self.next.lock().get(&session).copied().unwrap_or_default();
        let listed = list(first);
        let mut next = self.next.lock();
        match listed.last() {
            Some(last) if listed.len() >= limit => {
                // Sessions that have ended leave theirs behind.
                if next.len() >= SESSIONS_MAX && !next.contains_key(&session) {
                    next.clear();
                }
                next.insert(session, Ino(last.0.saturating_add(1)));
            }
            _ => {
                next.remove(&session);
            }
        }
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::view::MemoryKv;
    use crate::fs::{keys, orphan};

    const LIMIT: usize = 4;

    fn orphans_of<const COUNT: usize>(sessions: [(SessionId, &[u64]); COUNT]) -> MemoryKv {
        let of = |(session, inos): (SessionId, &[u64])| {
            inos.iter().map(|ino| (keys::session_orphan(session, Ino(*ino)), Vec::new())).collect::<Vec<_>>()
        };
        MemoryKv(sessions.into_iter().flat_map(of).collect())
    }

    fn ask(turns: &OrphanTurns, id: SessionId, state: &MemoryKv) -> Vec<u64> {
        let asked = turns.next(id, LIMIT, |first| orphan::of_session(state, id, first, LIMIT));
        asked.iter().map(|ino| ino.0).collect()
    }

    #[test]
    fn a_session_that_holds_more_files_than_fit_in_an_answer_is_asked_about_each_in_turn() {
        let (turns, session, other) = (OrphanTurns::default(), SessionId(7), SessionId(8));
        let many: Vec<u64> = (10..20).collect();
        let state = orphans_of([(SessionId(6), &[3]), (session, &many), (other, &[1, 15, 99])]);
        assert_eq!(ask(&turns, session, &state), [10, 11, 12, 13]);
        assert_eq!(ask(&turns, other, &state), [1, 15, 99], "all of them");
        assert_eq!(ask(&turns, session, &state), [14, 15, 16, 17]);
        assert_eq!(ask(&turns, session, &state), [18, 19, 10, 11], "and again from the first");
        assert_eq!(ask(&turns, other, &state), [1, 15, 99]);
        let few = orphans_of([(session, &[11, 12, 30])]);
        assert_eq!(ask(&turns, session, &few), [12, 30, 11]);
        assert_eq!(ask(&turns, session, &few), [11, 12, 30]);
    }

    #[test]
    fn sessions_that_have_ended_do_not_fill_the_memory() {
        let turns = OrphanTurns::default();
        let last = SessionId(SESSIONS_MAX as u64);
        for id in 0..=last.0 {
            turns.next(SessionId(id), 1, |_| vec![Ino(5)]);
        }
        assert!(turns.next.lock().len() <= SESSIONS_MAX);
        assert_eq!(turns.next(last, 1, |first| vec![first]), [Ino(6)]);
    }
}

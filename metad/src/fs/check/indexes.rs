//! What is stored for sessions, and the tables that index other tables.

use super::Check;
use crate::fs::keys::{self, Key};
use crate::fs::remains::Remains;
use crate::fs::session::Session;
use crate::fs::token::{Enrolled, Token};
use crate::fs::{backlinks, index, settings, token_keys};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use wire::ids::{Ino, SessionId};
use wire::message::check::{FindingKind, Repair};

pub(super) fn check(check: &mut Check) {
    let mut sessions: BTreeMap<SessionId, Session> = BTreeMap::new();
    check.scan(keys::sessions(), 8, |check, key, value| {
        if let Some(session) = check.decode(key, value) {
            sessions.insert(SessionId(keys::first(key)), session);
        }
    });
    leased(check, &sessions);
    for (id, session) in &sessions {
        for key in index::of_session(*id, session) {
            if check.kv.get(&key).is_none() {
                let what = "an index does not name it".to_owned();
                check.found(FindingKind::WrongIndex, format!("session {id}"), what, Some(Repair::Index(key)));
            }
        }
    }
    // Keys that these indexes lack are found elsewhere, with the tables that they index.
    let tables: [(Range<Key>, usize); 8] = [
        (keys::all_living(), 16),
        (keys::all_ended(), 24),
        (keys::all_tokens(), 16),
        (keys::all_remains(), 8),
        (keys::all_session_orphans(), 16),
        (keys::all_session_locks(), 16),
        (backlinks::all(), 17),
        (token_keys::all_enrolled(), token_keys::ENROLLED_BYTES - 1),
    ];
    for (range, bytes) in tables {
        check.scan(range, bytes - 1, |check, key, _| {
            if index::belongs(check.kv, key) == Some(false) {
                let place = format!("index {:?}", char::from(key[0]));
                let what = "names what is not so, or is not there".to_owned();
                check.found(FindingKind::WrongIndex, place, what, Some(Repair::Index(key.to_vec())));
            }
        });
    }
    check.scan(keys::all_remains(), 8, |check, key, value| {
        let _: Option<Remains> = check.decode(key, value);
    });
    replies(check, &sessions);
    check.scan(token_keys::join_tokens(), 8, |check, key, value| {
        let _: Option<Token> = check.decode(key, value);
    });
    check.scan(token_keys::all_enrolled(), token_keys::ENROLLED_BYTES - 1, |check, key, value| {
        let _: Option<Enrolled> = check.decode(key, value);
    });
}

fn leased(check: &mut Check, sessions: &BTreeMap<SessionId, Session>) {
    let living = sessions.values().filter(|session| !session.has_ended());
    let mut leased: Vec<(Ino, Ino)> = living.flat_map(|session| session.inos.iter().copied()).collect();
    leased.sort_unstable();
    for two in leased.windows(2).filter(|two| two[0].1 > two[1].0) {
        let what = format!("those from {} on are leased twice", two[1].0);
        check.found(FindingKind::WrongSession, "numbers of inodes".to_owned(), what, None);
    }
    let next = settings::next_ino(check.kv);
    if let Some((_, end)) = leased.last().filter(|last| last.1 > next) {
        let what = format!("{next} is next, and those up to {end} are leased");
        check.found(FindingKind::WrongCounter, "numbers of inodes".to_owned(), what, Some(Repair::NextIno(*end)));
    }
}

fn replies(check: &mut Check, sessions: &BTreeMap<SessionId, Session>) {
    // The replies of a session follow each other.
    let mut last = None;
    check.scan(keys::all_replies(), 16 - 1, |check, key, _| {
        let id = SessionId(keys::first(key));
        let is_first = last.replace(id) != Some(id);
        if is_first && !sessions.contains_key(&id) && check.kv.get(&keys::remains(id)).is_none() {
            let (what, repair) = ("is forgotten, and replies are kept for it".to_owned(), Some(Repair::Replies(id)));
            check.found(FindingKind::WrongSession, format!("session {id}"), what, repair);
        }
    });
}

/// Returns the numbers of the sessions that may hold something: living ones whose records can be decoded, and ended ones
/// of which not all is removed yet.
pub(super) fn holding(check: &Check) -> BTreeSet<SessionId> {
    let mut holding = BTreeSet::new();
    check.kv.scan(keys::all_remains(), &mut |key, _| {
        if key.len() == 9 {
            holding.insert(SessionId(keys::first(key)));
        }
        true
    });
    check.kv.scan(keys::sessions(), &mut |key, value| {
        if key.len() == 9 && wire::codec::decode::<Session>(value).is_ok_and(|session| !session.has_ended()) {
            holding.insert(SessionId(keys::first(key)));
        }
        true
    });
    holding
}

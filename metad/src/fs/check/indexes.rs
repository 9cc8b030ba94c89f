//! Tables that say the same in two orders, and tables whose rows belong to inodes or sessions.

use crate::fs::blockref::BlockRef;
use crate::fs::inode::Inode;
use crate::fs::view::{Kv, KvExt, decode_stored};
use crate::fs::{keys, lock, session, settings};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use wire::attr::FileKind;
use wire::ids::{BlockHash, Ino, SessionId};

/// Contradictions between these tables.
pub(super) fn check(kv: &dyn Kv, inodes: &BTreeMap<Ino, Inode>, problems: &mut Vec<String>) {
    let sessions = session::all(kv);
    check_sessions(kv, &sessions, problems);
    let known: BTreeSet<SessionId> = sessions.iter().map(|(id, _)| *id).collect();
    check_orphans(kv, inodes, &known, problems);
    check_locks(kv, inodes, &known, problems);
    check_attributes(kv, inodes, problems);
    check_unreferenced(kv, problems);
}

fn numbers(kv: &dyn Kv, range: Range<keys::Key>, number: fn(&[u8]) -> u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    kv.scan(range, &mut |key, _| {
        found.insert(number(key));
        true
    });
    found
}

fn pairs_of(kv: &dyn Kv, range: Range<keys::Key>) -> BTreeSet<(SessionId, Ino)> {
    let mut found = BTreeSet::new();
    kv.scan(range, &mut |key, _| {
        found.insert((SessionId(keys::first(key)), Ino(keys::second(key))));
        true
    });
    found
}

fn check_sessions(kv: &dyn Kv, sessions: &[(SessionId, session::Session)], problems: &mut Vec<String>) {
    let mut leased: Vec<(Ino, Ino)> = sessions.iter().flat_map(|(_, session)| session.inos.iter().copied()).collect();
    leased.sort_unstable();
    for two in leased.windows(2).filter(|two| two[0].1 > two[1].0) {
        problems.push(format!("inode numbers from {} on are leased twice", two[1].0));
    }
    if leased.last().is_some_and(|last| last.1 > settings::next_ino(kv)) {
        problems.push("inode numbers are leased that will be leased again".to_owned());
    }
    let all = session::all_and_ended(kv);
    let living = sessions.iter().map(|(id, session)| keys::living(&session.opening.client, *id));
    let ended = all.iter().filter_map(|(id, session)| Some(keys::ended(&session.opening.client, session.ended?, *id)));
    let tokens = all.iter().filter_map(|(id, session)| Some(keys::token(session.opening.token?, *id)));
    let expected: [(&str, Range<keys::Key>, BTreeSet<keys::Key>); 3] = [
        ("living", keys::all_living(), living.collect()),
        ("ended", keys::all_ended(), ended.collect()),
        ("opened with a token", keys::all_tokens(), tokens.collect()),
    ];
    for (what, range, expected) in expected {
        let found: BTreeSet<keys::Key> = kv.pairs(range, usize::MAX).into_iter().map(|(key, _)| key).collect();
        if found != expected {
            problems.push(format!("the index of {what} sessions does not say what the sessions do"));
        }
    }
    let known: BTreeSet<u64> = all.into_iter().map(|(id, _)| id.0).collect();
    for id in numbers(kv, keys::all_replies(), keys::first) {
        if !known.contains(&id) {
            problems.push(format!("replies are kept for session {id}, which is forgotten"));
        }
    }
}

fn check_orphans(
    kv: &dyn Kv,
    inodes: &BTreeMap<Ino, Inode>,
    sessions: &BTreeSet<SessionId>,
    problems: &mut Vec<String>,
) {
    let mut by_session = pairs_of(kv, keys::all_session_orphans());
    kv.scan(keys::all_orphans(), &mut |key, value| {
        let ino = Ino(keys::first(key));
        if inodes.get(&ino).is_none_or(|inode| inode.attr.nlink != 0) {
            problems.push(format!("orphan {ino} is gone or has an entry"));
        }
        let holders: BTreeSet<SessionId> = decode_stored(key, value);
        if holders.is_empty() || !holders.is_subset(sessions) {
            problems.push(format!("orphan {ino} waits for nobody, or for a session that has ended"));
        }
        for holder in holders {
            if !by_session.remove(&(holder, ino)) {
                problems.push(format!("session {holder} is not asked about orphan {ino}"));
            }
        }
        true
    });
    problems
        .extend(by_session.iter().map(|(id, ino)| format!("session {id} is asked about {ino}, which is no orphan")));
}

fn check_locks(kv: &dyn Kv, inodes: &BTreeMap<Ino, Inode>, sessions: &BTreeSet<SessionId>, problems: &mut Vec<String>) {
    let mut by_session = pairs_of(kv, keys::all_session_locks());
    for ino in numbers(kv, keys::all_locks(), keys::first).into_iter().map(Ino) {
        if !inodes.contains_key(&ino) {
            problems.push(format!("inode {ino} is gone and has locks"));
        }
        for holder in lock::holders(kv, ino) {
            if !sessions.contains(&holder) || !by_session.remove(&(holder, ino)) {
                problems.push(format!("session {holder} has ended or does not know that it locks inode {ino}"));
            }
        }
    }
    problems.extend(by_session.iter().map(|(id, ino)| format!("session {id} holds no lock on inode {ino}")));
}

fn check_attributes(kv: &dyn Kv, inodes: &BTreeMap<Ino, Inode>, problems: &mut Vec<String>) {
    let with = numbers(kv, keys::all_xattrs(), keys::first);
    for ino in with.iter().map(|ino| Ino(*ino)).filter(|ino| !inodes.contains_key(ino)) {
        problems.push(format!("inode {ino} is gone and has extended attributes"));
    }
    for (ino, inode) in inodes {
        if inode.attr.has_xattrs != with.contains(&ino.0) {
            problems.push(format!("inode {ino} is wrong about having extended attributes"));
        }
        if kv.get(&keys::symlink(*ino)).is_some() != (inode.attr.kind == FileKind::Symlink) {
            problems.push(format!("inode {ino} has a target and is no symlink, or the other way round"));
        }
    }
    for ino in numbers(kv, keys::all_reaping(), keys::first) {
        if inodes.contains_key(&Ino(ino)) {
            problems.push(format!("inode {ino} is there while its content is taken apart"));
        }
    }
}

fn check_unreferenced(kv: &dyn Kv, problems: &mut Vec<String>) {
    let mut waiting: BTreeMap<BlockHash, u64> = BTreeMap::new();
    kv.scan(keys::all_unreferenced(), &mut |key, _| {
        if waiting.insert(keys::unreferenced_hash(key), keys::first(key)).is_some() {
            problems.push(format!("block {} waits twice for its deletion", keys::unreferenced_hash(key)));
        }
        true
    });
    kv.scan(keys::blocks(), &mut |key, value| {
        let mut hash = BlockHash([0; 32]);
        hash.0.copy_from_slice(&key[1..]);
        let block: BlockRef = decode_stored(key, value);
        let expected = (block.count == 0).then_some(block.zero_since_ms);
        if waiting.remove(&hash) != expected {
            problems.push(format!("block {hash} waits for its deletion and has references, or the other way round"));
        }
        true
    });
    problems.extend(waiting.keys().map(|hash| format!("block {hash} is unknown and waits for its deletion")));
}

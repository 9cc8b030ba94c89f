//! One window of inodes after the other: each inode with the entries that lead to it and stand in it, and with the rows
//! of all tables that belong to it.

use super::rows::{Row, Rows};
use super::{Check, entries, indexes, places};
use crate::fs::extent;
use crate::fs::hidden::HiddenContent;
use crate::fs::inode::Inode;
use crate::fs::{keys, lock, numbered, settings};
use std::collections::BTreeSet;
use wire::ids::{ChunkIndex, Ino, SessionId};
use wire::message::check::{FindingKind, Repair};

pub(super) fn check(check: &mut Check) {
    let holding = indexes::holding(check);
    let (mut first, mut count, mut greatest) = (Ino(0), 0, Ino(0));
    loop {
        let rows = Rows { rows: Vec::new(), first, end: None, lost: BTreeSet::new() };
        let mut rows = collect(check, rows);
        count += rows.rows.len() as u64;
        greatest = rows.rows.last().map_or(greatest, |row| row.ino);
        entries::check(check, &mut rows);
        extents(check, &mut rows);
        hidden(check, &mut rows);
        attributes(check, &mut rows);
        orphans(check, &mut rows, &holding);
        reaping(check, &mut rows);
        locks(check, &mut rows, &holding);
        if check.ended {
            return;
        }
        rows.rows.iter().for_each(|row| row.compare(check));
        match rows.end {
            Some(end) => first = end,
            None => break,
        }
    }
    counters(check, count, greatest);
}

/// Returns the next inodes, as many as fit in a window.
fn collect(check: &mut Check, mut rows: Rows) -> Rows {
    let kv = check.kv;
    let window = check.window;
    let range = rows.keys(b'I');
    kv.scan(range, &mut |key, value| {
        if !check.listener.looked() {
            check.ended = true;
            return false;
        }
        if key.len() != 9 {
            check.undecodable(key);
            return true;
        }
        let ino = Ino(keys::first(key));
        if rows.rows.len() >= window {
            rows.end = Some(ino);
            return false;
        }
        match check.decode::<Inode>(key, value) {
            Some(inode) if inode.attr.ino == ino => rows.rows.push(Row::new(&inode)),
            Some(_) => {
                check.undecodable(key);
                rows.rows.push(Row::damaged(ino));
            }
            None => rows.rows.push(Row::damaged(ino)),
        }
        true
    });
    rows
}

fn extents(check: &mut Check, rows: &mut Rows) {
    let mut stray = None;
    check.scan(rows.keys(b'E'), 16, |check, key, value| {
        let Some(extent) = extent::decode(key, value) else { return check.undecodable(key) };
        let (ino, _) = keys::extent_parts(key);
        let Some(end) = extent.file_off.checked_add(extent.len) else { return check.undecodable(key) };
        if extent.len == 0 || ChunkIndex::of(extent.file_off) != ChunkIndex::of(end - 1) {
            let what = format!("its extent at {} is empty or crosses a chunk's border", extent.file_off);
            check.found(FindingKind::BadExtent, places::of(check.kv, ino), what, None);
        }
        match rows.get(ino) {
            Some(row) => {
                let overlaps = extent.file_off < row.end;
                row.bytes = row.bytes.saturating_add(extent.len);
                row.end = end;
                if overlaps {
                    let what = format!("its extents overlap at {}", extent.file_off);
                    check.found(FindingKind::BadExtent, places::of(check.kv, ino), what, None);
                }
            }
            // Once for each inode.
            None if stray.replace(ino) != Some(ino) && check.kv.get(&keys::reaping(ino)).is_none() => {
                let what = "has content, and is not there".to_owned();
                // Where a name leads to it, only the inode is lost.
                let repair = (!rows.lost.contains(&ino)).then_some(Repair::Content(ino));
                check.found(FindingKind::Leftover, format!("inode {ino}"), what, repair);
            }
            None => {}
        }
    });
}

fn hidden(check: &mut Check, rows: &mut Rows) {
    check.scan(rows.keys(b'h'), 8, |check, key, value| {
        let Some(content) = check.decode::<HiddenContent>(key, value) else { return };
        let ino = Ino(keys::first(key));
        if let Some(row) = rows.get(ino) {
            // The inode counts what is removed until all of it is.
            row.bytes = row.bytes.saturating_add(content.freed);
        } else {
            let what = "has content that was cut off, and is not there".to_owned();
            check.found(FindingKind::Leftover, format!("inode {ino}"), what, Some(Repair::Index(key.to_vec())));
        }
    });
}

fn attributes(check: &mut Check, rows: &mut Rows) {
    for table in [b'X', b'L'] {
        let mut stray = None;
        check.scan(rows.keys(table), 8, |check, key, value| {
            if numbered::decode_bytes(value).is_err() {
                check.undecodable(key);
            }
            let ino = Ino(keys::first(key));
            match rows.get(ino) {
                Some(row) if table == b'X' => row.found_xattrs = true,
                Some(row) => row.found_target = true,
                None if stray.replace(ino) != Some(ino) => {
                    let what = if table == b'X' { "has attributes" } else { "has a symlink's target" };
                    let what = format!("{what}, and is not there");
                    let repair = Some(Repair::Attributes(ino));
                    check.found(FindingKind::Leftover, format!("inode {ino}"), what, repair);
                }
                None => {}
            }
        });
    }
}

fn orphans(check: &mut Check, rows: &mut Rows, holding: &BTreeSet<SessionId>) {
    check.scan(rows.keys(b'O'), 8, |check, key, value| {
        let Some(holders) = check.decode::<BTreeSet<SessionId>>(key, value) else { return };
        let ino = Ino(keys::first(key));
        let (mut seen, mut named) = (None, false);
        let wrong = match rows.get(ino) {
            None => Some("waits to be let go, and is not there"),
            Some(row) => {
                row.is_orphan = true;
                (seen, named) = (Some(row.seen), row.links > 0);
                if row.is_damaged {
                    None
                } else if named {
                    Some("waits to be let go, and has an entry")
                } else if holders.is_empty() || !holders.is_subset(holding) {
                    Some("is unlinked, and waits for nobody, or for a session that has ended")
                } else {
                    None
                }
            }
        };
        if let Some(what) = wrong {
            let repair = Some(Repair::Orphan { ino, seen, named });
            check.found(FindingKind::StaleOrphan, format!("inode {ino}"), what.to_owned(), repair);
        }
        for holder in &holders {
            let by_session = keys::session_orphan(*holder, ino);
            if check.kv.get(&by_session).is_none() {
                let what = format!("session {holder} is not asked about it, though it is unlinked");
                let repair = Some(Repair::Index(by_session));
                check.found(FindingKind::WrongIndex, format!("inode {ino}"), what, repair);
            }
        }
    });
}

fn reaping(check: &mut Check, rows: &mut Rows) {
    check.scan(rows.keys(b'R'), 8, |check, key, _| {
        let ino = Ino(keys::first(key));
        if rows.get(ino).is_some() {
            let what = "is there while its content is taken apart".to_owned();
            check.found(FindingKind::Leftover, places::of(check.kv, ino), what, Some(Repair::Content(ino)));
        }
    });
}

fn locks(check: &mut Check, rows: &mut Rows, holding: &BTreeSet<SessionId>) {
    check.scan(rows.keys(b'K'), 8, |check, key, value| {
        let Some(holders) = lock::decode_holders(value) else { return check.undecodable(key) };
        let ino = Ino(keys::first(key));
        let repair = Some(Repair::Locks(ino));
        if rows.get(ino).is_none() {
            let what = "has locks, and is not there".to_owned();
            check.found(FindingKind::StaleLock, format!("inode {ino}"), what, repair);
        } else if !holders.is_subset(holding) {
            let what = "is locked by a session that has ended".to_owned();
            check.found(FindingKind::StaleLock, places::of(check.kv, ino), what, repair);
        }
        for holder in &holders {
            let by_session = keys::session_lock(*holder, ino);
            if check.kv.get(&by_session).is_none() {
                let what = format!("session {holder} does not know that it has locked it");
                let repair = Some(Repair::Index(by_session));
                check.found(FindingKind::WrongIndex, places::of(check.kv, ino), what, repair);
            }
        }
    });
}

fn counters(check: &mut Check, found: u64, greatest: Ino) {
    let seen = settings::inode_count(check.kv);
    if seen != found {
        let what = format!("counted are {seen}, and there are {found}");
        let repair = Some(Repair::InodeCount { seen, found });
        check.found(FindingKind::WrongCounter, "number of inodes".to_owned(), what, repair);
    }
    let next = settings::next_ino(check.kv);
    if greatest >= next {
        let what = format!("{next} is next, and {greatest} is used");
        let repair = Some(Repair::NextIno(Ino(greatest.0.saturating_add(1))));
        check.found(FindingKind::WrongCounter, "numbers of inodes".to_owned(), what, repair);
    }
}

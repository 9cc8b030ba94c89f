//! References of blocks, and the blocks that wait to be deleted.

use super::{Check, WINDOW};
use crate::fs::blockref::BlockRef;
use crate::fs::{extent, index, keys};
use std::collections::BTreeMap;
use wire::extent::Source;
use wire::ids::BlockHash;
use wire::message::check::{FindingKind, Repair};

/// A block: its stored counts, and those found.
struct Row {
    hash: BlockHash,
    len: u32,
    counted: u64,
    found: u64,
}

// Unknown blocks take as much again, at most.
const _: () = assert!(size_of::<Row>() * WINDOW <= 32 << 20);

/// Blocks with hashes from `first` up to, but not including, `end`.
struct Window {
    rows: Vec<Row>,
    first: BlockHash,
    end: Option<BlockHash>,
}

impl Window {
    fn covers(&self, hash: &BlockHash) -> bool {
        *hash >= self.first && self.end.is_none_or(|end| *hash < end)
    }
}

pub(super) fn check(check: &mut Check) {
    let mut first = BlockHash([0; 32]);
    loop {
        let window = collect(check, first);
        let end = window.end;
        count(check, window);
        match end {
            Some(end) if !check.ended => first = end,
            _ => break,
        }
    }
    unreferenced(check);
}

fn collect(check: &mut Check, first: BlockHash) -> Window {
    let mut window = Window { rows: Vec::new(), first, end: None };
    let (kv, most) = (check.kv, check.window);
    kv.scan(keys::block(&first)..keys::blocks().end, &mut |key, value| {
        if !check.listener.looked() {
            check.ended = true;
            return false;
        }
        let Some(hash) = keys::block_hash(key) else {
            check.undecodable(key);
            return true;
        };
        if window.rows.len() >= most {
            window.end = Some(hash);
            return false;
        }
        if let Some(BlockRef { count, len, zero_since_ms }) = check.decode(key, value) {
            window.rows.push(Row { hash, len, counted: count, found: 0 });
            if count == 0 && kv.get(&keys::unreferenced(zero_since_ms, &hash)).is_none() {
                let repair = Some(Repair::Index(keys::unreferenced(zero_since_ms, &hash)));
                let what = "has no references, and does not wait for its deletion".to_owned();
                check.found(FindingKind::WrongIndex, format!("block {hash}"), what, repair);
            }
        }
        true
    });
    window
}

fn count(check: &mut Check, mut window: Window) {
    // At most as many as fit in a window: once these are repaired, the next check finds the others.
    let mut unknown: BTreeMap<BlockHash, (u64, u32)> = BTreeMap::new();
    let most = check.window;
    // An extent that cannot be decoded may refer to any block.
    let mut is_sure = true;
    check.scan(keys::all_extents(), 16, |check, key, value| {
        // Extents that cannot be decoded are reported with their inodes.
        let Some(extent) = extent::decode(key, value) else {
            is_sure = false;
            return;
        };
        let Source::Block { hash, form, offset } = extent.source else { return };
        let block_len = form.stored_len;
        if !window.covers(&hash) {
            return;
        }
        let len = match window.rows.binary_search_by_key(&hash, |row| row.hash) {
            Ok(at) => {
                window.rows[at].found += 1;
                window.rows[at].len
            }
            Err(_) => {
                if unknown.len() < most || unknown.contains_key(&hash) {
                    unknown.entry(hash).or_insert((0, block_len)).0 += 1;
                }
                block_len
            }
        };
        if len != block_len || u64::from(offset).saturating_add(extent.len) > u64::from(block_len) {
            let what = format!("an extent reads {} bytes at {offset} of {block_len}, and it has {len}", extent.len);
            check.found(FindingKind::BadExtent, format!("block {hash}"), what, None);
        }
    });
    if check.ended {
        return;
    }
    for Row { hash, len, counted, found } in window.rows.into_iter().filter(|row| row.counted != row.found) {
        let what = format!("has {found} references and counts {counted}");
        let repair =
            (is_sure || found > counted).then_some(Repair::References { hash, seen: Some(counted), found, len });
        check.found(FindingKind::ReferenceCount, format!("block {hash}"), what, repair);
    }
    for (hash, (found, len)) in unknown {
        let what = format!("has {found} references, and they are not counted");
        let repair = Some(Repair::References { hash, seen: None, found, len });
        check.found(FindingKind::ReferenceCount, format!("block {hash}"), what, repair);
    }
}

/// Checks that the blocks that wait to be deleted are known, and have had no references since then.
fn unreferenced(check: &mut Check) {
    check.scan(keys::all_unreferenced(), keys::UNREFERENCED_BYTES - 1, |check, key, _| {
        if index::belongs(check.kv, key) == Some(false) {
            let what = "waits for its deletion, and has references, is not known, or waits since another time";
            let place = format!("block {}", keys::unreferenced_hash(key));
            check.found(FindingKind::WrongIndex, place, what.to_owned(), Some(Repair::Index(key.to_vec())));
        }
    });
}

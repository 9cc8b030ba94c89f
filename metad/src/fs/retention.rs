//! Blocks that are retained though nothing refers to them: pins, which backups make, and the stop of all deletion after
//! a recovery (I10).
//!
//! A pin retains what something referred to when it was made. Blocks that lost their last reference before may go.
//! Times decide which is which, so no reference ends at a time before the newest pin, whatever the leaders' clocks
//! show: see [`not_before_pins`].

use super::CommandReply;
use super::blockref::BlockRef;
use super::keys;
use super::view::{Kv, KvExt, View};
use serde::{Deserialize, Serialize};
use wire::attr::Timestamp;
use wire::ids::BlockHash;
use wire::limits::{PIN_MAX_MS, PIN_NAME_BYTES_MAX, PINS_MAX};
use wire::message::admin::{DeletionStop, Pin};

const PINS: &str = "pins";
const STOPPED: &str = "deletion stopped";
const NANOS_PER_MS: i128 = 1_000_000;

/// The stored record of a pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredPin {
    pin: Pin,
    /// Blocks without references since before this time, in milliseconds since the epoch, are not retained by this pin.
    since_ms: u64,
}

fn stored(kv: &dyn Kv) -> Vec<StoredPin> {
    kv.load(&keys::setting(PINS)).unwrap_or_default()
}

fn store(view: &mut View, pins: &[StoredPin]) {
    if pins.is_empty() { view.delete(keys::setting(PINS)) } else { view.store(keys::setting(PINS), &pins) }
}

/// Returns the pins that hold at this time.
#[must_use]
pub fn pins(kv: &dyn Kv, now: Timestamp) -> Vec<Pin> {
    stored(kv).into_iter().map(|stored| stored.pin).filter(|pin| pin.until > now).collect()
}

/// Returns why no block is deleted, if deletion is stopped.
#[must_use]
pub fn deletion_stopped(kv: &dyn Kv) -> Option<DeletionStop> {
    kv.load(&keys::setting(STOPPED))
}

/// Returns the time at which the references that a command ends are said to end.
pub(super) fn not_before_pins(kv: &dyn Kv, now: Timestamp) -> Timestamp {
    let newest = stored(kv).into_iter().map(|stored| stored.since_ms).max();
    match newest {
        Some(ms) if now.as_millis() < ms => Timestamp::default().shifted(i128::from(ms) * NANOS_PER_MS),
        _ => now,
    }
}

/// Applies `Command::PinBlocks`. Returns `Stale` when there is a pin of that name, or as many pins as are allowed.
pub(super) fn pin(view: &mut View, (now, entry): (Timestamp, Timestamp), name: &str, keep_ms: u64) -> CommandReply {
    let mut pins = stored(view);
    pins.retain(|stored| stored.pin.until > now);
    let is_there = pins.iter().any(|stored| stored.pin.name == name);
    if is_there || pins.len() >= PINS_MAX || name.is_empty() || name.len() > PIN_NAME_BYTES_MAX || keep_ms > PIN_MAX_MS
    {
        return CommandReply::Stale;
    }
    let until = now.shifted(i128::from(keep_ms) * NANOS_PER_MS);
    let pin = Pin { name: name.to_owned(), made: now, until };
    pins.push(StoredPin { pin, since_ms: entry.as_millis() });
    store(view, &pins);
    CommandReply::Done
}

/// Applies `Command::ReleasePin`. Returns `Stale` when there is no pin of that name.
pub(super) fn release(view: &mut View, name: &str) -> CommandReply {
    let mut pins = stored(view);
    let count = pins.len();
    pins.retain(|stored| stored.pin.name != name);
    if pins.len() == count {
        return CommandReply::Stale;
    }
    store(view, &pins);
    CommandReply::Done
}

/// Stops all deletion of blocks.
pub(super) fn stop_deletion(view: &mut View, stop: &DeletionStop) {
    view.store(keys::setting(STOPPED), stop);
}

/// Applies `Command::ResumeDeletion`.
pub(super) fn resume_deletion(view: &mut View) -> CommandReply {
    view.delete(keys::setting(STOPPED));
    CommandReply::Done
}

/// Returns a time in milliseconds since the epoch: blocks that have had no references since before it are not pinned,
/// and may be deleted. Returns `None` while deletion is stopped.
#[must_use]
pub fn deletable_before(kv: &dyn Kv, now: Timestamp) -> Option<u64> {
    if deletion_stopped(kv).is_some() {
        return None;
    }
    let holding = stored(kv).into_iter().filter(|stored| stored.pin.until > now);
    Some(holding.map(|stored| stored.since_ms).min().unwrap_or(u64::MAX))
}

/// Returns those of these blocks that nothing refers to, that no pin retains, and that may be deleted at all.
#[must_use]
pub fn unreferenced(kv: &dyn Kv, now: Timestamp, hashes: Vec<BlockHash>) -> Vec<BlockHash> {
    let Some(before) = deletable_before(kv, now) else { return Vec::new() };
    let may_go = |hash: &BlockHash| {
        let block = kv.load::<BlockRef>(&keys::block(hash));
        block.is_none_or(|block| block.count == 0 && block.zero_since_ms < before)
    };
    hashes.into_iter().filter(may_go).collect()
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::*;
    use crate::fs::{Context, blockref};
    use wire::extent::BlockForm;
    use wire::ids::{PolicyId, SessionId};

    fn at(ms: u64) -> Timestamp {
        Timestamp::default().shifted(i128::from(ms) * NANOS_PER_MS)
    }

    fn change(kv: &mut MemoryKv, step: impl FnOnce(&mut View) -> CommandReply) -> CommandReply {
        let before = kv.clone();
        let mut view = View::new(&before);
        let reply = step(&mut view);
        kv.absorb(view.into_changes());
        reply
    }

    fn referred(kv: &mut MemoryKv, ms: u64, number: u8, is_begun: bool) -> BlockHash {
        let hash = BlockHash([number; 32]);
        change(kv, |view| {
            let entry = not_before_pins(view, at(ms));
            let context = Context {
                now: at(ms),
                entry,
                session: SessionId::default(),
                root: wire::ids::Ino::ROOT,
                copy_to: None,
            };
            if is_begun {
                blockref::add(view, &hash, &BlockForm::plain(1));
            } else {
                blockref::remove(view, &context, &hash, PolicyId::DEFAULT);
            }
            CommandReply::Done
        });
        hash
    }

    fn pin_at(kv: &mut MemoryKv, ms: u64, name: &str, keep_ms: u64) -> CommandReply {
        change(kv, |view| {
            let entry = not_before_pins(view, at(ms));
            pin(view, (at(ms), entry), name, keep_ms)
        })
    }

    /// Guards I10.
    #[test]
    fn a_pin_keeps_what_was_referred_to_when_it_was_made_until_it_is_released_or_ends() {
        let mut kv = MemoryKv::default();
        for number in 1..=4 {
            referred(&mut kv, 500, number, true);
        }
        let before = referred(&mut kv, 1_000, 1, false);
        assert_eq!(pin_at(&mut kv, 2_000, "p", 10_000), CommandReply::Done);
        let after = referred(&mut kv, 3_000, 2, false);
        // The next leader's clock is behind.
        let behind = referred(&mut kv, 1_500, 3, false);
        let still = BlockHash([4; 32]);
        let unknown = BlockHash([9; 32]);
        let asked = vec![before, after, behind, still, unknown];
        assert_eq!(unreferenced(&kv, at(4_000), asked.clone()), [before, unknown]);
        assert_eq!(deletable_before(&kv, at(4_000)), Some(2_000));
        let all = vec![before, after, behind, unknown];
        assert_eq!(unreferenced(&kv, at(12_001), asked.clone()), all, "it has ended");
        assert_eq!(change(&mut kv, |view| release(view, "other")), CommandReply::Stale);
        assert_eq!(change(&mut kv, |view| release(view, "p")), CommandReply::Done);
        assert_eq!(unreferenced(&kv, at(4_000), asked), all);
    }

    /// Guards I10.
    #[test]
    fn nothing_is_deleted_while_deletion_is_stopped() {
        let mut kv = MemoryKv::default();
        let stop = DeletionStop { reason: "restored".to_owned(), since: at(5) };
        change(&mut kv, |view| {
            stop_deletion(view, &stop);
            CommandReply::Done
        });
        assert_eq!((deletable_before(&kv, at(9)), deletion_stopped(&kv)), (None, Some(stop)));
        assert!(unreferenced(&kv, at(9), vec![BlockHash([9; 32])]).is_empty(), "also what was never referred to");
        change(&mut kv, resume_deletion);
        assert_eq!(unreferenced(&kv, at(9), vec![BlockHash([9; 32])]).len(), 1);
    }

    #[test]
    fn pins_are_few_have_names_of_their_own_and_go_when_they_have_ended() {
        let mut kv = MemoryKv::default();
        for number in 0..PINS_MAX as u64 {
            assert_eq!(pin_at(&mut kv, 1_000, &number.to_string(), 100 + number), CommandReply::Done);
        }
        assert_eq!(pin_at(&mut kv, 1_000, "more", 100), CommandReply::Stale);
        assert_eq!(pin_at(&mut kv, 1_100, "more", 100), CommandReply::Done, "the first one has ended");
        assert_eq!(pins(&kv, at(1_100)).len(), PINS_MAX);
        assert_eq!(pin_at(&mut kv, 1_150, "more", 100), CommandReply::Stale, "it is there");
        for (name, keep_ms) in [("", 1), ("x", PIN_MAX_MS + 1), (&"n".repeat(PIN_NAME_BYTES_MAX + 1) as &str, 1)] {
            assert_eq!(pin_at(&mut MemoryKv::default(), 0, name, keep_ms), CommandReply::Stale);
        }
    }
}

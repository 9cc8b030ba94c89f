//! Going on from a state of the past: that of a backup, or of a single survivor.
//!
//! Others have seen what came after that state: mounts have pages and versions of it, block daemons know its layouts.
//! So none of its numbers may be given out a second time. All numbers jump ([`Jump`]) beyond any that can have been
//! given out: inodes (I4), sessions, versions (I6), epochs of the layout (I11), versions of what is revoked and of the CAs that
//! are trusted. Sessions end, removed files that were
//! still open go, and no block is deleted until an operator allows it (I10): blocks are all that is left of the lost
//! time. Join tokens are revoked: some of their uses may be lost.
//!
//! Each step changes part of the state and is repeated until nothing is left to do. [`crate::recovery`] runs the steps
//! while nobody serves the state.

use super::hidden::HiddenContent;
use super::inode::Inode;
use super::journal_keys;
use super::keys::{self, Key};
use super::retention;
use super::session;
use super::settings::{self, NEXT_INO};
use super::tickets;
use super::token;
use super::view::{KvExt, View};
use super::{Context, cert, extent, lifetime, orphan, remains, trust};
use std::collections::BTreeSet;
use std::ops::Range;
use wire::attr::Timestamp;
use wire::ids::{Ino, LayoutEpoch, SessionId, Version};
use wire::message::admin::DeletionStop;
use wire::op::JournalPosition;
use wire::{Error, codec};

/// Fewer than 2 to this power numbers of a kind are given out per second, averaged over a cluster's whole life.
const RATE_BITS: u32 = 24;
/// The smallest jump, for when the clock gives a smaller one.
const JUMP_MIN: u64 = 1 << 32;
/// Clocks beyond the year 4000 are wrong.
const SECONDS_MAX: u64 = 1 << 36;

/// From where numbers go on. It depends on the time of the recovery: two recoveries from one backup must not give out
/// the same numbers either.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    seconds: u64,
}

impl Jump {
    /// Returns the jump of a recovery that is made now; `None` when the clock cannot be right.
    #[must_use]
    pub fn at(now: Timestamp) -> Option<Self> {
        let seconds = u64::try_from(now.secs).ok().filter(|seconds| (1..SECONDS_MAX).contains(seconds))?;
        Some(Self { seconds })
    }

    /// Returns the next value of a counter whose value in the state is `last`.
    #[must_use]
    pub fn over(self, last: u64) -> u64 {
        last.saturating_add(JUMP_MIN).max(self.seconds << RATE_BITS)
    }

    /// Returns from where Raft terms go on. Elections happen less than once a second.
    #[must_use]
    pub fn over_term(self, last: u64) -> u64 {
        last.saturating_add(1).max(self.seconds)
    }

    /// Returns the version of the trusted CAs after which to go on, whose last one in the state is `last`. They change less than
    /// once a second. Operators sign no version far beyond it.
    #[must_use]
    pub fn over_trust(self, last: u64) -> u64 {
        last.max(self.seconds)
    }

    /// Returns by how much versions grow. It is the same for all, so that their order stays.
    fn shift(self) -> u64 {
        self.seconds << RATE_BITS
    }
}

/// Returns what of a stored pair belongs in a backup. Sessions end with a restore, and a client's secrets (numbers and
/// tokens of sessions, stored replies) must not be disclosed: neither sessions nor what they hold are exported.
#[must_use]
pub fn exported(key: &[u8], value: Vec<u8>) -> Option<Vec<u8>> {
    // Whoever has a backup could sign.
    if *key == tickets::key() {
        return None;
    }
    match key.first()? {
        b'S' | b'A' | b'W' | b'e' | b'T' | b'Y' | b'U' | b'Q' | b'J' | b'K' => None,
        // A token that was used or revoked since must not be good again.
        b'F' | b'H' => None,
        // The sessions that held it are left out.
        b'O' => Some(codec::encode(&BTreeSet::<SessionId>::new())),
        _ => Some(value),
    }
}

/// Ends up to `limit` sessions, and returns how many.
pub fn end_sessions(view: &mut View, now: Timestamp, limit: usize) -> usize {
    let context = context(view, now);
    let living: Vec<SessionId> = session::living(view).into_iter().take(limit).collect();
    living.iter().for_each(|id| lifetime::close(view, &context, *id));
    living.len()
}

/// Removes some of what ended sessions have left. Returns 0 when nothing is left.
pub fn release_remains(view: &mut View, now: Timestamp) -> usize {
    let context = context(view, now);
    let are_left = remains::are_left(view);
    remains::remove_some(view, &context);
    usize::from(are_left)
}

/// Removes up to `limit` inodes that have no entry and waited for sessions that are gone, and returns how many.
pub fn drop_orphans(view: &mut View, now: Timestamp, limit: usize) -> usize {
    let context = context(view, now);
    let found = view.pairs(keys::all_orphans(), limit);
    for (key, _) in &found {
        view.delete(key.clone());
        orphan::remove(view, &context, Ino(keys::first(key)));
    }
    found.len()
}

fn context(view: &View, now: Timestamp) -> Context {
    let entry = retention::not_before_pins(view, now);
    Context { now, entry, session: SessionId::default(), root: Ino::ROOT, copy_to: None }
}

/// Returns the tables whose values hold versions.
#[must_use]
pub fn versioned() -> [Range<Key>; 4] {
    [keys::inodes(), keys::all_extents(), keys::all_hidden(), journal_keys::all_journals()]
}

/// Shifts the versions in up to `limit` values of a range, beginning after the key `after`, which is set to the last of
/// them. Returns how many there were.
///
/// # Errors
/// When a value cannot be decoded, or no larger version is left.
pub fn shift_versions(
    view: &mut View,
    jump: Jump,
    range: &Range<Key>,
    after: &mut Option<Key>,
    limit: usize,
) -> Result<usize, Error> {
    let start = after.as_ref().map_or_else(|| range.start.clone(), |after| [after.as_slice(), &[0]].concat());
    let found = view.pairs(start..range.end.clone(), limit);
    for (key, value) in &found {
        let shifted = shifted(key, value, jump.shift())?;
        view.put(key.clone(), shifted);
    }
    if let Some((key, _)) = found.last() {
        *after = Some(key.clone());
    }
    Ok(found.len())
}

fn shifted(key: &[u8], value: &[u8], by: u64) -> Result<Vec<u8>, Error> {
    let next = |version: Version| {
        let next = version.0.checked_add(by).filter(|next| *next < u64::MAX / 2);
        next.map(Version).ok_or_else(|| Error::Malformed("the state was recovered too often".to_owned()))
    };
    match key.first() {
        Some(b'I') => {
            let mut inode: Inode = codec::decode(value)?;
            inode.attr.version = next(inode.attr.version)?;
            for cut in &mut inode.cuts {
                cut.version = next(cut.version)?;
            }
            Ok(codec::encode(&inode))
        }
        Some(b'E') => extent::with_version(value, next),
        Some(b'h') => {
            let mut hidden: HiddenContent = codec::decode(value)?;
            for range in &mut hidden.ranges {
                range.version = next(range.version)?;
            }
            Ok(codec::encode(&hidden))
        }
        _ => {
            let mut position: JournalPosition = codec::decode(value)?;
            for file in &mut position.files {
                file.base = next(file.base)?;
            }
            Ok(codec::encode(&position))
        }
    }
}

/// Moves all counters beyond what was given out, and stops the deletion of blocks.
///
/// # Errors
/// When the state belongs to no cluster.
pub fn begin_anew(view: &mut View, jump: Jump, stop: &DeletionStop) -> Result<(), Error> {
    if settings::cluster(view).is_none() {
        return Err(Error::Malformed("the state is of no cluster".to_owned()));
    }
    // Block daemons know a list of what is revoked, and believe a newer one alone.
    let counters = [(NEXT_INO, Ino::FIRST_FREE.0), ("next session", 1), ("next ended", 1), (cert::VERSION, 0)];
    for (counter, first) in counters {
        let key = keys::setting(counter);
        let last = view.load(&key).unwrap_or(first);
        view.store(key, &jump.over(last));
    }
    // Nodes follow a later version of what is trusted alone.
    let taken = jump.over_trust(trust::version(view));
    trust::go_on_after(view, taken);
    let mut layout = settings::layout(view);
    layout.epoch = LayoutEpoch(jump.over(layout.epoch.0));
    // What was uploaded for an older epoch is uploaded again, to the owners under this one.
    layout.placement = layout.epoch;
    settings::replace_layout(view, &layout);
    retention::stop_deletion(view, stop);
    token::revoke_all(view);
    Ok(())
}

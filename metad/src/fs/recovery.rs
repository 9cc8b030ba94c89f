//! Going on from a state of the past: what a backup holds, or what a single survivor has.
//!
//! Others have seen what came after that state: mounts have pages and versions of it, block daemons know its layouts. So
//! nothing of it may be given out a second time. All numbers jump ([`Jump`]) beyond any that can have been given out:
//! inodes (I4), sessions, versions (I6), epochs of the layout (I11). Sessions end, what was removed and still open goes,
//! and no block is deleted until an operator says so (I10), for blocks of the lost time are all that is left of it.
//!
//! Each step changes part of the state and is repeated until nothing is left to do. They are made while nobody serves the
//! state, by [`crate::recovery`].

use super::inode::Inode;
use super::keys::{self, Key};
use super::retention;
use super::session;
use super::settings::{self, NEXT_INO};
use super::view::{KvExt, View};
use super::{Context, extent, lifetime, orphan};
use std::collections::BTreeSet;
use std::ops::Range;
use wire::attr::Timestamp;
use wire::ids::{Ino, LayoutEpoch, SessionId, Version};
use wire::message::admin::DeletionStop;
use wire::op::JournalPosition;
use wire::{Error, codec};

/// Numbers given out per second, of any kind, stay below this: also over a cluster's whole life.
const RATE_BITS: u32 = 24;
/// A jump that the clock does not make large enough is this large.
const JUMP_MIN: u64 = 1 << 32;
/// Clocks beyond the year 4000 are wrong.
const SECONDS_MAX: u64 = 1 << 36;

/// From where numbers go on. The time of the recovery decides: two recoveries from one backup must not give out the same
/// numbers either.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    seconds: u64,
}

impl Jump {
    /// The jump of a recovery that is made now. `None` when the clock cannot be right.
    #[must_use]
    pub fn at(now: Timestamp) -> Option<Self> {
        let seconds = u64::try_from(now.secs).ok().filter(|seconds| (1..SECONDS_MAX).contains(seconds))?;
        Some(Self { seconds })
    }

    /// Where a counter goes on that stood at `last` when the state was current.
    #[must_use]
    pub fn over(self, last: u64) -> u64 {
        last.saturating_add(JUMP_MIN).max(self.seconds << RATE_BITS)
    }

    /// Where Raft terms go on: elections are rarer than one a second.
    #[must_use]
    pub fn over_term(self, last: u64) -> u64 {
        last.saturating_add(1).max(self.seconds)
    }

    /// By how much versions grow. All of them by the same: what is newer than what stays so.
    fn shift(self) -> u64 {
        self.seconds << RATE_BITS
    }
}

/// What of a stored pair belongs into a backup. Sessions end with a restore, and what a client proves itself by (numbers
/// and tokens of sessions, kept replies) is nobody else's: neither they nor what they hold is in it.
#[must_use]
pub fn exported(key: &[u8], value: Vec<u8>) -> Option<Vec<u8>> {
    match key.first()? {
        b'S' | b'A' | b'W' | b'T' | b'Y' | b'U' | b'Q' | b'J' | b'K' => None,
        // Who held it is not told.
        b'O' => Some(codec::encode(&BTreeSet::<SessionId>::new())),
        _ => Some(value),
    }
}

/// Ends up to `limit` sessions; returns how many.
pub fn end_sessions(view: &mut View, now: Timestamp, limit: usize) -> usize {
    let context = context(view, now);
    let living: Vec<SessionId> = session::living(view).into_iter().take(limit).collect();
    living.iter().for_each(|id| lifetime::close(view, &context, *id));
    living.len()
}

/// Removes up to `limit` inodes that have no entry and waited for sessions that are gone; returns how many.
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
    Context { now, entry: retention::not_before_pins(view, now), session: SessionId::default() }
}

/// The tables whose values hold versions.
#[must_use]
pub fn versioned() -> [Range<Key>; 3] {
    [keys::inodes(), keys::all_extents(), keys::all_journals()]
}

/// Shifts the versions in up to `limit` values of a range, beginning behind `after`, which becomes the last of them.
/// Returns how many there were.
///
/// # Errors
/// When a value is not what this program stores, or no larger version is left.
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
        _ => {
            let mut position: JournalPosition = codec::decode(value)?;
            for file in &mut position.files {
                file.base = next(file.base)?;
            }
            Ok(codec::encode(&position))
        }
    }
}

/// Lets all counters go on beyond what was given out, and stops the deletion of blocks.
///
/// # Errors
/// When the state is of no cluster.
pub fn begin_anew(view: &mut View, jump: Jump, stop: &DeletionStop) -> Result<(), Error> {
    if settings::cluster(view).is_none() {
        return Err(Error::Malformed("the state is of no cluster".to_owned()));
    }
    for (counter, first) in [(NEXT_INO, Ino::FIRST_FREE.0), ("next session", 1), ("next ended", 1)] {
        let key = keys::setting(counter);
        let last = view.load(&key).unwrap_or(first);
        view.store(key, &jump.over(last));
    }
    let mut layout = settings::layout(view);
    layout.epoch = LayoutEpoch(jump.over(layout.epoch.0));
    // What was uploaded for an older one is uploaded again, to the owners of this one.
    layout.placement = layout.epoch;
    settings::replace_layout(view, &layout);
    retention::stop_deletion(view, stop);
    Ok(())
}

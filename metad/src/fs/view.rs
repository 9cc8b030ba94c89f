//! What `apply` works on: the stored state, covered by changes that are not stored yet.

use super::keys::{self, Key};
use parking_lot::RwLockReadGuard;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use wire::codec;
use wire::ids::{RulesVersion, SnapshotNumber};
use wire::limits::HEAD_BYTES_MAX;

/// Keeps a map unchanged while it lives.
#[derive(Default)]
pub struct Held<'a> {
    _guard: Option<RwLockReadGuard<'a, ()>>,
}

impl<'a> Held<'a> {
    /// Holds the guard that writers wait for.
    #[must_use]
    pub fn by(guard: RwLockReadGuard<'a, ()>) -> Self {
        Self { _guard: Some(guard) }
    }
}

/// An ordered map from bytes to bytes. Implementations end the process when their disk fails: a state machine that
/// cannot read its state can promise nothing.
pub trait Kv: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;

    /// Calls `visit` with each pair of a range in order, until it returns false.
    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool);

    /// The last pair of a range.
    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)>;

    /// Keeps the map unchanged for several calls; otherwise a change may fall between them. Writers wait meanwhile. A
    /// thread must not hold it twice at a time.
    fn hold(&self) -> Held<'_> {
        Held::default()
    }
}

/// Decodes a stored value.
///
/// # Panics
/// When the bytes are not what this program stored: the state is damaged, and must be rebuilt from the log.
pub fn decode_stored<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> T {
    codec::decode(bytes).unwrap_or_else(|error| panic!("stored value of key {key:?} is damaged: {error}"))
}

/// Typed access to any [`Kv`].
pub trait KvExt: Kv {
    /// Returns the decoded value of a key.
    fn load<T: DeserializeOwned>(&self, key: &[u8]) -> Option<T> {
        self.get(key).map(|bytes| decode_stored(key, &bytes))
    }

    /// Returns the pairs of a range, at most `limit`.
    fn pairs(&self, range: Range<Key>, limit: usize) -> Vec<(Key, Vec<u8>)> {
        let mut pairs = Vec::new();
        if limit > 0 {
            self.scan(range, &mut |key, value| {
                pairs.push((key.to_vec(), value.to_vec()));
                pairs.len() < limit
            });
        }
        pairs
    }

    /// Returns the first keys of a range, at most `limit`, up to the one with which their values exceed `value_bytes`
    /// together.
    fn first_keys(&self, range: Range<Key>, limit: usize, value_bytes: usize) -> Vec<Key> {
        let (mut keys, mut bytes) = (Vec::new(), 0);
        if limit > 0 {
            self.scan(range, &mut |key, value| {
                keys.push(key.to_vec());
                bytes += value.len();
                keys.len() < limit && bytes <= value_bytes
            });
        }
        keys
    }

    /// Returns whether a range holds anything.
    fn any(&self, range: Range<Key>) -> bool {
        !self.pairs(range, 1).is_empty()
    }
}

impl<K: Kv + ?Sized> KvExt for K {}

/// New values of keys; `None` marks a deleted one.
pub type Changes = BTreeMap<Key, Option<Vec<u8>>>;

/// A map, seen as if changes were part of it.
#[derive(Clone, Copy)]
pub struct Over<'a> {
    /// The map.
    pub base: &'a dyn Kv,
    /// The changes that cover it.
    pub changes: &'a Changes,
}

/// How to take a change back.
struct Undo {
    key: Key,
    /// What `changes` held before.
    before: Option<Option<Vec<u8>>>,
    /// Whether the key was among those that the entry has removed.
    was_gone: bool,
}

/// What an entry of the log has done.
#[derive(Default)]
struct Spent {
    changes: usize,
    bytes: usize,
    work: usize,
}

/// Stored state with changes over it, which can be undone up to a savepoint.
pub struct View<'a> {
    base: &'a dyn Kv,
    changes: Changes,
    /// Changes since the savepoint, newest last.
    undo: Vec<Undo>,
    /// Keys that this entry of the log has removed: whoever scans a range steps over them.
    gone: BTreeSet<Key>,
    /// What this entry has done before the savepoint, and what was undone.
    spent: Spent,
    /// Bytes of keys and values that were written since the savepoint.
    changed_bytes: usize,
    /// Keys that were removed since the savepoint.
    removed: usize,
    /// Keys that were read since the savepoint.
    work: AtomicUsize,
    /// Whether a value was left out since the savepoint because it could not have been read back.
    oversized: bool,
    /// The newest snapshot number, once it was asked for.
    newest_snapshot: OnceLock<SnapshotNumber>,
    /// The version of the rules, once it was asked for.
    rules: OnceLock<RulesVersion>,
}

/// The first rules under which work in the background is done in steps of a bounded size.
pub const STEPS: RulesVersion = RulesVersion(2);

/// Changes of keys after which a batch takes no further operation, and an entry no further batch, about 200 MB: all of
/// them are in memory until it ends. One operation on a file of the largest size changes half as many.
const CHANGES_MAX: usize = 1 << 20;
/// Bytes of keys and values written after which a batch takes no further operation, and an entry no further batch.
const CHANGED_BYTES_MAX: usize = 256 << 20;
/// Bytes of a value whose reading is as much work as another key.
const WORK_BYTES: usize = 128;
/// Keys removed by a batch that cost nothing when the last key of a range is looked up. Each further one may have to be
/// stepped over, and counts as work.
const REMOVED_FREE: usize = 4096;
/// Keys read, or stepped over, after which a batch takes no further operation, and an entry no further batch: some
/// seconds of work.
const WORK_MAX: usize = 4 << 20;
/// Changes of keys after which a step of what is done in the background ends: other entries go in between.
pub(super) const STEP_CHANGES: usize = 1024;
/// Bytes of keys and values written, or of values read at once, after which such a step ends.
pub(super) const STEP_BYTES: usize = 4 << 20;
/// Keys read after which such a step ends.
const STEP_WORK: usize = 1 << 17;

impl<'a> View<'a> {
    /// Makes a view without changes.
    #[must_use]
    pub fn new(base: &'a dyn Kv) -> Self {
        let (changes, undo, work) = (BTreeMap::new(), Vec::new(), AtomicUsize::new(0));
        let (newest_snapshot, rules) = (OnceLock::new(), OnceLock::new());
        let (gone, spent) = (BTreeSet::new(), Spent::default());
        Self {
            base,
            changes,
            undo,
            gone,
            spent,
            changed_bytes: 0,
            removed: 0,
            work,
            oversized: false,
            newest_snapshot,
            rules,
        }
    }

    /// Sets a key.
    pub fn put(&mut self, key: Key, value: Vec<u8>) {
        self.change(key, Some(value));
    }

    /// Sets a key to an encoded value. A value that is too large to be decoded is not stored: see
    /// [`View::is_oversized`].
    pub fn store<T: Serialize>(&mut self, key: Key, value: &T) {
        let value = codec::encode(value);
        if value.len() > HEAD_BYTES_MAX {
            self.oversized = true;
            return;
        }
        self.put(key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Key) {
        self.change(key, None);
    }

    /// Returns the newest snapshot number, which values carry; 0 when no snapshot was ever made. It is looked up once, and
    /// counts as no work.
    #[must_use]
    pub fn newest_snapshot(&self) -> SnapshotNumber {
        *self.newest_snapshot.get_or_init(|| self.over().load(keys::NEWEST_SNAPSHOT).unwrap_or_default())
    }

    /// Returns the version of the rules that hold; 0 before a cluster is founded. It is looked up once, and counts as no
    /// work.
    #[must_use]
    pub fn rules(&self) -> RulesVersion {
        *self.rules.get_or_init(|| self.over().load(keys::RULES).unwrap_or_default())
    }

    fn change(&mut self, key: Key, value: Option<Vec<u8>>) {
        if key == keys::NEWEST_SNAPSHOT {
            self.newest_snapshot = OnceLock::new();
        }
        if key == keys::RULES {
            self.rules = OnceLock::new();
        }
        // The replaced value is not counted: whether `changes` holds it depends on what else is applied together here.
        self.changed_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.removed += usize::from(value.is_none());
        let was_gone = match value {
            None => !self.gone.insert(key.clone()),
            Some(_) => !self.gone.is_empty() && self.gone.remove(&key),
        };
        let before = self.changes.insert(key.clone(), value);
        self.undo.push(Undo { key, before, was_gone });
    }

    /// Begins an entry of the log: what is counted from now on is what it does.
    pub fn begin_entry(&mut self) {
        self.savepoint();
        self.gone.clear();
        self.spent = Spent::default();
    }

    /// Sets the point to which [`View::rollback`] goes back.
    pub fn savepoint(&mut self) {
        self.spent.changes += self.undo.len();
        self.spent.bytes += self.changed_bytes;
        self.spent.work += *self.work.get_mut();
        self.undo.clear();
        (self.changed_bytes, self.removed) = (0, 0);
        *self.work.get_mut() = 0;
        self.oversized = false;
    }

    /// Returns whether so much was done since the savepoint that nothing more may begin. All replicas agree on that:
    /// reads and changes are counted, not time or memory.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.undo.len() >= CHANGES_MAX
            || self.changed_bytes >= CHANGED_BYTES_MAX
            || self.work.load(Ordering::Relaxed) >= WORK_MAX
    }

    /// Returns whether the entry has done so much that no further batch of it may begin. All replicas agree on that, too,
    /// whatever other entries are applied together with it.
    #[must_use]
    pub fn is_entry_full(&self) -> bool {
        let is_much = self.spent.changes + self.undo.len() >= CHANGES_MAX
            || self.spent.bytes + self.changed_bytes >= CHANGED_BYTES_MAX
            || self.spent.work + self.work.load(Ordering::Relaxed) >= WORK_MAX;
        is_much && self.rules() >= STEPS
    }

    /// Returns whether so much was done since the savepoint that a step of what is done in the background ends. All
    /// replicas agree on that, too.
    #[must_use]
    pub fn is_step_full(&self) -> bool {
        let is_much = self.undo.len() >= STEP_CHANGES
            || self.changed_bytes >= STEP_BYTES
            || self.work.load(Ordering::Relaxed) >= STEP_WORK;
        is_much && self.rules() >= STEPS
    }

    /// Returns whether a value was left out since the savepoint because it is too large: then the batch must be undone.
    #[must_use]
    pub fn is_oversized(&self) -> bool {
        self.oversized
    }

    fn works(&self, value_bytes: usize) {
        self.work.fetch_add(1 + value_bytes / WORK_BYTES, Ordering::Relaxed);
    }

    /// Counts the keys of a range that the entry has removed: reading the range took a step over each.
    fn stepped_over(&self, start: Key, end: Key) {
        if !self.gone.is_empty() && start < end && self.rules() >= STEPS {
            self.work.fetch_add(self.gone.range(start..end).count(), Ordering::Relaxed);
        }
    }

    /// Undoes everything since the savepoint. It counts for the entry nevertheless.
    pub fn rollback(&mut self) {
        self.spent.changes += self.undo.len();
        self.spent.bytes += self.changed_bytes;
        (self.changed_bytes, self.removed, self.oversized) = (0, 0, false);
        (self.newest_snapshot, self.rules) = (OnceLock::new(), OnceLock::new());
        while let Some(Undo { key, before, was_gone }) = self.undo.pop() {
            if was_gone {
                self.gone.insert(key.clone());
            } else {
                self.gone.remove(&key);
            }
            match before {
                Some(before) => self.changes.insert(key, before),
                None => self.changes.remove(&key),
            };
        }
    }

    /// Returns how many keys are changed.
    #[must_use]
    pub fn changes_count(&self) -> usize {
        self.changes.len()
    }

    /// Returns the changes, to be stored.
    #[must_use]
    pub fn into_changes(self) -> Changes {
        self.changes
    }

    fn over(&self) -> Over<'_> {
        Over { base: self.base, changes: &self.changes }
    }
}

impl Kv for View<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.over().get(key);
        self.works(found.as_ref().map_or(0, Vec::len));
        found
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        let (start, mut end) = (range.start.clone(), range.end.clone());
        self.over().scan(range, &mut |key, value| {
            self.works(value.len());
            let going = visit(key, value);
            if !going {
                end = key.to_vec();
            }
            going
        });
        self.stepped_over(start, end);
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        // Only this entry's own changes count: the other changes over the stored state differ between replicas.
        self.work.fetch_add(1 + self.removed.saturating_sub(REMOVED_FREE), Ordering::Relaxed);
        let found = self.over().last(range.clone());
        let from = found.as_ref().map_or(range.start, |(key, _)| key.clone());
        self.stepped_over(from, range.end);
        found
    }
}

impl Kv for Over<'_> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.changes.get(key) {
            Some(change) => change.clone(),
            None => self.base.get(key),
        }
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if range.start >= range.end {
            return;
        }
        let mut over = self.changes.range(range.clone()).peekable();
        let mut going = true;
        self.base.scan(range, &mut |key, value| {
            while let Some((changed, change)) = over.next_if(|(changed, _)| changed.as_slice() < key) {
                going = change.as_ref().is_none_or(|value| visit(changed, value));
                if !going {
                    return false;
                }
            }
            going = match over.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((_, Some(value))) => visit(key, value),
                Some((_, None)) => true,
                None => visit(key, value),
            };
            going
        });
        for (key, change) in over {
            if !going {
                return;
            }
            going = change.as_ref().is_none_or(|value| visit(key, value));
        }
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        let Range { start, mut end } = range;
        while start < end {
            let stored = self.base.last(start.clone()..end.clone());
            let changed = self.changes.range(start.clone()..end.clone()).next_back();
            match (stored, changed) {
                (Some(stored), Some((key, _))) if stored.0 > *key => return Some(stored),
                (_, Some((key, Some(value)))) => return Some((key.clone(), value.clone())),
                (_, Some((key, None))) => end = key.clone(),
                (stored, None) => return stored,
            }
        }
        None
    }
}

/// An ordered map in memory, for tests and checks.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct MemoryKv(pub BTreeMap<Key, Vec<u8>>);

impl MemoryKv {
    /// Makes changes part of the map.
    pub fn absorb(&mut self, changes: Changes) {
        for (key, change) in changes {
            match change {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        for (key, value) in self.0.range(range) {
            if !visit(key, value) {
                return;
            }
        }
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        if range.start >= range.end {
            return None;
        }
        self.0.range(range).next_back().map(|(key, value)| (key.clone(), value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_view_reads_like_the_map_with_its_changes(
            base in proptest::collection::btree_map(0_u8..20, any::<u8>(), 0..15),
            changes in proptest::collection::vec((0_u8..20, proptest::option::of(any::<u8>())), 0..20),
            cut in 0_usize..20,
        ) {
            let base = MemoryKv(base.into_iter().map(|(k, v)| (vec![k], vec![v])).collect());
            let mut view = View::new(&base);
            let mut expected = base.clone();
            for (index, (key, change)) in changes.iter().enumerate() {
                if index == cut {
                    view.savepoint();
                }
                match change {
                    Some(value) => view.put(vec![*key], vec![*value]),
                    None => view.delete(vec![*key]),
                }
                if index < cut {
                    expected.absorb([(vec![*key], change.map(|value| vec![value]))].into());
                }
            }
            if cut < changes.len() {
                view.rollback();
            }
            let all = view.pairs(vec![0]..vec![255], usize::MAX);
            prop_assert_eq!(all, expected.0.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(view.pairs(vec![3]..vec![9], 2), expected.pairs(vec![3]..vec![9], 2));
            prop_assert_eq!(view.last(vec![2]..vec![12]), expected.last(vec![2]..vec![12]));
        }
    }
}

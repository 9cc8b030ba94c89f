//! Which blocks are on disk, how much room they take, and which go first. No I/O.

use lru::LruCache;
use std::time::Duration;
use wire::ids::BlockHash;

/// The most blocks in the index, which takes some 50 MiB of memory then.
const COUNT_MAX: usize = 1 << 19;
/// Filesystems allocate room in units of this size.
const UNIT_BYTES: u64 = 4096;

/// A block on disk.
struct Entry {
    /// Room that it takes on disk.
    bytes: u32,
    /// When its use was last noted in its file, in seconds since 1970.
    noted_s: u64,
}

/// An index in which the least recently used block goes first.
pub(super) struct Index {
    entries: LruCache<BlockHash, Entry>,
    used: u64,
    limit: u64,
}

/// Returns the room that a file of this length takes.
pub(super) fn room(file_len: u64) -> u64 {
    file_len.next_multiple_of(UNIT_BYTES)
}

impl Index {
    pub(super) fn new(limit: u64) -> Self {
        Self { entries: LruCache::unbounded(), used: 0, limit }
    }

    pub(super) fn contains(&self, hash: &BlockHash) -> bool {
        self.entries.contains(hash)
    }

    /// Notes a use. Returns whether it is to be noted in the file as well.
    pub(super) fn touch(&mut self, hash: &BlockHash, now_s: u64, every: Duration) -> bool {
        let Some(entry) = self.entries.get_mut(hash) else { return false };
        let due = now_s.saturating_sub(entry.noted_s) >= every.as_secs();
        if due {
            entry.noted_s = now_s;
        }
        due
    }

    /// Returns the block that has to go before a file of this length fits; `None` when it fits.
    pub(super) fn evict_for(&mut self, file_len: u64) -> Option<BlockHash> {
        if self.used + room(file_len) <= self.limit && self.entries.len() < COUNT_MAX {
            return None;
        }
        let (hash, entry) = self.entries.pop_lru()?;
        self.used -= u64::from(entry.bytes);
        Some(hash)
    }

    /// Adds the file of a block, as the most recently used one.
    pub(super) fn insert(&mut self, hash: BlockHash, file_len: u64, noted_s: u64) {
        let bytes = u32::try_from(room(file_len)).expect("files of blocks are not longer");
        self.used += u64::from(bytes);
        if let Some(before) = self.entries.put(hash, Entry { bytes, noted_s }) {
            self.used -= u64::from(before.bytes);
        }
    }

    pub(super) fn remove(&mut self, hash: &BlockHash) {
        if let Some(entry) = self.entries.pop(hash) {
            self.used -= u64::from(entry.bytes);
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Lowers the limit to what is on disk now: the disk takes no more.
    pub(super) fn shrink(&mut self) -> u64 {
        self.limit = self.used;
        self.limit
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.used = 0;
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_were_used_last_stay_and_the_room_adds_up() {
        let hash = |n| BlockHash([n; 32]);
        let mut index = Index::new(10 * UNIT_BYTES);
        for n in 0..10 {
            assert_eq!(index.evict_for(1), None);
            index.insert(hash(n), 1, 100);
        }
        assert_eq!(index.used(), 10 * UNIT_BYTES);
        assert!(!index.touch(&hash(0), 159, Duration::from_secs(60)));
        assert!(index.touch(&hash(1), 160, Duration::from_secs(60)));
        assert!(!index.touch(&hash(1), 161, Duration::from_secs(60)), "noted a moment ago");
        assert_eq!(index.evict_for(2 * UNIT_BYTES), Some(hash(2)));
        assert_eq!(index.evict_for(2 * UNIT_BYTES), Some(hash(3)));
        assert_eq!(index.evict_for(2 * UNIT_BYTES), None);
        index.insert(hash(20), UNIT_BYTES + 1, 0);
        index.insert(hash(20), 1, 0);
        index.remove(&hash(21));
        index.remove(&hash(4));
        assert_eq!(index.used(), 8 * UNIT_BYTES);
        assert_eq!(index.shrink(), 8 * UNIT_BYTES);
        assert_eq!(index.evict_for(1), Some(hash(5)));
        while index.evict_for(u64::MAX / 2).is_some() {}
        assert_eq!(index.used(), 0);
    }
}

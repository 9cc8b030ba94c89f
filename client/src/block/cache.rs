//! Blocks in memory. They are named by their content, so a cached block is never stale.

use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use lru::LruCache;
use wire::ids::BlockHash;

/// A cache from which the least recently used blocks go first.
pub struct BlockCache {
    cached: Ordered<CachedBlocks>,
    limit: usize,
}

struct CachedBlocks {
    blocks: LruCache<BlockHash, Bytes>,
    bytes: usize,
}

impl BlockCache {
    /// Holds up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { cached: Ordered::new(Rank::Leaf, CachedBlocks { blocks: LruCache::unbounded(), bytes: 0 }), limit }
    }

    /// Returns the block, if it is cached.
    #[must_use]
    pub fn get(&self, hash: &BlockHash) -> Option<Bytes> {
        self.cached.lock().blocks.get(hash).cloned()
    }

    /// Adds a block.
    pub fn insert(&self, hash: BlockHash, block: Bytes) {
        let mut cached = self.cached.lock();
        cached.bytes += block.len();
        if let Some(before) = cached.blocks.put(hash, block) {
            cached.bytes -= before.len();
        }
        while cached.bytes > self.limit {
            let Some((_, gone)) = cached.blocks.pop_lru() else { break };
            cached.bytes -= gone.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_blocks_make_room() {
        let cache = BlockCache::new(100);
        let hash = |n| BlockHash([n; 32]);
        for n in 0..10 {
            cache.insert(hash(n), Bytes::from(vec![n; 20]));
            let _ = cache.get(&hash(0));
        }
        assert!(cache.get(&hash(0)).is_some() && cache.get(&hash(9)).is_some());
        assert!(cache.get(&hash(5)).is_none());
    }
}

//! Blocks in memory. They are named by their content, so what is here is never stale.

use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use lru::LruCache;
use wire::ids::BlockHash;

/// Least recently used blocks go first.
pub struct BlockCache {
    inner: Ordered<Inner>,
    limit: usize,
}

struct Inner {
    blocks: LruCache<BlockHash, Bytes>,
    bytes: usize,
}

impl BlockCache {
    /// Holds up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { inner: Ordered::new(Rank::Leaf, Inner { blocks: LruCache::unbounded(), bytes: 0 }), limit }
    }

    /// The block, if it is here.
    #[must_use]
    pub fn get(&self, hash: &BlockHash) -> Option<Bytes> {
        self.inner.lock().blocks.get(hash).cloned()
    }

    /// Keeps a block.
    pub fn insert(&self, hash: BlockHash, block: Bytes) {
        let mut inner = self.inner.lock();
        inner.bytes += block.len();
        if let Some(before) = inner.blocks.put(hash, block) {
            inner.bytes -= before.len();
        }
        while inner.bytes > self.limit {
            let Some((_, gone)) = inner.blocks.pop_lru() else { break };
            inner.bytes -= gone.len();
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

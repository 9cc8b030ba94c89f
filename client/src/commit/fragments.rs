//! Chunks that commits have found to be in many pieces, until they are compacted.

use crate::ordered::{Ordered, Rank};
use crate::recent::lru;
use lru::LruCache;
use std::collections::BTreeMap;
use tokio::sync::Notify;
use wire::ids::{ChunkIndex, Ino};

/// Chunks that wait; further ones are forgotten until they are written again.
const WAITING_MAX: usize = 256;
/// Compacted chunks that are remembered.
const SETTLED_MAX: usize = 1024;

/// Chunks in many pieces.
pub(crate) struct Fragments {
    chunks: Ordered<Chunks>,
    added: Notify,
}

struct Chunks {
    /// Pieces of each waiting chunk.
    waiting: BTreeMap<(Ino, ChunkIndex), u32>,
    /// Pieces left after compaction: they are scattered over holes and cannot be joined.
    settled: LruCache<(Ino, ChunkIndex), u32>,
}

impl Default for Fragments {
    fn default() -> Self {
        let chunks = Chunks { waiting: BTreeMap::new(), settled: lru(SETTLED_MAX) };
        Self { chunks: Ordered::new(Rank::Leaf, chunks), added: Notify::new() }
    }
}

impl Fragments {
    /// Notes that a chunk is in this many pieces.
    pub fn add(&self, ino: Ino, chunk: ChunkIndex, pieces: u32) {
        let mut chunks = self.chunks.lock();
        // Amortised: a chunk is rewritten when it is in twice as many pieces as the last time.
        let left = chunks.settled.get(&(ino, chunk)).copied().unwrap_or(0);
        if pieces >= left.saturating_mul(2) && chunks.waiting.len() < WAITING_MAX {
            chunks.waiting.insert((ino, chunk), pieces);
            self.added.notify_one();
        }
    }

    /// Takes out one chunk, if any waits.
    pub fn take(&self) -> Option<(Ino, ChunkIndex)> {
        self.chunks.lock().waiting.pop_first().map(|(place, _)| place)
    }

    /// Waits until a chunk may be there. Cancel-safe.
    pub async fn wait(&self) {
        self.added.notified().await;
    }

    /// Notes how many pieces were left of a chunk when it was compacted.
    pub fn settle(&self, ino: Ino, chunk: ChunkIndex, pieces: u32) {
        self.chunks.lock().settled.put((ino, chunk), pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_waits_again_only_when_it_is_in_twice_as_many_pieces_as_were_left() {
        let (fragments, place) = (Fragments::default(), (Ino(7), ChunkIndex(0)));
        fragments.add(place.0, place.1, 2000);
        assert_eq!((fragments.take(), fragments.take()), (Some(place), None));
        fragments.settle(place.0, place.1, 1500);
        fragments.add(place.0, place.1, 2999);
        assert_eq!(fragments.take(), None);
        fragments.add(place.0, place.1, 3000);
        assert_eq!(fragments.take(), Some(place));
    }
}

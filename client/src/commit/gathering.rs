//! Small content of many files in one block: a tree of small files costs one upload per half a megabyte instead of one
//! per file, and a later reader of the tree fetches it in the same portions.

use crate::file::sealed::{Stored, Upload};
use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use tokio::sync::watch;
use wire::FsError;
use wire::ids::BlockHash;

/// A shared block is uploaded when it has reached this size. Larger blocks would make reading a single small file
/// dearer.
const SHARED_BLOCK_BYTES: usize = 512 << 10;

/// Content that waits for more, to share a block with it.
pub(crate) struct Gathering {
    waiting: Ordered<Waiting>,
}

impl Default for Gathering {
    fn default() -> Self {
        Self { waiting: Ordered::new(Rank::Gathering, Waiting::default()) }
    }
}

/// Parts of one block, and the receiver of each one's place in it.
#[derive(Default)]
pub(crate) struct Waiting {
    parts: Vec<(Bytes, watch::Sender<Upload>)>,
    bytes: usize,
}

impl Gathering {
    /// Adds content; true when there is enough for a block.
    pub fn add(&self, bytes: Bytes, report: watch::Sender<Upload>) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.bytes += bytes.len();
        waiting.parts.push((bytes, report));
        waiting.bytes >= SHARED_BLOCK_BYTES
    }

    /// Takes out what waits, if anything does.
    pub fn take(&self) -> Option<Waiting> {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        (!waiting.parts.is_empty()).then_some(waiting)
    }
}

impl Waiting {
    /// Returns the block that has all parts.
    pub fn block(&self) -> Bytes {
        match self.parts.as_slice() {
            [(single, _)] => single.clone(),
            several => {
                let mut block = Vec::with_capacity(self.bytes);
                several.iter().for_each(|(part, _)| block.extend_from_slice(part));
                Bytes::from(block)
            }
        }
    }

    /// Reports to each part where it is, after the upload of the block has ended.
    pub fn report(self, block: &Bytes, hash: Result<BlockHash, FsError>) {
        let mut base = 0;
        for (part, report) in self.parts {
            let stored = hash.map(|hash| Some(Stored { hash, block: block.clone(), base }));
            base += part.len();
            // Nobody receives this for content that was given up meanwhile.
            let _ = report.send(Some(stored));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_learns_where_it_is_in_the_shared_block() {
        let gathering = Gathering::default();
        assert!(gathering.take().is_none());
        let (first, first_part) = watch::channel(None);
        let (second, second_part) = watch::channel(None);
        assert!(!gathering.add(Bytes::from_static(b"first"), first));
        assert!(gathering.add(Bytes::from(vec![7; SHARED_BLOCK_BYTES]), second));
        let waiting = gathering.take().unwrap();
        let block = waiting.block();
        assert_eq!(block.len(), 5 + SHARED_BLOCK_BYTES);
        waiting.report(&block, Ok(BlockHash::of(&block)));
        let base = |part: &watch::Receiver<Upload>| part.borrow().clone().unwrap().unwrap().unwrap().base;
        assert_eq!((base(&first_part), base(&second_part)), (0, 5));
        assert!(gathering.take().is_none());
    }
}

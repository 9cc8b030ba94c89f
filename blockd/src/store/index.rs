//! Which blocks are here, where, and how much of each segment is still needed. In memory: it is rebuilt at start.

use super::digest::Digests;
use super::disk::SegmentFile;
use super::record::{self, Header, Kind};
use super::segment_name::SegmentId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use wire::ids::BlockHash;
use wire::layout::ring::Span;
use wire::message::block::Digest;

/// Place of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Location {
    pub segment: SegmentId,
    /// Offset of the record's header.
    pub offset: u64,
    /// Length of the block.
    pub len: u32,
    /// A read found it damaged: it counts as absent until it is stored again.
    pub bad: bool,
}

impl Location {
    /// Reports whether both are the same record, whatever is known of it.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.segment, self.offset) == (other.segment, other.offset)
    }
}

/// Usage of a segment.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Usage {
    /// Bytes of records that the index points at.
    pub live: u64,
    /// Bytes of tombstones: needed as long as there is an older segment.
    pub tombstones: u64,
    /// Bytes of the segment that are written: records, and what fills up their groups.
    pub written: u64,
    /// Its tombstones cannot be read, so it is compacted only when they are not needed any more.
    pub stays: bool,
    /// A part of it was never verified, and may hold records: it is not compacted.
    pub unjudged: bool,
    /// It holds copies that could not be read. Until then it is not compacted, unless they are not needed any more.
    pub waits_until: Option<Instant>,
}

impl Usage {
    /// Reports whether it may be compacted now. Tombstones are needed unless it is the oldest segment.
    pub fn may_go(&self, is_oldest: bool) -> bool {
        let waits = self.live > 0 && self.waits_until.is_some_and(|until| Instant::now() < until);
        !self.unjudged && !waits && (is_oldest || !self.stays)
    }

    /// Counts another record, but for what is written.
    pub fn add(&mut self, header: &Header) {
        if header.kind == Kind::Tombstone {
            self.tombstones += header.stored_len();
        }
    }
}

/// Index and segments, under one lock.
#[derive(Default)]
pub(super) struct Index {
    pub blocks: BTreeMap<BlockHash, Location>,
    pub segments: BTreeMap<SegmentId, (Arc<dyn SegmentFile>, Usage)>,
    /// Digests of all blocks that are not bad.
    pub digests: Digests,
}

impl Index {
    /// The digest of the good blocks in a span. Costs little, however many blocks there are.
    pub fn digest(&self, span: Span) -> Digest {
        self.digests.of(span, |part, digest| {
            let good = self.blocks.range(part.first_hash()..=part.last_hash()).filter(|(_, at)| !at.bad);
            good.for_each(|(hash, at)| digest.add(hash, at.len));
        })
    }

    /// Points a block at a record.
    pub fn set(&mut self, hash: BlockHash, location: Location) {
        if let Some(before) = self.blocks.insert(hash, location) {
            self.release(&hash, &before);
        }
        self.digests.add(&hash, location.len);
        if let Some((_, usage)) = self.segments.get_mut(&location.segment) {
            usage.live += record::stored_len(location.len);
        }
    }

    /// Takes a block out. Returns false when it was not there.
    pub fn remove(&mut self, hash: &BlockHash) -> bool {
        match self.blocks.remove(hash) {
            Some(before) => {
                self.release(hash, &before);
                true
            }
            None => false,
        }
    }

    /// Marks a record that a read found damaged: the block counts as absent.
    pub fn mark_bad(&mut self, hash: &BlockHash, location: &Location) {
        if let Some(known) = self.blocks.get_mut(hash).filter(|known| *known == location && !known.bad) {
            known.bad = true;
            self.digests.remove(hash, location.len);
        }
    }

    fn release(&mut self, hash: &BlockHash, location: &Location) {
        if !location.bad {
            self.digests.remove(hash, location.len);
        }
        if let Some((_, usage)) = self.segments.get_mut(&location.segment) {
            usage.live -= record::stored_len(location.len);
        }
    }
}

//! The segment being written, and how much of it a group writes.
//!
//! A segment's space is reserved when it is made, but a filesystem notes of each reserved block whether it was ever
//! written, and a sync after the first write to it waits for that note (a commit of ext4's journal). So a small group
//! that goes beyond the written part also writes zeros behind itself. The next small groups overwrite these, and their
//! syncs write only the data. The tail of a segment reads as zeros in either case.

use super::disk::SegmentFile;
use super::record::GROUP_ALIGN;
use super::segment::Found;
use super::segment_name::SegmentId;
use std::sync::Arc;

/// Groups up to this size are small: the extra cost of their sync is worth avoiding.
const SMALL_BYTES: usize = 256 << 10;
/// Zeros that a small group writes behind itself. Writing them costs about as much as one commit of the journal, so
/// many groups should share them. Zeros that a later large group overwrites were written in vain.
const PREWRITE_BYTES: usize = 1 << 20;

/// The segment being written.
pub(super) struct Open {
    pub id: SegmentId,
    pub file: Arc<dyn SegmentFile>,
    /// Where the next group is written.
    pub at: u64,
    /// End of the written part: of records, or of zeros for later ones.
    pub written: u64,
    /// End of the reserved part.
    pub reserved: u64,
    /// It was made from the reserve for compaction, so new blocks must not go into it.
    pub spare: bool,
    pub records: Vec<Found>,
}

impl Open {
    /// Bytes to write for a group of this length: the group, and zeros for the next ones.
    pub fn write_len(&self, group: usize) -> usize {
        if group > SMALL_BYTES || self.at + group as u64 <= self.written {
            return group;
        }
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        (group + PREWRITE_BYTES).min(left).max(group)
    }

    /// Bytes that groups may still take.
    pub fn left(&self) -> u64 {
        let left = self.reserved.saturating_sub(self.at);
        left - left % GROUP_ALIGN as u64
    }
}

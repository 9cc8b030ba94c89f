//! How much room there is for new blocks: in the segment that is being written, and on the disk.

use super::record::{self, GROUP_ALIGN};
use super::writer::SEGMENT_BYTES_MIN;
use super::{Stats, Store};
use std::sync::atomic::Ordering;

impl Store {
    /// Reports whether a new block of this length, in bytes, would find room. Another one may take it. On a disk that has
    /// failed there is none.
    #[must_use]
    pub fn has_room_for(&self, len: u32) -> bool {
        #[cfg(test)]
        if self.shared.pretends_full.load(Ordering::Relaxed) {
            return false;
        }
        let needed = record::stored_len(len).next_multiple_of(GROUP_ALIGN as u64);
        let is_there = needed <= self.shared.open_room.load(Ordering::Relaxed) || needed <= self.room_for_segment().1;
        is_there && !self.has_failed()
    }

    /// Capacity of the disk, and bytes that another segment for new blocks can take; none if that is too little for one.
    fn room_for_segment(&self) -> (u64, u64) {
        let (capacity_bytes, free) = self.shared.disk.space(&self.shared.dir).unwrap_or((0, 0));
        let options = &self.shared.options;
        let least = SEGMENT_BYTES_MIN.min(options.segment_bytes);
        let room = free.saturating_sub(options.reserve_bytes);
        (capacity_bytes, if room < least { 0 } else { room })
    }

    /// Capacity and use; zero when the disk does not report them. What is left of the disk counts as free only if another
    /// segment can be made there.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (capacity_bytes, room) = self.room_for_segment();
        Stats {
            capacity_bytes,
            free_bytes: room.saturating_add(self.shared.open_room.load(Ordering::Relaxed)),
            block_count: self.shared.index.read().blocks.len() as u64,
        }
    }
}

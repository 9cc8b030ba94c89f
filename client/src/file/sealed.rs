//! Content that is cut into a block and on its way to the daemons.

use super::dirty::Packed;
use bytes::Bytes;
use std::ops::Range;
use std::time::SystemTime;
use tokio::sync::watch;
use wire::FsError;
use wire::extent::{ExtentWrite, Source};
use wire::ids::BlockHash;
use wire::limits::CHUNK_BYTES;

/// Content in a block that is stored, possibly with other content.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub hash: BlockHash,
    /// The whole block.
    pub block: Bytes,
    /// Where the content begins in it.
    pub base: usize,
}

/// How an upload ended: `None` while it goes on, `Ok(None)` for content that goes inline.
pub(crate) type Upload = Option<Result<Option<Stored>, FsError>>;

/// An upload that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Uploading {
    pub outcome: watch::Receiver<Upload>,
    /// When it began, by a clock that goes on while the machine sleeps.
    pub since: SystemTime,
}

/// Where content goes when it is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// Into metadata, with the commit.
    Metadata,
    /// Into a block of its own.
    OwnBlock,
    /// Into a block with content of other files: one upload for all of them.
    SharedBlock,
}

/// Content that is being uploaded. It is read from here until it is committed.
pub(crate) struct Sealed {
    pub packed: Packed,
    pub uploading: Uploading,
    /// In order of sealing.
    pub number: u64,
}

impl Sealed {
    /// Length of the content, in bytes.
    pub fn len(&self) -> u64 {
        self.packed.pieces.iter().map(|(_, _, len)| *len as u64).sum()
    }

    /// Returns the pieces that overlap a range, in order.
    pub fn within(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, Bytes)> + use<'_> {
        let packed = &self.packed;
        let first = packed.pieces.partition_point(|(at, _, len)| at + *len as u64 <= range.start);
        let end = range.end;
        packed.pieces[first..]
            .iter()
            .take_while(move |(at, _, _)| *at < end)
            .map(|(at, from, len)| (*at, packed.bytes.slice(*from..*from + *len)))
    }

    /// Returns whether one of the pieces has all of a range.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let last = self.packed.pieces.partition_point(|(at, _, _)| *at <= range.start);
        last.checked_sub(1).is_some_and(|index| {
            let (at, _, len) = self.packed.pieces[index];
            range.end <= at + len as u64
        })
    }
}

/// Returns the writes of a commit: where the pieces of a block belong in the file.
pub(crate) fn writes_of(packed: &Packed, stored: Option<&Stored>) -> Vec<ExtentWrite> {
    let mut writes = Vec::with_capacity(packed.pieces.len());
    for (at, from, len) in &packed.pieces {
        let mut done = 0;
        // An extent must not cross a chunk's border.
        while done < *len {
            let file_off = at + done as u64;
            let room = (CHUNK_BYTES - file_off % CHUNK_BYTES).min((*len - done) as u64) as usize;
            let start = from + done;
            let source = match stored {
                Some(Stored { hash, block, base }) => Source::block(*hash, block.len() as u32, (base + start) as u32),
                None => Source::Inline(packed.bytes[start..start + room].to_vec()),
            };
            writes.push(ExtentWrite { file_off, len: room as u64, source });
            done += room;
        }
    }
    writes
}

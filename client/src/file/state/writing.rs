//! For who writes to the file, and who cuts what is written into blocks.

use super::FileState;
use crate::file::dirty::Packed;
use crate::file::sealed::{To, Uploading};
use wire::FsError;
use wire::attr::Timestamp;

impl FileState {
    /// Whether anything waits to be committed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.content.lock().pending.is_empty()
    }

    /// Whether something waits to be committed that anybody could miss: neither removed, nor refused by the policy.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let content = self.content.lock();
        !content.pending.is_empty() && content.attr.nlink > 0 && !content.refused
    }

    /// Whether something waits to be committed that goes into the queue, and is at most so many bytes.
    pub(crate) fn is_to_be_queued(&self, bytes_max: u64) -> bool {
        let content = self.content.lock();
        let held = content.pending.held();
        held > 0 && held <= bytes_max && !content.refused && !content.pending.is_queued()
    }

    /// Whether something waits to be committed in the background: what the policy refuses waits for somebody to ask, and
    /// what is in the queue is committed by that, unless memory is short.
    pub(crate) fn is_to_be_committed(&self, with_queued: bool) -> bool {
        let content = self.content.lock();
        !content.pending.is_empty() && !content.refused && (with_queued || !content.pending.is_queued())
    }

    /// Whether `fsync` and `close` have something to do or to report.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        let content = self.content.lock();
        !content.pending.is_empty() || content.unreported.is_some()
    }

    /// Whether so many separate pieces wait that they cost more memory than the window counts.
    #[must_use]
    pub fn is_scattered(&self) -> bool {
        self.content.lock().pending.is_scattered()
    }

    /// Whether written bytes can be taken in without doing anything else before.
    pub(crate) fn takes_writes_at_once(&self) -> bool {
        let content = self.content.lock();
        !content.pending.is_scattered() && !content.is_contended()
    }

    /// Takes written bytes in; returns how many the window holds more. Without an offset they go to the end of the file.
    ///
    /// # Errors
    /// `Stale` while the policy refuses what was written before: nobody would commit more of it.
    pub(crate) fn write(
        &self,
        offset: Option<u64>,
        data: &[u8],
        clear_privileges: bool,
        now: Timestamp,
    ) -> Result<usize, FsError> {
        let mut content = self.content.lock();
        if content.refused {
            return Err(FsError::Stale);
        }
        // What is appended lies together until it is committed, whatever others have appended meanwhile.
        let (size, pending) = (content.size, &content.pending);
        let end = if pending.is_empty() || pending.appended_from().is_none() { size } else { pending.end() };
        let (at, added) = content.pending.write((offset, end), data, clear_privileges, now);
        content.size = size.max(at + data.len() as u64);
        // The kernel has what was written in its pages.
        content.dropped = false;
        Ok(added)
    }

    /// Forgets what was written from `size` on and is not committed: the file was cut there. Returns how many bytes less
    /// the window counts.
    pub(crate) fn cut_uncommitted(&self, size: u64) -> u64 {
        let mut content = self.content.lock();
        let Some(gone) = content.pending.cut(size) else { return 0 };
        content.size = content.attr.size.max(content.pending.end());
        gone
    }

    /// Seals what is written from end to end of a block; `upload` begins to upload it, and must not wait.
    pub(crate) fn seal_full(&self, upload: impl FnMut(&Packed, To) -> Uploading) {
        self.content.lock().pending.seal_full(upload);
    }

    /// Seals everything that is written; `upload` begins to upload it, and must not wait. What is small may share a block
    /// with others' content, if `to` says so. Returns the number of what was sealed last, whenever that was.
    pub(crate) fn seal_rest(&self, to: To, upload: impl FnMut(&Packed, To) -> Uploading) -> Option<u64> {
        let mut content = self.content.lock();
        let super::Content { pending, extents, .. } = &mut *content;
        pending.seal_rest(to, |chunk| extents.take_inline_room(chunk), upload)
    }
}

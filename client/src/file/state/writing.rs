//! Methods for writing to the file, and for cutting written content into blocks.

use super::FileState;
use crate::file::dirty::Packed;
use crate::file::sealed::{To, Uploading};
use wire::FsError;
use wire::attr::Timestamp;

impl FileState {
    /// Returns whether anything waits to be committed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.content.lock().pending.is_empty()
    }

    /// Returns whether content waits to be committed that matters to anybody: the file is not removed, and the policy
    /// does not refuse it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let content = self.content.lock();
        !content.pending.is_empty() && content.attr.nlink > 0 && !content.refused
    }

    /// Returns whether content waits to be committed that goes into the queue, and has at most this many bytes.
    pub(crate) fn is_to_be_queued(&self, bytes_max: u64) -> bool {
        let content = self.content.lock();
        let held = content.pending.held();
        held > 0 && held <= bytes_max && !content.refused && !content.pending.is_queued()
    }

    /// Returns whether content waits to be committed in the background. Refused content waits for `fsync` or `close`,
    /// and the queue commits its own content unless memory is short.
    pub(crate) fn is_to_be_committed(&self, with_queued: bool) -> bool {
        let content = self.content.lock();
        !content.pending.is_empty() && !content.refused && (with_queued || !content.pending.is_queued())
    }

    /// Returns whether `fsync` and `close` have something to do or to report.
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        let content = self.content.lock();
        !content.pending.is_empty() || content.unreported.is_some()
    }

    /// Returns whether so many separate pieces wait that they cost more memory than the window counts.
    #[must_use]
    pub fn is_scattered(&self) -> bool {
        self.content.lock().pending.is_scattered()
    }

    /// Returns whether written bytes can be added without doing anything else before.
    pub(crate) fn takes_writes_at_once(&self) -> bool {
        let content = self.content.lock();
        !content.pending.is_scattered() && !content.is_contended()
    }

    /// Adds written bytes. Returns where they are, and how many more the window holds. Without an offset they go to the
    /// end of the file.
    ///
    /// # Errors
    /// `Stale` while the policy refuses earlier content: nobody would commit more of it.
    pub(crate) fn write(
        &self,
        offset: Option<u64>,
        data: &[u8],
        clear_privileges: bool,
        now: Timestamp,
    ) -> Result<(u64, usize), FsError> {
        let mut content = self.content.lock();
        if content.refused {
            return Err(FsError::Stale);
        }
        // Appended content lies together until it is committed, whatever others have appended meanwhile.
        let (size, pending) = (content.size, &content.pending);
        let end = if pending.is_empty() || pending.appended_from().is_none() { size } else { pending.end() };
        let (at, added) = content.pending.write((offset, end), data, clear_privileges, now);
        content.size = size.max(at + data.len() as u64);
        // The kernel has the written bytes in its pages.
        content.dropped = false;
        content.pages.note_given();
        Ok((at, added))
    }

    /// Drops uncommitted content from `size` on, because the file was cut there. Returns how many bytes less the window
    /// counts.
    pub(crate) fn cut_uncommitted(&self, size: u64) -> u64 {
        let mut content = self.content.lock();
        let Some(gone) = content.pending.cut(size) else { return 0 };
        if !content.settle_if_empty() {
            content.size = content.attr.size.max(content.pending.end());
        }
        gone
    }

    /// Seals blocks that are written from end to end. `upload` begins to upload them, and must not wait.
    pub(crate) fn seal_full(&self, upload: impl FnMut(&Packed, To) -> Uploading) {
        self.content.lock().pending.seal_full(upload);
    }

    /// Seals everything that is written. `upload` begins to upload it, and must not wait. Small content may share a
    /// block with content of other files, if `to` says so. Returns the number of the last sealed piece, also if it was
    /// sealed before.
    pub(crate) fn seal_rest(&self, to: To, upload: impl FnMut(&Packed, To) -> Uploading) -> Option<u64> {
        let mut content = self.content.lock();
        let super::Content { pending, extents, .. } = &mut *content;
        pending.seal_rest(to, |chunk| extents.take_inline_room(chunk), upload)
    }
}

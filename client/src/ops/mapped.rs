//! Pages that programs have changed through a mapping, and the kernel's drops of pages.
//!
//! The kernel writes such pages back whole, when it sees fit, and before it drops them. While nobody else changes the
//! file they are taken like other writes. Otherwise each is taken with the version that it was read at, so that metad
//! judges what the program has seen (I6). When others were first, the commit leaves out what the program has not changed
//! (`Committer::leave_out_unchanged`).

use super::files::Handle;
use crate::Client;
use crate::file::state::{Drop, FileState, Mapped, When};
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::ids::Ino;
use wire::limits::FILE_BYTES_MAX;

/// Attempts at committing what is based on another version than a page, before both are based on the older one.
const ALIKE_ATTEMPTS: u32 = 3;
/// Before pages are dropped, metad is waited for so long to say where the content below uncommitted pages is: others
/// wait for the drop. Without its answer, these pages are judged whole.
const LEARN_LIMIT: Duration = Duration::from_millis(400);

/// The kernel is dropping the pages of a file. [`Client::end_drop`] takes it back.
pub struct DropUnderWay {
    file: Arc<FileState>,
    drop: Drop,
}

impl Client {
    /// Takes pages that a program has changed through a mapping, at once if nothing has to be waited for. `None` when
    /// the caller must use [`Client::write_mapped`].
    pub fn try_write_mapped(&self, handle: &Handle, offset: u64, data: &[u8]) -> Option<Result<usize, FsError>> {
        if handle.is_sync() || !self.committer.window().has_room() || data.is_empty() {
            return None;
        }
        match self.accept_mapped(handle, offset, data, When::AtOnce) {
            Ok(Mapped::Taken { len, .. }) => Some(Ok(len)),
            Ok(Mapped::Later) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Takes pages that a program has changed through a mapping.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_mapped(&self, handle: &Handle, offset: u64, data: &[u8]) -> Result<usize, FsError> {
        let file = handle.file();
        self.wait_to_write(file).await?;
        if file.is_contended() {
            // As long as metad has the content that the page is compared with. Without it, the page is judged whole.
            let part = offset..offset.saturating_add(data.len() as u64);
            let _ = self.reader.learn_below_pages(file, Some(&part)).await;
        }
        let (mut done, mut attempts) = (0, 0);
        while done < data.len() {
            let when = if attempts < ALIKE_ATTEMPTS { When::Alike } else { When::Anyway };
            match self.accept_mapped(handle, offset + done as u64, &data[done..], when)? {
                Mapped::Taken { len, .. } => (done, attempts) = (done + len, 0),
                Mapped::Later => {
                    attempts += 1;
                    // `fsync` and `close` report what failed, as for writing in the background.
                    let _ = self.flusher.flush(file, true).await;
                }
            }
        }
        self.view.given_pages(file);
        if handle.is_sync() {
            self.flush(handle).await?;
        }
        Ok(done)
    }

    fn accept_mapped(&self, handle: &Handle, offset: u64, data: &[u8], when: When) -> Result<Mapped, FsError> {
        if offset.saturating_add(data.len() as u64) > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let taken = handle.file().write_mapped(offset, data, self.session.stamp(), when)?;
        if let Mapped::Taken { added, .. } = taken {
            self.note_use(handle);
            self.committer.window().add(added as u64);
            self.committer.seal_full(handle.file());
        }
        Ok(taken)
    }

    /// Commits uncommitted pages that hide what others have changed, before the kernel reads this part.
    pub(super) async fn uncover(&self, file: &Arc<FileState>, (offset, len): (u64, usize)) {
        let part = offset..offset.saturating_add(len as u64);
        if part.is_empty() || !file.is_below_pages(&part) {
            return;
        }
        // This may show that others have changed it. If it fails, the read fails as well.
        let _ = self.reader.learn_below_pages(file, Some(&part)).await;
        if file.hides_changes(&part) {
            // `fsync` and `close` report what failed, as for writing in the background.
            let _ = self.flusher.flush(file, true).await;
        }
    }

    /// Prepares a drop of all pages that the kernel has of an inode: learns what pages that come back are compared
    /// with, and waits until all reads have ended that are under way now. `None` when it is not open. Cancel-safe.
    pub async fn begin_drop(&self, ino: Ino) -> Option<DropUnderWay> {
        let file = self.open_files.get(ino)?;
        let learned = tokio::time::timeout(LEARN_LIMIT, self.reader.learn_below_pages(&file, None)).await;
        if !matches!(learned, Ok(Ok(()))) {
            tracing::debug!(%ino, "it is not known what is below mapped pages");
        }
        let mut drop = file.begin_drop();
        // Nothing is ever sent: the last read closes it.
        let _ = drop.reads.changed().await;
        Some(DropUnderWay { file, drop })
    }

    /// Notes that the kernel has dropped the pages.
    pub fn end_drop(&self, under_way: &DropUnderWay) {
        under_way.file.end_drop(under_way.drop.number);
    }
}

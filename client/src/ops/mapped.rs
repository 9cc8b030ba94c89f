//! Pages that programs have changed through a mapping, and the kernel's drops of pages.
//!
//! The kernel writes such pages back whole, when it sees fit, and before it drops them. While this client is alone with
//! the file they are taken like other writes. Otherwise they are compared with what the program has seen in them, and
//! only what it has changed is taken, judged by that version (I6). So no other byte overwrites what others have committed
//! meanwhile, or is in conflict with it.
//!
//! Nothing here waits for a commit, short of a lack of memory: the kernel may be writing the page back in order to drop
//! it, and another client's commit waits for that. Its own pages may be waiting for a commit of ours. `O_SYNC` makes no
//! difference, therefore: it does not cover what is stored through a mapping, and `msync(2)` sends an `fsync` of its own.

use super::files::Handle;
use crate::Client;
use crate::file::changed::changed;
use crate::file::state::FileState;
use crate::reader::Patience;
use std::future::ready;
use std::sync::Arc;
use wire::FsError;
use wire::ids::Ino;
use wire::limits::FILE_BYTES_MAX;

/// Pages are compared in portions of this size. The changes in one portion are the most by which a file may hold more
/// separate pieces than it should.
const PORTION_BYTES: u64 = 64 << 10;

/// The kernel is dropping its pages of a file.
pub struct DropUnderWay {
    file: Arc<FileState>,
    number: u64,
}

impl DropUnderWay {
    /// Notes that the kernel has dropped the pages that it had when this began.
    pub fn done(self) {
        self.file.end_drop(self.number);
    }
}

/// Pages that are being taken: what their program has seen is retained until this is dropped. Unless they are taken by
/// then, the kernel may retain them.
#[must_use]
pub struct Taking {
    file: Arc<FileState>,
    number: u64,
    taken: bool,
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.file.end_taking(self.number, self.taken);
    }
}

impl Client {
    /// Takes pages that a program has changed through a mapping, at once if nothing has to be waited for or compared.
    /// `None` when the caller must use [`Client::begin_taking`] and [`Client::write_mapped_content`].
    pub fn try_write_mapped(&self, handle: &Handle, offset: u64, data: &[u8]) -> Option<Result<usize, FsError>> {
        if !self.committer.window().takes_at_once() {
            return None;
        }
        let taken = self.take_whole(handle.file(), offset, data)?;
        if taken.is_err() {
            handle.file().pages_stay();
        }
        Some(taken.map(|()| data.len()))
    }

    /// Notes that pages have come which a program has changed through a mapping. To be called as soon as they come: the
    /// kernel may have dropped them meanwhile, and what the program has seen is forgotten with the end of a drop.
    pub fn begin_taking(&self, handle: &Handle) -> Taking {
        let file = handle.file().clone();
        Taking { number: file.begin_taking(), file, taken: false }
    }

    /// Takes pages that a program has changed through a mapping.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_mapped(&self, handle: &Handle, offset: u64, data: &[u8]) -> Result<usize, FsError> {
        self.write_mapped_content(self.begin_taking(handle), offset, (data.len(), ready(Ok(data)))).await
    }

    /// Like [`Client::write_mapped`], for content of this length that comes when there is room for it: until then it need
    /// not be in memory.
    ///
    /// # Errors
    /// As [`Client::write_content`].
    pub async fn write_mapped_content<D: AsRef<[u8]>>(
        &self,
        mut taking: Taking,
        offset: u64,
        (len, content): (usize, impl Future<Output = Result<D, FsError>>),
    ) -> Result<usize, FsError> {
        let file = taking.file.clone();
        let file = &file;
        let end = offset.saturating_add(len as u64);
        if end > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let (content, reserved) = self.work.patiently(self.admit(file, len, content, true)).await??;
        let data = content.as_ref();
        assert_eq!(data.len(), len, "the content is what was announced");
        // It is kept while pages are compared, which takes a few seconds at most.
        let mut reserved = Some(reserved);
        let mut patience = Patience::for_seen();
        let mut at = offset;
        while at < end {
            if file.is_scattered() {
                drop(reserved.take());
                let flushed = Box::pin(self.flusher.flush(file, true)).await;
                if file.is_scattered() {
                    // The pieces cost memory that nothing counts, so there must not be more of them.
                    flushed?;
                }
            }
            let rest = &data[(at - offset) as usize..];
            if let Some(taken) = self.take_whole(file, at, rest) {
                taken?;
                break;
            }
            at = self.take_changed(file, (at, rest), &mut patience).await?;
        }
        taking.taken = true;
        Ok(len)
    }

    /// Takes pages whole, if this client is alone with the file and they show what it has now.
    fn take_whole(&self, file: &FileState, offset: u64, data: &[u8]) -> Option<Result<(), FsError>> {
        // Others, whose leases our own change has just taken, may have content that is based on what was before.
        if !self.known.is_long_delegated(file.ino()) {
            return None;
        }
        if offset.saturating_add(data.len() as u64) > FILE_BYTES_MAX {
            return Some(Err(FsError::TooLarge));
        }
        let written = file.write_pages_at_once(offset, data, self.session.stamp())?;
        Some(written.map(|added| self.hold(file, added)))
    }

    /// Takes what a program has changed in a part of its pages. Returns where the next part begins.
    async fn take_changed(
        &self,
        file: &FileState,
        (offset, data): (u64, &[u8]),
        patience: &mut Patience,
    ) -> Result<u64, FsError> {
        let portion = offset..offset + PORTION_BYTES.min(data.len() as u64);
        let (seen, bytes) = self.reader.seen(file, &portion, patience).await;
        let data = &data[..(seen.range.end - offset) as usize];
        let runs = match bytes {
            Some(bytes) if bytes.len() == data.len() => Some(changed(&bytes, data)),
            // I6: they are judged whole. What others have changed in them is in conflict then, and not overwritten.
            _ => None,
        };
        let added = file.write_changed(&seen, data, runs.as_deref(), self.session.stamp())?;
        self.hold(file, added);
        Ok(seen.range.end)
    }

    /// Counts bytes that a file holds, and begins to upload full blocks.
    fn hold(&self, file: &FileState, added: usize) {
        self.committer.window().add(added as u64);
        self.committer.seal_full(file);
    }

    /// Prepares a drop of all pages that the kernel has of an inode: waits until all reads have ended that are under way
    /// now. `None` when it is not open. Cancel-safe.
    pub async fn begin_drop(&self, ino: Ino) -> Option<DropUnderWay> {
        let file = self.open_files.get(ino)?;
        // Nothing is ever sent: the last read closes it.
        let _ = file.reads_under_way().changed().await;
        let number = file.begin_drop();
        Some(DropUnderWay { file, number })
    }
}

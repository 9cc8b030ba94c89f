//! Open files: reading, writing, and making content durable.

use crate::Client;
use crate::error::unexpected_reply;
use crate::file::state::FileState;
use crate::ordered::{Ordered, Rank};
use crate::queue::LossesReported;
use bytes::Bytes;
use std::future::ready;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use wire::FsError;
use wire::caller::on_behalf;
use wire::extent::Source;
use wire::ids::{Ino, Version};
use wire::limits::FILE_BYTES_MAX;
use wire::op::{Op, RangeAction, Read, ReadReply};

/// Extents are asked for in portions of this much of a file, so that no list of them is too long to send.
const SEEK_BYTES: u64 = 1 << 30;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Writes go to the end, wherever that is (`O_APPEND`).
    pub append: bool,
    /// Writes return when they are durable (`O_SYNC`, `O_DSYNC`).
    pub sync: bool,
    /// The content is removed (`O_TRUNC`).
    pub truncate: bool,
}

/// An open file. [`Client::release`] gives it back; one that is dropped is given back in the background.
pub struct Handle {
    file: Arc<FileState>,
    flags: OpenFlags,
    losses_reported: LossesReported,
    client: Weak<Client>,
    released: bool,
    /// The kernel drops its pages of the file's content, up to this version, before the program that opens it goes on.
    /// It has done so by the time the handle is used, and not earlier: another open must not rely on it. The number is
    /// that of the drop.
    drops: Ordered<Option<(Version, u64)>>,
}

impl Handle {
    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.file.ino()
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &Arc<FileState> {
        &self.file
    }

    /// Notes that the kernel drops its pages of the content up to this version before the program goes on.
    pub(super) fn note_drop(&self, version: Version, drop: u64) {
        *self.drops.lock() = Some((version, drop));
    }

    /// Returns where a write for this offset goes; `None` for the end.
    fn place(&self, offset: u64) -> Option<u64> {
        (!self.flags.append).then_some(offset)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.released
            && let Some(client) = self.client.upgrade()
        {
            let (file, owner) = (self.file.clone(), client.clone());
            client.work.spawn(async move { owner.let_go(&file).await });
        }
    }
}

impl Client {
    /// Returns a handle on an open file, to which it was added.
    pub(super) fn handle(&self, file: Arc<FileState>, flags: OpenFlags) -> Handle {
        let drops = Ordered::new(Rank::Drops, None);
        Handle { file, flags, losses_reported: self.losses_reported(), client: self.me.clone(), released: false, drops }
    }

    /// Notes that a handle is used.
    fn note_use(&self, handle: &Handle) {
        let dropped = handle.drops.lock().take();
        if let Some((version, drop)) = dropped {
            handle.file.end_drop(drop);
            self.kernel.gets_pages(handle.ino(), version);
        }
    }

    /// Reads. Returns less than `len` only at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub async fn read(&self, handle: &Handle, offset: u64, len: usize) -> Result<Bytes, FsError> {
        self.read_as(handle, (offset, len), false).await
    }

    /// Reads for a handle with `O_DIRECT`: past the kernel's pages, or into them for a mapping.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub async fn read_direct(&self, handle: &Handle, offset: u64, len: usize) -> Result<Bytes, FsError> {
        self.read_as(handle, (offset, len), true).await
    }

    async fn read_as(&self, handle: &Handle, part: (u64, usize), direct: bool) -> Result<Bytes, FsError> {
        self.note_use(handle);
        let reading = handle.file.begin_read();
        if reading.is_contended {
            self.view.catch_up(&handle.file).await?;
            handle.file.note_given();
        }
        let read = self.reader.read(&handle.file, part, direct).await?;
        if reading.is_contended {
            self.view.given_pages(&handle.file);
        }
        self.accessed.note(&handle.file);
        Ok(read)
    }

    /// Returns the inodes that are open, or have content that waits to be committed.
    #[must_use]
    pub fn open_inodes(&self) -> Vec<Ino> {
        self.open_files.inos()
    }

    /// Writes at once if there is room: copies the bytes and returns. `None` when the caller must use
    /// [`Client::write`].
    pub fn try_write(
        &self,
        handle: &Handle,
        offset: u64,
        data: &[u8],
        clear_privileges: bool,
    ) -> Option<Result<usize, FsError>> {
        if handle.flags.sync || !self.committer.window().takes_at_once() || !handle.file.takes_writes_at_once() {
            return None;
        }
        Some(self.accept(handle, (offset, handle.place(offset)), data, clear_privileges))
    }

    /// Adds written content, which the kernel has at this offset in its pages, at a place or at the end.
    fn accept(
        &self,
        handle: &Handle,
        (offset, place): (u64, Option<u64>),
        data: &[u8],
        clear: bool,
    ) -> Result<usize, FsError> {
        if place.unwrap_or(0).saturating_add(data.len() as u64) > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let (at, added) = handle.file.write(place, data, clear, self.session.stamp())?;
        self.note_use(handle);
        if at != offset && self.kernel.is_there() {
            // The kernel does not know what others have appended, and has these bytes over theirs.
            handle.file.note_misplaced(at, offset, data.len() as u64);
            self.kernel.spoils_pages(handle.ino());
        }
        self.committer.window().add(added as u64);
        self.committer.seal_full(&handle.file);
        Ok(data.len())
    }

    /// Writes; waits while too much is uncommitted, and with `O_SYNC` until it is durable.
    ///
    /// # Errors
    /// As `pwrite(2)`; `NoSpace` when earlier content could not be stored for lack of room; `Stale` when it was refused
    /// under the policy `Fail`.
    pub async fn write(&self, handle: &Handle, offset: u64, data: &[u8], clear: bool) -> Result<usize, FsError> {
        self.write_content(handle, offset, (data.len(), ready(Ok(data))), clear).await
    }

    /// Like [`Client::write`], for content of this length that comes when there is room for it: until then it need not
    /// be in memory.
    ///
    /// # Errors
    /// As [`Client::write`], and that of the content.
    pub async fn write_content<D: AsRef<[u8]>>(
        &self,
        handle: &Handle,
        offset: u64,
        content: (usize, impl Future<Output = Result<D, FsError>>),
        clear: bool,
    ) -> Result<usize, FsError> {
        self.write_to(handle, (offset, handle.place(offset)), content, clear).await
    }

    /// Like [`Client::write_content`], at exactly this offset, even if the handle appends.
    ///
    /// # Errors
    /// As [`Client::write_content`].
    pub async fn write_content_at<D: AsRef<[u8]>>(
        &self,
        handle: &Handle,
        offset: u64,
        content: (usize, impl Future<Output = Result<D, FsError>>),
        clear: bool,
    ) -> Result<usize, FsError> {
        self.write_to(handle, (offset, Some(offset)), content, clear).await
    }

    async fn write_to<D: AsRef<[u8]>>(
        &self,
        handle: &Handle,
        place: (u64, Option<u64>),
        (len, content): (usize, impl Future<Output = Result<D, FsError>>),
        clear: bool,
    ) -> Result<usize, FsError> {
        // One limit for everything: a soft mount's patience does not begin anew with each wait.
        let (content, reserved) = self.work.patiently(self.admit(&handle.file, len, content, false)).await??;
        assert_eq!(content.as_ref().len(), len, "the content is what was announced");
        // Nothing may be waited for here: what is added is based on the file as it is now.
        let count = self.accept(handle, place, content.as_ref(), clear)?;
        drop((content, reserved));
        self.view.given_pages(&handle.file);
        if handle.flags.sync {
            self.flush(handle).await?;
        }
        Ok(count)
    }

    /// Does what `close(2)` waits for: everything is committed, so that the closer itself gets the error of a conflict.
    /// Under a delegation there can be no conflict, and the content is sent later; others that open the file wait for
    /// that (I5).
    ///
    /// # Errors
    /// `Stale` on a conflict, `NoSpace`, `QuotaExceeded`, `Io`.
    pub async fn close(&self, handle: &Handle) -> Result<(), FsError> {
        self.note_use(handle);
        let file = &handle.file;
        if file.is_well() && !self.config.flush_on_close {
            if !file.is_dirty() {
                return Ok(());
            }
            self.work.patiently(self.writeback.wait_for_room()).await?;
            if self.flusher.defer_content(file) {
                return Ok(());
            }
        }
        self.flush(handle).await
    }

    /// Commits everything that was written to the file.
    ///
    /// # Errors
    /// As [`Client::close`].
    pub async fn flush(&self, handle: &Handle) -> Result<(), FsError> {
        self.note_use(handle);
        if !handle.file.wants_flush() {
            return Ok(());
        }
        let flushed = self.flusher.flush(&handle.file, true).await;
        // I6: an error that the background found is reported once, to the first caller.
        let unreported = handle.file.take_unreported();
        flushed.and(unreported.map_or(Ok(()), Err))
    }

    /// Makes everything that was written to the file durable on return (I7).
    ///
    /// # Errors
    /// As [`Client::flush`].
    pub async fn fsync(&self, handle: &Handle) -> Result<(), FsError> {
        // I7: blocks are synced before the commit that names them, and the commit before it is answered.
        self.flush(handle).await?;
        // Also the names that lead to the file, even if nothing was written.
        self.fsync_names(&handle.losses_reported).await
    }

    /// Makes written content known to metad, before metad is asked about the file. Errors are left for the writer.
    async fn settle(&self, handle: &Handle) -> Result<(), FsError> {
        if handle.file.is_dirty() {
            self.flusher.flush(&handle.file, true).await?;
        }
        self.order.wait_of(handle.ino()).await
    }

    /// Gives a handle back.
    pub async fn release(&self, mut handle: Handle) {
        self.note_use(&handle);
        handle.released = true;
        self.let_go(&handle.file).await;
    }

    /// Gives a handle back that the kernel does not get, because the open fails after all: it drops no pages for it.
    pub async fn release_unopened(&self, mut handle: Handle) {
        handle.drops.lock().take();
        handle.released = true;
        // The file may have been cut already.
        self.kernel.spoils_pages(handle.ino());
        self.let_go(&handle.file).await;
    }

    async fn let_go(&self, file: &Arc<FileState>) {
        let (last, refused) = file.remove_handle();
        let ino = file.ino();
        if last && file.is_dirty() {
            if refused {
                tracing::warn!(%ino, "content that was in conflict is dropped: its writer has closed the file");
                self.committer.discard(file).await;
            } else if self.open_files.is_orphan(ino) {
                // Nobody can open it any more.
                self.committer.discard(file).await;
            } else if self.left.load(Ordering::Relaxed) {
                // The mount ends, and the servers are away.
                self.flusher.leave_content(file);
            } else if !file.is_queued() && !self.flusher.defer_content(file) {
                // `close` was interrupted, or failed: the background tries again.
                let _ = self.flusher.flush(file, true).await;
            }
        }
        self.open_files.forget_if_idle(file);
        self.open_files.release_closed_orphan(ino).await;
    }

    /// Allocates, punches, zeroes, collapses or inserts a range.
    ///
    /// # Errors
    /// As `fallocate(2)`.
    pub async fn fallocate(&self, handle: &Handle, off: u64, len: u64, action: RangeAction) -> Result<(), FsError> {
        self.settle(handle).await?;
        let op = Op::Range { ino: handle.ino(), off, len, action };
        // Whoever has opened it for writing may write.
        on_behalf(None, self.change_content(&handle.file, op, None)).await.map(|_| ())
    }

    /// Copies within the cluster by sharing blocks. Returns how many bytes were copied: fewer only at the source's end.
    ///
    /// # Errors
    /// As `copy_file_range(2)`.
    pub async fn copy_range(
        &self,
        (src, src_off): (&Handle, u64),
        (dst, dst_off): (&Handle, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        self.settle(src).await?;
        self.settle(dst).await?;
        self.view.catch_up(&src.file).await?;
        let size = src.file.attr().size;
        let len = len.min(size.saturating_sub(src_off));
        if len == 0 {
            return Ok(0);
        }
        let op = Op::CloneRange { src: src.ino(), src_off, dst: dst.ino(), dst_off, len };
        on_behalf(None, self.change_content(&dst.file, op, None)).await?;
        Ok(len)
    }

    /// Returns the offset of the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or behind an offset.
    ///
    /// # Errors
    /// `NoSuchDataOrHole`, as `lseek(2)`.
    pub async fn seek(&self, handle: &Handle, offset: u64, hole: bool) -> Result<u64, FsError> {
        self.settle(handle).await?;
        let ino = handle.ino();
        let mut at = offset;
        loop {
            let asked = at.saturating_add(SEEK_BYTES);
            let read = Read::Extents { ino, off: at, len: asked - at };
            let ReadReply::Extents(page) = self.session.read(read).await? else { return Err(unexpected_reply()) };
            if offset >= page.size {
                return Err(FsError::NoSuchDataOrHole);
            }
            let known_to = page.more_from.unwrap_or(asked);
            for extent in page.extents.iter().filter(|extent| extent.source != Source::Zero) {
                let range = extent.range();
                if hole && range.start > at {
                    return Ok(at);
                }
                if !hole && range.start < page.size {
                    return Ok(range.start.max(at));
                }
                at = at.max(range.end);
            }
            // The end of the file counts as a hole.
            if hole && at < known_to {
                return Ok(at.min(page.size));
            }
            at = at.max(known_to);
            if at >= page.size {
                return if hole { Ok(page.size) } else { Err(FsError::NoSuchDataOrHole) };
            }
        }
    }

    /// Returns whether an open file is known to have no extended attributes.
    #[must_use]
    pub fn has_no_xattrs(&self, ino: Ino) -> bool {
        self.open_files.get(ino).is_some_and(|file| !file.has_xattrs())
    }
}

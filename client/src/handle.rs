//! Open files: reading, writing, and what makes it durable.

use crate::Client;
use crate::error::unexpected_reply;
use crate::file::state::FileState;
use crate::known::leased::LeasedAnswer;
use crate::namespace::NewNode;
use crate::opens::Vouched;
use crate::writeback::Heard;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr, TimeChange};
use wire::extent::Source;
use wire::ids::{Ino, Version};
use wire::limits::FILE_BYTES_MAX;
use wire::op::{ExtentPage, Op, RangeAction, Read, ReadReply};

/// Files that are flushed at once when all are.
pub(crate) const FLUSHES: usize = 32;

/// Extents are looked at in portions of this much of a file, so that no list of them is too long to send.
const SEEK_BYTES: u64 = 1 << 30;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Writes go to the end, wherever that is (`O_APPEND`).
    pub append: bool,
    /// Writes return when they are durable (`O_SYNC`, `O_DSYNC`).
    pub sync: bool,
    /// The content is thrown away (`O_TRUNC`).
    pub truncate: bool,
}

/// An open file. Given back with [`Client::release`]; one that is dropped is given back in the background.
pub struct Handle {
    file: Arc<FileState>,
    flags: OpenFlags,
    heard: Heard,
    client: Weak<Client>,
    released: bool,
    /// The kernel drops what it has of the file's content, up to this version, before the program that opens it goes on. So
    /// it has done that when the handle is used, and not before: another open must not rely on it.
    drops: Mutex<Option<Version>>,
}

impl Handle {
    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.file.ino()
    }

    /// Where a write for this offset goes; `None` for the end.
    fn place(&self, offset: u64) -> Option<u64> {
        (!self.flags.append).then_some(offset)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.released
            && let Some(client) = self.client.upgrade()
        {
            let (file, keeper) = (self.file.clone(), client.clone());
            client.work.spawn_on(async move { keeper.let_go(&file).await }, &client.runtime);
        }
    }
}

/// What opening gives.
pub struct Opened {
    /// The handle.
    pub handle: Handle,
    /// Attributes as of now.
    pub attr: InodeAttr,
    /// What the kernel has cached of the content is still right.
    pub keep_cache: bool,
}

impl Client {
    /// Opens a file: what other clients have closed before is seen (I5).
    ///
    /// # Errors
    /// As `open(2)`.
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Opened, FsError> {
        let opening = self.opens.begin(ino).await;
        // Held before it is looked at: what is known of it then includes all that is committed and not held any more.
        let held = self.hold(ino).map(|file| self.handle(file, flags));
        let known = self.known.attr(ino).and_then(|attr| {
            let page = self.contents.lock().get(&ino).filter(|page| page.version == attr.version).cloned();
            (attr.nlink > 0 && (page.is_some() || self.has_content(ino, &attr))).then_some((attr, page))
        });
        let (mut attr, page, leased) = match known {
            Some((attr, page)) => (attr, page, true),
            None => {
                // What is done to it here metad has to know before it can answer.
                self.tell_of(ino).await?;
                self.ask_open(ino).await?
            }
        };
        // I5: a name that the kernel still believed in, and was taken away. On `ESTALE` it looks again.
        let has_others = |held: &Handle| held.file.is_shared();
        if attr.nlink == 0 && !held.as_ref().is_some_and(has_others) {
            return Err(FsError::Stale);
        }
        let handle = held.unwrap_or_else(|| {
            let file = FileState::new(attr.clone(), page.as_ref(), self.buffers.clone(), self.config.block_bytes);
            self.handle(self.insert(file), flags)
        });
        drop(opening);
        handle.file.refresh(&attr, page.as_ref());
        if !leased {
            self.refresh_open(ino);
        }
        if flags.truncate {
            let empty = attr.size == 0 && !handle.file.is_dirty();
            // The times move in any case.
            let mtime = empty.then_some(TimeChange::Now);
            let change = AttrChange { size: (!empty).then_some(0), mtime, ..AttrChange::default() };
            attr = self.setattr(ino, change).await?;
        }
        // I5: what the kernel holds of another version is dropped.
        let keep_cache = self.versions.lock().get(&ino) == Some(&attr.version);
        if !keep_cache {
            *handle.drops.lock() = Some(attr.version);
        }
        if !keep_cache && !flags.truncate {
            self.prefetch_small(&handle.file);
        }
        Ok(Opened { attr: handle.file.overlaid(attr), handle, keep_cache })
    }

    /// Whether nothing of the file's content need be asked for: its pages are in the kernel, or it is open.
    fn has_content(&self, ino: Ino, attr: &InodeAttr) -> bool {
        let in_kernel = self.versions.lock().peek(&ino) == Some(&attr.version);
        in_kernel || self.files.lock().contains_key(&ino)
    }

    /// Asks metad to open a file: attributes, the first extents, and whether they are leased.
    async fn ask_open(&self, ino: Ino) -> Result<(InodeAttr, Option<ExtentPage>, bool), FsError> {
        let LeasedAnswer { answer, leased } = self.session.read_leased(Read::Open { ino }).await?;
        let ReadReply::Opened { attr, page } = answer? else { return Err(unexpected_reply()) };
        if let Some(mark) = leased {
            self.known.learn_attr(&attr, mark);
        }
        Ok((attr, Some(page), leased.is_some()))
    }

    /// Begins to read a file of one small block: whoever opens it mostly reads it next.
    fn prefetch_small(&self, file: &FileState) {
        if let Some(hash) = file.small_block() {
            self.fetcher.prefetch(hash);
        }
    }

    fn handle(&self, file: Arc<FileState>, flags: OpenFlags) -> Handle {
        Handle { file, flags, heard: self.heard(), client: self.me.clone(), released: false, drops: Mutex::default() }
    }

    /// A handle is used.
    fn note_use(&self, handle: &Handle) {
        if let Some(version) = handle.drops.lock().take() {
            self.versions.lock().put(handle.ino(), version);
        }
    }

    /// One more handle on a file that is open already.
    fn hold(&self, ino: Ino) -> Option<Arc<FileState>> {
        let files = self.files.lock();
        let file = files.get(&ino)?;
        file.add_handle();
        Some(file.clone())
    }

    /// A file that was not open, unless another opened it at the same time.
    fn insert(&self, file: Arc<FileState>) -> Arc<FileState> {
        let mut files = self.files.lock();
        let file = files.entry(file.ino()).or_insert(file).clone();
        file.add_handle();
        file
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// As `open(2)` with `O_CREAT | O_EXCL`.
    pub async fn create(&self, parent: Ino, name: &[u8], new: NewNode, flags: OpenFlags) -> Result<Opened, FsError> {
        let (attr, opening) = self.make_to_open(parent, name, new).await?;
        let page = ExtentPage { version: attr.version, size: 0, extents: Vec::new(), more_from: None };
        let file =
            self.insert(FileState::new(attr.clone(), Some(&page), self.buffers.clone(), self.config.block_bytes));
        drop(opening);
        self.versions.lock().put(attr.ino, attr.version);
        if self.known.attr(attr.ino).is_none() {
            // Others at work in the same directory: nobody would tell of changes.
            self.refresh_open(attr.ino);
        }
        Ok(Opened { handle: self.handle(file, flags), attr, keep_cache: true })
    }

    /// Reads; less than `len` only at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub async fn read(&self, handle: &Handle, offset: u64, len: usize) -> Result<Bytes, FsError> {
        self.note_use(handle);
        let read = self.read_file(&handle.file, offset, len).await?;
        self.note_access(&handle.file);
        Ok(read)
    }

    /// Writes at once if there is room: copies the bytes and returns. `None` when the caller must use [`Client::write`].
    pub fn try_write(
        &self,
        handle: &Handle,
        offset: u64,
        data: &[u8],
        clear_privileges: bool,
    ) -> Option<Result<usize, FsError>> {
        if handle.flags.sync || !self.window.has_room() || handle.file.is_scattered() {
            return None;
        }
        Some(self.accept(handle, handle.place(offset), data, clear_privileges))
    }

    /// Takes content in, for a place or for the end.
    fn accept(&self, handle: &Handle, place: Option<u64>, data: &[u8], clear: bool) -> Result<usize, FsError> {
        if place.unwrap_or(0).saturating_add(data.len() as u64) > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let added = handle.file.write(place, data, clear, self.session.stamp())?;
        self.note_use(handle);
        self.window.add(added as u64);
        self.arc().seal_full(&handle.file);
        Ok(data.len())
    }

    /// Writes; waits while too much is uncommitted, and with `O_SYNC` until it is durable.
    ///
    /// # Errors
    /// As `pwrite(2)`; `NoSpace` when what was written before could not be stored for lack of it; `Stale` when it was
    /// refused under the policy `Fail`.
    pub async fn write(&self, handle: &Handle, offset: u64, data: &[u8], clear: bool) -> Result<usize, FsError> {
        self.write_to(handle, handle.place(offset), data, clear).await
    }

    /// The same for exactly this place, though the handle appends.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn write_at(&self, handle: &Handle, offset: u64, data: &[u8], clear: bool) -> Result<usize, FsError> {
        self.write_to(handle, Some(offset), data, clear).await
    }

    async fn write_to(&self, handle: &Handle, place: Option<u64>, data: &[u8], clear: bool) -> Result<usize, FsError> {
        self.patiently(self.window.wait()).await??;
        if handle.file.is_scattered() {
            // What failed is told by `fsync` and `close`, as for writing in the background.
            let _ = self.arc().flush_file(&handle.file, true).await;
        }
        let count = self.accept(handle, place, data, clear)?;
        if handle.flags.sync {
            self.flush(handle).await?;
        }
        Ok(count)
    }

    /// What `close(2)` waits for: everything is committed, so that the closer itself hears of a conflict. Under a
    /// delegation there can be none, and what is written is told later; others that open the file wait for that (I5).
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
            self.patiently(self.writeback.wait_for_room()).await?;
            if self.defer_content(file) {
                return Ok(());
            }
        }
        self.flush(handle).await
    }

    /// Everything written to the file is committed on return.
    ///
    /// # Errors
    /// As [`Client::close`].
    pub async fn flush(&self, handle: &Handle) -> Result<(), FsError> {
        self.note_use(handle);
        if !handle.file.wants_flush() {
            return Ok(());
        }
        let flushed = self.arc().flush_file(&handle.file, true).await;
        // I6: what the background found is told once, to whoever comes first.
        let unreported = handle.file.take_unreported();
        flushed.and(unreported.map_or(Ok(()), Err))
    }

    /// Everything written to the file is durable on return (I7).
    ///
    /// # Errors
    /// As [`Client::flush`].
    pub async fn fsync(&self, handle: &Handle) -> Result<(), FsError> {
        // I7: blocks are synced before the commit that names them, and the commit before it is answered.
        self.flush(handle).await?;
        // The names that lead to it, though nothing was written.
        self.fsync_names(&handle.heard).await
    }

    /// What was written to the file is known to metad on return, for who asks about it: what went wrong is told to who
    /// wrote it.
    async fn settle(&self, handle: &Handle) -> Result<(), FsError> {
        if handle.file.is_dirty() {
            self.arc().flush_file(&handle.file, true).await?;
        }
        self.tell_of(handle.ino()).await
    }

    /// Gives a handle back.
    pub async fn release(&self, mut handle: Handle) {
        self.note_use(&handle);
        handle.released = true;
        self.let_go(&handle.file).await;
    }

    async fn let_go(&self, file: &Arc<FileState>) {
        let (last, refused) = file.remove_handle();
        let ino = file.ino();
        if last && file.is_dirty() {
            if refused {
                tracing::warn!(%ino, "content that was in conflict is dropped: its writer was told, and has closed the file");
                self.discard(file).await;
            } else if self.orphans.lock().contains(&ino) {
                // Nobody can open it any more.
                self.discard(file).await;
            } else if self.left.load(Ordering::Relaxed) {
                // The mount ends, and the servers are away.
                self.leave_content(file);
            } else if !file.is_queued() && !self.defer_content(file) {
                // `close` was interrupted, or failed: the background goes on trying.
                let _ = self.arc().flush_file(file, true).await;
            }
        }
        self.forget_if_idle(file);
        self.release_closed_orphan(ino).await;
    }

    /// A file without handles and without uncommitted content is not kept.
    pub(crate) fn forget_if_idle(&self, file: &Arc<FileState>) {
        let mut files = self.files.lock();
        let (idle, page) = file.idle();
        if idle && files.get(&file.ino()).is_some_and(|known| Arc::ptr_eq(known, file)) {
            files.remove(&file.ino());
            if let Some(page) = page {
                self.contents.lock().put(file.ino(), page);
            }
        }
    }

    /// Unlinked inodes stay as long as they are open here, and are released else.
    pub(crate) async fn keep_or_release(&self, inos: &[Ino]) {
        let mut vouched = Vec::new();
        for ino in inos {
            match self.opens.vouch(*ino, || self.files.lock().contains_key(ino)) {
                Some(closed) => {
                    self.orphans.lock().remove(ino);
                    vouched.push(closed);
                }
                None => {
                    self.orphans.lock().insert(*ino);
                    self.drop_unread(*ino);
                }
            }
        }
        let closed: Vec<Ino> = vouched.iter().map(Vouched::ino).collect();
        if !closed.is_empty()
            && let Err(error) = self.session.one(Op::ReleaseOrphans { inos: closed }).await
        {
            // Metad asks again with the next sign of life.
            tracing::debug!(%error, "orphans are released later");
        }
    }

    /// Drops what is not committed of an unlinked inode without handles: nobody can read it any more.
    pub(crate) fn drop_unread(&self, ino: Ino) {
        // What is in the queue was written before anybody here knew of the removal: it is kept beside.
        let Some(file) = self.files.lock().get(&ino).filter(|file| file.lose_last_name()).cloned() else { return };
        let client = self.arc();
        let dropping = async move {
            client.discard(&file).await;
            client.forget_if_idle(&file);
            client.release_closed_orphan(ino).await;
        };
        self.work.spawn_on(dropping, &self.runtime);
    }

    /// Releases an orphan that nothing holds here any more.
    pub(crate) async fn release_closed_orphan(&self, ino: Ino) {
        let orphaned = !self.files.lock().contains_key(&ino) && self.orphans.lock().remove(&ino);
        if orphaned {
            // Boxed: releasing may find another orphan to drop.
            Box::pin(self.keep_or_release(&[ino])).await;
        }
    }

    /// Allocates, punches, zeroes, collapses or inserts.
    ///
    /// # Errors
    /// As `fallocate(2)`.
    pub async fn fallocate(&self, handle: &Handle, off: u64, len: u64, action: RangeAction) -> Result<(), FsError> {
        self.settle(handle).await?;
        let op = Op::Range { ino: handle.ino(), off, len, action };
        self.change_content(&handle.file, op, None).await.map(|_| ())
    }

    /// Copies within the cluster by sharing blocks. Returns how many bytes; less only at the source's end.
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
        let size = src.file.attr().size;
        let len = len.min(size.saturating_sub(src_off));
        if len == 0 {
            return Ok(0);
        }
        let op = Op::CloneRange { src: src.ino(), src_off, dst: dst.ino(), dst_off, len };
        self.change_content(&dst.file, op, None).await?;
        Ok(len)
    }

    /// The next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or behind an offset.
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
            let told = page.more_from.unwrap_or(asked);
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
            if hole && at < told {
                return Ok(at.min(page.size));
            }
            at = at.max(told);
            if at >= page.size {
                return if hole { Ok(page.size) } else { Err(FsError::NoSuchDataOrHole) };
            }
        }
    }

    /// Commits everything that is uncommitted in any file.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        let files: Vec<Arc<FileState>> = self.files.lock().values().filter(|file| file.is_dirty()).cloned().collect();
        let client = self.arc();
        let flushes = files.into_iter().map(|file| {
            let client = client.clone();
            async move { client.flush_file(&file, true).await }
        });
        let flushed: Vec<_> = futures::stream::iter(flushes).buffer_unordered(FLUSHES).collect().await;
        let told = self.tell_all().await;
        flushed.into_iter().collect::<Result<(), FsError>>().and(told)
    }
}

impl Client {
    /// Whether an open file is known to have no extended attributes.
    #[must_use]
    pub fn has_no_xattrs(&self, ino: Ino) -> bool {
        self.files.lock().get(&ino).is_some_and(|file| !file.has_xattrs())
    }
}

//! Open files: reading, writing, and what makes it durable.

use crate::Client;
use crate::file::state::FileState;
use crate::namespace::NewNode;
use bytes::Bytes;
use std::sync::Arc;
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr};
use wire::extent::Source;
use wire::ids::Ino;
use wire::limits::FILE_BYTES_MAX;
use wire::op::{Op, OpReply, RangeAction, Read, ReadReply};

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

/// An open file. Given back with [`Client::release`].
pub struct Handle {
    file: Arc<FileState>,
    flags: OpenFlags,
}

impl Handle {
    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.file.ino()
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
        // Counted before metad is asked: an inode that is unlinked meanwhile must be seen as open.
        let held = self.hold(ino);
        let opened = self.open_held(ino, flags, held.as_ref()).await;
        if opened.is_err()
            && let Some(file) = held
        {
            self.let_go(&file).await;
        }
        opened
    }

    async fn open_held(&self, ino: Ino, flags: OpenFlags, held: Option<&Arc<FileState>>) -> Result<Opened, FsError> {
        let ReadReply::Opened { mut attr, page } = self.session.read(Read::Open { ino }).await? else {
            return Err(FsError::Io);
        };
        let file = match held {
            Some(file) => {
                file.refresh(&attr, Some(&page));
                file.clone()
            }
            None => self.insert(FileState::new(attr.clone(), Some(&page))),
        };
        let handle = Handle { file, flags };
        if flags.truncate && (attr.size > 0 || handle.file.is_dirty()) {
            let change = AttrChange { size: Some(0), ..AttrChange::default() };
            attr = self.setattr(ino, change).await?;
        }
        // I5: what the kernel holds of another version is dropped.
        let cached = self.versions.lock().put(ino, attr.version);
        let keep_cache = cached == Some(attr.version);
        Ok(Opened { attr: handle.file.overlaid(attr), handle, keep_cache })
    }

    /// One more handle on a file that is open already.
    fn hold(&self, ino: Ino) -> Option<Arc<FileState>> {
        let files = self.files.lock();
        let file = files.get(&ino)?;
        file.inner.lock().opens += 1;
        Some(file.clone())
    }

    /// A file that was not open, unless another opened it at the same time.
    fn insert(&self, file: Arc<FileState>) -> Arc<FileState> {
        let mut files = self.files.lock();
        let file = files.entry(file.ino()).or_insert(file).clone();
        file.inner.lock().opens += 1;
        file
    }

    /// Makes a file and opens it.
    ///
    /// # Errors
    /// As `open(2)` with `O_CREAT | O_EXCL`.
    pub async fn create(&self, parent: Ino, name: &[u8], new: NewNode, flags: OpenFlags) -> Result<Opened, FsError> {
        let attr = self.make_node(parent, name, new).await?;
        let page = wire::op::ExtentPage { version: attr.version, size: 0, extents: Vec::new(), more_from: None };
        let file = self.insert(FileState::new(attr.clone(), Some(&page)));
        self.versions.lock().put(attr.ino, attr.version);
        Ok(Opened { handle: Handle { file, flags }, attr, keep_cache: true })
    }

    /// Reads; less than `len` only at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub async fn read(&self, handle: &Handle, offset: u64, len: usize) -> Result<Bytes, FsError> {
        self.read_file(&handle.file, offset, len).await
    }

    /// Writes at once if there is room: copies the bytes and returns. `None` when the caller must use [`Client::write`].
    pub fn try_write(
        &self,
        handle: &Handle,
        offset: u64,
        data: &[u8],
        clear_privileges: bool,
    ) -> Option<Result<usize, FsError>> {
        if handle.flags.sync || !self.window.has_room() {
            return None;
        }
        Some(self.accept(handle, offset, data, clear_privileges))
    }

    fn accept(&self, handle: &Handle, offset: u64, data: &[u8], clear: bool) -> Result<usize, FsError> {
        if offset.saturating_add(data.len() as u64) > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let place = (!handle.flags.append).then_some(offset);
        let (_, added) = handle.file.write(place, data, clear);
        self.window.add(added as u64);
        self.arc().seal_full(&handle.file);
        Ok(data.len())
    }

    /// Writes; waits while too much is uncommitted, and with `O_SYNC` until it is durable.
    ///
    /// # Errors
    /// As `pwrite(2)`.
    pub async fn write(&self, handle: &Handle, offset: u64, data: &[u8], clear: bool) -> Result<usize, FsError> {
        self.window.wait().await;
        let count = self.accept(handle, offset, data, clear)?;
        if handle.flags.sync {
            self.arc().flush_file(&handle.file, true).await?;
        }
        Ok(count)
    }

    /// What `close(2)` waits for: everything is committed, so that the closer itself hears of a conflict.
    ///
    /// # Errors
    /// `Stale` on a conflict, `NoSpace`, `QuotaExceeded`, `Io`.
    pub async fn flush(&self, handle: &Handle) -> Result<(), FsError> {
        if handle.file.is_dirty() {
            self.arc().flush_file(&handle.file, true).await?;
        }
        Ok(())
    }

    /// Everything written to the file is durable on return (I7).
    ///
    /// # Errors
    /// As [`Client::flush`].
    pub async fn fsync(&self, handle: &Handle) -> Result<(), FsError> {
        // I7: blocks are synced before the commit that names them, and the commit before it is answered.
        self.flush(handle).await
    }

    /// Gives a handle back.
    pub async fn release(&self, handle: Handle) {
        self.let_go(&handle.file).await;
    }

    async fn let_go(&self, file: &Arc<FileState>) {
        let last = {
            let mut inner = file.inner.lock();
            inner.opens -= 1;
            inner.opens == 0
        };
        if last && file.is_dirty() {
            // `close` was interrupted, or failed: the background goes on trying.
            let _ = self.arc().flush_file(file, true).await;
        }
        self.forget_if_idle(file);
        let ino = file.ino();
        let orphaned = !self.files.lock().contains_key(&ino) && self.orphans.lock().remove(&ino);
        if orphaned {
            self.keep_or_release(&[ino]).await;
        }
    }

    /// A file without handles and without uncommitted content is not kept.
    pub(crate) fn forget_if_idle(&self, file: &Arc<FileState>) {
        let mut files = self.files.lock();
        let idle = {
            let inner = file.inner.lock();
            inner.opens == 0 && inner.held == 0
        };
        if idle && files.get(&file.ino()).is_some_and(|known| Arc::ptr_eq(known, file)) {
            files.remove(&file.ino());
        }
    }

    /// Unlinked inodes stay as long as they are open here, and are released else.
    pub(crate) async fn keep_or_release(&self, inos: &[Ino]) {
        let (open, closed): (Vec<Ino>, Vec<Ino>) = {
            let files = self.files.lock();
            inos.iter().partition(|ino| files.contains_key(ino))
        };
        self.orphans.lock().extend(open);
        if !closed.is_empty()
            && let Err(error) = self.session.one(Op::ReleaseOrphans { inos: closed }).await
        {
            // Metad asks again with the next sign of life.
            tracing::debug!(%error, "orphans are released later");
        }
    }

    /// Allocates, punches, zeroes, collapses or inserts.
    ///
    /// # Errors
    /// As `fallocate(2)`.
    pub async fn fallocate(&self, handle: &Handle, off: u64, len: u64, action: RangeAction) -> Result<(), FsError> {
        self.flush(handle).await?;
        let reply = self.session.one(Op::Range { ino: handle.ino(), off, len, action }).await?;
        let OpReply::Attr(attr) = reply else { return Err(FsError::Io) };
        handle.file.refresh(&attr, None);
        Ok(())
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
        self.flush(src).await?;
        self.flush(dst).await?;
        let size = src.file.attr().size;
        let len = len.min(size.saturating_sub(src_off));
        if len == 0 {
            return Ok(0);
        }
        let op = Op::CloneRange { src: src.ino(), src_off, dst: dst.ino(), dst_off, len };
        let OpReply::Attr(attr) = self.session.one(op).await? else { return Err(FsError::Io) };
        dst.file.refresh(&attr, None);
        Ok(len)
    }

    /// The next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or behind an offset.
    ///
    /// # Errors
    /// `NoSuchDataOrHole`, as `lseek(2)`.
    pub async fn seek(&self, handle: &Handle, offset: u64, hole: bool) -> Result<u64, FsError> {
        self.flush(handle).await?;
        let ino = handle.ino();
        let mut at = offset;
        loop {
            let read = Read::Extents { ino, off: at, len: u64::MAX - at };
            let ReadReply::Extents(page) = self.session.read(read).await? else { return Err(FsError::Io) };
            if offset >= page.size {
                return Err(FsError::NoSuchDataOrHole);
            }
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
            match page.more_from {
                Some(more) => at = if hole { at } else { more },
                // The end of the file counts as a hole.
                None if hole => return Ok(at.min(page.size)),
                None => return Err(FsError::NoSuchDataOrHole),
            }
        }
    }

    /// Commits everything that is uncommitted in any file.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        let files: Vec<Arc<FileState>> = self.files.lock().values().cloned().collect();
        let mut result = Ok(());
        for file in files.iter().filter(|file| file.is_dirty()) {
            let flushed = self.arc().flush_file(file, true).await;
            result = result.and(flushed);
        }
        result
    }
}

impl Client {
    /// Whether an open file is known to have no extended attributes.
    #[must_use]
    pub fn has_no_xattrs(&self, ino: Ino) -> bool {
        self.files.lock().get(&ino).is_some_and(|file| !file.inner.lock().attr.has_xattrs)
    }
}

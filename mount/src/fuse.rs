//! FUSE requests to the client's operations and back: translation only.
//!
//! The kernel's event loops only hand over: each request becomes a task that answers when it is done. Two exceptions save
//! the change of threads where nothing can block: a write for which there is room, and the kernel's question before each
//! write whether a file without attributes has capabilities.

mod attr;
mod dir;
mod file;
mod reply;

use crate::handles::Handles;
use client::namespace::NewNode;
use client::{Client, Handle};
use dir::Listing;
use fuser::{
    AccessFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use reply::{Answer, errno};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle as Runtime;
use wire::FsError;
use wire::attr::{AttrChange, TimeChange};
use wire::ids::Ino;
use wire::op::{LockFamily, NewInode, RenameMode, XattrMode};

/// Requests that the kernel keeps on their way in the background (reading ahead).
const BACKGROUND: u16 = 64;
/// What the kernel may read ahead.
pub(crate) const READAHEAD_BYTES: u32 = 8 << 20;

/// What all requests share.
pub(crate) struct Shared {
    pub client: Arc<Client>,
    /// How long the kernel may believe attributes and names.
    pub ttl: Duration,
    files: Handles<Handle>,
    dirs: Handles<Mutex<Listing>>,
    /// Inodes on which locks were taken here: their last `close` by an owner gives them up (`fcntl(2)`).
    locked: Mutex<HashSet<Ino>>,
}

/// The filesystem as fuser calls it.
pub(crate) struct Surf {
    shared: Arc<Shared>,
    runtime: Runtime,
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

impl Surf {
    pub(crate) fn new(client: Arc<Client>, ttl: Duration, runtime: Runtime) -> Self {
        let shared =
            Shared { client, ttl, files: Handles::default(), dirs: Handles::default(), locked: Mutex::default() };
        Self { shared: Arc::new(shared), runtime }
    }

    /// Hands a request over to a task.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Shared>) -> F) {
        self.runtime.spawn(work(self.shared.clone()));
    }

    /// Hands over a request that answers nothing but success.
    fn empty<F>(&self, reply: ReplyEmpty, work: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        let done = work(self.shared.clone());
        self.runtime.spawn(async move { reply.answer(done.await) });
    }

    /// Hands over a request that makes an entry.
    fn make(&self, reply: ReplyEntry, parent: INodeNo, name: &OsStr, new: NewNode) {
        let name = name.as_bytes().to_vec();
        self.spawn(|shared| async move {
            let made = shared.client.make_node(ino(parent), &name, new).await;
            reply::entry(&shared, reply, made);
        });
    }
}

fn new_node(request: &Request, node: NewInode, mode: u32, umask: u32) -> NewNode {
    NewNode { node, mode: mode & 0o7777, umask, uid: request.uid(), gid: request.gid() }
}

fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::SpecificTime(time) => TimeChange::To(time.into()),
        TimeOrNow::Now => TimeChange::Now,
    }
}

impl Filesystem for Surf {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_CACHE_SYMLINKS;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "not offered by this kernel");
            }
        }
        if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        if config.set_max_background(BACKGROUND).is_err() {
            tracing::debug!("the kernel keeps its own limit of background requests");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.spawn(|shared| async move {
            let found = shared.client.lookup(ino(parent), &name).await;
            reply::entry(&shared, reply, found);
        });
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.spawn(|shared| async move {
            let found = shared.client.getattr(ino(number)).await;
            reply::attr(&shared, reply, found);
        });
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = AttrChange {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(time_change),
            mtime: mtime.map(time_change),
            clear_privileges: size.is_some() && request.uid() != 0,
        };
        self.spawn(|shared| async move {
            let changed = shared.client.setattr(ino(number), change).await;
            reply::attr(&shared, reply, changed);
        });
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        self.spawn(|shared| async move { reply.answer(shared.client.readlink(ino(number)).await) });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match attr::node_of(mode, rdev) {
            Some(node) => self.make(reply, parent, name, new_node(request, node, mode, umask)),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make(reply, parent, name, new_node(request, NewInode::Directory, mode, umask));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewInode::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make(reply, parent, name, new_node(request, node, 0o777, 0));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, |shared| async move { shared.client.unlink(ino(parent), &name).await });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, |shared| async move { shared.client.rmdir(ino(parent), &name).await });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.empty(reply, |shared| async move {
            shared.client.rename(ino(parent), &name, ino(new_parent), &new_name, mode).await
        });
    }

    fn link(&self, _request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.spawn(|shared| async move {
            let linked = shared.client.link(ino(number), ino(parent), &name).await;
            reply::entry(&shared, reply, linked);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let new = new_node(request, NewInode::Regular, mode, umask);
        let name = name.as_bytes().to_vec();
        self.spawn(|shared| async move {
            match shared.client.create(ino(parent), &name, new, file::open_flags(flags)).await {
                Ok(opened) => {
                    let attr = attr::file_attr(&opened.attr);
                    let fh = FileHandle(shared.files.insert(opened.handle));
                    reply.created(&shared.ttl, &attr, Generation(0), fh, FopenFlags::empty());
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.spawn(|shared| async move { file::open(&shared, ino(number), flags.0, reply).await });
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(handle) = self.shared.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.spawn(|shared| async move {
            reply.answer(shared.client.read(&handle, offset, size as usize).await);
        });
    }

    fn write(
        &self,
        request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(handle) = self.shared.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let clear = request.uid() != 0;
        if let Some(written) = self.shared.client.try_write(&handle, offset, data, clear) {
            return reply.answer(written);
        }
        let data = data.to_vec();
        self.spawn(|shared| async move {
            reply.answer(shared.client.write(&handle, offset, &data, clear).await);
        });
    }

    fn flush(&self, _request: &Request, number: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let Some(handle) = self.shared.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.empty(reply, |shared| async move {
            let flushed = shared.client.flush(&handle).await;
            if shared.locked.lock().contains(&ino(number)) {
                let family = LockFamily::Posix;
                shared.client.unlock(ino(number), family, owner.0, 0, u64::MAX).await?;
            }
            flushed
        });
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let handle = self.shared.files.remove(fh.0);
        self.empty(reply, |shared| async move {
            // A request that still uses the handle gives it back when it ends.
            if let Some(handle) = handle.and_then(Arc::into_inner) {
                shared.client.release(handle).await;
            }
            Ok(())
        });
    }

    fn fsync(&self, _request: &Request, _number: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let Some(handle) = self.shared.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        self.empty(reply, |shared| async move { shared.client.fsync(&handle).await });
    }

    fn opendir(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let fh = self.shared.dirs.insert(Mutex::new(Listing::default()));
        reply.opened(FileHandle(fh), FopenFlags::empty());
    }

    fn readdir(&self, _request: &Request, number: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.spawn(|shared| async move { dir::list(&shared, ino(number), fh.0, offset, reply).await });
    }

    fn readdirplus(&self, _request: &Request, number: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.spawn(|shared| async move { dir::list_plus(&shared, ino(number), fh.0, offset, reply).await });
    }

    fn releasedir(&self, _request: &Request, _number: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.shared.dirs.remove(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _request: &Request, _number: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // I7: each change of a directory is durable before it is answered.
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        self.spawn(|shared| async move { reply.answer(shared.client.statfs().await) });
    }

    fn setxattr(
        &self,
        _request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Set,
        };
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.empty(
            reply,
            |shared| async move { shared.client.setxattr(ino(number), &name, &value, mode, false).await },
        );
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel asks for capabilities before every single write.
        if self.shared.client.has_no_xattrs(ino(number)) {
            return reply.error(errno(FsError::NoAttribute));
        }
        let name = name.as_bytes().to_vec();
        self.spawn(|shared| async move {
            reply::sized(reply, size, shared.client.getxattr(ino(number), &name).await);
        });
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        self.spawn(|shared| async move {
            let names = shared
                .client
                .listxattr(ino(number))
                .await
                .map(|names| names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect::<Vec<u8>>());
            reply::sized(reply, size, names);
        });
    }

    fn removexattr(&self, _request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.empty(reply, |shared| async move { shared.client.removexattr(ino(number), &name).await });
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // `default_permissions`: the kernel has checked.
        reply.ok();
    }

    fn getlk(
        &self,
        _request: &Request,
        number: INodeNo,
        _fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let wanted = file::lock(owner, start, end, typ, pid);
        self.spawn(|shared| async move {
            match shared.client.getlk(ino(number), wanted).await {
                Ok(found) => file::answer_lock(reply, found),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setlk(
        &self,
        _request: &Request,
        number: INodeNo,
        _fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let wanted = file::lock(owner, start, end, typ, pid);
        self.empty(reply, |shared| async move {
            if typ == libc::F_UNLCK {
                return shared.client.unlock(ino(number), wanted.family, owner.0, wanted.start, wanted.end).await;
            }
            shared.locked.lock().insert(ino(number));
            shared.client.setlk(ino(number), wanted, sleep).await
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(handle) = self.shared.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let Some(action) = file::range_action(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        self.empty(reply, |shared| async move { shared.client.fallocate(&handle, offset, length, action).await });
    }

    fn lseek(&self, _request: &Request, _number: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(handle) = self.shared.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.spawn(|shared| async move {
            match shared.client.seek(&handle, offset, hole).await {
                Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let files = &self.shared.files;
        let (Some(from), Some(to)) = (files.get(fh_in.0), files.get(fh_out.0)) else {
            return reply.error(Errno::EBADF);
        };
        // The answer has 32 bits; programs ask again for the rest.
        let len = len.min(1 << 30);
        self.spawn(|shared| async move {
            let copied = shared.client.copy_range((&from, offset_in), (&to, offset_out), len).await;
            reply.answer(copied.map(|count| count as usize));
        });
    }
}

//! The tree as fuser calls it: only translation, with each request answered at once by the thread that read it.
//!
//! This answers all requests that surfmount has to answer, although the kernel would do without some of them (`flush`,
//! handles of directories, the request for `security.capability` before a write): a file system that stores something
//! cannot save these. It leaves out locks, which the kernel then handles alone, and requests that no row makes.

use super::tree::{Change, Listed, New, Renaming, Tree};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Nobody else changes anything, so the kernel may cache as on surfmount's embedded cluster.
const CACHE_TIME: Duration = Duration::from_secs(3600);
const GENERATION: Generation = Generation(0);
/// All state is in the tree, so handles need none.
const HANDLE: FileHandle = FileHandle(0);
const PERMISSIONS: u32 = 0o7777;

/// Flags that surfmount asks for, except locks.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_CACHE_SYMLINKS);
/// The next three are the same as surfmount's.
const BACKGROUND: u16 = 128;
pub(super) const READAHEAD_BYTES: u32 = 8 << 20;
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// Size that `statfs` reports: enough for everything, in blocks of [`STATFS_BLOCK`].
const STATFS_BLOCKS: u64 = 1 << 30;
const STATFS_BLOCK: u32 = 4096;
const NAME_BYTES_MAX: u32 = 255;

/// The file system.
pub(super) struct NullFs {
    tree: Arc<Mutex<Tree>>,
}

impl NullFs {
    pub(super) fn new(tree: Arc<Mutex<Tree>>) -> Self {
        Self { tree }
    }

    fn make(&self, at: (INodeNo, &OsStr), new: &New<'_>, reply: ReplyEntry) {
        let made = self.tree.lock().make(at.0.0, at.1, new);
        entry(made, reply);
    }
}

fn entry(found: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match found {
        Ok(attr) => reply.entry(&CACHE_TIME, &attr, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn done(outcome: Result<(), Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn new<'a>(request: &Request, kind: FileType, mode: u32) -> New<'a> {
    let perm = (mode & PERMISSIONS) as u16;
    New { kind, perm, owner: (request.uid(), request.gid()), rdev: 0, target: OsStr::new("") }
}

/// Returns what `mknod(2)` is to make, or `None` for other kinds.
fn kind_of(mode: u32) -> Option<FileType> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(FileType::RegularFile),
        libc::S_IFIFO => Some(FileType::NamedPipe),
        libc::S_IFSOCK => Some(FileType::Socket),
        libc::S_IFCHR => Some(FileType::CharDevice),
        libc::S_IFBLK => Some(FileType::BlockDevice),
        _ => None,
    }
}

fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for NullFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in WANTED.iter() {
            // This kernel does not offer it; surfmount does without it, too.
            let _ = config.add_capabilities(flag);
        }
        // Each error names the nearest value that is allowed.
        if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        if let Err(most) = config.set_max_write(WRITE_BYTES_MAX) {
            let _ = config.set_max_write(most);
        }
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.tree.lock().lookup(parent.0, name);
        match found {
            // Inode 0 lets the kernel cache that there is no such name.
            Err(Errno::ENOENT) => match self.tree.lock().attr(parent.0) {
                Ok(attr) => reply.entry(&CACHE_TIME, &FileAttr { ino: INodeNo(0), ..attr }, GENERATION),
                Err(error) => reply.error(error),
            },
            found => entry(found, reply),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.tree.lock().forget(ino.0, count);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.tree.lock().attr(ino.0);
        match found {
            Ok(attr) => reply.attr(&CACHE_TIME, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
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
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let perm = mode.map(|mode| (mode & PERMISSIONS) as u16);
        let change = Change { perm, uid, gid, size, atime: atime.map(time), mtime: mtime.map(time) };
        let changed = self.tree.lock().change(ino.0, &change);
        match changed {
            Ok(attr) => reply.attr(&CACHE_TIME, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.lock().target(ino.0) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(error),
        }
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
        let Some(kind) = kind_of(mode) else { return reply.error(Errno::EINVAL) };
        self.make((parent, name), &New { rdev, ..new(request, kind, mode & !umask) }, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make((parent, name), &new(request, FileType::Directory, mode & !umask), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = New { target: target.as_os_str(), ..new(request, FileType::Symlink, 0o777) };
        self.make((parent, name), &new, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.tree.lock().unlink(parent.0, name);
        done(outcome, reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.tree.lock().rmdir(parent.0, name);
        done(outcome, reply);
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
        let renaming = match flags {
            flags if flags.is_empty() => Renaming::Replace,
            RenameFlags::RENAME_NOREPLACE => Renaming::NoReplace,
            RenameFlags::RENAME_EXCHANGE => Renaming::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let outcome = self.tree.lock().rename((parent.0, name), (new_parent.0, new_name), renaming);
        done(outcome, reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.tree.lock().link(ino.0, parent.0, name);
        entry(linked, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let new = new(request, FileType::RegularFile, mode & !umask);
        let made = self.tree.lock().make(parent.0, name, &new);
        match made {
            Ok(attr) => reply.created(&CACHE_TIME, &attr, GENERATION, HANDLE, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0 {
            let cut = Change { size: Some(0), ..Change::default() };
            if let Err(error) = self.tree.lock().change(ino.0, &cut) {
                return reply.error(error);
            }
        }
        reply.opened(HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let found = self.tree.lock().file(ino.0);
        match found {
            Ok((content, len)) => {
                let size = len.saturating_sub(offset).min(u64::from(size));
                content.read().read(offset, size as usize, |bytes| reply.data(bytes));
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = self.tree.lock().written(ino.0, offset + data.len() as u64);
        match file {
            Ok(content) => {
                content.write().write(offset, data);
                // Writes are of 1 MiB at most.
                reply.written(data.len() as u32);
            }
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let add = |listed: Listed<'_>| reply.add(listed.attr.ino, listed.cookie, listed.attr.kind, listed.name);
        let outcome = self.tree.lock().list(ino.0, offset, false, add);
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let add = |listed: Listed<'_>| {
            let trust = if listed.is_dot { Duration::ZERO } else { CACHE_TIME };
            reply.add(listed.attr.ino, listed.cookie, listed.name, &trust, &listed.attr, GENERATION)
        };
        let outcome = self.tree.lock().list(ino.0, offset, true, add);
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn fsyncdir(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = STATFS_BLOCKS;
        reply.statfs(blocks, blocks, blocks, blocks, blocks, STATFS_BLOCK, NAME_BYTES_MAX, STATFS_BLOCK);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn getxattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        // This is not ENOSYS, after which the kernel would not ask again: it asks surfmount each time.
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _request: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENODATA);
    }
}

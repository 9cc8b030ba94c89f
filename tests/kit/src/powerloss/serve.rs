//! Requests of the kernel, carried out on a [`Volume`].
//!
//! The kernel itself keeps advisory locks, writes mapped pages back before a sync, and turns a write to a file that is
//! open with `O_SYNC` or `O_DSYNC` into a write and a sync. `sync_file_range(2)` makes nothing durable, as on a disk
//! with a volatile cache.

use super::entries::Ino;
use super::sectors::Unsynced;
use super::volume::{Kind, Node, Volume};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

/// How long the kernel may cache names and attributes: nothing changes but by its requests.
const TRUST: Duration = Duration::from_secs(60);
/// Inode numbers are never used twice.
const GENERATION: Generation = Generation(0);
/// Unit of [`DISK_BLOCKS`], in bytes.
const BLOCK_BYTES: u32 = 4096;
/// What the disk claims to have, all of it free: 64 GiB.
const DISK_BLOCKS: u64 = 1 << 24;

/// Serves a volume.
pub(super) struct Served {
    pub volume: Arc<Mutex<Volume>>,
    /// How long each sync takes besides, in milliseconds.
    pub sync_ms: Arc<AtomicU64>,
}

/// Takes a volume's lock.
pub(super) fn lock(volume: &Mutex<Volume>) -> MutexGuard<'_, Volume> {
    volume.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attr(ino: Ino, node: &Node) -> FileAttr {
    let (kind, nlink) = match node.kind {
        Kind::Dir => (FileType::Directory, 2),
        Kind::File(_) => (FileType::RegularFile, 1),
        Kind::Symlink(_) => (FileType::Symlink, 1),
    };
    FileAttr {
        ino: INodeNo(ino),
        size: node.size(),
        blocks: node.size().div_ceil(512),
        atime: node.mtime,
        mtime: node.mtime,
        ctime: node.mtime,
        crtime: node.mtime,
        kind,
        perm: node.mode as u16,
        nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

impl Served {
    fn volume(&self) -> MutexGuard<'_, Volume> {
        lock(&self.volume)
    }

    fn sync_late(&self, ino: Ino) -> io::Result<()> {
        // Not under the volume's lock: the disk reads and writes meanwhile.
        thread::sleep(Duration::from_millis(self.sync_ms.load(Ordering::Relaxed)));
        self.volume().sync(ino)
    }

    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, kind: Kind, mode: u32) -> io::Result<FileAttr> {
        let mut volume = self.volume();
        let ino = volume.make(parent.0, name, Node::new(kind, mode, (request.uid(), request.gid())))?;
        Ok(attr(ino, volume.node(ino)?))
    }

    fn look(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let volume = self.volume();
        let ino = volume.lookup(parent.0, name)?;
        Ok(attr(ino, volume.node(ino)?))
    }

    fn allocate(&self, ino: Ino, offset: u64, len: u64, mode: i32) -> io::Result<()> {
        let mut volume = self.volume();
        match mode {
            0 => {
                let size = volume.node(ino)?.size();
                volume.resize(ino, size.max(offset + len))
            }
            libc::FALLOC_FL_KEEP_SIZE => Ok(()),
            mode if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 => {
                volume.zero(ino, offset, len)
            }
            _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }
}

fn entry(reply: ReplyEntry, made: io::Result<FileAttr>) {
    match made {
        Ok(attr) => reply.entry(&TRUST, &attr, GENERATION),
        Err(error) => reply.error(error.into()),
    }
}

fn empty(reply: ReplyEmpty, done: io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.look(parent, name));
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.volume().node(ino.0) {
            Ok(node) => reply.attr(&TRUST, &attr(ino.0, node)),
            Err(error) => reply.error(error.into()),
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
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut volume = self.volume();
        if let Some(Err(error)) = size.map(|size| volume.resize(ino.0, size)) {
            return reply.error(error.into());
        }
        match volume.node_mut(ino.0) {
            Ok(node) => {
                node.mode = mode.map_or(node.mode, |mode| mode & 0o7777);
                node.uid = uid.unwrap_or(node.uid);
                node.gid = gid.unwrap_or(node.gid);
                node.mtime = match mtime {
                    Some(TimeOrNow::SpecificTime(time)) => time,
                    Some(TimeOrNow::Now) => SystemTime::now(),
                    None => node.mtime,
                };
                reply.attr(&TRUST, &attr(ino.0, node));
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.volume().node(ino.0).map(|node| &node.kind) {
            Ok(Kind::Symlink(target)) => reply.data(target.as_encoded_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.make(request, parent, name, Kind::Dir, mode & !umask));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        entry(reply, self.make(request, parent, name, Kind::Symlink(target.as_os_str().to_owned()), 0o777));
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
        match self.make(request, parent, name, Kind::File(Unsynced::new(0)), mode & !umask) {
            Ok(attr) => reply.created(&TRUST, &attr, GENERATION, FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.volume().remove(parent.0, name));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.volume().remove(parent.0, name));
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
        let mut volume = self.volume();
        let is_taken = volume.lookup(new_parent.0, new_name).is_ok();
        match flags {
            flags if flags.is_empty() => {}
            RenameFlags::RENAME_NOREPLACE if is_taken => return reply.error(Errno::EEXIST),
            RenameFlags::RENAME_NOREPLACE => {}
            _ => return reply.error(Errno::EINVAL),
        }
        empty(reply, volume.rename((parent.0, name), (new_parent.0, new_name)));
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
        match self.volume().read(ino.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
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
        match self.volume().write(ino.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync_late(ino.0));
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync_late(ino.0));
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let volume = self.volume();
        let entries = match volume.list(ino.0) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error.into()),
        };
        // The inode's number is the cookie. Programs do without `.` and `..`.
        for (child, name) in entries.range(offset + 1..) {
            let kind = volume.node(*child).map_or(FileType::RegularFile, |node| attr(*child, node).kind);
            if reply.add(INodeNo(*child), *child, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let inodes = 1 << 20;
        reply.statfs(DISK_BLOCKS, DISK_BLOCKS, DISK_BLOCKS, inodes, inodes, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.allocate(ino.0, offset, length, mode));
    }
}

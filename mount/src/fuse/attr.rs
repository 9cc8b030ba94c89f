//! Names and attributes: the client's answers in the kernel's form.

use super::Shared;
use super::reply::{Attr, Entry, gone_is_stale};
use crate::inodes::{ALONE_CACHE_TIME, Trust};
use client::NewNode;
use fuser::{FileAttr, FileType, INodeNo, RenameFlags, Request, TimeOrNow};
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::FsError;
use wire::attr::{AttrChange, FileKind, InodeAttr, TimeChange, Timestamp};
use wire::ids::Ino;
use wire::op::{NewInode, RenameMode};

/// `st_blksize`. Programs that copy choose larger buffers by themselves; the kernel derives block counts from it.
const BLOCK_SIZE: u32 = 4096;
/// The bits of `st_mode` that are no file type.
const PERMISSIONS: u32 = 0o7777;

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn file_attr(number: INodeNo, attr: &InodeAttr) -> FileAttr {
    FileAttr {
        ino: number,
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: attr.btime.into(),
        kind: file_type(attr.kind),
        perm: (attr.mode & PERMISSIONS) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes of `.` and `..` in a listing. The kernel uses only number and kind of them.
pub(super) fn dot_attr(number: INodeNo) -> FileAttr {
    FileAttr {
        ino: number,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Returns what `mknod(2)` is to make, or `None` for other kinds.
pub(super) fn node_of(mode: u32, rdev: u32) -> Option<NewInode> {
    let special = |kind| Some(NewInode::Special { kind, rdev });
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(NewInode::Regular),
        libc::S_IFIFO => special(FileKind::Fifo),
        libc::S_IFSOCK => special(FileKind::Socket),
        libc::S_IFCHR => special(FileKind::CharDevice),
        libc::S_IFBLK => special(FileKind::BlockDevice),
        _ => None,
    }
}

/// Returns what a caller makes.
pub(super) fn new_node(request: &Request, node: NewInode, mode: u32, umask: u32) -> NewNode {
    NewNode { node, mode: mode & PERMISSIONS, umask, uid: request.uid(), gid: request.gid() }
}

/// Returns how a rename treats what is there, or `None` for other flags.
pub(super) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    match flags {
        flags if flags.is_empty() => Some(RenameMode::Replace),
        RenameFlags::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        _ => None,
    }
}

fn time_change(time: TimeOrNow) -> TimeChange {
    match time {
        TimeOrNow::SpecificTime(time) => TimeChange::To(requested_time(time)),
        TimeOrNow::Now => TimeChange::Now,
    }
}

/// A time as the kernel asked for it. Before 1970, fuser 0.18 subtracts the nanoseconds that the kernel wants added
/// (`fuser::time::system_time_from_time`).
fn requested_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(error) => {
            let before = error.duration();
            let secs = i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs);
            Timestamp { secs, nanos: before.subsec_nanos() }
        }
    }
}

/// Builds the change that a `setattr` asks for.
pub(super) fn change(
    request: &Request,
    mode: Option<u32>,
    (uid, gid): (Option<u32>, Option<u32>),
    size: Option<u64>,
    (atime, mtime): (Option<TimeOrNow>, Option<TimeOrNow>),
) -> AttrChange {
    // An unprivileged truncation clears setuid and setgid. The kernel does it for a change of owner, by `mode`.
    let clear_privileges = size.is_some() && request.uid() != 0;
    AttrChange {
        mode: mode.map(|mode| mode & PERMISSIONS),
        uid,
        gid,
        size,
        atime: atime.map(time_change),
        mtime: mtime.map(time_change),
        clear_privileges,
    }
}

/// How long the kernel may cache something that leases cover for the duration `leased`. Where nobody else can change
/// it, it may be cached for as long as the client knows it. The client gives no time for what is changing or not
/// committed.
fn alone(trust: Trust, leased: Duration) -> Duration {
    match trust {
        Trust::Alone if !leased.is_zero() => ALONE_CACHE_TIME,
        _ => leased,
    }
}

impl Shared {
    /// Returns the inode that the kernel means.
    pub(super) fn ino(&self, number: INodeNo) -> Ino {
        self.nodes.ino(number)
    }

    /// Attributes in the kernel's form.
    pub(super) fn file_attr(&self, attr: &InodeAttr) -> FileAttr {
        file_attr(self.nodes.number(attr.ino), attr)
    }

    /// How long the kernel may cache attributes that it receives now.
    pub(super) fn attr_trust(&self, attr: &InodeAttr) -> Duration {
        if self.inodes.is_written(attr.ino) {
            return Duration::ZERO;
        }
        alone(self.inodes.trust, self.client.believe_attr(attr))
    }

    /// How long the kernel may cache where a name leads, or that it is absent.
    pub(super) fn name_trust(&self, parent: Ino, name: &[u8], ino: Option<Ino>) -> Duration {
        alone(self.inodes.trust, self.client.believe_name(parent, name, ino))
    }

    /// Reports whether the inode is known to have no extended attributes. The kernel asks before each write (for
    /// capabilities), at each check of rights (for ACLs), and `ls -l` asks for each file.
    pub(super) fn is_plain(&self, ino: Ino) -> bool {
        self.client.known_attr(ino).is_some_and(|attr| !attr.has_xattrs)
    }

    /// The answer to a request that yields a name's inode.
    pub(super) async fn entry(
        &self,
        at: (Ino, &[u8]),
        asked: impl Future<Output = Result<InodeAttr, FsError>>,
    ) -> Result<Entry, FsError> {
        Ok(self.found(at, &asked.await?))
    }

    fn found(&self, (parent, name): (Ino, &[u8]), attr: &InodeAttr) -> Entry {
        let (attr_trust, entry_trust) = (self.attr_trust(attr), self.name_trust(parent, name, Some(attr.ino)));
        Entry::Found { attr: self.file_attr(attr), attr_trust, entry_trust }
    }

    /// The answer to a lookup by a thread.
    pub(super) async fn lookup(&self, tid: u32, at: (Ino, &[u8])) -> Result<Entry, FsError> {
        let found = match self.entry(at, self.client.lookup(at.0, at.1)).await {
            Err(FsError::NotFound) => self.absent(at.0, at.1),
            other => other,
        };
        self.note_seen(tid, at, &found);
        found
    }

    fn absent(&self, parent: Ino, name: &[u8]) -> Result<Entry, FsError> {
        let trust = self.name_trust(parent, name, None);
        if trust.is_zero() { Err(FsError::NotFound) } else { Ok(Entry::Absent { trust }) }
    }

    /// The answer to a lookup by a thread, when metad need not be asked.
    pub(super) fn known_entry(&self, tid: u32, at: (Ino, &[u8])) -> Option<Result<Entry, FsError>> {
        let found = match self.client.known_name(at.0, at.1)? {
            Ok(attr) => Ok(self.found(at, &attr)),
            Err(_) => self.absent(at.0, at.1),
        };
        self.note_seen(tid, at, &found);
        Some(found)
    }

    fn note_seen(&self, tid: u32, at: (Ino, &[u8]), found: &Result<Entry, FsError>) {
        let dir = match found {
            Ok(Entry::Found { attr, .. }) if attr.kind == FileType::Directory => Some(self.nodes.ino(attr.ino)),
            _ => None,
        };
        self.seen.note(tid, at, dir);
    }

    /// The directory that a thread has found at a name that it is to remove.
    pub(super) fn seen_to_remove(&self, tid: u32, at: (Ino, &[u8])) -> Option<Ino> {
        // The kernel may have found it in its cache: then by the last answer to anybody.
        self.seen.dir(tid, at).or_else(|| self.client.led_to(at.0, at.1))
    }

    /// The directory that a thread has found at a name that it is to replace; none if both names stay.
    pub(super) fn seen_to_replace(&self, tid: u32, at: (Ino, &[u8]), mode: RenameMode) -> Option<Ino> {
        self.seen.dir(tid, at).filter(|_| mode == RenameMode::Replace)
    }

    /// The answer to a request for attributes, when metad need not be asked.
    pub(super) fn known_attr(&self, ino: Ino) -> Option<Attr> {
        let attr = self.client.known_attr(ino)?;
        Some(Attr { attr: self.file_attr(&attr), trust: self.attr_trust(&attr) })
    }

    /// The answer to a request that yields an inode's attributes.
    pub(super) async fn attr(&self, asked: impl Future<Output = Result<InodeAttr, FsError>>) -> Result<Attr, FsError> {
        let attr = asked.await.map_err(gone_is_stale)?;
        Ok(Attr { attr: self.file_attr(&attr), trust: self.attr_trust(&attr) })
    }
}

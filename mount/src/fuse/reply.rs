//! Turns outcomes into replies. No other place turns errors into what the kernel sees.

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use std::time::{Duration, SystemTime};
use wire::FsError;
use wire::limits::NAME_BYTES_MAX;
use wire::op::{Lock, StatFs};

/// Unit in which `statfs` counts.
const STATFS_BLOCK: u64 = 4096;
/// Inode numbers are never used twice.
pub(super) const GENERATION: Generation = Generation(0);

/// The error number that the kernel sees.
pub(super) fn errno(error: FsError) -> Errno {
    if error == FsError::Io {
        tracing::warn!(%error, "request failed");
    } else {
        tracing::debug!(%error, "request failed");
    }
    Errno::from_i32(error.errno())
}

/// Translates errors of requests that name an inode by number: a missing inode is not a missing name. `ESTALE` makes
/// the kernel look the path up again, and find what has the name now (`path_resolution(7)` leaves that to filesystems;
/// see `LOOKUP_REVAL`).
pub(super) fn gone_is_stale(error: FsError) -> FsError {
    if error == FsError::NotFound { FsError::Stale } else { error }
}

/// A name, and the inode that it leads to.
pub(super) enum Entry {
    Found {
        attr: FileAttr,
        attr_trust: Duration,
        entry_trust: Duration,
    },
    /// There is no such name, and the kernel may cache that.
    Absent {
        trust: Duration,
    },
}

/// Attributes, and how long the kernel may cache them.
pub(super) struct Attr {
    pub attr: FileAttr,
    pub trust: Duration,
}

/// An opened file.
pub(super) struct Open {
    pub fh: u64,
    pub flags: FopenFlags,
}

/// A value or list of extended attributes, and the room that the caller has for it. With 0 the caller asks for the
/// length.
pub(super) struct Sized {
    pub value: Vec<u8>,
    pub room: u32,
}

/// A reply that can be sent with an outcome.
pub(super) trait Answer<T>: Send + 'static {
    fn answer(self, outcome: Result<T, FsError>);
}

macro_rules! answer {
    ($reply:ty, $outcome:ty, |$this:ident, $value:ident| $ok:expr) => {
        impl Answer<$outcome> for $reply {
            fn answer(self, outcome: Result<$outcome, FsError>) {
                let $this = self;
                match outcome {
                    Ok($value) => $ok,
                    Err(error) => $this.error(errno(error)),
                }
            }
        }
    };
}

answer!(ReplyEmpty, (), |reply, _done| reply.ok());
answer!(ReplyData, Vec<u8>, |reply, bytes| reply.data(&bytes));
answer!(ReplyData, bytes::Bytes, |reply, bytes| reply.data(&bytes));
answer!(ReplyWrite, usize, |reply, count| reply.written(u32::try_from(count).unwrap_or(u32::MAX)));
answer!(ReplyLseek, u64, |reply, offset| reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)));
answer!(ReplyAttr, Attr, |reply, found| reply.attr(&found.trust, &found.attr));
answer!(ReplyOpen, Open, |reply, open| reply.opened(FileHandle(open.fh), open.flags));
answer!(ReplyCreate, (Attr, Open), |reply, made| {
    let (Attr { attr, trust }, open) = made;
    reply.created(&trust, &attr, GENERATION, FileHandle(open.fh), open.flags);
});
answer!(ReplyEntry, Entry, |reply, entry| match entry {
    Entry::Found { attr, attr_trust, entry_trust } => {
        reply.entry_with_ttls(&attr_trust, &entry_trust, &attr, GENERATION);
    }
    Entry::Absent { trust } => reply.entry(&trust, &ABSENT_ATTR, GENERATION),
});
answer!(ReplyLock, Option<Lock>, |reply, found| match found {
    Some(lock) => {
        let end = if lock.end == u64::MAX { i64::MAX as u64 } else { lock.end - 1 };
        let typ = if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        reply.locked(lock.start, end, typ, lock.pid);
    }
    None => reply.locked(0, 0, libc::F_UNLCK, 0),
});
answer!(ReplyXattr, Sized, |reply, found| match (found.value.len(), found.room as usize) {
    (len, 0) => reply.size(u32::try_from(len).unwrap_or(u32::MAX)),
    (len, room) if len <= room => reply.data(&found.value),
    _ => reply.error(errno(FsError::Range)),
});
answer!(ReplyStatfs, StatFs, |reply, stats| {
    let free = stats.free_bytes / STATFS_BLOCK;
    let blocks = stats.total_bytes / STATFS_BLOCK;
    // Inodes are not limited by number: there is room for as many of the smallest files as fit into the free blocks.
    let files = stats.inodes + free;
    reply.statfs(blocks, free, free, files, free, STATFS_BLOCK as u32, NAME_BYTES_MAX as u32, STATFS_BLOCK as u32);
});

/// In the reply to a lookup, inode 0 means that there is no such name, and that this may be cached
/// (`fuse_entry_param`).
const ABSENT_ATTR: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: fuser::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

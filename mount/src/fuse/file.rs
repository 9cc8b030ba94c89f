//! Opening, locks and ranges: the kernel's words to the client's.

use super::Shared;
use super::reply::errno;
use fuser::{FileHandle, FopenFlags, LockOwner, ReplyLock, ReplyOpen};
use wire::ids::Ino;
use wire::op::{Lock, LockFamily, RangeAction};

pub(super) fn open_flags(flags: i32) -> client::OpenFlags {
    client::OpenFlags {
        append: flags & libc::O_APPEND != 0,
        // O_DSYNC is a part of O_SYNC.
        sync: flags & libc::O_DSYNC != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

pub(super) async fn open(shared: &Shared, ino: Ino, flags: i32, reply: ReplyOpen) {
    match shared.client.open(ino, open_flags(flags)).await {
        Ok(opened) => {
            let keep = if opened.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
            reply.opened(FileHandle(shared.files.insert(opened.handle)), keep);
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// The kernel counts to the last byte, a lock here to one past it.
pub(super) fn lock(owner: LockOwner, start: u64, end: u64, typ: i32, pid: u32) -> Lock {
    let end = if end >= i64::MAX as u64 { u64::MAX } else { end + 1 };
    Lock { family: LockFamily::Posix, owner: owner.0, pid, start, end, exclusive: typ == libc::F_WRLCK }
}

pub(super) fn answer_lock(reply: ReplyLock, found: Option<Lock>) {
    match found {
        Some(lock) => {
            let end = if lock.end == u64::MAX { i64::MAX as u64 } else { lock.end - 1 };
            let typ = if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
            reply.locked(lock.start, end, typ, lock.pid);
        }
        None => reply.locked(0, 0, libc::F_UNLCK, 0),
    }
}

/// The modes of `fallocate(2)` that are offered.
pub(super) fn range_action(mode: i32) -> Option<RangeAction> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(RangeAction::Allocate { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(RangeAction::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Some(RangeAction::Zero { keep_size }),
        libc::FALLOC_FL_COLLAPSE_RANGE if !keep_size => Some(RangeAction::Collapse),
        libc::FALLOC_FL_INSERT_RANGE if !keep_size => Some(RangeAction::Insert),
        _ => None,
    }
}

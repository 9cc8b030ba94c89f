//! Open files: translates the kernel's requests for the client.

use super::Shared;
use super::locked::LockOwners;
use super::open_file::OpenFile;
use super::reply::{Attr, Open, gone_is_stale};
use crate::handles::last_use;
use crate::payloads::Payload;
use bytes::Bytes;
use client::NewNode;
use client::{Handle, OpenFlags, Taking};
use fuser::{FopenFlags, Request, WriteFlags};
use std::sync::Arc;
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr};
use wire::caller::{self, Caller};
use wire::ids::Ino;
use wire::op::{LockFamily, RangeAction};
use wire::tls::Squash;

/// Set-user-ID and set-group-ID.
const PRIVILEGES: u32 = libc::S_ISUID | libc::S_ISGID;

fn open_flags(flags: i32) -> OpenFlags {
    OpenFlags {
        append: flags & libc::O_APPEND != 0,
        // O_DSYNC is a part of O_SYNC.
        sync: flags & libc::O_DSYNC != 0,
        truncate: flags & libc::O_TRUNC != 0,
    }
}

/// Returns whether a caller may write to a file by its mode. metad judges what is written when it is stored,
/// and the kernel does not know whose rights its users have: without this, programs would hear of it too late.
fn may_write(squash: Squash, caller: &Caller, attr: &InodeAttr) -> bool {
    let (uid, gid) = match squash {
        Squash::All { uid, gid } => (uid, gid),
        Squash::Root { uid, gid } if caller.uid == 0 => (uid, gid),
        // The kernel has checked.
        Squash::None | Squash::Root { .. } => return true,
    };
    let allowed = if gid == attr.gid { attr.mode >> 3 } else { attr.mode };
    // An access list may allow it.
    uid == 0 || uid == attr.uid || attr.has_xattrs || allowed & 2 != 0
}

/// Reports whether the caller's writes clear setuid and setgid. `CAP_FSETID` would decide, but the user id stands for
/// it: looking into `/proc` before each write would cost more than the write.
pub(super) fn is_unprivileged(request: &Request) -> bool {
    request.uid() != 0
}

/// Properties of a write that decide where it goes.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub offset: u64,
    /// It comes from pages that a program has changed through a mapping.
    mapped: bool,
    /// It is for this offset, although the handle was opened with `O_APPEND`.
    exact: bool,
    /// It went past the kernel's pages (`O_DIRECT`).
    direct: bool,
    pub clear: bool,
}

impl Place {
    /// The kernel writes mapped pages back through any handle that can write, and `fcntl(2)` can take `O_APPEND` away.
    pub(super) fn of(file: &OpenFile, request: &Request, offset: u64, written: WriteFlags, flags: i32) -> Self {
        let mapped = written.contains(WriteFlags::FUSE_WRITE_CACHE);
        let exact = file.append && flags & libc::O_APPEND == 0;
        let direct = flags & libc::O_DIRECT != 0;
        Self { offset, mapped, exact, direct, clear: is_unprivileged(request) }
    }
}

impl Shared {
    /// Reads, into the kernel's pages or past them.
    pub(super) async fn read(&self, file: &OpenFile, part: (u64, usize), flags: i32) -> Result<Bytes, FsError> {
        let ((offset, len), handle) = (part, &file.handle);
        if flags & libc::O_DIRECT != 0 {
            self.client.read_direct(handle, offset, len).await
        } else {
            self.client.read(handle, offset, len).await
        }
    }

    /// Writes at once if nothing has to be waited for.
    pub(super) fn try_write(&self, file: &OpenFile, place: Place, data: &[u8]) -> Option<Result<usize, FsError>> {
        if place.mapped {
            return self.client.try_write_mapped(&file.handle, place.offset, data);
        }
        if place.exact || place.direct {
            return None;
        }
        self.client.try_write(&file.handle, place.offset, data, place.clear)
    }

    /// Notes at once that pages have come that a program has changed through a mapping, if that is what is written.
    pub(super) fn begin_taking(&self, file: &OpenFile, place: Place) -> Option<Taking> {
        place.mapped.then(|| self.client.begin_taking(&file.handle))
    }

    /// Writes, waiting for room, and for the disk where `O_SYNC` asks for it.
    ///
    /// The kernel drops the pages below a direct write before it sends that, and once more when it is answered, but not
    /// when the program does not wait for it (`io_submit(2)`, io_uring). A page that a reader has filled in between
    /// with the old content would then stay, so it is dropped here, between the write and its answer.
    pub(super) async fn write(
        &self,
        file: &OpenFile,
        (place, taking): (Place, Option<Taking>),
        payload: Payload,
    ) -> Result<usize, FsError> {
        let (handle, offset) = (&file.handle, place.offset);
        let content = (payload.len(), payload.content());
        if let Some(taking) = taking {
            return self.client.write_mapped_content(taking, offset, content).await;
        }
        let written = if place.exact {
            self.client.write_content_at(handle, offset, content, place.clear).await?
        } else {
            self.client.write_content(handle, offset, content, place.clear).await?
        };
        if place.direct {
            // Appended content lands at the end of the file, which the kernel does not know.
            let (from, len) = if file.append { (0, 0) } else { (offset, written as u64) };
            self.drop_pages_in(handle.ino(), from, len).await;
        }
        Ok(written)
    }

    pub(super) async fn open(&self, ino: Ino, flags: i32, unprivileged: bool) -> Result<Open, FsError> {
        let opened = self.client.open(ino, open_flags(flags)).await.map_err(gone_is_stale)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes && caller::current().is_some_and(|caller| !may_write(self.client.squash(), &caller, &opened.attr)) {
            self.client.release(opened.handle).await;
            return Err(FsError::AccessDenied);
        }
        if flags & libc::O_TRUNC != 0 && unprivileged && opened.attr.mode & PRIVILEGES != 0 {
            // With FUSE_ATOMIC_O_TRUNC, we must do what the kernel does when it truncates by `setattr`.
            let change = AttrChange { clear_privileges: true, ..AttrChange::default() };
            if let Err(error) = self.client.setattr(ino, change).await {
                self.client.release_unopened(opened.handle).await;
                return Err(error);
            }
        }
        let keep = if opened.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        Ok(self.insert(opened.handle, flags, keep))
    }

    pub(super) async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewNode,
        flags: i32,
    ) -> Result<(Attr, Open), FsError> {
        let opened = match self.client.create(parent, name, new, open_flags(flags)).await {
            // Others made the file first. On ESTALE the kernel looks again, and opens it with all its checks.
            Err(FsError::Exists) if flags & libc::O_EXCL == 0 => return Err(FsError::Stale),
            opened => opened?,
        };
        let open = self.insert(opened.handle, flags, FopenFlags::FOPEN_KEEP_CACHE);
        let trust = self.attr_trust(&opened.attr);
        Ok((Attr { attr: self.file_attr(&opened.attr), trust }, open))
    }

    fn insert(&self, handle: Handle, flags: i32, kernel: FopenFlags) -> Open {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes {
            self.inodes.add_writer(handle.ino());
        }
        let file = OpenFile { handle, append: flags & libc::O_APPEND != 0, writes, lock_owners: LockOwners::default() };
        Open { fh: self.files.insert(file), flags: kernel }
    }

    /// Reports whether `close(2)` has nothing to do, and so needs no task.
    pub(super) fn nothing_to_flush(&self, file: &OpenFile, owner: u64) -> bool {
        !file.writes && !self.locked.holds(file.handle.ino(), owner)
    }

    /// Does the work of `close(2)`: commits, and gives up the `fcntl` locks of its process.
    pub(super) async fn flush(&self, file: &OpenFile, owner: u64) -> Result<(), FsError> {
        let flushed = if file.writes { self.client.close(&file.handle).await } else { Ok(()) };
        let unlocked = self.unlock_all(file.handle.ino(), LockFamily::Posix, owner).await;
        // Not earlier: after an interrupted wait, the release does it.
        file.lock_owners.closed_by(owner);
        flushed.and(unlocked)
    }

    /// Gives a handle back, and the locks of its open file description.
    pub(super) async fn release(&self, file: Arc<OpenFile>) -> Result<(), FsError> {
        let file = last_use(file).await;
        let (ino, writes) = (file.handle.ino(), file.writes);
        let unlocked = self.unlock_open_file(&file).await;
        self.client.release(file.handle).await;
        if writes {
            self.inodes.remove_writer(ino);
        }
        unlocked
    }
}

/// Returns where `lseek(2)` looks, and whether it looks for a hole.
pub(super) fn seek(offset: i64, whence: i32) -> Result<(u64, bool), FsError> {
    let hole = match whence {
        libc::SEEK_DATA => false,
        libc::SEEK_HOLE => true,
        _ => return Err(FsError::Invalid),
    };
    // A negative offset is outside of every file.
    u64::try_from(offset).map(|offset| (offset, hole)).map_err(|_| FsError::NoSuchDataOrHole)
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

#[cfg(test)]
mod tests {
    use super::*;
    use wire::attr::{Creator, FileKind, Timestamp};

    #[test]
    fn who_may_write_depends_on_whose_rights_a_caller_has() {
        let attr = |mode, uid, gid| {
            InodeAttr::new(Ino(7), FileKind::Regular, Creator { mode, uid, gid }, Timestamp::default())
        };
        let (root, alice) = (Caller::default(), Caller { uid: 5, gid: 5, groups: Vec::new() });
        let (nobody, all) = (Squash::Root { uid: 9, gid: 9 }, Squash::All { uid: 6, gid: 6 });
        assert!(may_write(Squash::None, &root, &attr(0, 1, 1)), "its kernel has checked");
        assert!(may_write(nobody, &alice, &attr(0, 1, 1)), "likewise");
        assert!(!may_write(nobody, &root, &attr(0o755, 1, 1)) && may_write(nobody, &root, &attr(0o602, 1, 1)));
        for caller in [root, alice] {
            assert!(may_write(all, &caller, &attr(0o400, 6, 1)), "an owner may");
            assert!(may_write(all, &caller, &attr(0o020, 1, 6)) && !may_write(all, &caller, &attr(0o600, 5, 5)));
        }
    }
}

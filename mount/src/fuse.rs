//! FUSE requests to the client's operations and back: translation only.
//!
//! Requests about what is known here, or done under a delegation, are answered in the kernel's event loop that has
//! brought them, as are writes for which there is room. The others become tasks that answer when they are done: on the
//! network's thread when they ask metad, on a worker when they move content.
//!
//! One file per family: `dispatch` starts the work, `attr` has names and attributes, `dir` listings, `file` open files,
//! then `xattr` and `lock`; `reply` alone turns errors into numbers.

mod attr;
mod dir;
mod dispatch;
mod file;
mod lock;
mod locked;
mod open_file;
mod pages;
mod reply;
mod seen;
mod shared;
mod xattr;

pub(crate) use dispatch::{READAHEAD_BYTES, Surf, is_left_to_metad};
pub(crate) use shared::Shared;

use crate::interrupt::Patience;
use attr::{new_node, node_of, rename_mode};
use dir::Asked;
use dispatch::{COPY_BYTES_MAX, SMALL_READ, bytes, configure, span};
use file::{Place, is_unprivileged, range_action};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use lock::Wanted;
use pages::Listing;
use reply::{Answer, errno};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use wire::FsError;
use wire::caller::on_behalf;
use wire::op::NewInode;

impl Filesystem for Surf {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        configure(config, self.shared.client.squash());
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (dir, tid) = (self.ino(parent), request.pid());
        if let Some(known) = self.shared.known_entry(tid, (dir, name.as_encoded_bytes())) {
            return reply.answer(known);
        }
        let (span, name) = (span!("lookup", request, parent), bytes(name));
        self.ask(request, span, reply, |fs| async move { fs.lookup(tid, (dir, &name)).await });
    }

    fn getattr(&self, request: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(known) = self.shared.known_attr(self.ino(number)) {
            return reply.answer(Ok(known));
        }
        let span = span!("getattr", request, number);
        self.ask(request, span, reply, |fs| async move { fs.attr(fs.client.getattr(fs.ino(number))).await });
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
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let (Some(fh), Some(_)) = (fh, size)
            && let Err(error) = self.usable_file(fh)
        {
            return reply.error(errno(error));
        }
        let change = attr::change(request, mode, (uid, gid), size, (atime, mtime));
        let span = span!("setattr", request, number);
        let caller = if fh.is_some() { None } else { self.caller(request) };
        let work = |fs: Arc<Shared>| async move {
            on_behalf(caller, fs.attr(fs.client.setattr(fs.ino(number), change))).await
        };
        // Cutting a file may have to write first.
        if size.is_some() { self.answer(request, span, reply, work) } else { self.ask(request, span, reply, work) }
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        let span = span!("readlink", request, number);
        self.ask(request, span, reply, |fs| async move {
            fs.client.readlink(fs.ino(number)).await.map_err(reply::gone_is_stale)
        });
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
        let Some(node) = node_of(mode, rdev) else { return reply.error(errno(FsError::Invalid)) };
        let new = new_node(request, node, mode, umask);
        self.make(request, span!("mknod", request, parent), reply, (parent, name), new);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let new = new_node(request, NewInode::Directory, mode, umask);
        self.make(request, span!("mkdir", request, parent), reply, (parent, name), new);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = new_node(request, NewInode::Symlink(bytes(target.as_os_str())), 0o777, 0);
        self.make(request, span!("symlink", request, parent), reply, (parent, name), new);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (span, name) = (span!("unlink", request, parent), bytes(name));
        self.ask(request, span, reply, |fs| async move { fs.client.unlink(fs.ino(parent), &name).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (span, name, dir) = (span!("rmdir", request, parent), bytes(name), self.ino(parent));
        let seen = self.shared.seen_to_remove(request.pid(), (dir, &name));
        self.ask(request, span, reply, |fs| async move { fs.client.rmdir(dir, &name, seen).await });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = rename_mode(flags) else { return reply.error(errno(FsError::Invalid)) };
        let (name, new_name) = (bytes(name), bytes(new_name));
        let (dir, new_dir) = (self.ino(parent), self.ino(new_parent));
        let seen = self.shared.seen_to_replace(request.pid(), (new_dir, &new_name), mode);
        self.ask(request, span!("rename", request, parent), reply, |fs| async move {
            fs.client.rename((dir, &name), (new_dir, &new_name), mode, seen).await
        });
    }

    fn link(&self, request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (span, name) = (span!("link", request, number), bytes(name));
        self.ask(request, span, reply, |fs| async move {
            fs.entry((fs.ino(parent), &name), fs.client.link(fs.ino(number), fs.ino(parent), &name)).await
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
        let (span, name) = (span!("create", request, parent), bytes(name));
        self.ask_for_handle(
            request,
            span,
            reply,
            |fs| async move { fs.create(fs.ino(parent), &name, new, flags).await },
        );
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (span, unprivileged) = (span!("open", request, number), is_unprivileged(request));
        self.ask_for_handle(
            request,
            span,
            reply,
            |fs| async move { fs.open(fs.ino(number), flags.0, unprivileged).await },
        );
    }

    fn read(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.usable_file(fh) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let span = span!("read", request, number, fh = fh.0, off = offset, len = size);
        let work = move |fs: Arc<Shared>| async move {
            // The file was opened by somebody who may read it.
            on_behalf(None, fs.read(&file, (offset, size as usize), flags.0)).await
        };
        // Larger answers would keep the network's thread busy with copying.
        if size <= SMALL_READ {
            self.ask(request, span, reply, work);
        } else {
            self.answer(request, span, reply, work);
        }
    }

    fn write(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Writes from mapped pages may have been made while the lock was held: versions judge them.
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let file = match if from_pages { self.file(fh) } else { self.usable_file(fh) } {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let span = span!("write", request, number, fh = fh.0, off = offset, len = data.len());
        let place = Place::of(&file, request, offset, write_flags, flags.0);
        if let Some(written) = span.in_scope(|| self.shared.try_write(&file, place, data)) {
            return reply.answer(written);
        }
        let (taking, payload) = (self.shared.begin_taking(&file, place), self.shared.payloads.take(data));
        self.answer(request, span, reply, |fs| async move { fs.write(&file, (place, taking), payload).await });
    }

    fn flush(&self, request: &Request, number: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let file = match self.file(fh) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        if self.shared.nothing_to_flush(&file, owner.0) {
            file.lock_owners.closed_by(owner.0);
            return reply.ok();
        }
        let span = span!("flush", request, number, fh = fh.0);
        self.answer(request, span, reply, |fs| async move { fs.flush(&file, owner.0).await });
    }

    fn release(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let Some(file) = self.shared.files.remove(fh.0) else { return reply.ok() };
        let span = span!("release", request, number, fh = fh.0);
        if file.writes {
            self.wait(request, Patience::Endless, span, reply, |fs| async move { fs.release(file).await });
        } else {
            self.ask_for_handle(request, span, reply, |fs| async move { fs.release(file).await });
        }
    }

    fn fsync(&self, request: &Request, number: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let file = match self.file(fh) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let span = span!("fsync", request, number, fh = fh.0);
        self.answer(request, span, reply, |fs| async move { fs.client.fsync(&file.handle).await });
    }

    fn opendir(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let listing = Listing { losses_reported: self.shared.client.losses_reported() };
        reply.opened(FileHandle(self.shared.dirs.insert(listing)), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, number: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let (span, fs) = (span!("readdir", request, number, fh = fh.0, off = offset), self.shared.clone());
        let asked = Asked { tid: request.pid(), dir: self.ino(number), fh: fh.0, offset };
        let caller = self.caller(request);
        self.begin(span, async move { on_behalf(caller, fs.list(asked, reply)).await });
    }

    fn readdirplus(&self, request: &Request, number: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let (span, fs) = (span!("readdirplus", request, number, fh = fh.0, off = offset), self.shared.clone());
        let asked = Asked { tid: request.pid(), dir: self.ino(number), fh: fh.0, offset };
        let caller = self.caller(request);
        self.begin(span, async move { on_behalf(caller, fs.list_plus(asked, reply)).await });
    }

    fn releasedir(&self, _request: &Request, _number: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.shared.dirs.remove(fh.0);
        self.shared.pages.forget(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, number: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let Some(listing) = self.shared.dirs.get(fh.0) else { return reply.error(errno(FsError::Invalid)) };
        let span = span!("fsyncdir", request, number, fh = fh.0);
        // I7: what metad has acknowledged is durable.
        self.ask(request, span, reply, |fs| async move { fs.client.fsync_names(&listing.losses_reported).await });
    }

    fn statfs(&self, request: &Request, number: INodeNo, reply: ReplyStatfs) {
        let span = span!("statfs", request, number);
        self.ask(request, span, reply, |fs| async move { fs.statfs().await });
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let caller = xattr::Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() };
        let (name, value, mode) = (bytes(name), value.to_vec(), xattr::mode(flags));
        if let Err(error) = xattr::check_name(&name) {
            return reply.error(errno(error));
        }
        self.ask(request, span!("setxattr", request, number), reply, |fs| async move {
            fs.setxattr(fs.ino(number), &name, &value, mode, caller).await
        });
    }

    fn getxattr(&self, request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let Err(error) = xattr::check_name(name.as_encoded_bytes()) {
            return reply.error(errno(error));
        }
        if self.shared.is_plain(self.ino(number)) {
            return reply.error(errno(FsError::NoAttribute));
        }
        let (span, name) = (span!("getxattr", request, number), bytes(name));
        self.ask(request, span, reply, |fs| async move { fs.getxattr(fs.ino(number), &name, size).await });
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let (span, privileged) = (span!("listxattr", request, number), !is_unprivileged(request));
        self.ask(request, span, reply, |fs| async move { fs.listxattr(fs.ino(number), size, privileged).await });
    }

    fn removexattr(&self, request: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (span, name) = (span!("removexattr", request, number), bytes(name));
        if let Err(error) = xattr::check_name(&name) {
            return reply.error(errno(error));
        }
        self.ask(request, span, reply, |fs| async move {
            fs.client.removexattr(fs.ino(number), &name).await.map_err(reply::gone_is_stale)
        });
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // `default_permissions`: the kernel has checked.
        reply.ok();
    }

    fn getlk(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let wanted = Wanted { owner, start, last: end, typ, pid, tid: request.pid() };
        let span = span!("getlk", request, number, fh = fh.0, off = start);
        self.ask(request, span, reply, |fs| async move { fs.getlk(fs.ino(number), wanted).await });
    }

    fn setlk(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let file = match self.file(fh) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let wanted = Wanted { owner, start, last: end, typ, pid, tid: request.pid() };
        let span = span!("setlk", request, number, fh = fh.0, off = start);
        // A request to give up a lock always runs to its end.
        let waits = sleep && typ != libc::F_UNLCK;
        let patience = if waits { Patience::UntilSignal } else { Patience::UntilEnding };
        self.wait(request, patience, span, reply, |fs| async move { Box::pin(fs.setlk(&file, wanted, sleep)).await });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // The kernel makes ENOTTY of it, the answer of `ioctl(2)` for a file. Programs ask whether it is a terminal.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        number: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let found = self.usable_file(fh).and_then(|file| Ok((file, range_action(mode).ok_or(FsError::NotSupported)?)));
        let (file, action) = match found {
            Ok(found) => found,
            Err(error) => return reply.error(errno(error)),
        };
        let span = span!("fallocate", request, number, fh = fh.0, off = offset, len = length);
        self.answer(request, span, reply, |fs| async move {
            fs.client.fallocate(&file.handle, offset, length, action).await
        });
    }

    fn lseek(&self, request: &Request, number: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let asked = self.file(fh).and_then(|file| file::seek(offset, whence).map(|(at, hole)| (file, at, hole)));
        let (file, at, hole) = match asked {
            Ok(asked) => asked,
            Err(error) => return reply.error(errno(error)),
        };
        let span = span!("lseek", request, number, fh = fh.0, off = offset);
        self.answer(request, span, reply, |fs| async move { fs.client.seek(&file.handle, at, hole).await });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = match (self.usable_file(fh_in), self.usable_file(fh_out)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => return reply.error(errno(error)),
        };
        let span = span!("copy_file_range", request, ino_in, fh = fh_in.0, off = offset_in, len = len);
        self.answer(request, span, reply, |fs| async move {
            let (from, to) = ((&from.handle, offset_in), (&to.handle, offset_out));
            fs.client.copy_range(from, to, len.min(COPY_BYTES_MAX)).await.map(|count| count as usize)
        });
    }
}

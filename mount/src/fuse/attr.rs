//! Attributes and kinds of inodes, as the kernel has them.

use fuser::{FileAttr, FileType, INodeNo};
use wire::attr::{FileKind, InodeAttr};
use wire::op::NewInode;

/// What `stat` tells programs to read and write in: large requests are cheaper than small ones.
const BLOCK_SIZE: u32 = 4096;

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

pub(super) fn file_attr(attr: &InodeAttr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: attr.btime.into(),
        kind: file_type(attr.kind),
        perm: attr.mode as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// What `mknod(2)` is to make; `None` for what it cannot.
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

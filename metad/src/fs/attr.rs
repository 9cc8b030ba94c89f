//! Changes of attributes.

use super::extent::clear_range;
use super::inode::Inode;
use super::view::View;
use super::{Context, acl};
use wire::FsError;
use wire::attr::{AttrChange, Timestamp};
use wire::ids::Ino;
use wire::limits::FILE_BYTES_MAX;
use wire::op::OpReply;

/// `Op::SetAttr`.
pub(super) fn set_attr(view: &mut View, context: &Context, ino: Ino, change: &AttrChange) -> Result<OpReply, FsError> {
    let mut inode = Inode::load(view, ino)?;
    if let Some(size) = change.size {
        inode = Inode::load_file(view, ino)?;
        truncate(view, context, &mut inode, size)?;
    }
    if let Some(mode) = change.mode {
        acl::mode_changed(view, &inode, mode & 0o7777);
    }
    inode.attr.apply(change, context.now);
    inode.save(view);
    Ok(OpReply::Attr(inode.attr))
}

/// `Op::Accessed`. This is no change of the inode in POSIX's sense: `ctime` stays.
pub(super) fn accessed(view: &mut View, context: &Context, ino: Ino, at: Timestamp) {
    let Ok(mut inode) = Inode::load(view, ino) else { return };
    let at = at.min(context.now);
    if inode.attr.is_access_due(at) {
        inode.attr.atime = at;
        inode.save_accessed(view);
    }
}

/// Sets a file's length. POSIX: the times change even when the length does not.
fn truncate(view: &mut View, context: &Context, inode: &mut Inode, size: u64) -> Result<(), FsError> {
    if size > FILE_BYTES_MAX {
        return Err(FsError::TooLarge);
    }
    inode.attr.version = inode.attr.version.next();
    if size < inode.attr.size {
        clear_range(view, context, inode, &(size..u64::MAX))?;
        inode.mark_cut(size, u64::MAX);
    }
    inode.attr.size = size;
    inode.modified(context.now);
    Ok(())
}

//! Extended attributes (`xattr(7)`): stored verbatim, with Linux's limits.

use super::Context;
use super::acl;
use super::inode::Inode;
use super::keys;
use super::numbered;
use super::view::{Kv, KvExt, View};
use wire::FsError;
use wire::attr::S_ISGID;
use wire::ids::Ino;
use wire::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use wire::op::{Name, OpReply, XattrMode};

/// Names of one inode's attributes together, as `listxattr(2)` returns them (`XATTR_LIST_MAX`).
const LIST_BYTES_MAX: usize = 64 << 10;
/// Names and values of one inode's attributes together: they are copied and removed with it at once.
const ALL_BYTES_MAX: usize = 1 << 20;

/// `Op::SetXattr`.
pub(super) fn set(
    view: &mut View,
    context: &Context,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
    clear_sgid: bool,
) -> Result<OpReply, FsError> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(FsError::Range);
    }
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(FsError::ArgumentTooLarge);
    }
    let mut inode = Inode::load(view, ino)?;
    match (mode, view.get(&keys::xattr(ino, name)).is_some()) {
        (XattrMode::Create, true) => return Err(FsError::Exists),
        (XattrMode::Replace, false) => return Err(FsError::NoAttribute),
        (_, there) => {
            let (mut listed, mut all) = (name.len() + 1, name.len() + value.len());
            view.scan(keys::xattrs(ino), &mut |key, value| {
                let other = keys::xattr_name(key);
                if other != name {
                    listed += other.len() + 1;
                    all += other.len() + numbered::undamaged(key, numbered::decode_bytes(value)).len();
                }
                true
            });
            if (!there && listed > LIST_BYTES_MAX) || all > ALL_BYTES_MAX {
                return Err(FsError::NoSpace);
            }
        }
    }
    let is_stored = acl::attribute_set(&mut inode, name, value)?;
    if clear_sgid {
        inode.attr.mode &= !S_ISGID;
    }
    if is_stored {
        numbered::store_bytes(view, keys::xattr(ino, name), value);
    } else {
        view.delete(keys::xattr(ino, name));
    }
    inode.attr.has_xattrs = view.any(keys::xattrs(ino));
    inode.changed(context.now);
    inode.save(view);
    Ok(OpReply::Done)
}

/// `Op::RemoveXattr`.
pub(super) fn remove(view: &mut View, context: &Context, ino: Ino, name: &[u8]) -> Result<OpReply, FsError> {
    let mut inode = Inode::load(view, ino)?;
    let key = keys::xattr(ino, name);
    if view.get(&key).is_none() {
        return Err(FsError::NoAttribute);
    }
    view.delete(key);
    inode.attr.has_xattrs = view.any(keys::xattrs(ino));
    inode.changed(context.now);
    inode.save(view);
    Ok(OpReply::Done)
}

/// Gives an inode those attributes of another one whose names are among these.
pub(super) fn copy(view: &mut View, from: Ino, to: Ino, is_given: &dyn Fn(&[u8]) -> bool) {
    for name in names(view, from).into_iter().filter(|name| is_given(name)) {
        if let Some(value) = numbered::load_bytes(view, &keys::xattr(from, &name)) {
            numbered::store_bytes(view, keys::xattr(to, &name), &value);
        }
    }
}

/// Returns the names of an inode's attributes.
pub(super) fn names(kv: &dyn Kv, ino: Ino) -> Vec<Name> {
    let mut names = Vec::new();
    kv.scan(keys::xattrs(ino), &mut |key, _| {
        names.push(keys::xattr_name(key).to_vec());
        true
    });
    names
}

//! Whose rights the users of a confined client have, and what those rights allow: the rules of POSIX.1-2017 and `acl(5)`,
//! which metad itself applies, whatever the client's kernel does.
//!
//! Differences from a local filesystem, as with NFS: an owner may read and write its file whatever the mode says, because
//! metad does not know which files are open, and the mode may have changed since; whoever may execute a file may read it.

use super::acl::{self, Class};
use super::inode::Inode;
use super::keys;
use super::numbered;
use super::view::Kv;
use wire::attr::{FileKind, S_ISGID, S_ISUID};
use wire::caller::Caller;
use wire::tls::Squash;

/// May read.
pub(super) const R: u32 = 4;
/// May write.
pub(super) const W: u32 = 2;
/// May search or execute.
pub(super) const X: u32 = 1;

const STICKY: u32 = 0o1000;
const S_IXGRP: u32 = 0o010;

/// Whose rights count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// Root: may do everything.
    Root,
    /// A user.
    User(Caller),
    /// Some user other than root: the client does not say which, and could name whichever has the rights.
    Anybody,
}

impl Who {
    /// Returns whose rights a request has. A client does not report for whom it stores what was written, and what it does
    /// with open files.
    pub(super) fn new(squash: Squash, caller: Option<&Caller>) -> Self {
        let user = |caller: Caller| if caller.uid == 0 { Self::Root } else { Self::User(caller) };
        match (squash, caller) {
            (Squash::All { uid, gid }, _) => user(Caller { uid, gid, groups: Vec::new() }),
            (Squash::None, None) => Self::Root,
            (Squash::None, Some(caller)) => user(caller.clone()),
            (Squash::Root { .. }, None) => Self::Anybody,
            (Squash::Root { uid, gid }, Some(caller)) if caller.uid == 0 => {
                user(Caller { uid, gid, groups: Vec::new() })
            }
            (Squash::Root { gid, .. }, Some(caller)) => {
                let other = |id: u32| if id == 0 { gid } else { id };
                let groups = caller.groups.iter().copied().filter(|group| *group != 0).collect();
                Self::User(Caller { uid: caller.uid, gid: other(caller.gid), groups })
            }
        }
    }

    pub(super) fn is_root(&self) -> bool {
        *self == Self::Root
    }

    /// Returns whether it owns an inode.
    pub(super) fn owns(&self, inode: &Inode) -> bool {
        match self {
            Self::Root => true,
            Self::User(user) => user.uid == inode.attr.uid,
            Self::Anybody => inode.attr.uid != 0,
        }
    }

    /// Returns whether it is in a group.
    pub(super) fn is_in(&self, gid: u32) -> bool {
        match self {
            Self::Root => true,
            Self::User(user) => user.gid == gid || user.groups.contains(&gid),
            Self::Anybody => gid != 0,
        }
    }

    /// Returns whether the mode and the access list of an inode allow all of this.
    pub(super) fn may(&self, kv: &dyn Kv, inode: &Inode, wanted: u32) -> bool {
        self.may_by_list(kv, inode, wanted).0
    }

    /// As [`Who::may`]. Also returns the bytes of the access list that was read for it.
    pub(super) fn may_by_list(&self, kv: &dyn Kv, inode: &Inode, wanted: u32) -> (bool, usize) {
        if self.is_root() {
            return (true, 0);
        }
        let (classes, list_bytes) = self.classes_of(kv, inode);
        (self.may_by_classes(&classes, inode, wanted), list_bytes)
    }

    fn may_by_classes(&self, classes: &[(Class, u32)], inode: &Inode, wanted: u32) -> bool {
        let gid = inode.attr.gid;
        let granted = |(class, rights): &(Class, u32)| {
            let belongs = match class {
                Class::Owner => self.owns(inode),
                Class::User(id) => match self {
                    Self::User(user) => user.uid == *id,
                    _ => *id != 0,
                },
                Class::OwnerGroup => self.is_in(gid),
                Class::Group(id) => self.is_in(*id),
                Class::Other => true,
            };
            (belongs, rights & wanted == wanted)
        };
        if *self == Self::Anybody {
            // It could name whoever belongs to the class that has the rights.
            let could = |class: &(Class, u32)| granted(class) == (true, true);
            return classes.iter().any(could);
        }
        // acl(5): the first class that fits decides. Of the groups, one that grants is enough, and if there is any, the others
        // have no say.
        let (mut in_group, mut by_group) = (false, false);
        for class in classes {
            let (belongs, allows) = granted(class);
            match class.0 {
                Class::Owner | Class::User(_) if belongs => return allows,
                Class::OwnerGroup | Class::Group(_) => {
                    in_group |= belongs;
                    by_group |= belongs && allows;
                }
                Class::Other => return if in_group { by_group } else { allows },
                Class::Owner | Class::User(_) => {}
            }
        }
        false
    }

    /// Returns the rights of each class, and the bytes of the list that has them.
    fn classes_of(&self, kv: &dyn Kv, inode: &Inode) -> (Vec<(Class, u32)>, usize) {
        let key = inode.attr.has_xattrs.then(|| keys::xattr(inode.attr.ino, acl::ACCESS));
        let list = key.and_then(|key| numbered::load_bytes(kv, &key)).unwrap_or_default();
        let mode = inode.attr.mode;
        let by_mode =
            || vec![(Class::Owner, mode >> 6 & 7), (Class::OwnerGroup, mode >> 3 & 7), (Class::Other, mode & 7)];
        (acl::classes(&list).unwrap_or_else(by_mode), list.len())
    }

    /// Returns whether it may read content.
    pub(super) fn may_read(&self, kv: &dyn Kv, inode: &Inode) -> bool {
        let executes = inode.attr.kind == FileKind::Regular && self.may(kv, inode, X);
        self.owns(inode) || executes || self.may(kv, inode, R)
    }

    /// Returns whether it may write content.
    pub(super) fn may_write(&self, kv: &dyn Kv, inode: &Inode) -> bool {
        self.owns(inode) || self.may(kv, inode, W)
    }

    /// Returns whether the sticky bit of a directory keeps it from removing an entry.
    pub(super) fn is_kept_by_sticky(&self, dir: &Inode, target: &Inode) -> bool {
        dir.attr.mode & STICKY != 0 && !self.owns(dir) && !self.owns(target)
    }

    /// Returns whether it may make another link to an inode: it is its own, or a file without privileges that it reads and
    /// writes (`protected_hardlinks` in `proc_sys_fs(5)`).
    pub(super) fn may_link(&self, kv: &dyn Kv, inode: &Inode) -> bool {
        let mode = inode.attr.mode;
        let has_privileges = mode & S_ISUID != 0 || mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP;
        self.owns(inode) || inode.attr.kind == FileKind::Regular && !has_privileges && self.may(kv, inode, R | W)
    }

    /// Returns whether it may set or remove attributes of users on an inode (`xattr(7)`).
    pub(super) fn may_set_user_attributes(&self, kv: &dyn Kv, inode: &Inode) -> bool {
        let has_some = matches!(inode.attr.kind, FileKind::Regular | FileKind::Directory);
        let is_shared = inode.attr.kind == FileKind::Directory && inode.attr.mode & STICKY != 0;
        has_some && (!is_shared || self.owns(inode)) && self.may_write(kv, inode)
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::*;
    use wire::attr::{Creator, InodeAttr, Timestamp};
    use wire::ids::Ino;

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Who {
        Who::User(Caller { uid, gid, groups: groups.to_vec() })
    }

    fn file(mode: u32, uid: u32, gid: u32) -> Inode {
        let attr = InodeAttr::new(Ino(7), FileKind::Regular, Creator { mode, uid, gid }, Timestamp::default());
        Inode::new(attr, Ino::ROOT, b"f".to_vec())
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let kv = MemoryKv::default();
        let may = |who: &Who, mode, wanted| who.may(&kv, &file(mode, 5, 6), wanted);
        assert!(may(&user(5, 1, &[]), 0o400, R) && !may(&user(5, 6, &[]), 0o070, R));
        assert!(may(&user(1, 6, &[]), 0o040, R) && may(&user(1, 1, &[6]), 0o040, R));
        assert!(!may(&user(1, 6, &[]), 0o004, R) && may(&user(1, 1, &[]), 0o004, R));
        assert!(!may(&user(5, 6, &[]), 0o500, R | W) && may(&Who::Root, 0, R | W | X));
    }

    #[test]
    fn an_access_list_is_believed_as_the_kernel_does() {
        let (mut kv, mut inode) = (MemoryKv::default(), file(0o670, 5, 6));
        inode.attr.has_xattrs = true;
        // u::rw-, u:8:rwx, g::r--, g:9:-w-, m::rw-, o::---
        let entries: [(u16, u16, u32); 6] = [(1, 6, 0), (2, 7, 8), (4, 4, 0), (8, 2, 9), (0x10, 6, 0), (0x20, 0, 0)];
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            list.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
            list.extend(id.to_le_bytes());
        }
        let stored = numbered::encode_bytes(wire::ids::SnapshotNumber(0), &list);
        kv.0.insert(keys::xattr(Ino(7), acl::ACCESS), stored);
        let may = |who: &Who, wanted| who.may(&kv, &inode, wanted);
        assert!(may(&user(8, 1, &[]), R | W) && !may(&user(8, 1, &[]), X), "the mask counts");
        assert!(may(&user(1, 9, &[]), W) && !may(&user(1, 9, &[]), R));
        assert!(may(&user(1, 6, &[9]), R) && may(&user(1, 6, &[9]), W) && !may(&user(1, 6, &[9]), R | W));
        assert!(!may(&user(1, 1, &[]), R));
    }

    #[test]
    fn only_the_owner_links_what_others_could_not_use() {
        let kv = MemoryKv::default();
        let may = |who: &Who, mode| who.may_link(&kv, &file(mode, 5, 6));
        let (owner, other) = (user(5, 1, &[]), user(7, 7, &[]));
        assert!(may(&owner, 0) && may(&owner, 0o4755) && may(&Who::Root, 0));
        assert!(may(&other, 0o666) && may(&other, 0o2606));
        for mode in [0o644, 0o662, 0o4666, 0o2676] {
            assert!(!may(&other, mode), "{mode:o}");
        }
    }

    #[test]
    fn a_client_that_names_nobody_has_the_rights_of_whoever_it_could_name() {
        let kv = MemoryKv::default();
        let may = |inode: Inode, wanted| Who::Anybody.may(&kv, &inode, wanted);
        assert!(may(file(0o600, 5, 0), R) && may(file(0o060, 0, 6), R) && may(file(0o006, 0, 0), R));
        assert!(!may(file(0o770, 0, 0), R), "of root alone");
        assert!(!Who::Anybody.owns(&file(0, 0, 9)) && Who::Anybody.owns(&file(0, 9, 0)));
    }

    #[test]
    fn ids_are_replaced_as_the_certificate_says() {
        let root = Caller { uid: 0, gid: 0, groups: vec![0, 4] };
        let alice = Caller { uid: 5, gid: 0, groups: vec![0, 4] };
        let nobody = Squash::Root { uid: 65_534, gid: 65_534 };
        assert_eq!(Who::new(nobody, Some(&root)), user(65_534, 65_534, &[]));
        assert_eq!(Who::new(nobody, Some(&alice)), user(5, 65_534, &[4]));
        assert_eq!(Who::new(nobody, None), Who::Anybody);
        for caller in [Some(&root), Some(&alice), None] {
            assert_eq!(Who::new(Squash::All { uid: 7, gid: 8 }, caller), user(7, 8, &[]));
        }
        assert_eq!(Who::new(Squash::None, Some(&root)), Who::Root);
        assert_eq!(Who::new(Squash::None, Some(&alice)), Who::User(alice));
        assert_eq!(Who::new(Squash::None, None), Who::Root);
    }
}

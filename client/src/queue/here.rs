//! The result of an operation under a delegation, from what is known: an entry, and pins. Each function checks what
//! metad would check. If that is not known, or metad would refuse the operation, the result is `None`, and the
//! operation is left to metad. Pure.
//!
//! The caller has made sure that this session alone may change the inodes in question.

use crate::known::state::State;
use crate::known::{NameState, Now, Pinned};
use wire::attr::{AttrChange, Creator, FileKind, InodeAttr, Timestamp};
use wire::ids::{Ino, Version};
use wire::limits::{LINKS_MAX, SYMLINK_BYTES_MAX};
use wire::op::{Expect, NewInode, Op, RenameMode, check_name};

/// A directory, and a name in it.
type At<'a> = (Ino, &'a [u8]);

/// An inode to be made, with its owner.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Its kind.
    pub node: NewInode,
    /// Permission bits before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// An operation that is to be queued.
pub(crate) struct Decided {
    pub(crate) op: Op,
    /// The names as they were before it.
    pub(crate) expect: Vec<Expect>,
    pub(crate) pinned: Pinned,
}

/// The input of a decision: what is known, and the time, by this machine and by the leader.
pub(crate) struct Here<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) now: Now,
    pub(crate) at: Timestamp,
}

/// An inode that is about to lose a name. It is not open here, and is not opened meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Doomed {
    pub(crate) ino: Ino,
    /// The newest content that an open file here knows of, which its attributes may not show yet; `None` if none is
    /// open.
    pub(crate) newest: Option<Option<Version>>,
}

fn expect(parent: Ino, name: &[u8], ino: Option<Ino>) -> Expect {
    Expect { parent, name: name.to_vec(), ino, version: None }
}

/// Returns whether a node like this can be made here at all.
pub(crate) fn may_make(name: &[u8], new: &NewNode) -> bool {
    let target_bytes = if let NewInode::Symlink(target) = &new.node { Some(target.len()) } else { None };
    let fits = target_bytes.is_none_or(|bytes| (1..=SYMLINK_BYTES_MAX).contains(&bytes));
    fits && new.node.kind().is_ok() && check_name(name).is_ok()
}

impl Here<'_> {
    fn attr(&mut self, ino: Ino) -> Option<InodeAttr> {
        self.state.attr(ino, self.now)
    }

    fn leads_to(&mut self, parent: Ino, name: &[u8]) -> NameState {
        self.state.name_state(parent, name, self.now)
    }

    /// Makes an inode of this number, if [`may_make`] allows it.
    pub(crate) fn make(
        mut self,
        (parent, name): (Ino, &[u8]),
        ino: Ino,
        new: &NewNode,
    ) -> Option<(Decided, InodeAttr)> {
        let kind = new.node.kind().ok()?;
        // A default ACL would be inherited.
        let mut dir = self.attr(parent).filter(|dir| !dir.has_xattrs && dir.kind == FileKind::Directory)?;
        let full = kind == FileKind::Directory && dir.nlink >= LINKS_MAX;
        if full || dir.nlink == 0 || self.leads_to(parent, name) != NameState::Absent {
            return None;
        }
        let mode = if kind == FileKind::Symlink { new.mode } else { new.mode & !(new.umask & 0o777) };
        let creator = Creator { mode, uid: new.uid, gid: new.gid };
        let mut made = InodeAttr::new_in(&dir, ino, kind, new.node.rdev(), creator, self.at);
        made.size = if let NewInode::Symlink(target) = &new.node { target.len() as u64 } else { 0 };
        dir.gained(kind, self.at);
        let NewNode { node, mode, umask, uid, gid } = new.clone();
        let op = Op::Create { parent, name: name.to_vec(), ino, node, mode, umask, uid, gid };
        let names = vec![(parent, name.to_vec(), Some(ino))];
        let pinned = Pinned { attrs: vec![dir, made.clone()], made: Some(ino), names };
        Some((Decided { op, expect: Vec::new(), pinned }, made))
    }

    /// Returns what a name leads to, if it may be removed here: not a directory, and without other names that others
    /// may know of.
    pub(crate) fn removable(&mut self, parent: Ino, name: &[u8]) -> Option<InodeAttr> {
        let NameState::Leads(ino) = self.leads_to(parent, name) else { return None };
        let attr = self.attr(ino)?;
        let ours = attr.nlink == 1 || self.state.is_delegated(ino, self.now);
        (attr.kind != FileKind::Directory && attr.nlink > 0 && ours).then_some(attr)
    }

    /// Removes a name of a doomed inode. Returns its attributes after that, and what is expected of the name.
    fn lose_name(&mut self, (parent, name): (Ino, &[u8]), doomed: Doomed) -> Option<(InodeAttr, Expect)> {
        let mut attr = self.removable(parent, name).filter(|attr| attr.ino == doomed.ino)?;
        // The removal must not destroy any content other than what is known.
        let version = match doomed.newest {
            _ if attr.nlink > 1 => None,
            Some(newest) => newest.map(|newest| newest.max(attr.version)),
            None => Some(attr.version),
        };
        attr.nlink -= 1;
        attr.changed(self.at);
        Some((attr, Expect { version, ..expect(parent, name, Some(doomed.ino)) }))
    }

    /// Removes a name.
    pub(crate) fn unlink(mut self, (parent, name): (Ino, &[u8]), doomed: Doomed) -> Option<Decided> {
        let mut dir = self.attr(parent).filter(|dir| dir.size > 0)?;
        let (attr, expected) = self.lose_name((parent, name), doomed)?;
        dir.lost(attr.kind, self.at);
        let released = (attr.nlink == 0).then_some(attr.ino);
        let op = Op::Unlink { parent, name: name.to_vec(), released };
        let pinned = Pinned { attrs: vec![dir, attr], made: None, names: vec![(parent, name.to_vec(), None)] };
        Some(Decided { op, expect: vec![expected], pinned })
    }

    /// Removes an empty directory. Returns also its attributes after that.
    pub(crate) fn rmdir(mut self, (parent, name): (Ino, &[u8]), ino: Ino) -> Option<(Decided, InodeAttr)> {
        if self.leads_to(parent, name) != NameState::Leads(ino) {
            return None;
        }
        let mut dir = self.attr(parent)?;
        let mut attr = self.attr(ino).filter(|attr| attr.kind == FileKind::Directory && attr.size == 0)?;
        dir.lost(FileKind::Directory, self.at);
        attr.nlink = 0;
        attr.changed(self.at);
        let op = Op::Rmdir { parent, name: name.to_vec(), seen: None };
        let expect = vec![expect(parent, name, Some(ino))];
        let pinned = Pinned { attrs: vec![dir, attr.clone()], made: None, names: vec![(parent, name.to_vec(), None)] };
        Some((Decided { op, expect, pinned }, attr))
    }

    /// Returns what a rename would replace: `Some(None)` if nothing is there, `None` if that must be left to metad.
    pub(crate) fn replaced(&mut self, source: Ino, to: (Ino, &[u8]), mode: RenameMode) -> Option<Option<Ino>> {
        match self.leads_to(to.0, to.1) {
            NameState::Absent => Some(None),
            NameState::Leads(target) if mode == RenameMode::Replace && target != source => {
                self.removable(to.0, to.1).map(|attr| Some(attr.ino))
            }
            NameState::Leads(_) | NameState::Unknown => None,
        }
    }

    /// Moves the name of a file, or of a directory within its parent. Only metad knows whether a directory would get
    /// into itself.
    pub(crate) fn rename(
        mut self,
        (from, to): (At<'_>, At<'_>),
        mode: RenameMode,
        source: Ino,
        doomed: Option<Doomed>,
    ) -> Option<Decided> {
        let ((parent, name), (new_parent, new_name)) = (from, to);
        if self.leads_to(parent, name) != NameState::Leads(source) {
            return None;
        }
        let mut moved = self.attr(source)?;
        let is_dir = moved.kind == FileKind::Directory;
        let ours = self.state.is_delegated(source, self.now) || (moved.nlink == 1 && !is_dir);
        if !ours || (is_dir && (parent != new_parent || doomed.is_some())) {
            return None;
        }
        if self.replaced(source, to, mode)? != doomed.map(|doomed| doomed.ino) {
            return None;
        }
        let mut attrs = Vec::with_capacity(4);
        let mut new_dir = self.attr(new_parent)?;
        let (mut released, mut at_target) = (None, expect(new_parent, new_name, None));
        if let Some(doomed) = doomed {
            let (replaced, expected) = self.lose_name(to, doomed)?;
            new_dir.lost(replaced.kind, self.at);
            released = (replaced.nlink == 0).then_some(doomed.ino);
            at_target = expected;
            attrs.push(replaced);
        }
        moved.changed(self.at);
        if parent == new_parent {
            new_dir.modified(self.at);
        } else {
            let mut dir = self.attr(parent)?;
            dir.lost(moved.kind, self.at);
            attrs.push(dir);
            new_dir.gained(moved.kind, self.at);
        }
        attrs.extend([new_dir, moved]);
        let op = Op::Rename {
            parent,
            name: name.to_vec(),
            new_parent,
            new_name: new_name.to_vec(),
            mode,
            released,
            seen: None,
        };
        let expect = vec![expect(parent, name, Some(source)), at_target];
        let names = vec![(parent, name.to_vec(), None), (new_parent, new_name.to_vec(), Some(source))];
        Some(Decided { op, expect, pinned: Pinned { attrs, made: None, names } })
    }

    /// Changes attributes other than the length. Returns also the attributes after that.
    pub(crate) fn set_attr(mut self, ino: Ino, change: &AttrChange) -> Option<(Decided, InodeAttr)> {
        // An access list would have to follow the mode.
        let mut attr = self.attr(ino).filter(|attr| !attr.has_xattrs && attr.nlink > 0)?;
        attr.apply(change, self.at);
        let op = Op::SetAttr { ino, change: change.clone() };
        let pinned = Pinned { attrs: vec![attr.clone()], ..Pinned::default() };
        Some((Decided { op, expect: Vec::new(), pinned }, attr))
    }
}

#[cfg(test)]
#[path = "here_tests.rs"]
mod tests;

//! What is done here under delegations: whose inodes these are, and what is pinned until metad knows of it.

use super::{Known, Mark, NameState, Pinned};
use std::collections::HashSet;
use wire::attr::{FileKind, InodeAttr};
use wire::ids::Ino;
use wire::op::Name;

/// What an operation under a delegation makes of attributes and names.
#[derive(Default)]
pub struct Local {
    /// Attributes as they are from now on.
    pub attrs: Vec<InodeAttr>,
    /// The inode that is made.
    pub made: Option<Ino>,
    /// Names, and where they lead from now on.
    pub names: Vec<(Ino, Name, Option<Ino>)>,
}

/// What is done under delegations.
impl Known {
    /// Whether this session alone may change all of these inodes, and nobody else knows anything of them.
    pub fn is_delegated(&self, inos: &[Ino]) -> bool {
        let inner = self.inner.lock();
        inos.iter().all(|ino| inner.is_delegated(*ino))
    }

    /// Delegations came with an answer that was asked for after `mark`.
    pub fn delegated(&self, inos: &[Ino], mark: Mark) {
        self.inner.lock().note_delegated(inos, mark);
    }

    /// Delegations on these inodes end; what is known stays right.
    pub fn share(&self, inos: &[Ino]) {
        let mut inner = self.inner.lock();
        let at = inner.tick();
        for ino in inos {
            inner.no_longer_ours(*ino);
            if let Some((_, forgotten)) = inner.shared.push(*ino, at).filter(|(old, _)| old != ino) {
                inner.floor = inner.floor.max(forgotten);
            }
        }
    }

    /// Where a name leads, as far as is known now.
    pub fn name_state(&self, parent: Ino, name: &[u8]) -> NameState {
        self.inner.lock().name_state(parent, name)
    }

    /// Whether metad does not know the inode yet.
    pub fn is_made_here(&self, ino: Ino) -> bool {
        self.inner.lock().is_made_here(ino)
    }

    /// Whether names in this directory are not told yet.
    pub fn has_pinned_names(&self, dir: Ino) -> bool {
        self.inner.lock().pinned_in.contains_key(&dir)
    }

    /// Something is done here that metad is told later, by the entry of this number.
    pub fn pin(&self, number: u64, local: Local) {
        let mut inner = self.inner.lock();
        let at = inner.tick();
        for attr in local.attrs {
            let made = (local.made == Some(attr.ino)).then_some(number);
            let pinned = inner.pinned_attrs.entry(attr.ino);
            let pinned = pinned.or_insert(Pinned { attr: attr.clone(), last: number, made });
            (pinned.attr, pinned.last) = (attr, number);
        }
        if let Some(ino) = local.made.filter(|ino| inner.pinned_attrs[ino].attr.kind == FileKind::Directory) {
            inner.complete.put(ino, HashSet::new());
        }
        for (parent, name, ino) in local.names {
            inner.complete_with(parent, &name, ino.is_some());
            // Pages of the listing are old.
            if let Some((_, forgotten)) = inner.changed.push(parent, at).filter(|(old, _)| *old != parent) {
                inner.floor = inner.floor.max(forgotten);
            }
            let key = (parent, name);
            if inner.pinned_names.insert(key, (ino, number)).is_none() {
                *inner.pinned_in.entry(parent).or_insert(0) += 1;
            }
        }
    }

    /// metad knows what the entry of this number did. Its answer has been taken in.
    pub fn unpin(&self, number: u64, inos: &[Ino], names: &[(Ino, Name)]) {
        let mut inner = self.inner.lock();
        for ino in inos {
            let Some(pinned) = inner.pinned_attrs.get_mut(ino) else { continue };
            if pinned.made == Some(number) {
                pinned.made = None;
            }
            if pinned.last <= number
                && let Some(pinned) = inner.pinned_attrs.remove(ino)
                && pinned.attr.nlink > 0
                && inner.is_delegated(*ino)
                && !inner.attrs.contains(ino)
            {
                // metad's own answer was overtaken by something later, which is told now, too.
                inner.attrs.put(*ino, pinned.attr);
            }
        }
        for key in names {
            if let Some((ino, _)) = inner.pinned_names.get(key).copied().filter(|(_, last)| *last <= number) {
                inner.unpin_name(key);
                if inner.is_delegated(key.0) {
                    let since = Mark(inner.clock);
                    inner.names.put(key.clone(), (ino, since));
                }
            }
        }
    }

    /// What the entry of this number did is undone, or metad has refused it: metad knows how it is.
    pub fn undo(&self, number: u64, inos: &[Ino], names: &[(Ino, Name)]) {
        let mut inner = self.inner.lock();
        let at = inner.tick();
        for ino in inos {
            let Some(pinned) = inner.pinned_attrs.get_mut(ino) else { continue };
            if pinned.made == Some(number) {
                pinned.made = None;
            }
            if pinned.last <= number && pinned.made.is_none() {
                inner.pinned_attrs.remove(ino);
                inner.note_change(*ino, at);
            }
        }
        for key in names {
            if inner.pinned_names.get(key).is_some_and(|(_, last)| *last <= number) {
                inner.unpin_name(key);
                inner.names.pop(key);
            }
            inner.complete.pop(&key.0);
        }
    }

    /// What a commit has made of an inode whose attributes something later still changes.
    pub fn repin(&self, committed: &InodeAttr) {
        let mut inner = self.inner.lock();
        if let Some(pinned) = inner.pinned_attrs.get_mut(&committed.ino) {
            (pinned.attr.version, pinned.attr.size) = (committed.version, committed.size);
            pinned.attr.allocated = committed.allocated;
        }
    }
}

//! Pins: attributes and names after operations under delegations that metad does not know yet. Pure.
//!
//! A pin overrides anything that metad says, whether leases hold or not, and is never forgotten before metad has
//! acknowledged or refused the operation.

use super::count_down;
use super::names::Place;
use std::collections::HashMap;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::Name;

/// What an operation under a delegation does to attributes and names.
#[derive(Default, Clone, Debug)]
pub struct Pinned {
    /// Attributes as they are from now on.
    pub attrs: Vec<InodeAttr>,
    /// The inode that is made.
    pub made: Option<Ino>,
    /// Names, and where they lead from now on.
    pub names: Vec<(Ino, Name, Option<Ino>)>,
}

/// Pinned attributes of an inode.
struct PinnedAttr {
    attr: InodeAttr,
    /// The last entry that changes them.
    last: u64,
    /// The entry that makes the inode: before it, metad does not know the inode.
    made: Option<u64>,
    /// Another session has asked about it, or about the directory in which it is made.
    asked_about: bool,
}

/// All pins.
#[derive(Default)]
pub struct Pins {
    attrs: HashMap<Ino, PinnedAttr>,
    /// Where names lead, and the number of the last entry that changes each.
    names: HashMap<Place, (Option<Ino>, u64)>,
    /// How many names are pinned in a directory.
    in_dir: HashMap<Ino, usize>,
}

impl Pins {
    /// Returns the pinned attributes of an inode.
    pub fn attr(&self, ino: Ino) -> Option<&InodeAttr> {
        self.attrs.get(&ino).map(|pinned| &pinned.attr)
    }

    /// Returns where a name leads, if that is pinned.
    pub fn name(&self, place: &Place) -> Option<Option<Ino>> {
        self.names.get(place).map(|(ino, _)| *ino)
    }

    /// Returns whether the inode was made here and metad does not know it yet.
    pub fn is_made_here(&self, ino: Ino) -> bool {
        self.attrs.get(&ino).is_some_and(|pinned| pinned.made.is_some())
    }

    /// Returns whether the inode was made here and no other session has asked about it.
    pub fn is_ours_alone(&self, ino: Ino) -> bool {
        self.attrs.get(&ino).is_some_and(|pinned| pinned.made.is_some() && !pinned.asked_about)
    }

    /// Returns whether names in this directory are pinned.
    pub fn has_names_in(&self, dir: Ino) -> bool {
        self.in_dir.contains_key(&dir)
    }

    /// Notes that another session asks about an inode, or about the directory in which it is made and which metad may
    /// not know yet: nothing more may be done to it here.
    pub fn note_asked_about(&mut self, ino: Ino) {
        if let Some(pinned) = self.attrs.get_mut(&ino) {
            pinned.asked_about = true;
        }
    }

    /// Pins attributes by the entry of this number, which makes the inode if `made`.
    pub fn pin_attr(&mut self, attr: InodeAttr, number: u64, made: bool) {
        let made = made.then_some(number);
        let pinned = self.attrs.entry(attr.ino).or_insert(PinnedAttr {
            attr: attr.clone(),
            last: number,
            made,
            asked_about: false,
        });
        (pinned.attr, pinned.last) = (attr, number);
    }

    /// Pins where a name leads.
    pub fn pin_name(&mut self, place: Place, ino: Option<Ino>, number: u64) {
        let parent = place.0;
        if self.names.insert(place, (ino, number)).is_none() {
            *self.in_dir.entry(parent).or_insert(0) += 1;
        }
    }

    /// Unpins an acknowledged entry. Returns the attributes if no other entry pins them.
    pub fn unpin_attr(&mut self, ino: Ino, number: u64) -> Option<InodeAttr> {
        self.note_made(ino, number);
        let is_last = self.attrs.get(&ino).is_some_and(|pinned| pinned.last <= number);
        if is_last { self.attrs.remove(&ino).map(|pinned| pinned.attr) } else { None }
    }

    /// Unpins an undone entry. True when no other entry pins the attributes.
    pub fn undo_attr(&mut self, ino: Ino, number: u64) -> bool {
        self.note_made(ino, number);
        let gone = self.attrs.get(&ino).is_some_and(|pinned| pinned.last <= number && pinned.made.is_none());
        gone && self.attrs.remove(&ino).is_some()
    }

    fn note_made(&mut self, ino: Ino, number: u64) {
        if let Some(pinned) = self.attrs.get_mut(&ino).filter(|pinned| pinned.made == Some(number)) {
            pinned.made = None;
        }
    }

    /// Unpins an entry that is acknowledged or undone. Returns where the name led if no other entry pins it.
    pub fn unpin_name(&mut self, place: &Place, number: u64) -> Option<Option<Ino>> {
        let (ino, _) = self.names.get(place).copied().filter(|(_, last)| *last <= number)?;
        self.names.remove(place);
        count_down(&mut self.in_dir, place.0);
        Some(ino)
    }

    /// Updates pinned attributes after a commit, where a later entry still pins them.
    pub fn follow_commit(&mut self, committed: &InodeAttr) {
        if let Some(pinned) = self.attrs.get_mut(&committed.ino) {
            (pinned.attr.version, pinned.attr.size) = (committed.version, committed.size);
            pinned.attr.allocated = committed.allocated;
        }
    }
}

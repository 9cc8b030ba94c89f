//! Pins: attributes and names by what was done here under delegations and metad does not know yet. Pure.
//!
//! A pin goes before anything that metad says, whether leases hold or not, and is never forgotten before metad knows what
//! made it.

use super::count_down;
use super::names::Place;
use std::collections::HashMap;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::Name;

/// What an operation under a delegation makes of attributes and names.
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
    /// The entry that makes the inode: metad does not know it before.
    made: Option<u64>,
    /// Somebody else has asked about it, or about the directory in which it is made.
    asked_about: bool,
}

/// Everything that is pinned.
#[derive(Default)]
pub struct Pins {
    attrs: HashMap<Ino, PinnedAttr>,
    /// Where names lead, and the number of the last entry that says so.
    names: HashMap<Place, (Option<Ino>, u64)>,
    /// Pinned names by directory.
    in_dir: HashMap<Ino, usize>,
}

impl Pins {
    /// Attributes of an inode.
    pub fn attr(&self, ino: Ino) -> Option<&InodeAttr> {
        self.attrs.get(&ino).map(|pinned| &pinned.attr)
    }

    /// Where a name leads, if that is pinned.
    pub fn name(&self, place: &Place) -> Option<Option<Ino>> {
        self.names.get(place).map(|(ino, _)| *ino)
    }

    /// Whether metad does not know the inode yet.
    pub fn is_made_here(&self, ino: Ino) -> bool {
        self.attrs.get(&ino).is_some_and(|pinned| pinned.made.is_some())
    }

    /// Whether the same is so, and nobody else waits for it either.
    pub fn is_ours_alone(&self, ino: Ino) -> bool {
        self.attrs.get(&ino).is_some_and(|pinned| pinned.made.is_some() && !pinned.asked_about)
    }

    /// Whether names in this directory are pinned.
    pub fn has_names_in(&self, dir: Ino) -> bool {
        self.in_dir.contains_key(&dir)
    }

    /// Somebody else asks about an inode, or about the directory in which it is made and which metad may not know yet: nothing
    /// more may be done to it here.
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

    /// metad knows what the entry of this number did. Returns the attributes if nothing pins them any more.
    pub fn unpin_attr(&mut self, ino: Ino, number: u64) -> Option<InodeAttr> {
        self.note_made(ino, number);
        let is_last = self.attrs.get(&ino).is_some_and(|pinned| pinned.last <= number);
        if is_last { self.attrs.remove(&ino).map(|pinned| pinned.attr) } else { None }
    }

    /// The entry of this number is undone. True when attributes are not pinned any more.
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

    /// metad knows what the entry of this number did, or it is undone. Returns where the name led if nothing pins it any
    /// more.
    pub fn unpin_name(&mut self, place: &Place, number: u64) -> Option<Option<Ino>> {
        let (ino, _) = self.names.get(place).copied().filter(|(_, last)| *last <= number)?;
        self.names.remove(place);
        count_down(&mut self.in_dir, place.0);
        Some(ino)
    }

    /// What a commit has made of an inode whose attributes something later still changes.
    pub fn follow_commit(&mut self, committed: &InodeAttr) {
        if let Some(pinned) = self.attrs.get_mut(&committed.ino) {
            (pinned.attr.version, pinned.attr.size) = (committed.version, committed.size);
            pinned.attr.allocated = committed.allocated;
        }
    }
}

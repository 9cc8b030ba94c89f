//! The directory itself: the state after each operation.

use super::Op;
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Inode {
    /// The number that programs see, once a program has seen it.
    pub(super) ino: Option<u64>,
    /// Calls that hold it.
    pub(super) held: u16,
    pub(super) links: u16,
    pub(super) mode: u16,
    pub(super) kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kind {
    Dir(BTreeMap<char, u32>),
    File(u32),
}

/// A name that leads elsewhere now, and the inode that it led to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Going {
    mount: u32,
    dir: u32,
    name: char,
    inode: u32,
}

/// All inodes, by the number of the operation that has made them; 0 is the top.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tree {
    pub(super) inodes: BTreeMap<u32, Inode>,
    /// Names that are going, by the number of the operation that has not returned.
    pub(super) going: BTreeMap<u32, Vec<Going>>,
}

pub(super) const TOP: u32 = 0;
impl Default for Tree {
    fn default() -> Self {
        let top = Inode { ino: None, held: 0, links: 1, mode: 0, kind: Kind::Dir(BTreeMap::new()) };
        Self { inodes: [(TOP, top)].into(), going: BTreeMap::new() }
    }
}

impl Tree {
    pub(super) fn is_dir(&self, inode: u32) -> bool {
        matches!(self.inodes[&inode].kind, Kind::Dir(_))
    }

    pub(super) fn is_gone(&self, inode: u32) -> bool {
        self.inodes[&inode].links == 0
    }

    pub(super) fn entries(&self, dir: u32) -> &BTreeMap<char, u32> {
        static NONE: BTreeMap<char, u32> = BTreeMap::new();
        match &self.inodes[&dir].kind {
            Kind::Dir(entries) => entries,
            Kind::File(_) => &NONE,
        }
    }

    pub(super) fn find(&self, dir: u32, name: char) -> Option<u32> {
        self.entries(dir).get(&name).copied()
    }

    /// Returns what a look-up of a name on this mount may find.
    pub(super) fn looked_up(&self, mount: u32, dir: u32, name: char) -> Vec<Option<u32>> {
        let now = self.find(dir, name);
        let going = self.going.values().flatten();
        let going = going.filter(|going| (going.mount, going.dir, going.name) == (mount, dir, name));
        std::iter::once(now).chain(going.map(|going| Some(going.inode)).filter(|inode| *inode != now)).collect()
    }

    /// Notes names that a call may have changed; the inodes that they led to are held.
    pub(super) fn note_going(&mut self, op: &Op, led: &[(u32, char, u32)]) {
        for (dir, name, inode) in led.iter().copied() {
            if self.find(dir, name) == Some(inode) {
                self.change(inode, |inode| inode.held -= 1);
            } else {
                self.going.entry(op.number).or_default().push(Going { mount: op.mount, dir, name, inode });
            }
        }
    }

    /// Records that a call has returned.
    pub(super) fn let_go(&mut self, number: u32) {
        for going in self.going.remove(&number).unwrap_or_default() {
            self.change(going.inode, |inode| inode.held -= 1);
        }
    }

    pub(super) fn change(&mut self, inode: u32, change: impl FnOnce(&mut Inode)) {
        if let Some(found) = self.inodes.get_mut(&inode) {
            change(found);
            if found.links == 0 && found.held == 0 {
                self.inodes.remove(&inode);
            }
        }
    }

    pub(super) fn set(&mut self, dir: u32, name: char, inode: Option<u32>) {
        self.change(dir, |dir| {
            if let Kind::Dir(entries) = &mut dir.kind {
                match inode {
                    Some(inode) => entries.insert(name, inode),
                    None => entries.remove(&name),
                };
            }
        });
    }

    pub(super) fn unlink(&mut self, dir: u32, name: char) {
        if let Some(inode) = self.find(dir, name) {
            self.set(dir, name, None);
            self.change(inode, |inode| inode.links -= 1);
        }
    }

    pub(super) fn make(&mut self, dir: u32, name: char, number: u32, mode: u16, kind: Kind) {
        self.inodes.insert(number, Inode { ino: None, held: 0, links: 1, mode, kind });
        self.set(dir, name, Some(number));
    }

    /// Returns whether this may be the number that programs see, and remembers it.
    pub(super) fn is_seen_as(&mut self, inode: u32, seen: Option<u64>) -> bool {
        let Some(seen) = seen else { return true };
        let is_another = self.inodes.iter().any(|(other, found)| *other != inode && found.ino == Some(seen));
        let known = self.inodes[&inode].ino;
        self.change(inode, |inode| inode.ino = Some(seen));
        !is_another && known.is_none_or(|known| known == seen)
    }
}

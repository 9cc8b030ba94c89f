//! What may become of the names in directories when the power fails.
//!
//! A change of names (a create, link, unlink or rename) happens whole or not at all, a rename between directories
//! included, and changes of one inode happen in their order: a name is not removed before it was made. Everything else
//! is said by [`NameModel`].

use crate::chance::Chance;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

/// Number of an inode.
pub(super) type Ino = u64;
/// The root directory.
pub(super) const ROOT: Ino = 1;

/// When changes of names become durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameModel {
    /// As POSIX has it: by a sync of the directory, and by nothing else. Others survive in any combination.
    Strict,
    /// As ext4 and XFS do it: all changes are in one journal. A sync of a directory, or of a file whose name has
    /// changed, makes all changes up to the last one of it durable. Of the others, the first few survive.
    Journaled,
}

/// A change of names.
#[derive(Clone, Debug)]
struct Change {
    /// The inode whose name changes.
    child: Ino,
    /// Names in directories, and what they lead to afterwards.
    names: Vec<(Ino, OsString, Option<Ino>)>,
}

impl Change {
    fn touches(&self, dir: Ino) -> bool {
        self.names.iter().any(|(parent, ..)| *parent == dir)
    }

    fn apply(&self, dirs: &mut Dirs) {
        for (dir, name, child) in &self.names {
            let entries = dirs.entry(*dir).or_default();
            match child {
                Some(child) => drop(entries.insert(name.clone(), *child)),
                None => drop(entries.remove(name)),
            }
        }
    }
}

/// Directories, and what the names in them lead to.
type Dirs = BTreeMap<Ino, BTreeMap<OsString, Ino>>;

/// The directories of a file system.
#[derive(Debug)]
pub(super) struct Entries {
    model: NameModel,
    /// As programs see them.
    present: Dirs,
    /// As a power loss leaves them at least.
    durable: Dirs,
    /// What leads from `durable` to `present`, in order.
    pending: Vec<Change>,
}

impl Entries {
    /// A root directory without entries.
    pub(super) fn new(model: NameModel) -> Self {
        let dirs = Dirs::from([(ROOT, BTreeMap::new())]);
        Self { model, present: dirs.clone(), durable: dirs, pending: Vec::new() }
    }

    /// What a name leads to.
    pub(super) fn get(&self, dir: Ino, name: &OsStr) -> Option<Ino> {
        self.present.get(&dir)?.get(name).copied()
    }

    /// The names in a directory; `None` if it is none.
    pub(super) fn list(&self, dir: Ino) -> Option<&BTreeMap<OsString, Ino>> {
        self.present.get(&dir)
    }

    /// The number of changes that a power loss may undo.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes a directory without a name.
    pub(super) fn add_dir(&mut self, dir: Ino) {
        self.present.insert(dir, BTreeMap::new());
        self.durable.insert(dir, BTreeMap::new());
    }

    /// Lets a name lead to an inode.
    pub(super) fn link(&mut self, dir: Ino, name: &OsStr, child: Ino) {
        self.change(Change { child, names: vec![(dir, name.to_owned(), Some(child))] });
    }

    /// Removes a name, if it is there.
    pub(super) fn unlink(&mut self, dir: Ino, name: &OsStr) {
        if let Some(child) = self.get(dir, name) {
            self.change(Change { child, names: vec![(dir, name.to_owned(), None)] });
        }
    }

    /// Moves a name in place of what has the new name. Returns whether it was there.
    pub(super) fn rename(&mut self, (dir, name): (Ino, &OsStr), (new_dir, new_name): (Ino, &OsStr)) -> bool {
        let Some(child) = self.get(dir, name) else { return false };
        if self.get(new_dir, new_name) != Some(child) {
            let names = vec![(dir, name.to_owned(), None), (new_dir, new_name.to_owned(), Some(child))];
            self.change(Change { child, names });
        }
        true
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.present);
        self.pending.push(change);
    }

    /// Makes durable what a sync of this inode makes durable.
    pub(super) fn sync(&mut self, ino: Ino) {
        let is_synced = match self.model {
            NameModel::Strict => self.with_their_causes(ino),
            NameModel::Journaled => {
                let is_of_it = |change: &Change| change.touches(ino) || change.child == ino;
                let count = self.pending.iter().rposition(is_of_it).map_or(0, |last| last + 1);
                (0..self.pending.len()).map(|index| index < count).collect()
            }
        };
        let mut is_synced = is_synced.into_iter();
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let is_synced = is_synced.next().unwrap_or(false);
            if is_synced {
                change.apply(durable);
            }
            !is_synced
        });
    }

    /// Tells for each pending change whether it is one of this directory, or one that has to come before such a change:
    /// of the same inode, or of the same name.
    fn with_their_causes(&self, dir: Ino) -> Vec<bool> {
        let (mut children, mut places) = (BTreeSet::new(), BTreeSet::new());
        let mut is_taken = vec![false; self.pending.len()];
        for (index, change) in self.pending.iter().enumerate().rev() {
            let names = || change.names.iter().map(|(dir, name, _)| (*dir, name.as_os_str()));
            if change.touches(dir) || children.contains(&change.child) || names().any(|place| places.contains(&place)) {
                is_taken[index] = true;
                children.insert(change.child);
                places.extend(names());
            }
        }
        is_taken
    }

    /// Goes on from a state that a power loss may leave, and returns the inodes that have a name in it.
    pub(super) fn lose(&mut self, chance: &mut Chance) -> BTreeSet<Ino> {
        let kept = match self.model {
            NameModel::Strict => self.draw(chance),
            NameModel::Journaled => {
                let count = chance.below(self.pending.len() as u64 + 1) as usize;
                self.pending[..count].to_vec()
            }
        };
        kept.iter().for_each(|change| change.apply(&mut self.durable));
        self.pending.clear();
        let reached = reachable(&self.durable);
        self.durable.retain(|dir, _| reached.contains(dir));
        self.present = self.durable.clone();
        reached
    }

    fn draw(&self, chance: &mut Chance) -> Vec<Change> {
        let probability = *chance.pick(&[0.0, 0.5, 0.9, 1.0]);
        let mut broken = BTreeSet::new();
        let mut kept = Vec::new();
        for change in &self.pending {
            if !broken.contains(&change.child) && chance.happens(probability) {
                kept.push(change.clone());
            } else {
                broken.insert(change.child);
            }
        }
        kept
    }
}

fn reachable(dirs: &Dirs) -> BTreeSet<Ino> {
    let mut reached = BTreeSet::from([ROOT]);
    let mut open = vec![ROOT];
    while let Some(dir) = open.pop() {
        for child in dirs.get(&dir).into_iter().flat_map(BTreeMap::values) {
            if reached.insert(*child) {
                open.push(*child);
            }
        }
    }
    reached
}

//! The walks upwards that a request or a batch of a confined client takes: each directory is looked at once, and all together a
//! bounded number. The client chooses how many there are, and how deep they lie.

use super::access::{Who, X};
use super::backlinks;
use super::inode::Inode;
use super::keys;
use super::subtree::{self, DEPTH_MAX, LINKS_LOOKED_AT, Scope};
use super::view::{Kv, KvExt};
use std::collections::{BTreeSet, HashMap};
use wire::FsError;
use wire::ids::Ino;
use wire::op::Name;

/// Most work for one inode, in directories that are looked at: its links, and the way from each.
const FOR_ONE_MAX: usize = LINKS_LOOKED_AT + (LINKS_LOOKED_AT + 1) * (DEPTH_MAX + 1) + 1;
/// Bytes of an access list that are as much work as a directory.
const LIST_BYTES: usize = 128;
/// Directories that are looked at for any request.
const FOR_ANY: usize = 2 * FOR_ONE_MAX;
/// Further ones for each operation of a batch: many are about what lies close together.
const FOR_EACH_OP: usize = 8;

/// A directory on the way to the root.
#[derive(Clone, Copy)]
struct Step {
    /// Steps to the root, if it lies below.
    depth: Option<usize>,
    parent: Ino,
    /// The user may search it, and all directories above it up to the root.
    is_open: bool,
}

/// What a client sees of an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Sight {
    /// To the client, it does not exist.
    Outside,
    /// It lies in the subtree. The user may not search the directories above it.
    Closed,
    /// It lies in the subtree, and the user comes to it.
    Open,
}

/// The walks of one request or batch.
pub(super) struct Walks {
    scope: Scope,
    /// Whose rights to search directories count.
    who: Who,
    steps: HashMap<Ino, Step>,
    /// The ways of all that was seen.
    above: BTreeSet<Ino>,
    left: usize,
}

impl Walks {
    /// Begins with a request, or with a batch of so many operations.
    pub fn new(scope: Scope, who: Who, ops: usize) -> Self {
        let left = FOR_ANY + FOR_EACH_OP * ops;
        Self { scope, who, steps: HashMap::new(), above: BTreeSet::new(), left }
    }

    /// Returns the directories whose names decide whether the client sees what was looked at so far.
    pub fn above(&self) -> Vec<Ino> {
        self.above.iter().copied().collect()
    }

    /// Forgets what depends on the place of a directory, or on the rights to search it.
    pub fn forget(&mut self, dir: Ino) {
        if self.steps.contains_key(&dir) {
            self.steps.clear();
        }
    }

    fn load(&mut self, kv: &dyn Kv, ino: Ino) -> Option<Inode> {
        self.left = self.left.saturating_sub(1);
        kv.load(&keys::inode(ino))
    }

    /// Returns whether the user may search a directory.
    fn is_open(&mut self, kv: &dyn Kv, dir: &Inode) -> bool {
        if self.left == 0 {
            return false;
        }
        let (may, list_bytes) = self.who.may_by_list(kv, dir, X);
        self.left = self.left.saturating_sub(list_bytes.div_ceil(LIST_BYTES));
        may
    }

    /// Walks from a directory to the root. Returns how many steps that takes, and whether all directories on the way may be
    /// searched.
    fn walk(&mut self, kv: &dyn Kv, dir: Ino) -> Option<(usize, bool)> {
        let (mut way, mut at) = (Vec::new(), dir);
        let mut found = loop {
            if let Some(step) = self.steps.get(&at) {
                break step.depth.map(|depth| (depth, step.is_open));
            }
            if at == Ino::ROOT && self.scope.root != Ino::ROOT {
                break None;
            }
            if way.len() > DEPTH_MAX {
                // Of those further up it is not known.
                way.truncate(1);
                break None;
            }
            let Some(inode) = self.load(kv, at) else { break None };
            if at == self.scope.root {
                let is_open = self.is_open(kv, &inode);
                self.steps.insert(at, Step { depth: Some(0), parent: at, is_open });
                break Some((0, is_open));
            }
            at = inode.parent;
            way.push(inode);
        };
        for inode in way.into_iter().rev() {
            found = found.filter(|(depth, _)| *depth < DEPTH_MAX);
            found = found.map(|(depth, is_open)| (depth + 1, is_open && self.is_open(kv, &inode)));
            let (depth, is_open) = found.unzip();
            let step = Step { depth, parent: inode.parent, is_open: is_open == Some(true) };
            self.steps.insert(inode.attr.ino, step);
        }
        found
    }

    /// Notes the way from a directory that lies below the root.
    fn note_way(&mut self, dir: Ino) {
        let mut at = dir;
        while self.above.insert(at)
            && at != self.scope.root
            && let Some(step) = self.steps.get(&at)
        {
            at = step.parent;
        }
    }

    /// Returns whether the client sees what is in a directory, which need not be there.
    fn sight_in(&mut self, kv: &dyn Kv, dir: Ino) -> Sight {
        match self.walk(kv, dir) {
            Some((_, is_open)) => {
                self.note_way(dir);
                if is_open { Sight::Open } else { Sight::Closed }
            }
            None if self.scope.root != Ino::ROOT => Sight::Outside,
            // The whole tree has nothing outside. What lies too deep is not known.
            None if self.who.is_root() => Sight::Open,
            None => Sight::Closed,
        }
    }

    /// Returns whether a directory lies below the root, or is it.
    pub fn is_below(&mut self, kv: &dyn Kv, dir: Ino) -> bool {
        self.walk(kv, dir).is_some()
    }

    /// Returns what the client sees of an inode, and the inode if it is there.
    ///
    /// # Errors
    /// `ArgumentTooLarge` when too much was looked at already.
    pub fn look(&mut self, kv: &dyn Kv, ino: Ino) -> Result<Option<(Inode, Sight)>, FsError> {
        // Before it is looked at: whether there is enough left must not depend on what is there.
        if self.left < FOR_ONE_MAX {
            return Err(FsError::ArgumentTooLarge);
        }
        let Some(inode) = kv.load::<Inode>(&keys::inode(ino)) else { return Ok(None) };
        let sight = self.sight(kv, &inode);
        Ok(Some((inode, sight)))
    }

    /// One without entries is seen by those who may have it open, if they come to where its last entry stood, or own it: a session
    /// is asked about many that it never had.
    fn sight_of_removed(&mut self, kv: &dyn Kv, inode: &Inode) -> Sight {
        if !self.scope.holds_open(kv, inode.attr.ino) {
            return Sight::Outside;
        }
        let is_open = self.who.owns(inode) || self.walk(kv, inode.parent).is_some_and(|(_, is_open)| is_open);
        if is_open { Sight::Open } else { Sight::Closed }
    }

    fn sight(&mut self, kv: &dyn Kv, inode: &Inode) -> Sight {
        let (ino, root) = (inode.attr.ino, self.scope.root);
        if inode.attr.nlink == 0 {
            return self.sight_of_removed(kv, inode);
        }
        if ino == root {
            self.above.insert(root);
            return Sight::Open;
        }
        let mut best = self.sight_in(kv, inode.parent);
        if best < Sight::Open {
            let others = subtree::other_parents(kv, inode);
            self.left = self.left.saturating_sub(others.len());
            for parent in others {
                best = best.max(self.sight_in(kv, parent));
                if best == Sight::Open {
                    break;
                }
            }
        }
        best
    }

    /// Returns an entry of an inode that lies in the subtree: its directory and its name. The root of the subtree has none.
    pub fn place(&mut self, kv: &dyn Kv, inode: &Inode) -> Option<(Ino, Name)> {
        if self.is_below(kv, inode.parent) {
            return Some((inode.parent, inode.name.clone()));
        }
        if !backlinks::has_table(inode) {
            return None;
        }
        for (key, _) in kv.pairs(backlinks::all_of(inode.attr.ino), LINKS_LOOKED_AT) {
            let (parent, name) = backlinks::parts(&key);
            if self.is_below(kv, parent) {
                return Some((parent, name.to_vec()));
            }
        }
        None
    }

    /// Returns whether an inode has as many links as are looked at, and some of these lie outside of the subtree: with a further
    /// one, others might not find theirs any more.
    pub fn is_full(&mut self, kv: &dyn Kv, inode: &Inode) -> bool {
        let has_many = inode.attr.nlink as usize >= LINKS_LOOKED_AT;
        let mut parents = subtree::other_parents(kv, inode);
        parents.insert(inode.parent);
        has_many && self.scope.root != Ino::ROOT && parents.into_iter().any(|parent| !self.is_below(kv, parent))
    }
}

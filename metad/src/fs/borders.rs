//! What the leader asks about the borders of subtrees, before and after it has operations of anybody applied. What matters is
//! judged once more by [`judge`](super::judge) when they are applied.

use super::access::Who;
use super::inode::Inode;
use super::subtree::{self, Scope};
use super::view::{Kv, KvExt};
use super::walks::{Sight, Walks};
use super::{dentry, keys, orphan, session};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use wire::FsError;
use wire::attr::FileKind;
use wire::ids::{Ino, SessionId};
use wire::limits::SUBTREE_BYTES_MAX;
use wire::op::{Op, RenameMode};

/// Directories that are looked at for what a batch removes, or may move out of subtrees.
const LOOKED_AT_MAX: usize = 1 << 15;

/// What a batch of a confined client names, looked at before anything is done for it.
pub(crate) struct Borders<'a> {
    kv: &'a dyn Kv,
    session: SessionId,
    walks: Walks,
    seen: HashMap<Ino, Option<bool>>,
    /// What earlier operations of the batch make.
    made: HashSet<Ino>,
    /// The numbers that the session has leased, once they were asked for.
    leased: Option<Vec<(Ino, Ino)>>,
}

impl<'a> Borders<'a> {
    /// Begins with a batch of so many operations.
    pub fn new(kv: &'a dyn Kv, scope: Scope, ops: usize) -> Self {
        let walks = Walks::new(scope, Who::Root, ops);
        Self { kv, session: scope.session, walks, seen: HashMap::new(), made: HashSet::new(), leased: None }
    }

    /// Returns the directories whose names decide whether the client sees what was named so far.
    pub fn above(&self) -> Vec<Ino> {
        self.walks.above()
    }

    /// Returns whether the client sees an inode, or `None` if it is not there.
    fn sees(&mut self, ino: Ino) -> Result<Option<bool>, FsError> {
        if let Some(seen) = self.seen.get(&ino) {
            return Ok(*seen);
        }
        let seen = self.walks.look(self.kv, ino)?.map(|(_, sight)| sight > Sight::Outside);
        self.seen.insert(ino, seen);
        Ok(seen)
    }

    /// Checks, before anything is done for an operation, that it names nothing but what the client sees, or what earlier
    /// operations of the batch make. What the client vouches for is left out if the name does not lead there. The answer does not tell what
    /// is there outside, by its place in the batch either.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for the number of a new inode that the session has not leased; `ArgumentTooLarge` when the batch
    /// has named too much.
    pub fn check(&mut self, op: &mut Op) -> Result<(), FsError> {
        let kv = self.kv;
        let _held = kv.hold();
        let op = if let Op::Deferred { expect, op, .. } = op {
            for expect in expect {
                self.check_one(expect.parent)?;
            }
            &mut **op
        } else {
            op
        };
        self.check_plain(op)?;
        if let Op::Unlink { parent, name, released } | Op::Rename { new_parent: parent, new_name: name, released, .. } =
            op
        {
            let leads = |ino: &Ino| dentry::find(kv, *parent, name).is_some_and(|(target, _)| target == *ino);
            *released = released.filter(|ino| self.made.contains(ino) || leads(ino));
        }
        Ok(())
    }

    fn check_plain(&mut self, op: &Op) -> Result<(), FsError> {
        match op {
            Op::Create { ino, parent, .. } => {
                if !self.has_leased(*ino) {
                    return Err(FsError::Invalid);
                }
                self.check_one(*parent)?;
                self.made.insert(*ino);
                Ok(())
            }
            Op::Rmdir { parent, .. } | Op::Unlink { parent, .. } => self.check_one(*parent),
            Op::Link { ino: one, parent: two, .. }
            | Op::Rename { parent: one, new_parent: two, .. }
            | Op::CloneRange { src: one, dst: two, .. } => {
                self.check_one(*one)?;
                self.check_one(*two)
            }
            Op::SetAttr { ino, .. }
            | Op::Commit { ino, .. }
            | Op::Range { ino, .. }
            | Op::SetXattr { ino, .. }
            | Op::RemoveXattr { ino, .. }
            | Op::SetLock { ino, .. }
            | Op::Accessed { ino, .. } => self.check_one(*ino),
            Op::ReleaseOrphans { .. }
            | Op::LeaseInos { .. }
            | Op::Unlock { .. }
            | Op::Journaled { .. }
            | Op::JournaledContent { .. } => Ok(()),
            Op::Deferred { .. } => Err(FsError::Invalid),
        }
    }

    fn check_one(&mut self, ino: Ino) -> Result<(), FsError> {
        let is_seen = self.sees(ino)?.unwrap_or_else(|| self.made.contains(&ino));
        if is_seen { Ok(()) } else { Err(FsError::NotFound) }
    }

    fn has_leased(&mut self, ino: Ino) -> bool {
        let (kv, session) = (self.kv, self.session);
        let leased =
            self.leased.get_or_insert_with(|| session::find(kv, session).map_or_else(Vec::new, |found| found.inos));
        leased.iter().any(|(start, end)| (*start..*end).contains(&ino))
    }
}

/// Tells which confined clients see what, in whichever subtrees they are. Each directory is looked at once, and all together
/// a bounded number.
struct Sights<'a> {
    kv: &'a dyn Kv,
    roots: &'a BTreeSet<Ino>,
    /// The roots above directories.
    known: HashMap<Ino, BTreeSet<Ino>>,
    left: usize,
}

impl<'a> Sights<'a> {
    fn new(kv: &'a dyn Kv, roots: &'a BTreeSet<Ino>) -> Self {
        Self { kv, roots, known: HashMap::new(), left: LOOKED_AT_MAX }
    }

    /// Returns the roots above a directory, or `None` when too much was looked at.
    fn above(&mut self, dir: Ino) -> Option<&BTreeSet<Ino>> {
        if !self.known.contains_key(&dir) {
            let way = subtree::above(self.kv, dir);
            self.left = self.left.checked_sub(way.len())?;
            let roots = way.into_iter().filter(|at| self.roots.contains(at)).collect();
            self.known.insert(dir, roots);
        }
        self.known.get(&dir)
    }
}

/// Returns which of some inodes each of these confined sessions sees. The sessions come with their roots. Where there is too
/// much to look at, some sessions are left out.
pub(crate) fn seen_by(kv: &dyn Kv, confined: &[(SessionId, Ino)], inos: &[Ino]) -> BTreeMap<SessionId, Vec<Ino>> {
    let roots: BTreeSet<Ino> = confined.iter().map(|(_, root)| *root).collect();
    let mut sights = Sights::new(kv, &roots);
    let mut seen: BTreeMap<SessionId, Vec<Ino>> = BTreeMap::new();
    for ino in inos {
        let _held = kv.hold();
        let Some(inode) = kv.load::<Inode>(&keys::inode(*ino)) else { continue };
        let mut saw = |id: SessionId| seen.entry(id).or_default().push(*ino);
        if inode.attr.nlink == 0 {
            let holders = orphan::holders(kv, *ino).unwrap_or_default();
            confined.iter().filter(|(id, _)| holders.contains(id)).for_each(|(id, _)| saw(*id));
            continue;
        }
        let mut above = BTreeSet::from([Ino::ROOT, *ino]);
        for parent in std::iter::once(inode.parent).chain(subtree::other_parents(kv, &inode)) {
            let Some(roots) = sights.above(parent) else { return seen };
            above.extend(roots);
        }
        confined.iter().filter(|(_, root)| above.contains(root)).for_each(|(id, _)| saw(*id));
    }
    seen
}

/// Returns the roots that renames may move a directory out of: those of these above one of the two directories only.
///
/// # Errors
/// `ArgumentTooLarge` when there is too much to look at.
pub(crate) fn crossed(kv: &dyn Kv, ops: &[Op], roots: &BTreeSet<Ino>) -> Result<BTreeSet<Ino>, FsError> {
    let (mut sights, mut crossed) = (Sights::new(kv, roots), BTreeSet::new());
    for op in ops {
        let Op::Rename { parent, name, new_parent, new_name, mode, .. } = op.plain() else { continue };
        let _held = kv.hold();
        // What is made only now may be a directory, too.
        let may_be_dir = |parent: Ino, name: &[u8]| {
            dentry::find(kv, parent, name).is_none_or(|(_, kind)| kind == FileKind::Directory)
        };
        if parent == new_parent || !(may_be_dir(*parent, name) || may_be_dir(*new_parent, new_name)) {
            continue;
        }
        let (Some(from), Some(to)) = (sights.above(*parent).cloned(), sights.above(*new_parent)) else {
            return Err(FsError::ArgumentTooLarge);
        };
        crossed.extend(from.difference(to));
        if *mode == RenameMode::Exchange {
            crossed.extend(to.difference(&from));
        }
    }
    // Nothing moves out of the whole tree.
    crossed.remove(&Ino::ROOT);
    Ok(crossed)
}

/// Follows an absolute path. Returns the directories that it comes to, and whether it leads to one of them. Symlinks are not
/// followed: whoever can change one would choose the subtree.
pub(crate) fn way_along(kv: &dyn Kv, path: &str) -> (Vec<Ino>, Result<Ino, FsError>) {
    let (mut way, mut at) = (vec![Ino::ROOT], Ino::ROOT);
    if path.len() > SUBTREE_BYTES_MAX || !path.starts_with('/') {
        return (way, Err(FsError::Invalid));
    }
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        match dentry::find(kv, at, name.as_bytes()) {
            Some((ino, FileKind::Directory)) => at = ino,
            Some(_) => return (way, Err(FsError::NotADirectory)),
            None => return (way, Err(FsError::NotFound)),
        }
        way.push(at);
    }
    (way, Ok(at))
}

/// Returns the directory that an absolute path leads to, as [`way_along`] does.
///
/// # Errors
/// `NotFound`, or `NotADirectory` when there is something else on the way.
pub(crate) fn resolve(kv: &dyn Kv, path: &str) -> Result<Ino, FsError> {
    way_along(kv, path).1
}

//! Walks through a tree (`find`, `rm -r`, `du`, a backup), and looks at the names of a directory one after the other: both
//! are asked ahead for, many entries with one question. Pure.

use super::{Listed, lru};
use lru::LruCache;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::op::ListedDir;

/// Directories that are remembered.
const DIRS_MAX: usize = 8192;
/// Walks that are asked ahead for at once.
const WALKS_MAX: usize = 64;
/// What comes next is asked for when so much of what was asked for before is used: one part in so many.
const NEXT_AT_PART: usize = 3;
/// A directory that is listed so long after its parent is part of a walk.
const WALK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Siblings, and what comes behind those, that are asked for along with a directory.
const BEHIND_MAX: usize = 64;
/// An inode that others use as well is not asked for again so soon.
const SHARED_PAUSE: Duration = Duration::from_secs(2);
/// After so many names that are not known, within this time, the whole directory is asked for. Delegations of one
/// directory after the other count in the same way.
const MISSES_MAX: u32 = 4;
const MISSES_WITHIN: Duration = Duration::from_secs(1);
/// It is not asked for again so soon: where others work, nothing of it is known for long.
const ASK_PAUSE: Duration = Duration::from_secs(60);

/// A directory that a walk comes to.
struct Ahead {
    /// When its parent was listed.
    at: Instant,
    /// It and its siblings, in the order of that listing.
    siblings: Arc<[Ino]>,
    /// Which of them it is.
    index: usize,
}

/// Where a walk goes on behind what was asked for with one question: the directory, and what comes behind it.
pub(crate) struct Next {
    pub(crate) dir: Ino,
    /// The last one comes first.
    stack: Vec<Ino>,
}

impl Next {
    /// The next one on a stack.
    fn of(mut stack: Vec<Ino>) -> Option<Self> {
        stack.pop().map(|dir| Self { dir, stack })
    }

    /// What to ask for along with the directory.
    pub(crate) fn behind(&self) -> Vec<Ino> {
        self.stack.iter().rev().take(BEHIND_MAX).copied().collect()
    }
}

/// How often something happened, and since when it is counted.
struct Row {
    count: u32,
    since: Instant,
}

impl Row {
    fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    /// Once more, and how often within this time.
    fn count(&mut self, within: Duration, now: Instant) -> u32 {
        if now.saturating_duration_since(self.since) > within {
            *self = Self::new(now);
        }
        self.count += 1;
        self.count
    }
}

/// What was looked at lately.
pub(crate) struct Walks {
    /// Directories in those that were listed.
    ahead: LruCache<Ino, Ahead>,
    /// Directories in the midst of what was asked for: whoever comes to one will need what comes next.
    next: LruCache<Ino, Next>,
    /// What is being asked for in the background.
    asking: HashMap<Ino, watch::Receiver<()>>,
    /// Names of a directory that were not known.
    missed: LruCache<Ino, Row>,
    /// Delegations that were asked for one by one.
    alone: Option<Row>,
    /// Inodes whose delegations were asked for.
    asked_for: LruCache<Ino, Instant>,
}

impl Default for Walks {
    fn default() -> Self {
        Self {
            ahead: lru(DIRS_MAX),
            next: lru(WALKS_MAX),
            asking: HashMap::new(),
            missed: lru(DIRS_MAX),
            alone: None,
            asked_for: lru(DIRS_MAX),
        }
    }
}

impl Walks {
    /// A directory was listed from its start.
    pub(crate) fn listed(&mut self, listed: &Listed, now: Instant) {
        let dirs = listed.entries.iter().filter(|entry| entry.kind == FileKind::Directory);
        let siblings: Arc<[Ino]> = dirs.map(|entry| entry.ino).collect();
        for (index, dir) in siblings.iter().enumerate() {
            self.ahead.put(*dir, Ahead { at: now, siblings: siblings.clone(), index });
        }
    }

    /// What a walk that comes to this directory now, from its parent, will need.
    pub(crate) fn from(&mut self, dir: Ino, now: Instant) -> Option<Next> {
        let Ahead { at, siblings, index } = self.ahead.pop(&dir)?;
        let walks = now.saturating_duration_since(at) < WALK_PAUSE_MAX;
        walks.then(|| Next { dir, stack: siblings[index + 1..].iter().rev().copied().collect() })
    }

    /// This was answered when that was asked for: remembers where the walk goes on.
    pub(crate) fn answered(&mut self, asked: Next, tree: &[ListedDir]) {
        let mut stack = asked.stack;
        for listed in tree {
            // As metad has gone through it. What is left out is gone, or too large.
            while listed.ino != asked.dir && stack.pop().is_some_and(|dir| dir != listed.ino) {}
            let dirs = listed.entries.iter().filter(|entry| entry.kind == FileKind::Directory);
            stack.extend(dirs.rev().map(|entry| entry.ino));
        }
        if let Some(next) = Next::of(stack)
            && let Some(midst) = tree.get((tree.len() / NEXT_AT_PART).max(1))
        {
            self.next.put(midst.ino, next);
        }
    }

    /// A walk comes to this directory, which was asked for ahead: what is to be asked for now, in the background.
    pub(crate) fn go_on(&mut self, dir: Ino) -> Option<Next> {
        self.next.pop(&dir)
    }

    /// Begins to ask for a directory in the background, unless that has begun before. What is returned is dropped with the
    /// answer.
    pub(crate) fn begin(&mut self, dir: Ino) -> Option<watch::Sender<()>> {
        let (answered, wait) = watch::channel(());
        if self.asking.contains_key(&dir) {
            return None;
        }
        self.asking.insert(dir, wait);
        Some(answered)
    }

    /// A directory is not asked for any more.
    pub(crate) fn end(&mut self, dir: Ino) {
        self.asking.remove(&dir);
    }

    /// The question for a directory that is asked for in the background: it is answered when this closes.
    pub(crate) fn asking(&self, dir: Ino) -> Option<watch::Receiver<()>> {
        self.asking.get(&dir).cloned()
    }

    /// Whether it makes sense to ask for a delegation on this inode.
    pub(crate) fn may_ask_for(&mut self, ino: Ino, now: Instant) -> bool {
        let may = self.asked_for.get(&ino).is_none_or(|at| now.saturating_duration_since(*at) > SHARED_PAUSE);
        if may {
            self.asked_for.put(ino, now);
        }
        may
    }

    /// A delegation is to be asked for. True when several were within a short time.
    pub(crate) fn is_one_of_many(&mut self, now: Instant) -> bool {
        self.alone.get_or_insert_with(|| Row::new(now)).count(MISSES_WITHIN, now) > MISSES_MAX
    }

    /// A name of this directory was not known. True when it is time to ask for all of them, once in a while.
    pub(crate) fn missed(&mut self, dir: Ino, now: Instant) -> bool {
        let row = self.missed.get_or_insert_mut(dir, || Row::new(now));
        let within = if row.count >= MISSES_MAX { ASK_PAUSE } else { MISSES_WITHIN };
        row.count(within, now) == MISSES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::op::DirEntry;

    fn listed(ino: u64, dirs: &[u64]) -> ListedDir {
        let entry = |dir: &u64| DirEntry {
            name: dir.to_string().into_bytes(),
            ino: Ino(*dir),
            kind: FileKind::Directory,
            cookie: *dir,
            attr: None,
        };
        ListedDir { ino: Ino(ino), parent: Ino::ROOT, entries: dirs.iter().map(entry).collect(), end: true }
    }

    #[test]
    fn a_walk_in_the_midst_of_what_was_asked_for_goes_on_where_that_ends() {
        let mut walks = Walks::default();
        let asked = Next { dir: Ino(10), stack: vec![Ino(30), Ino(20)] };
        assert_eq!(asked.behind(), [Ino(20), Ino(30)]);
        // 12 is gone, and 14 did not fit any more.
        let tree = [listed(10, &[11, 12, 13, 14]), listed(11, &[]), listed(13, &[15]), listed(15, &[])];
        walks.answered(asked, &tree);
        assert!(walks.go_on(Ino(10)).is_none(), "nobody has gone further");
        let next = walks.go_on(Ino(11)).unwrap();
        assert_eq!((next.dir, next.behind()), (Ino(14), vec![Ino(20), Ino(30)]));
        assert!(walks.go_on(Ino(11)).is_none(), "it is asked for once");
        walks.answered(next, &[listed(14, &[]), listed(20, &[]), listed(30, &[])]);
        assert!(walks.go_on(Ino(20)).is_none(), "the walk ends there");
    }

    #[test]
    fn a_directory_that_is_listed_long_after_its_parent_is_no_part_of_a_walk() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        let ListedDir { parent, entries, end, .. } = listed(1, &[2, 3, 4]);
        walks.listed(&Listed { parent, entries, end }, now);
        assert_eq!(walks.from(Ino(3), now + WALK_PAUSE_MAX / 2).unwrap().behind(), [Ino(4)]);
        assert!(walks.from(Ino(2), now + WALK_PAUSE_MAX).is_none());
    }

    #[test]
    fn a_directory_is_asked_for_once_when_several_of_its_names_are_missed() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        let asked: Vec<bool> = (0..10).map(|_| walks.missed(Ino(5), now)).collect();
        assert_eq!(asked.iter().filter(|asked| **asked).count(), 1);
        assert!(!asked[0] && !walks.missed(Ino(6), now), "one name is no pattern");
    }
}

//! Who walks through a tree (`find`, `rm -r`, `du`, a backup), and who looks at the names of a directory one after the other:
//! both are asked ahead for, many entries with one question.

use crate::namespace::Listed;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::op::ListedDir;

/// Directories that are remembered.
const DIRS: usize = 8192;
/// Walks that are asked ahead for at once.
const WALKERS: usize = 64;
/// What comes next is asked for when so much of what was asked for before is used: one part in so many.
const NEXT_AT: usize = 3;
/// Who lists a directory so long after its parent is walking.
const WALKING: Duration = Duration::from_secs(5);
/// Siblings, and what comes behind those, that are asked for along with a directory.
const BEHIND: usize = 64;
/// An inode that others use as well is not asked for again so soon.
const SHARED_FOR: Duration = Duration::from_secs(2);
/// So many names that are not known, within this time, and the whole directory is asked for; the same for delegations of
/// one directory after the other, and what lies behind.
const MISSED: u32 = 4;
const MISSED_WITHIN: Duration = Duration::from_secs(1);
/// It is not asked for again so soon: where others work, nothing of it is known for long.
const ASKED_FOR: Duration = Duration::from_secs(60);

/// A directory that somebody who walks comes to.
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
        self.stack.iter().rev().take(BEHIND).copied().collect()
    }
}

/// A question for what lies ahead, until it is dropped.
pub(crate) struct Asking<'a> {
    walks: &'a Walks,
    dir: Ino,
    _answered: watch::Sender<()>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.walks.asking.lock().remove(&self.dir);
    }
}

/// How often something happened, and since when it is counted.
struct Row {
    count: u32,
    since: Instant,
}

impl Row {
    fn new() -> Self {
        Self { count: 0, since: Instant::now() }
    }

    /// Once more, and how often within this time.
    fn count(&mut self, within: Duration) -> u32 {
        if self.since.elapsed() > within {
            *self = Self::new();
        }
        self.count += 1;
        self.count
    }
}

/// What was looked at lately.
pub(crate) struct Walks {
    /// Directories in those that were listed.
    ahead: Mutex<LruCache<Ino, Ahead>>,
    /// Directories in the midst of what was asked for: who comes to one will need what comes next.
    next: Mutex<LruCache<Ino, Next>>,
    /// What is being asked for in the background.
    asking: Mutex<HashMap<Ino, watch::Receiver<()>>>,
    /// Names of a directory that were not known.
    missed: Mutex<LruCache<Ino, Row>>,
    /// Delegations that were asked for one by one.
    alone: Mutex<Row>,
    /// Inodes whose delegations were asked for.
    asked_for: Mutex<LruCache<Ino, Instant>>,
}

impl Default for Walks {
    fn default() -> Self {
        let dirs = NonZeroUsize::new(DIRS).expect("not zero");
        Self {
            ahead: Mutex::new(LruCache::new(dirs)),
            next: Mutex::new(LruCache::new(NonZeroUsize::new(WALKERS).expect("not zero"))),
            asking: Mutex::default(),
            missed: Mutex::new(LruCache::new(dirs)),
            alone: Mutex::new(Row::new()),
            asked_for: Mutex::new(LruCache::new(dirs)),
        }
    }
}

impl Walks {
    /// A directory was listed from its start.
    pub(crate) fn listed(&self, listed: &Listed) {
        let at = Instant::now();
        let dirs = listed.entries.iter().filter(|entry| entry.kind == FileKind::Directory);
        let siblings: Arc<[Ino]> = dirs.map(|entry| entry.ino).collect();
        let mut ahead = self.ahead.lock();
        for (index, dir) in siblings.iter().enumerate() {
            ahead.put(*dir, Ahead { at, siblings: siblings.clone(), index });
        }
    }

    /// What somebody who lists this directory now, and comes from its parent, will need.
    pub(crate) fn from(&self, dir: Ino) -> Option<Next> {
        let Ahead { at, siblings, index } = self.ahead.lock().pop(&dir)?;
        (at.elapsed() < WALKING).then(|| Next { dir, stack: siblings[index + 1..].iter().rev().copied().collect() })
    }

    /// This was answered when that was asked for: remembers where the walk goes on.
    pub(crate) fn answered(&self, asked: Next, tree: &[ListedDir]) {
        let mut stack = asked.stack;
        for listed in tree {
            // As metad has gone through it. What is left out is gone, or too large.
            while listed.ino != asked.dir && stack.pop().is_some_and(|dir| dir != listed.ino) {}
            let dirs = listed.entries.iter().filter(|entry| entry.kind == FileKind::Directory);
            stack.extend(dirs.rev().map(|entry| entry.ino));
        }
        if let Some(next) = Next::of(stack)
            && let Some(midst) = tree.get((tree.len() / NEXT_AT).max(1))
        {
            self.next.lock().put(midst.ino, next);
        }
    }

    /// Somebody comes to this directory, which was asked for ahead: what is to be asked for now, in the background.
    pub(crate) fn go_on(&self, dir: Ino) -> Option<Next> {
        self.next.lock().pop(&dir)
    }

    /// Begins to ask for a directory in the background, unless that has begun before.
    pub(crate) fn begin(&self, dir: Ino) -> Option<Asking<'_>> {
        let (answered, wait) = watch::channel(());
        let mut asking = self.asking.lock();
        if asking.contains_key(&dir) {
            return None;
        }
        asking.insert(dir, wait);
        Some(Asking { walks: self, dir, _answered: answered })
    }

    /// Waits for the answer if a directory is being asked for in the background. Whether it was.
    pub(crate) async fn wait_for(&self, dir: Ino) -> bool {
        let asking = self.asking.lock().get(&dir).cloned();
        let Some(mut answered) = asking else { return false };
        // Nothing is ever sent: the sender goes when there is an answer.
        let _ = answered.changed().await;
        true
    }

    /// Whether it makes sense to ask for a delegation on this inode.
    pub(crate) fn may_ask_for(&self, ino: Ino) -> bool {
        let mut asked_for = self.asked_for.lock();
        let may = asked_for.get(&ino).is_none_or(|at| at.elapsed() > SHARED_FOR);
        if may {
            asked_for.put(ino, Instant::now());
        }
        may
    }

    /// A delegation is to be asked for. True when several were within a short time.
    pub(crate) fn is_one_of_many(&self) -> bool {
        self.alone.lock().count(MISSED_WITHIN) > MISSED
    }

    /// A name of this directory was not known. True when it is time to ask for all of them, once in a while.
    pub(crate) fn missed(&self, dir: Ino) -> bool {
        let mut missed = self.missed.lock();
        let row = missed.get_or_insert_mut(dir, Row::new);
        let within = if row.count >= MISSED { ASKED_FOR } else { MISSED_WITHIN };
        row.count(within) == MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
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
    fn who_is_in_the_midst_of_what_was_asked_for_goes_on_where_that_ends() {
        let walks = Walks::default();
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

    #[tokio::test]
    async fn who_comes_to_what_is_being_asked_for_waits_for_the_answer() {
        let walks = Walks::default();
        assert!(!walks.wait_for(Ino(7)).await);
        let asking = walks.begin(Ino(7)).unwrap();
        assert!(walks.begin(Ino(7)).is_none());
        assert!(walks.wait_for(Ino(7)).now_or_never().is_none());
        let waiting = walks.wait_for(Ino(7));
        drop(asking);
        assert!(!waiting.await, "the answer was there before anybody waited");
    }

    #[test]
    fn a_directory_is_asked_for_once_when_several_of_its_names_are_missed() {
        let walks = Walks::default();
        let asked: Vec<bool> = (0..10).map(|_| walks.missed(Ino(5))).collect();
        assert_eq!(asked.iter().filter(|asked| **asked).count(), 1);
        assert!(!asked[0] && !walks.missed(Ino(6)), "one name is no pattern");
    }
}

//! Who walks through a tree (`find`, `rm -r`, `du`, a backup), and who looks at the names of a directory one after the other:
//! both are asked ahead for, many entries with one question.

use crate::namespace::Listed;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::attr::FileKind;
use wire::ids::Ino;

/// Directories that are remembered.
const DIRS: usize = 8192;
/// Who lists a directory so long after its parent is walking.
const WALKING: Duration = Duration::from_secs(5);
/// Siblings that are asked for along with a directory.
const BEHIND: usize = 64;
/// An inode that others use as well is not asked for again so soon.
const SHARED_FOR: Duration = Duration::from_secs(2);
/// So many names that are not known, within this time, and the whole directory is asked for.
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

/// What was looked at lately.
pub(crate) struct Walks {
    /// Directories in those that were listed.
    ahead: Mutex<LruCache<Ino, Ahead>>,
    /// Directories of which names were not known: how many, and since when.
    missed: Mutex<LruCache<Ino, (u32, Instant)>>,
    /// Inodes whose delegations were asked for.
    asked_for: Mutex<LruCache<Ino, Instant>>,
}

impl Default for Walks {
    fn default() -> Self {
        let dirs = NonZeroUsize::new(DIRS).expect("not zero");
        Self {
            ahead: Mutex::new(LruCache::new(dirs)),
            missed: Mutex::new(LruCache::new(dirs)),
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

    /// Where somebody who lists this directory now, and comes from its parent, goes on behind it.
    pub(crate) fn behind(&self, dir: Ino) -> Option<Vec<Ino>> {
        let Ahead { at, siblings, index } = self.ahead.lock().pop(&dir)?;
        (at.elapsed() < WALKING).then(|| siblings.iter().skip(index + 1).take(BEHIND).copied().collect())
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

    /// A name of this directory was not known. True when it is time to ask for all of them, once in a while.
    pub(crate) fn missed(&self, dir: Ino) -> bool {
        let mut missed = self.missed.lock();
        let (count, since) = missed.get_or_insert_mut(dir, || (0, Instant::now()));
        let window = if *count >= MISSED { ASKED_FOR } else { MISSED_WITHIN };
        if since.elapsed() > window {
            (*count, *since) = (0, Instant::now());
        }
        *count += 1;
        *count == MISSED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_asked_for_once_when_several_of_its_names_are_missed() {
        let walks = Walks::default();
        let asked: Vec<bool> = (0..10).map(|_| walks.missed(Ino(5))).collect();
        assert_eq!(asked.iter().filter(|asked| **asked).count(), 1);
        assert!(!asked[0] && !walks.missed(Ino(6)), "one name is no pattern");
    }
}

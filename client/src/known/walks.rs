//! Walks through a tree (`find`, `rm -r`, `du`, a backup), and lookups of one name after the other in a directory: for
//! both, many entries are asked for ahead with one question. Pure.

use super::Listed;
use crate::recent::lru;
use lru::LruCache;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::op::ListedDir;

/// The most directories that are remembered.
const DIRS_MAX: usize = 8192;
/// The most walks that are asked ahead for at the same time.
const WALKS_MAX: usize = 64;
/// The next part is asked for when one part in this many of the last one is used.
const NEXT_AT_PART: usize = 3;
/// A directory that is listed within this time of its parent is part of a walk.
const WALK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The most directories, siblings and those behind them, that are asked for along with a directory.
const BEHIND_MAX: usize = 64;
/// An inode that others use as well is not asked for again within this time.
const SHARED_PAUSE: Duration = Duration::from_secs(2);
/// After this many unknown names within this time, the whole directory is asked for. Delegations of one directory after
/// the other are counted in the same way.
const MISSES_MAX: u32 = 4;
const MISSES_WITHIN: Duration = Duration::from_secs(1);
/// Files are being read, not only listed, when two were opened within the last so much time.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// A directory is not asked for again within this time: where others work, nothing is known for long.
const ASK_PAUSE: Duration = Duration::from_secs(60);

/// A directory that a walk comes to.
struct Ahead {
    /// When its parent was listed.
    at: Instant,
    /// The directory and its siblings, in the order of that listing.
    siblings: Arc<[Ino]>,
    /// The index of the directory among them.
    index: usize,
}

/// Where a walk goes on behind what one question asked for: the directory, and those behind it.
pub(crate) struct Next {
    pub(crate) dir: Ino,
    /// Directories behind it, in reverse order.
    stack: Vec<Ino>,
}

impl Next {
    /// Returns the next directory on a stack.
    fn of(mut stack: Vec<Ino>) -> Option<Self> {
        stack.pop().map(|dir| Self { dir, stack })
    }

    /// Returns what to ask for along with the directory.
    pub(crate) fn behind(&self) -> Vec<Ino> {
        self.stack.iter().rev().take(BEHIND_MAX).copied().collect()
    }
}

/// How often something happened, and since when it is counted.
struct Tally {
    count: u32,
    since: Instant,
}

impl Tally {
    fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    /// Counts once more. Returns how often within this time.
    fn count(&mut self, within: Duration, now: Instant) -> u32 {
        if now.saturating_duration_since(self.since) > within {
            *self = Self::new(now);
        }
        self.count += 1;
        self.count
    }
}

/// What was looked up lately.
pub(crate) struct Walks {
    /// Directories whose parents were listed.
    ahead: LruCache<Ino, Ahead>,
    /// Directories in the midst of what was asked for: a walk that comes to one will need the next part.
    next: LruCache<Ino, Next>,
    /// Directories that are being asked for in the background.
    asking: HashMap<Ino, watch::Receiver<()>>,
    /// How many names of a directory were not known.
    missed: LruCache<Ino, Tally>,
    /// How many files of a directory were opened without knowing where their content is stored.
    unread: LruCache<Ino, Tally>,
    /// The last two files that were opened and whose content was not here, and when, the older one first.
    opened: [Option<(Ino, Instant)>; 2],
    /// When pages of directories, by what they begin behind, came last with where content is stored.
    contents_known: LruCache<(Ino, u64), Instant>,
    /// How many delegations were asked for one by one.
    alone: Option<Tally>,
    /// Inodes on which delegations were asked for.
    asked_for: LruCache<Ino, Instant>,
}

impl Default for Walks {
    fn default() -> Self {
        Self {
            ahead: lru(DIRS_MAX),
            next: lru(WALKS_MAX),
            asking: HashMap::new(),
            missed: lru(DIRS_MAX),
            unread: lru(DIRS_MAX),
            opened: [None; 2],
            contents_known: lru(DIRS_MAX),
            alone: None,
            asked_for: lru(DIRS_MAX),
        }
    }
}

impl Walks {
    /// Notes that a directory was listed from its start.
    pub(crate) fn listed(&mut self, listed: &Listed, now: Instant) {
        let dirs = listed.entries.iter().filter(|entry| entry.kind == FileKind::Directory);
        let siblings: Arc<[Ino]> = dirs.map(|entry| entry.ino).collect();
        for (index, dir) in siblings.iter().enumerate() {
            self.ahead.put(*dir, Ahead { at: now, siblings: siblings.clone(), index });
        }
    }

    /// Returns what a walk that comes to this directory now, from its parent, will need.
    pub(crate) fn from(&mut self, dir: Ino, now: Instant) -> Option<Next> {
        let Ahead { at, siblings, index } = self.ahead.pop(&dir)?;
        let walks = now.saturating_duration_since(at) < WALK_PAUSE_MAX;
        walks.then(|| Next { dir, stack: siblings[index + 1..].iter().rev().copied().collect() })
    }

    /// Notes the answer to what was asked for: remembers where the walk goes on.
    pub(crate) fn answered(&mut self, asked: Next, tree: &[ListedDir]) {
        let mut stack = asked.stack;
        for listed in tree {
            // This is the order of metad's walk. A directory that is left out is gone, or too large.
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

    /// Returns what to ask for now, in the background, when a walk comes to this directory, which was asked for ahead.
    pub(crate) fn go_on(&mut self, dir: Ino) -> Option<Next> {
        self.next.pop(&dir)
    }

    /// Begins to ask for a directory in the background, unless that has begun before. The caller drops the returned
    /// sender when there is an answer.
    pub(crate) fn begin(&mut self, dir: Ino) -> Option<watch::Sender<()>> {
        let (answered, wait) = watch::channel(());
        if self.asking.contains_key(&dir) {
            return None;
        }
        self.asking.insert(dir, wait);
        Some(answered)
    }

    /// Notes that a directory is not being asked for any more.
    pub(crate) fn end(&mut self, dir: Ino) {
        self.asking.remove(&dir);
    }

    /// Returns a receiver that closes when the question for a directory in the background is answered.
    pub(crate) fn asking(&self, dir: Ino) -> Option<watch::Receiver<()>> {
        self.asking.get(&dir).cloned()
    }

    /// Returns whether it makes sense to ask for a delegation on this inode.
    pub(crate) fn may_ask_for(&mut self, ino: Ino, now: Instant) -> bool {
        let may = self.asked_for.get(&ino).is_none_or(|at| now.saturating_duration_since(*at) > SHARED_PAUSE);
        if may {
            self.asked_for.put(ino, now);
        }
        may
    }

    /// Notes that a delegation is about to be asked for. True when there were several within a short time.
    pub(crate) fn is_one_of_many(&mut self, now: Instant) -> bool {
        self.alone.get_or_insert_with(|| Tally::new(now)).count(MISSES_WITHIN, now) > MISSES_MAX
    }

    /// Notes that a name of this directory was not known. True when it is time to ask for all names, once in a while.
    pub(crate) fn missed(&mut self, dir: Ino, now: Instant) -> bool {
        is_time_to_ask(&mut self.missed, dir, now)
    }

    /// Notes that a file of this directory was opened without knowing where its content is stored. True when it is time
    /// to ask for that of all of its files, once in a while.
    pub(crate) fn unread(&mut self, dir: Ino, now: Instant) -> bool {
        is_time_to_ask(&mut self.unread, dir, now)
    }

    /// Notes that a file was opened whose content is not here.
    pub(crate) fn note_opened(&mut self, ino: Ino, now: Instant) {
        if self.opened[1].is_some_and(|(last, _)| last == ino) {
            self.opened[1] = Some((ino, now));
        } else {
            self.opened = [self.opened[1], Some((ino, now))];
        }
    }

    /// Returns whether it is worth asking where content is stored along with this page of a directory: files are
    /// being read, not only listed, and it was not said lately. What others change meanwhile costs a question for each
    /// file.
    pub(crate) fn may_ask_for_contents(&mut self, page: (Ino, u64), now: Instant) -> bool {
        let reads = self.opened[0].is_some_and(|(_, at)| now.saturating_duration_since(at) < READ_WITHIN);
        let known = self.contents_known.get(&page).is_some_and(|at| now.saturating_duration_since(*at) < ASK_PAUSE);
        reads && !known
    }

    /// Notes that metad has said where content is stored along with this page.
    pub(crate) fn note_contents(&mut self, page: (Ino, u64), now: Instant) {
        self.contents_known.put(page, now);
    }
}

/// Counts something that happened in a directory without knowing enough. True when it is time to ask for all of it.
fn is_time_to_ask(tallies: &mut LruCache<Ino, Tally>, dir: Ino, now: Instant) -> bool {
    let tally = tallies.get_or_insert_mut(dir, || Tally::new(now));
    let within = if tally.count >= MISSES_MAX { ASK_PAUSE } else { MISSES_WITHIN };
    tally.count(within, now) == MISSES_MAX
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
            content: None,
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
    fn content_is_asked_for_while_files_are_opened_and_once_a_minute_for_a_directory() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        assert!(!walks.may_ask_for_contents((Ino(5), 0), now));
        let later = now + READ_WITHIN / 2;
        (0..9).for_each(|_| walks.note_opened(Ino(100), later));
        assert!(!walks.may_ask_for_contents((Ino(5), 0), later), "one file is no pattern");
        walks.note_opened(Ino(101), later);
        assert!(walks.may_ask_for_contents((Ino(5), 0), later) && walks.may_ask_for_contents((Ino(6), 0), later));
        walks.note_contents((Ino(5), 0), later);
        assert!(!walks.may_ask_for_contents((Ino(5), 0), later), "it was said");
        assert!(!walks.may_ask_for_contents((Ino(7), 0), later + READ_WITHIN), "nobody reads any more");
        let much_later = later + ASK_PAUSE;
        for ino in [100, 101] {
            walks.note_opened(Ino(ino), much_later);
        }
        assert!(walks.may_ask_for_contents((Ino(5), 0), much_later));
    }

    #[test]
    fn a_directory_is_asked_for_once_when_several_of_its_names_are_missed() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        let asked: Vec<bool> = (0..10).map(|_| walks.missed(Ino(5), now)).collect();
        assert_eq!(asked.iter().filter(|asked| **asked).count(), 1);
        assert!(!asked[0] && !walks.missed(Ino(6), now), "one name is no pattern");
    }
}

//! What a session answers itself: attributes, names and listings on which it holds read leases.
//!
//! metad tells with an answer whether the session holds leases on it, recalls them before anybody changes what was
//! answered, and waits for the acknowledgement. So an answer is kept unless something of it was recalled, or changed here,
//! since it was asked for; and it is used while the leases hold, which signs of life extend. The kernel is let believe what
//! is handed to it for moments only, and a recall is acknowledged when these are over: no message to the kernel is needed,
//! which could wait for locks that a request of ours holds.
//!
//! What was done under delegations and is not told yet ([`crate::writeback`]) is *pinned* here: it goes before anything
//! that metad says, whether leases hold or not, and is never forgotten before metad knows it.

use lru::LruCache;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::limits::{LEASE_MS, NAME_BYTES_MAX};
use wire::op::{ConflictCopy, Name, Op, OpReply};
use wire::sys::since_boot;

pub mod held_locks;
pub mod leased;
mod pins;

pub use pins::Local;

use crate::namespace::Listed;
use crate::opens::count_down;

/// Leases are used so long after they were asked for: less than metad waits, because clocks differ in speed.
const USED: Duration = Duration::from_millis(LEASE_MS / 10 * 9);
/// The kernel believes what it is handed for so long while there are other sessions.
const BELIEVED: Duration = Duration::from_millis(50);
/// And so long while this one is alone. Another session's arrival waits for it.
const BELIEVED_ALONE: Duration = Duration::from_secs(1);
/// What is handed over may reach the kernel so much later, and its clock is coarse.
const MARGIN: Duration = Duration::from_millis(50);
/// What others change is not handed over to be believed for so long after: recalls of it need not wait.
const CONTENDED: Duration = Duration::from_secs(2);

/// Inodes, names and recalls that are remembered.
const INODES: usize = 65_536;
/// Pages of listings that are remembered, and entries in all of them.
const PAGES: usize = 4096;
const PAGE_ENTRIES: usize = 65_536;
/// Directories of which all names are known, and how many names these may have.
const COMPLETE: usize = 4096;
const COMPLETE_NAMES: usize = 4096;

/// A moment before a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

/// Part of a directory, as it was asked for: behind this cookie, so many, with attributes.
type PageKey = (Ino, u64, u32, bool);

/// What this session knows under leases.
pub struct Known {
    inner: Mutex<Inner>,
}

struct Inner {
    /// metad knows of our leases: what is asked now is kept.
    attached: bool,
    /// Until when the leases may be used, by a clock that goes on while the machine sleeps.
    until: Option<Duration>,
    /// Until when metad waits for this session, whatever became of what was known.
    covered: Option<Duration>,
    /// How often that time was over.
    lapses: u64,
    /// No other session keeps caches.
    alone: bool,
    /// Counts recalls and changes.
    clock: u64,
    /// What was asked for before this is not kept, whatever it is.
    floor: u64,
    /// When an inode was last recalled.
    recalled: LruCache<Ino, (u64, Instant)>,
    /// When an inode was last changed here.
    changed: LruCache<Ino, u64>,
    attrs: LruCache<Ino, InodeAttr>,
    /// Where a name leads, and since when that is known.
    names: LruCache<(Ino, Name), (Option<Ino>, Mark)>,
    pages: LruCache<PageKey, (Arc<Listed>, Mark)>,
    /// Entries in them.
    page_entries: usize,
    /// Directories that were made here, with all their names.
    complete: LruCache<Ino, HashSet<Name>>,
    /// Inodes that nobody else has leases on.
    delegated: LruCache<Ino, ()>,
    /// When a delegation was last ended, though not what is known.
    shared: LruCache<Ino, u64>,
    pinned_attrs: HashMap<Ino, Pinned>,
    /// Where names lead by what is not told yet, and the number of the last entry that says so.
    pinned_names: HashMap<(Ino, Name), (Option<Ino>, u64)>,
    /// Pinned names by directory.
    pinned_in: HashMap<Ino, usize>,
    /// When the kernel was last handed something to believe of an inode; and of any that is not listed.
    handed: LruCache<Ino, Instant>,
    handed_else: Option<Instant>,
    handed_alone: Option<Instant>,
}

/// Attributes by what is not told yet.
struct Pinned {
    attr: InodeAttr,
    /// The last entry that changes them.
    last: u64,
    /// The entry that makes the inode: metad does not know it before.
    made: Option<u64>,
}

/// Where a name leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameState {
    /// To this inode.
    Leads(Ino),
    /// Nowhere.
    Absent,
    /// It is not known.
    Unknown,
}

fn lru<K: std::hash::Hash + Eq, V>(count: usize) -> LruCache<K, V> {
    LruCache::new(NonZeroUsize::new(count).expect("not zero"))
}

impl Default for Known {
    fn default() -> Self {
        let inner = Inner {
            attached: false,
            until: None,
            covered: None,
            lapses: 0,
            alone: false,
            clock: 0,
            floor: 0,
            recalled: lru(INODES),
            changed: lru(INODES),
            attrs: lru(INODES),
            names: lru(INODES),
            pages: lru(PAGES),
            page_entries: 0,
            complete: lru(COMPLETE),
            delegated: lru(INODES),
            shared: lru(INODES),
            pinned_attrs: HashMap::new(),
            pinned_names: HashMap::new(),
            pinned_in: HashMap::new(),
            handed: lru(INODES),
            handed_else: None,
            handed_alone: None,
        };
        Self { inner: Mutex::new(inner) }
    }
}

impl Inner {
    fn holds(&self) -> bool {
        self.until.is_some_and(|until| until > since_boot())
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether others have changed an inode, or may have, since it was asked about.
    fn is_recalled_since(&self, ino: Ino, mark: Mark) -> bool {
        !self.attached || self.floor > mark.0 || self.recalled.peek(&ino).is_some_and(|(at, _)| *at > mark.0)
    }

    fn is_changed_since(&self, ino: Ino, mark: Mark) -> bool {
        self.is_recalled_since(ino, mark) || self.changed.peek(&ino).is_some_and(|at| *at > mark.0)
    }

    fn note_recall(&mut self, ino: Ino, at: u64) {
        self.attrs.pop(&ino);
        self.complete.pop(&ino);
        self.no_longer_ours(ino);
        if let Some((_, (forgotten, _))) = self.recalled.push(ino, (at, Instant::now())).filter(|(old, _)| *old != ino)
        {
            self.floor = self.floor.max(forgotten);
        }
    }

    fn note_change(&mut self, ino: Ino, at: u64) {
        self.attrs.pop(&ino);
        if let Some((_, forgotten)) = self.changed.push(ino, at).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    fn note_handed(&mut self, ino: Ino, now: Instant) {
        if let Some((_, at)) = self.handed.push(ino, now).filter(|(old, _)| *old != ino) {
            self.handed_else = self.handed_else.max(Some(at));
        }
    }

    /// Until when the kernel may believe what it was handed of an inode.
    fn believed_until(&self, ino: Ino) -> Option<Instant> {
        let handed = self.handed.peek(&ino).copied().max(self.handed_else);
        handed.map(|at| at + BELIEVED + MARGIN).max(self.believed_alone_until())
    }

    fn believed_alone_until(&self) -> Option<Instant> {
        self.handed_alone.map(|at| at + BELIEVED_ALONE + MARGIN)
    }

    fn drop_all(&mut self) {
        // Not the recalls: what is contended stays so.
        self.floor = self.tick();
        self.attrs.clear();
        self.names.clear();
        self.pages.clear();
        self.page_entries = 0;
        self.complete.clear();
        self.delegated.clear();
    }

    fn believed_at_all(&self) -> Option<Instant> {
        let handed = self.handed.iter().map(|(_, at)| *at).max().max(self.handed_else);
        handed.map(|at| at + BELIEVED + MARGIN).max(self.believed_alone_until())
    }

    fn put_page(&mut self, key: PageKey, listed: &Arc<Listed>, mark: Mark) {
        self.page_entries += listed.entries.len();
        let replaced = self.pages.push(key, (listed.clone(), mark));
        self.page_entries -= replaced.map_or(0, |(_, (listed, _))| listed.entries.len());
        while self.page_entries > PAGE_ENTRIES
            && let Some((_, (oldest, _))) = self.pages.pop_lru()
        {
            self.page_entries -= oldest.entries.len();
        }
    }

    fn learn_name(&mut self, parent: Ino, name: &[u8], ino: Option<Ino>) {
        let since = Mark(self.clock);
        self.names.put((parent, name.to_vec()), (ino, since));
        self.complete_with(parent, name, ino.is_some());
    }

    /// A name of a directory of which all are known comes or goes.
    fn complete_with(&mut self, parent: Ino, name: &[u8], present: bool) {
        let Some(names) = self.complete.get_mut(&parent) else { return };
        if !present {
            names.remove(name);
        } else if names.len() < COMPLETE_NAMES {
            names.insert(name.to_vec());
        } else {
            self.complete.pop(&parent);
        }
    }

    fn attr(&mut self, ino: Ino) -> Option<InodeAttr> {
        match self.pinned_attrs.get(&ino) {
            Some(pinned) => Some(pinned.attr.clone()),
            None if self.holds() => self.attrs.get(&ino).cloned(),
            None => None,
        }
    }

    fn name_state(&mut self, parent: Ino, name: &[u8]) -> NameState {
        if name.len() > NAME_BYTES_MAX {
            // It is neither there nor absent: asking about it is an error.
            return NameState::Unknown;
        }
        if matches!(name, b"." | b"..") {
            // No entries, but asked about where a handle is opened.
            return NameState::Unknown;
        }
        let key = (parent, name.to_vec());
        let known = |ino: Option<Ino>| ino.map_or(NameState::Absent, NameState::Leads);
        if let Some((ino, _)) = self.pinned_names.get(&key) {
            return known(*ino);
        }
        if !self.holds() && !self.is_made_here(parent) {
            return NameState::Unknown;
        }
        if let Some((ino, since)) = self.names.get(&key).copied() {
            if !self.is_recalled_since(parent, since) {
                return known(ino);
            }
            self.names.pop(&key);
        }
        match self.complete.get(&parent) {
            Some(names) if !names.contains(name) => NameState::Absent,
            _ => NameState::Unknown,
        }
    }

    /// metad does not know the inode yet.
    fn is_made_here(&self, ino: Ino) -> bool {
        self.pinned_attrs.get(&ino).is_some_and(|pinned| pinned.made.is_some())
    }

    fn is_delegated(&self, ino: Ino) -> bool {
        self.attached && (self.is_made_here(ino) || (self.holds() && self.delegated.contains(&ino)))
    }

    fn no_longer_ours(&mut self, ino: Ino) {
        self.delegated.pop(&ino);
        // Whoever asks about it has heard of it: metad knows it, though its answer is still on its way.
        if let Some(pinned) = self.pinned_attrs.get_mut(&ino) {
            pinned.made = None;
        }
    }

    fn note_delegated(&mut self, inos: &[Ino], mark: Mark) {
        for ino in inos {
            let ended = self.shared.peek(ino).is_some_and(|at| *at > mark.0);
            if !ended && !self.is_recalled_since(*ino, mark) {
                self.delegated.put(*ino, ());
            }
        }
    }

    fn unpin_name(&mut self, key: &(Ino, Name)) {
        if self.pinned_names.remove(key).is_some() {
            count_down(&mut self.pinned_in, key.0);
        }
    }
}

impl Known {
    /// To be taken before a question.
    pub fn mark(&self) -> Mark {
        Mark(self.inner.lock().clock)
    }

    /// metad has begun to count our leases: what was asked before it did is not kept, by whomever it was granted.
    pub fn attached(&self) {
        let mut inner = self.inner.lock();
        inner.attached = true;
        inner.floor = inner.tick();
    }

    /// The leases hold for a while from when this was asked (a time of [`since_boot`], and a mark taken with it).
    pub fn extend(&self, asked: Duration, mark: Mark, alone: bool) {
        let mut inner = self.inner.lock();
        if !inner.attached || inner.floor > mark.0 {
            return;
        }
        if inner.is_uncovered() {
            inner.lapses += 1;
        }
        inner.covered = inner.covered.max(Some(asked + USED));
        inner.until = inner.until.max(Some(asked + USED));
        inner.alone = alone;
    }

    /// How often metad has gone on without this session, as far as that is known: each time, others may have changed
    /// anything.
    pub fn lapses(&self) -> u64 {
        let inner = self.inner.lock();
        inner.lapses + u64::from(inner.is_uncovered())
    }

    /// All leases are gone, or will be: nothing is used or kept any more until [`Known::attached`]. Returns until when the
    /// kernel may believe something.
    pub fn empty(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        inner.attached = false;
        inner.until = None;
        inner.alone = false;
        inner.drop_all();
        inner.believed_at_all()
    }

    /// metad takes all leases back; the session keeps its standing. Returns when to acknowledge.
    pub fn recall_all(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        inner.drop_all();
        inner.believed_at_all()
    }

    /// Others are about to change these inodes. Returns when to acknowledge that nobody here believes anything of them.
    pub fn recall(&self, inos: &[Ino]) -> Option<Instant> {
        let mut inner = self.inner.lock();
        let at = inner.tick();
        for ino in inos {
            inner.note_recall(*ino, at);
        }
        inos.iter().map(|ino| inner.believed_until(*ino)).max().flatten()
    }

    /// Another session arrives. Returns when to acknowledge that nobody here believes anything for long.
    pub fn company(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        inner.alone = false;
        inner.believed_alone_until()
    }

    /// This session is about to change something. What is asked from now on is not kept until [`Known::changed`].
    pub fn change(&self, ops: &[Op]) -> Mark {
        let mut inner = self.inner.lock();
        let at = inner.tick();
        for op in ops {
            for ino in op.attrs_changed() {
                inner.note_change(ino, at);
            }
            for (parent, name) in op.names_changed() {
                if let Some((Some(ino), _)) = inner.names.pop(&(parent, name.clone())) {
                    inner.note_change(ino, at);
                }
            }
        }
        Mark(at)
    }

    /// A change has been carried out, or has failed (no replies), or nobody knows. With leases on all of it, what it
    /// made is known: from the replies, and from the attributes that come with the leases.
    pub fn changed(
        &self,
        mark: Mark,
        ops: &[Op],
        replies: &[OpReply],
        leased: Option<&[InodeAttr]>,
        delegated: &[Ino],
    ) {
        let mut inner = self.inner.lock();
        let at = inner.tick();
        let (leased, rest) = (leased.is_some(), leased.unwrap_or_default());
        // Whether what is told was overtaken is asked before answers from meanwhile are made void.
        let overtaken: HashSet<Ino> = replies
            .iter()
            .flat_map(told)
            .chain(rest)
            .map(|attr| attr.ino)
            .chain(ops.iter().flat_map(Op::attrs_changed))
            .filter(|ino| inner.is_changed_since(*ino, mark))
            .collect();
        for op in ops {
            // Answers that were asked for while the change was under way are of before or after it, who knows.
            for ino in op.attrs_changed() {
                inner.note_change(ino, at);
            }
            for (parent, name) in op.names_changed() {
                inner.names.pop(&(parent, name.clone()));
                if !leased {
                    inner.complete.pop(&parent);
                }
            }
        }
        for copy in replies.iter().filter_map(conflict) {
            inner.note_change(copy.parent, at);
            inner.names.pop(&(copy.parent, copy.name.clone()));
            inner.complete.pop(&copy.parent);
        }
        for attr in replies.iter().flat_map(told).chain(rest) {
            if !leased {
                inner.note_change(attr.ino, at);
            } else if !overtaken.contains(&attr.ino) {
                inner.attrs.put(attr.ino, attr.clone());
            }
        }
        inner.note_delegated(delegated, mark);
        if !leased {
            return;
        }
        for (op, reply) in ops.iter().zip(replies) {
            inner.learn_change(op, reply, &overtaken);
        }
    }

    /// Keeps attributes that were asked for after `mark`, with a lease.
    pub fn learn_attr(&self, attr: &InodeAttr, mark: Mark) {
        let mut inner = self.inner.lock();
        if !inner.is_changed_since(attr.ino, mark) {
            inner.attrs.put(attr.ino, attr.clone());
        }
    }

    /// Keeps where a name leads, or that it is absent.
    pub fn learn_name(&self, parent: Ino, name: &[u8], ino: Option<Ino>, mark: Mark) {
        let mut inner = self.inner.lock();
        // A change here may have been of this name.
        if name != b"." && name != b".." && !inner.is_changed_since(parent, mark) {
            inner.names.put((parent, name.to_vec()), (ino, mark));
        }
    }

    /// Keeps part of a listing, with its names, and attributes if it has them.
    pub fn learn_page(&self, dir: Ino, asked: (u64, u32, bool), listed: &Arc<Listed>, mark: Mark) {
        let mut inner = self.inner.lock();
        if inner.is_changed_since(dir, mark) {
            return;
        }
        let (after, limit, plus) = asked;
        inner.put_page((dir, after, limit, plus), listed, mark);
        for entry in &listed.entries {
            if let Some(attr) = entry.attr.as_ref().filter(|_| plus) {
                if !inner.is_changed_since(attr.ino, mark) {
                    inner.attrs.put(attr.ino, attr.clone());
                }
                inner.names.put((dir, entry.name.clone()), (Some(entry.ino), mark));
            }
        }
    }

    /// Attributes, if they are known now.
    pub fn attr(&self, ino: Ino) -> Option<InodeAttr> {
        self.inner.lock().attr(ino)
    }

    /// What a name leads to, or that it is absent, if that is known now.
    pub fn name(&self, parent: Ino, name: &[u8]) -> Option<Result<InodeAttr, FsError>> {
        let mut inner = self.inner.lock();
        match inner.name_state(parent, name) {
            NameState::Leads(ino) => inner.attr(ino).map(Ok),
            NameState::Absent => Some(Err(FsError::NotFound)),
            NameState::Unknown => None,
        }
    }

    /// Part of a listing, if all of it is known now.
    pub fn page(&self, dir: Ino, (after, limit, plus): (u64, u32, bool)) -> Option<Listed> {
        let mut inner = self.inner.lock();
        if !inner.holds() {
            return None;
        }
        let (listed, since) = inner.pages.get(&(dir, after, limit, plus))?.clone();
        if inner.is_changed_since(dir, since) {
            inner.pages.pop(&(dir, after, limit, plus));
            inner.page_entries -= listed.entries.len();
            return None;
        }
        let mut listed = Listed::clone(&listed);
        if plus {
            for entry in &mut listed.entries {
                entry.attr = Some(inner.attr(entry.ino)?);
            }
        }
        Some(listed)
    }

    /// For how long the kernel may believe these attributes, which are handed over now.
    pub fn believe_attr(&self, attr: &InodeAttr) -> Duration {
        let mut inner = self.inner.lock();
        if inner.attr(attr.ino).as_ref() == Some(attr) { inner.hand_over(attr.ino) } else { Duration::ZERO }
    }

    /// For how long the kernel may believe that a name leads to an inode, or is absent, which it is told now.
    pub fn believe_name(&self, parent: Ino, name: &[u8], ino: Option<Ino>) -> Duration {
        let mut inner = self.inner.lock();
        let said = ino.map_or(NameState::Absent, NameState::Leads);
        if inner.name_state(parent, name) == said { inner.hand_over(parent) } else { Duration::ZERO }
    }
}

impl Inner {
    /// Whether metad waits no longer for this session.
    fn is_uncovered(&self) -> bool {
        self.covered.is_some_and(|until| until < since_boot())
    }

    /// For how long the kernel may believe something of an inode that is known.
    fn hand_over(&mut self, ino: Ino) -> Duration {
        let now = Instant::now();
        let left = self.until.map_or(Duration::ZERO, |until| until.saturating_sub(since_boot() + MARGIN));
        let contended = self.recalled.peek(&ino).is_some_and(|(_, at)| now - *at < CONTENDED);
        if contended || left < BELIEVED {
            return Duration::ZERO;
        }
        if self.alone && left > BELIEVED_ALONE {
            self.handed_alone = Some(now);
            return BELIEVED_ALONE;
        }
        self.note_handed(ino, now);
        BELIEVED
    }

    /// Takes in what became of names.
    fn learn_change(&mut self, op: &Op, reply: &OpReply, overtaken: &HashSet<Ino>) {
        if op.names_changed().any(|(parent, _)| overtaken.contains(&parent)) {
            return;
        }
        match (op.plain(), reply) {
            (Op::Create { parent, name, .. } | Op::Link { parent, name, .. }, OpReply::Attr(attr)) => {
                self.learn_name(*parent, name, Some(attr.ino));
                let is_new = matches!(op, Op::Create { node: wire::op::NewInode::Directory, .. });
                if is_new && self.attrs.contains(&attr.ino) {
                    self.complete.put(attr.ino, HashSet::new());
                }
            }
            (Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name }, OpReply::Removed { .. }) => {
                self.learn_name(*parent, name, None);
            }
            (Op::Rename { parent, name, new_parent, new_name, mode, .. }, OpReply::Renamed { moved, replaced, .. }) => {
                let back = replaced.as_ref().filter(|_| *mode == wire::op::RenameMode::Exchange);
                self.learn_name(*parent, name, back.map(|attr| attr.ino));
                self.learn_name(*new_parent, new_name, Some(moved.ino));
            }
            _ => {}
        }
    }
}

/// The sibling that a commit has made.
fn conflict(reply: &OpReply) -> Option<&ConflictCopy> {
    match reply {
        OpReply::Committed { conflict, .. } => conflict.as_ref(),
        _ => None,
    }
}

/// Attributes that a reply tells.
fn told(reply: &OpReply) -> impl Iterator<Item = &InodeAttr> {
    let (one, two) = match reply {
        OpReply::Attr(attr) | OpReply::Removed { attr, .. } | OpReply::Committed { attr, .. } => (Some(attr), None),
        OpReply::Renamed { moved, replaced, .. } => (Some(moved), replaced.as_ref()),
        OpReply::Inos { .. } | OpReply::Done => (None, None),
    };
    one.into_iter().chain(two)
}

#[cfg(test)]
mod known_tests;

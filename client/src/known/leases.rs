//! Which leases and delegations the session holds, and what was recalled or changed since when. Pure.
//!
//! A clock of its own counts recalls and changes. An answer is kept only if nothing of what it is about was recalled, or
//! changed here, since the [`Mark`] that was taken before it was asked for.

use super::{INODES_MAX, Now, lru};
use lru::LruCache;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::Ino;
use wire::limits::LEASE_MS;

/// Leases are used so long after they were asked for: less than metad waits, because clocks differ in speed.
pub const LEASE_USED: Duration = Duration::from_millis(LEASE_MS / 10 * 9);
/// The kernel is given nothing to believe of what others changed so long ago: recalls of it need not wait.
const CONTENDED_FOR: Duration = Duration::from_secs(2);

/// A moment before a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// Leases and delegations.
pub struct Leases {
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
    floor: Mark,
    /// When an inode was last recalled.
    recalled: LruCache<Ino, (Mark, Instant)>,
    /// When an inode was last changed here.
    changed: LruCache<Ino, Mark>,
    /// Inodes that nobody else has leases on.
    delegated: LruCache<Ino, ()>,
    /// When a delegation was last ended, though not what is known.
    shared: LruCache<Ino, Mark>,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            attached: false,
            until: None,
            covered: None,
            lapses: 0,
            alone: false,
            clock: 0,
            floor: Mark(0),
            recalled: lru(INODES_MAX),
            changed: lru(INODES_MAX),
            delegated: lru(INODES_MAX),
            shared: lru(INODES_MAX),
        }
    }
}

impl Leases {
    /// Now, on the clock of recalls and changes.
    pub fn mark(&self) -> Mark {
        Mark(self.clock)
    }

    /// A recall or a change happens.
    pub fn tick(&mut self) -> Mark {
        self.clock += 1;
        self.mark()
    }

    /// metad has begun to count our leases: what was asked before it did is not kept.
    pub fn attach(&mut self) {
        self.attached = true;
        self.floor = self.tick();
    }

    /// metad counts no leases of ours, or not for long.
    pub fn detach(&mut self) {
        (self.attached, self.until, self.alone) = (false, None, false);
    }

    /// All leases and delegations are gone. What was recalled stays contended.
    pub fn drop_all(&mut self) {
        self.floor = self.tick();
        self.delegated.clear();
    }

    /// The leases hold for a while from when this was asked; `mark` was taken then.
    pub fn extend(&mut self, asked: Duration, mark: Mark, alone: bool, now: Now) {
        if !self.attached || self.floor > mark {
            return;
        }
        if self.is_uncovered(now) {
            self.lapses += 1;
        }
        self.covered = self.covered.max(Some(asked + LEASE_USED));
        self.until = self.until.max(Some(asked + LEASE_USED));
        self.alone = alone;
    }

    /// Another session arrives.
    pub fn end_alone(&mut self) {
        self.alone = false;
    }

    /// Whether no other session keeps caches.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// How often metad has gone on without this session: each time, others may have changed anything.
    pub fn lapses(&self, now: Now) -> u64 {
        self.lapses + u64::from(self.is_uncovered(now))
    }

    /// Whether metad waits no longer for this session.
    fn is_uncovered(&self, now: Now) -> bool {
        self.covered.is_some_and(|until| until < now.boot)
    }

    /// Whether what is known may be used.
    pub fn hold(&self, now: Now) -> bool {
        self.until.is_some_and(|until| until > now.boot)
    }

    /// For how long it may be used.
    pub fn time_left(&self, now: Now) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_sub(now.boot))
    }

    /// Whether others have changed an inode, or may have, since it was asked about.
    pub fn is_recalled_since(&self, ino: Ino, mark: Mark) -> bool {
        !self.attached || self.floor > mark || self.recalled.peek(&ino).is_some_and(|(at, _)| *at > mark)
    }

    /// Whether others or this session have changed an inode, or may have, since it was asked about.
    pub fn is_changed_since(&self, ino: Ino, mark: Mark) -> bool {
        self.is_recalled_since(ino, mark) || self.is_changed_here_since(ino, mark)
    }

    /// Whether this session has changed an inode, or may have, since it was asked about.
    pub fn is_changed_here_since(&self, ino: Ino, mark: Mark) -> bool {
        self.changed.peek(&ino).is_some_and(|at| *at > mark)
    }

    /// Whether others changed an inode a moment ago.
    pub fn is_contended(&self, ino: Ino, now: Now) -> bool {
        self.recalled.peek(&ino).is_some_and(|(_, at)| now.awake.saturating_duration_since(*at) < CONTENDED_FOR)
    }

    /// Others are about to change an inode.
    pub fn note_recall(&mut self, ino: Ino, at: Mark, now: Now) {
        self.delegated.pop(&ino);
        if let Some((_, (forgotten, _))) = self.recalled.push(ino, (at, now.awake)).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    /// This session changes an inode.
    pub fn note_change(&mut self, ino: Ino, at: Mark) {
        if let Some((_, forgotten)) = self.changed.push(ino, at).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    /// A delegation ends; what is known of the inode stays right.
    pub fn note_share(&mut self, ino: Ino, at: Mark) {
        self.delegated.pop(&ino);
        if let Some((_, forgotten)) = self.shared.push(ino, at).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    /// Delegations came with an answer that was asked for at `mark`.
    pub fn delegate(&mut self, inos: &[Ino], mark: Mark) {
        for ino in inos {
            let ended = self.shared.peek(ino).is_some_and(|at| *at > mark);
            if !ended && !self.is_recalled_since(*ino, mark) {
                self.delegated.put(*ino, ());
            }
        }
    }

    /// Whether this session alone may change an inode. One that metad does not know yet is nobody else's.
    pub fn is_delegated(&self, ino: Ino, is_made_here: bool, now: Now) -> bool {
        self.attached && (is_made_here || (self.hold(now) && self.delegated.contains(&ino)))
    }
}

//! Leases and delegations that the session holds, and when inodes were recalled or changed. Pure.
//!
//! A logical clock counts recalls and changes. An answer is cached only if nothing that it is about was recalled, or
//! changed here, since the [`Mark`] that was taken before it was asked for.

use super::{INODES_MAX, Now, count_down};
use crate::recent::lru;
use lru::LruCache;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::Ino;
use wire::limits::LEASE_MS;

/// Leases are used for this long after they were asked for: shorter than metad waits, because clocks differ in speed.
pub const LEASE_USED: Duration = Duration::from_millis(LEASE_MS / 10 * 9);
/// The kernel is not given anything to believe of inodes that others changed within this time: recalls of these need
/// not wait.
const CONTENDED_FOR: Duration = Duration::from_secs(2);

/// A session that has a file open, or content of it that is not committed, asks about it within this time after its lease
/// was recalled, and so ends the delegation of whoever has got one.
const OTHERS_ASK_WITHIN: Duration = Duration::from_secs(2);

/// A moment before a question, by the logical clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u64);

/// Leases and delegations.
pub struct Leases {
    /// metad counts our leases, so answers may be cached.
    attached: bool,
    /// Until when the leases may be used, by a clock that goes on while the machine sleeps.
    until: Option<Duration>,
    /// Until when metad waits for this session, whether its cached answers are valid or not.
    covered: Option<Duration>,
    /// How often that time has run out.
    lapses: u64,
    /// No other session has leases.
    alone: bool,
    /// The logical clock of recalls and changes.
    clock: u64,
    /// Answers that were asked for before this mark are not cached.
    floor: Mark,
    /// When an inode was last recalled.
    recalled: LruCache<Ino, (Mark, Instant)>,
    /// When an inode was last changed here.
    changed: LruCache<Ino, Mark>,
    /// Inodes that are being changed here, with the number of changes under way.
    changing: HashMap<Ino, usize>,
    /// When metad last gave no lease on an inode, because others were changing it.
    crowded: LruCache<Ino, Instant>,
    /// Inodes on which no other session has leases, and since when; `None` for what was made here.
    delegated: LruCache<Ino, Option<Instant>>,
    /// When a delegation was last ended while cached answers remained valid.
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
            changing: HashMap::new(),
            crowded: lru(INODES_MAX),
            delegated: lru(INODES_MAX),
            shared: lru(INODES_MAX),
        }
    }
}

impl Leases {
    /// Returns the present time on the logical clock.
    pub fn mark(&self) -> Mark {
        Mark(self.clock)
    }

    /// Advances the clock for a recall or a change.
    pub fn tick(&mut self) -> Mark {
        self.clock += 1;
        self.mark()
    }

    /// Notes that metad has begun to count our leases. Answers that were asked for before are not cached.
    pub fn attach(&mut self) {
        self.attached = true;
        self.floor = self.tick();
    }

    /// Notes that metad does not count our leases, or not for long.
    pub fn detach(&mut self) {
        (self.attached, self.until, self.alone) = (false, None, false);
    }

    /// Drops all leases and delegations. Recalled inodes stay contended.
    pub fn drop_all(&mut self) {
        self.floor = self.tick();
        self.delegated.clear();
    }

    /// Extends the leases from when this was asked; `mark` was taken then.
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

    /// Notes that another session arrives.
    pub fn end_alone(&mut self) {
        self.alone = false;
    }

    /// Returns whether no other session has leases.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Returns how often metad may have gone on without this session: each time, others may have changed anything.
    pub fn lapses(&self, now: Now) -> u64 {
        self.lapses + u64::from(self.is_uncovered(now))
    }

    /// Returns whether metad does not wait for this session any more.
    fn is_uncovered(&self, now: Now) -> bool {
        self.covered.is_some_and(|until| until < now.boot)
    }

    /// Returns whether cached answers may be used.
    pub fn hold(&self, now: Now) -> bool {
        self.until.is_some_and(|until| until > now.boot)
    }

    /// Returns for how long they may be used.
    pub fn time_left(&self, now: Now) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_sub(now.boot))
    }

    /// Returns whether others have changed an inode, or may have, since it was asked about.
    pub fn is_recalled_since(&self, ino: Ino, mark: Mark) -> bool {
        !self.attached || self.floor > mark || self.recalled.peek(&ino).is_some_and(|(at, _)| *at > mark)
    }

    /// Returns whether others or this session have changed an inode, or may have, since it was asked about. An answer
    /// from the time of a change here may be of before it, and metad recalls nothing for a session's own change.
    pub fn is_changed_since(&self, ino: Ino, mark: Mark) -> bool {
        self.is_recalled_since(ino, mark) || self.is_changed_here_since(ino, mark) || self.changing.contains_key(&ino)
    }

    /// Returns whether this session has changed an inode, or may have, since it was asked about.
    pub fn is_changed_here_since(&self, ino: Ino, mark: Mark) -> bool {
        self.changed.peek(&ino).is_some_and(|at| *at > mark)
    }

    /// Returns whether others changed an inode a moment ago.
    pub fn is_contended(&self, ino: Ino, now: Now) -> bool {
        let lately = |at: &Instant| now.awake.saturating_duration_since(*at) < CONTENDED_FOR;
        self.recalled.peek(&ino).is_some_and(|(_, at)| lately(at)) || self.crowded.peek(&ino).is_some_and(lately)
    }

    /// Notes that metad gave no lease on an inode, because others were changing it.
    pub fn note_crowded(&mut self, ino: Ino, now: Now) {
        self.crowded.put(ino, now.awake);
    }

    /// Notes that others are about to change an inode.
    pub fn note_recall(&mut self, ino: Ino, at: Mark, now: Now) {
        self.delegated.pop(&ino);
        if let Some((_, (forgotten, _))) = self.recalled.push(ino, (at, now.awake)).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    /// Notes that a change of these inodes begins here.
    pub fn begin_changing(&mut self, inos: &[Ino]) {
        for ino in inos {
            *self.changing.entry(*ino).or_insert(0) += 1;
        }
    }

    /// Notes that a change that was noted has ended.
    pub fn end_changing(&mut self, inos: &[Ino]) {
        for ino in inos {
            count_down(&mut self.changing, *ino);
        }
    }

    /// Notes that this session changes an inode.
    pub fn note_change(&mut self, ino: Ino, at: Mark) {
        if let Some((_, forgotten)) = self.changed.push(ino, at).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    /// Ends a delegation. Cached answers about the inode remain valid.
    pub fn note_share(&mut self, ino: Ino, at: Mark) {
        self.delegated.pop(&ino);
        if let Some((_, forgotten)) = self.shared.push(ino, at).filter(|(old, _)| *old != ino) {
            self.floor = self.floor.max(forgotten);
        }
    }

    /// Adds delegations that came with an answer that was asked for at `mark`, some on what was `made` by it.
    pub fn delegate(&mut self, inos: &[Ino], mark: Mark, made: &[Ino], now: Now) {
        for ino in inos {
            let ended = self.shared.peek(ino).is_some_and(|at| *at > mark);
            if !ended && !self.is_recalled_since(*ino, mark) {
                let since = (!made.contains(ino)).then_some(now.awake);
                // One that is renewed keeps its age.
                self.delegated.get_or_insert(*ino, || since);
            }
        }
    }

    /// Returns whether this session alone may change an inode, and no other one has content of it that is still to be
    /// committed: the change that brought the delegation may have recalled the lease of one that has.
    pub fn is_long_delegated(&self, ino: Ino, is_made_here: bool, now: Now) -> bool {
        let is_old = |since: &Option<Instant>| {
            since.is_none_or(|at| now.awake.saturating_duration_since(at) >= OTHERS_ASK_WITHIN)
        };
        self.is_delegated(ino, is_made_here, now) && (is_made_here || self.delegated.peek(&ino).is_some_and(is_old))
    }

    /// Returns whether this session alone may change an inode. It may always change one that metad does not know yet.
    pub fn is_delegated(&self, ino: Ino, is_made_here: bool, now: Now) -> bool {
        self.attached && (is_made_here || (self.hold(now) && self.delegated.contains(&ino)))
    }
}

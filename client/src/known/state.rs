//! Everything that is known, as one state: its parts depend on each other, and [`super::Known`] guards them with one
//! lock. Pure.
//!
//! - This file has the questions.
//! - `learning` applies metad's answers, and changes by this session.
//! - `pinning` applies what is done here under delegations.

use super::attrs::Attrs;
use super::leases::{Leases, Mark};
use super::listings::{Listed, Listings, PageKey};
use super::names::{Names, Places};
use super::pins::Pins;
use super::walks::Walks;
use super::{NameState, Now};
use crate::kernel::{BELIEF_MARGIN, Beliefs, KERNEL_TRUST, KERNEL_TRUST_ALONE};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::limits::NAME_BYTES_MAX;

/// A session is at work for this long after a change: a program that works in a tree goes on there, and needs
/// delegations.
const WORK_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Everything that a session knows.
#[derive(Default)]
pub struct State {
    pub(super) leases: Leases,
    pub(super) attrs: Attrs,
    pub(super) names: Names,
    pub(super) places: Places,
    pub(super) listings: Listings,
    pub(super) pins: Pins,
    pub(super) walks: Walks,
    pub(super) beliefs: Beliefs,
    /// What is being changed here, by the mark of each change.
    pub(super) changing: HashMap<Mark, Vec<Ino>>,
    /// When something was last changed here.
    worked_at: Option<Duration>,
}

impl State {
    /// Returns attributes, if they are known now.
    pub fn attr(&mut self, ino: Ino, now: Now) -> Option<InodeAttr> {
        match self.pins.attr(ino) {
            Some(pinned) => Some(pinned.clone()),
            None if self.leases.hold(now) => self.attrs.get(ino).cloned(),
            None => None,
        }
    }

    /// Returns where a name leads, if that is known now.
    pub fn name_state(&mut self, parent: Ino, name: &[u8], now: Now) -> NameState {
        // A name that is too long is neither present nor absent: asking about it is an error. `.` and `..` are not
        // entries, but lookups ask about them when a handle is opened.
        if name.len() > NAME_BYTES_MAX || matches!(name, b"." | b"..") {
            return NameState::Unknown;
        }
        let place = (parent, name.to_vec());
        let known = |ino: Option<Ino>| ino.map_or(NameState::Absent, NameState::Leads);
        if let Some(ino) = self.pins.name(&place) {
            return known(ino);
        }
        if !self.leases.hold(now) && !self.pins.is_ours_alone(parent) {
            return NameState::Unknown;
        }
        if let Some((ino, since)) = self.names.get(&place) {
            if !self.leases.is_recalled_since(parent, since) {
                return known(ino);
            }
            self.names.forget(&place);
        }
        if self.names.is_missing(parent, name) { NameState::Absent } else { NameState::Unknown }
    }

    /// Returns what a name leads to, or that it is absent, if that is known now.
    pub fn name(&mut self, parent: Ino, name: &[u8], now: Now) -> Option<Result<InodeAttr, FsError>> {
        match self.name_state(parent, name, now) {
            NameState::Leads(ino) => self.attr(ino, now).map(Ok),
            NameState::Absent => Some(Err(FsError::NotFound)),
            NameState::Unknown => None,
        }
    }

    /// Returns part of a listing, if all of it is known now.
    pub fn page(&mut self, key: PageKey, now: Now) -> Option<Listed> {
        if !self.leases.hold(now) {
            return None;
        }
        let (listed, since) = self.listings.get(key)?;
        if self.leases.is_changed_since(key.dir, since) {
            self.listings.forget(key);
            return None;
        }
        let mut listed = Listed::clone(&listed);
        if key.plus {
            for entry in &mut listed.entries {
                entry.attr = Some(self.attr(entry.ino, now)?);
            }
        }
        Some(listed)
    }

    /// Returns whether this session alone may change an inode, and no other session has leases on it.
    pub fn is_delegated(&self, ino: Ino, now: Now) -> bool {
        self.leases.is_delegated(ino, self.pins.is_ours_alone(ino), now)
    }

    /// Returns whether this session alone may change an inode, and no other one has content of it to commit.
    pub fn is_long_delegated(&self, ino: Ino, now: Now) -> bool {
        self.leases.is_long_delegated(ino, self.pins.is_ours_alone(ino), now)
    }

    /// Notes that something is changed here.
    pub fn note_work(&mut self, now: Now) {
        self.worked_at = Some(now.boot);
    }

    /// Returns whether something was changed here a moment ago.
    pub fn is_at_work(&self, now: Now) -> bool {
        self.worked_at.is_some_and(|at| now.boot.saturating_sub(at) < WORK_PAUSE_MAX)
    }

    /// Returns how often metad may have gone on without this session: each time, others may have changed anything.
    pub fn lapses(&self, now: Now) -> u64 {
        self.leases.lapses(now)
    }

    /// Returns for how long the kernel may believe these attributes, which it is given now.
    pub fn believe_attr(&mut self, attr: &InodeAttr, now: Now) -> Duration {
        if self.attr(attr.ino, now).as_ref() == Some(attr) { self.believe(attr.ino, now) } else { Duration::ZERO }
    }

    /// Returns for how long the kernel may believe that a name leads to an inode, or is absent, when it is given that
    /// now.
    pub fn believe_name(&mut self, parent: Ino, name: &[u8], ino: Option<Ino>, now: Now) -> Duration {
        let said = ino.map_or(NameState::Absent, NameState::Leads);
        // A program here that makes the name would go on believing that it is absent, though others see it already:
        // nothing is recalled for a session's own change.
        let is_ours = ino.is_some() || self.leases.is_alone() || self.is_delegated(parent, now);
        if is_ours && self.name_state(parent, name, now) == said { self.believe(parent, now) } else { Duration::ZERO }
    }

    /// Notes that a name was moved here: what the kernel believes of it in its old directory, it believes in the new one.
    pub fn note_moved(&mut self, parent: Ino, new_parent: Ino, now: Now) {
        if parent != new_parent && self.beliefs.until(parent).is_some_and(|until| until > now.awake) {
            self.beliefs.note(new_parent, now.awake);
        }
    }

    fn believe(&mut self, ino: Ino, now: Now) -> Duration {
        let left = self.leases.time_left(now).saturating_sub(BELIEF_MARGIN);
        if self.leases.is_contended(ino, now) || left < KERNEL_TRUST {
            return Duration::ZERO;
        }
        if self.leases.is_alone() && left > KERNEL_TRUST_ALONE {
            self.beliefs.note_alone(now.awake);
            return KERNEL_TRUST_ALONE;
        }
        self.beliefs.note(ino, now.awake);
        KERNEL_TRUST
    }
}

/// Recalls by metad. Each method returns when to acknowledge: when the kernel believes nothing of it any more.
impl State {
    /// Drops all leases: nothing is used or cached until metad counts leases again.
    pub fn empty(&mut self) -> Option<Instant> {
        self.leases.detach();
        self.recall_all()
    }

    /// Gives all leases back to metad, and remains attached.
    pub fn recall_all(&mut self) -> Option<Instant> {
        self.leases.drop_all();
        self.attrs.drop_leased();
        self.names.clear();
        self.listings.clear();
        self.beliefs.until_any()
    }

    /// Recalls these inodes, which others are about to change.
    pub fn recall(&mut self, inos: &[Ino], now: Now) -> Option<Instant> {
        let at = self.leases.tick();
        for ino in inos {
            self.attrs.forget(*ino);
            self.names.end_complete(*ino);
            self.pins.note_asked_about(*ino);
            self.leases.note_recall(*ino, at, now);
        }
        inos.iter().map(|ino| self.beliefs.until(*ino)).max().flatten()
    }

    /// Ends the delegations on these inodes. Cached answers remain valid.
    pub fn share(&mut self, inos: &[Ino]) {
        let at = self.leases.tick();
        for ino in inos {
            self.pins.note_asked_about(*ino);
            self.leases.note_share(*ino, at);
        }
    }

    /// Notes that another session arrives.
    pub fn company(&mut self) -> Option<Instant> {
        self.leases.end_alone();
        self.beliefs.until_alone()
    }
}

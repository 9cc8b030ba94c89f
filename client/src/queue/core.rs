//! The queue itself: entries in the order in which they were done, and how far they are acknowledged and journaled.
//! Pure: `now` is passed in, and `F` stands for a file whose content is sent.
//!
//! Entries are numbered without gaps. `acknowledged` and `journaled` only grow, and entries leave at the front.

use crate::known::{Place, count_down};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{Ino, Version};
use wire::op::{Expect, Op};

/// An entry waits this long for more to go along in its batch.
const SEND_DELAY: Duration = Duration::from_millis(100);
/// This many entries are sent at once, even if they could wait.
const SEND_ENTRIES: usize = 256;
/// Beyond it, new operations wait.
const ENTRIES_MAX: usize = 4096;
/// New operations also wait when content has waited this long to be acknowledged or journaled. A disk on which
/// everything is written twice is slower than the program that is made to wait.
const CONTENT_WAIT_MAX: Duration = Duration::from_millis(300);
/// metad waits longer than this for a live session when others look at what it holds delegations on.
const METAD_WAIT_MIN: Duration = Duration::from_secs(50);
/// A program that opens something within this time of a failed operation may be the one that did it.
const LOSS_REPORTED_FOR: Duration = Duration::from_secs(60);

/// Inodes and names that an entry changes.
pub(crate) type Touched = (Vec<Ino>, Vec<Place>);

/// What an entry sends.
pub(crate) enum Work<F> {
    /// A change of metadata, and names as they were before it.
    Change { op: Op, expect: Vec<Expect> },
    /// Content of a file that was sealed up to this number.
    Content { file: F, upto: u64 },
    /// Nothing, because the operation was undone.
    Undone,
}

/// An operation that was done here.
pub(crate) struct Entry<F> {
    pub(crate) number: u64,
    /// When it was done, by the leader's clock as well as that is known.
    pub(crate) at: Timestamp,
    pub(crate) queued: Instant,
    /// The inodes that it changes.
    pub(crate) inos: Vec<Ino>,
    pub(crate) names: Vec<Place>,
    pub(crate) work: Work<F>,
    /// The version that its content was based on when it was written into the journal.
    pub(crate) journal_base: Option<Version>,
    /// How often leases had lapsed when it was done; `u64::MAX` when an earlier client did it.
    lapses: u64,
}

impl<F> Entry<F> {
    /// Returns the inode that it removes without naming its version.
    fn dooms(&self) -> Option<Ino> {
        let Work::Change { op: Op::Unlink { released, .. } | Op::Rename { released, .. }, expect } = &self.work else {
            return None;
        };
        let ino = (*released)?;
        expect.iter().any(|expect| expect.ino == Some(ino) && expect.version.is_none()).then_some(ino)
    }
}

/// The entries, and how far they have been sent.
pub(crate) struct Core<F> {
    /// Unacknowledged entries, the oldest first.
    pub(super) entries: VecDeque<Entry<F>>,
    /// Content entries among them: their numbers, and when they were added.
    contents: VecDeque<(u64, Instant)>,
    /// Number of the last entry.
    last: u64,
    /// metad has acknowledged everything up to this entry.
    acknowledged: u64,
    /// Everything up to this entry is in the journal.
    journaled: u64,
    /// There is a journal, and it can be written.
    journal_works: bool,
    /// The journal is being replayed: nothing is left out, whatever is wrong with it.
    strict: bool,
    /// Undone entries that the journal may have.
    undone: Vec<u64>,
    /// How many operations were done here and failed later.
    lost: u64,
    /// Why and when the last one failed, unless it has been reported.
    loss: Option<(FsError, Instant)>,
    loss_reported: bool,
    /// Inodes that entries remove although content of them was not committed, and the version that its commit has made
    /// since.
    doomed: HashMap<Ino, Option<Version>>,
    /// Somebody waits for everything up to this entry.
    urgent: u64,
    /// Inodes that something else is changing now: operations on them must not get into the queue.
    barred: HashMap<Ino, usize>,
    /// How many attempts to send failed, and how the last one did.
    failures: u64,
    failure: Option<FsError>,
}

impl<F> Default for Core<F> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            contents: VecDeque::new(),
            last: 0,
            acknowledged: 0,
            journaled: 0,
            journal_works: false,
            strict: false,
            undone: Vec::new(),
            lost: 0,
            loss: None,
            loss_reported: false,
            doomed: HashMap::new(),
            urgent: 0,
            barred: HashMap::new(),
            failures: 0,
            failure: None,
        }
    }
}

/// When the next batch is to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    Now,
    At(Instant),
    Never,
}

/// Adding and removing entries.
impl<F> Core<F> {
    /// Returns unacknowledged entries, the oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry<F>> {
        self.entries.iter()
    }

    /// Returns the number of the next entry.
    pub(crate) fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Adds an entry. True when the sender must wake up.
    pub(crate) fn enter(&mut self, at: Timestamp, touched: Touched, work: Work<F>, lapses: u64, now: Instant) -> bool {
        self.push(self.next_number(), at, touched, work, lapses, now);
        self.entries.len() == 1 || self.entries.len() >= SEND_ENTRIES
    }

    fn push(
        &mut self,
        number: u64,
        at: Timestamp,
        (inos, names): Touched,
        work: Work<F>,
        lapses: u64,
        queued: Instant,
    ) {
        if let Work::Content { .. } = work {
            self.contents.push_back((number, queued));
        }
        self.last = number;
        let entry = Entry { number, at, queued, inos, names, work, journal_base: None, lapses };
        if let Some(ino) = entry.dooms() {
            self.doomed.insert(ino, None);
        }
        self.entries.push_back(entry);
    }

    /// Adds the operations that an earlier client left in the journal, in the order of their numbers.
    pub(crate) fn enter_again(&mut self, entries: Vec<(u64, Timestamp, Touched, Work<F>)>, now: Instant) {
        for (number, at, touched, work) in entries {
            self.push(number, at, touched, work, u64::MAX, now);
        }
    }

    /// Removes the first entry, which metad has acknowledged.
    pub(crate) fn pop(&mut self, number: u64) {
        debug_assert_eq!(self.entries.front().map(|entry| entry.number), Some(number), "sent in order");
        if let Some(ino) = self.entries.pop_front().and_then(|entry| entry.dooms()) {
            self.doomed.remove(&ino);
        }
        if self.contents.front().is_some_and(|(content, _)| *content == number) {
            self.contents.pop_front();
        }
        self.acknowledged = number;
        self.undone.retain(|undone| *undone > number);
    }

    /// Continues a journal that has entries up to `last`, of which those up to `acknowledged` are acknowledged.
    pub(crate) fn start_behind(&mut self, acknowledged: u64, last: u64) {
        (self.acknowledged, self.last, self.journaled) = (acknowledged, last, last);
    }

    /// While this is set, an error of an entry is never taken to concern that entry only.
    pub(crate) fn be_strict(&mut self, strict: bool) {
        self.strict = strict;
        // Nobody has anything open that these operations concern.
        self.loss = None;
    }
}

/// Waiting.
impl<F> Core<F> {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Returns the number up to which metad has acknowledged all entries.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Returns the number of the last entry. `None` while the journal is replayed: nobody was promised anything of it,
    /// and two mounts that replay must not wait for each other.
    pub(crate) fn tail(&self) -> Option<u64> {
        (!self.entries.is_empty() && !self.strict).then_some(self.last)
    }

    /// Returns the number of the last entry that changes one of these inodes or names in them.
    pub(crate) fn tail_on(&self, inos: &[Ino]) -> Option<u64> {
        let wanted: HashSet<Ino> = inos.iter().copied().collect();
        let touches = |entry: &&Entry<F>| {
            entry.inos.iter().any(|ino| wanted.contains(ino))
                || entry.names.iter().any(|(parent, _)| wanted.contains(parent))
        };
        self.entries.iter().rev().filter(|_| !self.strict).find(touches).map(|entry| entry.number)
    }

    /// Returns these inodes, and unacknowledged ones that were made in them or below: a session that looks at one of
    /// them may find those next.
    pub(crate) fn with_made_in(&self, mut inos: Vec<Ino>) -> Vec<Ino> {
        let mut known: HashSet<Ino> = inos.iter().copied().collect();
        for entry in &self.entries {
            if let Work::Change { op: Op::Create { parent, ino, .. }, .. } = &entry.work
                && known.contains(parent)
                && known.insert(*ino)
            {
                inos.push(*ino);
            }
        }
        inos
    }

    pub(crate) fn hurry(&mut self, upto: u64) {
        self.urgent = self.urgent.max(upto);
    }

    /// Returns when the next batch is to be sent.
    pub(crate) fn due(&self) -> Due {
        match self.entries.front() {
            None => Due::Never,
            Some(_) if self.urgent > self.acknowledged || self.entries.len() >= SEND_ENTRIES => Due::Now,
            Some(oldest) => Due::At(oldest.queued + SEND_DELAY),
        }
    }

    /// Returns whether there is room for more.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        let first = self.contents.get(self.contents.partition_point(|(number, _)| *number <= self.journaled));
        let waits = |(_, queued): &(u64, Instant)| now.saturating_duration_since(*queued) > CONTENT_WAIT_MAX;
        self.entries.len() < ENTRIES_MAX && !(self.journal_works && first.is_some_and(waits))
    }

    /// Notes that an attempt to send failed.
    pub(crate) fn note_failure(&mut self, error: FsError) {
        self.failures += 1;
        self.failure = Some(error);
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Returns how the last attempt to send failed, if one has since there were `failures` of them.
    pub(crate) fn failure_since(&self, failures: u64) -> Option<FsError> {
        self.failure.filter(|_| self.failures > failures)
    }

    /// Keeps later operations on these inodes out of the queue.
    pub(crate) fn bar(&mut self, inos: &[Ino]) {
        for ino in inos {
            *self.barred.entry(*ino).or_insert(0) += 1;
        }
    }

    pub(crate) fn unbar(&mut self, inos: &[Ino]) {
        for ino in inos {
            count_down(&mut self.barred, *ino);
        }
    }

    pub(crate) fn is_barred(&self, inos: &[Ino]) -> bool {
        inos.iter().any(|ino| self.barred.contains_key(ino))
    }
}

/// The journal.
impl<F> Core<F> {
    /// Returns the entries that are not in the journal, the oldest first.
    pub(crate) fn unjournaled(&mut self) -> impl Iterator<Item = &mut Entry<F>> {
        let from = self.entries.partition_point(|entry| entry.number <= self.journaled);
        self.entries.range_mut(from..)
    }

    /// Returns since when an entry has been neither acknowledged nor journaled.
    pub(crate) fn unjournaled_since(&self) -> Option<Instant> {
        let from = self.entries.partition_point(|entry| entry.number <= self.journaled);
        self.entries.get(from).map(|entry| entry.queued)
    }

    /// Notes that everything up to this entry is in the journal.
    pub(crate) fn note_journaled(&mut self, upto: u64) {
        self.journaled = self.journaled.max(upto);
    }

    pub(crate) fn is_journaled(&self, number: u64) -> bool {
        self.journaled >= number
    }

    /// Notes whether the journal can be written: only then do operations wait for it.
    pub(crate) fn note_journal_works(&mut self, works: bool) {
        self.journal_works = works;
    }

    /// Returns the undone entries that the journal still has as done.
    pub(crate) fn undone(&self) -> Vec<u64> {
        self.undone.clone()
    }

    /// Notes that the journal has recorded these as undone.
    pub(crate) fn note_undone_journaled(&mut self, known: &[u64]) {
        self.undone.retain(|number| !known.contains(number));
    }
}

/// Operations that fail after they were done here.
impl<F> Core<F> {
    /// Undoes operations that would put this inode in place of another one: its content cannot be stored, and the one
    /// that it would replace is the only complete one. Returns what was undone: numbers, inodes and names.
    pub(crate) fn undo_replacing(&mut self, ino: Ino, error: FsError, now: Instant) -> Vec<(u64, Touched)> {
        let mut undone = Vec::new();
        for entry in &mut self.entries {
            let Work::Change { op: Op::Rename { .. }, expect } = &entry.work else { continue };
            let (source, target) = (expect.first(), expect.get(1));
            if source.is_some_and(|source| source.ino == Some(ino)) && target.is_some_and(|target| target.ino.is_some())
            {
                entry.work = Work::Undone;
                undone.push((entry.number, (entry.inos.clone(), entry.names.clone())));
            }
        }
        if !undone.is_empty() {
            self.note_lost(error, now);
        }
        self.undone.extend(undone.iter().map(|(number, _)| *number));
        undone
    }

    /// Returns whether an unacknowledged entry moves the inode, or replaces it by a moved one.
    pub(crate) fn is_moved(&self, ino: Ino) -> bool {
        let moves = |entry: &Entry<F>| match &entry.work {
            Work::Change { op: Op::Rename { .. }, expect } => expect.iter().any(|expect| expect.ino == Some(ino)),
            _ => false,
        };
        self.entries.iter().any(moves)
    }

    /// Returns whether others cannot have changed anything before this entry, the first one, reached metad, because
    /// metad waited for it. If so, it is sent once more, without the version of the content that it expects: a program
    /// that wrote meanwhile had the file open, and wrote before the file lost its name.
    pub(crate) fn is_in_time(&mut self, number: u64, lapses: u64, now: Instant) -> bool {
        let first = self.entries.front_mut().filter(|first| first.number == number);
        let Some(Entry { work: Work::Change { expect, .. }, queued, lapses: before, .. }) = first else { return false };
        let in_time = *before == lapses && now.saturating_duration_since(*queued) < METAD_WAIT_MIN;
        let own = expect.iter().filter_map(|expect| self.doomed.get(&expect.ino?).copied().flatten()).next();
        let versions = own.is_some() || expect.iter().any(|expect| expect.version.is_some());
        if in_time {
            for ino in expect.iter().filter_map(|expect| expect.ino) {
                self.doomed.remove(&ino);
            }
            expect.iter_mut().for_each(|expect| expect.version = None);
        }
        in_time && versions
    }

    /// Notes that content of a file was committed, or is given up. This version has nothing but what was seen or
    /// written here.
    pub(crate) fn note_content(&mut self, ino: Ino, version: Version) {
        if let Some(own) = self.doomed.get_mut(&ino) {
            *own = Some(version);
        }
    }

    /// Returns the version that the content of a file has made before an entry removes it.
    pub(crate) fn content_before(&self, ino: Ino) -> Option<Version> {
        self.doomed.get(&ino).copied().flatten()
    }

    /// Notes that an operation that was done here has failed.
    pub(crate) fn note_lost(&mut self, error: FsError, now: Instant) {
        self.lost += 1;
        (self.loss, self.loss_reported) = (Some((error, now)), false);
    }

    /// Returns the count from which failures are to be reported to a new caller. A failure of a moment ago that was not
    /// reported yet is included.
    pub(crate) fn losses_reported(&self, now: Instant) -> u64 {
        let recent = |at: Instant| now.saturating_duration_since(at) < LOSS_REPORTED_FOR;
        let is_news = self.loss.is_some_and(|(_, at)| !self.loss_reported && recent(at));
        self.lost - u64::from(is_news)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Reports the last failure.
    pub(crate) fn report_loss(&mut self) -> Result<(), FsError> {
        self.loss_reported = true;
        self.loss.map_or(Ok(()), |(error, _)| Err(error))
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! The queue itself: entries in the order in which they were done, and how far they are sent and journaled. Pure: `now` is
//! passed in, and `F` is whatever stands for a file whose content is sent.
//!
//! Entries are numbered without gaps. `sent` and `journaled` only grow, and entries leave at the front.

use crate::known::{Place, count_down};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{Ino, Version};
use wire::op::{Expect, Op};

/// What was done waits so long for more to go along.
const SEND_DELAY: Duration = Duration::from_millis(100);
/// With so many entries they are sent at once, though they could wait.
const SEND_ENTRIES: usize = 256;
/// With more, whoever does something waits.
const ENTRIES_MAX: usize = 4096;
/// Whoever does something also waits when content has waited for so long to be sent or journaled. A disk on which
/// everything is written twice is slower than whoever waits here.
const CONTENT_WAIT_MAX: Duration = Duration::from_millis(300);
/// metad waits longer than this for a session that lives, when others look at what it has for itself.
const METAD_WAIT_MIN: Duration = Duration::from_secs(50);
/// Whoever opens something so soon after a change came to nothing may be the one who made it.
const LOSS_REPORTED_FOR: Duration = Duration::from_secs(60);

/// Inodes and names that an entry changes.
pub(crate) type Touched = (Vec<Ino>, Vec<Place>);

/// What there is to send.
pub(crate) enum Work<F> {
    /// A change of metadata, and names as they were before it.
    Change { op: Op, expect: Vec<Expect> },
    /// Content of a file, as far as it was sealed up to this number.
    Content { file: F, upto: u64 },
    /// Nothing any more: it was undone.
    Undone,
}

/// Something that was done.
pub(crate) struct Entry<F> {
    pub(crate) number: u64,
    /// When, by the leader's clock as far as it is known.
    pub(crate) at: Timestamp,
    pub(crate) queued: Instant,
    /// What it changes.
    pub(crate) inos: Vec<Ino>,
    pub(crate) names: Vec<Place>,
    pub(crate) work: Work<F>,
    /// What its content was based on when it was written into the journal.
    pub(crate) journal_base: Option<Version>,
    /// How often leases had lapsed when it was done; none of this session's counts when an earlier client did it.
    lapses: u64,
}

impl<F> Entry<F> {
    /// The inode that it takes away without saying of which version.
    fn dooms(&self) -> Option<Ino> {
        let Work::Change { op: Op::Unlink { released, .. } | Op::Rename { released, .. }, expect } = &self.work else {
            return None;
        };
        let ino = (*released)?;
        expect.iter().any(|expect| expect.ino == Some(ino) && expect.version.is_none()).then_some(ino)
    }
}

/// Entries, and how far they have come.
pub(crate) struct Core<F> {
    /// Not sent yet, the oldest first.
    pub(super) entries: VecDeque<Entry<F>>,
    /// Those of content: their numbers, and since when they are here.
    contents: VecDeque<(u64, Instant)>,
    /// Number of the last entry.
    last: u64,
    /// metad knows everything up to this one.
    acknowledged: u64,
    /// Everything up to this one is in the journal.
    journaled: u64,
    /// There is a journal, and it can be written.
    journal_works: bool,
    /// Nothing is left out, whatever is wrong with it: the journal is being replayed.
    strict: bool,
    /// Entries that were undone and that the journal may have.
    undone: Vec<u64>,
    /// How many changes were done here and came to nothing.
    lost: u64,
    /// Why the last one did, when, and whether somebody has heard of it.
    loss: Option<(FsError, Instant)>,
    loss_reported: bool,
    /// Inodes that entries take away though content of them was not committed, and the version that this has made since.
    doomed: HashMap<Ino, Option<Version>>,
    /// Up to here somebody waits.
    urgent: u64,
    /// Inodes that something else is changing now: what is done there must not get into the queue.
    barred: HashMap<Ino, usize>,
    /// Attempts to send that failed, and how the last one did.
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

/// Entering and leaving.
impl<F> Core<F> {
    /// Entries that are not sent, the oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry<F>> {
        self.entries.iter()
    }

    /// Number of the next entry.
    pub(crate) fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// Takes an entry in. True when the sender must look.
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

    /// Takes in what an earlier client did, and left in the journal, in the order of the numbers.
    pub(crate) fn enter_again(&mut self, entries: Vec<(u64, Timestamp, Touched, Work<F>)>, now: Instant) {
        for (number, at, touched, work) in entries {
            self.push(number, at, touched, work, u64::MAX, now);
        }
    }

    /// metad knows the first entry.
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

    /// Goes on with a journal in which entries up to `last` are, those up to `sent` sent.
    pub(crate) fn start_behind(&mut self, acknowledged: u64, last: u64) {
        (self.acknowledged, self.last, self.journaled) = (acknowledged, last, last);
    }

    /// While this is set, what is wrong with an entry is never taken to concern that one only.
    pub(crate) fn be_strict(&mut self, strict: bool) {
        self.strict = strict;
        // Nobody has anything open whose work that was.
        self.loss = None;
    }
}

/// Who waits, and for what.
impl<F> Core<F> {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Up to which entry metad knows everything.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Number of the last entry, with which everything is sent. `None` while the journal is replayed: nobody was ever
    /// promised anything of that, and two mounts that do so must not wait for each other.
    pub(crate) fn tail(&self) -> Option<u64> {
        (!self.entries.is_empty() && !self.strict).then_some(self.last)
    }

    /// Number of the last entry that changes one of these inodes or names in them.
    pub(crate) fn tail_on(&self, inos: &[Ino]) -> Option<u64> {
        let wanted: HashSet<Ino> = inos.iter().copied().collect();
        let touches = |entry: &&Entry<F>| {
            entry.inos.iter().any(|ino| wanted.contains(ino))
                || entry.names.iter().any(|(parent, _)| wanted.contains(parent))
        };
        self.entries.iter().rev().filter(|_| !self.strict).find(touches).map(|entry| entry.number)
    }

    /// These inodes, and what was made in them or below and is not sent: whoever looks at one of them may find that next.
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

    /// When the next batch is to be sent.
    pub(crate) fn due(&self) -> Due {
        match self.entries.front() {
            None => Due::Never,
            Some(_) if self.urgent > self.acknowledged || self.entries.len() >= SEND_ENTRIES => Due::Now,
            Some(oldest) => Due::At(oldest.queued + SEND_DELAY),
        }
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        let first = self.contents.get(self.contents.partition_point(|(number, _)| *number <= self.journaled));
        let waits = |(_, queued): &(u64, Instant)| now.saturating_duration_since(*queued) > CONTENT_WAIT_MAX;
        self.entries.len() < ENTRIES_MAX && !(self.journal_works && first.is_some_and(waits))
    }

    /// An attempt to send failed.
    pub(crate) fn note_failure(&mut self, error: FsError) {
        self.failures += 1;
        self.failure = Some(error);
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// How the last attempt to send failed, if one has since there were so many.
    pub(crate) fn failure_since(&self, failures: u64) -> Option<FsError> {
        self.failure.filter(|_| self.failures > failures)
    }

    /// From now on what is done to these inodes does not get into the queue.
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
    /// Entries that are not in the journal, the oldest first.
    pub(crate) fn unjournaled(&mut self) -> impl Iterator<Item = &mut Entry<F>> {
        let from = self.entries.partition_point(|entry| entry.number <= self.journaled);
        self.entries.range_mut(from..)
    }

    /// Since when an entry has been neither sent nor journaled.
    pub(crate) fn unjournaled_since(&self) -> Option<Instant> {
        let from = self.entries.partition_point(|entry| entry.number <= self.journaled);
        self.entries.get(from).map(|entry| entry.queued)
    }

    /// Everything up to this entry is in the journal.
    pub(crate) fn note_journaled(&mut self, upto: u64) {
        self.journaled = self.journaled.max(upto);
    }

    pub(crate) fn is_journaled(&self, number: u64) -> bool {
        self.journaled >= number
    }

    /// Whether the journal can be written: what is done waits for it only then.
    pub(crate) fn note_journal_works(&mut self, works: bool) {
        self.journal_works = works;
    }

    /// Entries that were undone, and of which the journal does not know it.
    pub(crate) fn undone(&self) -> Vec<u64> {
        self.undone.clone()
    }

    /// The journal knows it of these.
    pub(crate) fn note_undone_journaled(&mut self, known: &[u64]) {
        self.undone.retain(|number| !known.contains(number));
    }
}

/// What comes to nothing.
impl<F> Core<F> {
    /// Undoes what would put this inode in place of another one: its content cannot be stored, and what it would replace
    /// is all there is. Returns what was undone: numbers, inodes and names.
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

    /// Whether the inode is moved, or is to be replaced by what is, by something that is not sent yet.
    pub(crate) fn is_moved(&self, ino: Ino) -> bool {
        let moves = |entry: &Entry<F>| match &entry.work {
            Work::Change { op: Op::Rename { .. }, expect } => expect.iter().any(|expect| expect.ino == Some(ino)),
            _ => false,
        };
        self.entries.iter().any(moves)
    }

    /// Whether others can have changed something before this entry, the first one, came to metad: that waited for it. If
    /// not, it is sent once more, and what content its session knows is left out: whoever wrote had the file open, and
    /// did so before it lost its name.
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

    /// Content of a file was committed, or is given up; nothing but what was seen or written here is in this version.
    pub(crate) fn note_content(&mut self, ino: Ino, version: Version) {
        if let Some(own) = self.doomed.get_mut(&ino) {
            *own = Some(version);
        }
    }

    /// The version that content of a file has made before an entry takes it away.
    pub(crate) fn content_before(&self, ino: Ino) -> Option<Version> {
        self.doomed.get(&ino).copied().flatten()
    }

    /// A change that was done here came to nothing.
    pub(crate) fn note_lost(&mut self, error: FsError, now: Instant) {
        self.lost += 1;
        (self.loss, self.loss_reported) = (Some((error, now)), false);
    }

    /// How many losses somebody who begins to care now has heard of. What happened a moment ago, and nobody has heard of
    /// yet, they are to hear as well.
    pub(crate) fn heard(&self, now: Instant) -> u64 {
        let recent = |at: Instant| now.saturating_duration_since(at) < LOSS_REPORTED_FOR;
        let is_news = self.loss.is_some_and(|(_, at)| !self.loss_reported && recent(at));
        self.lost - u64::from(is_news)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Somebody hears of the last loss now.
    pub(crate) fn report_loss(&mut self) -> Result<(), FsError> {
        self.loss_reported = true;
        self.loss.map_or(Ok(()), |(error, _)| Err(error))
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

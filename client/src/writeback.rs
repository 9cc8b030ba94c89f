//! What was done under delegations and metad is told later: one queue, in the order in which it was done.
//!
//! Nobody else knows anything of an inode on which the session holds a *delegation*, so what is done there needs no answer
//! to be true: it is done in the caches ([`crate::known`], where it is pinned), put into this queue, and told in large
//! batches a moment later. metad ends a delegation before another session looks, and waits until everything is told.
//!
//! - this file is the queue, who waits for it, and who must not get into it;
//! - `local` carries out operations here;
//! - `tell` sends them, and judges what is refused because the session was away for too long.

mod local;
mod tell;

pub(crate) use tell::run;

use crate::Client;
use crate::file::state::FileState;
use crate::known::leased::LeasedSession;
use crate::known::{Known, Local};
use crate::opens::count_down;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{Ino, Version};
use wire::op::{Expect, Name, Op};

/// What was done waits so long for more to go along.
const DELAY: Duration = Duration::from_millis(100);
/// So much goes at once, though it could wait.
const ENOUGH: usize = 256;
/// With more, whoever does something waits.
const ENTRIES_MAX: usize = 4096;
/// The same when content has waited for so long: it is told, or else kept in the journal, before there is more. A disk on
/// which everything is written twice is slower than whoever waits here.
const BEHIND: Duration = Duration::from_millis(300);
/// metad waits longer than this for a session that lives, when others look at what it has for itself.
const WAITED_FOR: Duration = Duration::from_secs(50);
/// Who opens something so soon after a change came to nothing may be the one who made it.
const NEWS: Duration = Duration::from_secs(60);

/// What there is to tell.
pub(crate) enum Work {
    /// A change of metadata, and names as they were before it.
    Change { op: Op, expect: Vec<Expect> },
    /// Content of a file, as far as it was sealed up to this number.
    Content { file: Arc<FileState>, upto: u64 },
    /// Nothing any more: it was undone.
    Undone,
}

/// Something that was done.
pub(crate) struct Entry {
    pub(crate) number: u64,
    /// When, by the leader's clock as far as it is known.
    pub(crate) at: Timestamp,
    pub(crate) queued: Instant,
    /// What it changes.
    inos: Vec<Ino>,
    names: Vec<(Ino, Name)>,
    pub(crate) work: Work,
    /// What its content was based on when it was written into the journal.
    pub(crate) kept_base: Option<Version>,
    /// [`Known::lapses`] when it was done; none of this session's when an earlier client did it.
    lapses: u64,
}

#[derive(Default)]
struct Inner {
    /// Not told yet, the oldest first.
    entries: VecDeque<Entry>,
    /// Those of content: their numbers, and since when they are here.
    contents: VecDeque<(u64, Instant)>,
    /// Number of the last entry.
    last: u64,
    /// Everything up to this one is told.
    told: u64,
    /// Everything up to this one is in the journal.
    kept: u64,
    /// There is a journal, and it can be written.
    keeps: bool,
    /// Nothing is left out, whatever is wrong with it: the journal is being replayed.
    strict: bool,
    /// Entries that were undone and that the journal may have.
    undone: Vec<u64>,
    /// How many changes were done here and came to nothing.
    lost: u64,
    /// Why the last one did, and when.
    loss: Option<(FsError, Instant)>,
    /// Somebody has heard of that.
    loss_told: bool,
    /// Up to here somebody waits.
    urgent: u64,
    /// Inodes that something else is changing now: what is done there must not get into the queue.
    kept_off: HashMap<Ino, usize>,
    /// Attempts to tell that failed, and how the last one did.
    failures: u64,
    failure: Option<FsError>,
}

/// The queue.
#[derive(Default)]
pub(crate) struct WriteBack {
    inner: Mutex<Inner>,
    /// There is more to do, or somebody waits.
    wake: Notify,
    /// Something was told or kept, or an attempt failed.
    progress: Notify,
    /// There is more to keep.
    entered: Notify,
}

impl Inner {
    /// The oldest entry that is not in the journal.
    fn first_unkept(&self) -> Option<&Entry> {
        self.entries.get(self.entries.partition_point(|entry| entry.number <= self.kept))
    }

    /// Whether content waits that would have to be kept soon.
    fn is_behind(&self) -> bool {
        let first = self.contents.get(self.contents.partition_point(|(number, _)| *number <= self.kept));
        self.keeps && first.is_some_and(|(_, queued)| queued.elapsed() > BEHIND)
    }

    fn note_lost(&mut self, error: FsError) {
        self.lost += 1;
        (self.loss, self.loss_told) = (Some((error, Instant::now())), false);
    }

    /// The first entry is told.
    fn pop(&mut self, number: u64) {
        self.entries.pop_front();
        if self.contents.front().is_some_and(|(content, _)| *content == number) {
            self.contents.pop_front();
        }
        self.told = number;
        self.undone.retain(|undone| *undone > number);
    }

    fn push(&mut self, number: u64, at: Timestamp, (inos, names): Touched, work: Work, lapses: u64) {
        let queued = Instant::now();
        if let Work::Content { .. } = work {
            self.contents.push_back((number, queued));
        }
        self.last = number;
        self.entries.push_back(Entry { number, at, queued, inos, names, work, kept_base: None, lapses });
    }
}

/// Up to which of the changes that came to nothing somebody has heard of them.
#[derive(Debug)]
pub struct Heard(AtomicU64);

/// Inodes and names that an entry changes.
pub(crate) type Touched = (Vec<Ino>, Vec<(Ino, Name)>);

/// The queue, while something is done: nothing else gets between the look at what is known and the entry.
pub(crate) struct Doing<'a> {
    inner: MutexGuard<'a, Inner>,
    session: &'a LeasedSession,
    known: &'a Known,
    home: &'a WriteBack,
}

impl Doing<'_> {
    /// Whether these inodes are this session's alone.
    fn may(&self, inos: &[Ino]) -> bool {
        !inos.iter().any(|ino| self.inner.kept_off.contains_key(ino)) && self.known.is_delegated(inos)
    }

    /// Puts something into the queue, and what it makes into the cache.
    fn enter(mut self, at: Timestamp, work: Work, local: Local, inos: &[Ino]) {
        let number = self.inner.last + 1;
        let mut changed: Vec<Ino> = local.attrs.iter().map(|attr| attr.ino).collect();
        changed.extend_from_slice(inos);
        let names = local.names.iter().map(|(parent, name, _)| (*parent, name.clone())).collect();
        self.known.pin(number, local);
        self.inner.push(number, at, (changed, names), work, self.known.lapses());
        if self.inner.entries.len() == 1 || self.inner.entries.len() >= ENOUGH {
            self.home.wake.notify_one();
        }
        self.home.entered.notify_one();
        self.session.note_work();
    }
}

/// While it lives, what is done to these inodes does not get into the queue.
pub(crate) struct KeptOff<'a> {
    home: &'a WriteBack,
    inos: Vec<Ino>,
}

impl Drop for KeptOff<'_> {
    fn drop(&mut self) {
        let mut inner = self.home.inner.lock();
        for ino in &self.inos {
            count_down(&mut inner.kept_off, *ino);
        }
    }
}

impl WriteBack {
    /// Begins to do something to these inodes here, if they are this session's alone.
    fn begin<'a>(&'a self, (session, known): (&'a LeasedSession, &'a Known), inos: &[Ino]) -> Option<Doing<'a>> {
        let doing = Doing { inner: self.inner.lock(), session, known, home: self };
        doing.may(inos).then_some(doing)
    }

    /// Begins to put content of an inode in that is not this session's alone: when the mount ends, and nobody can be told.
    fn begin_leaving<'a>(&'a self, (session, known): (&'a LeasedSession, &'a Known)) -> Doing<'a> {
        Doing { inner: self.inner.lock(), session, known, home: self }
    }

    /// Whether anything waits to be told.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.lock().entries.is_empty()
    }

    /// Number of the last entry that is not told, with which everything is. `None` while the journal is replayed: nobody
    /// was ever promised anything of that, and two mounts that do so must not wait for each other.
    pub(crate) fn tail(&self) -> Option<u64> {
        let inner = self.inner.lock();
        (!inner.entries.is_empty() && !inner.strict).then_some(inner.last)
    }

    /// The same, of those that change one of these inodes or names in them.
    pub(crate) fn tail_on(&self, inos: &[Ino]) -> Option<u64> {
        let wanted: HashSet<Ino> = inos.iter().copied().collect();
        let inner = self.inner.lock();
        let touches = |entry: &&Entry| {
            entry.inos.iter().any(|ino| wanted.contains(ino))
                || entry.names.iter().any(|(parent, _)| wanted.contains(parent))
        };
        inner.entries.iter().rev().filter(|_| !inner.strict).find(touches).map(|entry| entry.number)
    }

    /// These inodes, and what was made in them or below and is not told: who looks at one of them may find that next.
    pub(crate) fn with_made_in(&self, mut inos: Vec<Ino>) -> Vec<Ino> {
        let mut known: HashSet<Ino> = inos.iter().copied().collect();
        for entry in &self.inner.lock().entries {
            if let Work::Change { op: Op::Create { parent, ino, .. }, .. } = &entry.work
                && known.contains(parent)
                && known.insert(*ino)
            {
                inos.push(*ino);
            }
        }
        inos
    }

    /// Undoes what would put this inode in place of another one: its content cannot be stored, and what it would replace
    /// is all there is. Returns the inodes and names that are as they were before.
    pub(crate) fn undo_replacing(&self, ino: Ino, error: FsError, known: &Known) -> Touched {
        let (mut inner, mut undone) = (self.inner.lock(), Vec::new());
        let (mut inos, mut names) = (Vec::new(), Vec::new());
        for entry in &mut inner.entries {
            let Work::Change { op: Op::Rename { .. }, expect } = &entry.work else { continue };
            let (source, target) = (expect.first(), expect.get(1));
            if source.is_some_and(|source| source.ino == Some(ino)) && target.is_some_and(|target| target.ino.is_some())
            {
                tracing::warn!(%ino, "a file is not put in place of another one: its content cannot be stored");
                known.undo(entry.number, &entry.inos, &entry.names);
                entry.work = Work::Undone;
                undone.push(entry.number);
                inos.extend_from_slice(&entry.inos);
                names.extend_from_slice(&entry.names);
            }
        }
        if !undone.is_empty() {
            inner.note_lost(error);
        }
        inner.undone.append(&mut undone);
        (inos, names)
    }

    /// Whether the inode is moved, or is to be replaced by what is, by something that is not told yet.
    fn is_moved(&self, ino: Ino) -> bool {
        let moves = |entry: &Entry| match &entry.work {
            Work::Change { op: Op::Rename { .. }, expect } => expect.iter().any(|expect| expect.ino == Some(ino)),
            _ => false,
        };
        self.inner.lock().entries.iter().any(moves)
    }

    /// Whether others can have changed something before this entry, the first one, came to metad: that waited for it. If
    /// not, it is told once more, and what content its session knows is left out: whoever wrote had the file open, and
    /// did so before it lost its name.
    fn is_in_time(&self, number: u64, lapses: u64) -> bool {
        let mut inner = self.inner.lock();
        let first = inner.entries.front_mut().filter(|first| first.number == number);
        let Some(Entry { work: Work::Change { expect, .. }, queued, lapses: before, .. }) = first else { return false };
        let in_time = *before == lapses && queued.elapsed() < WAITED_FOR;
        let told = expect.iter().any(|expect| expect.version.is_some());
        if in_time {
            expect.iter_mut().for_each(|expect| expect.version = None);
        }
        in_time && told
    }

    /// A change that was done here came to nothing.
    fn note_lost(&self, error: FsError) {
        self.inner.lock().note_lost(error);
    }

    /// For who begins to care. What happened a moment ago, and nobody has heard of yet, they are to hear as well.
    fn heard(&self) -> Heard {
        let inner = self.inner.lock();
        let is_news = inner.loss.is_some_and(|(_, at)| !inner.loss_told && at.elapsed() < NEWS);
        Heard(AtomicU64::new(inner.lost - u64::from(is_news)))
    }

    /// Tells once of changes that came to nothing.
    fn tell_lost(&self, heard: &Heard) -> Result<(), FsError> {
        let mut inner = self.inner.lock();
        if heard.0.swap(inner.lost, Ordering::Relaxed) >= inner.lost {
            return Ok(());
        }
        inner.loss_told = true;
        inner.loss.map_or(Ok(()), |(error, _)| Err(error))
    }

    /// Entries that were undone, and of which the journal does not know it.
    pub(crate) fn undone(&self) -> Vec<u64> {
        self.inner.lock().undone.clone()
    }

    /// The journal knows it of these.
    pub(crate) fn undone_kept(&self, known: &[u64]) {
        self.inner.lock().undone.retain(|number| !known.contains(number));
    }

    /// Whether everything up to an entry is told.
    pub(crate) fn is_told(&self, upto: u64) -> bool {
        self.inner.lock().told >= upto
    }

    /// Somebody waits for everything up to this entry.
    pub(crate) fn hurry(&self, upto: u64) {
        let mut inner = self.inner.lock();
        inner.urgent = inner.urgent.max(upto);
        drop(inner);
        self.wake.notify_one();
    }

    /// Waits until everything up to an entry is told. Cancel-safe.
    ///
    /// # Errors
    /// How an attempt failed.
    pub(crate) async fn wait_told(&self, upto: u64) -> Result<(), FsError> {
        self.hurry(upto);
        let failures = self.inner.lock().failures;
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            // Before looking: what happens in between must not be missed.
            progress.as_mut().enable();
            {
                let inner = self.inner.lock();
                if inner.told >= upto {
                    return Ok(());
                }
                if let Some(failure) = inner.failure.filter(|_| inner.failures > failures) {
                    return Err(failure);
                }
            }
            progress.await;
        }
    }

    /// Waits until there is room for more. Cancel-safe.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            progress.as_mut().enable();
            if self.has_room() {
                return;
            }
            progress.await;
        }
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        let inner = self.inner.lock();
        inner.entries.len() < ENTRIES_MAX && !inner.is_behind()
    }

    /// Up to which entry everything is told.
    pub(crate) fn told(&self) -> u64 {
        self.inner.lock().told
    }

    /// Waits until an entry has been neither told nor kept for so long. Cancel-safe.
    pub(crate) async fn wait_overdue(&self, after: Duration) {
        loop {
            let mut entered = std::pin::pin!(self.entered.notified());
            entered.as_mut().enable();
            let due = self.inner.lock().first_unkept().map(|entry| entry.queued + after);
            match due {
                None => entered.await,
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::time::sleep_until(due).await,
            }
        }
    }

    /// Visits what is not in the journal, the oldest first, as long as the visitor says true.
    pub(crate) fn for_each_unkept(&self, mut visit: impl FnMut(&mut Entry) -> bool) {
        let mut inner = self.inner.lock();
        let from = inner.entries.partition_point(|entry| entry.number <= inner.kept);
        for entry in inner.entries.range_mut(from..) {
            if !visit(entry) {
                return;
            }
        }
    }

    /// Everything up to this entry is in the journal.
    pub(crate) fn kept(&self, upto: u64) {
        let mut inner = self.inner.lock();
        inner.kept = inner.kept.max(upto);
        drop(inner);
        self.progress.notify_waiters();
    }

    /// Whether the journal can be written: what is done waits for it only then.
    pub(crate) fn note_keeping(&self, works: bool) {
        self.inner.lock().keeps = works;
        self.progress.notify_waiters();
    }

    /// Goes on with a journal in which entries up to `last` are, those up to `told` told.
    pub(crate) fn start_behind(&self, told: u64, last: u64) {
        let mut inner = self.inner.lock();
        (inner.told, inner.last, inner.kept) = (told, last, last);
    }

    /// While this is set, what is wrong with an entry is never taken to concern that one only.
    pub(crate) fn be_strict(&self, strict: bool) {
        let mut inner = self.inner.lock();
        inner.strict = strict;
        // Nobody has anything open whose work that was.
        inner.loss = None;
    }

    /// Puts in what an earlier client did, and left in the journal, in the order of the numbers.
    pub(crate) fn enter_again(&self, entries: Vec<(u64, Timestamp, Touched, Work)>) {
        let mut inner = self.inner.lock();
        for (number, at, touched, work) in entries {
            inner.push(number, at, touched, work, u64::MAX);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Waits until something is to be told. Cancel-safe.
    async fn wait_due(&self) {
        loop {
            let mut wake = std::pin::pin!(self.wake.notified());
            wake.as_mut().enable();
            let due = {
                let inner = self.inner.lock();
                match inner.entries.front() {
                    None => None,
                    Some(_) if inner.urgent > inner.told || inner.entries.len() >= ENOUGH => return,
                    Some(oldest) => Some(oldest.queued + DELAY),
                }
            };
            match due {
                None => wake.await,
                Some(due) if due <= Instant::now() => return,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, wake).await;
                }
            }
        }
    }

    fn keep_off(&self, inos: impl IntoIterator<Item = Ino>) -> KeptOff<'_> {
        let inos: Vec<Ino> = inos.into_iter().collect();
        let mut inner = self.inner.lock();
        for ino in &inos {
            *inner.kept_off.entry(*ino).or_insert(0) += 1;
        }
        drop(inner);
        KeptOff { home: self, inos }
    }
}

impl Client {
    /// Waits until metad knows everything that was done before.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn tell_all(&self) -> Result<(), FsError> {
        match self.writeback.tail() {
            Some(tail) => self.patiently(self.writeback.wait_told(tail)).await?,
            None => Ok(()),
        }
    }

    /// From now on [`Client::fsync_names`] tells what comes to nothing.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.writeback.heard()
    }

    /// Everything that was done before is known to metad on return: what `fsync(2)` of a directory asks for.
    ///
    /// # Errors
    /// As [`Client::tell_all`]; `NoSpace` or `Stale`, once for each `heard`, when something that was done came to nothing:
    /// a rename by which a file would be replaced by what could not be stored, or what others were first with.
    pub async fn fsync_names(&self, heard: &Heard) -> Result<(), FsError> {
        self.tell_all().await?;
        self.writeback.tell_lost(heard)
    }

    /// The same, if metad does not know this inode, or not all of it: before it is asked about it.
    pub(crate) async fn tell_of(&self, ino: Ino) -> Result<(), FsError> {
        match self.writeback.tail_on(&[ino]) {
            Some(tail) => self.patiently(self.writeback.wait_told(tail)).await?,
            None => Ok(()),
        }
    }

    /// Lets nothing that is done to these inodes into the queue any more, and waits until everything that is there is told:
    /// what follows is done by metad, and its order with the rest is kept.
    pub(crate) async fn in_order(&self, inos: impl IntoIterator<Item = Ino>) -> Result<KeptOff<'_>, FsError> {
        let kept_off = self.writeback.keep_off(inos);
        self.tell_all().await?;
        Ok(kept_off)
    }

    /// Carries out an operation at once, behind everything that was done before.
    pub(crate) async fn at_once(&self, op: Op) -> Result<wire::op::OpReply, FsError> {
        let inos: Vec<Ino> = op.attrs_changed().collect();
        let _kept_off = self.in_order(inos).await?;
        self.session.one(op).await
    }
}

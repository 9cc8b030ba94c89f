//! What was done under delegations and is sent later: one queue, in the order in which it was done.
//!
//! Nobody else knows anything of an inode on which the session holds a *delegation*, so what is done there needs no answer
//! to be true: it is pinned in what is known ([`crate::known`]), put into this queue, and sent in large batches a moment
//! later. metad ends a delegation before another session looks, and waits until everything is sent.
//!
//! - `core` is the queue, `here` decides what an operation comes to, `judge` what becomes of what metad refuses: all three
//!   are pure.
//! - This file is the lock around the core, and whoever waits for it.
//!
//! Lock order: the queue before what is known, and before a file's state; never the other way round.

mod core;
pub(crate) mod here;
pub(crate) mod judge;

pub(crate) use self::core::{Entry, Touched, Work};
pub use here::NewNode;

use self::core::{Core, Due};
use crate::known::{Known, Pinned, Place};
use crate::ordered::{Held, Ordered, Rank};
use here::{Decided, Here};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::Ino;

/// Up to which of the changes that came to nothing somebody has heard of them.
#[derive(Debug)]
pub struct Heard(AtomicU64);

/// The queue. `F` stands for a file whose content is sent.
pub(crate) struct Queue<F> {
    core: Ordered<Core<F>>,
    known: Arc<Known>,
    /// There is more to do, or somebody waits.
    wake: Notify,
    /// Something was sent or journaled, or an attempt failed.
    progress: Notify,
    /// There is more for the journal.
    entered: Notify,
}

/// The queue, while something is done: nothing else gets between the look at what is known and the entry.
pub(crate) struct Doing<'a, F> {
    core: Held<'a, Core<F>>,
    home: &'a Queue<F>,
}

impl<F> Doing<'_, F> {
    /// Looks at what is known, before something is decided.
    pub(crate) fn look<R>(&self, at: Timestamp, look: impl FnOnce(&mut Here<'_>) -> R) -> R {
        self.home.known.with(|state, now| look(&mut Here { state, now, at }))
    }

    /// Puts what is decided from what is known into the queue, and pins what it makes, if these inodes are this session's
    /// alone.
    pub(crate) fn enter<R>(
        mut self,
        at: Timestamp,
        inos: &[Ino],
        decide: impl FnOnce(Here<'_>) -> Option<(Decided, R)>,
    ) -> Option<R> {
        let number = self.core.next_number();
        let (work, touched, lapses, done) = self.home.known.with(|state, now| {
            if !inos.iter().all(|ino| state.is_delegated(*ino, now)) {
                return None;
            }
            let (Decided { op, expect, pinned }, done) = decide(Here { state, now, at })?;
            let changed = pinned.attrs.iter().map(|attr| attr.ino).collect();
            let names = pinned.names.iter().map(|(parent, name, _)| (*parent, name.clone())).collect();
            state.pin(number, pinned);
            state.note_work(now);
            Some((Work::Change { op, expect }, (changed, names), state.lapses(now), done))
        })?;
        self.push(at, touched, work, lapses);
        Some(done)
    }

    /// Puts content of a file into the queue.
    pub(crate) fn enter_content(mut self, at: Timestamp, ino: Ino, file: F, upto: u64) {
        let lapses = self.home.known.with(|state, now| {
            state.note_work(now);
            state.lapses(now)
        });
        self.push(at, (vec![ino], Vec::new()), Work::Content { file, upto }, lapses);
    }

    fn push(&mut self, at: Timestamp, touched: Touched, work: Work<F>, lapses: u64) {
        if self.core.enter(at, touched, work, lapses, Instant::now()) {
            self.home.wake.notify_one();
        }
        self.home.entered.notify_one();
    }
}

/// While it lives, what is done to these inodes does not get into the queue.
pub(crate) struct Barred<'a, F> {
    home: &'a Queue<F>,
    inos: Vec<Ino>,
}

impl<F> Drop for Barred<'_, F> {
    fn drop(&mut self) {
        self.home.core.lock().unbar(&self.inos);
    }
}

impl<F> Queue<F> {
    pub(crate) fn new(known: Arc<Known>) -> Self {
        let (wake, progress, entered) = (Notify::new(), Notify::new(), Notify::new());
        let core = Ordered::new(Rank::Queue, Core::default());
        Self { core, known, wake, progress, entered }
    }

    /// Does something with the core, while nothing of it changes.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Core<F>) -> R) -> R {
        work(&mut self.core.lock())
    }

    /// Begins to do something to these inodes here, unless something else is changing them.
    pub(crate) fn begin(&self, inos: &[Ino]) -> Option<Doing<'_, F>> {
        let doing = self.begin_leaving();
        (!doing.core.is_barred(inos)).then_some(doing)
    }

    /// Begins to put content of an inode in that is not this session's alone: when the mount ends, and nobody can be told.
    pub(crate) fn begin_leaving(&self) -> Doing<'_, F> {
        Doing { core: self.core.lock(), home: self }
    }

    /// Lets nothing that is done to these inodes in, until what is returned is dropped.
    pub(crate) fn bar(&self, inos: impl IntoIterator<Item = Ino>) -> Barred<'_, F> {
        let inos: Vec<Ino> = inos.into_iter().collect();
        self.core.lock().bar(&inos);
        Barred { home: self, inos }
    }

    /// Undoes what would put this inode in place of another one: its content cannot be stored, and what it would replace
    /// is all there is. Returns the inodes and names that are as they were before.
    pub(crate) fn undo_replacing(&self, ino: Ino, error: FsError) -> Touched {
        let mut core = self.core.lock();
        let (mut inos, mut names) = (Vec::new(), Vec::new());
        for (number, (of_entry, names_of_entry)) in core.undo_replacing(ino, error, Instant::now()) {
            tracing::warn!(%ino, "a file is not put in place of another one: its content cannot be stored");
            self.known.with(|state, _| state.undo(number, &of_entry, &names_of_entry));
            inos.extend(of_entry);
            names.extend(names_of_entry);
        }
        (inos, names)
    }

    /// From this entry on, `ino` has the name `new` instead of `old`; what was done by that name follows.
    pub(crate) fn rename_entries(&self, from: u64, old: &Place, new: &Place, ino: Ino) {
        let mut core = self.core.lock();
        let repins = core.rename_entries(from, old, new, ino);
        self.known.with(|state, _| {
            for repin in repins {
                state.undo(repin.number, &[], std::slice::from_ref(&repin.undo));
                if let Some(((parent, name), ino)) = repin.pin {
                    state.pin(repin.number, Pinned { names: vec![(parent, name, Some(ino))], ..Pinned::default() });
                }
            }
        });
    }

    /// Whether others can have changed something before this entry, the first one, came to metad: see the core.
    pub(crate) fn is_in_time(&self, number: u64) -> bool {
        let lapses = self.known.lapses();
        self.core.lock().is_in_time(number, lapses, Instant::now())
    }

    /// metad knows the first entry.
    pub(crate) fn done(&self, number: u64, inos: &[Ino], names: &[Place]) {
        self.known.unpin(number, inos, names);
        self.core.lock().pop(number);
        self.progress.notify_waiters();
    }

    /// The first entry was refused, and nothing comes of it.
    pub(crate) fn leave_out(&self, number: u64, inos: &[Ino], names: &[Place]) {
        self.known.with(|state, _| state.undo(number, inos, names));
        let mut core = self.core.lock();
        core.note_lost(FsError::Stale, Instant::now());
        core.pop(number);
        drop(core);
        self.progress.notify_waiters();
    }

    /// For whoever begins to care what comes to nothing.
    pub(crate) fn heard(&self) -> Heard {
        Heard(AtomicU64::new(self.core.lock().heard(Instant::now())))
    }

    /// Reports once for each `heard` that changes came to nothing.
    pub(crate) fn report_lost(&self, heard: &Heard) -> Result<(), FsError> {
        let mut core = self.core.lock();
        if heard.0.swap(core.lost(), Ordering::Relaxed) >= core.lost() { Ok(()) } else { core.report_loss() }
    }

    /// Somebody waits for everything up to this entry.
    pub(crate) fn hurry(&self, upto: u64) {
        self.core.lock().hurry(upto);
        self.wake.notify_one();
    }

    /// An attempt to send failed.
    pub(crate) fn note_failure(&self, error: FsError) {
        self.core.lock().note_failure(error);
        self.progress.notify_waiters();
    }

    /// Everything up to this entry is in the journal.
    pub(crate) fn note_journaled(&self, upto: u64) {
        self.core.lock().note_journaled(upto);
        self.progress.notify_waiters();
    }

    /// Whether the journal can be written: what is done waits for it only then.
    pub(crate) fn note_journal_works(&self, works: bool) {
        self.core.lock().note_journal_works(works);
        self.progress.notify_waiters();
    }

    /// Puts in what an earlier client did, and left in the journal, in the order of the numbers.
    pub(crate) fn enter_again(&self, entries: Vec<(u64, Timestamp, Touched, Work<F>)>) {
        self.core.lock().enter_again(entries, Instant::now());
        self.wake.notify_one();
    }
}

/// Questions.
impl<F> Queue<F> {
    /// Whether anything waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.core.lock().is_empty()
    }

    /// Number of the last entry that is not sent, if anybody may wait for it.
    pub(crate) fn tail(&self) -> Option<u64> {
        self.core.lock().tail()
    }

    /// Number of the last entry that changes one of these inodes or names in them.
    pub(crate) fn tail_on(&self, inos: &[Ino]) -> Option<u64> {
        self.core.lock().tail_on(inos)
    }

    /// These inodes, and what was made in them or below and is not sent.
    pub(crate) fn with_made_in(&self, inos: Vec<Ino>) -> Vec<Ino> {
        self.core.lock().with_made_in(inos)
    }

    /// Up to which entry everything is sent.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.core.lock().acknowledged()
    }

    /// Whether everything up to an entry is sent.
    pub(crate) fn is_acknowledged(&self, upto: u64) -> bool {
        self.acknowledged() >= upto
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.core.lock().has_room(Instant::now())
    }

    /// Whether nothing may be left out.
    pub(crate) fn is_strict(&self) -> bool {
        self.core.lock().is_strict()
    }

    /// Whether the inode is moved, or replaced by what is, by something that is not sent yet.
    pub(crate) fn is_moved(&self, ino: Ino) -> bool {
        self.core.lock().is_moved(ino)
    }
}

/// Waiting. All of it is cancel-safe.
impl<F> Queue<F> {
    /// Waits until `ready` answers, which is asked again after each progress.
    async fn wait_progress<R>(&self, mut ready: impl FnMut(&Core<F>) -> Option<R>) -> R {
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            // Before looking: what happens in between must not be missed.
            progress.as_mut().enable();
            let answer = ready(&self.core.lock());
            match answer {
                Some(answer) => return answer,
                None => progress.await,
            }
        }
    }

    /// Waits until everything up to an entry is sent.
    ///
    /// # Errors
    /// How an attempt failed.
    pub(crate) async fn wait_acknowledged(&self, upto: u64) -> Result<(), FsError> {
        self.hurry(upto);
        let failures = self.core.lock().failures();
        let ended = |core: &Core<F>| {
            if core.acknowledged() >= upto { Some(Ok(())) } else { core.failure_since(failures).map(Err) }
        };
        self.wait_progress(ended).await
    }

    /// Waits until there is room for more.
    pub(crate) async fn wait_for_room(&self) {
        self.wait_progress(|core| core.has_room(Instant::now()).then_some(())).await;
    }

    /// Waits until an entry has been neither sent nor journaled for so long.
    pub(crate) async fn wait_overdue(&self, after: Duration) {
        loop {
            let mut entered = std::pin::pin!(self.entered.notified());
            entered.as_mut().enable();
            let since = self.core.lock().unjournaled_since();
            match since.map(|since| since + after) {
                None => entered.await,
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::time::sleep_until(due).await,
            }
        }
    }

    /// Waits until something is to be sent.
    pub(crate) async fn wait_due(&self) {
        loop {
            let mut wake = std::pin::pin!(self.wake.notified());
            wake.as_mut().enable();
            let due = self.core.lock().due();
            match due {
                Due::Now => return,
                Due::Never => wake.await,
                Due::At(due) if due <= Instant::now() => return,
                Due::At(due) => {
                    let _ = tokio::time::timeout_at(due, wake).await;
                }
            }
        }
    }
}

//! Operations under delegations that are sent later: one queue, in the order in which they were done.
//!
//! No other session has leases on an inode on which this session holds a *delegation*, so an operation there takes
//! effect without an answer: it is pinned in what is known ([`crate::known`]), put into this queue, and sent in large
//! batches a moment later. metad ends a delegation before another session looks, and waits until everything is sent.
//!
//! - `core` is the queue, `here` decides the result of an operation, `judge` what to do about refused ones: all three
//!   are pure.
//! - This file is the lock around the core, and the waiting.
//!
//! The lock's place among the others is in [`crate::ordered`].

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

/// The count of failed operations up to which they have been reported.
#[derive(Debug)]
pub struct LossesReported(AtomicU64);

/// The queue. `F` stands for a file whose content is sent.
pub(crate) struct Queue<F> {
    core: Ordered<Core<F>>,
    known: Arc<Known>,
    /// Notified when there is more to send, or somebody waits.
    wake: Notify,
    /// Notified when entries were acknowledged or journaled, or an attempt failed.
    progress: Notify,
    /// Notified when there is more for the journal.
    entered: Notify,
}

/// The locked queue, while an operation is done: nothing else gets between looking at what is known and the entry.
pub(crate) struct LockedQueue<'a, F> {
    core: Held<'a, Core<F>>,
    home: &'a Queue<F>,
}

impl<F> LockedQueue<'_, F> {
    /// Looks at what is known, before an operation is decided.
    pub(crate) fn look<R>(&self, at: Timestamp, look: impl FnOnce(&mut Here<'_>) -> R) -> R {
        self.home.known.with(|state, now| look(&mut Here { state, now, at }))
    }

    /// Puts an operation that was decided from what is known into the queue and pins its results, if this session alone
    /// may change these inodes.
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

/// While this value lives, operations on these inodes do not get into the queue.
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

    /// Calls `work` with the core, which nothing else changes meanwhile.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Core<F>) -> R) -> R {
        work(&mut self.core.lock())
    }

    /// Begins an operation on these inodes here, unless something else is changing them.
    pub(crate) fn begin(&self, inos: &[Ino]) -> Option<LockedQueue<'_, F>> {
        let doing = self.begin_leaving();
        (!doing.core.is_barred(inos)).then_some(doing)
    }

    /// Begins to queue content of an inode that other sessions use as well: when the mount ends, and nobody is left to
    /// report to.
    pub(crate) fn begin_leaving(&self) -> LockedQueue<'_, F> {
        LockedQueue { core: self.core.lock(), home: self }
    }

    /// Keeps operations on these inodes out of the queue until the returned value is dropped.
    pub(crate) fn bar(&self, inos: impl IntoIterator<Item = Ino>) -> Barred<'_, F> {
        let inos: Vec<Ino> = inos.into_iter().collect();
        self.core.lock().bar(&inos);
        Barred { home: self, inos }
    }

    /// Undoes operations that would put this inode in place of another one: its content cannot be stored, and the one
    /// that it would replace is the only complete one. Returns the inodes and names that are as they were before.
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

    /// Gives `ino` the name `new` instead of `old` from this entry on; later operations by the old name follow.
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

    /// Returns whether others cannot have changed anything before this entry, the first one, reached metad. See the
    /// core.
    pub(crate) fn is_in_time(&self, number: u64) -> bool {
        let lapses = self.known.lapses();
        self.core.lock().is_in_time(number, lapses, Instant::now())
    }

    /// Removes the first entry, which metad has acknowledged.
    pub(crate) fn done(&self, number: u64, inos: &[Ino], names: &[Place]) {
        self.known.unpin(number, inos, names);
        self.core.lock().pop(number);
        self.progress.notify_waiters();
    }

    /// Removes the first entry, which was refused and has no effect.
    pub(crate) fn leave_out(&self, number: u64, inos: &[Ino], names: &[Place]) {
        self.known.with(|state, _| state.undo(number, inos, names));
        let mut core = self.core.lock();
        core.note_lost(FsError::Stale, Instant::now());
        core.pop(number);
        drop(core);
        self.progress.notify_waiters();
    }

    /// Returns a position from which failed operations are to be reported.
    pub(crate) fn losses_reported(&self) -> LossesReported {
        LossesReported(AtomicU64::new(self.core.lock().losses_reported(Instant::now())))
    }

    /// Reports once for each `reported` that operations failed.
    pub(crate) fn report_lost(&self, reported: &LossesReported) -> Result<(), FsError> {
        let mut core = self.core.lock();
        if reported.0.swap(core.lost(), Ordering::Relaxed) >= core.lost() { Ok(()) } else { core.report_loss() }
    }

    /// Sends everything up to this entry now, because somebody waits.
    pub(crate) fn hurry(&self, upto: u64) {
        self.core.lock().hurry(upto);
        self.wake.notify_one();
    }

    /// Notes that an attempt to send failed.
    pub(crate) fn note_failure(&self, error: FsError) {
        self.core.lock().note_failure(error);
        self.progress.notify_waiters();
    }

    /// Notes that everything up to this entry is in the journal.
    pub(crate) fn note_journaled(&self, upto: u64) {
        self.core.lock().note_journaled(upto);
        self.progress.notify_waiters();
    }

    /// Notes whether the journal can be written: only then do operations wait for it.
    pub(crate) fn note_journal_works(&self, works: bool) {
        self.core.lock().note_journal_works(works);
        self.progress.notify_waiters();
    }

    /// Adds the operations that an earlier client left in the journal, in the order of their numbers.
    pub(crate) fn enter_again(&self, entries: Vec<(u64, Timestamp, Touched, Work<F>)>) {
        self.core.lock().enter_again(entries, Instant::now());
        self.wake.notify_one();
    }
}

/// Questions.
impl<F> Queue<F> {
    /// Returns whether nothing waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.core.lock().is_empty()
    }

    /// Returns the number of the last unacknowledged entry, if anybody may wait for it.
    pub(crate) fn tail(&self) -> Option<u64> {
        self.core.lock().tail()
    }

    /// Returns the number of the last entry that changes one of these inodes or names in them.
    pub(crate) fn tail_on(&self, inos: &[Ino]) -> Option<u64> {
        self.core.lock().tail_on(inos)
    }

    /// Returns these inodes, and unacknowledged ones that were made in them or below.
    pub(crate) fn with_made_in(&self, inos: Vec<Ino>) -> Vec<Ino> {
        self.core.lock().with_made_in(inos)
    }

    /// Returns the number up to which all entries are acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.core.lock().acknowledged()
    }

    /// Returns whether everything up to an entry is acknowledged.
    pub(crate) fn is_acknowledged(&self, upto: u64) -> bool {
        self.acknowledged() >= upto
    }

    /// Returns whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.core.lock().has_room(Instant::now())
    }

    /// Returns whether nothing may be left out.
    pub(crate) fn is_strict(&self) -> bool {
        self.core.lock().is_strict()
    }

    /// Returns whether an unacknowledged entry moves the inode, or replaces it by a moved one.
    pub(crate) fn is_moved(&self, ino: Ino) -> bool {
        self.core.lock().is_moved(ino)
    }
}

/// Waiting. All of it is cancel-safe.
impl<F> Queue<F> {
    /// Waits until `ready` returns a value. It is called again after each progress.
    async fn wait_progress<R>(&self, mut ready: impl FnMut(&Core<F>) -> Option<R>) -> R {
        loop {
            let mut progress = std::pin::pin!(self.progress.notified());
            // Enabled before looking: progress in between must not be missed.
            progress.as_mut().enable();
            let answer = ready(&self.core.lock());
            match answer {
                Some(answer) => return answer,
                None => progress.await,
            }
        }
    }

    /// Waits until everything up to an entry is acknowledged.
    ///
    /// # Errors
    /// Returns how an attempt failed.
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

    /// Waits until an entry has been neither acknowledged nor journaled for this long.
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

    /// Waits until it is time to send.
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

//! For who commits the file's content: what a commit is based on, and what becomes of the content with its answer.

use super::{Content, FileState};
use crate::file::dirty::Packed;
use crate::file::sealed::{Upload, Uploading};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::ExtentWrite;
use wire::ids::{Ino, Version};

/// Commits beside others' that are remembered while more is written all the time.
const OWN_VERSIONS_MAX: usize = 1024;
/// What is written to a file after a conflict goes where that did, unless nothing did for so long: whoever writes then
/// has seen what others wrote.
const DIVERTED: Duration = Duration::from_secs(5);

/// What a commit of the file is based on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Basis {
    pub base: Version,
    /// Versions behind `base` that are ours.
    pub own: Vec<Version>,
    pub append_from: Option<u64>,
    pub mtime: Option<Timestamp>,
    pub clear_privileges: bool,
    /// The conflict copy that it goes into.
    pub diverted: Option<Ino>,
}

/// A sealed piece that is to be committed next.
pub(crate) struct Next {
    pub packed: Packed,
    pub uploading: Uploading,
}

/// A commit that metad has carried out.
pub(crate) struct Landing<'a> {
    /// The file as it is with it.
    pub attr: InodeAttr,
    pub base: Version,
    pub writes: &'a [ExtentWrite],
    pub append_from: Option<u64>,
    /// Where appended content is.
    pub appended_at: Option<u64>,
    /// Nobody else has changed the file since `base`.
    pub only_ours: bool,
    /// The conflict copy that has it.
    pub conflict: Option<Ino>,
}

/// What comes of content that could not be committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unsaved {
    /// Bytes that the window need not count any more.
    pub released: u64,
    /// Nobody is left to ask for it, or to hear that it is refused.
    pub unheard: bool,
}

impl FileState {
    /// Whether all that is not committed is in the write-back queue.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.content.lock().pending.is_queued()
    }

    /// Whether what is to be committed next is in the write-back queue, and the number of the last sealed piece: of one
    /// moment, because what is sealed later may be in the queue.
    pub(crate) fn commit_target(&self) -> (bool, Option<u64>) {
        let content = self.content.lock();
        (content.pending.first_is_queued(), content.pending.last_sealed())
    }

    /// When its content was written, for the queue; `None` when the policy refuses it.
    pub(crate) fn may_queue(&self) -> Option<Option<Timestamp>> {
        let content = self.content.lock();
        (!content.refused).then(|| content.pending.mtime())
    }

    /// What was sealed up to this number goes into the write-back queue; false when it is there already.
    pub(crate) fn enter_queue(&self, upto: u64) -> bool {
        self.content.lock().pending.enter_queue(upto)
    }

    /// Whether sealed pieces up to this number are left.
    pub(crate) fn has_sealed_upto(&self, last: u64) -> bool {
        self.content.lock().pending.sealed().front().is_some_and(|sealed| sealed.number <= last)
    }

    /// How many sealed pieces up to this number follow the first `count`.
    pub(crate) fn sealed_behind(&self, count: usize, upto: u64) -> usize {
        let content = self.content.lock();
        content.pending.sealed().iter().skip(count).filter(|sealed| sealed.number <= upto).count()
    }

    /// The sealed piece at this place, if its number is at most `last`.
    pub(crate) fn sealed_at(&self, place: usize, last: u64) -> Option<Next> {
        let content = self.content.lock();
        let sealed = content.pending.sealed().get(place).filter(|sealed| sealed.number <= last)?;
        Some(Next { packed: sealed.packed.clone(), uploading: sealed.uploading.clone() })
    }

    /// The uploads of what was sealed up to this number.
    pub(crate) fn uploads(&self, upto: u64) -> Vec<watch::Receiver<Upload>> {
        let content = self.content.lock();
        let sealed = content.pending.sealed().iter().filter(|sealed| sealed.number <= upto);
        sealed.map(|sealed| sealed.uploading.outcome.clone()).collect()
    }

    /// A new attempt at an upload is under way.
    pub(crate) fn upload_again(&self, place: usize, uploading: Uploading) {
        self.content.lock().pending.upload_again(place, uploading);
    }

    /// Whether more is uncommitted than the first `count` sealed pieces.
    pub(crate) fn has_more_than(&self, count: usize) -> bool {
        self.content.lock().pending.has_more_than(count)
    }

    /// Content version that uncommitted writes are based on.
    pub(crate) fn base(&self) -> Version {
        self.content.lock().base
    }

    /// What a commit is based on now.
    pub(crate) fn basis(&self, now: Instant) -> Basis {
        let content = self.content.lock();
        let diverted = content.diverted.filter(|(_, last)| now.saturating_duration_since(*last) < DIVERTED);
        Basis {
            base: content.base,
            own: content.own.iter().copied().filter(|version| *version > content.base).collect(),
            append_from: content.pending.appended_from(),
            mtime: content.pending.mtime(),
            clear_privileges: content.pending.clear_privileges(),
            diverted: diverted.map(|(copy, _)| copy),
        }
    }

    /// A commit that is not in the queue is on its way, or has come to its end: until then it may have arrived.
    pub(crate) fn note_committing(&self, under_way: bool) {
        self.content.lock().committing = under_way;
    }

    /// The first `count` sealed pieces are committed, or kept elsewhere. Returns how many bytes less the window counts.
    pub(crate) fn drop_sealed(&self, count: usize) -> u64 {
        self.content.lock().pending.drop_front(count)
    }

    /// Drops what is not committed: nobody can read it any more, or it is refused and its writer knows. Returns how many
    /// bytes less the window counts.
    pub(crate) fn drop_uncommitted(&self) -> u64 {
        let mut content = self.content.lock();
        content.size = content.attr.size;
        content.refused = false;
        content.pending.drop_all()
    }

    /// A commit of the first `pieces` sealed pieces was carried out: they are dropped, in the same step in which the
    /// content that is known changes. Returns how many bytes less the window counts.
    pub(crate) fn take_landing(&self, landing: Landing<'_>, pieces: usize, now: Instant) -> u64 {
        let Landing { attr, base, writes, append_from, appended_at, only_ours, conflict } = landing;
        let in_place = appended_at == append_from;
        let made = attr.version;
        let mut content = self.content.lock();
        let gone = content.pending.drop_front(pieces);
        let known = content.extents.version();
        if made > known {
            if only_ours && in_place && known == base {
                content.extents.apply(writes, made);
            } else {
                content.forget_extents(made);
            }
        }
        if made >= content.attr.version {
            content.attr = attr;
        }
        if conflict.is_none() && !only_ours {
            content.note_own(made);
        }
        content.diverted = conflict.map(|copy| (copy, now));
        let end = writes.last().map_or(0, |last| last.file_off + last.len);
        content.follow_commit((append_from, appended_at, end), only_ours);
        gone
    }

    /// A commit of the first `pieces` sealed pieces went into the conflict copy that has what was written before: they are
    /// dropped. Returns how many bytes less the window counts.
    pub(crate) fn take_diverted(&self, copy: Ino, pieces: usize, now: Instant) -> u64 {
        let mut content = self.content.lock();
        let gone = content.pending.drop_front(pieces);
        content.diverted = Some((copy, now));
        content.follow_commit((None, None, 0), false);
        gone
    }

    /// What is written from now on goes into this copy, too.
    pub(crate) fn divert(&self, copy: Ino, now: Instant) {
        self.content.lock().diverted = Some((copy, now));
    }

    /// Whether what is written goes into a conflict copy.
    pub(crate) fn is_diverted(&self) -> bool {
        self.content.lock().diverted.is_some()
    }

    /// The copy is gone, or the writer has seen what others wrote: what is written from now on goes into the file.
    pub(crate) fn end_diversion(&self) {
        self.content.lock().diverted = None;
    }

    /// Content need not be committed any more; what became of it is left for `fsync` and `close` to report.
    pub(crate) fn note_committed(&self, outcome: Result<(), FsError>) {
        let mut content = self.content.lock();
        content.refused = false;
        match outcome {
            // I6: whoever closes or syncs next hears of it, though the background found it.
            Err(error) => content.unreported = Some(error),
            Ok(()) if content.unreported != Some(FsError::Stale) => content.unreported = None,
            Ok(()) => {}
        }
    }

    /// Content could not be committed, and stays; it is not in the queue any more. `Stale` says that the policy refuses it.
    pub(crate) fn note_unsaved(&self, error: FsError) -> Unsaved {
        let mut content = self.content.lock();
        content.unreported = Some(error);
        content.refused = error == FsError::Stale;
        content.pending.leave_queue();
        // Others need not wait for what nobody tries to commit.
        let released = if content.refused { content.pending.stop_counting() } else { 0 };
        Unsaved { released, unheard: content.refused && content.opens == 0 }
    }

    /// Something went wrong that the next `fsync` or `close` reports.
    pub(crate) fn report_later(&self, error: FsError) {
        self.content.lock().unreported = Some(error);
    }

    /// Whether nothing went wrong that is not reported.
    pub(crate) fn is_well(&self) -> bool {
        self.content.lock().unreported.is_none()
    }

    /// What went wrong, once: it is reported now (I6). Who has heard of a conflict writes into the file again.
    pub(crate) fn take_unreported(&self) -> Option<FsError> {
        let mut content = self.content.lock();
        let unreported = content.unreported.take();
        if unreported.is_some() && content.pending.is_empty() {
            content.diverted = None;
        }
        unreported
    }
}

impl Content {
    /// After a commit: what was written meanwhile is based on it if it is `only_ours`, and appended content that landed
    /// elsewhere than it was written for takes along what was appended behind it meanwhile.
    fn follow_commit(&mut self, (from, landed, end): (Option<u64>, Option<u64>, u64), only_ours: bool) {
        if self.pending.is_empty() {
            self.base = self.base.max(self.attr.version).max(self.extents.version());
            self.own.clear();
            self.size = self.attr.size;
            self.pending.settle();
            return;
        }
        // I6: what was written meanwhile saw the file as it was before others' changes, so it keeps that base.
        if only_ours {
            self.base = self.base.next();
        }
        self.pending.follow_append(from, landed, end);
        self.size = self.attr.size.max(self.pending.end());
    }

    /// A commit of ours has made this version, beside what others have made since `base`.
    fn note_own(&mut self, version: Version) {
        if self.own.len() >= OWN_VERSIONS_MAX {
            // What was written then counts as another's: at worst, a copy is made where none is needed.
            self.own.remove(0);
        }
        self.own.push(version);
    }
}

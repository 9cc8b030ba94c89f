//! Methods for committing the file's content: what a commit is based on, and what happens to the content with its
//! answer.

use super::{Content, FileState};
use crate::file::dirty::Packed;
use crate::file::sealed::{Upload, Uploading};
use std::ops::Range;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::ExtentWrite;
use wire::ids::{Ino, Version};

/// Versions of our own that are remembered while others commit, too, and more is written all the time.
const OWN_VERSIONS_MAX: usize = 1024;
/// Writes after a conflict go into the same copy as the earlier ones, unless there were none for this long: a writer
/// that goes on then has seen what others wrote.
const DIVERTED_FOR: Duration = Duration::from_secs(5);

/// What a commit of the file is based on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Basis {
    pub base: Version,
    /// Versions after `base` that are ours.
    pub own: Vec<Version>,
    pub append_from: Option<u64>,
    pub mtime: Option<Timestamp>,
    pub clear_privileges: bool,
    /// The conflict copy that the commit goes into.
    pub diverted: Option<Ino>,
}

/// A sealed piece that is to be committed next.
pub(crate) struct Next {
    pub packed: Packed,
    pub uploading: Uploading,
}

/// A commit that metad has carried out.
pub(crate) struct Landing<'a> {
    /// The file's attributes after the commit.
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

/// What remains to be done about content that could not be committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unsaved {
    /// Bytes that the window need not count any more.
    pub released: u64,
    /// Nobody is left to ask for the content, or to be notified that it is refused.
    pub unheard: bool,
}

impl FileState {
    /// Returns whether all uncommitted content is in the write-back queue.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.content.lock().pending.is_queued()
    }

    /// Returns whether the next content to be committed is in the write-back queue, and the number of the last sealed
    /// piece. Both are of one moment, because content that is sealed later may be in the queue.
    pub(crate) fn commit_target(&self) -> (bool, Option<u64>) {
        let content = self.content.lock();
        (content.pending.first_is_queued(), content.pending.last_sealed())
    }

    /// Returns when the content was written, for the queue; `None` when the policy refuses it.
    pub(crate) fn may_queue(&self) -> Option<Option<Timestamp>> {
        let content = self.content.lock();
        (!content.refused).then(|| content.pending.mtime())
    }

    /// Notes that sealed pieces up to this number enter the write-back queue. False when they are there already.
    pub(crate) fn enter_queue(&self, upto: u64) -> bool {
        self.content.lock().pending.enter_queue(upto)
    }

    /// Returns whether sealed pieces up to this number are left.
    pub(crate) fn has_sealed_upto(&self, last: u64) -> bool {
        self.content.lock().pending.sealed().front().is_some_and(|sealed| sealed.number <= last)
    }

    /// Returns how many sealed pieces up to this number follow the first `count`.
    pub(crate) fn sealed_behind(&self, count: usize, upto: u64) -> usize {
        let content = self.content.lock();
        content.pending.sealed().iter().skip(count).filter(|sealed| sealed.number <= upto).count()
    }

    /// Returns the sealed piece at this place, if its number is at most `last`.
    pub(crate) fn sealed_at(&self, place: usize, last: u64) -> Option<Next> {
        let content = self.content.lock();
        let sealed = content.pending.sealed().get(place).filter(|sealed| sealed.number <= last)?;
        Some(Next { packed: sealed.packed.clone(), uploading: sealed.uploading.clone() })
    }

    /// Returns the uploads of the pieces up to this number.
    pub(crate) fn uploads(&self, upto: u64) -> Vec<watch::Receiver<Upload>> {
        let content = self.content.lock();
        let sealed = content.pending.sealed().iter().filter(|sealed| sealed.number <= upto);
        sealed.map(|sealed| sealed.uploading.outcome.clone()).collect()
    }

    /// Notes that a new attempt at an upload is under way.
    pub(crate) fn upload_again(&self, place: usize, uploading: Uploading) {
        self.content.lock().pending.upload_again(place, uploading);
    }

    /// Returns whether there is more uncommitted content than the first `count` sealed pieces.
    pub(crate) fn has_more_than(&self, count: usize) -> bool {
        self.content.lock().pending.has_more_than(count)
    }

    /// Returns the content version that uncommitted writes are based on.
    pub(crate) fn base(&self) -> Version {
        self.content.lock().base
    }

    /// Returns what a commit is based on now.
    pub(crate) fn basis(&self, now: Instant) -> Basis {
        let content = self.content.lock();
        let diverted = content.diverted.filter(|(_, last)| now.saturating_duration_since(*last) < DIVERTED_FOR);
        // Whole pages have what the file has, too. It must not replace what is in the copy and was never in the file.
        let diverted = diverted.filter(|_| !content.whole_pages);
        Basis {
            base: content.base,
            own: content.own.iter().copied().filter(|version| *version > content.base).collect(),
            append_from: content.pending.appended_from(),
            mtime: content.pending.mtime(),
            clear_privileges: content.pending.clear_privileges(),
            diverted: diverted.map(|(copy, _)| copy),
        }
    }

    /// Notes that a commit that is not in the queue has begun or ended. Until it ends, it may have arrived.
    pub(crate) fn note_committing(&self, under_way: bool) {
        self.content.lock().committing = under_way;
    }

    /// Drops the first `count` sealed pieces, which are committed or stored elsewhere. Returns how many bytes less the
    /// window counts.
    pub(crate) fn drop_sealed(&self, count: usize) -> u64 {
        let mut content = self.content.lock();
        let (base, parts) = (content.base, content.parts_of(count));
        content.lose(base, &parts);
        let gone = content.pending.drop_front(count);
        content.settle_if_empty();
        gone
    }

    /// Drops uncommitted content: nobody can read it any more, or it is refused and its writer knows. Returns how many
    /// bytes less the window counts.
    pub(crate) fn drop_uncommitted(&self) -> u64 {
        let mut content = self.content.lock();
        content.refused = false;
        let base = content.base;
        content.lose(base, std::slice::from_ref(&(0..u64::MAX)));
        let gone = content.pending.drop_all();
        content.settle_if_empty();
        gone
    }

    /// Applies a commit of the first `pieces` sealed pieces: they are dropped, in the same step in which the known
    /// content changes. Returns how many bytes less the window counts.
    pub(crate) fn take_landing(&self, landing: Landing<'_>, pieces: usize, now: Instant) -> u64 {
        let Landing { attr, base, writes, append_from, appended_at, only_ours, conflict } = landing;
        let in_place = appended_at == append_from;
        let made = attr.version;
        let mut content = self.content.lock();
        let known = content.extents.version();
        let moves = conflict.is_none() && !in_place;
        let lost: Vec<Range<u64>> = if moves {
            // I6: pages that were read meanwhile have it where others have appended something. What was appended behind
            // it moves, too.
            std::iter::once(append_from.unwrap_or(0)..u64::MAX).collect()
        } else if conflict.is_some() || made < known {
            // I6: others have written after it, and pages that were read since have it over what they wrote.
            content.parts_of(pieces)
        } else {
            Vec::new()
        };
        let gone = content.pending.drop_front(pieces);
        // Nobody else has changed what is known, though others may have before that.
        let is_next = conflict.is_none() && made == known.next();
        if made > known {
            match is_next {
                true if in_place => content.extents.apply(writes, made),
                true => content.forget_extents(made),
                false => content.leave_extents(made),
            }
        }
        if !lost.is_empty() {
            content.lose(base, &lost);
        }
        if conflict.is_none() {
            content.pages.landed(writes, in_place, made);
        }
        if made >= content.attr.version {
            content.attr = attr;
        }
        // A page that came meanwhile may have put the rest on an older base than this commit's.
        let raises = only_ours && content.base == base;
        // I6: what is written over the bytes of an append that has moved has not seen them there.
        if conflict.is_none() && !raises && in_place {
            content.note_own(made);
        }
        content.diverted = conflict.map(|copy| (copy, now));
        let end = writes.last().map_or(0, |last| last.file_off + last.len);
        content.follow_commit((append_from, appended_at, end), raises);
        gone
    }

    /// Drops the first `pieces` sealed pieces, which went into the conflict copy that has the earlier content. Returns
    /// how many bytes less the window counts.
    pub(crate) fn take_diverted(&self, copy: Ino, pieces: usize, now: Instant) -> u64 {
        let mut content = self.content.lock();
        let (base, parts) = (content.base, content.parts_of(pieces));
        content.lose(base, &parts);
        let gone = content.pending.drop_front(pieces);
        content.diverted = Some((copy, now));
        content.follow_commit((None, None, 0), false);
        gone
    }

    /// Sends later writes to this copy, too.
    pub(crate) fn divert(&self, copy: Ino, now: Instant) {
        self.content.lock().diverted = Some((copy, now));
    }

    /// Returns whether writes go into a conflict copy.
    pub(crate) fn is_diverted(&self) -> bool {
        self.content.lock().diverted.is_some()
    }

    /// Ends the diversion, because the copy is gone or the writer has seen what others wrote: later writes go into the
    /// file.
    pub(crate) fn end_diversion(&self) {
        self.content.lock().diverted = None;
    }

    /// Notes that content need not be committed any more. `outcome` is left for `fsync` and `close` to report.
    pub(crate) fn note_committed(&self, outcome: Result<(), FsError>) {
        let mut content = self.content.lock();
        content.refused = false;
        match outcome {
            // I6: the next `close` or `fsync` reports it, though the background found it.
            Err(error) => content.unreported = Some(error),
            Ok(()) if content.unreported != Some(FsError::Stale) => content.unreported = None,
            Ok(()) => {}
        }
    }

    /// Notes that content could not be committed, and stays outside the queue. `Stale` says that the policy refuses it.
    pub(crate) fn note_unsaved(&self, error: FsError) -> Unsaved {
        let mut content = self.content.lock();
        content.unreported = Some(error);
        content.refused = error == FsError::Stale;
        content.pending.leave_queue();
        // Writers need not wait for content that nobody tries to commit.
        let released = if content.refused { content.pending.stop_counting() } else { 0 };
        Unsaved { released, unheard: content.refused && content.opens == 0 }
    }

    /// Notes an error that the next `fsync` or `close` reports.
    pub(crate) fn report_later(&self, error: FsError) {
        self.content.lock().unreported = Some(error);
    }

    /// Returns whether there is no unreported error.
    pub(crate) fn is_well(&self) -> bool {
        self.content.lock().unreported.is_none()
    }

    /// Takes out the unreported error, which is reported now, once (I6). A writer that was notified of a conflict
    /// writes into the file again.
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
    /// Returns the parts of the file that the first `count` sealed pieces have.
    fn parts_of(&self, count: usize) -> Vec<Range<u64>> {
        let sealed = self.pending.sealed().iter().take(count).flat_map(|sealed| &sealed.packed.pieces);
        sealed.map(|(at, _, len)| *at..*at + *len as u64).collect()
    }

    /// Notes that these written parts, which are based on this version, do not get into the file, though they are in the
    /// kernel's pages.
    fn lose(&mut self, base: Version, parts: &[Range<u64>]) {
        self.pages.lost(base, &self.own, parts);
    }

    /// Returns whether nothing waits to be committed any more. If so, later content is based on what is known now, whatever
    /// the earlier content was based on.
    pub(super) fn settle_if_empty(&mut self) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        self.base = self.base.max(self.attr.version).max(self.extents.version());
        self.own.clear();
        self.size = self.attr.size;
        (self.whole_pages, self.late) = (false, false);
        self.pending.settle();
        true
    }

    /// Adjusts pending content after a commit. Later writes are based on the commit if it `raises` the base. If appended
    /// content landed elsewhere than it was written for, content that was appended behind it moves along.
    fn follow_commit(&mut self, (from, landed, end): (Option<u64>, Option<u64>, u64), raises: bool) {
        if self.settle_if_empty() {
            return;
        }
        // I6: content that was written meanwhile saw the file as it was before the others' changes, so it retains that
        // base.
        if raises {
            self.base = self.base.next();
        }
        self.pending.follow_append(from, landed, end);
        self.size = self.attr.size.max(self.pending.end());
    }

    /// Notes a version that a commit of ours has made, beside those that others have made since `base`.
    fn note_own(&mut self, version: Version) {
        if self.own.len() >= OWN_VERSIONS_MAX {
            // The oldest version counts as another session's from now on: at worst, a needless copy is made.
            self.own.remove(0);
        }
        self.own.push(version);
    }
}

//! Methods for pages that programs change through a mapping: what a page that comes back is judged by, and the kernel's
//! drops of pages.

use super::{Content, FileState, Plan};
use crate::file::pages::Shows;
use std::ops::Range;
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{ChunkIndex, Version};

/// What a program has seen in a part of its pages.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The part of the file.
    pub range: Range<u64>,
    shows: Shows,
    base: Version,
    own: Vec<Version>,
    /// Where the bytes are that it has seen.
    pub below: Below,
}

/// Where the content of pages is that a program has seen.
#[derive(Clone, Debug)]
pub(crate) enum Below {
    /// It is put together from this.
    Read(Plan),
    /// The extents of this chunk are needed.
    Load(ChunkIndex),
    /// It is not known exactly any more: the pages are judged whole.
    Unknown,
}

impl FileState {
    /// Adds pages that a program has changed through a mapping, whole. `None` when they must be compared: others may have
    /// changed the file, so that it is not certain that the program has seen what the file has now. Returns how many
    /// bytes more the window counts.
    pub(crate) fn write_pages_at_once(
        &self,
        offset: u64,
        data: &[u8],
        now: Timestamp,
    ) -> Option<Result<usize, FsError>> {
        let mut content = self.content.lock();
        let on_present = content.pending.is_empty() || content.base == content.extents.version();
        if content.is_contended() || !content.pages.show_present() || !on_present || content.pending.is_scattered() {
            return None;
        }
        if content.refused {
            return Some(Err(FsError::Stale));
        }
        content.whole_pages = true;
        Some(Ok(content.add(offset, data, now)))
    }

    /// Returns whether pages wait to be committed that were taken whole.
    pub(crate) fn has_whole_pages(&self) -> bool {
        let content = self.content.lock();
        content.whole_pages && !content.pending.is_empty()
    }

    /// Returns whether all pages of the kernel show the content that is known now.
    pub(crate) fn pages_show_present(&self) -> bool {
        self.content.lock().pages.show_present()
    }

    /// Returns whether others have changed the content since the file was opened here.
    pub(crate) fn is_changed_by_others(&self) -> bool {
        self.content.lock().pages.have_followed_others()
    }

    /// Returns what a program has seen at the start of this part of its pages.
    pub(crate) fn seen(&self, range: &Range<u64>) -> Seen {
        let content = self.content.lock();
        let (shows, end) = content.pages.shown(range);
        let range = range.start..end;
        let (extents, is_present) = match content.pages.earlier(shows.number) {
            Some(earlier) => (earlier.content(), false),
            None => (&content.extents, true),
        };
        let below = match extents.first_unknown(&range) {
            _ if !shows.exact || extents.torn_since().is_some() => Below::Unknown,
            Some(chunk) if is_present => Below::Load(chunk),
            Some(_) => Below::Unknown,
            None => {
                // What is not committed is in the pages, too.
                let (extents, over) = (extents.overlapping(&range), content.pending.copy_of(&range));
                Below::Read(Plan { range: range.clone(), extents, over, sequential: false })
            }
        };
        let (base, own) = content.judged_by(shows.number).unwrap_or((content.base, Vec::new()));
        Seen { range, shows, base, own, below }
    }

    /// Adds these `changed` runs of pages with the content of `data`; all of it if it could not be compared. They are
    /// judged by what the program has `seen`. Returns how many bytes more the window counts.
    ///
    /// # Errors
    /// `Stale` while the policy refuses earlier content.
    pub(crate) fn write_changed(
        &self,
        seen: &Seen,
        data: &[u8],
        changed: Option<&[Range<usize>]>,
        now: Timestamp,
    ) -> Result<usize, FsError> {
        let mut content = self.content.lock();
        if content.refused {
            return Err(FsError::Stale);
        }
        let all = 0..data.len();
        let (changed, whole) = changed.map_or((std::slice::from_ref(&all), true), |changed| (changed, false));
        if changed.is_empty() {
            return Ok(0);
        }
        content.whole_pages |= whole;
        // The content may have become an earlier one since, and commits of ours may have landed.
        let judged = content.judged_by(seen.shows.number);
        let (base, own) = judged.unwrap_or_else(|| (seen.base, seen.own.clone()));
        // I6: all uncommitted content has one base. An older one makes needless conflicts at worst.
        if content.pending.is_empty() || base < content.base {
            (content.base, content.own) = (base, own);
            content.late |= base < content.extents.version();
        }
        Ok(changed.iter().map(|run| content.add(seen.range.start + run.start as u64, &data[run.clone()], now)).sum())
    }

    /// Notes that pages which the kernel has written back are being taken. Returns the number of this.
    pub(crate) fn begin_taking(&self) -> u64 {
        self.content.lock().pages.begin_taking()
    }

    /// Notes that this has ended. If the pages were not all `taken`, the kernel may retain them.
    pub(crate) fn end_taking(&self, number: u64, taken: bool) {
        let mut content = self.content.lock();
        if !taken {
            content.pages.stay();
        }
        content.pages.end_taking(number);
    }

    /// Notes that pages which the kernel wanted to write back were not taken: it may retain them.
    pub(crate) fn pages_stay(&self) {
        self.content.lock().pages.stay();
    }

    /// Notes that the kernel has put bytes which were appended `at` one place into its pages at another one.
    pub(crate) fn note_misplaced(&self, at: u64, shown_at: u64, len: u64) {
        let parts = [at, shown_at].map(|start| start..start + len);
        self.content.lock().pages.misplaced(&parts);
    }

    /// Notes that the kernel retains its pages though a change of ours has made this version: it did not get the answer.
    pub(crate) fn note_missed(&self, made: Version) {
        let before = Version(made.0.saturating_sub(1));
        self.content.lock().pages.lost(before, &[], std::slice::from_ref(&(0..u64::MAX)));
    }

    /// Returns the version of the content that a reader gets now, beside what is not committed.
    pub(crate) fn known_version(&self) -> Version {
        self.content.lock().extents.version()
    }

    /// Notes that the kernel begins to drop all pages. Returns the number of the drop.
    pub(crate) fn begin_drop(&self) -> u64 {
        self.content.lock().pages.begin_drop()
    }

    /// Notes that the kernel has dropped all pages that it was given before this drop began.
    pub(crate) fn end_drop(&self, drop: u64) {
        self.content.lock().pages.end_drop(drop);
    }
}

impl Content {
    /// Returns the version of the content of this number, and the later versions of our own. `None` when it is gone.
    fn judged_by(&self, number: u64) -> Option<(Version, Vec<Version>)> {
        match self.pages.earlier(number) {
            Some(earlier) => Some((earlier.version(), earlier.own().to_vec())),
            None => self.pages.is_present(number).then(|| (self.extents.version(), Vec::new())),
        }
    }

    /// Adds bytes of pages. The kernel is given nothing by that. Returns how many bytes more the window counts.
    fn add(&mut self, at: u64, data: &[u8], now: Timestamp) -> usize {
        let (_, added) = self.pending.write((Some(at), self.size), data, false, now);
        self.size = self.size.max(at + data.len() as u64);
        added
    }
}

//! What the kernel's pages of a file show: the version at which each of them was read, and the content of it.
//!
//! A page that a program changes through a mapping comes back whole, possibly long after others have changed the file.
//! It is judged by the version that the program has seen in it (I6), and its other bytes are none of the program's.
//! While only this client changes a file, all pages show the present content. When others have changed it, pages show
//! earlier content until the kernel has dropped them. Only during that time it is noted which parts the kernel reads.
//! A part that is not noted counts as read before all of that: the worst that comes of it is a needless conflict.
//!
//! Pure: no I/O, no clock.

use super::extents::Extents;
use rangemap::RangeMap;
use std::ops::Range;
use wire::extent::ExtentWrite;
use wire::ids::Version;

/// Earlier contents of a file that are remembered. Beyond it, pages count as older than they are.
const EARLIER_MAX: usize = 8;
/// Parts for which it is noted what the kernel has read. Parts beyond it count as read before.
const NOTED_MAX: usize = 1024;
/// Versions of our own that are remembered for an earlier content. Of the oldest of them, pages count as another
/// session's.
const OWN_MAX: usize = 1024;

/// Content that others have replaced, and that pages in the kernel, or uncommitted content, are based on.
pub(crate) struct Earlier {
    /// Number of the content.
    number: u64,
    /// Where the content is stored, with what this client has written since: it is in the pages, too. Its version is
    /// the one that a program has seen.
    content: Extents,
    /// Versions that commits of ours have made since.
    own: Vec<Version>,
    /// The last drop that had begun when the kernel was given pages of it; `None` when it has none of them.
    given: Option<u64>,
}

impl Earlier {
    /// Returns the version that a program has seen.
    pub fn version(&self) -> Version {
        self.content.version()
    }

    /// Returns the versions that commits of ours have made since.
    pub fn own(&self) -> &[Version] {
        &self.own
    }
}

/// The kernel's pages of one file.
pub(crate) struct Pages {
    /// Number of the present content.
    number: u64,
    /// The oldest first.
    earlier: Vec<Earlier>,
    /// Parts that the kernel has read since it may have pages of an earlier content, with the number of the content.
    noted: RangeMap<u64, u64>,
    /// How many drops of all pages have begun.
    begun: u64,
    /// The last drop that has ended.
    ended: u64,
    /// The last drop that had begun when the kernel was given pages of the present content.
    given: Option<u64>,
}

impl Default for Pages {
    /// The kernel may have pages from an earlier open.
    fn default() -> Self {
        Self { number: 0, earlier: Vec::new(), noted: RangeMap::new(), begun: 0, ended: 0, given: Some(0) }
    }
}

impl Pages {
    /// Notes that the kernel is given something of the present content.
    pub fn note_given(&mut self) {
        self.given = Some(self.begun);
    }

    /// Notes that the kernel fills its pages of this part from the present content.
    pub fn note_read(&mut self, range: &Range<u64>) {
        self.note_given();
        if !self.show_present() {
            self.note(range, self.number);
        }
    }

    /// Notes that the kernel fills its pages of this part with uncommitted pages that are based on an earlier version:
    /// they hide what others have changed since.
    pub fn note_read_of_pages(&mut self, range: &Range<u64>, base: Version) {
        self.note_given();
        let number = self.give_earlier(base);
        self.note(range, number);
    }

    fn note(&mut self, range: &Range<u64>, number: u64) {
        if !range.is_empty() && self.noted.len() < NOTED_MAX {
            self.noted.insert(range.clone(), number);
        }
    }

    /// Notes that the kernel is given something of this earlier content. Returns its number.
    fn give_earlier(&mut self, version: Version) -> u64 {
        let given = Some(self.begun);
        if let Some(earlier) = self.earlier.iter_mut().find(|earlier| earlier.version() == version) {
            earlier.given = given;
            return earlier.number;
        }
        // The present content gets another number: parts that are noted under the old one count as older.
        let number = self.number;
        self.number += 1;
        self.earlier.insert(0, Earlier { number, content: Extents::unknown(version), own: Vec::new(), given });
        number
    }

    /// Notes that the kernel begins to drop all pages. Returns the number of the drop.
    pub fn begin_drop(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Notes that the kernel has dropped all pages that it was given before this drop began. Content of version `base`
    /// is remembered for what is not committed.
    pub fn end_drop(&mut self, drop: u64, base: Option<Version>) {
        self.ended = self.ended.max(drop);
        for earlier in &mut self.earlier {
            earlier.given = earlier.given.filter(|given| *given >= drop);
        }
        self.forget_unneeded(base);
    }

    /// Forgets contents of which the kernel has no page, and on which nothing uncommitted is `base`d.
    pub fn forget_unneeded(&mut self, base: Option<Version>) {
        self.earlier.retain(|earlier| earlier.given.is_some() || base == Some(earlier.version()));
        if self.show_present() {
            self.noted.clear();
        }
    }

    /// Notes that others have replaced this content.
    pub fn leave(&mut self, content: Extents, base: Option<Version>) {
        let given = self.given.take().filter(|given| *given >= self.ended);
        self.earlier.push(Earlier { number: self.number, content, own: Vec::new(), given });
        self.number += 1;
        self.forget_unneeded(base);
        if self.earlier.len() > EARLIER_MAX {
            let gone = self.earlier.remove(1);
            let oldest = &mut self.earlier[0];
            oldest.given = oldest.given.max(gone.given);
            let of_gone: Vec<Range<u64>> = self
                .noted
                .iter()
                .filter(|(_, number)| **number == gone.number)
                .map(|(range, _)| range.clone())
                .collect();
            of_gone.into_iter().for_each(|range| self.noted.insert(range, oldest.number));
        }
    }

    /// Notes that a commit of ours has made this version. The kernel has the written bytes in its pages; `None` when
    /// they landed elsewhere than they were written for.
    pub fn landed(&mut self, writes: Option<&[ExtentWrite]>, version: Version) {
        for earlier in &mut self.earlier {
            if let Some(writes) = writes {
                // The first change after a content leads from it to one that the program has seen, too.
                let is_next = version == earlier.version().next();
                earlier.content.apply(writes, if is_next { version } else { earlier.version() });
            }
            if earlier.own.len() >= OWN_MAX {
                earlier.own.remove(0);
            }
            earlier.own.push(version);
        }
    }

    /// Notes that bytes that were written here went into a conflict copy. They are in the kernel's pages and not in the
    /// file, so pages that come back are judged like these bytes: by this version.
    pub fn lost(&mut self, base: Version) {
        self.noted.clear();
        // Parts that are not noted count as the oldest content.
        self.give_earlier(base);
    }

    /// Notes that this client has cut the file.
    pub fn cut(&mut self, from: u64) {
        for earlier in &mut self.earlier {
            earlier.content.truncate(from, earlier.version());
        }
    }

    /// Returns whether all pages show the present content.
    pub fn show_present(&self) -> bool {
        self.earlier.iter().all(|earlier| earlier.given.is_none())
    }

    /// Returns the earlier content that the kernel's pages show at the start of this part, `None` for the present one,
    /// and where that ends.
    pub fn shown(&self, range: &Range<u64>) -> (Option<&Earlier>, u64) {
        let mut in_kernel = self.earlier.iter().filter(|earlier| earlier.given.is_some());
        let Some(oldest) = in_kernel.next() else { return (None, range.end) };
        match self.noted.get_key_value(&range.start) {
            Some((noted, number)) => {
                let of = in_kernel.find(|earlier| earlier.number == *number).unwrap_or(oldest);
                ((*number != self.number).then_some(of), range.end.min(noted.end))
            }
            None => {
                let next = self.noted.overlapping(range.clone()).next();
                (Some(oldest), next.map_or(range.end, |(noted, _)| noted.start))
            }
        }
    }

    /// Returns the content of an earlier version, if it is remembered.
    pub fn content(&self, version: Version) -> Option<&Extents> {
        self.earlier.iter().find(|earlier| earlier.version() == version).map(|earlier| &earlier.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(version: u64) -> Extents {
        Extents::unknown(Version(version))
    }

    /// Returns the version that pages at this place show; `None` for the present one.
    fn shown(pages: &Pages, at: u64) -> Option<u64> {
        pages.shown(&(at..at + 1)).0.map(|earlier| earlier.version().0)
    }

    #[test]
    fn a_page_shows_what_it_was_read_from_until_it_is_read_anew_or_dropped() {
        let mut pages = Pages::default();
        pages.note_read(&(0..100));
        assert_eq!(pages.shown(&(0..500)).1, 500, "nothing is noted while all is present");
        pages.leave(content(1), None);
        pages.note_read(&(10..20));
        assert_eq!([0, 10, 19, 20].map(|at| shown(&pages, at)), [Some(1), None, None, Some(1)]);
        assert_eq!([0, 10, 20].map(|at| pages.shown(&(at..100)).1), [10, 20, 100]);
        let drop = pages.begin_drop();
        pages.leave(content(2), None);
        pages.note_read(&(30..40));
        assert_eq!([0, 10, 30].map(|at| shown(&pages, at)), [Some(1), Some(2), None]);
        pages.end_drop(drop, None);
        assert!(pages.show_present(), "what was given before the drop began is gone");
        pages.leave(content(3), None);
        assert_eq!(shown(&pages, 30), Some(3), "what was read since may be there");
        assert!(pages.content(Version(1)).is_none() && pages.content(Version(3)).is_some());
    }

    #[test]
    fn a_content_without_pages_is_remembered_as_long_as_something_is_based_on_it() {
        let mut pages = Pages::default();
        pages.leave(content(1), Some(Version(1)));
        let drop = pages.begin_drop();
        pages.end_drop(drop, Some(Version(1)));
        assert!(pages.show_present() && pages.content(Version(1)).is_some());
        pages.leave(content(2), Some(Version(1)));
        assert!(pages.content(Version(2)).is_none(), "the kernel was given none of it");
        pages.forget_unneeded(None);
        assert!(pages.content(Version(1)).is_none());
    }

    /// Guards I6.
    #[test]
    fn beyond_the_limits_a_page_counts_as_older_and_never_as_newer() {
        let mut pages = Pages::default();
        let many = EARLIER_MAX as u64 + 5;
        for version in 1..=many {
            pages.note_read(&(version * 10..version * 10 + 10));
            pages.leave(content(version), None);
        }
        assert_eq!(pages.earlier.len(), EARLIER_MAX);
        assert!((1..=many).all(|version| shown(&pages, version * 10).is_some_and(|shown| shown <= version)));
        assert_eq!(shown(&pages, many * 10), Some(many));
        for part in 0..2 * NOTED_MAX as u64 {
            pages.note_read(&(part * 10..part * 10 + 5));
        }
        assert!(pages.noted.len() <= NOTED_MAX + 1);
        assert_eq!((shown(&pages, 1), shown(&pages, 20 * NOTED_MAX as u64 - 10)), (None, Some(1)));
    }

    #[test]
    fn what_was_written_here_is_in_the_pages_and_what_was_lost_makes_all_of_them_old() {
        let mut pages = Pages::default();
        pages.leave(content(1), None);
        pages.landed(Some(&[]), Version(3));
        let (earlier, _) = pages.shown(&(0..1));
        assert_eq!(earlier.map(|earlier| (earlier.version(), earlier.own())), Some((Version(1), &[Version(3)][..])));
        pages.note_read(&(0..10));
        assert_eq!(shown(&pages, 0), None);
        pages.lost(Version(1));
        assert_eq!(shown(&pages, 0), Some(1));
        pages.lost(Version(0));
        assert_eq!(shown(&pages, 0), Some(0));
    }
}

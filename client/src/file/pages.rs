//! Which content of a file the kernel's pages show.
//!
//! A page that a program changes through a mapping comes back whole, possibly long after others have changed the file.
//! The program is judged by the content that it has seen in the page (I6), and what it has not changed there is none of
//! its work. While only this client changes a file, all pages show the present content. When others have changed it,
//! pages show an earlier content until the kernel has dropped them. Only during that time it is noted which parts the
//! kernel reads.
//!
//! A part shows one content exactly, or some content that is not older than a known one (*inexactly*). Only an exact part
//! may be compared: a byte that has the value of another content may still be one that the program has stored.
//!
//! Pure: no I/O, no clock.

use super::extents::Extents;
use rangemap::RangeMap;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use wire::extent::ExtentWrite;
use wire::ids::Version;

/// Earlier contents of a file that are retained. Beyond it, pages of the oldest but one become inexact.
const EARLIER_MAX: usize = 8;
/// Parts for which it is noted what they show. Beyond it, all parts become inexact.
const NOTED_MAX: usize = 1024;
/// Versions of our own that are retained for an earlier content. The oldest of them counts as another session's then:
/// at worst, a needless conflict copy is made.
const OWN_MAX: usize = 1024;
/// Drops that wait for pages which are being taken. Beyond it, they wait for pages that came later, too.
const UNSETTLED_MAX: usize = 64;

/// The version of what is at a wrong place in the pages: everything else is newer.
const MISPLACED: Version = Version(0);

/// What a part of the file shows in the kernel's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shows {
    /// Number of the content.
    pub number: u64,
    /// It is this content, with what this client has written since. Otherwise it may be a newer one, or a mixture.
    pub exact: bool,
}

/// Content that others have replaced, and that pages in the kernel may show.
pub(crate) struct Earlier {
    number: u64,
    /// The version that a program has seen.
    version: Version,
    /// Where the content is stored, with what this client has written since: it is in the pages, too.
    content: Extents,
    /// Later versions that this client has made.
    own: Vec<Version>,
    /// The last drop that had begun when the kernel was given pages of it.
    given: u64,
}

impl Earlier {
    /// Returns the version that a program has seen.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns where the content is stored.
    pub fn content(&self) -> &Extents {
        &self.content
    }

    /// Returns the later versions that this client has made.
    pub fn own(&self) -> &[Version] {
        &self.own
    }

    fn note_own(&mut self, version: Version) {
        // What is misplaced must not replace our own bytes either.
        if version <= self.version || self.version == MISPLACED {
            return;
        }
        if self.own.len() >= OWN_MAX {
            self.own.remove(0);
        }
        self.own.push(version);
    }
}

/// The kernel's pages of one file.
pub(crate) struct Pages {
    /// Number of the present content. It stays the same when only this client changes the content.
    present: u64,
    /// Number of the next content.
    next: u64,
    /// Contents that pages may show besides the present one, by version.
    earlier: Vec<Earlier>,
    /// What parts show that the kernel has read since there are earlier contents.
    noted: RangeMap<u64, Shows>,
    /// What all other parts show.
    unnoted: Shows,
    /// How many drops of all pages have begun.
    begun: u64,
    /// The last drop that has ended.
    ended: u64,
    /// The last drop that had begun when the kernel was given pages of the present content.
    given: Option<u64>,
    /// Numbers of those who take pages that the kernel has written back.
    taking: BTreeSet<u64>,
    /// Number of the next of them.
    next_taking: u64,
    /// Drops that have ended while pages were being taken, each with the number of the first who began after it.
    unsettled: VecDeque<(u64, u64)>,
}

impl Default for Pages {
    /// The kernel may have pages of the present content from an earlier open.
    fn default() -> Self {
        Self {
            present: 0,
            next: 1,
            earlier: Vec::new(),
            noted: RangeMap::new(),
            unnoted: Shows { number: 0, exact: true },
            begun: 0,
            ended: 0,
            given: Some(0),
            taking: BTreeSet::new(),
            next_taking: 0,
            unsettled: VecDeque::new(),
        }
    }
}

impl Pages {
    /// Returns whether all pages show the present content.
    pub fn show_present(&self) -> bool {
        self.earlier.is_empty()
    }

    /// Returns whether others have ever replaced the content.
    pub fn have_followed_others(&self) -> bool {
        self.present != 0
    }

    /// Notes that the kernel is given something of the present content.
    pub fn note_given(&mut self) {
        self.given = Some(self.begun);
    }

    /// Notes that the kernel reads a part of the present content into its pages, or `perhaps` past them.
    pub fn note_read(&mut self, range: &Range<u64>, perhaps: bool) {
        self.note_given();
        if self.show_present() || range.is_empty() {
            return;
        }
        if perhaps {
            self.blur(range);
        } else {
            self.note(range.clone(), Shows { number: self.present, exact: true });
        }
    }

    /// Notes that the kernel reads a part of which some may be as old as this version.
    pub fn note_read_torn(&mut self, range: &Range<u64>, oldest: Version) {
        self.note_given();
        self.lost(oldest, &[], std::slice::from_ref(range));
    }

    fn note(&mut self, range: Range<u64>, shows: Shows) {
        self.noted.insert(range, shows);
        if self.noted.len() > NOTED_MAX {
            self.blur_all();
        }
    }

    /// Makes a part inexact.
    fn blur(&mut self, range: &Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let (shows, end) = self.shown(&(at..range.end));
            self.noted.insert(at..end, Shows { exact: false, ..shows });
            at = end;
        }
        if self.noted.len() > NOTED_MAX {
            self.blur_all();
        }
    }

    /// Makes all parts inexact that the kernel has pages of now.
    fn blur_all(&mut self) {
        let oldest = self.earlier.first().map_or(self.present, |earlier| earlier.number);
        self.noted.clear();
        self.unnoted = Shows { number: oldest, exact: false };
    }

    /// Notes that the kernel begins to drop all pages. Returns the number of the drop.
    pub fn begin_drop(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Notes that the kernel has dropped all pages that it was given before this drop began. Copies of them may be on
    /// their way: before 6.16, Linux writes pages back from copies, and drops a page without waiting for its copy.
    pub fn end_drop(&mut self, drop: u64) {
        let is_full = self.unsettled.len() >= UNSETTLED_MAX;
        let last = if is_full { self.unsettled.pop_back() } else { None };
        let drop = last.map_or(drop, |(_, last)| last.max(drop));
        self.unsettled.push_back((self.next_taking, drop));
        self.settle_drops();
    }

    /// Notes that pages which the kernel has written back are being taken. Returns the number of this.
    pub fn begin_taking(&mut self) -> u64 {
        self.next_taking += 1;
        self.taking.insert(self.next_taking - 1);
        self.next_taking - 1
    }

    /// Notes that this has ended.
    pub fn end_taking(&mut self, number: u64) {
        self.taking.remove(&number);
        self.settle_drops();
    }

    /// Forgets what the kernel has dropped, unless pages are being taken that came before that.
    fn settle_drops(&mut self) {
        let first = self.taking.first().copied().unwrap_or(u64::MAX);
        while let Some((_, drop)) = self.unsettled.front().copied().filter(|(behind, _)| *behind <= first) {
            self.unsettled.pop_front();
            self.forget_dropped(drop);
        }
    }

    fn forget_dropped(&mut self, drop: u64) {
        self.ended = self.ended.max(drop);
        self.earlier.retain(|earlier| earlier.given >= drop);
        if self.show_present() {
            self.noted.clear();
            self.unnoted = Shows { number: self.present, exact: true };
        }
    }

    /// Notes that the kernel may retain pages although it was asked to drop them, because they could not be taken.
    pub fn stay(&mut self) {
        for earlier in &mut self.earlier {
            earlier.given = self.begun;
        }
        self.note_given();
    }

    /// Notes that others have replaced the present content, which was this.
    pub fn leave(&mut self, content: Extents) {
        let number = self.present;
        self.present = self.take_number();
        if let Some(given) = self.given.take().filter(|given| *given >= self.ended) {
            self.insert(Earlier { number, version: content.version(), content, own: Vec::new(), given });
        }
        if self.show_present() {
            self.unnoted = Shows { number: self.present, exact: true };
        }
    }

    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn insert(&mut self, earlier: Earlier) {
        let at = self.earlier.partition_point(|other| other.version <= earlier.version);
        self.earlier.insert(at, earlier);
        if self.earlier.len() <= EARLIER_MAX {
            return;
        }
        let gone = self.earlier.remove(1);
        let oldest = &mut self.earlier[0];
        oldest.given = oldest.given.max(gone.given);
        let older = Shows { number: oldest.number, exact: false };
        let of_gone: Vec<_> = self.noted.iter().filter(|(_, shows)| shows.number == gone.number).collect();
        let of_gone: Vec<_> = of_gone.into_iter().map(|(range, _)| range.clone()).collect();
        of_gone.into_iter().for_each(|range| self.noted.insert(range, older));
        if self.unnoted.number == gone.number {
            self.unnoted = older;
        }
    }

    /// Notes that a commit of ours has made this version. The kernel has the written bytes in its pages, unless they
    /// landed elsewhere than they were written for: then they are [lost](Pages::lost) before. Must follow
    /// [`Pages::leave`] if others have changed the content.
    pub fn landed(&mut self, writes: &[ExtentWrite], in_place: bool, made: Version) {
        if !in_place {
            // I6: such a version is not noted as our own. No page shows the bytes where they are in the file.
            if !self.show_present() {
                self.blur_all();
            }
            return;
        }
        for earlier in &mut self.earlier {
            earlier.note_own(made);
            earlier.content.apply(writes, earlier.version);
        }
    }

    /// Notes that this client has changed the content otherwise: cut it at `cut`, or anything else.
    pub fn changed_otherwise(&mut self, cut: Option<u64>, made: Version) {
        let Some(from) = cut else {
            // I6: such a version is not noted as our own. Compaction stores bytes of others anew, too, which a program
            // with earlier pages has not seen.
            if !self.show_present() {
                self.blur_all();
            }
            return;
        };
        for earlier in &mut self.earlier {
            earlier.note_own(made);
            earlier.content.truncate(from, earlier.version);
        }
    }

    /// Notes that these parts, which were written here, based on this version with these own ones since, are in the
    /// kernel's pages and do not get into the file. They may hide what others have written after `base`.
    pub fn lost(&mut self, base: Version, own: &[Version], parts: &[Range<u64>]) {
        if self.earlier.first().is_none_or(|oldest| oldest.version > base) {
            let (number, own) = (self.take_number(), own.to_vec());
            let content = Extents::unknown(base);
            self.insert(Earlier { number, version: base, content, own, given: self.begun });
        }
        // There is one.
        let behind = self.earlier.partition_point(|earlier| earlier.version <= base);
        self.earlier[..behind].iter_mut().for_each(|earlier| earlier.given = self.begun);
        let hidden = behind.saturating_sub(1);
        for part in parts {
            let mut at = part.start;
            while at < part.end {
                let (shows, end) = self.shown(&(at..part.end));
                let place = self.earlier.iter().position(|earlier| earlier.number == shows.number);
                let older = &self.earlier[place.map_or(hidden, |place| place.min(hidden))];
                let shows = Shows { number: older.number, exact: false };
                self.noted.insert(at..end, shows);
                at = end;
            }
            if self.noted.len() > NOTED_MAX {
                self.blur_all();
            }
        }
    }

    /// Notes that the kernel has put appended bytes at another place of its pages than they are at in the file, because it
    /// did not know where that ends. No content has what these parts show: what is in the file there is in conflict with
    /// them.
    pub fn misplaced(&mut self, parts: &[Range<u64>]) {
        self.lost(MISPLACED, &[], parts);
    }

    /// Returns what the kernel's pages show at the start of this part, and where that ends.
    pub fn shown(&self, range: &Range<u64>) -> (Shows, u64) {
        let (shows, end) = match self.noted.get_key_value(&range.start) {
            Some((noted, shows)) => (*shows, noted.end),
            None => {
                let next = self.noted.overlapping(range.clone()).next();
                (self.unnoted, next.map_or(range.end, |(noted, _)| noted.start))
            }
        };
        let known = shows.number == self.present || self.earlier(shows.number).is_some();
        // The pages of a content that is gone are gone, too. If one comes all the same, it is as old as can be.
        let oldest = || self.earlier.first().map_or(self.present, |earlier| earlier.number);
        let shows = if known { shows } else { Shows { number: oldest(), exact: false } };
        (shows, end.min(range.end))
    }

    /// Returns the earlier content of this number; `None` for the present one, and for one that is gone.
    pub fn earlier(&self, number: u64) -> Option<&Earlier> {
        self.earlier.iter().find(|earlier| earlier.number == number)
    }

    /// Returns whether this is the number of the present content.
    pub fn is_present(&self, number: u64) -> bool {
        number == self.present
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(version: u64) -> Extents {
        Extents::unknown(Version(version))
    }

    /// Returns the version that pages at this place show, 0 for the present one, and whether that is exact.
    fn shown(pages: &Pages, at: u64) -> (u64, bool) {
        let (shows, _) = pages.shown(&(at..at + 1));
        (pages.earlier(shows.number).map_or(0, |earlier| earlier.version().0), shows.exact)
    }

    #[test]
    fn a_page_shows_what_it_was_read_from_until_it_is_read_anew_or_dropped() {
        let mut pages = Pages::default();
        pages.note_read(&(0..100), false);
        assert_eq!(pages.shown(&(0..500)).1, 500, "nothing is noted while all is present");
        pages.leave(content(1));
        pages.note_read(&(10..20), false);
        assert_eq!([0, 10, 19, 20].map(|at| shown(&pages, at)), [(1, true), (0, true), (0, true), (1, true)]);
        assert_eq!([0, 10, 20].map(|at| pages.shown(&(at..100)).1), [10, 20, 100]);
        let drop = pages.begin_drop();
        pages.leave(content(2));
        pages.note_read(&(30..40), false);
        assert_eq!([0, 10, 30].map(|at| shown(&pages, at)), [(1, true), (2, true), (0, true)]);
        pages.end_drop(drop);
        assert!(pages.show_present(), "what was given before the drop began is gone");
        pages.leave(content(3));
        assert_eq!(shown(&pages, 30), (3, true), "what was read since may be there");
    }

    #[test]
    fn content_of_which_the_kernel_has_no_page_is_not_retained() {
        let mut pages = Pages::default();
        let drop = pages.begin_drop();
        pages.end_drop(drop);
        pages.leave(content(1));
        assert!(pages.show_present());
        pages.note_given();
        pages.leave(content(2));
        assert!(!pages.show_present());
        let drop = pages.begin_drop();
        pages.stay();
        pages.end_drop(drop);
        assert!(!pages.show_present(), "a page could not be taken");
        let drop = pages.begin_drop();
        pages.end_drop(drop);
        assert!(pages.show_present());
    }

    /// Guards I6.
    #[test]
    fn a_drop_forgets_nothing_as_long_as_pages_are_taken_that_came_before_its_end() {
        let mut pages = Pages::default();
        pages.leave(content(1));
        let drop = pages.begin_drop();
        let [early, other] = [pages.begin_taking(), pages.begin_taking()];
        pages.end_drop(drop);
        let late = pages.begin_taking();
        assert_eq!(shown(&pages, 0), (1, true));
        pages.end_taking(other);
        assert_eq!(shown(&pages, 0), (1, true));
        pages.end_taking(early);
        assert!(pages.show_present(), "what came later was read later");
        pages.leave(content(2));
        assert!(pages.show_present(), "the kernel has no page of it");
        for _ in 0..2 * UNSETTLED_MAX {
            let _ = pages.begin_taking();
            pages.note_given();
            pages.leave(content(3));
            let drop = pages.begin_drop();
            pages.end_drop(drop);
            assert!(pages.unsettled.len() <= UNSETTLED_MAX && !pages.show_present());
        }
        (0..pages.next_taking).filter(|number| *number != late).for_each(|number| pages.end_taking(number));
        assert!(!pages.show_present());
        pages.end_taking(late);
        assert!(pages.show_present());
    }

    /// Guards I6.
    #[test]
    fn beyond_the_limits_a_page_counts_as_older_and_is_not_compared() {
        let mut pages = Pages::default();
        let many = EARLIER_MAX as u64 + 5;
        for version in 1..=many {
            pages.note_read(&(version * 10..version * 10 + 10), false);
            pages.leave(content(version));
        }
        assert_eq!(pages.earlier.len(), EARLIER_MAX);
        for version in 1..=many {
            let (seen, exact) = shown(&pages, version * 10);
            assert!(seen > 0 && seen <= version && exact == (seen == version), "{version}: {seen}, {exact}");
        }
        assert_eq!(shown(&pages, many * 10), (many, true));
        for part in 0..2 * NOTED_MAX as u64 {
            pages.note_read(&(part * 10..part * 10 + 5), false);
            assert!(pages.noted.len() <= NOTED_MAX);
        }
        assert_eq!(shown(&pages, 1), (1, false));
    }

    #[test]
    fn a_read_that_may_have_gone_past_the_pages_makes_them_inexact() {
        let mut pages = Pages::default();
        pages.note_read(&(0..100), true);
        pages.leave(content(1));
        assert_eq!(shown(&pages, 0), (1, true), "one content shows one thing");
        pages.note_read(&(50..60), false);
        pages.note_read(&(40..70), true);
        assert_eq!(
            [39, 40, 50, 60, 70].map(|at| shown(&pages, at)),
            [(1, true), (1, false), (0, false), (1, false), (1, true)]
        );
    }

    #[test]
    fn what_was_written_here_is_in_the_pages_and_what_was_lost_makes_them_inexact() {
        let mut pages = Pages::default();
        pages.leave(content(2));
        pages.landed(&[], true, Version(4));
        let (shows, _) = pages.shown(&(0..1));
        let own = pages.earlier(shows.number).map(|earlier| earlier.own().to_vec());
        assert_eq!((shows.exact, own), (true, Some(vec![Version(4)])));
        pages.note_read(&(0..10), false);
        pages.lost(Version(3), &[], std::slice::from_ref(&(5..15)));
        let seen = [0, 5, 10, 20].map(|at| shown(&pages, at));
        assert_eq!(seen, [(0, true), (2, false), (2, false), (2, true)], "the one before that is retained");
        pages.lost(Version(1), &[], std::slice::from_ref(&(0..12)));
        let seen = [0, 5, 10, 12, 20].map(|at| shown(&pages, at));
        assert_eq!(seen, [(1, false), (1, false), (1, false), (2, false), (2, true)]);
        assert!(pages.earlier.is_sorted_by_key(Earlier::version));
    }

    #[test]
    fn what_landed_elsewhere_or_was_changed_otherwise_is_not_compared() {
        for spoil in [
            |pages: &mut Pages| pages.landed(&[], false, Version(3)),
            |pages: &mut Pages| pages.changed_otherwise(None, Version(3)),
        ] {
            let mut pages = Pages::default();
            pages.leave(content(1));
            pages.changed_otherwise(Some(10), Version(2));
            assert_eq!(shown(&pages, 0), (1, true), "a cut is known");
            spoil(&mut pages);
            assert_eq!(shown(&pages, 0), (1, false));
        }
    }

    /// Guards I6.
    #[test]
    fn a_version_that_may_have_bytes_of_others_anew_is_not_our_own() {
        let mut pages = Pages::default();
        pages.leave(content(1));
        pages.changed_otherwise(Some(10), Version(3));
        pages.changed_otherwise(None, Version(4));
        assert_eq!(pages.earlier[0].own(), [Version(3)]);
    }

    /// Guards I6.
    #[test]
    fn a_version_whose_bytes_are_elsewhere_than_in_the_pages_is_not_our_own() {
        let mut pages = Pages::default();
        pages.leave(content(1));
        pages.landed(&[], true, Version(3));
        pages.landed(&[], false, Version(5));
        assert_eq!(pages.earlier[0].own(), [Version(3)]);
    }
}

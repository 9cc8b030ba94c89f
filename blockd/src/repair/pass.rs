//! One comparison of the blocks that this daemon holds with those that it owes. Pure: [`Pass::step`] says what to do,
//! and the caller reports the outcome.
//!
//! 1. *Survey*: digests of all owed spans are compared with those of every source. Where they differ, there is work.
//! 2. *Work*, source by source, in the order of the ring: spans that still differ are cut into smaller ones until few
//!    blocks are in each. The source lists those, and blocks that are missing here and referred to (I10) are fetched.
//!
//! A source may be left before it was asked about everything. The next pass goes on behind that place, and turns to what
//! lies before it in the end, so nothing is left out in one pass after the other.
//!
//! A source owns the span now or did so in a layout that is not final. It answers only once it knows the layout of the
//! pass, and acknowledges nothing for older owners from then on: blocks acknowledged before are in its digests, and
//! later ones arrive here by themselves. So once every source has answered for every span, and sent what was asked for,
//! nothing owed is left behind (I11). It need not have done so in one pass: what was heard under the same owners stays
//! heard, and a source that is too slow for one pass is heard in a few. Passes up to that are a [`Round`].

use super::duties::Duties;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use wire::ids::{BlockHash, BlockdId, LayoutEpoch, Point};
use wire::layout::ring::Span;
use wire::message::block::Digest;

/// Spans compared in one request.
const COMPARE_MAX: usize = 512;
/// A span with more blocks is cut before it is listed, if some of its blocks are here.
const LISTED_MAX: u64 = 1024;
/// Number of pieces that a span is cut into.
const PIECES: u128 = 16;

/// Next step of a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Compare digests of these spans with a source's, and report by [`Pass::compared`].
    Compare {
        /// The daemon to ask.
        source: BlockdId,
        /// The spans.
        spans: Vec<Span>,
    },
    /// Let a source list its blocks from one name to another, and report by [`Pass::listed`].
    List {
        /// The daemon to ask.
        source: BlockdId,
        /// The first name.
        from: BlockHash,
        /// The last name.
        last: BlockHash,
    },
    /// Fetch those of these blocks that something refers to, and report by [`Pass::fetched`].
    Fetch {
        /// The daemon to ask.
        source: BlockdId,
        /// The blocks, with their lengths.
        blocks: Vec<(BlockHash, u32)>,
    },
    /// Nothing is left to do.
    End {
        /// The round is complete: all owed blocks that the sources had are here.
        complete: bool,
    },
}

impl Step {
    /// Returns the daemon to ask, if there is one.
    #[must_use]
    pub fn source(&self) -> Option<BlockdId> {
        match self {
            Self::Compare { source, .. } | Self::List { source, .. } | Self::Fetch { source, .. } => Some(*source),
            Self::End { .. } => None,
        }
    }
}

/// Blocks that are missing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lacking {
    /// How many, by the digests.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What passes have heard since the last complete round, and where they go on with sources that they left.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Epoch of the owners.
    placement: LayoutEpoch,
    reached: BTreeMap<BlockdId, Reached>,
}

/// What was heard of a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reached {
    /// Everything.
    All,
    /// What lies between two places, in the order of the ring: the next pass begins at `next`, and once it comes to
    /// `until`, the source was heard about everything.
    Left { next: Point, until: Point },
}

impl Reached {
    fn nothing(next: Point) -> Self {
        Self::Left { next, until: next }
    }
}

impl Round {
    /// The round, if it is one under these owners, or a new one. Places are kept.
    fn under(mut self, placement: LayoutEpoch) -> Self {
        if std::mem::replace(&mut self.placement, placement) != placement {
            let left = |reached| match reached {
                Reached::All => None,
                Reached::Left { next, .. } => Some(Reached::nothing(next)),
            };
            self.reached = self.reached.into_iter().filter_map(|(id, reached)| Some((id, left(reached)?))).collect();
        }
        self
    }

    /// Where a pass begins with a source, if an earlier one has left it there.
    fn place(&self, source: &BlockdId) -> Option<Point> {
        match self.reached.get(source)? {
            Reached::All => None,
            Reached::Left { next, .. } => Some(*next),
        }
    }
}

/// What is to be done with a span of a source.
enum Work {
    Compare(Span),
    List(Span),
}

impl Work {
    fn first(&self) -> Point {
        match self {
            Self::Compare(span) | Self::List(span) => span.first,
        }
    }
}

/// A pass under way.
pub struct Pass {
    survey: VecDeque<(BlockdId, Vec<Span>)>,
    /// What the survey found, by source.
    differing: BTreeMap<BlockdId, Vec<Span>>,
    /// In the order in which it is done.
    work: VecDeque<(BlockdId, Work)>,
    at: At,
    /// All sources.
    sources: Vec<BlockdId>,
    /// What earlier passes have heard.
    round: Round,
    /// Where this one has left sources.
    left: BTreeMap<BlockdId, Point>,
    /// Sources of which this one has left something out that lies before the place where it left them.
    skipped: BTreeSet<BlockdId>,
    /// Per span of the survey that differs: how much more the fullest source has.
    lacking: BTreeMap<Point, Lacking>,
    failed: BTreeSet<BlockdId>,
}

/// The last step.
enum At {
    Between,
    Surveying(BlockdId, Vec<Span>),
    Comparing(BlockdId, Vec<Span>),
    Listing(BlockdId, BlockHash, BlockHash),
    /// Also says where the list goes on.
    Fetching(BlockdId, Vec<(BlockHash, u32)>, Option<(BlockHash, BlockHash)>),
}

impl Pass {
    /// Begins a pass, with each source where the last pass of the round has left it.
    #[must_use]
    pub fn new(duties: &Duties, round: Round) -> Self {
        let cut = |(source, spans): (&BlockdId, &Vec<Span>)| {
            spans.chunks(COMPARE_MAX).map(|chunk| (*source, chunk.to_vec())).collect::<Vec<_>>()
        };
        Self {
            survey: duties.sources.iter().flat_map(cut).collect(),
            differing: BTreeMap::new(),
            work: VecDeque::new(),
            at: At::Between,
            sources: duties.sources.keys().copied().collect(),
            round: round.under(duties.placement),
            left: BTreeMap::new(),
            skipped: BTreeSet::new(),
            lacking: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Reports whether the next step is to fetch blocks.
    #[must_use]
    pub fn is_fetching(&self) -> bool {
        matches!(self.at, At::Fetching(..))
    }

    /// Returns the next step. It must be reported, or [`Pass::failed`], before another one is asked for.
    pub fn step(&mut self) -> Step {
        match &self.at {
            At::Fetching(source, blocks, _) => return Step::Fetch { source: *source, blocks: blocks.clone() },
            At::Listing(source, from, last) => return Step::List { source: *source, from: *from, last: *last },
            At::Surveying(source, spans) | At::Comparing(source, spans) => {
                return Step::Compare { source: *source, spans: spans.clone() };
            }
            At::Between => {}
        }
        while let Some((source, spans)) = self.survey.pop_front() {
            if !self.failed.contains(&source) {
                self.at = At::Surveying(source, spans.clone());
                return Step::Compare { source, spans };
            }
        }
        for (source, spans) in std::mem::take(&mut self.differing) {
            let begins = self.round.place(&source).unwrap_or(Point(0));
            self.work.extend(from_place(&spans, begins).map(|span| (source, Work::Compare(span))));
        }
        while let Some((source, work)) = self.work.pop_front() {
            if self.failed.contains(&source) {
                continue;
            }
            match work {
                Work::List(span) => {
                    let (from, last) = (span.first_hash(), span.last_hash());
                    self.at = At::Listing(source, from, last);
                    return Step::List { source, from, last };
                }
                Work::Compare(span) => {
                    let spans = self.with_next(source, span);
                    self.at = At::Comparing(source, spans.clone());
                    return Step::Compare { source, spans };
                }
            }
        }
        let complete = self.is_complete();
        if complete {
            self.lacking.clear();
        }
        Step::End { complete }
    }

    /// A span that is to be compared, and those behind it that can be compared in the same request.
    fn with_next(&mut self, source: BlockdId, span: Span) -> Vec<Span> {
        let mut spans = vec![span];
        while spans.len() < COMPARE_MAX
            && let Some((next, Work::Compare(span))) = self.work.front()
            && *next == source
        {
            spans.push(*span);
            self.work.pop_front();
        }
        spans
    }

    /// Reports digests here and at the source, one each per span of the step.
    pub fn compared(&mut self, mine: &[Digest], theirs: &[Digest]) {
        match std::mem::replace(&mut self.at, At::Between) {
            At::Surveying(source, spans) if theirs.len() == spans.len() => {
                for ((span, mine), theirs) in spans.into_iter().zip(mine).zip(theirs).filter(|((_, a), b)| a != b) {
                    self.differing.entry(source).or_default().push(span);
                    let lacking = self.lacking.entry(span.first).or_default();
                    lacking.blocks = lacking.blocks.max(theirs.count.saturating_sub(mine.count));
                    lacking.bytes = lacking.bytes.max(theirs.bytes.saturating_sub(mine.bytes));
                }
            }
            At::Comparing(source, spans) if theirs.len() == spans.len() => {
                let differing = spans.into_iter().zip(mine).zip(theirs).filter(|((_, a), b)| a != b);
                // These come before what is behind them.
                for ((span, mine), theirs) in differing.rev().filter(|(_, theirs)| theirs.count > 0) {
                    if mine.count > 0 && theirs.count > LISTED_MAX && span.last.0 - span.first.0 > PIECES {
                        pieces(span).rev().for_each(|piece| self.work.push_front((source, Work::Compare(piece))));
                    } else {
                        self.work.push_front((source, Work::List(span)));
                    }
                }
            }
            At::Surveying(source, _) => self.leave_unsurveyed(source),
            At::Comparing(source, _) => self.skip_to(source, self.next_of(&source)),
            other => self.at = other,
        }
    }

    /// Reports a page of the source's blocks, in order; `is_last` when no more are in the span. `is_here` looks a block
    /// up here.
    pub fn listed(&mut self, page: &[(BlockHash, u32)], is_last: bool, is_here: impl Fn(&BlockHash) -> bool) {
        let At::Listing(source, from, last) = std::mem::replace(&mut self.at, At::Between) else { return };
        let within = |hash: &BlockHash| (from..=last).contains(hash);
        if !page.iter().all(|(hash, _)| within(hash)) || !page.is_sorted_by_key(|(hash, _)| *hash) {
            return self.skip_to(source, self.next_of(&source));
        }
        let rest = if is_last { None } else { page.last().and_then(|(hash, _)| hash.next()).map(|from| (from, last)) };
        let blocks: Vec<_> = page.iter().filter(|(hash, _)| !is_here(hash)).copied().collect();
        self.at = match (blocks.is_empty(), rest) {
            (false, rest) => At::Fetching(source, blocks, rest),
            (true, Some((from, last))) => At::Listing(source, from, last),
            (true, None) => At::Between,
        };
    }

    /// Reports that the referenced blocks of the step have been asked for; `all_here` when each has arrived.
    pub fn fetched(&mut self, all_here: bool) {
        let At::Fetching(source, _, rest) = std::mem::replace(&mut self.at, At::Between) else { return };
        if !all_here {
            self.skipped.insert(source);
        }
        if let Some((from, last)) = rest {
            self.at = At::Listing(source, from, last);
        }
    }

    /// Reports that not all blocks of the step have been asked for. The source is left, and the next pass begins with
    /// this block, the first of those that have not been; `all_here` when each of those before it has arrived.
    pub fn stopped_before(&mut self, hash: &BlockHash, all_here: bool) {
        if let At::Fetching(source, ..) = std::mem::replace(&mut self.at, At::Between) {
            if !all_here {
                self.skipped.insert(source);
            }
            self.leave_at(source, Some(hash.point()));
        }
    }

    /// Reports that the step could not be done. Its source is left to the next pass, which is now needed, and begins
    /// behind the step.
    pub fn failed(&mut self) {
        match std::mem::replace(&mut self.at, At::Between) {
            At::Surveying(source, _) => self.leave_unsurveyed(source),
            At::Comparing(source, _) | At::Listing(source, ..) | At::Fetching(source, _, None) => {
                self.skip_to(source, self.next_of(&source));
            }
            At::Fetching(source, _, Some((behind, _))) => self.skip_to(source, Some(behind.point())),
            At::Between => {}
        }
    }

    /// Leaves a source to the next pass, which is now needed, and begins with what this one has not come to. Does
    /// nothing if it has come to everything.
    pub fn leave(&mut self, source: BlockdId) {
        if !self.survey.is_empty() || !self.differing.is_empty() {
            return self.leave_unsurveyed(source);
        }
        let next = match &self.at {
            At::Listing(at, from, _) if *at == source => Some(from.point()),
            At::Fetching(at, blocks, _) if *at == source => blocks.first().map(|(hash, _)| hash.point()),
            _ => self.next_of(&source),
        };
        if next.is_some() && !self.failed.contains(&source) {
            self.at = At::Between;
            self.leave_at(source, next);
        }
    }

    /// What the next pass is to begin with.
    #[must_use]
    pub fn into_round(self) -> Round {
        let reached = if self.is_complete() {
            self.left.iter().map(|(source, next)| (*source, Reached::nothing(*next))).collect()
        } else {
            self.sources.iter().filter_map(|source| Some((*source, self.reached(source)?))).collect()
        };
        Round { placement: self.round.placement, reached }
    }

    /// What the next pass is to begin with when this one is given up. What it has heard counts for nothing.
    #[must_use]
    pub fn given_up(self) -> Round {
        let mut round = self.round;
        round.reached.extend(self.left.iter().map(|(source, next)| (*source, Reached::nothing(*next))));
        round
    }

    fn is_complete(&self) -> bool {
        self.sources.iter().all(|source| self.reached(source) == Some(Reached::All))
    }

    /// What was heard of a source at the end of this pass; `None` if the next one begins with it anew.
    fn reached(&self, source: &BlockdId) -> Option<Reached> {
        let (begin, until) = match self.round.reached.get(source) {
            // I11: it was heard about everything once it knew these owners.
            Some(Reached::All) => return Some(Reached::All),
            Some(Reached::Left { next, until }) => (*next, *until),
            None => (Point(0), Point(0)),
        };
        let is_skipped = self.skipped.contains(source);
        if !self.failed.contains(source) {
            return (!is_skipped).then_some(Reached::All);
        }
        let next = *self.left.get(source)?;
        if is_skipped {
            return Some(Reached::nothing(next));
        }
        // Around the ring; nothing is all of it.
        let (heard, wanted) = (next.0.wrapping_sub(begin.0), until.0.wrapping_sub(begin.0));
        let is_heard = wanted > 0 && heard >= wanted;
        Some(if is_heard { Reached::All } else { Reached::Left { next, until } })
    }

    /// Takes a block that has arrived off what is lacking.
    pub fn came(&mut self, hash: &BlockHash, len: u32) {
        if let Some((_, lacking)) = self.lacking.range_mut(..=hash.point()).next_back() {
            lacking.blocks = lacking.blocks.saturating_sub(1);
            lacking.bytes = lacking.bytes.saturating_sub(u64::from(len));
        }
    }

    /// Blocks that the survey found, and that have not arrived yet.
    #[must_use]
    pub fn lacking(&self) -> Lacking {
        self.lacking.values().fold(Lacking::default(), |sum, one| Lacking {
            // Daemons may report any figures.
            blocks: sum.blocks.saturating_add(one.blocks),
            bytes: sum.bytes.saturating_add(one.bytes),
        })
    }

    /// Where the first span lies that is to be worked on and that this source has.
    fn next_of(&self, source: &BlockdId) -> Option<Point> {
        let mut of_source = self.work.iter().filter(|(of, _)| of == source);
        of_source.next().map(|(_, work)| work.first())
    }

    /// Leaves a source of which it is not known what there is to do: the next pass begins with it as this one.
    fn leave_unsurveyed(&mut self, source: BlockdId) {
        self.leave_at(source, self.round.place(&source));
    }

    /// Leaves a source that did not do its step: the next pass begins behind that, and must come to it in the end.
    fn skip_to(&mut self, source: BlockdId, next: Option<Point>) {
        self.skipped.insert(source);
        self.leave_at(source, next);
    }

    fn leave_at(&mut self, source: BlockdId, next: Option<Point>) {
        self.failed.insert(source);
        // One that was asked about everything is begun with anew.
        self.left.extend(next.map(|next| (source, next)));
    }
}

/// Spans in the order of the ring, from a place on, then those before it. One around the place is cut there.
fn from_place(spans: &[Span], place: Point) -> impl Iterator<Item = Span> {
    let behind = spans.iter().filter(move |span| span.last >= place);
    let behind = behind.map(move |span| Span { first: span.first.max(place), last: span.last });
    let before = spans.iter().filter(move |span| span.first < place);
    let before =
        before.map(move |span| Span { first: span.first, last: span.last.min(Point(place.0.wrapping_sub(1))) });
    behind.chain(before)
}

fn pieces(span: Span) -> impl DoubleEndedIterator<Item = Span> {
    let step = (span.last.0 - span.first.0) / PIECES;
    (0..PIECES).map(move |piece| {
        let first = Point(span.first.0 + step * piece);
        let last = if piece + 1 == PIECES { span.last } else { Point(span.first.0 + step * (piece + 1) - 1) };
        Span { first, last }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_source_do_not_overflow() {
        let spans = [0, 100].map(|first| Span { first: Point(first), last: Point(first + 99) }).to_vec();
        let duties = Duties { sources: [(BlockdId([1; 16]), spans)].into(), ..Duties::default() };
        let mut pass = Pass::new(&duties, Round::default());
        assert!(matches!(pass.step(), Step::Compare { .. }));
        let endless = Digest { count: u64::MAX, bytes: u64::MAX, sum: 1 };
        pass.compared(&[Digest::default(); 2], &[endless; 2]);
        assert_eq!(pass.lacking(), Lacking { blocks: u64::MAX, bytes: u64::MAX });
    }

    /// One pass after the other, each of which leaves its source after so many lists. Returns where the lists of each
    /// began.
    fn lists(spans: &[Span], passes: usize, lists_max: usize) -> Vec<Vec<Point>> {
        let source = BlockdId([1; 16]);
        let duties = Duties { sources: [(source, spans.to_vec())].into(), ..Duties::default() };
        let (mine, theirs) = (Digest::default(), Digest { count: 1, bytes: 1, sum: 1 });
        let (mut round, mut heard) = (Round::default(), BTreeSet::new());
        let mut one = || {
            let (mut pass, mut listed) = (Pass::new(&duties, std::mem::take(&mut round)), Vec::new());
            loop {
                match pass.step() {
                    Step::Compare { spans, .. } => {
                        pass.compared(&vec![mine; spans.len()], &vec![theirs; spans.len()]);
                    }
                    Step::List { from, .. } => {
                        listed.push(from.point());
                        pass.listed(&[], true, |_| true);
                        if listed.len() == lists_max {
                            pass.leave(source);
                        }
                    }
                    Step::Fetch { .. } => unreachable!("nothing is listed"),
                    Step::End { complete } => {
                        heard.extend(listed.iter().copied());
                        assert_eq!(complete, heard.len() == spans.len(), "all was heard since the last round");
                        if complete {
                            heard.clear();
                        }
                        round = pass.into_round();
                        return listed;
                    }
                }
            }
        };
        (0..passes).map(|_| one()).collect()
    }

    #[test]
    fn a_pass_goes_on_where_the_last_one_has_left_a_source_and_ends_with_what_lies_before() {
        let spans: Vec<Span> =
            (0..10).map(|number| Span { first: Point(number * 100), last: Point(number * 100 + 49) }).collect();
        let firsts = |numbers: &[u128]| numbers.iter().map(|number| Point(number * 100)).collect::<Vec<_>>();
        let expected = [firsts(&[0, 1, 2, 3]), firsts(&[4, 5, 6, 7]), firsts(&[8, 9, 0, 1]), firsts(&[2, 3, 4, 5])];
        assert_eq!(lists(&spans, 4, 4), expected);
        assert_eq!(lists(&spans, 2, 10), vec![firsts(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]); 2], "nothing is left to do");
    }

    #[test]
    fn a_pass_begins_behind_a_step_that_failed_or_with_the_first_block_that_was_not_asked_for() {
        let source = BlockdId([1; 16]);
        let span = Span { first: Point(0), last: Point(999) };
        let duties = Duties { sources: [(source, vec![span])].into(), ..Duties::default() };
        let (mine, theirs) = (Digest::default(), Digest { count: 1, bytes: 1, sum: 1 });
        let block = |point: u128| Span { first: Point(point), last: Point(point) }.first_hash();
        let begun_at =
            |point| Round { placement: duties.placement, reached: [(source, Reached::nothing(Point(point)))].into() };
        let after = |act: &dyn Fn(&mut Pass), begins: Round| {
            let mut pass = Pass::new(&duties, begins);
            loop {
                match pass.step() {
                    Step::Compare { spans, .. } => pass.compared(&vec![mine; spans.len()], &vec![theirs; spans.len()]),
                    Step::List { .. } => pass.listed(&[(block(300), 1), (block(500), 1)], false, |_| false),
                    Step::Fetch { .. } => act(&mut pass),
                    Step::End { complete } => {
                        assert!(!complete);
                        return pass.into_round().place(&source);
                    }
                }
            }
        };
        assert_eq!(after(&|pass| pass.stopped_before(&block(500), true), Round::default()), Some(Point(500)));
        assert_eq!(after(&|pass| pass.failed(), Round::default()), Some(Point(500)), "what is behind it is listed");
        assert_eq!(after(&|pass| pass.failed(), begun_at(200)), Some(Point(500)));
        let mut pass = Pass::new(&duties, begun_at(200));
        pass.step();
        pass.failed();
        assert_eq!(pass.into_round().place(&source), Some(Point(200)), "nothing is known of it");
    }

    /// A source's answers to a pass: what it does at the list of each span. Returns whether the round is complete.
    fn heard(round: &mut Round, duties: &Duties, answers: impl Fn(BlockdId, Point) -> Heard) -> bool {
        let (mine, theirs) = (Digest::default(), Digest { count: 1, bytes: 1, sum: 1 });
        let mut pass = Pass::new(duties, std::mem::take(round));
        loop {
            match pass.step() {
                Step::Compare { spans, .. } => pass.compared(&vec![mine; spans.len()], &vec![theirs; spans.len()]),
                Step::List { source, from, .. } => match answers(source, from.point()) {
                    Heard::Good => pass.listed(&[], true, |_| true),
                    Heard::Nothing => pass.failed(),
                    Heard::Slowly => {
                        pass.listed(&[], true, |_| true);
                        pass.leave(source);
                    }
                    Heard::NotAll => pass.listed(&[(from, 1)], true, |_| false),
                },
                Step::Fetch { .. } => pass.fetched(false),
                Step::End { complete } => {
                    *round = pass.into_round();
                    return complete;
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    enum Heard {
        Good,
        Slowly,
        Nothing,
        /// A block does not come.
        NotAll,
    }

    fn two_sources() -> (Duties, BlockdId, BlockdId) {
        let spans: Vec<Span> =
            (0..4).map(|number| Span { first: Point(number * 100), last: Point(number * 100 + 99) }).collect();
        let (one, two) = (BlockdId([1; 16]), BlockdId([2; 16]));
        let sources = [(one, spans.clone()), (two, spans)].into();
        (Duties { sources, placement: LayoutEpoch(1), ..Duties::default() }, one, two)
    }

    /// Guards I11.
    #[test]
    fn a_round_is_complete_once_each_source_was_heard_about_everything_in_however_many_passes() {
        let (duties, one, _) = two_sources();
        let mut round = Round::default();
        let slow = |source, _| if source == one { Heard::Slowly } else { Heard::Good };
        let complete: Vec<bool> = (0..8).map(|_| heard(&mut round, &duties, slow)).collect();
        assert_eq!(complete, [false, false, false, true, false, false, false, true], "four spans, one each");
        // Sources that answer by turns.
        let mut round = Round::default();
        assert!(!heard(&mut round, &duties, |source, _| if source == one { Heard::Nothing } else { Heard::Good }));
        assert!(heard(&mut round, &duties, |source, _| if source == one { Heard::Good } else { Heard::Nothing }));
        assert!(!heard(&mut round, &duties, |source, _| if source == one { Heard::Good } else { Heard::Nothing }));
    }

    /// Guards I11.
    #[test]
    fn what_a_source_did_not_send_is_asked_for_before_the_round_is_complete() {
        for missed in [Heard::Nothing, Heard::NotAll] {
            let (duties, one, _) = two_sources();
            let mut round = Round::default();
            let at = |source, point| source == one && point == Point(100);
            assert!(!heard(&mut round, &duties, |source, point| if at(source, point) { missed } else { Heard::Good }));
            let asked = std::cell::Cell::new(false);
            while !heard(&mut round, &duties, |source, point| {
                asked.set(asked.get() || at(source, point));
                if source == one { Heard::Slowly } else { Heard::Good }
            }) {}
            assert!(asked.get());
        }
    }

    #[test]
    fn what_was_heard_for_other_owners_counts_for_nothing() {
        let (duties, one, _) = two_sources();
        let mut round = Round::default();
        let by_turns =
            |other: bool| move |source, _| if (source == one) == other { Heard::Nothing } else { Heard::Good };
        assert!(!heard(&mut round, &duties, by_turns(true)));
        let later = Duties { placement: LayoutEpoch(2), ..duties };
        assert!(!heard(&mut round, &later, by_turns(false)));
        assert!(heard(&mut round, &later, by_turns(true)));
    }

    #[test]
    fn spans_begin_at_a_place_and_are_cut_there() {
        let span = |first, last| Span { first: Point(first), last: Point(last) };
        let from = |place| from_place(&[span(10, 19), span(30, 39)], Point(place)).collect::<Vec<_>>();
        assert_eq!(from(0), [span(10, 19), span(30, 39)]);
        assert_eq!(from(25), [span(30, 39), span(10, 19)]);
        assert_eq!(from(34), [span(34, 39), span(10, 19), span(30, 33)]);
        assert_eq!(from(99), [span(10, 19), span(30, 39)]);
    }

    #[test]
    fn pieces_cover_a_span_once() {
        let span = Span { first: Point(5), last: Point(1000) };
        let pieces: Vec<Span> = pieces(span).collect();
        assert_eq!((pieces[0].first, pieces.last().unwrap().last), (span.first, span.last));
        assert!(pieces.windows(2).all(|pair| pair[0].last.0 + 1 == pair[1].first.0));
    }
}

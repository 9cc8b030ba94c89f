//! One comparison of the blocks that this daemon holds with those that it owes. Pure: [`Pass::step`] says what to do,
//! and the caller reports the outcome.
//!
//! 1. *Survey*: digests of all owed spans are compared with those of every source. Where they differ, there is work.
//! 2. *Work*, source by source: spans that still differ are cut into smaller ones until few blocks are in each. The
//!    source lists those, and blocks that are missing here and referred to (I10) are fetched.
//!
//! A source owns the span now or did so in a layout that is not final. It answers only once it knows the layout of the
//! pass, and acknowledges nothing for older owners from then on: blocks acknowledged before are in its digests, and
//! later ones arrive here by themselves. So a pass in which every source has answered, and sent what was asked for,
//! leaves nothing owed behind (I11).

use super::duties::Duties;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use wire::ids::{BlockHash, BlockdId, Point};
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
        /// All owed blocks that the sources have are here.
        complete: bool,
    },
}

/// Blocks that are missing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lacking {
    /// How many, by the digests.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A pass under way.
pub struct Pass {
    survey: VecDeque<(BlockdId, Vec<Span>)>,
    work: VecDeque<(BlockdId, Span)>,
    to_list: VecDeque<(BlockdId, Span)>,
    at: At,
    /// Per span of the survey that differs: how much more the fullest source has.
    lacking: BTreeMap<Point, Lacking>,
    failed: BTreeSet<BlockdId>,
    incomplete: bool,
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
    /// Begins a pass.
    #[must_use]
    pub fn new(duties: &Duties) -> Self {
        let cut = |(source, spans): (&BlockdId, &Vec<Span>)| {
            spans.chunks(COMPARE_MAX).map(|chunk| (*source, chunk.to_vec())).collect::<Vec<_>>()
        };
        Self {
            survey: duties.sources.iter().flat_map(cut).collect(),
            work: VecDeque::new(),
            to_list: VecDeque::new(),
            at: At::Between,
            lacking: BTreeMap::new(),
            failed: BTreeSet::new(),
            incomplete: false,
        }
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
        while let Some((source, span)) = self.to_list.pop_front() {
            if !self.failed.contains(&source) {
                let (from, last) = (span.first_hash(), span.last_hash());
                self.at = At::Listing(source, from, last);
                return Step::List { source, from, last };
            }
        }
        while let Some((source, span)) = self.work.pop_front() {
            if self.failed.contains(&source) {
                continue;
            }
            let mut spans = vec![span];
            while spans.len() < COMPARE_MAX && self.work.front().is_some_and(|(next, _)| *next == source) {
                spans.extend(self.work.pop_front().map(|(_, span)| span));
            }
            self.at = At::Comparing(source, spans.clone());
            return Step::Compare { source, spans };
        }
        if !self.incomplete {
            self.lacking.clear();
        }
        Step::End { complete: !self.incomplete }
    }

    /// Reports digests here and at the source, one each per span of the step.
    pub fn compared(&mut self, mine: &[Digest], theirs: &[Digest]) {
        match std::mem::replace(&mut self.at, At::Between) {
            At::Surveying(source, spans) if theirs.len() == spans.len() => {
                for ((span, mine), theirs) in spans.into_iter().zip(mine).zip(theirs).filter(|((_, a), b)| a != b) {
                    self.work.push_back((source, span));
                    let lacking = self.lacking.entry(span.first).or_default();
                    lacking.blocks = lacking.blocks.max(theirs.count.saturating_sub(mine.count));
                    lacking.bytes = lacking.bytes.max(theirs.bytes.saturating_sub(mine.bytes));
                }
            }
            At::Comparing(source, spans) if theirs.len() == spans.len() => {
                let differing = spans.into_iter().zip(mine).zip(theirs).filter(|((_, a), b)| a != b);
                for ((span, mine), theirs) in differing.filter(|(_, theirs)| theirs.count > 0) {
                    if mine.count > 0 && theirs.count > LISTED_MAX && span.last.0 - span.first.0 > PIECES {
                        // These come before other sources, in the order of the survey.
                        pieces(span).for_each(|piece| self.work.push_front((source, piece)));
                    } else {
                        self.to_list.push_back((source, span));
                    }
                }
            }
            At::Surveying(source, _) | At::Comparing(source, _) => self.give_up(source),
            other => self.at = other,
        }
    }

    /// Reports a page of the source's blocks, in order; `is_last` when no more are in the span. `is_here` looks a block
    /// up here.
    pub fn listed(&mut self, page: &[(BlockHash, u32)], is_last: bool, is_here: impl Fn(&BlockHash) -> bool) {
        let At::Listing(source, from, last) = std::mem::replace(&mut self.at, At::Between) else { return };
        let within = |hash: &BlockHash| (from..=last).contains(hash);
        if !page.iter().all(|(hash, _)| within(hash)) || !page.is_sorted_by_key(|(hash, _)| *hash) {
            return self.give_up(source);
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
        self.incomplete |= !all_here;
        if let Some((from, last)) = rest {
            self.at = At::Listing(source, from, last);
        }
    }

    /// Reports that the step could not be done. Its source is left to the next pass, which is now needed.
    pub fn failed(&mut self) {
        match std::mem::replace(&mut self.at, At::Between) {
            At::Surveying(source, _)
            | At::Comparing(source, _)
            | At::Listing(source, ..)
            | At::Fetching(source, ..) => self.give_up(source),
            At::Between => self.incomplete = true,
        }
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

    fn give_up(&mut self, source: BlockdId) {
        self.failed.insert(source);
        self.incomplete = true;
    }
}

fn pieces(span: Span) -> impl Iterator<Item = Span> {
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
        let mut pass = Pass::new(&duties);
        assert!(matches!(pass.step(), Step::Compare { .. }));
        let endless = Digest { count: u64::MAX, bytes: u64::MAX, sum: 1 };
        pass.compared(&[Digest::default(); 2], &[endless; 2]);
        assert_eq!(pass.lacking(), Lacking { blocks: u64::MAX, bytes: u64::MAX });
    }

    #[test]
    fn pieces_cover_a_span_once() {
        let span = Span { first: Point(5), last: Point(1000) };
        let pieces: Vec<Span> = pieces(span).collect();
        assert_eq!((pieces[0].first, pieces.last().unwrap().last), (span.first, span.last));
        assert!(pieces.windows(2).all(|pair| pair[0].last.0 + 1 == pair[1].first.0));
    }
}

//! What a layout asks of one daemon: which parts of the ring it owes, from which daemons it can get them, and which
//! parts belong elsewhere. Pure.

use std::collections::BTreeMap;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::Layout;
use wire::layout::ring::{Ring, Span};

/// Duties of a daemon under one layout.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Duties {
    /// The layout's epoch.
    pub epoch: LayoutEpoch,
    /// Epoch of its owners.
    pub placement: LayoutEpoch,
    /// Whether old copies may be given back.
    pub is_final: bool,
    /// Per source, the spans that this daemon owes and that the source owns, or owned in a layout that is not final.
    pub sources: BTreeMap<BlockdId, Vec<Span>>,
    /// Spans that this daemon owes.
    pub owed: Vec<Span>,
    /// Spans of which this daemon owns nothing.
    pub foreign: Vec<Span>,
}

impl Duties {
    /// Duties of `me`. A source that is out is not waited for: blocks that only it had are away until it returns.
    #[must_use]
    pub fn of(layout: &Layout, me: &BlockdId) -> Self {
        let ring = Ring::new(layout);
        let my_index = layout.members.iter().position(|member| member.id == *me);
        let mut duties =
            Self { epoch: layout.epoch, placement: layout.placement, is_final: layout.is_final(), ..Self::default() };
        for span in ring.spans() {
            let owners = ring.owners(span.last);
            if my_index.is_none_or(|my_index| !owners.contains(&my_index)) {
                push(&mut duties.foreign, span);
                continue;
            }
            push(&mut duties.owed, span);
            let mut all = ring.older_owners(span.last);
            all.extend(owners);
            all.sort_unstable();
            all.dedup();
            for index in all.into_iter().filter(|index| Some(*index) != my_index && !layout.members[*index].out) {
                push(duties.sources.entry(layout.members[index].id).or_default(), span);
            }
        }
        duties
    }

    /// Reports whether a block belongs elsewhere.
    #[must_use]
    pub fn is_foreign(&self, hash: &BlockHash) -> bool {
        let after = self.foreign.partition_point(|span| span.first <= hash.point());
        after > 0 && self.foreign[after - 1].contains(hash)
    }
}

/// Adds a span behind the others, and joins it with the last one where they touch.
fn push(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.last.0.wrapping_add(1) == span.first.0 => last.last = span.last,
        _ => spans.push(span),
    }
}

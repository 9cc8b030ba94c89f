//! The block daemons that a check asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use wire::ids::BlockdId;
use wire::layout::Layout;

/// Most pages of names that metad does not know which one daemon lists in a check: a quarter of a billion names. More
/// would be asked for without end.
const UNKNOWN_PAGES_MAX: u32 = 16_384;

/// What is known of the daemons.
pub(super) struct Daemons {
    pub(super) layout: Layout,
    /// Those that could not be asked, or answer nonsense.
    pub(super) away: BTreeSet<BlockdId>,
    /// Pages that each has listed beyond the first one of a range.
    further_pages: BTreeMap<BlockdId, u32>,
}

impl Daemons {
    /// Starts with daemons of which nothing is known.
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, away: BTreeSet::new(), further_pages: BTreeMap::new() }
    }

    /// The daemons that are worth asking.
    pub(super) fn asked(&self) -> Vec<(BlockdId, SocketAddr)> {
        let members = self.layout.members.iter().filter(|member| !self.away.contains(&member.id));
        members.map(|member| (member.id, member.addr)).collect()
    }

    /// Counts a page beyond the first one of a range. Returns whether the daemon may be asked for it.
    pub(super) fn may_list_on(&mut self, id: BlockdId) -> bool {
        let pages = self.further_pages.entry(id).or_default();
        *pages += 1;
        *pages <= UNKNOWN_PAGES_MAX
    }

    pub(super) fn addr(&self, id: &BlockdId) -> Option<SocketAddr> {
        self.layout.member(id).map(|member| member.addr)
    }

    pub(super) fn name(&self, id: &BlockdId) -> &str {
        self.layout.member(id).map_or("a daemon that has left", |member| &member.name)
    }
}

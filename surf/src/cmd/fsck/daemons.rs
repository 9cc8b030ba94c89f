//! The block daemons that a check asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use wire::ids::BlockdId;
use wire::layout::Layout;
use wire::message::block::BlockRequest;

/// Most pages of names that metad does not know which one daemon lists in a check: a quarter of a billion names. More
/// would be asked for without end.
const UNKNOWN_PAGES_MAX: u32 = 16_384;

/// How much longer all answers of a daemon may take in a check than its questions are worth.
const DAEMON_PATIENCE: Duration = Duration::from_secs(600);
/// What a question is worth that a daemon answers from memory.
const QUESTION_WORTH: Duration = Duration::from_millis(500);
/// What each block is worth that a daemon reads or fetches: 4 MiB at 16 MiB/s.
const BLOCK_WORTH: Duration = Duration::from_millis(250);

/// What is known of the daemons.
pub(super) struct Daemons {
    pub(super) layout: Layout,
    /// Those that could not be asked, or answer nonsense.
    pub(super) away: BTreeSet<BlockdId>,
    /// Pages that each has listed beyond the first one of a range.
    further_pages: BTreeMap<BlockdId, u32>,
    /// What is left of the time of each.
    time_left: BTreeMap<BlockdId, Duration>,
    pub(super) patience: Duration,
}

impl Daemons {
    /// Starts with daemons of which nothing is known.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            away: BTreeSet::new(),
            further_pages: BTreeMap::new(),
            time_left: BTreeMap::new(),
            patience: DAEMON_PATIENCE,
        }
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

    /// Gives a daemon the time that a question is worth.
    pub(super) fn grant(&mut self, id: BlockdId, request: &BlockRequest) {
        let blocks = match request {
            BlockRequest::Verify { hashes } | BlockRequest::Fetch { hashes, .. } => hashes.len(),
            _ => 0,
        };
        let worth = QUESTION_WORTH + BLOCK_WORTH * u32::try_from(blocks).unwrap_or(u32::MAX);
        let left = self.time_left(id);
        *left = left.saturating_add(worth);
    }

    /// Takes the time for which a daemon was waited for from its account. Returns whether anything is left.
    pub(super) fn spend(&mut self, id: BlockdId, waited: Duration) -> bool {
        let left = self.time_left(id);
        *left = left.saturating_sub(waited);
        !left.is_zero()
    }

    fn time_left(&mut self, id: BlockdId) -> &mut Duration {
        self.time_left.entry(id).or_insert(self.patience)
    }

    pub(super) fn addr(&self, id: &BlockdId) -> Option<SocketAddr> {
        self.layout.member(id).map(|member| member.addr)
    }

    pub(super) fn name(&self, id: &BlockdId) -> &str {
        self.layout.member(id).map_or("a daemon that has left", |member| &member.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::BlockHash;

    #[test]
    fn a_daemon_has_the_time_that_its_questions_are_worth_and_some_patience_in_all() {
        let (mut daemons, id) = (Daemons::new(Layout::default()), BlockdId([1; 16]));
        let list = BlockRequest::List { from: BlockHash([0; 32]), last: BlockHash([9; 32]), limit: 1 };
        for _ in 0..10_000 {
            daemons.grant(id, &list);
            assert!(daemons.spend(id, QUESTION_WORTH), "whoever answers in time is asked on");
        }
        let mut asked = 0;
        loop {
            daemons.grant(id, &list);
            asked += 1;
            if !daemons.spend(id, Duration::from_secs(10)) {
                break;
            }
        }
        assert!((60..70).contains(&asked), "{asked} answers of ten seconds");
        let verify = BlockRequest::Verify { hashes: vec![BlockHash([0; 32]); 64] };
        daemons.grant(id, &verify);
        assert!(daemons.spend(id, Duration::from_secs(16)), "reading takes longer");
        assert!(daemons.spend(BlockdId([2; 16]), DAEMON_PATIENCE - QUESTION_WORTH), "each has an account");
    }
}

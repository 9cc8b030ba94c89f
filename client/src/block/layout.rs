//! The layout that this client knows, and the daemons that it has trouble with.
//!
//! A client takes layouts from metad alone. A block daemon that speaks of a newer one is a reason to ask metad: one that was
//! taken over could otherwise make itself the only owner of all that is written.

use crate::network::Blockd;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use wire::hints::Hints;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::layout::{Layout, LayoutMember};
use wire::message::block::BlockRequest;
use wire::suspects::Suspects;

/// A daemon that failed is asked last for at least this long, and until it answers a probe: otherwise a reader would
/// have to wait to find out whether it answers.
const SUSPECT_FOR: Duration = Duration::from_secs(4);
/// A daemon must answer a probe within this time.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// A daemon without room is not asked to store anything for this long.
const FULL_FOR: Duration = Duration::from_secs(5);

/// Metad is asked for a newer layout no more often than this.
const HINTS_PAUSE: Duration = Duration::from_millis(200);

/// The newest layout that this client has got from metad.
pub struct Layouts {
    newest: watch::Sender<Arc<Layout>>,
    /// Given when a block daemon speaks of a newer layout.
    hints: Hints,
    /// Bounded by the layout.
    suspects: Suspects<BlockdId>,
    full: Suspects<BlockdId>,
}

/// A daemon to be asked.
pub type Holder = (BlockdId, SocketAddr);

impl Layouts {
    /// Starts with a layout.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self {
            newest: watch::Sender::new(Arc::new(layout)),
            hints: Hints::new(HINTS_PAUSE),
            suspects: Suspects::until_cleared(),
            full: Suspects::new(FULL_FOR),
        }
    }

    /// Returns the newest layout.
    #[must_use]
    pub fn newest(&self) -> Arc<Layout> {
        self.newest.borrow().clone()
    }

    /// Takes over a layout from metad, if it is newer.
    pub fn learn(&self, layout: Layout) {
        self.newest.send_if_modified(|newest| {
            let is_newer = layout.epoch > newest.epoch;
            if is_newer {
                *newest = Arc::new(layout);
            }
            is_newer
        });
    }

    /// Notes that a block daemon speaks of a layout of this epoch.
    pub fn hint(&self, epoch: LayoutEpoch) {
        if epoch > self.newest().epoch {
            self.hints.hint();
        }
    }

    /// Waits until a block daemon has spoken of a newer layout. A caller that cancels it asks metad for another reason, which serves
    /// the same purpose.
    pub async fn wanted(&self) {
        self.hints.wait().await;
    }

    /// Waits for a layout newer than this epoch. Returns whether there is one in time.
    pub async fn wait_for_newer(&self, epoch: LayoutEpoch, limit: Duration) -> bool {
        let mut newest = self.newest.subscribe();
        let newer = newest.wait_for(|layout| layout.epoch > epoch);
        tokio::time::timeout(limit, newer).await.is_ok_and(|found| found.is_ok())
    }

    /// Notes that a daemon failed: it is asked last from now on.
    pub fn suspect(&self, id: BlockdId) {
        self.suspects.add(id);
    }

    /// Notes that a daemon answers again.
    pub fn trust(&self, id: BlockdId) {
        self.suspects.clear(&id);
    }

    /// Returns whether a daemon failed, and has not answered since.
    #[must_use]
    pub fn is_suspect(&self, id: &BlockdId) -> bool {
        self.suspects.contains(id)
    }

    /// Probes the daemons that have been suspect for long enough. Cancel-safe.
    pub async fn probe(&self, blockds: &dyn Blockd) {
        self.probe_after(SUSPECT_FOR, blockds).await;
    }

    async fn probe_after(&self, suspect_for: Duration, blockds: &dyn Blockd) {
        let layout = self.newest();
        self.suspects.retain(|id| layout.member(id).is_some());
        let due = layout.members.iter().filter(|member| self.suspects.has_aged(&member.id, suspect_for));
        let due: Vec<Holder> = due.map(|member| (member.id, member.addr)).collect();
        let asked = due.into_iter().map(async |(id, addr)| {
            // One that has too much to do stays a suspect: its disk may hang.
            if blockds.ask(addr, &BlockRequest::Status, &[], PROBE_LIMIT).await.is_ok() {
                self.trust(id);
            }
        });
        futures::future::join_all(asked).await;
    }

    /// Returns the owners of a block, those that answer first.
    #[must_use]
    pub fn owners(&self, layout: &Layout, hash: &BlockHash) -> Vec<Holder> {
        self.those_that_answer_first(layout.owners(hash))
    }

    fn those_that_answer_first(&self, members: Vec<&LayoutMember>) -> Vec<Holder> {
        let mut holders: Vec<Holder> = members.into_iter().map(|member| (member.id, member.addr)).collect();
        holders.sort_by_key(|(id, _)| self.is_suspect(id));
        holders
    }

    /// Notes that a daemon has no room, for a while.
    pub fn full(&self, id: BlockdId) {
        self.full.add(id);
    }

    /// Returns where to store a block: on its owners, and, for each owner without room, on the next daemon that has
    /// some. Those that answer come first. The list is shorter than `replicas` when the other daemons have no room
    /// either.
    #[must_use]
    pub fn targets(&self, layout: &Layout, hash: &BlockHash) -> Vec<Holder> {
        let mut targets = self.owners(layout, hash);
        let wanted = targets.len();
        targets.retain(|(id, _)| !self.full.contains(id));
        if targets.len() < wanted {
            for member in layout.clockwise(hash).into_iter().filter(|member| member.is_owner()) {
                let is_new = targets.iter().all(|(id, _)| *id != member.id);
                if targets.len() < wanted && is_new && !self.full.contains(&member.id) {
                    targets.push((member.id, member.addr));
                }
            }
            targets.sort_by_key(|(id, _)| self.is_suspect(id));
        }
        targets
    }

    /// Returns where a block may be found: on its owners, then on its former owners (I11), then on any daemon. Of
    /// these, those that stand in for owners without room come first, and those that are out come last.
    #[must_use]
    pub fn places(&self, layout: &Layout, hash: &BlockHash) -> Vec<Holder> {
        let (owners, others) = layout.owners_and_others(hash);
        let (out, here): (Vec<_>, Vec<_>) = others.into_iter().partition(|member| member.out);
        let mut places = self.those_that_answer_first(owners);
        places.extend(here.into_iter().chain(out).map(|member| (member.id, member.addr)));
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Answering;
    use futures::future::ready;
    use wire::Error;
    use wire::message::block::BlockReply;

    fn member(id: u8) -> LayoutMember {
        LayoutMember { draining: id == 5, out: id == 6, ..crate::testing::blockd(id) }
    }

    fn ids(holders: &[Holder]) -> Vec<u8> {
        holders.iter().map(|(id, _)| id.0[0]).collect()
    }

    #[tokio::test]
    async fn a_suspect_is_asked_last_until_it_answers_again() {
        let members = (1..=3).map(member).collect();
        let layouts = Layouts::new(Layout { replicas: 3, min_sync: 2, members, ..Layout::default() });
        let (layout, hash) = (layouts.newest(), BlockHash([0; 32]));
        layouts.suspect(BlockdId([1; 16]));
        layouts.suspect(BlockdId([2; 16]));
        let is_first = |blockd| blockd == member(1).addr;
        let blockds = Answering(move |blockd| {
            ready(if is_first(blockd) { Ok(BlockReply::Failed(String::new())) } else { Err(wire::Error::Closed) })
        });
        layouts.probe(&blockds).await;
        assert_eq!(ids(&layouts.targets(&layout, &hash)), [3, 1, 2], "it has failed a moment ago");
        layouts.probe_after(Duration::ZERO, &blockds).await;
        assert_eq!(ids(&layouts.targets(&layout, &hash)), [1, 3, 2]);
        assert_eq!(ids(&layouts.places(&layout, &hash)), [1, 3, 2], "it does not answer yet");
    }

    #[tokio::test]
    async fn a_suspect_that_has_too_much_to_do_for_a_probe_stays_one() {
        let members = (1..=2).map(member).collect();
        let layouts = Layouts::new(Layout { replicas: 2, min_sync: 1, members, ..Layout::default() });
        let (layout, hash) = (layouts.newest(), BlockHash([0; 32]));
        layouts.suspect(BlockdId([1; 16]));
        let busy = |blockd: SocketAddr| Error::Busy { peer: blockd.to_string(), reason: String::new() };
        layouts.probe_after(Duration::ZERO, &Answering(move |blockd| ready(Err(busy(blockd))))).await;
        assert_eq!(ids(&layouts.targets(&layout, &hash)), [2, 1]);
    }

    #[test]
    fn the_next_daemon_stands_in_for_one_without_room() {
        let members = (1..=6).map(member).collect();
        let layouts = Layouts::new(Layout { replicas: 3, min_sync: 2, members, ..Layout::default() });
        let (layout, hash) = (layouts.newest(), BlockHash([0; 32]));
        assert_eq!(ids(&layouts.targets(&layout, &hash)), [1, 2, 3]);
        layouts.full(BlockdId([2; 16]));
        assert_eq!(ids(&layouts.targets(&layout, &hash)), [1, 3, 4], "blockd-5 is draining, blockd-6 is out");
        layouts.full(BlockdId([1; 16]));
        layouts.full(BlockdId([4; 16]));
        assert_eq!(ids(&layouts.targets(&layout, &hash)), [3], "nobody else has room");
        assert_eq!(ids(&layouts.places(&layout, &hash)), [1, 2, 3, 4, 5, 6], "it may be anywhere");
    }
}

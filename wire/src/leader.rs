//! Which metads a cluster has, and which of them leads, as those who ask them find out.
//!
//! Addresses that were configured are only a way in. What the metads say of themselves replaces them, and the newest
//! membership counts: a metad that was removed goes on believing in an older one, and may not even know that it was
//! removed.
//!
//! While the known leader is silent, another one is looked for: the connection to a machine that is gone ends only
//! seconds later.

use crate::message::meta::{LogPlace, MetaReply, MetaRequest, Redirect};
use crate::retry::Backoff;
use futures::{FutureExt, StreamExt, stream};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// The others are asked whether they lead once the leader has been silent for this long: four of its heartbeats.
const SILENCE: Duration = Duration::from_millis(400);
/// Pause after the first round of asking the others. Pauses grow: the leader may be silent only because the request
/// takes long.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest of these pauses.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Metads asked at a time.
const LOOKS_MAX: usize = 8;
/// A metad that leads says so within this time.
pub const LOOK_LIMIT: Duration = Duration::from_millis(300);

/// The request to send, see [`another_leads`].
pub static WHO_LEADS: MetaRequest = MetaRequest::WhoLeads;

/// The metads of a cluster, by the newest that any of them has said.
#[derive(Clone, Debug)]
pub struct KnownMetads {
    configured: Vec<SocketAddr>,
    /// Empty until a metad has named the members.
    members: Vec<SocketAddr>,
    since: LogPlace,
    /// The latest term in which a metad was believed to lead.
    term: u64,
}

impl KnownMetads {
    /// Begins with addresses that lead to the cluster.
    #[must_use]
    pub fn new(configured: Vec<SocketAddr>) -> Self {
        Self { configured, members: Vec::new(), since: LogPlace::default(), term: 0 }
    }

    /// Returns the members, or the configured addresses while no member is known.
    #[must_use]
    pub fn members(&self) -> &[SocketAddr] {
        if self.members.is_empty() { &self.configured } else { &self.members }
    }

    /// Returns every address to try in turn: the members, and behind them the configured ones, since all members may
    /// have been replaced while nobody could be asked. Never changes the order of what it has returned before, unless
    /// the membership has changed.
    #[must_use]
    pub fn ways_in(&self) -> Vec<SocketAddr> {
        let mut seen = BTreeSet::new();
        self.members.iter().chain(&self.configured).copied().filter(|addr| seen.insert(*addr)).collect()
    }

    /// Learns what a metad says, and returns the leader that it names, if it can be believed: the membership that it
    /// goes by is no older than the known one, the leader belongs to it, and nobody has led in a later term.
    pub fn learn(&mut self, said: &Redirect) -> Option<SocketAddr> {
        if said.nodes.is_empty() || said.since < self.since {
            return None;
        }
        self.since = said.since;
        self.members = said.nodes.iter().map(|(_, addr)| *addr).collect();
        let leader = said.leader.filter(|leader| said.term >= self.term && said.nodes.contains(leader));
        leader.map(|(_, addr)| {
            self.term = said.term;
            addr
        })
    }
}

/// Waits until another metad than `asked` says that it leads, and returns what it says, to be judged by
/// [`KnownMetads::learn`]. What a metad says of a third one may be old, and is ignored. Does not end when none leads:
/// run it beside the request that `asked` is to answer. Cancel-safe.
///
/// `others` are the metads to ask, looked up anew in each round; `who_leads` sends one of them [`WHO_LEADS`], and is to
/// give up after [`LOOK_LIMIT`]. An answer that `is_believed` refuses does not count.
pub async fn another_leads<Failure, Asking: Future<Output = Result<MetaReply, Failure>>>(
    asked: SocketAddr,
    others: impl Fn() -> Vec<SocketAddr>,
    who_leads: impl Fn(SocketAddr) -> Asking,
    is_believed: impl Fn(&Redirect) -> bool,
) -> Redirect {
    tokio::time::sleep(SILENCE).await;
    let mut pauses = Backoff::new(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX);
    loop {
        let ask = |node| who_leads(node).map(move |answer| (node, answer));
        let to_ask = others().into_iter().filter(|node| *node != asked).map(ask);
        let mut answers = stream::iter(to_ask).buffer_unordered(LOOKS_MAX);
        while let Some((node, answer)) = answers.next().await {
            // `NotLeader` answers `WhoLeads` from any node; one that names itself leads.
            if let Ok(MetaReply::NotLeader(said)) = answer
                && said.leader.is_some_and(|(_, leader)| leader == node)
                && is_believed(&said)
            {
                return said;
            }
        }
        tokio::time::sleep(pauses.delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MetadId;
    use std::cell::{Cell, RefCell};

    fn node(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    /// What a metad says that knows these members since an entry of this term and index.
    fn says(leader: Option<u16>, members: &[u16], since: (u64, u64), term: u64) -> Redirect {
        let named = |port: u16| (MetadId(port.into()), node(port));
        Redirect {
            leader: leader.map(named),
            nodes: members.iter().copied().map(named).collect(),
            term,
            since: LogPlace { term: since.0, index: since.1 },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_metad_that_names_itself_is_taken_for_the_leader() {
        let asked = RefCell::new(Vec::new());
        let begun = tokio::time::Instant::now();
        let found = another_leads(
            node(1),
            || vec![node(1), node(2), node(3)],
            |addr| {
                asked.borrow_mut().push(addr.port());
                let leads = addr == node(3) && asked.borrow().len() > 4;
                let said = says(Some(if leads { 3 } else { 1 }), &[1, 2, 3], (1, 1), 1);
                futures::future::ready(Ok::<_, ()>(MetaReply::NotLeader(said)))
            },
            |_| true,
        )
        .await;
        assert_eq!(found.leader.unwrap().1, node(3), "the second one, too, says that the first one leads");
        assert_eq!(*asked.borrow(), [2, 3, 2, 3, 2, 3], "the silent one is not asked");
        assert!(begun.elapsed() >= SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_metad_that_believes_to_lead_is_not_believed_however_long_the_leader_is_silent() {
        let mut known = KnownMetads::new(vec![node(1), node(2), node(3)]);
        known.learn(&says(Some(4), &[2, 3, 4], (5, 90), 5));
        let rounds = Cell::new(0);
        let found = another_leads(
            node(4),
            || known.ways_in(),
            |addr| {
                rounds.set(rounds.get() + 1);
                let said = match addr.port() {
                    1 => says(Some(1), &[1, 2, 3], (1, 1), 4),
                    2 if rounds.get() > 9 => says(Some(2), &[2, 3, 4], (5, 90), 6),
                    _ => says(Some(4), &[2, 3, 4], (5, 90), 5),
                };
                futures::future::ready(Ok::<_, ()>(MetaReply::NotLeader(said)))
            },
            |said| known.clone().learn(said).is_some(),
        )
        .await;
        assert_eq!(found.leader.unwrap().1, node(2));
    }

    #[tokio::test(start_paused = true)]
    async fn few_of_many_metads_are_asked_at_a_time() {
        let (now, most) = (Cell::new(0), Cell::new(0));
        let found = another_leads(
            node(1),
            || (1..=60).map(node).collect(),
            |addr| {
                let (now, most) = (&now, &most);
                async move {
                    now.set(now.get() + 1);
                    most.set(most.get().max(now.get()));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    now.set(now.get() - 1);
                    let said = says(Some(60), &[60], (1, 1), 1);
                    if addr == node(60) { Ok(MetaReply::NotLeader(said)) } else { Err(()) }
                }
            },
            |_| true,
        )
        .await;
        assert_eq!((found.leader.unwrap().1, most.get()), (node(60), LOOKS_MAX));
    }

    #[test]
    fn the_newest_membership_replaces_what_was_known_and_an_older_one_nothing() {
        let mut known = KnownMetads::new(vec![node(1), node(9)]);
        assert_eq!(known.ways_in(), [node(1), node(9)]);
        assert_eq!(known.learn(&says(Some(2), &[1, 2, 3], (1, 1), 1)), Some(node(2)));
        assert_eq!(known.members(), [node(1), node(2), node(3)]);
        assert_eq!(known.ways_in(), [node(1), node(2), node(3), node(9)], "each once, the members first");
        assert_eq!(known.learn(&says(Some(4), &[2, 3, 4], (3, 50), 3)), Some(node(4)));
        assert_eq!(known.members(), [node(2), node(3), node(4)], "the first one was removed");
        let removed = says(Some(1), &[1, 2, 3], (1, 1), 9);
        assert_eq!(known.learn(&removed), None, "though it names a later term");
        assert_eq!(known.members(), [node(2), node(3), node(4)]);
        // A change that was never committed is overridden by a later leader's, even at a lower index.
        assert_eq!(known.learn(&says(Some(3), &[3, 4, 5], (4, 40), 4)), Some(node(3)));
        assert_eq!(known.members(), [node(3), node(4), node(5)]);
    }

    #[test]
    fn a_leader_is_believed_if_it_is_a_member_and_nobody_has_led_later() {
        let mut known = KnownMetads::new(vec![node(1)]);
        assert_eq!(known.learn(&says(Some(4), &[1, 2, 3], (1, 1), 1)), None, "it is no member");
        assert_eq!(known.learn(&says(Some(2), &[1, 2, 3], (1, 1), 7)), Some(node(2)));
        assert_eq!(known.learn(&says(Some(1), &[1, 2, 3], (1, 1), 6)), None, "it was deposed");
        assert_eq!(known.learn(&says(None, &[1, 2, 3], (1, 1), 8)), None);
        assert_eq!(known.learn(&says(Some(2), &[], (9, 9), 9)), None, "one that was never added knows no members");
        assert_eq!(known.members(), [node(1), node(2), node(3)]);
    }
}

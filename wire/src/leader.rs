//! Looking for another leader while the known one is silent: the connection to a machine that is gone ends only
//! seconds later.

use crate::message::meta::{MetaReply, MetaRequest};
use crate::retry::Backoff;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::net::SocketAddr;
use std::time::Duration;

/// The others are asked whether they lead once the leader has been silent for this long: four of its heartbeats.
const SILENCE: Duration = Duration::from_millis(400);
/// Pause after the first round of asking the others. Pauses grow: the leader may be silent only because the request
/// takes long.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest of these pauses.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A metad that leads says so within this time.
pub const LOOK_LIMIT: Duration = Duration::from_millis(300);

/// The request to send, see [`another_leads`].
pub static WHO_LEADS: MetaRequest = MetaRequest::WhoLeads;

/// Waits until another metad than `asked` says that it leads, and returns its address. What a metad says of a third
/// one may be old, and is ignored. Its list of nodes is ignored too: a removed node has an old one. Does not end
/// when none leads: run it beside the request that `asked` is to answer. Cancel-safe.
///
/// `others` are the metads to ask, looked up anew in each round; `who_leads` sends one of them [`WHO_LEADS`], and
/// is to give up after [`LOOK_LIMIT`].
pub async fn another_leads<Failure, Asking: Future<Output = Result<MetaReply, Failure>>>(
    asked: SocketAddr,
    others: impl Fn() -> Vec<SocketAddr>,
    who_leads: impl Fn(SocketAddr) -> Asking,
) -> SocketAddr {
    tokio::time::sleep(SILENCE).await;
    let mut pauses = Backoff::new(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX);
    loop {
        let ask = |node| who_leads(node).map(move |answer| (node, answer));
        let mut answers: FuturesUnordered<_> = others().into_iter().filter(|node| *node != asked).map(ask).collect();
        while let Some((node, answer)) = answers.next().await {
            // `NotLeader` answers `WhoLeads` from any node; one that names itself leads.
            if let Ok(MetaReply::NotLeader { leader: Some((_, leader)), .. }) = answer
                && leader == node
            {
                return leader;
            }
        }
        tokio::time::sleep(pauses.delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MetadId;
    use std::cell::RefCell;

    #[tokio::test(start_paused = true)]
    async fn only_a_metad_that_names_itself_is_taken_for_the_leader() {
        let node = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let asked = RefCell::new(Vec::new());
        let begun = tokio::time::Instant::now();
        let found = another_leads(
            node(1),
            || vec![node(1), node(2), node(3)],
            |addr| {
                asked.borrow_mut().push(addr.port());
                let leads = addr == node(3) && asked.borrow().len() > 4;
                let leader = if leads { node(3) } else { node(1) };
                let reply = MetaReply::NotLeader { leader: Some((MetadId(1), leader)), nodes: Vec::new() };
                futures::future::ready(Ok::<_, ()>(reply))
            },
        )
        .await;
        assert_eq!(found, node(3), "the second one, too, says that the first one leads");
        assert_eq!(*asked.borrow(), [2, 3, 2, 3, 2, 3], "the silent one is not asked");
        assert!(begun.elapsed() >= SILENCE);
    }
}

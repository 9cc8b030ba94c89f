//! Compares the states of the metads with each other: one log, equal bytes.
//!
//! Each metad that votes is asked to wait for a mark, and then the mark is put into the log. Each reads its state as it
//! is right there, whatever is written meanwhile, and answers with a digest.

use super::Cluster;
use super::report::{Line, Outcome, Report};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::ids::MetadId;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::check::{CheckId, CheckReply, CheckRequest, DigestState, StateDigest};

/// A metad that runs answers far sooner.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two questions how far a metad is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
/// A metad that makes no progress for this long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// A metad that is compared.
struct Voter {
    id: MetadId,
    addr: SocketAddr,
    state: DigestState,
    /// When it was last seen to go on.
    progress: Instant,
}

impl Voter {
    fn name(&self) -> String {
        format!("metad-{} ({})", self.id, self.addr)
    }

    fn is_under_way(&self) -> bool {
        matches!(self.state, DigestState::Awaited | DigestState::Reading { .. })
    }

    /// Asks how far it is.
    async fn ask(&mut self, cluster: &Cluster, check: CheckId) {
        let request = AdminRequest::Check(CheckRequest::Digest(check));
        let state = match cluster.admin.ask_once(self.addr, request, ANSWER_LIMIT).await {
            Ok(AdminReply::Check(CheckReply::Digest(state))) => state,
            Ok(other) => DigestState::GivenUp(format!("it answers {other:?}").chars().take(100).collect()),
            Err(error) => DigestState::GivenUp(format!("{error:#}")),
        };
        if state != self.state {
            (self.state, self.progress) = (state, Instant::now());
        } else if self.is_under_way() && self.progress.elapsed() > STALL_LIMIT {
            self.state = DigestState::GivenUp("it does not follow the log, or not fast enough".to_owned());
        }
    }
}

/// Compares all metads that vote. Returns whether all of them that answered are equal.
pub(super) async fn compare(cluster: &Cluster, check: CheckId, report: &mut Report) -> Result<bool> {
    let members = cluster.admin.status(cluster.wait).await?.metads;
    let mut voters = Vec::new();
    for (id, addr, ..) in members.into_iter().filter(|(_, _, votes, _)| *votes) {
        voters.push(Voter { id, addr, state: DigestState::Awaited, progress: Instant::now() });
    }
    if voters.len() < 2 {
        return Ok(true);
    }
    for voter in &mut voters {
        voter.ask(cluster, check).await;
    }
    let CheckReply::Marked = cluster.step(CheckRequest::Mark(check)).await? else {
        bail!("metad answered something else when asked for a mark in the log");
    };
    while voters.iter().any(Voter::is_under_way) {
        report.progress(&format!("comparing {} metads", voters.len()));
        tokio::time::sleep(PROGRESS_PAUSE).await;
        for voter in voters.iter_mut().filter(|voter| voter.is_under_way()) {
            voter.ask(cluster, check).await;
        }
    }
    for voter in &voters {
        if let DigestState::GivenUp(reason) = &voter.state {
            report.fail(&format!(
                "{} was not compared with the other metads ({reason}): start it, or replace it if it is lost",
                voter.name()
            ));
        }
    }
    let digest = |voter: &Voter| match voter.state {
        DigestState::Done(digest) => Some((voter.id, digest)),
        _ => None,
    };
    let digests: BTreeMap<MetadId, StateDigest> = voters.iter().filter_map(digest).collect();
    let verdict = judge(voters.len(), &digests);
    for voter in &voters {
        if let Some(digest) = digests.get(&voter.id).filter(|_| verdict.differ.contains(&voter.id)) {
            report_differing(report, voter, digest, &verdict);
        }
    }
    if !verdict.differ.is_empty() {
        report.metads_differ();
    }
    Ok(verdict.differ.is_empty())
}

/// Outcome of a comparison.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// The state of most of those that vote, if there is one.
    right: Option<StateDigest>,
    /// Those that have another state; all, if nobody can say which one is right.
    differ: BTreeSet<MetadId>,
}

/// Judges the digests of some of `voters` metads.
fn judge(voters: usize, digests: &BTreeMap<MetadId, StateDigest>) -> Verdict {
    let mut counts: BTreeMap<StateDigest, usize> = BTreeMap::new();
    digests.values().for_each(|digest| *counts.entry(*digest).or_default() += 1);
    if counts.len() < 2 {
        return Verdict { right: counts.into_keys().next(), differ: BTreeSet::new() };
    }
    let right = counts.into_iter().find(|(_, count)| *count > voters / 2).map(|(digest, _)| digest);
    let differ = digests.iter().filter(|(_, digest)| Some(**digest) != right).map(|(id, _)| *id).collect();
    Verdict { right, differ }
}

fn report_differing(report: &mut Report, voter: &Voter, digest: &StateDigest, verdict: &Verdict) {
    let (id, shown) = (voter.id, |digest: &StateDigest| {
        let start: String = digest.hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{start}…, {} keys", digest.pairs)
    });
    let (what, advice) = match &verdict.right {
        Some(right) => (
            format!(
                "its state at log entry {} ({}) is not that of most metads ({})",
                digest.applied,
                shown(digest),
                shown(right)
            ),
            format!("stop it, and put a new one in its place: `surf metad replace {id} …`; repair nothing before"),
        ),
        None => (
            format!(
                "the metads differ at log entry {} (this one: {}), and no majority agrees",
                digest.applied,
                shown(digest)
            ),
            "back the metadata up, repair nothing, and find the metad with a damaged disk: it is the one to replace"
                .to_owned(),
        ),
    };
    let (place, outcome) = (voter.name(), Outcome::ByHand);
    report.find(&Line { kind: "metad-differs", place: &place, what: &what, outcome, advice: &advice });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(voters: usize, digests: &[(u64, u8)]) -> (Option<u8>, Vec<u64>) {
        let digest = |(id, byte): &(u64, u8)| (MetadId(*id), StateDigest { applied: 9, pairs: 1, hash: [*byte; 32] });
        let verdict = judge(voters, &digests.iter().map(digest).collect());
        (verdict.right.map(|digest| digest.hash[0]), verdict.differ.into_iter().map(|id| id.0).collect())
    }

    #[test]
    fn the_metads_that_differ_from_a_majority_are_named_and_all_of_them_without_one() {
        assert_eq!(judged(3, &[(1, 7), (2, 7), (3, 7)]), (Some(7), vec![]));
        assert_eq!(judged(3, &[(1, 8), (2, 7), (3, 7)]), (Some(7), vec![1]));
        assert_eq!(judged(3, &[(1, 7), (3, 7)]), (Some(7), vec![]), "one does not answer");
        assert_eq!(judged(3, &[(1, 7), (3, 8)]), (None, vec![1, 3]), "one of two is right");
        assert_eq!(judged(5, &[(1, 7), (2, 7), (3, 8), (4, 9)]), (None, vec![1, 2, 3, 4]));
        assert_eq!(judged(3, &[]), (None, vec![]));
    }
}

//! A metad takes the place of another one, on real nodes.

use super::cluster::{Cluster, LIMIT, config, endpoint, free_addr};
use metad::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::ids::MetadId;
use wire::limits::CAUGHT_UP_ENTRIES;
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::message::meta::{MetaReply, MetaRequest, Redirect};
use wire::tls::Role;

/// Far longer than an election.
const NO_LEADER_FOR: Duration = Duration::from_secs(4);

async fn status(cluster: &Cluster) -> ClusterStatus {
    match cluster.admin(AdminRequest::Status).await {
        AdminReply::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn done(cluster: &Cluster, request: AdminRequest) {
    let reply = cluster.admin(request).await;
    assert!(matches!(reply, AdminReply::Done), "{reply:?}");
}

async fn voters(cluster: &Cluster) -> BTreeSet<u64> {
    status(cluster).await.metads.into_iter().filter(|(_, _, voter, _)| *voter).map(|(id, ..)| id.0).collect()
}

pub(super) async fn start(cluster: &mut Cluster, id: u64, addr: SocketAddr) {
    let begun = Instant::now();
    let node = loop {
        match Node::start(config(&cluster.ca, cluster.dir.path(), id, addr, &BTreeMap::new())).await {
            Ok(node) => break node,
            // The socket of the node that was just stopped is still held.
            Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    cluster.nodes.insert(id, node);
}

pub(super) async fn until_it_follows(cluster: &Cluster, id: u64) {
    let begun = Instant::now();
    loop {
        let status = status(cluster).await;
        let has = status.metads.iter().find(|(of, ..)| of.0 == id).map_or(0, |(_, _, _, has)| *has);
        if has > 0 && has + CAUGHT_UP_ENTRIES >= status.applied {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn who_leads(cluster: &Cluster, addr: SocketAddr) -> Redirect {
    let peer = endpoint(&cluster.ca, Role::Admin);
    match peer.peer(addr, Role::Metad).request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await {
        Ok((MetaReply::NotLeader(said), _)) => said,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metad_is_replaced_in_one_change_even_if_it_leads_and_asking_twice_changes_nothing() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.session_with_files(300).await;
    done(&cluster, AdminRequest::Snapshot).await;
    for new in [4, 5] {
        let old = cluster.leader().await;
        let (addr, left) = (free_addr(), cluster.nodes[&old].local_addr());
        start(&mut cluster, new, addr).await;
        let replace = || AdminRequest::ReplaceMetad { old: MetadId(old), new: MetadId(new) };
        let add = |addr| AdminRequest::AddLearner { id: MetadId(new), addr };
        let early = cluster.admin(replace()).await;
        assert!(matches!(early, AdminReply::Failed(_)), "it is no member yet: {early:?}");
        for _ in 0..2 {
            done(&cluster, add(addr)).await;
        }
        let elsewhere = cluster.admin(add(free_addr())).await;
        assert!(matches!(elsewhere, AdminReply::Failed(_)), "the number is taken: {elsewhere:?}");
        assert!(voters(&cluster).await.contains(&old), "it votes until the new one does");
        until_it_follows(&cluster, new).await;
        for _ in 0..2 {
            done(&cluster, replace()).await;
        }
        let now = status(&cluster).await;
        assert_eq!(now.metads.len(), 3, "{now:?}");
        let voters = voters(&cluster).await;
        assert!(voters.contains(&new) && !voters.contains(&old) && voters.len() == 3, "{voters:?}");
        // The one that was removed may not know that, but what it says is older.
        let leads = cluster.nodes[&cluster.leader().await].local_addr();
        let (said, says) = (who_leads(&cluster, left).await, who_leads(&cluster, leads).await);
        assert!(says.since > said.since || said.leader.is_none(), "{said:?} {says:?}");
        assert!(says.nodes.iter().all(|(_, addr)| *addr != left), "{says:?}");
        cluster.stop_node(old).await;
    }
    for number in 0..300 {
        assert!(cluster.lookup(id, &format!("file-{number}")).await.is_some(), "file-{number}");
    }
}

/// Guards I7.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_metad_at_the_address_of_a_lost_one_does_not_answer_for_it_and_can_replace_it() {
    let mut cluster = Cluster::start(3).await;
    let id = {
        let mut session = cluster.session().await;
        session.create("before").await;
        session.id
    };
    let place = cluster.nodes[&3].local_addr();
    cluster.stop_node(3).await;
    start(&mut cluster, 4, place).await;
    assert!(cluster.lookup(id, "before").await.is_some());
    // Of the three that vote, one is left. If the new one voted for the lost one, it would help to elect a leader that
    // lacks what the lost one had acknowledged.
    let other = cluster.nodes[&2].local_addr();
    cluster.stop_node(2).await;
    let (begun, left) = (Instant::now(), cluster.nodes[&1].local_addr());
    let mut leads = true;
    while begun.elapsed() < NO_LEADER_FOR {
        leads = who_leads(&cluster, left).await.leader.is_some_and(|(_, named)| named == left);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!leads, "one of three leads");
    start(&mut cluster, 2, other).await;
    done(&cluster, AdminRequest::AddLearner { id: MetadId(4), addr: place }).await;
    until_it_follows(&cluster, 4).await;
    done(&cluster, AdminRequest::ReplaceMetad { old: MetadId(3), new: MetadId(4) }).await;
    assert_eq!(voters(&cluster).await, [1, 2, 4].into());
    cluster.stop_node(2).await;
    assert!(cluster.lookup(id, "before").await.is_some(), "the two others are a majority");
}

/// Guards I7.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_a_metad_that_was_removed_is_given_to_no_other() {
    let mut cluster = Cluster::start(1).await;
    cluster.session().await;
    let addr = free_addr();
    start(&mut cluster, 2, addr).await;
    done(&cluster, AdminRequest::AddLearner { id: MetadId(2), addr }).await;
    until_it_follows(&cluster, 2).await;
    done(&cluster, AdminRequest::RemoveMetad { id: MetadId(2) }).await;
    // Its files, and what it has voted for, may still be there.
    for again in [
        AdminRequest::AddLearner { id: MetadId(2), addr },
        AdminRequest::AddMetad { id: MetadId(2), addr: free_addr() },
    ] {
        let refused = cluster.admin(again).await;
        assert!(matches!(&refused, AdminReply::Failed(reason) if reason.contains("such as 3")), "{refused:?}");
    }
    assert_eq!(status(&cluster).await.metads_ever, [1, 2].map(MetadId), "operators' commands choose another");
    // A snapshot has the number, too.
    done(&cluster, AdminRequest::Snapshot).await;
    cluster.stop_node(1).await;
    std::fs::remove_dir_all(cluster.dir.path().join("metad-1/state")).unwrap();
    cluster.start_node(1).await;
    let refused = cluster.admin(AdminRequest::AddLearner { id: MetadId(2), addr }).await;
    assert!(matches!(refused, AdminReply::Failed(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_does_not_run_any_more_does_not_take_the_vote_of_the_only_one() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.session().await.id;
    let addr = free_addr();
    start(&mut cluster, 2, addr).await;
    done(&cluster, AdminRequest::AddLearner { id: MetadId(2), addr }).await;
    until_it_follows(&cluster, 2).await;
    cluster.stop_node(2).await;
    let replace = || AdminRequest::ReplaceMetad { old: MetadId(1), new: MetadId(2) };
    let refused = cluster.admin(replace()).await;
    assert!(matches!(&refused, AdminReply::Failed(reason) if reason.contains("does not answer")), "{refused:?}");
    assert_eq!(voters(&cluster).await, [1].into());
    assert!(cluster.lookup(id, ".").await.is_some(), "the only one still serves");
    start(&mut cluster, 2, addr).await;
    done(&cluster, replace()).await;
    assert_eq!(voters(&cluster).await, [2].into());
}

/// Guards I7.
#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_does_not_run_gets_no_vote_beside_the_only_one() {
    let mut cluster = Cluster::start(1).await;
    let id = cluster.session().await.id;
    let addr = free_addr();
    // It never ran. Then it ran, followed and died.
    for runs_before in [false, true] {
        if runs_before {
            start(&mut cluster, 2, addr).await;
            until_it_follows(&cluster, 2).await;
            cluster.stop_node(2).await;
        }
        let refused = cluster.admin(AdminRequest::AddMetad { id: MetadId(2), addr }).await;
        assert!(matches!(&refused, AdminReply::Failed(reason) if reason.contains("does not answer")), "{refused:?}");
        assert_eq!(voters(&cluster).await, BTreeSet::from([1]));
        assert!(cluster.lookup(id, "absent").await.is_none(), "the cluster goes on");
    }
    start(&mut cluster, 2, addr).await;
    done(&cluster, AdminRequest::AddMetad { id: MetadId(2), addr }).await;
    assert_eq!(voters(&cluster).await, BTreeSet::from([1, 2]));
}

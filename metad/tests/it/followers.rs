//! A follower in trouble is no trouble for the others.

use super::cluster::{Cluster, config, endpoint};
use metad::Node;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::ids::{Ino, MetadId};
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::op::{Op, XattrMode};
use wire::tls::Role;

/// Times that the follower comes and goes.
const FLAPS: usize = 6;
/// The longest that a change takes: far above normal times on a busy machine, and below an election with its silence
/// before.
const NORMAL: Duration = Duration::from_secs(3);

fn change(number: u64) -> Op {
    let value = number.to_string().into_bytes();
    Op::SetXattr { ino: Ino::ROOT, name: b"user.number".to_vec(), value, mode: XattrMode::Set, clear_sgid: false }
}

async fn term(cluster: &Cluster) -> u64 {
    match cluster.admin(AdminRequest::Status).await {
        AdminReply::Status(status) => status.term,
        other => panic!("{other:?}"),
    }
}

/// A busy machine may hold up heartbeats by itself, but hardly each time. What a follower does to the others shows each time.
const ATTEMPTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_comes_and_goes_neither_slows_changes_down_nor_deposes_the_leader() {
    let mut troubles = Vec::new();
    for _ in 0..ATTEMPTS {
        match trouble_by_a_flapping_follower().await {
            Some(trouble) => troubles.push(trouble),
            None => return,
        }
    }
    panic!("{troubles:?}");
}

/// Stops and starts a follower again and again while a client makes changes. Returns what became of these, unless nothing did.
async fn trouble_by_a_flapping_follower() -> Option<String> {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let node = cluster.nodes.remove(&away).unwrap();
    let addr = node.local_addr();
    let again = config(&cluster.ca, cluster.dir.path(), away, addr, &std::collections::BTreeMap::new());
    let mut session = cluster.session().await;
    let before = term(&cluster).await;
    let ended = Arc::new(AtomicBool::new(false));
    let flapping = {
        let (ended, asks) = (ended.clone(), endpoint(&cluster.ca, Role::Admin));
        tokio::spawn(async move {
            let mut node = Some(node);
            for _ in 0..FLAPS {
                node.take().unwrap().stop().await;
                // The socket of the node that was just stopped may still be held.
                while node.is_none() {
                    node = Node::start(again.clone()).await.ok();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // It has served for a moment.
                let asked = asks.peer(addr, Role::Metad);
                while asked.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], NORMAL).await.is_err() {}
            }
            ended.store(true, Ordering::Relaxed);
            node.unwrap()
        })
    };
    let (mut number, mut slowest) = (0_u64, Duration::ZERO);
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        session.run(vec![change(number)]).await.unwrap();
        slowest = slowest.max(begun.elapsed());
        number += 1;
    }
    let node = flapping.await.unwrap();
    let after = (term(&cluster).await, cluster.leader().await);
    node.stop().await;
    let AdminReply::Status(status) = cluster.admin(AdminRequest::Status).await else { panic!("no status") };
    // The directory must not go while a metad writes its log there.
    for node in std::mem::take(&mut cluster.nodes).into_values() {
        node.stop().await;
    }
    let is_well = slowest < NORMAL && after == (before, leader) && status.leader == MetadId(leader);
    let now = status.leader;
    (!is_well)
        .then(|| format!("{slowest:?} at most of {number}; term {before} led by {leader}, then {after:?} and {now}"))
}

//! Snapshots that are damaged on a disk.

use super::cluster::{Cluster, free_addr};
use super::replace::{done, start, until_it_follows};
use std::fs;
use wire::ids::MetadId;
use wire::message::admin::AdminRequest;

/// A receiver that stopped, or a leader, would end this process.
async fn a_damaged_snapshot_of_the_leader_harms_nobody(damaged_byte: impl Fn(usize) -> usize) {
    let mut cluster = Cluster::start(1).await;
    // More entries than a snapshot takes: the log alone is not enough.
    let id = cluster.session_with_files(300).await;
    done(&cluster, AdminRequest::Snapshot).await;
    let path = cluster.dir.path().join("metad-1/snapshot");
    let mut bytes = fs::read(&path).unwrap();
    let at = damaged_byte(bytes.len());
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let addr = free_addr();
    start(&mut cluster, 2, addr).await;
    done(&cluster, AdminRequest::AddLearner { id: MetadId(2), addr }).await;
    until_it_follows(&cluster, 2).await;
    done(&cluster, AdminRequest::ReplaceMetad { old: MetadId(1), new: MetadId(2) }).await;
    cluster.stop_node(1).await;
    for number in 0..300 {
        assert!(cluster.lookup(id, &format!("file-{number}")).await.is_some(), "file-{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_of_the_leader_is_refused_by_a_new_metad_which_gets_another_one() {
    a_damaged_snapshot_of_the_leader_harms_nobody(|len| len / 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_open_its_snapshot_sends_a_new_metad_another_one() {
    a_damaged_snapshot_of_the_leader_harms_nobody(|_| 0).await;
}

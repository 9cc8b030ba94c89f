//! What is revoked, as a block daemon hears of it.

use crate::daemon_cluster::{Cluster, LIMIT, caller, identity, until};
use std::time::{Duration, Instant};
use wire::Error;
use wire::attr::Timestamp;
use wire::message::block::{BlockReply, BlockRequest, ChordRequest};
use wire::quic::Endpoint;
use wire::revoked::{Revocations, Revoked};
use wire::tls::{ClusterCa, Role};

/// The certificates of a name that exist now.
pub(crate) fn all_of(role: Role, name: &str) -> Revoked {
    Revoked::Name { role, name: name.to_owned(), until: Timestamp::now() }
}

fn bound(ca: &ClusterCa, role: Role, name: &str) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, role, name)).unwrap()
}

async fn is_refused(cluster: &Cluster, endpoint: &Endpoint, request: &BlockRequest) -> bool {
    match cluster.ask_as(endpoint, 0, request).await {
        Err(Error::Revoked { .. }) => true,
        Ok(_) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_daemon_refuses_what_is_revoked_when_it_is_told_and_after_a_restart() {
    let mut cluster = Cluster::start(1).await;
    let victim = bound(&cluster.ca, Role::Client, "victim");
    let daemon = bound(&cluster.ca, Role::Blockd, "taken-over");
    let chord = BlockRequest::Chord(ChordRequest::Ping);
    assert!(!is_refused(&cluster, &victim, &BlockRequest::Status).await);
    assert!(!is_refused(&cluster, &daemon, &chord).await);
    let list = vec![all_of(Role::Client, "victim"), all_of(Role::Blockd, "taken-over")];
    let revoke = BlockRequest::Revoke(Revocations { version: 7, list });
    // Metads alone say so.
    for role in [Role::Client, Role::Blockd, Role::Admin] {
        let asked = cluster.ask_as(&caller(&cluster.ca, role), 0, &revoke).await;
        assert!(matches!(asked, Err(Error::Refused { .. })), "{role}: {asked:?}");
    }
    assert!(!is_refused(&cluster, &victim, &BlockRequest::Status).await);
    let told = Instant::now();
    let metad = caller(&cluster.ca, Role::Metad);
    assert!(matches!(cluster.ask_as(&metad, 0, &revoke).await, Ok((BlockReply::Done, _))));
    assert!(is_refused(&cluster, &victim, &BlockRequest::Status).await, "on the connection that stood");
    assert!(is_refused(&cluster, &daemon, &chord).await, "a daemon of the ring, too");
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
    // One that was removed may still send its older list.
    let older = BlockRequest::Revoke(Revocations { version: 6, list: Vec::new() });
    assert!(matches!(cluster.ask_as(&metad, 0, &older).await, Ok((BlockReply::Done, _))));
    for _ in 0..20 {
        let again = bound(&cluster.ca, Role::Client, "victim-s neighbour");
        assert!(!is_refused(&cluster, &again, &BlockRequest::Status).await);
        assert!(is_refused(&cluster, &victim, &BlockRequest::Status).await);
    }
    cluster.stop(0).await;
    cluster.start_again(0).await;
    assert!(is_refused(&cluster, &victim, &BlockRequest::Status).await, "before any metad has said so again");
    let issued_again = bound(&cluster.ca, Role::Client, "victim");
    assert!(!is_refused(&cluster, &issued_again, &BlockRequest::Status).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_damaged_on_disk_is_asked_for_anew_and_stops_nothing() {
    let mut cluster = Cluster::start(1).await;
    let metad = caller(&cluster.ca, Role::Metad);
    let list = vec![all_of(Role::Client, "victim")];
    let revoke = BlockRequest::Revoke(Revocations { version: 1, list });
    assert!(matches!(cluster.ask_as(&metad, 0, &revoke).await, Ok((BlockReply::Done, _))));
    let file = cluster.dir(0).join("revoked");
    until("the list is on disk", async || file.exists()).await;
    cluster.stop(0).await;
    std::fs::write(&file, "damaged").unwrap();
    cluster.start_again(0).await;
    let metads_word = cluster.ask_as(&metad, 0, &revoke).await;
    assert!(matches!(metads_word, Ok((BlockReply::Done, _))), "within {LIMIT:?}");
}

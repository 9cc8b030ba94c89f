//! The ring of real daemons: it forms, heals, and answers lookups.

use crate::daemon_cluster::{Cluster, until};
use wire::ids::Point;
use wire::message::block::{BlockReply, BlockRequest};

#[tokio::test(flavor = "multi_thread")]
async fn five_daemons_form_a_ring_and_heal_it_when_one_dies_and_comes_back() {
    let mut cluster = Cluster::start(5).await;
    until("the ring is ideal", async || cluster.ring_is_ideal()).await;
    cluster.nodes[2].take(); // dropped: no goodbye to anyone
    until("the ring is ideal without it", async || cluster.ring_is_ideal()).await;
    cluster.start_again(2).await;
    until("it has come back", async || cluster.ring_is_ideal()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_finds_the_responsible_daemon_from_any_of_them() {
    let cluster = Cluster::start(4).await;
    until("the ring is ideal", async || cluster.ring_is_ideal()).await;
    let layout = cluster.layout();
    for _ in 0..20 {
        let point = Point(rand::random());
        let owner = layout.members.iter().min_by_key(|member| point.distance_to(member.points[0])).unwrap();
        for index in 0..4 {
            let reply = cluster.ask(index, &BlockRequest::Lookup { point }).await.0;
            let BlockReply::Found { member, hops } = reply else { panic!("{reply:?}") };
            assert_eq!(member.id, owner.id);
            assert!(hops <= 4, "{hops} hops among 4 daemons");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_daemon_is_a_ring() {
    let cluster = Cluster::start(1).await;
    let ask = async || cluster.ask(0, &BlockRequest::Lookup { point: Point(7) }).await.0;
    until("it has begun the ring", async || matches!(ask().await, BlockReply::Found { hops: 0, .. })).await;
}

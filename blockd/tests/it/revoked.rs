//! What is revoked, as a block daemon hears of it.

use crate::daemon_cluster::{LIMIT, caller, identity, until};
use crate::daemon_metad::{Metad, serve};
use blockd::{Config, Node};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wire::Error;
use wire::attr::Timestamp;
use wire::codec;
use wire::issuer::IssuerKey;
use wire::message::block::{BlockReply, BlockRequest, ChordRequest};
use wire::quic::{Endpoint, ServerHandle};
use wire::revoked::{Revocations, Revoked};
use wire::tls::{ClusterCa, Identity, Role};
use wire::trust::Trust;

/// The certificates of a name that exist now.
pub(crate) fn all_of(role: Role, name: &str) -> Revoked {
    Revoked::Name { role, name: name.to_owned(), until: Timestamp::now() }
}

fn bound(ca: &ClusterCa, role: Role, name: &str) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity(ca, role, name)).unwrap()
}

async fn ask(endpoint: &Endpoint, node: &Node, request: &BlockRequest) -> Result<BlockReply, Error> {
    Ok(endpoint.peer(node.local_addr(), Role::Blockd).request(request, &[], LIMIT).await?.0)
}

async fn is_refused(endpoint: &Endpoint, node: &Node, request: &BlockRequest) -> bool {
    let started = Instant::now();
    loop {
        match ask(endpoint, node, request).await {
            Err(Error::Revoked { .. }) => return true,
            Ok(_) => return false,
            // It was under way when the connection ended.
            Err(Error::Unanswered { .. }) if started.elapsed() < LIMIT => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A leader and a block daemon. The daemon sends so few heartbeats that it learns of a change only when notified.
struct Cluster {
    ca: ClusterCa,
    leader: Arc<Metad>,
    leading: Endpoint,
    _serving: ServerHandle,
    dir: tempfile::TempDir,
    /// The identity with which the daemon was started last.
    configured: Mutex<Option<Identity>>,
}

impl Cluster {
    fn new() -> Self {
        let ca = ClusterCa::create("t").unwrap();
        let (leader, leading, serving) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
        Self { ca, leader, leading, _serving: serving, dir: tempfile::tempdir().unwrap(), configured: Mutex::default() }
    }

    async fn start(&self) -> Node {
        let metads = vec![self.leading.local_addr()];
        let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), self.dir.path(), metads);
        config.heartbeat_every = Duration::from_secs(3600);
        let heard = self.leader.heard.lock().unwrap().len();
        let configured = identity(&self.ca, Role::Blockd, "b1");
        *self.configured.lock().unwrap() = Some(configured.clone());
        let node = Node::start(config, configured).await.unwrap();
        until("the leader hears of it", async || self.leader.heard.lock().unwrap().len() > heard).await;
        node
    }

    fn says(&self, version: u64, list: Vec<Revoked>) {
        *self.leader.revoked.lock().unwrap() = Revocations { version, list };
    }

    /// Sends the daemon a notification from some metad.
    async fn notify(&self, node: &Node, version: u64) {
        let notified = ask(&caller(&self.ca, Role::Metad), node, &BlockRequest::RevokedChanged { version }).await;
        assert!(matches!(notified, Ok(BlockReply::Done)), "{notified:?}");
    }

    fn file(&self) -> Box<Path> {
        self.dir.path().join("revoked").into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_daemon_refuses_what_is_revoked_when_it_is_told_and_after_a_restart() {
    let cluster = Cluster::new();
    let node = cluster.start().await;
    let victim = bound(&cluster.ca, Role::Client, "victim");
    let daemon = bound(&cluster.ca, Role::Blockd, "taken-over");
    let chord = BlockRequest::Chord(ChordRequest::Ping);
    assert!(!is_refused(&victim, &node, &BlockRequest::Status).await);
    assert!(!is_refused(&daemon, &node, &chord).await);
    cluster.says(7, vec![all_of(Role::Client, "victim"), all_of(Role::Blockd, "taken-over")]);
    // Metads alone say so.
    for role in [Role::Client, Role::Blockd, Role::Admin] {
        let asked = ask(&caller(&cluster.ca, role), &node, &BlockRequest::RevokedChanged { version: 7 }).await;
        assert!(matches!(asked, Err(Error::Refused { .. })), "{role}: {asked:?}");
    }
    assert!(!is_refused(&victim, &node, &BlockRequest::Status).await);
    let begun = Instant::now();
    cluster.notify(&node, 7).await;
    until("it refuses both", async || {
        is_refused(&victim, &node, &BlockRequest::Status).await && is_refused(&daemon, &node, &chord).await
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for _ in 0..20 {
        let again = bound(&cluster.ca, Role::Client, "victim-s neighbour");
        assert!(!is_refused(&again, &node, &BlockRequest::Status).await);
        assert!(is_refused(&victim, &node, &BlockRequest::Status).await);
    }
    until("the list is on disk", async || cluster.file().exists()).await;
    node.stop().await;
    // Nobody tells it anything else.
    cluster.leading.close().await;
    let metads = vec!["127.0.0.1:1".parse().unwrap()];
    let config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), cluster.dir.path(), metads);
    let node = Node::start(config, identity(&cluster.ca, Role::Blockd, "b1")).await.unwrap();
    assert!(is_refused(&victim, &node, &BlockRequest::Status).await, "before any metad has said so again");
    let issued_again = bound(&cluster.ca, Role::Client, "victim");
    assert!(!is_refused(&issued_again, &node, &BlockRequest::Status).await);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_one_metad_says_of_what_is_revoked_the_leader_decides() {
    let cluster = Cluster::new();
    let (honest, victim) = (bound(&cluster.ca, Role::Client, "honest"), bound(&cluster.ca, Role::Client, "victim"));
    // Left by one that believed any metad.
    let poisoned = Revocations { version: u64::MAX, list: vec![all_of(Role::Client, "honest")] };
    std::fs::write(cluster.file(), codec::encode(&poisoned)).unwrap();
    cluster.says(3, vec![all_of(Role::Client, "victim")]);
    let node = cluster.start().await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    assert!(!is_refused(&honest, &node, &BlockRequest::Status).await);
    for version in [u64::MAX, 0, 4] {
        cluster.notify(&node, version).await;
    }
    cluster.says(4, Vec::new());
    cluster.notify(&node, 4).await;
    until("it follows the leader", async || !is_refused(&victim, &node, &BlockRequest::Status).await).await;
    let reported = || cluster.leader.heard.lock().unwrap().last().unwrap().revoked.version;
    cluster.notify(&node, 5).await;
    until("its heartbeats say which list it has", async || reported() == 4).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_the_right_version_that_the_leader_does_not_have_is_replaced() {
    let cluster = Cluster::new();
    let (honest, victim) = (bound(&cluster.ca, Role::Client, "honest"), bound(&cluster.ca, Role::Client, "victim"));
    // Left by a metad that has led for a moment, or has said so.
    let other = Revocations { version: 3, list: vec![all_of(Role::Client, "honest")] };
    std::fs::write(cluster.file(), codec::encode(&other)).unwrap();
    cluster.says(3, vec![all_of(Role::Client, "victim")]);
    let node = cluster.start().await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    assert!(!is_refused(&honest, &node, &BlockRequest::Status).await);
    let on_disk = || codec::decode::<Revocations>(&std::fs::read(cluster.file()).unwrap()).unwrap().mark();
    let wanted = cluster.leader.revoked.lock().unwrap().mark();
    until("so does its file", async || on_disk() == wanted).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_could_not_be_written_is_written_after_a_later_heartbeat() {
    let cluster = Cluster::new();
    let victim = bound(&cluster.ca, Role::Client, "victim");
    // A directory in its place: nothing is renamed over it.
    std::fs::create_dir_all(cluster.file().join("in-the-way")).unwrap();
    cluster.says(1, vec![all_of(Role::Client, "victim")]);
    let node = cluster.start().await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    assert!(cluster.file().is_dir());
    std::fs::remove_dir_all(cluster.file()).unwrap();
    // A reason for a heartbeat: there is no other list.
    cluster.notify(&node, 2).await;
    until("the list is on disk", async || cluster.file().is_file()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_speaks_of_other_lists_without_end_causes_two_heartbeats_a_second() {
    let cluster = Cluster::new();
    let node = cluster.start().await;
    let heard = || cluster.leader.heard.lock().unwrap().len();
    let (begun, first) = (Instant::now(), heard());
    for version in 100.. {
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
        cluster.notify(&node, version).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Whatever the machine does meanwhile, they are no more than the time allows.
    let most = 4 + begun.elapsed().as_millis() as usize / 500;
    assert!((1..=most).contains(&(heard() - first)), "{} heartbeats", heard() - first);
    // The truth arrives all the same.
    let victim = bound(&cluster.ca, Role::Client, "victim");
    cluster.says(7, vec![all_of(Role::Client, "victim")]);
    cluster.notify(&node, 7).await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_damaged_on_disk_is_asked_for_anew_and_stops_nothing() {
    let cluster = Cluster::new();
    let victim = bound(&cluster.ca, Role::Client, "victim");
    std::fs::write(cluster.file(), "damaged").unwrap();
    cluster.says(1, vec![all_of(Role::Client, "victim")]);
    let node = cluster.start().await;
    until("the leader has told it", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_daemon_moves_to_a_new_ca_serves_both_meanwhile_and_then_the_new_one_alone_also_after_a_restart() {
    let cluster = Cluster::new();
    let node = cluster.start().await;
    let new = ClusterCa::succeeding("t", cluster.ca.cluster_id().unwrap()).unwrap();
    let trust = |version, of: &[&ClusterCa]| {
        let authorities = of.iter().map(|ca| ca.cert().unwrap()).collect();
        Trust { version, authorities, ..Trust::original(cluster.ca.cluster_id().unwrap()) }
    };
    let both = trust(1, &[&cluster.ca, &new]);
    let operator = |ca: &ClusterCa| identity(ca, Role::Admin, "a");
    let begun = operator(&cluster.ca).sign_trust(&both, Some(&operator(&new))).unwrap();
    let finished = operator(&new).sign_trust(&trust(2, &[&new]), None).unwrap();
    let issuer = IssuerKey::create(&new, "m", &[Role::Blockd]).unwrap();
    assert!(cluster.leader.issuer.set(issuer).is_ok());
    let (old_client, new_client) = (bound(&cluster.ca, Role::Client, "old"), bound(&new, Role::Client, "new"));
    ask(&old_client, &node, &BlockRequest::Status).await.unwrap();
    assert!(matches!(ask(&new_client, &node, &BlockRequest::Status).await, Err(Error::WrongCluster { .. })));
    *cluster.leader.steps.lock().unwrap() = vec![begun.clone()];
    cluster.leading.trust_signed(std::slice::from_ref(&begun)).unwrap().unwrap();
    cluster.says(1, Vec::new());
    cluster.notify(&node, 1).await;
    until("it serves clients of both", async || {
        ask(&old_client, &node, &BlockRequest::Status).await.is_ok()
            && ask(&new_client, &node, &BlockRequest::Status).await.is_ok()
    })
    .await;
    let file = cluster.dir.path().join("identity.pem");
    let newest = both.newest().unwrap();
    until("its own certificate is of the new one", async || {
        Identity::load(&file).is_ok_and(|kept| kept.certificate().authority == newest)
    })
    .await;
    ask(&old_client, &node, &BlockRequest::Status).await.unwrap();
    *cluster.leader.steps.lock().unwrap() = vec![begun, finished];
    cluster.says(2, Vec::new());
    let begun = Instant::now();
    cluster.notify(&node, 2).await;
    until("the old one is refused", async || ask(&old_client, &node, &BlockRequest::Status).await.is_err()).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    ask(&new_client, &node, &BlockRequest::Status).await.unwrap();
    until("that is on disk", async || Identity::load(&file).is_ok_and(|kept| kept.trust().version == 2)).await;
    node.stop().await;
    // With the configured identity, which is of the old one.
    let metads = vec!["127.0.0.1:1".parse().unwrap()];
    let config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), cluster.dir.path(), metads);
    let configured = cluster.configured.lock().unwrap().clone().unwrap();
    let node = Node::start(config, configured).await.unwrap();
    ask(&new_client, &node, &BlockRequest::Status).await.unwrap();
    let refused = ask(&old_client, &node, &BlockRequest::Status).await.unwrap_err();
    assert!(refused.to_string().contains("another CA of this one"), "{refused}");
    node.stop().await;
}

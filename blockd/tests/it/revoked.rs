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
use wire::message::block::{BlockReply, BlockRequest, ChordRequest};
use wire::quic::{Endpoint, ServerHandle};
use wire::revoked::{Revocations, Revoked};
use wire::tls::{ClusterCa, Role};

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

/// A cluster of a leader and a block daemon, whose heartbeats are so rare that it must be told of each change.
struct Told {
    ca: ClusterCa,
    leader: Arc<Metad>,
    leading: Endpoint,
    _serving: ServerHandle,
    dir: tempfile::TempDir,
}

impl Told {
    fn new() -> Self {
        let ca = ClusterCa::create("t").unwrap();
        let (leader, leading, serving) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
        Self { ca, leader, leading, _serving: serving, dir: tempfile::tempdir().unwrap() }
    }

    async fn start(&self) -> Node {
        let metads = vec![self.leading.local_addr()];
        let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), self.dir.path(), metads);
        config.heartbeat_every = Duration::from_secs(3600);
        let heard = self.leader.heard.lock().unwrap().len();
        let node = Node::start(config, identity(&self.ca, Role::Blockd, "b1")).await.unwrap();
        until("the leader hears of it", async || self.leader.heard.lock().unwrap().len() > heard).await;
        node
    }

    fn says(&self, version: u64, list: Vec<Revoked>) {
        *self.leader.revoked.lock().unwrap() = Revocations { version, list };
    }

    /// Has a metad, which may be any, tell of a list.
    async fn tell(&self, node: &Node, version: u64) {
        let told = ask(&caller(&self.ca, Role::Metad), node, &BlockRequest::RevokedChanged { version }).await;
        assert!(matches!(told, Ok(BlockReply::Done)), "{told:?}");
    }

    fn file(&self) -> Box<Path> {
        self.dir.path().join("revoked").into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_daemon_refuses_what_is_revoked_when_it_is_told_and_after_a_restart() {
    let told = Told::new();
    let node = told.start().await;
    let victim = bound(&told.ca, Role::Client, "victim");
    let daemon = bound(&told.ca, Role::Blockd, "taken-over");
    let chord = BlockRequest::Chord(ChordRequest::Ping);
    assert!(!is_refused(&victim, &node, &BlockRequest::Status).await);
    assert!(!is_refused(&daemon, &node, &chord).await);
    told.says(7, vec![all_of(Role::Client, "victim"), all_of(Role::Blockd, "taken-over")]);
    // Metads alone say so.
    for role in [Role::Client, Role::Blockd, Role::Admin] {
        let asked = ask(&caller(&told.ca, role), &node, &BlockRequest::RevokedChanged { version: 7 }).await;
        assert!(matches!(asked, Err(Error::Refused { .. })), "{role}: {asked:?}");
    }
    assert!(!is_refused(&victim, &node, &BlockRequest::Status).await);
    let begun = Instant::now();
    told.tell(&node, 7).await;
    until("it refuses both", async || {
        is_refused(&victim, &node, &BlockRequest::Status).await && is_refused(&daemon, &node, &chord).await
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for _ in 0..20 {
        let again = bound(&told.ca, Role::Client, "victim-s neighbour");
        assert!(!is_refused(&again, &node, &BlockRequest::Status).await);
        assert!(is_refused(&victim, &node, &BlockRequest::Status).await);
    }
    until("the list is on disk", async || told.file().exists()).await;
    node.stop().await;
    // Nobody tells it anything else.
    told.leading.close().await;
    let metads = vec!["127.0.0.1:1".parse().unwrap()];
    let config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), told.dir.path(), metads);
    let node = Node::start(config, identity(&told.ca, Role::Blockd, "b1")).await.unwrap();
    assert!(is_refused(&victim, &node, &BlockRequest::Status).await, "before any metad has said so again");
    let issued_again = bound(&told.ca, Role::Client, "victim");
    assert!(!is_refused(&issued_again, &node, &BlockRequest::Status).await);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_one_metad_says_of_what_is_revoked_the_leader_decides() {
    let told = Told::new();
    let (honest, victim) = (bound(&told.ca, Role::Client, "honest"), bound(&told.ca, Role::Client, "victim"));
    // Left by one that believed any metad.
    let poisoned = Revocations { version: u64::MAX, list: vec![all_of(Role::Client, "honest")] };
    std::fs::write(told.file(), codec::encode(&poisoned)).unwrap();
    told.says(3, vec![all_of(Role::Client, "victim")]);
    let node = told.start().await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    assert!(!is_refused(&honest, &node, &BlockRequest::Status).await);
    for version in [u64::MAX, 0, 4] {
        told.tell(&node, version).await;
    }
    told.says(4, Vec::new());
    told.tell(&node, 4).await;
    until("it follows the leader", async || !is_refused(&victim, &node, &BlockRequest::Status).await).await;
    let reported = || told.leader.heard.lock().unwrap().last().unwrap().revoked.version;
    told.tell(&node, 5).await;
    until("its heartbeats say which list it has", async || reported() == 4).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_the_right_version_that_the_leader_does_not_have_is_replaced() {
    let told = Told::new();
    let (honest, victim) = (bound(&told.ca, Role::Client, "honest"), bound(&told.ca, Role::Client, "victim"));
    // Left by a metad that has led for a moment, or has said so.
    let other = Revocations { version: 3, list: vec![all_of(Role::Client, "honest")] };
    std::fs::write(told.file(), codec::encode(&other)).unwrap();
    told.says(3, vec![all_of(Role::Client, "victim")]);
    let node = told.start().await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    assert!(!is_refused(&honest, &node, &BlockRequest::Status).await);
    let on_disk = || codec::decode::<Revocations>(&std::fs::read(told.file()).unwrap()).unwrap().mark();
    let wanted = told.leader.revoked.lock().unwrap().mark();
    until("so does its file", async || on_disk() == wanted).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_could_not_be_written_is_written_after_a_later_heartbeat() {
    let told = Told::new();
    let victim = bound(&told.ca, Role::Client, "victim");
    // A directory in its place: nothing is renamed over it.
    std::fs::create_dir_all(told.file().join("in-the-way")).unwrap();
    told.says(1, vec![all_of(Role::Client, "victim")]);
    let node = told.start().await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    assert!(told.file().is_dir());
    std::fs::remove_dir_all(told.file()).unwrap();
    // A reason for a heartbeat: there is no other list.
    told.tell(&node, 2).await;
    until("the list is on disk", async || told.file().is_file()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metad_that_speaks_of_other_lists_without_end_causes_two_heartbeats_a_second() {
    let told = Told::new();
    let node = told.start().await;
    let heard = || told.leader.heard.lock().unwrap().len();
    let (begun, first) = (Instant::now(), heard());
    for version in 100.. {
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
        told.tell(&node, version).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Whatever the machine does meanwhile, they are no more than the time allows.
    let most = 4 + begun.elapsed().as_millis() as usize / 500;
    assert!((1..=most).contains(&(heard() - first)), "{} heartbeats", heard() - first);
    // The truth arrives all the same.
    let victim = bound(&told.ca, Role::Client, "victim");
    told.says(7, vec![all_of(Role::Client, "victim")]);
    told.tell(&node, 7).await;
    until("it refuses what the leader says", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_damaged_on_disk_is_asked_for_anew_and_stops_nothing() {
    let told = Told::new();
    let victim = bound(&told.ca, Role::Client, "victim");
    std::fs::write(told.file(), "damaged").unwrap();
    told.says(1, vec![all_of(Role::Client, "victim")]);
    let node = told.start().await;
    until("the leader has told it", async || is_refused(&victim, &node, &BlockRequest::Status).await).await;
    node.stop().await;
}

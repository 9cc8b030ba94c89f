//! Who may ask a block daemon what: every kind of request, from holders of every kind of certificate.
//!
//! The table has no wildcard, so a new kind of request does not compile without a row.

use crate::daemon_cluster::{LIMIT, identity, until};
use crate::daemon_metad::{Metad, serve};
use crate::revoked::all_of;
use blockd::{Config, Node};
use bytes::Bytes;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use wire::Error;
use wire::attr::Timestamp;
use wire::cert::KeyId;
use wire::codec;
use wire::ids::{BlockHash, BlockdId, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest, BlockRequestKind as Kind, ChordRequest};
use wire::quic::{Endpoint, Peer, ServerHandle};
use wire::revoked::Revocations;
use wire::ticket::TicketKey;
use wire::tls::{ClusterCa, Role, Subject};

/// Whose certificate it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Client,
    Reader,
    Confined,
    Blockd,
    Metad,
    Operator,
}

const ALL: [Holder; 6] =
    [Holder::Client, Holder::Reader, Holder::Confined, Holder::Blockd, Holder::Metad, Holder::Operator];
const ROLES: [Role; 4] = [Role::Client, Role::Blockd, Role::Metad, Role::Admin];

impl Holder {
    fn subject(self) -> Subject {
        let role = match self {
            Self::Client | Self::Reader | Self::Confined => Role::Client,
            Self::Blockd => Role::Blockd,
            Self::Metad => Role::Metad,
            Self::Operator => Role::Admin,
        };
        let mut subject = Subject::new(role, &format!("{self:?}"));
        subject.grant.read_only = self == Self::Reader;
        subject.grant.subtree = (self == Self::Confined).then(|| "/home".to_owned());
        subject
    }
}

/// The table: who may send this kind of request.
fn may_send(kind: Kind) -> &'static [Holder] {
    match kind {
        Kind::Put => &[Holder::Client, Holder::Confined, Holder::Blockd, Holder::Operator],
        // A name is no permission for a confined client, and what the daemon is like is none of its business.
        Kind::Get | Kind::Lookup | Kind::Status => {
            &[Holder::Client, Holder::Reader, Holder::Blockd, Holder::Metad, Holder::Operator]
        }
        Kind::GetByTicket => &[Holder::Client, Holder::Reader, Holder::Confined],
        Kind::Drop | Kind::RevokedChanged => &[Holder::Metad],
        Kind::List | Kind::Probe => &[Holder::Blockd, Holder::Metad, Holder::Operator],
        Kind::Digests | Kind::Chord => &[Holder::Blockd],
        Kind::Verify | Kind::Fetch => &[Holder::Operator],
    }
}

/// Returns a request of this kind that is right in all else.
fn example(kind: Kind, hash: BlockHash) -> BlockRequest {
    let epoch = LayoutEpoch(1);
    match kind {
        Kind::Put => BlockRequest::Put { hash, epoch, chain: Vec::new(), needed: 1, origin: None },
        Kind::Get => BlockRequest::Get { hash, epoch, offset: 0, len: 1 },
        Kind::Drop => BlockRequest::Drop { hashes: vec![hash], epoch, grace_ms: 0 },
        Kind::List => BlockRequest::List { from: hash, last: hash, limit: 1 },
        Kind::Probe => BlockRequest::Probe { epoch, hashes: vec![hash] },
        Kind::Digests => BlockRequest::Digests { epoch, spans: Vec::new() },
        Kind::Chord => BlockRequest::Chord(ChordRequest::Ping),
        Kind::Lookup => BlockRequest::Lookup { point: hash.point() },
        Kind::Status => BlockRequest::Status,
        Kind::Verify => BlockRequest::Verify { hashes: vec![hash] },
        Kind::Fetch => BlockRequest::Fetch { hashes: vec![hash], from: BlockdId([7; 16]) },
        Kind::RevokedChanged => BlockRequest::RevokedChanged { version: 1 },
        Kind::GetByTicket => {
            let made = Timestamp::default();
            let ticket = TicketKey::make(1, made).ticket(&KeyId([7; 32]), &hash, (0, 1), made);
            BlockRequest::GetByTicket { hash, epoch, offset: 0, len: 1, ticket }
        }
    }
}

/// Returns whether this answers such a request.
fn is_answer(kind: Kind, reply: &BlockReply) -> bool {
    match kind {
        Kind::Put => matches!(reply, BlockReply::Stored { .. }),
        Kind::Get => matches!(reply, BlockReply::Content { .. }),
        // It was just stored, and stays.
        Kind::Drop => matches!(reply, BlockReply::Dropped(hashes) if hashes.is_empty()),
        Kind::List => matches!(reply, BlockReply::Blocks(_)),
        Kind::Probe => matches!(reply, BlockReply::Present(_)),
        Kind::Digests => matches!(reply, BlockReply::Digests(_)),
        // The daemon may not be on the ring yet.
        Kind::Chord => matches!(reply, BlockReply::Chord(_) | BlockReply::Failed(_)),
        Kind::Lookup => matches!(reply, BlockReply::Found { .. } | BlockReply::Failed(_)),
        Kind::Status => matches!(reply, BlockReply::Status(_)),
        Kind::Verify => matches!(reply, BlockReply::Verified(_)),
        Kind::Fetch => matches!(reply, BlockReply::Fetching(_)),
        Kind::RevokedChanged => matches!(reply, BlockReply::Done),
        // It was looked at, and nobody has given it.
        Kind::GetByTicket => matches!(reply, BlockReply::TicketRefused),
    }
}

/// Returns all kinds, each with the byte that stands for it.
fn kinds() -> Vec<(u8, Kind)> {
    let kind = |byte: u8| codec::decode::<Kind>(&codec::encode(&byte)).ok().map(|kind| (byte, kind));
    let all: Vec<_> = (0..128).map_while(kind).collect();
    assert!(all.len() > 10, "they are not found");
    all
}

fn bound(ca: &ClusterCa, subject: &Subject) -> Endpoint {
    Endpoint::bind("127.0.0.1:0".parse().unwrap(), &ca.issue(subject).unwrap()).unwrap()
}

async fn ask(peer: &Peer, kind: Kind, content: &Bytes) -> Result<BlockReply, Error> {
    let payload = if kind == Kind::Put { std::slice::from_ref(content) } else { &[] };
    let request = example(kind, BlockHash::of(content));
    assert_eq!(request.kind(), kind);
    Ok(peer.request(&request, payload, LIMIT).await?.0)
}

/// A daemon whose leader has revoked a certificate of each role, and those certificates.
struct Setting {
    ca: ClusterCa,
    node: Node,
    revoked: [(Role, Endpoint); 4],
    _leading: (Endpoint, ServerHandle),
    _dir: TempDir,
}

impl Setting {
    async fn new() -> Self {
        let ca = ClusterCa::create("t").unwrap();
        let (leader, leading, serving) = serve(&ca, Metad { epoch: Mutex::new(1), ..Metad::default() });
        let revoked = ROLES.map(|role| (role, bound(&ca, &Subject::new(role, "revoked"))));
        let list = ROLES.map(|role| all_of(role, "revoked")).to_vec();
        *leader.revoked.lock().unwrap() = Revocations { version: 1, list };
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new("b1", "127.0.0.1:0".parse().unwrap(), dir.path(), vec![leading.local_addr()]);
        config.heartbeat_every = Duration::from_millis(50);
        let node = Node::start(config, identity(&ca, Role::Blockd, "b1")).await.unwrap();
        let heard = || leader.heard.lock().unwrap().last().map(|beat| (beat.epoch, beat.revoked.version));
        until("it knows the layout and the list", async || heard() == Some((LayoutEpoch(1), 1))).await;
        Self { ca, node, revoked, _leading: (leading, serving), _dir: dir }
    }

    fn peer(&self, endpoint: &Endpoint) -> Peer {
        endpoint.peer(self.node.local_addr(), Role::Blockd)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_request_is_answered_for_those_whom_it_is_for_and_refused_by_its_first_byte_for_others() {
    let setting = Setting::new().await;
    let content = Bytes::from_static(b"content");
    for whose in ALL {
        let endpoint = bound(&setting.ca, &whose.subject());
        let peer = setting.peer(&endpoint);
        for (byte, kind) in kinds() {
            if may_send(kind).contains(&whose) {
                let answered = ask(&peer, kind, &content).await;
                let is_answered = matches!(&answered, Ok(reply) if is_answer(kind, reply));
                assert!(is_answered, "{kind:?} of {whose:?}: {answered:?}");
                continue;
            }
            // Behind the first byte come some that decode to nothing: only the certificate can be the reason.
            let garbage = peer.request::<_, BlockReply>(&(byte, [0xff_u8; 32]), &[], LIMIT).await;
            for asked in [garbage.map(|(reply, _)| reply), ask(&peer, kind, &content).await] {
                let is_certificate =
                    |reason: &str| reason.contains("may not ask this") || reason.contains("by tickets alone");
                let is_refused = matches!(&asked, Err(Error::Refused { reason, .. }) if is_certificate(reason));
                assert!(is_refused, "{kind:?} of {whose:?}: {asked:?}");
            }
        }
    }
    setting.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kind_of_request_is_answered_for_whoever_was_revoked() {
    let setting = Setting::new().await;
    let content = Bytes::from_static(b"content");
    for (role, endpoint) in &setting.revoked {
        let (peer, started) = (setting.peer(endpoint), Instant::now());
        for (_, kind) in kinds() {
            let asked = loop {
                match ask(&peer, kind, &content).await {
                    // It was under way when the connection ended.
                    Err(Error::Unanswered { .. }) if started.elapsed() < LIMIT => {}
                    asked => break asked,
                }
            };
            assert!(matches!(asked, Err(Error::Revoked { .. })), "{kind:?} of {role}: {asked:?}");
        }
    }
    setting.node.stop().await;
}

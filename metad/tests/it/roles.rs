//! Who may ask a metad what: every kind of request, from holders of every kind of certificate.
//!
//! The table has no wildcard, so a new kind of request does not compile without a row. What lies within a kind, such as an
//! operator's request or a message of Raft, is for those whom the kind is for.

use super::cluster::{Cluster, LIMIT, opening};
use super::confined::made;
use super::hostile::{leading, opened};
use std::time::{Duration, Instant};
use wire::attr::Timestamp;
use wire::cert::{AuthorityId, KeyId};
use wire::codec;
use wire::ids::{BatchSeq, BlockHash, BlockdId, Ino, LayoutEpoch, MetadId, SessionId};
use wire::message::admin::{AdminReply, AdminRequest, BackupPiece};
use wire::message::block::RepairReport;
use wire::message::cert::{CertTarget, Renewal};
use wire::message::event::MetaEvent;
use wire::message::meta::{BlockdHeartbeat, MetaReply, MetaRequest, MetaRequestKind as Kind, RaftKind};
use wire::op::{Batch, NewInode, Op, Read};
use wire::quic::{Endpoint, Peer};
use wire::revoked::ListMark;
use wire::tls::{Role, Subject};
use wire::{Error, FsError};

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

const CLIENTS: [Holder; 3] = [Holder::Client, Holder::Reader, Holder::Confined];
const ALL: [Holder; 6] =
    [Holder::Client, Holder::Reader, Holder::Confined, Holder::Blockd, Holder::Metad, Holder::Operator];

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
        Kind::OpenSession
        | Kind::KeepAlive
        | Kind::CloseSession
        | Kind::Submit
        | Kind::Read
        | Kind::Acknowledge
        | Kind::Events => &CLIENTS,
        Kind::BlockdHeartbeat | Kind::BlockReport | Kind::Referenced => &[Holder::Blockd],
        Kind::Admin | Kind::Backup => &[Holder::Operator],
        Kind::Raft | Kind::NoteRenewal | Kind::Issuer => &[Holder::Metad],
        Kind::GetLayout | Kind::WhoLeads | Kind::Renew | Kind::Trust => &ALL,
    }
}

/// Returns a request of this kind that is right in all else.
fn example(kind: Kind, session: SessionId) -> MetaRequest {
    let epoch = LayoutEpoch(0);
    let id = BlockdId([1; 16]);
    match kind {
        Kind::OpenSession => opening(true, None, None),
        Kind::KeepAlive => MetaRequest::KeepAlive { session, epoch },
        Kind::CloseSession => MetaRequest::CloseSession { session },
        Kind::Submit => {
            let ops = vec![Op::ReleaseOrphans { inos: Vec::new() }];
            let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops };
            MetaRequest::Submit { session, batch, receipts: Vec::new() }
        }
        Kind::Read => {
            let read = Read::GetAttr { ino: Ino::ROOT };
            MetaRequest::Read { session, read, delegate: false, sends: false, caller: None }
        }
        Kind::Acknowledge => MetaRequest::Acknowledge { session, seqs: vec![1] },
        Kind::GetLayout => MetaRequest::GetLayout,
        Kind::Events => MetaRequest::Events { session, dirty: false },
        Kind::BlockdHeartbeat => MetaRequest::BlockdHeartbeat(BlockdHeartbeat {
            id,
            name: Holder::Blockd.subject().name,
            addr: ([127, 0, 0, 1], 7001).into(),
            zone: "z".to_owned(),
            weight: 1,
            capacity_bytes: 1 << 30,
            free_bytes: 1 << 30,
            block_count: 0,
            epoch,
            every_ms: 1000,
            repair: RepairReport::default(),
            failed: false,
            revoked: ListMark::default(),
        }),
        Kind::BlockReport => MetaRequest::BlockReport { id, epoch, blocks: vec![BlockHash([1; 32])] },
        Kind::Admin => MetaRequest::Admin(AdminRequest::Pins),
        // A metad of this number does not answer here: that it says so shows that it has looked.
        Kind::Raft => MetaRequest::Raft { kind: RaftKind::Append, to: MetadId(99) },
        Kind::WhoLeads => MetaRequest::WhoLeads,
        Kind::Referenced => MetaRequest::Referenced { epoch, from: BlockHash([0; 32]), last: BlockHash([0xff; 32]) },
        Kind::Backup => MetaRequest::Backup,
        Kind::Renew => MetaRequest::Renew,
        Kind::NoteRenewal => MetaRequest::NoteRenewal(Renewal {
            subject: Subject::new(Role::Client, "unknown"),
            key: KeyId([1; 32]),
            issued: Timestamp { secs: 1, nanos: 0 },
            ends: Timestamp { secs: 2, nanos: 0 },
            shown: None,
            issuer: KeyId([2; 32]),
            authority: AuthorityId([3; 16]),
            moves: false,
            by: MetadId(1),
            addr: ([127, 0, 0, 1], 7002).into(),
        }),
        Kind::Trust => MetaRequest::Trust { version: 0 },
        Kind::Issuer => MetaRequest::Issuer,
    }
}

/// Returns whether this answers such a request. Streams have no such answer.
fn is_answer(kind: Kind, reply: &MetaReply) -> bool {
    match kind {
        Kind::OpenSession => matches!(reply, MetaReply::Session { .. }),
        Kind::KeepAlive => matches!(reply, MetaReply::Alive { .. }),
        Kind::CloseSession | Kind::Acknowledge => matches!(reply, MetaReply::Done),
        Kind::Submit => matches!(reply, MetaReply::Batch { .. }),
        Kind::Read => matches!(reply, MetaReply::Read { .. }),
        Kind::GetLayout => matches!(reply, MetaReply::Layout(_)),
        Kind::Events | Kind::Backup => false,
        Kind::BlockdHeartbeat => matches!(reply, MetaReply::BlockdAlive { .. }),
        Kind::BlockReport => matches!(reply, MetaReply::Unreferenced(_)),
        Kind::Admin => matches!(reply, MetaReply::Admin(AdminReply::Pins(_))),
        Kind::Raft => matches!(reply, MetaReply::Failed(FsError::NotFound)),
        Kind::WhoLeads => matches!(reply, MetaReply::NotLeader(_)),
        Kind::Referenced => matches!(reply, MetaReply::Referenced { .. }),
        Kind::Renew => matches!(reply, MetaReply::Renewal(_)),
        Kind::NoteRenewal => matches!(reply, MetaReply::Noted(_)),
        Kind::Trust => matches!(reply, MetaReply::Trust { .. }),
        Kind::Issuer => matches!(reply, MetaReply::Issuer(_)),
    }
}

/// Returns all kinds, each with the byte that stands for it.
fn kinds() -> Vec<(u8, Kind)> {
    let kind = |byte: u8| codec::decode::<Kind>(&codec::encode(&byte)).ok().map(|kind| (byte, kind));
    let all: Vec<_> = (0..128).map_while(kind).collect();
    assert!(all.len() > 10, "they are not found");
    all
}

/// A certificate, and a connection to the leader with it.
async fn peer_of(cluster: &Cluster, subject: &Subject) -> (Endpoint, Peer) {
    let identity = cluster.ca.issue(subject).unwrap();
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
    let peer = leading(cluster, &endpoint).await;
    (endpoint, peer)
}

/// Checks that the request is answered.
async fn assert_answered(peer: &Peer, request: &MetaRequest, whose: Holder) {
    let kind = request.kind();
    let first = async {
        match kind {
            Kind::Events => {
                let event = peer.open_events(request).await?.next::<MetaEvent>().await;
                event.map(|event| matches!(event, MetaEvent::Attached { .. }))
            }
            Kind::Backup => {
                let piece = peer.open_events(request).await?.next::<BackupPiece>().await;
                piece.map(|piece| matches!(piece, BackupPiece::Bytes(_)))
            }
            _ => {
                let (reply, _) = peer.request::<_, MetaReply>(request, &[], LIMIT).await?;
                Ok(is_answer(kind, &reply))
            }
        }
    };
    let answered: Result<bool, Error> = tokio::time::timeout(LIMIT, first).await.unwrap();
    assert!(matches!(answered, Ok(true)), "{kind:?} of {whose:?}: {answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_request_is_answered_for_those_whom_it_is_for_and_refused_by_its_first_byte_for_others() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    made(&mut honest, Ino::ROOT, "home", NewInode::Directory).await;
    for whose in ALL {
        let (endpoint, peer) = peer_of(&cluster, &whose.subject()).await;
        for (byte, kind) in kinds() {
            if may_send(kind).contains(&whose) {
                let is_client = CLIENTS.contains(&whose);
                let session = if is_client { opened(&cluster, &endpoint, true).await } else { honest.id };
                let request = example(kind, session);
                assert_eq!(request.kind(), kind);
                assert_answered(&peer, &request, whose).await;
                continue;
            }
            // Behind the first byte come some that decode to nothing: only the role can be the reason.
            let garbage = peer.request::<_, MetaReply>(&(byte, [0xff_u8; 32]), &[], LIMIT).await;
            let right = peer.request::<_, MetaReply>(&example(kind, honest.id), &[], LIMIT).await;
            for asked in [garbage, right] {
                let is_role = |reason: &str| reason.contains("the certificate says");
                let is_refused = matches!(&asked, Err(Error::Refused { reason, .. }) if is_role(reason));
                assert!(is_refused, "{kind:?} of {whose:?}: {asked:?}");
            }
        }
    }
    honest.create("goes-on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kind_of_request_is_answered_for_whoever_was_revoked() {
    let cluster = Cluster::start(1).await;
    let mut honest = cluster.session().await;
    for role in [Role::Client, Role::Blockd, Role::Metad, Role::Admin] {
        let (_endpoint, peer) = peer_of(&cluster, &Subject::new(role, "revoked")).await;
        peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.unwrap();
        let target = CertTarget { text: "revoked".to_owned(), role: Some(role), issuer: false };
        let revoked = cluster.admin(AdminRequest::RevokeCert { target, force: true, reason: String::new() }).await;
        assert!(matches!(revoked, AdminReply::Report(_)), "{revoked:?}");
        let started = Instant::now();
        while peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], LIMIT).await.is_ok() {
            assert!(started.elapsed() < LIMIT, "{role} is still served");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for (_, kind) in kinds() {
            let asked = loop {
                match peer.request::<_, MetaReply>(&example(kind, honest.id), &[], LIMIT).await {
                    // It was under way when the connection ended.
                    Err(Error::Unanswered { .. }) if started.elapsed() < LIMIT => {}
                    asked => break asked,
                }
            };
            assert!(matches!(asked, Err(Error::Revoked { .. })), "{kind:?} of {role}: {asked:?}");
        }
    }
    honest.create("goes-on").await;
}

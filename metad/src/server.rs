//! What metad answers: which peer may ask what, and where each question goes.

mod admin;
mod backup;
mod batcher;
mod blockds;
mod cert;
mod clock;
mod enroll;
mod events;
mod fsck;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod orphan_turns;
mod rotate;
mod sessions;
mod space;
mod tickets;
mod turns;
mod validate;
mod wrong_secrets;

pub use batcher::Batcher;
pub use clock::Clock;
pub use events::Events;
pub use orphan_turns::OrphanTurns;
pub use sessions::{Followed, expire_silent};
pub use turns::Turns;
pub use wrong_secrets::WrongSecrets;

use crate::Shared;
use crate::error::ProposeError;
use crate::fs::judge::{self, Answered};
use crate::fs::session::Opening;
use crate::fs::{read, settings};
use crate::in_place::in_place;
use crate::lease::{self, Asked, Granted};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use wire::FsError;
use wire::caller::Caller;
use wire::ids::{Ino, MetadId, SessionId};
use wire::limits::{
    HEAD_BYTES_MAX, LISTED_CONTENTS_BYTES_MAX, TRUST_STEP_BYTES_MAX, TRUST_STEPS_MAX, XATTR_VALUE_BYTES_MAX,
};
use wire::message::admin::AdminRequest;
use wire::message::enroll::{EnrollReply, EnrollRequest};
use wire::message::meta::{MetaReply, MetaRequest, MetaRequestKind, Redirect};
use wire::op::{Read, ReadReply, With};
use wire::quic::{Incoming, Service};
use wire::tls::{PeerIdentity, Role, Subject};

/// How often a read is tried when something changes during it; the last answer comes without a lease.
const READ_ATTEMPTS: usize = 5;

/// Answers peers.
pub struct Server {
    /// What all parts of the node share.
    pub shared: Arc<Shared>,
}

impl Service for Server {
    fn authorize(&self, peer: &PeerIdentity) -> Result<(), wire::Error> {
        // Every role has something to ask of metad; what it may ask is decided per request.
        peer.subject.check_enforced().inspect_err(|error| self.refused(peer.addr, &peer.subject, &error.to_string()))
    }

    fn serves_ended(&self, request: &Incoming) -> bool {
        matches!(request.kind(), Ok(MetaRequestKind::Renew))
    }

    fn refused(&self, addr: SocketAddr, subject: &Subject, reason: &str) {
        let who = format!("{} {}", subject.role, subject.name);
        self.shared.refused.add(self.shared.clock.now(), &who, addr, reason);
    }

    async fn enroll(self: Arc<Self>, addr: SocketAddr, request: EnrollRequest) -> EnrollReply {
        self.answer_newcomer(addr, request).await
    }

    async fn handle(self: Arc<Self>, peer: Arc<PeerIdentity>, mut incoming: Incoming) {
        // The role is checked on the first bytes: nothing else is decoded for a peer that may not ask.
        let kind = match incoming.kind::<MetaRequestKind>() {
            Ok(kind) => kind,
            Err(error) => return incoming.refuse(&error.to_string()).await,
        };
        if let Some(needed) = needed_role(kind).filter(|role| *role != peer.subject.role) {
            let reason = format!("this is for the role {needed}, and the certificate says {}", peer.subject.role);
            self.refused(peer.addr, &peer.subject, &reason);
            return incoming.refuse(&reason).await;
        }
        let request = match incoming.decode::<MetaRequest>() {
            Ok(request) => request,
            Err(error) => return incoming.refuse(&error.to_string()).await,
        };
        match request {
            MetaRequest::Raft { to, .. } if to != self.shared.config.id => {
                incoming.respond(&MetaReply::Failed(FsError::NotFound), &[]).await;
            }
            MetaRequest::Raft { kind, .. } => {
                let answer = match incoming.read_payload().await {
                    Ok(payload) => self.shared.consensus.handle(kind, &payload).await,
                    Err(error) => Err(error.to_string()),
                };
                match answer {
                    Ok(bytes) => incoming.respond(&MetaReply::Raft, &[bytes.into()]).await,
                    Err(reason) => incoming.refuse(&reason).await,
                }
            }
            MetaRequest::Backup => self.backup(&peer, incoming).await,
            MetaRequest::Events { session, dirty } => self.events(&peer, session, dirty, incoming).await,
            request => {
                if incoming.reserve_answer(answer_bytes(&request)).await.is_err() {
                    return incoming.refuse_busy("too many answers wait to be fetched").await;
                }
                // Also revoked during that wait: that its connection is closed does not end this.
                if self.shared.endpoint.refusals().refuse(&peer.subject, &peer.certificate) {
                    return incoming.refuse("the certificate was revoked, or its CA was replaced").await;
                }
                // Taken after that wait, which the peer can make long.
                let scans = matches!(request, MetaRequest::Referenced { .. });
                let turn = if scans { self.shared.scans.take(&peer.subject.name) } else { None };
                if scans && turn.is_none() {
                    return incoming.refuse_busy("enough block daemons ask which blocks are referred to").await;
                }
                let reply = self.answer(&peer, request).await;
                // The next one need not wait until this answer has arrived.
                drop(turn);
                incoming.respond(&reply, &[]).await;
            }
        }
    }
}

/// The approximate size of the answer to a request: reserved in the connection's budget before the answer is made.
fn answer_bytes(request: &MetaRequest) -> usize {
    match request {
        MetaRequest::Read {
            read: Read::ReadDir { with: With::Contents, .. } | Read::ReadTree { with: With::Contents, .. },
            ..
        } => (1 << 20) + LISTED_CONTENTS_BYTES_MAX,
        MetaRequest::Read { read: Read::ReadDir { .. } | Read::ReadTree { .. } | Read::Extents { .. }, .. } => 1 << 20,
        MetaRequest::Read { read: Read::GetXattr { .. } | Read::ListXattr { .. }, .. } => XATTR_VALUE_BYTES_MAX,
        MetaRequest::Submit { batch, .. } => batch.ops.len() * (1 << 10),
        MetaRequest::Admin(AdminRequest::Certs) => HEAD_BYTES_MAX,
        MetaRequest::Admin(AdminRequest::Check(_) | AdminRequest::Audit { .. }) => 1 << 20,
        MetaRequest::BlockdHeartbeat(_) => 64 << 10,
        MetaRequest::Trust { .. } => TRUST_STEPS_MAX * TRUST_STEP_BYTES_MAX,
        MetaRequest::Admin(AdminRequest::Rotation) => 64 << 10,
        MetaRequest::BlockReport { blocks, .. } => 32 * blocks.len(),
        MetaRequest::Referenced { .. } => 64 << 10,
        _ => 4 << 10,
    }
}

/// The role that a request is reserved for.
fn needed_role(request: MetaRequestKind) -> Option<Role> {
    match request {
        MetaRequestKind::OpenSession
        | MetaRequestKind::KeepAlive
        | MetaRequestKind::CloseSession
        | MetaRequestKind::Submit
        | MetaRequestKind::Read
        | MetaRequestKind::Acknowledge
        | MetaRequestKind::Events => Some(Role::Client),
        MetaRequestKind::BlockdHeartbeat | MetaRequestKind::BlockReport | MetaRequestKind::Referenced => {
            Some(Role::Blockd)
        }
        MetaRequestKind::Admin | MetaRequestKind::Backup => Some(Role::Admin),
        MetaRequestKind::Raft | MetaRequestKind::NoteRenewal | MetaRequestKind::Issuer => Some(Role::Metad),
        MetaRequestKind::GetLayout | MetaRequestKind::WhoLeads | MetaRequestKind::Renew | MetaRequestKind::Trust => {
            None
        }
    }
}

impl Server {
    /// Answers a request that takes one answer: not a stream of events, nor a message of Raft.
    pub async fn answer(&self, peer: &PeerIdentity, request: MetaRequest) -> MetaReply {
        // Metads that have been off for long may have to be renewed before there is a leader.
        if matches!(request, MetaRequest::Renew) {
            return MetaReply::Renewal(self.renew(peer).await);
        }
        // Between the first election and the cluster's first entry there is nothing to ask about.
        if settings::cluster(&**self.shared.consensus.state()).is_none() {
            return self.not_leader(self.shared.consensus.leader().await);
        }
        let answered = match request {
            MetaRequest::Read { session, read, delegate, sends, caller } => {
                // A client that may only read does nothing under delegations, and has nothing to send.
                let may_change = !peer.subject.grant.read_only;
                let asked = (delegate && may_change, sends && may_change);
                self.read(peer, session, (&read, caller), asked).await.map(|reply| self.with_tickets(peer, reply))
            }
            MetaRequest::Submit { session, batch, receipts } => self.submit(peer, session, batch, &receipts).await,
            MetaRequest::OpenSession { host, purpose, caches, resumes, token } => {
                self.open_session(peer, (host, purpose), caches, (resumes, token)).await
            }
            MetaRequest::Acknowledge { session, seqs } => self.acknowledge(peer, session, &seqs).await,
            MetaRequest::KeepAlive { session, epoch } => self.keep_alive(peer, session, epoch).await,
            MetaRequest::CloseSession { session } => self.close_session(peer, session).await,
            MetaRequest::GetLayout => self.layout().await,
            MetaRequest::BlockdHeartbeat(heartbeat) => {
                match validate::heartbeat(&settings::layout(&**self.shared.consensus.state()), &heartbeat) {
                    Ok(()) => self.blockd_heartbeat(peer, heartbeat).await,
                    Err(reason) => Err(ProposeError::Refused(reason)),
                }
            }
            MetaRequest::BlockReport { epoch, blocks, .. } => self.block_report(peer, epoch, &blocks).await,
            MetaRequest::Referenced { epoch, from, last } => self.referenced(peer, epoch, from, last).await,
            MetaRequest::Admin(request) => self.admin(peer, request).await,
            MetaRequest::WhoLeads => Ok(self.not_leader(self.shared.consensus.leader().await)),
            MetaRequest::NoteRenewal(renewal) => self.note_renewal(renewal).await,
            MetaRequest::Trust { version } => Ok(self.trust_steps(version)),
            MetaRequest::Issuer => Ok(MetaReply::Issuer(self.shared.signing_issuer().map(|issuer| issuer.authority()))),
            // Handled before.
            MetaRequest::Raft { .. } | MetaRequest::Events { .. } | MetaRequest::Backup | MetaRequest::Renew => {
                Ok(MetaReply::Failed(FsError::NotSupported))
            }
        };
        match answered {
            Ok(reply) => reply,
            Err(ProposeError::NotLeader(leader)) => self.not_leader(leader),
            Err(ProposeError::Unknown) => self.not_leader(None),
            Err(ProposeError::Refused(reason)) => {
                tracing::warn!(reason, "request failed");
                self.not_leader(None)
            }
        }
    }

    async fn acknowledge(
        &self,
        peer: &PeerIdentity,
        session: SessionId,
        seqs: &[u64],
    ) -> Result<MetaReply, ProposeError> {
        // The leader waits for this: no other node may let the session believe that it has arrived.
        if self.shared.consensus.leadership().is_none() {
            return Err(ProposeError::NotLeader(self.shared.consensus.leader().await));
        }
        if self.owns(peer, session) {
            self.shared.acknowledged(session, seqs);
        }
        Ok(MetaReply::Done)
    }

    fn not_leader(&self, leader: Option<MetadId>) -> MetaReply {
        let (since, nodes) = self.shared.consensus.settled_members();
        let find = |id: MetadId| nodes.iter().find(|(node, _)| *node == id).copied();
        // One that was removed is told nothing any more: what it believes about the leader is old.
        let leader = find(self.shared.config.id).and(leader).and_then(find);
        let (term, _) = self.shared.consensus.progress();
        MetaReply::NotLeader(Redirect { leader, nodes, term, since })
    }

    async fn layout(&self) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        Ok(MetaReply::Layout(settings::layout(&**self.shared.consensus.state())))
    }

    async fn read(
        &self,
        peer: &PeerIdentity,
        session: SessionId,
        (question, caller): (&Read, Option<Caller>),
        (delegate, sends): (bool, bool),
    ) -> Result<MetaReply, ProposeError> {
        self.hear(peer, session);
        self.shared.consensus.read_barrier().await?;
        let Some(owned) = self.owned(peer, session) else {
            return Ok(MetaReply::Failed(FsError::SessionExpired));
        };
        let client = Some(lease::client_number(&owned.opening.client));
        let confined = Some(owned.opening).filter(|opening| opening.confined.is_some());
        let asker = Asker { session, confined, caller };
        self.shared.liveness.heard_session(session, peer);
        if matches!(question, Read::StatFs) {
            self.shared.liveness.wait_heard(&settings::layout(&**self.shared.consensus.state())).await;
        }
        if question.ino().is_none() {
            return Ok(unleased(self.look(&asker, question).reply));
        }
        let mut question = Cow::Borrowed(question);
        for round in 0..READ_ATTEMPTS {
            if round > 0 {
                narrow(&mut question, round);
            }
            let question = &*question;
            if self.shared.wait_for_others(Some(session)).await? || round > 0 {
                // I2: another node may lead by now, and have answered what this one knows nothing of.
                self.shared.consensus.read_barrier().await?;
            }
            let stamp = self.shared.lease_stamp().ok_or(ProposeError::Unknown)?;
            let Answered { reply: answer, above } = self.look(&asker, question);
            let mut inos = inos_in_answer(question, answer.as_ref().ok());
            match above {
                // What others have not sent yet may move it out.
                Some(above) => inos.extend(above),
                // Nobody is disturbed for what lies elsewhere.
                None => return Ok(unleased(answer.and(Err(FsError::NotFound)))),
            }
            // Absence is an answer too; any other error is nothing to rely on.
            let lease = question.is_cached() && matches!(answer, Ok(_) | Err(FsError::NotFound));
            match self.shared.grant(session, &inos, stamp, Asked { client, lease, delegate, sends }).await {
                Granted::Leases(delegated) => {
                    return Ok(MetaReply::Read { answer, leased: true, delegated, tickets: Vec::new() });
                }
                Granted::Nothing => return Ok(unleased(answer)),
                Granted::Overtaken => {}
            }
        }
        self.shared.consensus.read_barrier().await?;
        Ok(unleased(self.look(&asker, &question).reply))
    }

    fn look(&self, asker: &Asker, question: &Read) -> Answered {
        let state = self.shared.consensus.state();
        let session = asker.session;
        if let Some(confined) = asker.confined.as_ref().filter(|_| !matches!(question, Read::StatFs)) {
            return in_place(|| judge::answer(&**state, (session, confined), asker.caller.as_ref(), question));
        }
        let reply = match question {
            Read::StatFs => {
                let layout = settings::layout(&**state);
                Ok(ReadReply::StatFs(self.shared.liveness.statfs(&layout, settings::inode_count(&**state))))
            }
            // Whether a confined client sees what it has locked takes walks.
            Read::ReadDir { .. } | Read::ReadTree { .. } | Read::GetLock { .. } => {
                in_place(|| read::read(&**state, session, question))
            }
            // A few look-ups in memory: passing them to another thread would cost more than they do.
            _ => read::read(&**state, session, question),
        };
        Answered { reply, above: Some(Vec::new()) }
    }
}

/// Who asks a question.
struct Asker {
    session: SessionId,
    /// How the session was opened, if it is one of a confined client.
    confined: Option<Opening>,
    caller: Option<Caller>,
}

/// Leaves out what would be read ahead, because others are at work there; if they go on, also what only a leased answer is
/// good for.
fn narrow(question: &mut Cow<'_, Read>, round: usize) {
    let narrowed = |with: With| if round > 1 { with.min(With::Attributes) } else { with };
    match **question {
        Read::ReadTree { ino, limit, with, .. } => {
            let with = narrowed(with.max(With::Attributes));
            *question = Cow::Owned(Read::ReadDir { ino, after: 0, limit, with });
        }
        Read::ReadDir { ino, after, limit, with } => {
            *question = Cow::Owned(Read::ReadDir { ino, after, limit, with: narrowed(with) });
        }
        _ => {}
    }
}

fn unleased(answer: Result<ReadReply, FsError>) -> MetaReply {
    MetaReply::Read { answer, leased: false, delegated: Vec::new(), tickets: Vec::new() }
}

/// Returns the inodes that an answer is about. `None` stands for an absent name.
fn inos_in_answer(question: &Read, reply: Option<&ReadReply>) -> Vec<Ino> {
    let mut inos: Vec<Ino> = question.ino().into_iter().collect();
    match reply {
        Some(ReadReply::Attr(attr) | ReadReply::Opened { attr, .. }) => inos.push(attr.ino),
        Some(ReadReply::Page { entries, .. }) => {
            inos.extend(entries.iter().filter(|entry| entry.attr.is_some()).map(|entry| entry.ino));
        }
        Some(ReadReply::Tree(dirs)) => {
            inos.extend(dirs.iter().map(|dir| dir.ino));
            inos.extend(dirs.iter().flat_map(|dir| &dir.entries).map(|entry| entry.ino));
        }
        _ => {}
    }
    inos
}

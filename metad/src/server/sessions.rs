//! Sessions: opening, keeping alive, batches, and the end of silent ones.

use super::events::EventQueue;
use super::{Events, READ_ATTEMPTS, Server, enroll, tickets, validate};
use crate::Shared;
use crate::error::ProposeError;
use crate::fs::borders::Borders;
use crate::fs::session::{self, Confined, Opening, Session};
use crate::fs::subtree::Scope;
use crate::fs::view::Kv;
use crate::fs::{Command, CommandReply, Refused, Stamped, borders, lifetime, lock, orphan, settings};
use crate::in_place::in_place;
use crate::lease::{self, Asked, Granted, table::Extension};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use wire::attr::FileKind;
use wire::ids::{Ino, LayoutEpoch, SessionId};
use wire::limits::{SESSION_TEXT_BYTES_MAX, SESSION_TTL_MS};
use wire::message::event::MetaEvent;
use wire::message::meta::{LeaseState, MetaReply};
use wire::op::{Batch, Op, OpFailed, OpReply};
use wire::quic::Incoming;
use wire::ticket::Receipt;
use wire::tls::{ClientGrant, PeerIdentity, Squash};
use wire::{FsError, trace};

/// Unlinked inodes that one answer asks about. The next answer goes on from there.
const ORPHANS_ASKED: usize = 4096;
/// Sessions closed by one entry of the log.
const CLOSED_AT_ONCE: usize = 16;
/// Pause between looks for silent sessions.
const EXPIRY_PAUSE: Duration = Duration::from_secs(2);

impl Server {
    /// Returns whether the session is alive and was opened by this peer's certificate.
    pub(super) fn owns(&self, peer: &PeerIdentity, id: SessionId) -> bool {
        self.owned(peer, id).is_some()
    }

    /// Returns the session if it is alive and was opened by this peer's certificate, or by one that had the same bounds.
    pub(super) fn owned(&self, peer: &PeerIdentity, id: SessionId) -> Option<Session> {
        session::find(&**self.shared.consensus.state(), id).filter(|session| is_of(session, peer))
    }

    /// Records that a session is alive, even if it will get no answer: it is not the session that is silent while this
    /// node cannot know that it leads, or the cluster has no leader.
    pub(super) fn hear(&self, peer: &PeerIdentity, id: SessionId) {
        if self.owns(peer, id) {
            self.shared.liveness.heard_session(id, peer);
        }
    }

    pub(super) async fn open_session(
        &self,
        peer: &PeerIdentity,
        (host, purpose): (String, String),
        caches: bool,
        (resumes, token): (Option<SessionId>, Option<u64>),
    ) -> Result<MetaReply, ProposeError> {
        if host.len().max(purpose.len()) > SESSION_TEXT_BYTES_MAX {
            return Ok(MetaReply::Failed(FsError::Invalid));
        }
        let confined = bounds(peer);
        if confined.is_some() {
            tickets::renew_key(&self.shared).await?;
        }
        let client = peer.subject.name.clone();
        let opening = Opening { host, purpose, client, caches, resumes, token, confined };
        // Sessions are notified under one leadership: another one might let them believe that they are alone.
        let Some(term) = self.shared.consensus.leadership() else {
            return Err(ProposeError::NotLeader(self.shared.consensus.leader().await));
        };
        if opening.token.is_some() {
            self.shared.consensus.read_barrier().await?;
            // One that asks again is answered at once: nobody has to give up anything for it.
            if let Some(id) = lifetime::opened(&**self.shared.consensus.state(), &opening) {
                return Ok(self.opened(peer, id));
            }
        }
        let arriving = if caches { Some(self.shared.arrive().await?) } else { None };
        if let Some(path) = &peer.subject.grant.subtree {
            self.settle_way(path).await?;
        }
        let stamped = Stamped { now: self.shared.clock.now(), command: Command::OpenSession(opening) };
        let reply = self.shared.consensus.propose_in(Some(term), stamped).await?;
        drop(arriving);
        let id = match reply {
            CommandReply::Session(id) => id,
            CommandReply::Stale => {
                tracing::warn!(client = peer.subject.name, "no session: there are as many as there may be");
                return Ok(MetaReply::Failed(FsError::Busy));
            }
            CommandReply::Failed(error) => {
                let (client, path) = (&peer.subject.name, &peer.subject.grant.subtree);
                tracing::warn!(client, path, %error, "no session: the client's subtree is not there");
                return Ok(MetaReply::Failed(error));
            }
            _ => return Err(ProposeError::Unknown),
        };
        if let Some(old) = resumes.filter(|old| session::find(&**self.shared.consensus.state(), *old).is_none()) {
            self.shared.forget_leases(old);
        }
        Ok(self.opened(peer, id))
    }

    fn opened(&self, peer: &PeerIdentity, id: SessionId) -> MetaReply {
        let state = &**self.shared.consensus.state();
        self.shared.liveness.heard_session(id, peer);
        MetaReply::Session {
            session: id,
            ttl_ms: SESSION_TTL_MS,
            now: self.shared.clock.now(),
            layout: settings::layout(state),
            root: session::find(state, id).map_or(Ino::ROOT, |found| found.opening.root()),
            squash: peer.subject.grant.squash,
        }
    }

    /// Waits until others have sent what they did in the directories along a path, under delegations: whoever follows it
    /// then comes to where it leads.
    async fn settle_way(&self, path: &str) -> Result<(), ProposeError> {
        self.shared.wait_for_others(None).await?;
        for _ in 0..READ_ATTEMPTS {
            self.shared.consensus.read_barrier().await?;
            let stamp = self.shared.lease_stamp().ok_or(ProposeError::Unknown)?;
            let (way, _) = in_place(|| borders::way_along(&**self.shared.consensus.state(), path));
            let asked = Asked { client: None, lease: false, delegate: false, sends: false };
            // It is no session's yet: none has this number.
            if !matches!(self.shared.grant(SessionId::default(), &way, stamp, asked).await, Granted::Overtaken) {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn keep_alive(
        &self,
        peer: &PeerIdentity,
        id: SessionId,
        epoch: LayoutEpoch,
    ) -> Result<MetaReply, ProposeError> {
        self.hear(peer, id);
        self.shared.consensus.read_barrier().await?;
        if !self.owns(peer, id) {
            return Ok(MetaReply::Failed(FsError::SessionExpired));
        }
        self.shared.liveness.heard_session(id, peer);
        self.shared.undelegate_if_short(id);
        let state = self.shared.consensus.state();
        let layout = settings::layout(&**state);
        Ok(MetaReply::Alive {
            now: self.shared.clock.now(),
            orphans: self
                .shared
                .orphan_turns
                .next(id, ORPHANS_ASKED, |first| orphan::of_session(&**state, id, first, ORPHANS_ASKED)),
            layout: (layout.epoch != epoch).then_some(layout),
            leases: match self.shared.extend_leases(id) {
                (Extension::Extended, alone) => LeaseState::Extended { alone },
                (Extension::Pending, _) => LeaseState::Pending,
                (Extension::NotAttached, _) => LeaseState::None,
            },
        })
    }

    /// Serves a session's stream of events.
    pub(super) async fn events(&self, peer: &PeerIdentity, id: SessionId, dirty: bool, incoming: Incoming) {
        match self.follow(peer, id, dirty).await {
            Ok(Followed { events, _attached }) => Events::serve(events, incoming.into_events()).await,
            Err(reason) => incoming.refuse(reason).await,
        }
    }

    /// Begins a session's stream of events, and lets the session hold leases while it follows the stream.
    ///
    /// # Errors
    /// The reason why there is no stream.
    pub async fn follow(&self, peer: &PeerIdentity, id: SessionId, dirty: bool) -> Result<Followed, &'static str> {
        if self.shared.consensus.read_barrier().await.is_err() {
            return Err("another node leads");
        }
        if !self.owns(peer, id) {
            return Err("this session has ended, or is another's");
        }
        let Some(found) = self.owned(peer, id) else { return Err("this session has just ended") };
        let (caches, root) = (found.opening.caches, found.opening.confined.map(|confined| confined.root));
        // In this order: recalls from now on go to the stream.
        let (stream, events) = self.shared.events.open(id, root);
        if caches {
            let seq = self.shared.attach((id, root), peer, stream, dirty);
            self.shared.events.send(id, &MetaEvent::Attached { seq });
        }
        Ok(Followed { events, _attached: Attached { shared: self.shared.clone(), id, stream } })
    }

    pub(super) async fn close_session(&self, peer: &PeerIdentity, id: SessionId) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        if self.owns(peer, id) {
            self.shared.propose(Command::CloseSessions(vec![id])).await?;
            self.shared.forget_leases(id);
        }
        Ok(MetaReply::Done)
    }

    pub(super) async fn submit(
        &self,
        peer: &PeerIdentity,
        id: SessionId,
        mut batch: Batch,
        receipts: &[Receipt],
    ) -> Result<MetaReply, ProposeError> {
        let state = self.shared.consensus.state();
        let mut known = session::find_or_ended(&**state, id);
        if known.is_none() {
            // It may have been opened under another leader, and not have been applied here yet.
            self.shared.consensus.read_barrier().await?;
            known = session::find_or_ended(&**state, id);
        }
        // A session of another certificate is out of reach.
        if known.as_ref().is_some_and(|session| !is_of(session, peer)) {
            return Ok(MetaReply::Failed(FsError::SessionExpired));
        }
        // A session that is not known here after the barrier is known nowhere: it disturbs nobody.
        let Some(known) = known else { return Ok(MetaReply::Failed(FsError::SessionExpired)) };
        if let Err(failed) = validate::batch(&batch, !peer.subject.grant.read_only) {
            return Ok(MetaReply::Batch { reply: Err(failed), leased: None, delegated: Vec::new() });
        }
        self.shared.liveness.heard_session(id, peer);
        let client = lease::client_number(&known.opening.client);
        let mut of = lease::Submitter {
            session: id,
            client,
            has_ended: known.has_ended(),
            is_confined: false,
            asks_again: false,
        };
        if let Some(confined) = &known.opening.confined {
            of.is_confined = true;
            if of.has_ended {
                // Nothing of it is carried out any more: only a stored reply counts.
                batch.ops.clear();
            } else {
                match self.check_borders((id, client), confined.root, &mut batch).await? {
                    Checked::Within => {
                        if let Err(failed) = self.check_receipts(&peer.certificate.key, receipts, &batch.ops) {
                            return Ok(MetaReply::Batch { reply: Err(failed), leased: None, delegated: Vec::new() });
                        }
                    }
                    Checked::Applied => of.asks_again = true,
                    Checked::Refused(failed) => {
                        return Ok(MetaReply::Batch { reply: Err(failed), leased: None, delegated: Vec::new() });
                    }
                }
            }
        } else {
            // Only of a confined client it matters.
            batch.caller = None;
        }
        self.shared.undelegate_if_short(id);
        if !of.has_ended
            && let Some(failed) = self.lacks_space(id, &batch).await?
        {
            return Ok(MetaReply::Batch { reply: Err(failed), leased: None, delegated: Vec::new() });
        }
        // Noted before anything else can happen: another attempt waits for this one.
        let is_new = !of.has_ended && !of.asks_again;
        let under_way = is_new.then(|| self.shared.under_way.begin((id, batch.seq)));
        let unlocked = unlocked_by(&**state, id, &batch.ops, of.is_confined);
        // In a task of its own: it runs to its end though this request's connection is lost.
        let carrying_out = trace::carried(lease::submit(self.shared.clone(), of, batch));
        let carried_out = self.shared.changes.spawn(async move {
            let _under_way = under_way;
            carrying_out.await
        });
        let submitted = carried_out.await.map_err(|_| ProposeError::Unknown)??;
        Ok(match submitted.outcome {
            Ok(reply) => {
                // What the first attempt has changed, others were told then.
                let is_told = of.is_confined && (of.asks_again || of.has_ended);
                if let Ok(replies) = reply.as_ref()
                    && !is_told
                {
                    self.notify_others(id, &unlocked, replies);
                }
                MetaReply::Batch { reply, leased: submitted.leased, delegated: submitted.delegated }
            }
            Err(Refused::NoSession | Refused::OutOfWindow) => MetaReply::Failed(FsError::SessionExpired),
            // The client sends it again, as after a change of the leader.
            Err(Refused::EntryFull) => return Err(ProposeError::Unknown),
        })
    }

    /// Refuses a batch that names inodes outside of a client's subtree, before it disturbs anybody there. It is judged once
    /// more when it is applied. A batch that was applied already is emptied: only its stored reply counts, whatever operations
    /// come with its number now.
    async fn check_borders(
        &self,
        (id, client): (SessionId, u64),
        root: Ino,
        batch: &mut Batch,
    ) -> Result<Checked, ProposeError> {
        // On an older state, what the client has just made is not there.
        self.shared.consensus.read_barrier().await?;
        let state = &**self.shared.consensus.state();
        // The client chooses how much there is to look at.
        let looked_at = in_place(|| {
            let seq = batch.seq;
            let looked_at = (!session::has_reply(state, id, seq))
                .then(|| looked_at(state, Scope { root, session: id }, &mut batch.ops));
            // Looked for again: it may have been sent twice, and be applied meanwhile.
            looked_at.filter(|looked_at| looked_at.is_ok() || !session::has_reply(state, id, seq))
        });
        let above = match looked_at {
            Some(Ok(above)) => above,
            Some(Err(failed)) => return Ok(Checked::Refused(failed)),
            None => {
                batch.ops.clear();
                return Ok(Checked::Applied);
            }
        };
        // What others have not sent yet may move it out.
        let stamp = self.shared.lease_stamp().ok_or(ProposeError::Unknown)?;
        let asked = Asked { client: Some(client), lease: false, delegate: false, sends: false };
        self.shared.grant(id, &above, stamp, asked).await;
        Ok(Checked::Within)
    }

    /// Sends other sessions the events that concern them.
    fn notify_others(&self, id: SessionId, unlocked: &[Ino], replies: &[OpReply]) {
        let state = &**self.shared.consensus.state();
        let seen_by = |confined: &[(SessionId, Ino)], inos: &[Ino]| borders::seen_by(state, confined, inos);
        self.shared.events.send_unlocked(id, unlocked, &seen_by);
        self.shared.events.send_orphaned(id, &orphans_in(replies), &seen_by);
    }
}

/// What was found of a batch of a confined client, before it is carried out.
enum Checked {
    /// It names what the client sees.
    Within,
    /// It was applied before.
    Applied,
    /// It names something else.
    Refused(OpFailed),
}

/// Returns the inodes on which a session gives up locks, each once; of a session that `is_confined`, only those on which it has
/// some. Others may ask again for what they have given up: those who wait hear of it twice rather than never.
fn unlocked_by(state: &dyn Kv, id: SessionId, ops: &[Op], is_confined: bool) -> Vec<Ino> {
    let (mut locked, mut unlocked) = (BTreeSet::new(), BTreeSet::new());
    for op in ops {
        match op.plain() {
            Op::SetLock { ino, .. } => {
                locked.insert(*ino);
            }
            Op::Unlock { ino, .. } if !is_confined || locked.contains(ino) || lock::holds(state, id, *ino) => {
                unlocked.insert(*ino);
            }
            _ => {}
        }
    }
    unlocked.into_iter().collect()
}

/// Returns the directories that decide whether a client sees what some operations name, if all of it is to be carried out.
fn looked_at(state: &dyn Kv, scope: Scope, ops: &mut [Op]) -> Result<Vec<Ino>, OpFailed> {
    let mut borders = Borders::new(state, scope, ops.len());
    for (index, op) in ops.iter_mut().enumerate() {
        borders.check(op).map_err(|error| OpFailed { index: index as u32, error })?;
    }
    Ok(borders.above())
}

/// Returns the bounds of a client by its certificate. Where its subtree is remains to be found.
fn bounds(peer: &PeerIdentity) -> Option<Confined> {
    let ClientGrant { subtree, squash, read_only: _ } = &peer.subject.grant;
    let is_confined = subtree.is_some() || *squash != Squash::None;
    is_confined.then(|| Confined { subtree: subtree.clone(), root: Ino::ROOT, squash: *squash })
}

fn is_of(session: &Session, peer: &PeerIdentity) -> bool {
    session.opening.client == peer.subject.name && session.opening.fits(&peer.subject.grant)
}

/// Returns the inodes that have lost their last entry, and that sessions may hold open.
fn orphans_in(replies: &[OpReply]) -> Vec<Ino> {
    let removed = replies.iter().filter_map(|reply| match reply {
        OpReply::Removed { attr, .. } | OpReply::Renamed { replaced: Some(attr), .. } => Some(attr),
        _ => None,
    });
    // A directory is gone at once: nobody is asked about it.
    let orphans = removed.filter(|attr| attr.nlink == 0 && attr.kind != FileKind::Directory);
    orphans.map(|attr| attr.ino).collect()
}

/// The events of a session. The session is detached when this is dropped.
pub struct Followed {
    events: EventQueue,
    _attached: Attached,
}

impl Followed {
    /// Returns the next event, or `None` when there are no more. Cancel-safe.
    pub async fn next(&mut self) -> Option<MetaEvent> {
        self.events.next().await
    }
}

/// A session whose events are served. It is detached when this is dropped, as when its connection is lost.
struct Attached {
    shared: Arc<Shared>,
    id: SessionId,
    stream: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.shared.events.close(self.id, self.stream);
        self.shared.detach(self.id, self.stream);
    }
}

/// Ends sessions that have been silent for too long, until cancelled. Silence counts only while this node could have
/// answered: when it becomes the leader, or has a majority again, every session gets the full time.
pub async fn expire_silent(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(EXPIRY_PAUSE).await;
        shared.checks.forget_idle();
        // Checked each time, and not only when a session seems silent: without a majority no session can be answered,
        // and those that looked for another leader meanwhile were not heard here.
        let leads = timeout(EXPIRY_PAUSE, shared.consensus.read_barrier()).await;
        if !matches!(leads, Ok(Ok(()))) {
            shared.liveness.forget_sessions();
            continue;
        }
        if !matches!(timeout(EXPIRY_PAUSE, tickets::renew_key(&shared)).await, Ok(Ok(()))) {
            tracing::debug!("another key for block tickets is made later");
        }
        // The majority may be lost while this waits for it.
        if timeout(EXPIRY_PAUSE, enroll::expire_tokens(&shared)).await.is_err() {
            shared.liveness.forget_sessions();
            continue;
        }
        let all: Vec<SessionId> = session::living(&**shared.consensus.state()).into_iter().collect();
        let silent = shared.liveness.silent_sessions(&all, Duration::from_millis(SESSION_TTL_MS));
        if !silent.is_empty() {
            tracing::info!(?silent, "sessions expired");
        }
        // In small steps: other commands go in between.
        for step in silent.chunks(CLOSED_AT_ONCE) {
            match shared.propose(Command::CloseSessions(step.to_vec())).await {
                Ok(_) => step.iter().for_each(|id| shared.forget_leases(*id)),
                Err(error) => {
                    tracing::debug!(%error, "sessions will be closed later");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::keys;
    use crate::fs::view::MemoryKv;
    use wire::attr::{Creator, InodeAttr, Timestamp};
    use wire::op::{Lock, LockFamily};

    #[test]
    fn a_confined_session_releases_only_locks_that_it_has() {
        let (mut kv, holder) = (MemoryKv::default(), SessionId(7));
        kv.0.insert(keys::session_lock(holder, Ino(2)), Vec::new());
        let family = LockFamily::Flock;
        let unlock = |ino| Op::Unlock { ino: Ino(ino), family, owner: 1, start: 0, end: 1 };
        let lock = Lock { family, owner: 1, pid: 1, start: 0, end: 1, exclusive: true };
        let ops = [unlock(2), unlock(3), Op::SetLock { ino: Ino(4), lock }, unlock(4), unlock(2)];
        assert_eq!(unlocked_by(&kv, holder, &ops, true), [Ino(2), Ino(4)]);
        assert_eq!(unlocked_by(&kv, SessionId(8), &ops, true), [Ino(4)]);
        assert_eq!(
            unlocked_by(&kv, SessionId(8), &ops, false),
            [Ino(2), Ino(3), Ino(4)],
            "an answer may have been lost"
        );
    }

    #[test]
    fn sessions_are_asked_about_removed_files_and_not_about_directories() {
        let gone = |ino, kind| {
            let creator = Creator { mode: 0o755, uid: 0, gid: 0 };
            InodeAttr { nlink: 0, ..InodeAttr::new(Ino(ino), kind, creator, Timestamp::default()) }
        };
        let linked = InodeAttr { nlink: 1, ..gone(9, FileKind::Regular) };
        let replies = [
            OpReply::Removed { attr: gone(2, FileKind::Regular), orphaned: true },
            OpReply::Removed { attr: gone(3, FileKind::Directory), orphaned: false },
            OpReply::Removed { attr: linked.clone(), orphaned: false },
            OpReply::Renamed { moved: linked.clone(), replaced: Some(gone(4, FileKind::Fifo)), orphaned: false },
            OpReply::Renamed { moved: linked.clone(), replaced: Some(gone(5, FileKind::Directory)), orphaned: false },
            OpReply::Attr(linked),
        ];
        assert_eq!(orphans_in(&replies), [Ino(2), Ino(4)]);
    }
}

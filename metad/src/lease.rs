//! Read leases: what clients may answer from their caches, and how a change revokes it first. Leases make caching fast,
//! versions make it safe.
//!
//! `table` knows which session holds what, without a clock or a network; `touched` knows what a batch changes; this
//! module does the waiting. Only the leader grants leases. A new leader begins with an empty table, and its first
//! changes wait until every session has attached to it, or until the leases of the previous leader have run out.

mod leadership;
pub mod patience;
pub mod table;
mod touched;
mod under_way;

pub use leadership::Leases;
pub(crate) use under_way::UnderWay;

use crate::Shared;
use crate::error::ProposeError;
use crate::fs::view::Kv;
use crate::fs::{Refused, borders, session};
use crate::in_place::in_place;
use std::collections::BTreeSet;
use std::sync::Arc;
use table::{Extension, Notice, Table};
use tokio::time::Instant;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::{Ino, SessionId};
use wire::message::event::MetaEvent;
use wire::op::{Batch, BatchReply, Op, OpFailed};
use wire::tls::PeerIdentity;

/// How often a batch looks anew where its names lead, after it has waited for those who had leases there.
const LOOKED_AGAIN_MAX: usize = 3;

/// Operations that are looked up without leaving the thread.
const LOOKED_UP_AT_ONCE: usize = 64;

/// A change under way; it ends when this is dropped.
pub(crate) struct Changing<'a> {
    shared: &'a Shared,
    term: u64,
    session: SessionId,
    inos: Vec<Ino>,
    /// Confined sessions out of whose subtrees directories may move.
    crossing: Vec<SessionId>,
}

impl Changing<'_> {
    /// Returns whether the session holds leases on all that it has touched, and the inodes on which it has delegations.
    /// It has them on what was `made` in any case, unless another session has come to that.
    fn end(mut self, made: &[Ino]) -> (bool, Vec<Ino>) {
        self.finish(made).unwrap_or_default()
    }

    fn finish(&mut self, made: &[Ino]) -> Option<(bool, Vec<Ino>)> {
        let (inos, session) = (std::mem::take(&mut self.inos), self.session);
        let crossing = std::mem::take(&mut self.crossing);
        // What a later leadership of this node knows does not concern this change.
        let same = self.shared.consensus.leadership().filter(|term| *term == self.term)?;
        if inos.is_empty() && crossing.is_empty() {
            return None;
        }
        let may_delegate = !self.shared.consensus.is_short_of_space();
        let end = |table: &mut Table| {
            let leased = table.end(session, &inos);
            table.crossed(&crossing);
            let ours = if leased { &inos } else { made };
            let granted = leased || table.grant_made(session, made);
            let delegated =
                if granted && may_delegate { table.delegate(session, ours, Instant::now()) } else { Vec::new() };
            (leased, delegated)
        };
        self.shared.leases.with(Some(same), end)
    }
}

/// Returns the number of the client with this name in its certificate: all of its sessions are one client.
pub(crate) fn client_number(name: &str) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(number)
}

/// What a client asks for with a read.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    /// The client, if it is one that has a session.
    pub client: Option<u64>,
    /// It asks for leases.
    pub lease: bool,
    /// It asks for delegations too.
    pub delegate: bool,
    /// It needs the answer to send what was done under delegations.
    pub sends: bool,
}

/// What a session was granted with an answer.
pub(crate) enum Granted {
    /// Nothing: the answer is right now, but may not be cached.
    Nothing,
    /// Leases on all of it, and delegations on these.
    Leases(Vec<Ino>),
    /// Other sessions have changed it meanwhile, or had unsent operations there: it must be read again.
    Overtaken,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.finish(&[]);
    }
}

impl Shared {
    fn leased<R>(&self, work: impl FnOnce(&mut Table) -> R) -> Option<R> {
        self.leases.with(self.consensus.leadership(), work)
    }

    /// Lets a session follow this node's events from now on. Its caches are empty. A confined one has a root.
    pub(crate) fn attach(
        &self,
        (session, root): (SessionId, Option<Ino>),
        peer: &PeerIdentity,
        stream: u64,
        dirty: bool,
    ) -> Option<table::Seq> {
        let seq = self.leased(|table| {
            // A confined client is given no delegations, so nobody waits for what it might have to send.
            let may_delay = !peer.subject.grant.read_only && root.is_none();
            table.introduce(session, client_number(&peer.subject.name), may_delay, root);
            table.attach(session, stream, dirty, Instant::now())
        });
        let seq = seq.flatten();
        self.leases.changed.notify_waiters();
        seq
    }

    /// Records that a session does not follow this node's events by this stream any more.
    pub(crate) fn detach(&self, session: SessionId, stream: u64) {
        self.leased(|table| table.detach(session, stream));
    }

    /// Forgets the leases of a session that has ended.
    pub(crate) fn forget_leases(&self, session: SessionId) {
        self.leased(|table| table.remove(session));
        self.leases.changed.notify_waiters();
    }

    /// Records that a session has done what these events asked for.
    pub(crate) fn acknowledged(&self, session: SessionId, seqs: &[table::Seq]) {
        // Only a new acknowledgement wakes those that wait.
        if self.leased(|table| table.acknowledge(session, seqs)) == Some(true) {
            self.leases.changed.notify_waiters();
        }
    }

    /// Records that a session is alive. Also returns whether it is the only one that caches.
    pub(crate) fn extend_leases(&self, id: SessionId) -> (Extension, bool) {
        let state = self.consensus.state();
        // The sessions are searched only where that can make a difference.
        let only = self.leased(|table| table.is_small()) == Some(true)
            && session::all(&**state).iter().all(|(other, session)| *other == id || !session.opening.caches);
        let extended = self.leased(|table| {
            let alone = only && table.nobody_arrives();
            (table.extend(id, Instant::now(), alone), alone)
        });
        extended.unwrap_or((Extension::NotAttached, false))
    }

    /// Returns a stamp to take before a read.
    pub(crate) fn lease_stamp(&self) -> Option<u64> {
        self.leased(|table| table.stamp())
    }

    /// Grants leases on what was read since the stamp, once no other session has unsent operations there.
    pub(crate) async fn grant(&self, session: SessionId, inos: &[Ino], stamp: u64, asked: Asked) -> Granted {
        let Asked { client, lease, delegate, sends } = asked;
        // What is done under delegations could only be refused later.
        let delegate = delegate && !self.consensus.is_short_of_space();
        let step = self.leased(|table| {
            let now = Instant::now();
            let (notices, mut waits) = table.share(session, inos, now);
            waits.extend(table.dirty_before(session, sends));
            if table.unsettled_until(client, &waits, now).is_some() {
                return Err((notices, waits));
            }
            let (granted, crowded) = if lease { table.grant(session, inos, stamp) } else { (false, None) };
            let delegated = if granted && delegate { table.delegate(session, inos, now) } else { Vec::new() };
            Ok((granted, delegated, crowded, notices, table.may_have_changed(inos, stamp)))
        });
        match step {
            // Another node leads, and knows of delegations that this one does not.
            None => Granted::Overtaken,
            Some(Err((notices, waits))) => {
                self.send_share(notices);
                self.settle(|table, now| table.unsettled_until(client, &waits, now)).await;
                Granted::Overtaken
            }
            Some(Ok((granted, delegated, crowded, notices, changed))) => {
                // These sessions are probably dead: nobody waits for them.
                self.send_share(notices);
                if let Some(Notice { session, seq }) = crowded {
                    self.events.send(session, &MetaEvent::RecallAll { seq });
                }
                match (granted, changed) {
                    (true, _) => Granted::Leases(delegated),
                    (false, true) => Granted::Overtaken,
                    (false, false) => Granted::Nothing,
                }
            }
        }
    }

    fn send_share(&self, notices: Vec<(Notice, Vec<Ino>)>) {
        let asks = !notices.is_empty();
        for (Notice { session, seq }, inos) in notices {
            self.events.send(session, &MetaEvent::Share { seq, inos });
        }
        if asks {
            // Reads that were waiting may now come before what these sessions send.
            self.leases.changed.notify_waiters();
        }
    }

    /// Ends the delegations of a session if space is short: it sends what it did there, and asks before it does more. It is
    /// given no others meanwhile.
    pub(crate) fn undelegate_if_short(&self, id: SessionId) {
        if self.consensus.is_short_of_space() {
            let asked = self.leased(|table| table.undelegate(id, Instant::now()));
            self.send_share(asked.unwrap_or_default());
        }
    }

    /// Waits until every session has acknowledged, or its leases have run out.
    async fn settle(&self, mut open: impl FnMut(&mut Table, Instant) -> Option<Instant>) {
        loop {
            let mut changed = std::pin::pin!(self.leases.changed.notified());
            // Enabled before looking: a change in between must not be missed.
            changed.as_mut().enable();
            let Some(Some(until)) = self.leased(|table| open(table, Instant::now())) else { return };
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }

    /// Waits until no other session answers from leases of an earlier leader, or may have unsent operations from that
    /// time without having reported it. Returns whether that took any time.
    ///
    /// # Errors
    /// As [`Consensus::read_barrier`](crate::consensus::Consensus::read_barrier), while that may matter.
    pub(crate) async fn wait_for_others(&self, id: Option<SessionId>) -> Result<bool, ProposeError> {
        let grace = |table: &Table, now| table.grace_until(std::iter::once(SessionId(u64::MAX)), now);
        if self.leased(|table| grace(table, Instant::now())).flatten().is_none() {
            return Ok(false);
        }
        // A new leader may not have applied yet that a session was opened under the previous one.
        self.consensus.read_barrier().await?;
        // Once, because each session that comes wakes all that wait. Later ones are opened under this leader, and one that
        // ends meanwhile is waited for as long as its leases last.
        let others: Vec<SessionId> = {
            let all = session::all(&**self.consensus.state()).into_iter();
            let caching = all.filter(|(other, session)| Some(*other) != id && session.opening.caches);
            caching.map(|(other, _)| other).collect()
        };
        self.settle(|table, now| {
            grace(table, now)?;
            table.grace_until(others.iter().copied(), now)
        })
        .await;
        Ok(true)
    }

    /// Looks up what a batch touches: in the middle of what may not block, unless that takes a while.
    fn look_up(&self, ops: &[Op], look: impl FnOnce(&dyn Kv, &[Op]) -> Vec<Ino>) -> Vec<Ino> {
        let state = &**self.consensus.state();
        if ops.len() > LOOKED_UP_AT_ONCE { in_place(|| look(state, ops)) } else { look(state, ops) }
    }

    /// Returns whether a session has ended. Nothing of it is carried out any more, so it must not wait: least of all
    /// for the session that replaces it, whose client waits for the outcome of this request.
    fn has_ended(&self, id: SessionId) -> bool {
        session::find_or_ended(&**self.consensus.state(), id).is_some_and(|session| session.has_ended())
    }

    /// Revokes what other sessions may answer from their caches about these inodes, until the change ends, and all that the
    /// confined sessions may out of whose subtrees it may move directories. A change may be one that `sends` what was done
    /// under delegations.
    ///
    /// # Errors
    /// Returns [`ProposeError::Unknown`] when this node does not lead in this term, before or after the waiting:
    /// another leadership may have granted leases to sessions that were not waited for.
    pub(crate) async fn begin_change(
        &self,
        term: u64,
        (id, client): (SessionId, Option<u64>),
        (inos, crossing): (Vec<Ino>, Vec<SessionId>),
        sends: bool,
    ) -> Result<Changing<'_>, ProposeError> {
        let begun = self.leases.with(Some(term), |table| {
            let known = table.held_by_confined(&inos);
            let (notices, waits) = table.begin(id, &inos, Instant::now());
            (known, notices, waits, table.cross(&crossing))
        });
        let (known, notices, mut waits, emptying) = begun.ok_or(ProposeError::Unknown)?;
        let changing = Changing { shared: self, term, session: id, inos, crossing };
        let asks = !notices.is_empty();
        for Notice { session, seq } in notices {
            // Wherever it lies by now, a confined client knows what it holds, and is told of nothing else.
            let inos = known.get(&session).unwrap_or(&changing.inos).clone();
            self.events.send(session, &MetaEvent::Recall { seq, inos });
        }
        for Notice { session, seq } in &emptying {
            self.events.send(*session, &MetaEvent::RecallAll { seq: *seq });
        }
        waits.extend(emptying);
        if asks {
            // Changes that were waiting may now come before what these sessions send.
            self.leases.changed.notify_waiters();
        }
        self.settle(|table, now| {
            // A session that attaches meanwhile acknowledges nothing old, and may have operations to send.
            let mut until = table.unsettled_until(client, &waits, now);
            if until.is_none() {
                let dirty = table.dirty_before(id, sends);
                until = table.unsettled_until(client, &dirty, now);
            }
            // The session is looked up only where there is something to wait for.
            until.filter(|_| !self.has_ended(id))
        })
        .await;
        if self.consensus.leadership() == Some(term) { Ok(changing) } else { Err(ProposeError::Unknown) }
    }

    /// Returns the confined sessions that have attached, with their roots.
    pub(crate) fn confined(&self) -> Vec<(SessionId, Ino)> {
        self.leased(|table| table.roots()).unwrap_or_default()
    }

    /// Returns the confined sessions out of whose subtrees renames may move directories.
    ///
    /// # Errors
    /// As [`borders::crossed`].
    fn crossed(&self, renames: &[Op]) -> Result<Vec<SessionId>, FsError> {
        let confined = if renames.is_empty() { Vec::new() } else { self.confined() };
        if confined.is_empty() {
            return Ok(Vec::new());
        }
        let roots: BTreeSet<Ino> = confined.iter().map(|(_, root)| *root).collect();
        let crossed = in_place(|| borders::crossed(&**self.consensus.state(), renames, &roots))?;
        Ok(confined.into_iter().filter(|(_, root)| crossed.contains(root)).map(|(session, _)| session).collect())
    }

    /// Ends all leases of a session that lives, and grants it none any more. Returns when it answers nothing from its
    /// caches.
    ///
    /// # Errors
    /// Returns [`ProposeError::Unknown`] when this node does not lead in this term, before or after the waiting:
    /// another leadership may have granted leases to the session.
    pub(crate) async fn end_leases(&self, term: u64, id: SessionId) -> Result<(), ProposeError> {
        let recalled = self.leases.with(Some(term), |table| table.evict(id)).ok_or(ProposeError::Unknown)?;
        if let Some(Notice { session, seq }) = recalled {
            self.events.send(session, &MetaEvent::RecallAll { seq });
        }
        let recalled: Vec<Notice> = recalled.into_iter().collect();
        self.settle(|table, now| {
            // It may also hold leases of an earlier leader.
            table.unsettled_until(None, &recalled, now).or_else(|| table.grace_until(std::iter::once(id), now))
        })
        .await;
        if self.consensus.leadership() == Some(term) { Ok(()) } else { Err(ProposeError::Unknown) }
    }

    /// Notifies sessions that they are not alone any more, and waits until they act on it. Until the returned value is
    /// dropped, no session is notified that it is alone.
    ///
    /// # Errors
    /// As [`Shared::wait_for_others`].
    pub(crate) async fn arrive(&self) -> Result<Arriving<'_>, ProposeError> {
        self.wait_for_others(None).await?;
        let notices = self.leased(|table| table.arrive()).unwrap_or_default();
        let arriving = Arriving { shared: self };
        for Notice { session, seq } in &notices {
            self.events.send(*session, &MetaEvent::Company { seq: *seq });
        }
        self.settle(|table, now| table.unsettled_until(None, &notices, now)).await;
        Ok(arriving)
    }
}

/// A session is being opened.
pub(crate) struct Arriving<'a> {
    shared: &'a Shared,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.shared.leased(|table| table.arrived());
    }
}

/// What became of a batch, for its session.
pub(crate) struct Submitted {
    /// The outcome.
    pub outcome: Result<BatchReply, Refused>,
    /// When the session holds leases on all that was touched: attributes that the replies do not carry.
    pub leased: Option<Vec<InodeAttr>>,
    /// The touched inodes on which it has delegations.
    pub delegated: Vec<Ino>,
}

/// Whose batch is carried out.
#[derive(Clone, Copy)]
pub(crate) struct Submitter {
    /// The session.
    pub session: SessionId,
    /// Its client.
    pub client: u64,
    /// The session has ended: its batch disturbs nobody, because it is refused, or answered as the first time.
    pub has_ended: bool,
    /// It is one of a confined client.
    pub is_confined: bool,
    /// The batch was applied before, and has no operations any more.
    pub asks_again: bool,
}

/// Returns the stored reply to a batch of a confined client, once all that it has changed is known to others.
async fn answer_again(shared: &Shared, id: SessionId, batch: Batch) -> Result<Submitted, ProposeError> {
    // Here, or under an earlier leader, which others have left then.
    shared.under_way.end_of((id, batch.seq)).await;
    shared.wait_for_others(Some(id)).await?;
    let outcome = shared.batcher.submit((id, true), batch, None).await?;
    Ok(Submitted { outcome, leased: None, delegated: Vec::new() })
}

/// Carries out a batch once no session answers from its cache what the batch changes. This must run to its end: a
/// change that has begun and is forgotten may still be applied.
pub(crate) async fn submit(shared: Arc<Shared>, of: Submitter, batch: Batch) -> Result<Submitted, ProposeError> {
    let Submitter { session: id, client, has_ended, is_confined, asks_again } = of;
    if asks_again || (has_ended && is_confined) {
        return answer_again(&shared, id, batch).await;
    }
    let unleased = |outcome| Submitted { outcome, leased: None, delegated: Vec::new() };
    let (_, mut looked_at) = shared.consensus.progress();
    let inos = shared.look_up(&batch.ops, touched::before);
    if inos.is_empty() || has_ended {
        return Ok(unleased(shared.batcher.submit((id, is_confined), batch, None).await?));
    }
    // All that is waited for, and the change itself, belong to one leadership: a new leader has to wait anew.
    let Some(term) = shared.consensus.leadership() else {
        return Err(ProposeError::NotLeader(shared.consensus.leader().await));
    };
    shared.wait_for_others(Some(id)).await?;
    let sends = batch.ops.iter().any(|op| matches!(op, Op::Deferred { .. }));
    let made: Vec<Ino> = batch.ops.iter().filter_map(Op::made).collect();
    let renames: Vec<Op> = batch.ops.iter().filter(|op| matches!(op.plain(), Op::Rename { .. })).cloned().collect();
    // What is not known counts as moved out.
    let everybody = |_| shared.confined().into_iter().map(|(session, _)| session).collect::<Vec<_>>();
    let crossing = match shared.crossed(&renames) {
        Ok(crossing) => crossing,
        // It may not disturb all others by its way of naming things.
        Err(error) if is_confined => return Ok(unleased(Ok(Err(OpFailed { index: 0, error })))),
        Err(error) => everybody(error),
    };
    let mut changing = shared.begin_change(term, (id, Some(client)), (inos, crossing), sends).await?;
    for _ in 0..LOOKED_AGAIN_MAX {
        // Others may have changed meanwhile where the names lead.
        let (_, applied) = shared.consensus.progress();
        if std::mem::replace(&mut looked_at, applied) == applied {
            break;
        }
        let more = shared.look_up(&batch.ops, |state, ops| touched::more(state, ops, &changing.inos));
        if more.len() == changing.inos.len() {
            break;
        }
        // It begins before the one that it replaces ends.
        let crossing = changing.crossing.clone();
        changing = shared.begin_change(term, (id, Some(client)), (more, crossing), sends).await?;
    }
    let outcome = shared.batcher.submit((id, is_confined), batch, Some(term)).await?;
    // What is known only now: names that changed between the look-up and the change.
    let Ok(Ok(replies)) = &outcome else { return Ok(unleased(outcome)) };
    let late = touched::after(replies, &changing.inos);
    let mut crossed = shared.crossed(&renames).unwrap_or_else(everybody);
    crossed.retain(|session| !changing.crossing.contains(session));
    if !late.is_empty() || !crossed.is_empty() {
        drop(shared.begin_change(term, (id, Some(client)), (late, crossed), sends).await?);
        return Ok(unleased(outcome));
    }
    // Read before the change ends: if the session gets the leases, nobody else can have changed them since.
    let rest = touched::attrs_not_in_replies(&**shared.consensus.state(), replies, &changing.inos);
    let (leased, delegated) = changing.end(&made);
    Ok(Submitted { outcome, leased: leased.then_some(rest), delegated })
}

//! Read leases: what clients answer from their caches, and how a change takes it back from them first (design: leases make
//! it fast, versions make it safe).
//!
//! `table` knows who holds what, without clock or network; `touched` knows what a batch changes; this is what waits. Only
//! the leader grants leases; a new one begins with an empty table, and its first changes wait until every session has
//! come to it or what the leader before may have granted has run out.

pub mod table;
mod touched;

use crate::Shared;
use crate::error::ProposeError;
use crate::fs::{Refused, session};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::{Extension, Table, Told};
use tokio::sync::Notify;
use wire::attr::InodeAttr;
use wire::ids::{Ino, SessionId};
use wire::limits::LEASE_MS;
use wire::message::event::MetaEvent;
use wire::op::{Batch, BatchReply};

/// How long leases hold without being extended.
const LEASE: Duration = Duration::from_millis(LEASE_MS);

/// The leases of the present leadership.
#[derive(Default)]
pub struct Leases {
    /// With the term in which this node leads.
    current: Mutex<Option<(u64, Table)>>,
    /// Told when somebody has acknowledged or come.
    changed: Notify,
}

impl Leases {
    /// Works on the table of this leadership; `None` when this node does not lead.
    fn with<R>(&self, leadership: Option<u64>, work: impl FnOnce(&mut Table) -> R) -> Option<R> {
        let mut current = self.current.lock();
        let Some(term) = leadership else {
            *current = None;
            return None;
        };
        match &mut *current {
            Some((of, table)) if *of == term => Some(work(table)),
            other => Some(work(&mut other.insert((term, Table::new(LEASE, Instant::now()))).1)),
        }
    }
}

/// A change under way; it ends when this is dropped.
struct Changing<'a> {
    shared: &'a Shared,
    term: Option<u64>,
    session: SessionId,
    inos: Vec<Ino>,
}

impl Changing<'_> {
    /// Whether its session holds leases on all that it has touched.
    fn end(mut self) -> bool {
        self.finish()
    }

    fn finish(&mut self) -> bool {
        let (inos, session) = (std::mem::take(&mut self.inos), self.session);
        // What a later leadership of this node knows is not about this change.
        let same = self.shared.consensus.leadership().filter(|term| Some(*term) == self.term);
        !inos.is_empty()
            && same.is_some()
            && self.shared.leases.with(same, |table| table.end(session, &inos)) == Some(true)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shared {
    fn leased<R>(&self, work: impl FnOnce(&mut Table) -> R) -> Option<R> {
        self.leases.with(self.consensus.leadership(), work)
    }

    /// A session follows this node's events from now on, with empty caches.
    pub(crate) fn attach(&self, session: SessionId, stream: u64) {
        self.leased(|table| table.attach(session, stream));
        self.leases.changed.notify_waiters();
    }

    /// It does not any more, by this stream.
    pub(crate) fn detach(&self, session: SessionId, stream: u64) {
        self.leased(|table| table.detach(session, stream));
    }

    /// A session has ended.
    pub(crate) fn forget_leases(&self, session: SessionId) {
        self.leased(|table| table.remove(session));
        self.leases.changed.notify_waiters();
    }

    /// A session has dropped what it was told to drop.
    pub(crate) fn acknowledged(&self, session: SessionId, seq: table::Seq) {
        self.leased(|table| table.acknowledge(session, seq));
        self.leases.changed.notify_waiters();
    }

    /// A session shows that it lives. Also tells whether it is the only one that keeps caches.
    pub(crate) fn extend_leases(&self, id: SessionId) -> (Extension, bool) {
        let state = self.consensus.state();
        // The sessions are looked through only where that can make a difference.
        let only = self.leased(|table| table.is_small()) == Some(true)
            && session::all(&**state).iter().all(|(other, session)| *other == id || !session.opening.caches);
        let extended = self.leased(|table| {
            let alone = only && table.nobody_arrives();
            (table.extend(id, Instant::now(), alone), alone)
        });
        extended.unwrap_or((Extension::NotAttached, false))
    }

    /// To be taken before a read.
    pub(crate) fn lease_stamp(&self) -> Option<u64> {
        self.leased(|table| table.stamp())
    }

    /// Whether one of these inodes may have been changed since the stamp.
    pub(crate) fn may_have_changed(&self, inos: &[Ino], stamp: u64) -> bool {
        self.leased(|table| table.may_have_changed(inos, stamp)).unwrap_or(false)
    }

    /// Grants leases on what was read since the stamp.
    pub(crate) fn grant(&self, session: SessionId, inos: &[Ino], stamp: u64) -> bool {
        let Some((granted, crowded)) = self.leased(|table| table.grant(session, inos, stamp)) else { return false };
        if let Some(Told { session, seq }) = crowded {
            self.events.tell(session, &MetaEvent::RecallAll { seq });
        }
        granted
    }

    /// Waits until everybody has acknowledged or run out.
    async fn settle(&self, mut open: impl FnMut(&mut Table, Instant) -> Option<Instant>) {
        loop {
            let mut changed = std::pin::pin!(self.leases.changed.notified());
            // Before looking: what changes in between must not be missed.
            changed.as_mut().enable();
            let Some(Some(until)) = self.leased(|table| open(table, Instant::now())) else { return };
            let _ = tokio::time::timeout_at(until.into(), changed).await;
        }
    }

    /// Waits until nobody answers from what an earlier leader granted.
    async fn wait_for_others(&self, id: Option<SessionId>) {
        let state = self.consensus.state();
        self.settle(|table, now| {
            // The sessions are looked up only while it matters.
            table.grace_until(std::iter::once(SessionId(u64::MAX)), now)?;
            let others = session::all(&**state);
            let others = others.iter().filter(|(other, session)| Some(*other) != id && session.opening.caches);
            table.grace_until(others.map(|(other, _)| *other), now)
        })
        .await;
    }

    /// Takes back what others may answer from their caches about these inodes, until the change ends.
    async fn begin_change(&self, id: SessionId, inos: Vec<Ino>) -> Changing<'_> {
        let term = self.consensus.leadership();
        let Some((tell, waits)) = self.leases.with(term, |table| table.begin(id, &inos)) else {
            return Changing { shared: self, term: None, session: id, inos: Vec::new() };
        };
        let changing = Changing { shared: self, term, session: id, inos };
        for Told { session, seq } in tell {
            self.events.tell(session, &MetaEvent::Recall { seq, inos: changing.inos.clone() });
        }
        if !waits.is_empty() {
            self.settle(|table, now| table.unsettled_until(&waits, now)).await;
        }
        changing
    }

    /// Tells sessions that they are not alone any more, and waits until they act on it; until the answer is dropped, no
    /// session is told that it is alone.
    pub(crate) async fn arrive(&self) -> Arriving<'_> {
        self.wait_for_others(None).await;
        let told = self.leased(|table| table.arrive()).unwrap_or_default();
        let arriving = Arriving { shared: self };
        for Told { session, seq } in &told {
            self.events.tell(*session, &MetaEvent::Company { seq: *seq });
        }
        self.settle(|table, now| table.unsettled_until(&told, now)).await;
        arriving
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

/// Carries out a batch once nobody answers from a cache what it changes. Beside the outcome, when the session holds leases
/// on all that it touched, attributes of what the replies do not tell. Must run to its end: a change that has begun and is
/// forgotten may still be applied.
pub(crate) async fn submit(
    shared: Arc<Shared>,
    id: SessionId,
    batch: Batch,
) -> Result<(Result<BatchReply, Refused>, Option<Vec<InodeAttr>>), ProposeError> {
    let inos = touched::before(&**shared.consensus.state(), &batch.ops);
    if inos.is_empty() {
        return Ok((shared.batcher.submit(id, batch).await?, None));
    }
    shared.wait_for_others(Some(id)).await;
    let changing = shared.begin_change(id, inos).await;
    let outcome = shared.batcher.submit(id, batch).await?;
    // What could be known of only now: names that were changed between the look at them and the change.
    let Ok(Ok(replies)) = &outcome else { return Ok((outcome, None)) };
    let late = touched::after(replies, &changing.inos);
    if !late.is_empty() {
        drop(shared.begin_change(id, late).await);
        return Ok((outcome, None));
    }
    // Before the change ends: nobody else can have changed them since, if the session gets the leases.
    let rest = touched::untold(&**shared.consensus.state(), replies, &changing.inos);
    let leased = changing.end();
    Ok((outcome, leased.then_some(rest)))
}

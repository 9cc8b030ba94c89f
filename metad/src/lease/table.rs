//! The lease table of a leader, as a state machine without clock, network or tasks: what each session may answer from
//! its cache, and which sessions a change must wait for.
//!
//! A session that is *attached* (it follows the leader's events) holds a read lease on each inode of which it was sent
//! something, its names included where it is a directory. All leases of a session run out together unless they are
//! extended. A change first *recalls* the leases on what it touches: it notifies their holders, and waits until each
//! has acknowledged or its leases have run out. Meanwhile nobody is granted a lease on these inodes.
//!
//! A session that alone holds a lease may be given a *delegation* with it: it sends what it does there later. Before
//! another session reads or changes such an inode the delegation is recalled, and the holder sends everything before it
//! acknowledges. While the holder is alive it is waited for longer than a lease, until the
//! [`patience`](super::patience) with it is spent. A session that attaches with operations still to send is *dirty*: all
//! others wait for it.
//!
//! Safety (a proptest below checks it): no session answers from its cache what a completed change has made wrong. No
//! session reads a state older than what a delegation's holder has done, unless the holder has been silent for longer
//! than its leases, or has kept others waiting for too long.

mod confinement;
mod eviction;
mod shortage;
mod waiting;

use super::patience::Patience;
use confinement::Bounds;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use waiting::Credit;
use wire::ids::{Ino, SessionId};

/// Leases of one session. With more, all of them are recalled. Clients cache as many.
const HELD_MAX: usize = 65_536;
/// Leases of all sessions, about 100 bytes each. With many sessions, each may hold fewer.
const TOTAL_MAX: usize = 2_000_000;
/// Leases that each session may hold in any case: enough for a page of a listing.
const HELD_MIN: usize = 8_192;

/// How long nobody is given a delegation on an inode after one was recalled.
const CONTENTION_PAUSE: Duration = Duration::from_secs(2);
/// Recalled delegations that are remembered for that.
const CONTENDED_INODES_MAX: usize = 16_384;

/// Ended changes whose inodes are remembered. A read during which more changes end gets no lease.
const CHANGES_REMEMBERED: usize = 256;

/// Number of an event that wants an acknowledgement, counted per session.
pub type Seq = u64;

/// An event for a session, which the session has to acknowledge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The session.
    pub session: SessionId,
    /// The number by which it acknowledges the event.
    pub seq: Seq,
}

/// The answer to a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Its leases hold for [`Table::lease`] from when it asked.
    Extended,
    /// An event is not acknowledged yet: its leases hold as long as before.
    Pending,
    /// It does not follow this leader's events: it holds nothing.
    NotAttached,
}

/// A session that has attached to this leader.
#[derive(Debug, Default)]
struct Holder {
    /// The stream by which it follows events now.
    attached: Option<u64>,
    /// When its leases end.
    until: Option<Instant>,
    /// Until when it is waited for beyond that, for what it is asked to send.
    credit: Option<Credit>,
    /// Number of the last event sent that wants an acknowledgement.
    sent: Seq,
    /// It has acknowledged all events up to this one, and the `early` ones after it.
    acked: Seq,
    early: BTreeSet<Seq>,
    /// The event that recalls all its leases, because there are too many.
    emptying: Option<Seq>,
    /// It was notified that it is alone.
    alone: bool,
    /// What it is asked to send before it acknowledges, by event.
    sending: Vec<(Seq, Vec<Ino>)>,
    /// The patience that other sessions of its client have with it.
    patience: Patience,
    /// Its client, and whether that may only read: then it has nothing to send, and nobody is patient.
    client: Option<u64>,
    only_reads: bool,
    /// The event that it acknowledges once it has sent what it had not sent when it attached.
    dirty: Option<Seq>,
    /// The bounds of a confined client.
    bounds: Option<Bounds>,
    inos: HashSet<Ino>,
}

impl Holder {
    fn next_seq(&mut self) -> Seq {
        self.sent += 1;
        self.sent
    }

    fn has_acked(&self, seq: Seq) -> bool {
        seq <= self.acked || self.early.contains(&seq)
    }

    fn asked_to_send(&mut self, seq: Seq, ino: Ino) {
        match self.sending.last_mut() {
            Some((last, inos)) if *last == seq => inos.push(ino),
            _ => self.sending.push((seq, vec![ino])),
        }
    }
}

/// Changes of one inode that are under way.
#[derive(Debug, Default)]
struct Changing {
    count: u32,
    /// There were several at once: the last to end need not have been the last to apply.
    several: bool,
}

/// The table of one leadership.
#[derive(Debug)]
pub struct Table {
    lease: Duration,
    /// When this leadership was noticed. What an earlier leader granted has run out a lease later.
    since: Instant,
    holders: BTreeMap<SessionId, Holder>,
    held: HashMap<Ino, Vec<SessionId>>,
    /// Delegations: their holder is the only one in `held`.
    delegated: HashMap<Ino, SessionId>,
    /// Events that ask holders of delegations to send what they did to an inode: reads wait for these as well.
    sending: HashMap<Ino, Vec<Notice>>,
    /// When delegations were last recalled.
    contended: HashMap<Ino, Instant>,
    /// Inodes that changes under way touch.
    changing: HashMap<Ino, Changing>,
    /// Recalls of an inode that may not be acknowledged yet. Every change waits for them, not only the one that began
    /// them.
    recalled: HashMap<Ino, Vec<Notice>>,
    /// Number of changes that have ended.
    ended: u64,
    /// What the last of them have touched.
    recent: VecDeque<Vec<Ino>>,
    /// Sessions being opened: nobody is alone meanwhile.
    arriving: u32,
    /// The patience that others have with clients, whatever their sessions.
    clients: HashMap<u64, Patience>,
    /// How many of the holders are confined.
    confined: usize,
    /// Sessions that operators end: they are granted nothing any more. The last one is the last.
    evicted: VecDeque<SessionId>,
}

impl Table {
    /// Begins the table of a leadership; leases hold for `lease`.
    #[must_use]
    pub fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            since: now,
            holders: BTreeMap::new(),
            held: HashMap::new(),
            delegated: HashMap::new(),
            sending: HashMap::new(),
            contended: HashMap::new(),
            changing: HashMap::new(),
            recalled: HashMap::new(),
            ended: 0,
            recent: VecDeque::with_capacity(CHANGES_REMEMBERED),
            arriving: 0,
            clients: HashMap::new(),
            confined: 0,
            evicted: VecDeque::new(),
        }
    }

    /// Returns how long leases hold.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Records the client of a session that is about to attach, and whether it may have anything to send later. A confined
    /// client has a root. An evicted one does not attach, and leaves nothing behind.
    pub fn introduce(&mut self, session: SessionId, client: u64, may_change: bool, root: Option<Ino>) {
        if self.is_evicted(session) {
            return;
        }
        let holder = self.holders.entry(session).or_default();
        (holder.client, holder.only_reads) = (Some(client), !may_change);
        if holder.bounds.is_none() && root.is_some() {
            holder.bounds = root.map(Bounds::of);
            self.confined += 1;
        }
    }

    /// Lets a session follow events from now on, by this stream. Its caches are empty: it emptied them before it asked.
    /// If it is `dirty`, all others wait until it has acknowledged the returned number, or the patience with its client
    /// is spent.
    pub fn attach(&mut self, session: SessionId, stream: u64, dirty: bool, now: Instant) -> Option<Seq> {
        if self.is_evicted(session) {
            return None;
        }
        self.release_all(session);
        self.finish_sending_all(session);
        self.waits_no_more(session, now);
        let holder = self.holders.entry(session).or_default();
        holder.attached = Some(stream);
        holder.acked = holder.sent;
        holder.early.clear();
        holder.emptying = None;
        holder.alone = false;
        if dirty && !holder.only_reads {
            let seq = holder.next_seq();
            holder.dirty = Some(seq);
            holder.sending.push((seq, Vec::new()));
            // Its caches are empty: others wait only for what it has to send, and only while there is patience.
            holder.until = None;
            self.wait_longer(session, now);
            Some(seq)
        } else {
            holder.dirty = None;
            None
        }
    }

    /// Records that a stream has ended. If its session has no newer one, it may answer from its caches until its leases
    /// run out.
    pub fn detach(&mut self, session: SessionId, stream: u64) {
        if let Some(holder) = self.holders.get_mut(&session)
            && holder.attached == Some(stream)
        {
            holder.attached = None;
        }
    }

    /// Removes a session that has ended, and knows it or has been silent for longer than a lease.
    pub fn remove(&mut self, session: SessionId) {
        self.release_all(session);
        self.finish_sending_all(session);
        let removed = self.holders.remove(&session);
        self.confined -= usize::from(removed.is_some_and(|holder| holder.bounds.is_some()));
        self.recalled.retain(|_, notices| {
            notices.retain(|notice| notice.session != session);
            !notices.is_empty()
        });
    }

    fn release_all(&mut self, session: SessionId) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        for ino in std::mem::take(&mut holder.inos) {
            forget(&mut self.held, ino, session);
            if self.delegated.get(&ino) == Some(&session) {
                self.delegated.remove(&ino);
            }
        }
    }

    /// Records that a session has sent everything that it was asked for, or need not any more.
    fn finish_sending_all(&mut self, session: SessionId) {
        self.finish_sending(session, |_, _| true);
    }

    /// Records that a session has sent what it was asked for by the events that are `done`.
    fn finish_sending(&mut self, session: SessionId, done: impl Fn(&Holder, Seq) -> bool) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let (sent, left) = std::mem::take(&mut holder.sending).into_iter().partition(|(seq, _)| done(holder, *seq));
        holder.sending = left;
        for (seq, inos) in sent {
            for ino in inos {
                if let Some(notices) = self.sending.get_mut(&ino) {
                    notices.retain(|notice| notice.session != session || notice.seq != seq);
                    if notices.is_empty() {
                        self.sending.remove(&ino);
                    }
                }
            }
        }
        if holder.dirty.is_some_and(|seq| done(holder, seq)) {
            holder.dirty = None;
        }
    }

    /// Records that a session is alive, and extends its leases.
    pub fn extend(&mut self, session: SessionId, now: Instant, alone: bool) -> Extension {
        if self.is_evicted(session) {
            return Extension::Pending;
        }
        let Some(holder) = self.holders.get_mut(&session).filter(|holder| holder.attached.is_some()) else {
            return Extension::NotAttached;
        };
        if holder.acked < holder.sent {
            // Sending may take longer than a lease, and the session is not dead meanwhile.
            if !holder.sending.is_empty() && !holder.only_reads {
                self.wait_longer(session, now);
            }
            return Extension::Pending;
        }
        holder.until = Some(now + self.lease);
        holder.alone = alone;
        self.waits_no_more(session, now);
        Extension::Extended
    }

    /// Returns whether at most one session has attached to this leader.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.holders.len() <= 1
    }

    /// Returns whether a session may be notified that it is alone.
    #[must_use]
    pub fn nobody_arrives(&self) -> bool {
        self.arriving == 0
    }

    /// Returns a stamp to take before a read whose answer is to be leased.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.ended
    }

    /// Grants leases on what was read since `stamp`, all or none. Returns false when any of it is changing or may have
    /// changed since it was read, or when the session cannot hold leases now. Also returns the event that recalls all
    /// leases of a session that holds too many.
    pub fn grant(&mut self, session: SessionId, inos: &[Ino], stamp: u64) -> (bool, Option<Notice>) {
        if self.may_have_changed(inos, stamp) || inos.iter().any(|ino| self.changing.contains_key(ino)) {
            return (false, None);
        }
        if self.bounds_of(session).is_some_and(|bounds| bounds.may_be_left(stamp)) {
            return (false, None);
        }
        self.insert(session, inos)
    }

    /// Returns whether a change that has ended since the stamp touched one of these inodes.
    #[must_use]
    pub fn may_have_changed(&self, inos: &[Ino], stamp: u64) -> bool {
        let since = usize::try_from(self.ended.saturating_sub(stamp)).unwrap_or(usize::MAX);
        if since == 0 || since > self.recent.len() {
            return since > 0;
        }
        let asked: HashSet<Ino> = inos.iter().copied().collect();
        self.recent.iter().rev().take(since).any(|touched| touched.iter().any(|ino| asked.contains(ino)))
    }

    /// Returns the number of leases that each session may hold.
    fn held_max(&self) -> usize {
        (TOTAL_MAX / self.holders.len().max(1)).clamp(HELD_MIN, HELD_MAX)
    }

    fn insert(&mut self, session: SessionId, inos: &[Ino]) -> (bool, Option<Notice>) {
        if self.is_evicted(session) {
            return (false, None);
        }
        let most = self.held_max();
        let Some(holder) = self.holders.get_mut(&session).filter(|holder| holder.attached.is_some()) else {
            return (false, None);
        };
        if holder.emptying.is_some() {
            return (false, None);
        }
        if holder.inos.len() + inos.len() > most {
            let seq = holder.next_seq();
            holder.emptying = Some(seq);
            holder.sending.push((seq, Vec::new()));
            return (false, Some(Notice { session, seq }));
        }
        for ino in inos {
            if holder.inos.insert(*ino) {
                self.held.entry(*ino).or_default().push(session);
            }
        }
        (true, None)
    }

    /// Begins a change by `session`. Returns the events that recall these inodes, and all events that the change waits
    /// for: these, and those sent before to other sessions.
    pub fn begin(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (Vec<Notice>, Vec<Notice>) {
        let mut notices: Vec<Notice> = Vec::new();
        // One event for all that this change takes from a session.
        let mut places: HashMap<SessionId, usize> = HashMap::new();
        // Each once, however many of the inodes it concerns.
        let mut waits: BTreeSet<Notice> = BTreeSet::new();
        for ino in inos {
            self.disturb(session, *ino, now);
            waits.extend(self.others_sending(session, *ino).cloned());
            let changing = self.changing.entry(*ino).or_default();
            changing.several |= changing.count > 0;
            changing.count += 1;
            if let Some(before) = self.recalled.get_mut(ino) {
                before.retain(|notice| {
                    self.holders.get(&notice.session).is_some_and(|holder| !holder.has_acked(notice.seq))
                });
                // A session that another change has asked for something here may have to make this change before it can
                // acknowledge: it does not wait for itself.
                waits.extend(before.iter().filter(|notice| notice.session != session).cloned());
            }
            let Some(held_by) = self.held.get_mut(ino) else { continue };
            let others: Vec<SessionId> = held_by.extract_if(.., |other| *other != session).collect();
            if held_by.is_empty() {
                self.held.remove(ino);
            }
            for other in others {
                let Some(holder) = self.holders.get_mut(&other) else { continue };
                holder.inos.remove(ino);
                let place = *places.entry(other).or_insert_with(|| {
                    notices.push(Notice { session: other, seq: holder.next_seq() });
                    notices.len() - 1
                });
                let one = notices[place].clone();
                if self.delegated.get(ino) == Some(&other) {
                    self.end_delegation(&one, *ino);
                }
                self.recalled.entry(*ino).or_default().push(one);
            }
        }
        waits.extend(notices.iter().cloned());
        (notices, waits.into_iter().collect())
    }

    /// Records that a session touches an inode. A holder whose delegation this ends is not given another one soon.
    fn disturb(&mut self, session: SessionId, ino: Ino, now: Instant) {
        let ends = self.delegated.get(&ino).is_some_and(|holder| *holder != session)
            || self.others_sending(session, ino).next().is_some();
        if !ends {
            return;
        }
        if self.contended.len() >= CONTENDED_INODES_MAX {
            self.contended.retain(|_, at| now - *at < CONTENTION_PAUSE);
            if self.contended.len() >= CONTENDED_INODES_MAX {
                self.contended.clear();
            }
        }
        self.contended.insert(ino, now);
    }

    /// Ends a delegation. Its holder acknowledges the event once it has sent what it did there.
    fn end_delegation(&mut self, notice: &Notice, ino: Ino) {
        self.delegated.remove(&ino);
        self.sending.entry(ino).or_default().push(notice.clone());
        if let Some(holder) = self.holders.get_mut(&notice.session) {
            holder.asked_to_send(notice.seq, ino);
        }
    }

    /// Returns the events that ask other sessions to send what they did to an inode.
    fn others_sending(&self, session: SessionId, ino: Ino) -> impl Iterator<Item = &Notice> {
        self.sending.get(&ino).into_iter().flatten().filter(move |notice| notice.session != session)
    }

    /// Ends the delegations of others on what a session is about to read; they keep their leases. Returns the events to
    /// send, each with its inodes, and all events that the read waits for.
    pub fn share(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (Vec<(Notice, Vec<Ino>)>, Vec<Notice>) {
        let mut notices: Vec<(Notice, Vec<Ino>)> = Vec::new();
        // One event for all delegations of a session that this read ends.
        let mut places: HashMap<SessionId, usize> = HashMap::new();
        let mut waits: BTreeSet<Notice> = BTreeSet::new();
        for ino in inos {
            self.disturb(session, *ino, now);
            if let Some(other) = self.delegated.get(ino).copied().filter(|other| *other != session)
                && let Some(holder) = self.holders.get_mut(&other)
            {
                let at = *places.entry(other).or_insert_with(|| {
                    notices.push((Notice { session: other, seq: holder.next_seq() }, Vec::new()));
                    notices.len() - 1
                });
                notices[at].1.push(*ino);
                self.end_delegation(&notices[at].0, *ino);
            }
            waits.extend(self.others_sending(session, *ino).cloned());
        }
        (notices, waits.into_iter().collect())
    }

    /// Gives a session delegations on those of these inodes on which nobody else holds a lease. Call it with leases
    /// that were just granted.
    pub fn delegate(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> Vec<Ino> {
        let mut given = Vec::new();
        // What a confined client sends later might have to be refused.
        if self.bounds_of(session).is_some() {
            return given;
        }
        for ino in inos {
            let alone = self.held.get(ino).is_some_and(|held_by| held_by.as_slice() == [session]);
            let quiet = self.contended.get(ino).is_none_or(|at| now - *at >= CONTENTION_PAUSE);
            if alone && quiet && !self.changing.contains_key(ino) && !self.sending.contains_key(ino) {
                self.delegated.insert(*ino, session);
                given.push(*ino);
            }
        }
        given
    }

    /// Returns the events that other dirty sessions have not acknowledged.
    #[must_use]
    fn dirty_others(&self, session: SessionId) -> Vec<Notice> {
        let dirty = self.holders.iter().filter_map(|(id, holder)| Some(Notice { session: *id, seq: holder.dirty? }));
        dirty.filter(|notice| notice.session != session).collect()
    }

    /// Returns the events that a read or change waits for because other sessions are dirty. A request that `sends` what
    /// its session did under delegations, and was asked for that, waits for none of them: they may be waiting for it.
    #[must_use]
    pub fn dirty_before(&self, session: SessionId, sends: bool) -> Vec<Notice> {
        if sends && self.holders.get(&session).is_some_and(|holder| !holder.sending.is_empty()) {
            return Vec::new();
        }
        self.dirty_others(session)
    }

    /// Records that a session has done what these events asked for. Returns whether that was new.
    pub fn acknowledge(&mut self, session: SessionId, seqs: &[Seq]) -> bool {
        let Some(holder) = self.holders.get_mut(&session) else { return false };
        let before = (holder.acked, holder.early.len());
        let open = holder.acked + 1..=holder.sent;
        holder.early.extend(seqs.iter().copied().filter(|seq| open.contains(seq)));
        while holder.early.remove(&(holder.acked + 1)) {
            holder.acked += 1;
        }
        if (holder.acked, holder.early.len()) == before {
            return false;
        }
        if holder.emptying.is_some_and(|emptying| holder.has_acked(emptying)) {
            holder.emptying = None;
            self.release_all(session);
        }
        self.finish_sending(session, Holder::has_acked);
        true
    }

    /// Returns until when others may answer from what an earlier leader granted; `None` when nobody does.
    #[must_use]
    pub fn grace_until(&self, mut others: impl Iterator<Item = SessionId>, now: Instant) -> Option<Instant> {
        let end = self.since + self.lease;
        (end > now && others.any(|other| !self.holders.contains_key(&other))).then_some(end)
    }

    /// Ends a change. Returns whether its session now holds leases on all that it touched.
    pub fn end(&mut self, session: SessionId, inos: &[Ino]) -> bool {
        let alone = inos.iter().all(|ino| self.changing.get(ino).is_some_and(|changing| !changing.several));
        for ino in inos {
            if let Some(changing) = self.changing.get_mut(ino) {
                changing.count -= 1;
                if changing.count == 0 {
                    self.changing.remove(ino);
                }
            }
            if let Some(before) = self.recalled.get_mut(ino) {
                before.retain(|notice| {
                    self.holders.get(&notice.session).is_some_and(|holder| !holder.has_acked(notice.seq))
                });
                if before.is_empty() {
                    self.recalled.remove(ino);
                }
            }
        }
        self.ended += 1;
        if self.recent.len() == CHANGES_REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(inos.to_vec());
        // No event is sent here to a session that holds too many: its next read does that.
        alone && self.insert_if_room(session, inos)
    }

    /// Grants leases on what a session has just made, though others were changing things around it.
    pub fn grant_made(&mut self, session: SessionId, made: &[Ino]) -> bool {
        self.insert_if_room(session, made)
    }

    /// Inserts leases only if the session does not come to hold too many.
    fn insert_if_room(&mut self, session: SessionId, inos: &[Ino]) -> bool {
        // Without a stamp it is not known whether any of it has left a subtree since.
        if self.bounds_of(session).is_some() {
            return false;
        }
        self.holders.get(&session).is_some_and(|holder| holder.inos.len() + inos.len() <= self.held_max())
            && self.insert(session, inos).0
    }

    /// Records that a session arrives. Returns the events for those that were notified that they are alone.
    pub fn arrive(&mut self) -> Vec<Notice> {
        self.arriving += 1;
        let alone = self.holders.iter_mut().filter(|(_, holder)| holder.alone);
        alone.map(|(session, holder)| Notice { session: *session, seq: holder.next_seq() }).collect()
    }

    /// Records that a session has arrived, or failed to.
    pub fn arrived(&mut self) {
        // A leadership that began meanwhile knows nothing of it.
        self.arriving = self.arriving.saturating_sub(1);
    }
}

fn forget(held: &mut HashMap<Ino, Vec<SessionId>>, ino: Ino, session: SessionId) {
    if let Some(held_by) = held.get_mut(&ino) {
        held_by.retain(|other| *other != session);
        if held_by.is_empty() {
            held.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests;

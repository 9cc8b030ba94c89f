//! The lease table of a leader, as a state machine without clock, network or tasks: who may answer from its cache what,
//! and whom a change must wait for.
//!
//! A session that is *attached* (it follows the leader's events) holds a read lease on each inode of which it was told
//! something, its names included where it is a directory. All leases of a session run out together unless they are
//! extended. A change first *recalls* the leases on what it touches: their holders are told, and it waits until each has
//! acknowledged or run out. Meanwhile nobody is granted a lease on these inodes.
//!
//! A session that alone holds a lease may be given a *delegation* with it: what it does there it tells later. Before
//! another one reads or changes such an inode the delegation is recalled, and the holder tells everything before it
//! acknowledges. While it shows that it lives it is waited for longer than a lease, as long as there is [`patience`](super::patience)
//! with it. A session that comes to a new leader, or anew, and has not told everything yet is *dirty*: all others wait for it.
//!
//! Safety (a proptest below checks it): nobody answers from its cache what a completed change has made wrong, and nobody
//! reads what is older than what a delegation's holder has done, unless that one has been silent for longer than its
//! leases, or kept others waiting for too long.

use super::patience::Patience;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::{Ino, SessionId};

/// Leases of one session; with more, all of them are recalled. Clients remember so many.
const HELD_MAX: usize = 65_536;
/// Leases of all sessions, about 100 bytes each: with many sessions, each may hold fewer.
const TOTAL_MAX: usize = 2_000_000;
/// But never fewer than a page of a listing needs.
const HELD_MIN: usize = 8_192;

/// Clients whose patience is remembered; with more, those of whom nothing is to be remembered are forgotten.
const CLIENTS_REMEMBERED: usize = 4_096;
/// For so long after a delegation was recalled nobody is given one on the inode.
const CONTENDED: Duration = Duration::from_secs(2);
/// Recalled delegations that are remembered for that.
const CONTENDED_MAX: usize = 16_384;

/// Ended changes of which it is remembered what they touched. A read during which more end gets no lease.
const RECENT: usize = 256;

/// Number of an event that wants an acknowledgement, counted per session.
pub type Seq = u64;

/// Something a session is to be told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// Who.
    pub session: SessionId,
    /// To be acknowledged with this number.
    pub seq: Seq,
}

/// The answer to a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Its leases hold for [`Table::lease`] from when it asked.
    Extended,
    /// Something is not acknowledged yet; they hold as long as before.
    Pending,
    /// It does not follow this leader's events: it holds nothing.
    NotAttached,
}

/// A session that has attached to this leader.
#[derive(Debug, Default)]
struct Holder {
    /// The stream by which it follows the events now.
    attached: Option<u64>,
    /// Its leases end then.
    until: Option<Instant>,
    /// Number of the last event that wants an acknowledgement.
    told: Seq,
    /// Up to here it has acknowledged, and these behind it.
    acked: Seq,
    early: BTreeSet<Seq>,
    /// All its leases are being recalled, because there are too many.
    emptying: Option<Seq>,
    /// It was told that it is alone.
    alone: bool,
    /// What it is asked to send before it acknowledges.
    telling: Vec<(Seq, Vec<Ino>)>,
    /// What is left of the patience with it, for what it is asked for.
    patience: Patience,
    /// Whose session it is, and whether that client may only read: then it has nothing to send, and nobody is patient.
    client: Option<u64>,
    only_reads: bool,
    /// It came without having told everything, and acknowledges this when it has.
    dirty: Option<Seq>,
    inos: HashSet<Ino>,
}

impl Holder {
    fn tell(&mut self) -> Seq {
        self.told += 1;
        self.told
    }

    fn has_acked(&self, seq: Seq) -> bool {
        seq <= self.acked || self.early.contains(&seq)
    }

    fn asked_to_tell(&mut self, seq: Seq, ino: Ino, now: Instant) {
        self.patience.owes(now);
        match self.telling.last_mut() {
            Some((last, inos)) if *last == seq => inos.push(ino),
            _ => self.telling.push((seq, vec![ino])),
        }
    }

    fn holds_at(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

/// Changes of one inode under way.
#[derive(Debug, Default)]
struct Changing {
    count: u32,
    /// There were several at once: who ends last need not have been the last to apply.
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
    /// Inodes of which holders of delegations are asked to tell what they did: reads wait for them as well.
    telling: HashMap<Ino, Vec<Told>>,
    /// When delegations were recalled lately.
    contended: HashMap<Ino, Instant>,
    /// Inodes that changes under way touch.
    changing: HashMap<Ino, Changing>,
    /// Recalls of an inode that may not be acknowledged yet: every change waits for them, not only the one that began
    /// them.
    recalled: HashMap<Ino, Vec<Told>>,
    /// Changes that have ended.
    ended: u64,
    /// What the last of them have touched.
    recent: VecDeque<Vec<Ino>>,
    /// Sessions being opened: nobody is alone meanwhile.
    arriving: u32,
    /// What is left of the patience with clients that come without having sent everything, whichever their sessions.
    clients: HashMap<u64, Patience>,
}

impl Table {
    /// A leadership begins; leases hold for `lease`.
    #[must_use]
    pub fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            since: now,
            holders: BTreeMap::new(),
            held: HashMap::new(),
            delegated: HashMap::new(),
            telling: HashMap::new(),
            contended: HashMap::new(),
            changing: HashMap::new(),
            recalled: HashMap::new(),
            ended: 0,
            recent: VecDeque::with_capacity(RECENT),
            arriving: 0,
            clients: HashMap::new(),
        }
    }

    /// How long leases hold.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Whose session it is that is about to attach, and whether that client may change anything.
    pub fn introduce(&mut self, session: SessionId, client: u64, may_change: bool) {
        let holder = self.holders.entry(session).or_default();
        (holder.client, holder.only_reads) = (Some(client), !may_change);
    }

    /// A session follows the events from now on, by this stream. Its caches are empty: it emptied them before it asked.
    /// If it is `dirty`, everybody else waits until it has acknowledged the number that is returned, as long as there is
    /// patience with its client.
    pub fn attach(&mut self, session: SessionId, stream: u64, dirty: bool, now: Instant) -> Option<Seq> {
        self.release_all(session);
        self.told_all(session);
        let lease = self.lease;
        let holder = self.holders.entry(session).or_default();
        holder.attached = Some(stream);
        holder.acked = holder.told;
        holder.early.clear();
        holder.emptying = None;
        holder.alone = false;
        if dirty && !holder.only_reads {
            let until = patience_of(&mut self.clients, holder, session, now).pays(None, now + lease, now);
            let seq = holder.tell();
            holder.dirty = Some(seq);
            // Its caches are empty: nobody waits for it but for what it has to send, and for that as long as there is
            // patience.
            holder.until = Some(until);
            holder.telling.push((seq, Vec::new()));
        } else {
            holder.dirty = None;
        }
        holder.dirty
    }

    /// A stream has ended. If its session has no newer one, it may answer from its caches until its leases run out.
    pub fn detach(&mut self, session: SessionId, stream: u64) {
        if let Some(holder) = self.holders.get_mut(&session)
            && holder.attached == Some(stream)
        {
            holder.attached = None;
        }
    }

    /// A session has ended, and knows it or has been silent for longer than a lease.
    pub fn remove(&mut self, session: SessionId) {
        self.release_all(session);
        self.told_all(session);
        self.holders.remove(&session);
        self.recalled.retain(|_, told| {
            told.retain(|told| told.session != session);
            !told.is_empty()
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

    /// A session has told everything that it was asked for, or need not any more.
    fn told_all(&mut self, session: SessionId) {
        self.told_by(session, |_, _| true);
    }

    /// A session has told what it was asked for by the events that are `done`.
    fn told_by(&mut self, session: SessionId, done: impl Fn(&Holder, Seq) -> bool) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        let (told, left) = std::mem::take(&mut holder.telling).into_iter().partition(|(seq, _)| done(holder, *seq));
        holder.telling = left;
        for (seq, inos) in told {
            for ino in inos {
                if let Some(told) = self.telling.get_mut(&ino) {
                    told.retain(|told| told.session != session || told.seq != seq);
                    if told.is_empty() {
                        self.telling.remove(&ino);
                    }
                }
            }
        }
        if holder.dirty.is_some_and(|seq| done(holder, seq)) {
            holder.dirty = None;
        }
    }

    /// A session shows that it lives.
    pub fn extend(&mut self, session: SessionId, now: Instant, alone: bool) -> Extension {
        let Some(holder) = self.holders.get_mut(&session).filter(|holder| holder.attached.is_some()) else {
            return Extension::NotAttached;
        };
        if holder.acked < holder.told {
            // Sending may take longer than a lease, and it is not dead meanwhile.
            if !holder.telling.is_empty() && !holder.only_reads {
                let (from, to) = (holder.until, now + self.lease);
                let until = match holder.dirty {
                    Some(_) => patience_of(&mut self.clients, holder, session, now).pays(from, to, now),
                    None => holder.patience.pays(from, to, now),
                };
                holder.until = holder.until.max(Some(until));
            }
            return Extension::Pending;
        }
        holder.patience.rests(now);
        if let Some(client) = holder.client.and_then(|client| self.clients.get_mut(&client)) {
            client.rests(now);
        }
        holder.until = Some(now + self.lease);
        holder.alone = alone;
        Extension::Extended
    }

    /// Whether no two sessions have come to this leader.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.holders.len() <= 1
    }

    /// Whether a session may be told that there is no other one.
    #[must_use]
    pub fn nobody_arrives(&self) -> bool {
        self.arriving == 0
    }

    /// To be taken before a read whose answer is to be leased.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.ended
    }

    /// Grants leases on what was read since `stamp`. All or none: false when something of it is changing, has maybe
    /// changed since it was read, or the session cannot hold leases now. With it, a session that holds too many.
    pub fn grant(&mut self, session: SessionId, inos: &[Ino], stamp: u64, now: Instant) -> (bool, Option<Told>) {
        if self.may_have_changed(inos, stamp) || inos.iter().any(|ino| self.changing.contains_key(ino)) {
            return (false, None);
        }
        self.insert(session, inos, now)
    }

    /// Whether a change that has ended since the stamp touched one of these inodes.
    #[must_use]
    pub fn may_have_changed(&self, inos: &[Ino], stamp: u64) -> bool {
        let since = usize::try_from(self.ended.saturating_sub(stamp)).unwrap_or(usize::MAX);
        if since == 0 || since > self.recent.len() {
            return since > 0;
        }
        let asked: HashSet<Ino> = inos.iter().copied().collect();
        self.recent.iter().rev().take(since).any(|touched| touched.iter().any(|ino| asked.contains(ino)))
    }

    /// Leases that each session may hold.
    fn held_max(&self) -> usize {
        (TOTAL_MAX / self.holders.len().max(1)).clamp(HELD_MIN, HELD_MAX)
    }

    fn insert(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (bool, Option<Told>) {
        let most = self.held_max();
        let Some(holder) = self.holders.get_mut(&session).filter(|holder| holder.attached.is_some()) else {
            return (false, None);
        };
        if holder.emptying.is_some() {
            return (false, None);
        }
        if holder.inos.len() + inos.len() > most {
            let seq = holder.tell();
            holder.emptying = Some(seq);
            holder.telling.push((seq, Vec::new()));
            holder.patience.owes(now);
            return (false, Some(Told { session, seq }));
        }
        for ino in inos {
            if holder.inos.insert(*ino) {
                self.held.entry(*ino).or_default().push(session);
            }
        }
        (true, None)
    }

    /// A change by `session` begins. Returns who is to be told now to drop these inodes, and all whom the change waits
    /// for: these, and those others who were told before.
    pub fn begin(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (Vec<Told>, Vec<Told>) {
        let mut told: Vec<Told> = Vec::new();
        // One event for all that this change takes from a session.
        let mut places: HashMap<SessionId, usize> = HashMap::new();
        // Once each, however many of the inodes they concern.
        let mut waits: BTreeSet<Told> = BTreeSet::new();
        for ino in inos {
            self.disturb(session, *ino, now);
            waits.extend(self.telling_others(session, *ino).cloned());
            let changing = self.changing.entry(*ino).or_default();
            changing.several |= changing.count > 0;
            changing.count += 1;
            if let Some(before) = self.recalled.get_mut(ino) {
                before.retain(|told| self.holders.get(&told.session).is_some_and(|holder| !holder.has_acked(told.seq)));
                // Who is asked for something here by another change may have to make this one before it can acknowledge: it
                // does not wait for itself.
                waits.extend(before.iter().filter(|told| told.session != session).cloned());
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
                    told.push(Told { session: other, seq: holder.tell() });
                    told.len() - 1
                });
                let one = told[place].clone();
                if self.delegated.get(ino) == Some(&other) {
                    self.end_delegation(&one, *ino, now);
                }
                self.recalled.entry(*ino).or_default().push(one);
            }
        }
        waits.extend(told.iter().cloned());
        (told, waits.into_iter().collect())
    }

    /// A session comes to an inode. Whose delegation it ends is not given another one at once.
    fn disturb(&mut self, session: SessionId, ino: Ino, now: Instant) {
        let ends = self.delegated.get(&ino).is_some_and(|holder| *holder != session)
            || self.telling_others(session, ino).next().is_some();
        if !ends {
            return;
        }
        if self.contended.len() >= CONTENDED_MAX {
            self.contended.retain(|_, at| now - *at < CONTENDED);
            if self.contended.len() >= CONTENDED_MAX {
                self.contended.clear();
            }
        }
        self.contended.insert(ino, now);
    }

    /// Ends a delegation, whose holder is told so by this event and acknowledges it when it has told what it did there.
    fn end_delegation(&mut self, told: &Told, ino: Ino, now: Instant) {
        self.delegated.remove(&ino);
        self.telling.entry(ino).or_default().push(told.clone());
        if let Some(holder) = self.holders.get_mut(&told.session) {
            holder.asked_to_tell(told.seq, ino, now);
        }
    }

    /// Those others who are asked to tell what they did to an inode.
    fn telling_others(&self, session: SessionId, ino: Ino) -> impl Iterator<Item = &Told> {
        self.telling.get(&ino).into_iter().flatten().filter(move |told| told.session != session)
    }

    /// Ends the delegations of others on what a session is about to read; they keep their leases. Returns who is to be
    /// told so, each with the inodes, and all whom the read waits for.
    pub fn share(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (Vec<(Told, Vec<Ino>)>, Vec<Told>) {
        let mut tell: Vec<(Told, Vec<Ino>)> = Vec::new();
        // One event for all that this read ends of a session's.
        let mut places: HashMap<SessionId, usize> = HashMap::new();
        let mut waits: BTreeSet<Told> = BTreeSet::new();
        for ino in inos {
            self.disturb(session, *ino, now);
            if let Some(other) = self.delegated.get(ino).copied().filter(|other| *other != session)
                && let Some(holder) = self.holders.get_mut(&other)
            {
                let at = *places.entry(other).or_insert_with(|| {
                    tell.push((Told { session: other, seq: holder.tell() }, Vec::new()));
                    tell.len() - 1
                });
                tell[at].1.push(*ino);
                self.end_delegation(&tell[at].0, *ino, now);
            }
            waits.extend(self.telling_others(session, *ino).cloned());
        }
        (tell, waits.into_iter().collect())
    }

    /// Gives a session delegations on those of these inodes on which nobody else holds a lease. To be called with leases
    /// just granted.
    pub fn delegate(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> Vec<Ino> {
        let mut given = Vec::new();
        for ino in inos {
            let alone = self.held.get(ino).is_some_and(|held_by| held_by.as_slice() == [session]);
            let quiet = self.contended.get(ino).is_none_or(|at| now - *at >= CONTENDED);
            if alone && quiet && !self.changing.contains_key(ino) && !self.telling.contains_key(ino) {
                self.delegated.insert(*ino, session);
                given.push(*ino);
            }
        }
        given
    }

    /// Sessions that have not told yet what they did before they came.
    #[must_use]
    fn dirty_others(&self, session: SessionId) -> Vec<Told> {
        let dirty = self.holders.iter().filter_map(|(id, holder)| Some(Told { session: *id, seq: holder.dirty? }));
        dirty.filter(|told| told.session != session).collect()
    }

    /// Whom a read or change waits for because of what they have not told yet. One that `tells` what its session did under
    /// delegations, and was asked for, or is needed for that, waits for none of them: they may be the ones who wait for it.
    #[must_use]
    pub fn dirty_before(&self, session: SessionId, tells: bool) -> Vec<Told> {
        if tells && self.holders.get(&session).is_some_and(|holder| !holder.telling.is_empty()) {
            return Vec::new();
        }
        self.dirty_others(session)
    }

    /// A session has done what these events told it to. Returns whether that was news.
    pub fn acknowledge(&mut self, session: SessionId, seqs: &[Seq]) -> bool {
        let Some(holder) = self.holders.get_mut(&session) else { return false };
        let before = (holder.acked, holder.early.len());
        let open = holder.acked + 1..=holder.told;
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
        self.told_by(session, Holder::has_acked);
        true
    }

    /// When all that were told have acknowledged or run out: `None` if that is so now, else the next moment to look.
    #[must_use]
    pub fn unsettled_until(&self, told: &[Told], now: Instant) -> Option<Instant> {
        let open = |told: &Told| {
            let holder = self.holders.get(&told.session)?;
            (!holder.has_acked(told.seq) && holder.holds_at(now)).then_some(holder.until).flatten()
        };
        told.iter().filter_map(open).max()
    }

    /// Until when others may answer from what an earlier leader granted them: `None` when nobody does.
    #[must_use]
    pub fn grace_until(&self, mut others: impl Iterator<Item = SessionId>, now: Instant) -> Option<Instant> {
        let end = self.since + self.lease;
        (end > now && others.any(|other| !self.holders.contains_key(&other))).then_some(end)
    }

    /// A change has ended. True when its session now holds leases on all that it touched, as it was told.
    pub fn end(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> bool {
        let alone = inos.iter().all(|ino| self.changing.get(ino).is_some_and(|changing| !changing.several));
        for ino in inos {
            if let Some(changing) = self.changing.get_mut(ino) {
                changing.count -= 1;
                if changing.count == 0 {
                    self.changing.remove(ino);
                }
            }
            if let Some(before) = self.recalled.get_mut(ino) {
                before.retain(|told| self.holders.get(&told.session).is_some_and(|holder| !holder.has_acked(told.seq)));
                if before.is_empty() {
                    self.recalled.remove(ino);
                }
            }
        }
        self.ended += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(inos.to_vec());
        // Nobody is told here that it holds too many: the next read finds that.
        alone && self.insert_if_room(session, inos, now)
    }

    /// Grants leases on what a session has just made, though others were at work around it.
    pub fn grant_made(&mut self, session: SessionId, made: &[Ino], now: Instant) -> bool {
        self.insert_if_room(session, made, now)
    }

    /// Inserts without telling anybody that it holds too many.
    fn insert_if_room(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> bool {
        self.holders.get(&session).is_some_and(|holder| holder.inos.len() + inos.len() <= self.held_max())
            && self.insert(session, inos, now).0
    }

    /// A session arrives: those that were told they are alone must hear of it.
    pub fn arrive(&mut self) -> Vec<Told> {
        self.arriving += 1;
        let alone = self.holders.iter_mut().filter(|(_, holder)| holder.alone);
        alone.map(|(session, holder)| Told { session: *session, seq: holder.tell() }).collect()
    }

    /// It has arrived, or failed to.
    pub fn arrived(&mut self) {
        // A leadership that began meanwhile knows nothing of it.
        self.arriving = self.arriving.saturating_sub(1);
    }
}

/// The patience with the client of a session.
fn patience_of<'a>(
    clients: &'a mut HashMap<u64, Patience>,
    holder: &Holder,
    session: SessionId,
    now: Instant,
) -> &'a mut Patience {
    let client = holder.client.unwrap_or(session.0);
    if clients.len() >= CLIENTS_REMEMBERED && !clients.contains_key(&client) {
        clients.retain(|_, patience| !patience.is_whole(now));
    }
    clients.entry(client).or_default()
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

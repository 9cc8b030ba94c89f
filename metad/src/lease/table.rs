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
//! acknowledges. While it shows that it lives it is waited for longer than a lease, up to [`PATIENCE`]. A session that
//! comes to a new leader, or anew, and has not told everything yet is *dirty*: all others wait for it.
//!
//! Safety (a proptest below checks it): nobody answers from its cache what a completed change has made wrong, and nobody
//! reads what is older than what a delegation's holder has done, unless that one has been silent for longer than its
//! leases, or kept others waiting for too long.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};
use wire::ids::{Ino, SessionId};

/// Leases of one session; with more, all of them are recalled. Clients remember so many.
const HELD_MAX: usize = 65_536;
/// Leases of all sessions, about 100 bytes each: with many sessions, each may hold fewer.
const TOTAL_MAX: usize = 2_000_000;
/// But never fewer than a page of a listing needs.
const HELD_MIN: usize = 8_192;

/// How long a session that lives may take to tell what it did under delegations, once it is asked.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For so long after a delegation was recalled nobody is given one on the inode.
const CONTENDED: Duration = Duration::from_secs(2);
/// Recalled delegations that are remembered for that.
const CONTENDED_MAX: usize = 16_384;

/// Ended changes of which it is remembered what they touched. A read during which more end gets no lease.
const RECENT: usize = 256;

/// Number of an event that wants an acknowledgement, counted per session.
pub type Seq = u64;

/// Something a session is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Up to here it has acknowledged.
    acked: Seq,
    /// All its leases are being recalled, because there are too many.
    emptying: Option<Seq>,
    /// It was told that it is alone.
    alone: bool,
    /// What it is asked to tell: until when it is waited for, though it does not acknowledge, while it lives.
    telling: Vec<(Seq, Vec<Ino>, Instant)>,
    /// It came without having told everything, and acknowledges this when it has.
    dirty: Option<Seq>,
    inos: HashSet<Ino>,
}

impl Holder {
    fn tell(&mut self) -> Seq {
        self.told += 1;
        self.told
    }

    fn asked_to_tell(&mut self, seq: Seq, ino: Ino, now: Instant) {
        match self.telling.last_mut() {
            Some((last, inos, _)) if *last == seq => inos.push(ino),
            _ => self.telling.push((seq, vec![ino], now + PATIENCE)),
        }
    }

    fn holds_at(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// It is telling what it did, and has not had too long for that.
    fn is_telling(&self, now: Instant) -> bool {
        self.telling.iter().any(|(_, _, patience)| *patience > now)
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
    holders: HashMap<SessionId, Holder>,
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
}

impl Table {
    /// A leadership begins; leases hold for `lease`.
    #[must_use]
    pub fn new(lease: Duration, now: Instant) -> Self {
        Self {
            lease,
            since: now,
            holders: HashMap::new(),
            held: HashMap::new(),
            delegated: HashMap::new(),
            telling: HashMap::new(),
            contended: HashMap::new(),
            changing: HashMap::new(),
            recalled: HashMap::new(),
            ended: 0,
            recent: VecDeque::with_capacity(RECENT),
            arriving: 0,
        }
    }

    /// How long leases hold.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// A session follows the events from now on, by this stream. Its caches are empty: it emptied them before it asked.
    /// If it is `dirty`, everybody else waits until it has acknowledged the number that is returned.
    pub fn attach(&mut self, session: SessionId, stream: u64, dirty: bool, now: Instant) -> Option<Seq> {
        self.release_all(session);
        self.told_all(session, Seq::MAX);
        let lease = self.lease;
        let holder = self.holders.entry(session).or_default();
        holder.attached = Some(stream);
        holder.acked = holder.told;
        holder.emptying = None;
        holder.alone = false;
        holder.dirty = dirty.then(|| holder.tell());
        if let Some(seq) = holder.dirty {
            holder.until = holder.until.max(Some(now + lease));
            holder.telling.push((seq, Vec::new(), now + PATIENCE));
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
        self.told_all(session, Seq::MAX);
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

    /// A session has told what it was asked for up to this event, or need not any more.
    fn told_all(&mut self, session: SessionId, upto: Seq) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        for (_, inos, _) in holder.telling.extract_if(.., |(seq, _, _)| *seq <= upto) {
            for ino in inos {
                if let Some(told) = self.telling.get_mut(&ino) {
                    told.retain(|told| told.session != session || told.seq > upto);
                    if told.is_empty() {
                        self.telling.remove(&ino);
                    }
                }
            }
        }
        if holder.dirty.is_some_and(|seq| seq <= upto) {
            holder.dirty = None;
        }
    }

    /// A session shows that it lives.
    pub fn extend(&mut self, session: SessionId, now: Instant, alone: bool) -> Extension {
        let Some(holder) = self.holders.get_mut(&session).filter(|holder| holder.attached.is_some()) else {
            return Extension::NotAttached;
        };
        if holder.acked < holder.told {
            // Telling may take longer than a lease, and it is not dead meanwhile.
            if holder.is_telling(now) {
                holder.until = Some(now + self.lease);
            }
            return Extension::Pending;
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
        since > self.recent.len()
            || self.recent.iter().rev().take(since).any(|touched| touched.iter().any(|ino| inos.contains(ino)))
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
            holder.telling.push((seq, Vec::new(), now + PATIENCE));
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
    /// for: these, and those who were told before.
    pub fn begin(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (Vec<Told>, Vec<Told>) {
        let mut told: Vec<Told> = Vec::new();
        let mut waits: Vec<Told> = Vec::new();
        for ino in inos {
            self.disturb(session, *ino, now);
            waits.extend(self.telling.get(ino).into_iter().flatten().filter(|told| told.session != session).cloned());
            let changing = self.changing.entry(*ino).or_default();
            changing.several |= changing.count > 0;
            changing.count += 1;
            if let Some(before) = self.recalled.get_mut(ino) {
                before.retain(|told| self.holders.get(&told.session).is_some_and(|holder| holder.acked < told.seq));
                waits.extend(before.iter().cloned());
            }
            let Some(held_by) = self.held.get_mut(ino) else { continue };
            for other in held_by.extract_if(.., |other| *other != session) {
                let Some(holder) = self.holders.get_mut(&other) else { continue };
                holder.inos.remove(ino);
                // One event for all that this change takes from a session.
                let one = told.iter().find(|told| told.session == other).cloned().unwrap_or_else(|| {
                    let one = Told { session: other, seq: holder.tell() };
                    told.push(one.clone());
                    one
                });
                if self.delegated.get(ino) == Some(&other) {
                    self.delegated.remove(ino);
                    self.telling.entry(*ino).or_default().push(one.clone());
                    holder.asked_to_tell(one.seq, *ino, now);
                }
                self.recalled.entry(*ino).or_default().push(one);
            }
            if held_by.is_empty() {
                self.held.remove(ino);
            }
        }
        waits.extend(told.iter().cloned());
        (told, waits)
    }

    /// A session comes to an inode. Whose delegation it ends is not given another one at once.
    fn disturb(&mut self, session: SessionId, ino: Ino, now: Instant) {
        let contended = self.contended.get(&ino).is_some_and(|at| now - *at < CONTENDED);
        let ends = self.delegated.get(&ino).is_some_and(|holder| *holder != session)
            || self.telling.get(&ino).is_some_and(|told| told.iter().any(|told| told.session != session));
        if !(contended || ends) {
            return;
        }
        if self.contended.len() >= CONTENDED_MAX {
            self.contended.retain(|_, at| now - *at < CONTENDED);
            if self.contended.len() >= CONTENDED_MAX {
                self.contended.clear();
            }
        }
        if ends {
            self.contended.insert(ino, now);
        }
    }

    /// Ends the delegations of others on what a session is about to read; they keep their leases. Returns who is to be
    /// told so, each with the inodes, and all whom the read waits for.
    pub fn share(&mut self, session: SessionId, inos: &[Ino], now: Instant) -> (Vec<(Told, Vec<Ino>)>, Vec<Told>) {
        let mut tell: Vec<(Told, Vec<Ino>)> = Vec::new();
        let mut waits: Vec<Told> = Vec::new();
        for ino in inos {
            self.disturb(session, *ino, now);
            if let Some(other) = self.delegated.get(ino).copied().filter(|other| *other != session) {
                self.delegated.remove(ino);
                let Some(holder) = self.holders.get_mut(&other) else { continue };
                match tell.iter_mut().find(|(told, _)| told.session == other) {
                    Some((told, inos)) => {
                        inos.push(*ino);
                        self.telling.entry(*ino).or_default().push(told.clone());
                        holder.asked_to_tell(told.seq, *ino, now);
                    }
                    None => {
                        let told = Told { session: other, seq: holder.tell() };
                        holder.asked_to_tell(told.seq, *ino, now);
                        self.telling.entry(*ino).or_default().push(told.clone());
                        tell.push((told, vec![*ino]));
                    }
                }
            }
            waits.extend(self.telling.get(ino).into_iter().flatten().filter(|told| told.session != session).cloned());
        }
        (tell, waits)
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

    /// Sessions that have not told yet what they did before they came; a session that is one of them waits for none.
    #[must_use]
    pub fn dirty_others(&self, session: SessionId) -> Vec<Told> {
        if self.holders.get(&session).is_some_and(|holder| holder.dirty.is_some()) {
            return Vec::new();
        }
        let dirty = self.holders.iter().filter_map(|(id, holder)| Some(Told { session: *id, seq: holder.dirty? }));
        dirty.filter(|told| told.session != session).collect()
    }

    /// A session has dropped what it was told to drop, up to this event.
    pub fn acknowledge(&mut self, session: SessionId, seq: Seq) {
        let Some(holder) = self.holders.get_mut(&session) else { return };
        holder.acked = holder.acked.max(seq.min(holder.told));
        let acked = holder.acked;
        if holder.emptying.is_some_and(|emptying| holder.acked >= emptying) {
            holder.emptying = None;
            self.release_all(session);
        }
        self.told_all(session, acked);
    }

    /// When all that were told have acknowledged or run out: `None` if that is so now, else the next moment to look.
    #[must_use]
    pub fn unsettled_until(&self, told: &[Told], now: Instant) -> Option<Instant> {
        let open = |told: &Told| {
            let holder = self.holders.get(&told.session)?;
            (holder.acked < told.seq && holder.holds_at(now)).then_some(holder.until).flatten()
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
                before.retain(|told| self.holders.get(&told.session).is_some_and(|holder| holder.acked < told.seq));
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
        alone
            && self.holders.get(&session).is_some_and(|holder| holder.inos.len() + inos.len() <= self.held_max())
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

fn forget(held: &mut HashMap<Ino, Vec<SessionId>>, ino: Ino, session: SessionId) {
    if let Some(held_by) = held.get_mut(&ino) {
        held_by.retain(|other| *other != session);
        if held_by.is_empty() {
            held.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(5);
    const SESSIONS: u64 = 3;
    const INODES: u64 = 3;

    /// What a client does, as `client::cache` does it: an answer is kept unless something of it was recalled since it was
    /// asked for, and used while the leases hold.
    #[derive(Default)]
    struct Client {
        cached: HashMap<Ino, u64>,
        attached: bool,
        until: Option<Instant>,
        /// When each inode was recalled, counted; and up to where everything was dropped.
        clock: u64,
        recalled: HashMap<Ino, u64>,
        floor: u64,
        /// Events on their way to it.
        events: Vec<Event>,
        /// Answers on their way to it: inode, version, when it asked.
        answers: Vec<(Ino, u64, u64)>,
        /// Extensions on their way to it: when it asked, by the clock and by its own count.
        extensions: Vec<(Instant, u64)>,
    }

    enum Event {
        Attached,
        Recall(Seq, Vec<Ino>),
    }

    /// A change under way.
    struct Change {
        session: u64,
        inos: Vec<Ino>,
        waits: Vec<Told>,
        /// What it has made of each inode.
        applied: Option<Vec<(Ino, u64)>>,
    }

    /// A read that metad has answered, and not granted a lease on yet.
    struct Looked {
        session: u64,
        ino: Ino,
        /// When its client asked.
        asked: u64,
        stamp: u64,
        version: u64,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Empty(u64),
        Attach(u64),
        Break(u64),
        Extend(u64),
        TakeExtension(u64),
        Ask { session: u64, ino: u64 },
        Grant(usize),
        TakeAnswer(u64),
        TakeEvent { session: u64, acknowledge: bool },
        Begin { session: u64, inos: Vec<u64> },
        Apply(usize),
        End(usize),
        Pass(u64),
        Lead,
    }

    fn step() -> impl Strategy<Value = Step> {
        let session = 0..SESSIONS;
        prop_oneof![
            1 => session.clone().prop_map(Step::Empty),
            3 => session.clone().prop_map(Step::Attach),
            1 => session.clone().prop_map(Step::Break),
            4 => session.clone().prop_map(Step::Extend),
            4 => session.clone().prop_map(Step::TakeExtension),
            8 => (session.clone(), 0..INODES).prop_map(|(session, ino)| Step::Ask { session, ino }),
            8 => (0_usize..3).prop_map(Step::Grant),
            8 => session.clone().prop_map(Step::TakeAnswer),
            8 => (session.clone(), prop::bool::weighted(0.8))
                .prop_map(|(session, acknowledge)| Step::TakeEvent { session, acknowledge }),
            6 => (session, prop::collection::vec(0..INODES, 1..3))
                .prop_map(|(session, inos)| Step::Begin { session, inos }),
            6 => (0_usize..4).prop_map(Step::Apply),
            6 => (0_usize..4).prop_map(Step::End),
            3 => (0_u64..3000).prop_map(Step::Pass),
            1 => Just(Step::Lead),
        ]
    }

    struct World {
        now: Instant,
        table: Table,
        clients: Vec<Client>,
        changes: Vec<Change>,
        reads: Vec<Looked>,
        /// Versions as applied.
        applied: HashMap<Ino, u64>,
    }

    impl World {
        fn take(&mut self, step: Step) {
            match step {
                Step::Empty(session) => {
                    let client = &mut self.clients[session as usize];
                    client.cached.clear();
                    client.until = None;
                    client.attached = false;
                    client.events.clear();
                }
                Step::Attach(session) => {
                    let client = &mut self.clients[session as usize];
                    if !client.attached {
                        client.events = vec![Event::Attached];
                        self.table.attach(SessionId(session), 0, false, self.now);
                    }
                }
                Step::Break(session) => {
                    self.clients[session as usize].events.clear();
                    self.table.detach(SessionId(session), 0);
                }
                Step::Extend(session) => {
                    if self.table.extend(SessionId(session), self.now, false) == Extension::Extended {
                        let client = &mut self.clients[session as usize];
                        client.extensions.push((self.now, client.clock));
                    }
                }
                Step::TakeExtension(session) => {
                    let client = &mut self.clients[session as usize];
                    if let Some((asked, mark)) = client.extensions.pop()
                        && client.attached
                        && client.floor <= mark
                    {
                        client.until = client.until.max(Some(asked + LEASE));
                    }
                }
                Step::Ask { session, ino } => {
                    let ino = Ino(ino);
                    let asked = self.clients[session as usize].clock;
                    let stamp = self.table.stamp();
                    let version = self.applied.get(&ino).copied().unwrap_or(0);
                    self.reads.push(Looked { session, ino, asked, stamp, version });
                }
                Step::Grant(index) => {
                    if index < self.reads.len() {
                        let Looked { session, ino, asked, stamp, version } = self.reads.remove(index);
                        if self.table.grant(SessionId(session), &[ino], stamp, self.now).0 {
                            self.clients[session as usize].answers.push((ino, version, asked));
                        }
                    }
                }
                Step::TakeAnswer(session) => {
                    let client = &mut self.clients[session as usize];
                    if let Some((ino, version, asked)) = client.answers.pop()
                        && client.attached
                        && client.recalled.get(&ino).is_none_or(|at| *at <= asked)
                        && client.floor <= asked
                    {
                        client.cached.insert(ino, version);
                    }
                }
                Step::TakeEvent { session, acknowledge } => {
                    let client = &mut self.clients[session as usize];
                    if client.events.is_empty() {
                        return;
                    }
                    client.clock += 1;
                    let (seq, inos) = match client.events.remove(0) {
                        Event::Attached => {
                            (client.attached, client.floor) = (true, client.clock);
                            return;
                        }
                        Event::Recall(seq, inos) => (seq, inos),
                    };
                    for ino in inos {
                        client.cached.remove(&ino);
                        client.recalled.insert(ino, client.clock);
                    }
                    if acknowledge {
                        self.table.acknowledge(SessionId(session), seq);
                    }
                }
                Step::Begin { session, inos } => {
                    let others = (0..SESSIONS).filter(|other| *other != session).map(SessionId);
                    if self.table.grace_until(others, self.now).is_some() {
                        return;
                    }
                    let inos: Vec<Ino> = HashSet::<u64>::from_iter(inos).into_iter().map(Ino).collect();
                    // What a client changes itself it drops when it begins.
                    let client = &mut self.clients[session as usize];
                    client.clock += 1;
                    for ino in &inos {
                        client.cached.remove(ino);
                        client.recalled.insert(*ino, client.clock);
                    }
                    let (tell, waits) = self.table.begin(SessionId(session), &inos, self.now);
                    for Told { session, seq } in tell {
                        self.clients[session.0 as usize].events.push(Event::Recall(seq, inos.clone()));
                    }
                    self.changes.push(Change { session, inos, waits, applied: None });
                }
                Step::Apply(index) => {
                    let Some(change) = self.changes.get_mut(index) else { return };
                    if change.applied.is_none() && self.table.unsettled_until(&change.waits, self.now).is_none() {
                        let apply = |ino: &Ino| {
                            let version = self.applied.entry(*ino).or_insert(0);
                            *version += 1;
                            (*ino, *version)
                        };
                        change.applied = Some(change.inos.iter().map(apply).collect());
                    }
                }
                Step::End(index) => {
                    if self.changes.get(index).is_none_or(|change| change.applied.is_none()) {
                        return;
                    }
                    let change = self.changes.remove(index);
                    let leased = self.table.end(SessionId(change.session), &change.inos, self.now);
                    let client = &mut self.clients[change.session as usize];
                    for (ino, version) in change.applied.into_iter().flatten().filter(|_| leased) {
                        client.answers.push((ino, version, client.clock));
                    }
                }
                Step::Pass(ms) => self.now += Duration::from_millis(ms),
                Step::Lead => {
                    // Changes under way end with the leader that began them: their callers ask the next one.
                    self.changes.clear();
                    self.reads.clear();
                    self.table = Table::new(LEASE, self.now);
                    for client in &mut self.clients {
                        client.events.clear();
                    }
                }
            }
        }

        fn check(&self) -> Result<(), TestCaseError> {
            for client in &self.clients {
                if client.until.is_none_or(|until| until <= self.now) {
                    continue;
                }
                for (ino, version) in &client.cached {
                    // Not only completed changes: whoever reads the new state elsewhere may tell of it.
                    let applied = self.applied.get(ino).copied().unwrap_or(0);
                    prop_assert!(*version >= applied, "{ino:?} is cached as of {version}, and {applied} is applied");
                }
            }
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn nobody_answers_from_a_cache_what_an_applied_change_has_made_wrong(
            steps in prop::collection::vec(step(), 1..120)
        ) {
            let now = Instant::now();
            let clients = (0..SESSIONS).map(|_| Client::default()).collect();
            let table = Table::new(LEASE, now);
            let mut world = World {
                now,
                table,
                clients,
                changes: Vec::new(),
                reads: Vec::new(),
                applied: HashMap::new(),
            };
            world.now += LEASE;
            for step in steps {
                world.take(step);
                world.check()?;
            }
        }
    }

    #[test]
    fn a_holder_that_acknowledges_is_waited_for_no_longer_and_a_silent_one_for_its_lease() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
        table.attach(one, 0, false, now);
        table.attach(two, 1, false, now);
        assert_eq!(table.extend(two, now, false), Extension::Extended);
        assert!(table.grant(two, &[file], table.stamp(), now).0);
        let (_, waits) = table.begin(one, &[file], now);
        assert_eq!(table.unsettled_until(&waits, now), Some(now + LEASE));
        assert_eq!(table.extend(two, now, false), Extension::Pending);
        assert!(!table.grant(two, &[file], table.stamp(), now).0, "it is changing");
        let (_, also) = table.begin(one, &[file], now);
        assert_eq!(table.unsettled_until(&also, now), Some(now + LEASE), "a second change waits as well");
        table.acknowledge(two, waits[0].seq);
        assert_eq!(table.unsettled_until(&waits, now), None);
        assert!(!table.end(one, &[file], now), "another change is under way");
        assert!(!table.end(one, &[file], now), "there were two: nobody knows which was the last to apply");
        table.begin(one, &[file], now);
        assert!(table.end(one, &[file], now));
        assert!(table.grant(two, &[file], table.stamp(), now).0);
        let (_, waits) = table.begin(one, &[file], now);
        assert_eq!(table.unsettled_until(&waits, now + LEASE), None);
    }

    #[test]
    fn a_read_is_leased_though_something_else_was_changed_meanwhile() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let (one, two) = (SessionId(1), SessionId(2));
        table.attach(one, 0, false, now);
        table.attach(two, 1, false, now);
        let stamp = table.stamp();
        table.begin(one, &[Ino(7)], now);
        table.end(one, &[Ino(7)], now);
        assert!(!table.grant(two, &[Ino(7)], stamp, now).0);
        assert!(table.grant(two, &[Ino(8)], stamp, now).0);
        for _ in 0..RECENT {
            table.begin(one, &[Ino(9)], now);
            table.end(one, &[Ino(9)], now);
        }
        assert!(!table.grant(two, &[Ino(8)], stamp, now).0, "nobody knows any more");
    }

    #[test]
    fn too_many_leases_of_one_session_are_recalled_together() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let one = SessionId(1);
        table.attach(one, 0, false, now);
        let many: Vec<Ino> = (0..HELD_MAX as u64).map(Ino).collect();
        assert!(table.grant(one, &many, table.stamp(), now).0);
        let (granted, told) = table.grant(one, &[Ino(u64::MAX)], table.stamp(), now);
        let told = told.unwrap();
        assert!(!granted && table.held.len() == HELD_MAX);
        table.acknowledge(one, told.seq);
        assert!(table.held.is_empty());
        assert!(table.grant(one, &[Ino(u64::MAX)], table.stamp(), now).0);
    }

    #[test]
    fn a_new_leader_waits_for_sessions_that_have_not_come_to_it() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let others = || [SessionId(2), SessionId(3)].into_iter();
        table.attach(SessionId(2), 0, false, now);
        assert_eq!(table.grace_until(others(), now), Some(now + LEASE));
        table.attach(SessionId(3), 0, false, now);
        assert_eq!(table.grace_until(others(), now), None);
        assert_eq!(Table::new(LEASE, now).grace_until(others(), now + LEASE), None);
    }

    #[test]
    fn a_delegation_is_for_who_is_alone_and_a_reader_waits_until_its_holder_has_told_everything() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut table = Table::new(LEASE, now);
        let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
        table.attach(one, 0, false, now);
        table.attach(two, 1, false, now);
        assert_eq!(table.extend(one, now, false), Extension::Extended);
        assert!(table.grant(one, &[file], table.stamp(), now).0 && table.grant(two, &[file], table.stamp(), now).0);
        assert!(table.delegate(one, &[file], now).is_empty(), "another one has a lease");
        let (_, waits) = table.begin(one, &[file], now);
        table.acknowledge(two, waits[0].seq);
        assert!(table.end(one, &[file], now));
        assert_eq!(table.delegate(one, &[file], now), [file]);
        assert_eq!(table.share(one, &[file], now), (vec![], vec![]), "its holder may look");

        let (tell, waits) = table.share(two, &[file], now);
        assert_eq!(tell, [(waits[0].clone(), vec![file])]);
        assert_eq!(table.unsettled_until(&waits, now), Some(later(5)));
        assert!(table.share(two, &[file], now).0.is_empty(), "it was told already");
        assert_eq!(table.extend(one, later(4), false), Extension::Pending);
        assert_eq!(table.unsettled_until(&waits, later(6)), Some(later(9)), "it lives, and is telling");
        let (_, also) = table.begin(two, &[file], later(6));
        assert!(also.contains(&waits[0]), "a change waits, too");
        table.end(two, &[file], later(6));
        table.acknowledge(one, Seq::MAX);
        assert_eq!(table.unsettled_until(&also, later(6)), None);
        assert!(table.share(two, &[file], later(6)).1.is_empty());
    }

    #[test]
    fn a_holder_that_lives_but_never_tells_is_waited_for_a_while_and_no_longer() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
        table.attach(one, 0, false, now);
        assert_eq!(table.extend(one, now, false), Extension::Extended);
        assert!(table.grant(one, &[file], table.stamp(), now).0);
        assert_eq!(table.delegate(one, &[file], now), [file]);
        let (_, waits) = table.share(two, &[file], now);
        let mut at = now;
        while table.unsettled_until(&waits, at).is_some() {
            at += Duration::from_secs(1);
            table.extend(one, at, false);
            assert!(at <= now + PATIENCE + LEASE);
        }
        assert!(at >= now + PATIENCE);
    }

    #[test]
    fn all_others_wait_for_a_session_that_comes_without_having_told_everything() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let (one, two) = (SessionId(1), SessionId(2));
        let seq = table.attach(one, 0, true, now).unwrap();
        let also = table.attach(two, 1, true, now).unwrap();
        assert!(table.dirty_others(one).is_empty(), "those that are dirty do not wait for each other");
        table.acknowledge(two, also);
        let dirty = table.dirty_others(two);
        assert_eq!(dirty, [Told { session: one, seq }]);
        assert!(table.unsettled_until(&dirty, now).is_some());
        table.acknowledge(one, seq);
        assert!(table.dirty_others(two).is_empty());
        assert_eq!(table.attach(one, 2, false, now), None);
    }

    #[test]
    fn where_a_delegation_was_recalled_there_is_none_for_a_while() {
        let now = Instant::now();
        let mut table = Table::new(LEASE, now);
        let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
        table.attach(one, 0, false, now);
        assert!(table.grant(one, &[file], table.stamp(), now).0);
        assert_eq!(table.delegate(one, &[file], now), [file]);
        let (_, waits) = table.share(two, &[file], now);
        table.acknowledge(one, waits[0].seq);
        assert!(table.delegate(one, &[file], now).is_empty());
        assert_eq!(table.delegate(one, &[file], now + CONTENDED), [file]);
    }
}

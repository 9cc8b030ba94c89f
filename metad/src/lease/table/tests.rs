use super::*;
use crate::lease::patience::CLIENT_PATIENCE_MAX;
use proptest::prelude::*;
use std::collections::BTreeSet;

const LEASE: Duration = Duration::from_secs(5);
const SESSIONS: u64 = 3;
const INODES: u64 = 3;

/// A client, which does what `client::cache` does: it caches an answer unless something of it was recalled since the
/// client asked, and uses it while the leases hold.
#[derive(Default)]
struct Client {
    cached: HashMap<Ino, u64>,
    attached: bool,
    until: Option<Instant>,
    /// When each inode was recalled, as a count of events, and up to which count everything was dropped.
    clock: u64,
    recalled: HashMap<Ino, u64>,
    floor: u64,
    /// Events on their way to it.
    events: Vec<Event>,
    /// Answers on their way to it: inode, version, and when it asked.
    answers: Vec<(Ino, u64, u64)>,
    /// Extensions on their way to it: when it asked, by the clock and by its count of events.
    extensions: Vec<(Instant, u64)>,
}

enum Event {
    Attached,
    Recall(Seq, Vec<Ino>),
    RecallAll(Seq),
}

/// A session that an operator ends: it is closed once it can hold no leases any more.
struct Evicted {
    session: u64,
    recalled: Option<Notice>,
    closed: bool,
}

/// A change under way.
struct Change {
    session: u64,
    inos: Vec<Ino>,
    waits: Vec<Notice>,
    /// The version that it has made of each inode.
    applied: Option<Vec<(Ino, u64)>>,
}

/// A read that metad has answered, but not granted a lease on yet.
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
    Evict(u64),
    Close(usize),
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
        1 => session.clone().prop_map(Step::Evict),
        2 => (0_usize..2).prop_map(Step::Close),
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
    /// Evictions of this leadership.
    evicted: Vec<Evicted>,
    /// Applied versions.
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
                    self.table.introduce(SessionId(session), session, true, None);
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
                    if self.table.grant(SessionId(session), &[ino], stamp).0 {
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
                    Event::RecallAll(seq) => {
                        client.cached.clear();
                        client.floor = client.clock;
                        (seq, Vec::new())
                    }
                };
                for ino in inos {
                    client.cached.remove(&ino);
                    client.recalled.insert(ino, client.clock);
                }
                if acknowledge {
                    self.table.acknowledge(SessionId(session), &[seq]);
                }
            }
            Step::Begin { session, inos } => {
                let others = (0..SESSIONS).filter(|other| *other != session).map(SessionId);
                if self.table.grace_until(others, self.now).is_some() {
                    return;
                }
                let inos: Vec<Ino> = HashSet::<u64>::from_iter(inos).into_iter().map(Ino).collect();
                // A client drops what it changes itself when it begins.
                let client = &mut self.clients[session as usize];
                client.clock += 1;
                for ino in &inos {
                    client.cached.remove(ino);
                    client.recalled.insert(*ino, client.clock);
                }
                let (notices, waits) = self.table.begin(SessionId(session), &inos, self.now);
                for Notice { session, seq } in notices {
                    self.clients[session.0 as usize].events.push(Event::Recall(seq, inos.clone()));
                }
                self.changes.push(Change { session, inos, waits, applied: None });
            }
            Step::Apply(index) => {
                let Some(change) = self.changes.get_mut(index) else { return };
                if change.applied.is_none() && self.table.unsettled_until(None, &change.waits, self.now).is_none() {
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
                let leased = self.table.end(SessionId(change.session), &change.inos);
                let client = &mut self.clients[change.session as usize];
                for (ino, version) in change.applied.into_iter().flatten().filter(|_| leased) {
                    client.answers.push((ino, version, client.clock));
                }
            }
            Step::Evict(session) => {
                let recalled = self.table.evict(SessionId(session));
                if let Some(Notice { seq, .. }) = recalled {
                    self.clients[session as usize].events.push(Event::RecallAll(seq));
                }
                self.evicted.push(Evicted { session, recalled, closed: false });
            }
            Step::Close(index) => {
                let Some(Evicted { session, recalled, closed }) = self.evicted.get_mut(index) else { return };
                let recalled: Vec<Notice> = recalled.iter().cloned().collect();
                let waits = self.table.unsettled_until(None, &recalled, self.now);
                let id = SessionId(*session);
                if waits.or_else(|| self.table.grace_until(std::iter::once(id), self.now)).is_none() {
                    self.table.remove(id);
                    *closed = true;
                }
            }
            Step::Pass(ms) => self.now += Duration::from_millis(ms),
            Step::Lead => {
                // Changes under way end with the leader that began them: their callers ask the next leader.
                self.changes.clear();
                self.reads.clear();
                self.evicted.clear();
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
                // Applied changes count before they complete: somebody who reads the new state elsewhere may report it.
                let applied = self.applied.get(ino).copied().unwrap_or(0);
                prop_assert!(*version >= applied, "{ino:?} is cached as of {version}, and {applied} is applied");
            }
        }
        for Evicted { session, .. } in self.evicted.iter().filter(|evicted| evicted.closed) {
            let client = &self.clients[*session as usize];
            let answers = client.until.is_some_and(|until| until > self.now) && !client.cached.is_empty();
            prop_assert!(!answers, "{session} has ended, and answers from its cache");
            prop_assert!(!self.table.holders.contains_key(&SessionId(*session)), "{session} has ended");
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
            evicted: Vec::new(),
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
    assert!(table.grant(two, &[file], table.stamp()).0);
    let (_, waits) = table.begin(one, &[file], now);
    assert_eq!(table.unsettled_until(None, &waits, now), Some(now + LEASE));
    assert_eq!(table.extend(two, now, false), Extension::Pending);
    assert!(!table.grant(two, &[file], table.stamp()).0, "it is changing");
    let (_, also) = table.begin(one, &[file], now);
    assert_eq!(table.unsettled_until(None, &also, now), Some(now + LEASE), "a second change waits as well");
    table.acknowledge(two, &[waits[0].seq]);
    assert_eq!(table.unsettled_until(None, &waits, now), None);
    assert!(!table.end(one, &[file]), "another change is under way");
    assert!(!table.end(one, &[file]), "there were two: nobody knows which was the last to apply");
    table.begin(one, &[file], now);
    assert!(table.end(one, &[file]));
    assert!(table.grant(two, &[file], table.stamp()).0);
    let (_, waits) = table.begin(one, &[file], now);
    assert_eq!(table.unsettled_until(None, &waits, now + LEASE), None);
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
    table.end(one, &[Ino(7)]);
    assert!(!table.grant(two, &[Ino(7)], stamp).0);
    assert!(table.grant(two, &[Ino(8)], stamp).0);
    for _ in 0..CHANGES_REMEMBERED {
        table.begin(one, &[Ino(9)], now);
        table.end(one, &[Ino(9)]);
    }
    assert!(!table.grant(two, &[Ino(8)], stamp).0, "nobody knows any more");
}

#[test]
fn too_many_leases_of_one_session_are_recalled_together() {
    let now = Instant::now();
    let mut table = Table::new(LEASE, now);
    let one = SessionId(1);
    table.attach(one, 0, false, now);
    let many: Vec<Ino> = (0..HELD_MAX as u64).map(Ino).collect();
    assert!(table.grant(one, &many, table.stamp()).0);
    let (granted, notice) = table.grant(one, &[Ino(u64::MAX)], table.stamp());
    let notice = notice.unwrap();
    assert!(!granted && table.held.len() == HELD_MAX);
    table.acknowledge(one, &[notice.seq]);
    assert!(table.held.is_empty());
    assert!(table.grant(one, &[Ino(u64::MAX)], table.stamp()).0);
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
fn a_delegation_is_for_a_sole_holder_and_a_reader_waits_until_it_has_sent_everything() {
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let mut table = Table::new(LEASE, now);
    let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
    table.attach(one, 0, false, now);
    table.attach(two, 1, false, now);
    assert_eq!(table.extend(one, now, false), Extension::Extended);
    assert!(table.grant(one, &[file], table.stamp()).0 && table.grant(two, &[file], table.stamp()).0);
    assert!(table.delegate(one, &[file], now).is_empty(), "another one has a lease");
    let (_, waits) = table.begin(one, &[file], now);
    table.acknowledge(two, &[waits[0].seq]);
    assert!(table.end(one, &[file]));
    assert_eq!(table.delegate(one, &[file], now), [file]);
    assert_eq!(table.share(one, &[file], now), (vec![], vec![]), "its holder may look");

    let (notices, waits) = table.share(two, &[file], now);
    assert_eq!(notices, [(waits[0].clone(), vec![file])]);
    assert_eq!(table.unsettled_until(None, &waits, now), Some(later(5)));
    assert!(table.share(two, &[file], now).0.is_empty(), "the event was sent already");
    assert_eq!(table.extend(one, later(4), false), Extension::Pending);
    assert_eq!(table.unsettled_until(None, &waits, later(6)), Some(later(9)), "it lives, and is sending");
    let (_, also) = table.begin(two, &[file], later(6));
    assert!(also.contains(&waits[0]), "a change waits, too");
    table.end(two, &[file]);
    table.acknowledge(one, &also.iter().map(|notice| notice.seq).collect::<Vec<_>>());
    assert_eq!(table.unsettled_until(None, &also, later(6)), None);
    assert!(table.share(two, &[file], later(6)).1.is_empty());
}

#[test]
fn a_holder_that_lives_but_never_sends_is_waited_for_a_while_and_no_longer() {
    let now = Instant::now();
    let mut table = Table::new(LEASE, now);
    let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
    table.attach(one, 0, false, now);
    assert_eq!(table.extend(one, now, false), Extension::Extended);
    assert!(table.grant(one, &[file], table.stamp()).0);
    assert_eq!(table.delegate(one, &[file], now), [file]);
    assert!(table.grant(one, &[Ino(8)], table.stamp()).0);
    assert_eq!(table.delegate(one, &[Ino(8)], now), [Ino(8)]);
    let (_, waits) = table.share(two, &[file], now);
    let mut at = now;
    while table.unsettled_until(None, &waits, at).is_some() {
        at += Duration::from_secs(1);
        table.extend(one, at, false);
        if at == now + CLIENT_PATIENCE_MAX / 2 {
            assert_eq!(table.share(two, &[Ino(8)], at).0.len(), 1, "asking for more later changes nothing");
        }
        assert!(at <= now + CLIENT_PATIENCE_MAX + LEASE);
    }
    assert!(at >= now + CLIENT_PATIENCE_MAX);
}

/// Each has something to send that waits for a lease of the other on what that has only read.
#[test]
fn two_holders_that_wait_for_each_other_may_acknowledge_early_what_asks_for_nothing_unsent() {
    let now = Instant::now();
    let mut table = Table::new(LEASE, now);
    let sessions = [SessionId(1), SessionId(2)];
    for (session, dir) in [(sessions[0], Ino(10)), (sessions[1], Ino(20))] {
        table.attach(session, session.0, false, now);
        table.extend(session, now, false);
        assert!(table.grant(session, &[dir], table.stamp()).0);
        assert_eq!(table.delegate(session, &[dir], now), [dir]);
    }
    for session in sessions {
        assert!(table.grant(session, &[Ino(11), Ino(21)], table.stamp()).0);
    }
    // A third session looks, and both have to send: about one file each, on which the other has a lease.
    let third = SessionId(3);
    let asked: Vec<Notice> = [Ino(10), Ino(20)].map(|dir| table.share(third, &[dir], now).1.remove(0)).into();
    let (_, one_waits) = table.begin(sessions[0], &[Ino(10), Ino(11)], now);
    let (_, two_waits) = table.begin(sessions[1], &[Ino(20), Ino(21)], now);
    for (waits, other) in [(&one_waits, sessions[1]), (&two_waits, sessions[0])] {
        assert_eq!(waits.len(), 1);
        assert!(waits[0].session == other && waits[0].seq > asked[0].seq, "later than the event that waits for it");
        table.acknowledge(other, &[waits[0].seq]);
    }
    assert!(table.unsettled_until(None, &[one_waits, two_waits].concat(), now).is_none());
    assert!(table.unsettled_until(None, &asked, now).is_some(), "the earlier events are not acknowledged by that");
    for notice in &asked {
        table.acknowledge(notice.session, &[notice.seq]);
    }
    assert!(table.unsettled_until(None, &asked, now).is_none());
}

#[test]
fn all_others_wait_for_a_session_that_attaches_with_unsent_operations() {
    let now = Instant::now();
    let mut table = Table::new(LEASE, now);
    let (one, two) = (SessionId(1), SessionId(2));
    let seq = table.attach(one, 0, true, now).unwrap();
    let also = table.attach(two, 1, true, now).unwrap();
    assert_eq!(table.dirty_before(one, false), [Notice { session: two, seq: also }], "whatever it has to send itself");
    assert!(table.dirty_before(one, true).is_empty(), "but when they send that, they do not wait for each other");
    table.acknowledge(two, &[also]);
    let dirty = table.dirty_before(two, false);
    assert_eq!(dirty, [Notice { session: one, seq }]);
    assert!(table.unsettled_until(None, &dirty, now).is_some());
    table.acknowledge(one, &[seq]);
    assert!(table.dirty_before(two, false).is_empty());
    assert_eq!(table.attach(one, 2, false, now), None);
}

#[test]
fn no_delegation_is_given_for_a_while_where_one_was_recalled() {
    let now = Instant::now();
    let mut table = Table::new(LEASE, now);
    let (one, two, file) = (SessionId(1), SessionId(2), Ino(7));
    table.attach(one, 0, false, now);
    assert!(table.grant(one, &[file], table.stamp()).0);
    assert_eq!(table.delegate(one, &[file], now), [file]);
    let (_, waits) = table.share(two, &[file], now);
    table.acknowledge(one, &[waits[0].seq]);
    assert!(table.delegate(one, &[file], now).is_empty());
    assert_eq!(table.delegate(one, &[file], now + CONTENTION_PAUSE), [file]);
}

/// Delegations: what sessions do in their own memory, and send later.
mod delegations {
    use super::*;

    #[derive(Default)]
    struct Worker {
        attached: bool,
        /// It uses its leases until then, for a little less long than metad waits.
        until: Option<Instant>,
        delegated: HashSet<Ino>,
        /// What it did and has not sent.
        unsent: Vec<Ino>,
        /// Until when this leader or the next waits for it, and whether that was over since it did the first of that.
        covered: Option<Instant>,
        late: bool,
        events: Vec<(Seq, Vec<Ino>)>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Attach(u64),
        Break(u64),
        Extend(u64),
        Change {
            session: u64,
            ino: u64,
        },
        Do {
            session: u64,
            ino: u64,
        },
        TakeEvent(u64),
        /// Takes the first event that needs nothing to be sent, whatever came before it.
        TakeEarly(u64),
        Send(u64),
        Read {
            session: u64,
            ino: u64,
        },
        Evict(u64),
        Pass(u64),
        Lead,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (session, both) = (0..SESSIONS, || (0..SESSIONS, 0..INODES));
        prop_oneof![
            3 => session.clone().prop_map(Step::Attach),
            1 => session.clone().prop_map(Step::Break),
            6 => session.clone().prop_map(Step::Extend),
            6 => both().prop_map(|(session, ino)| Step::Change { session, ino }),
            12 => both().prop_map(|(session, ino)| Step::Do { session, ino }),
            6 => session.clone().prop_map(Step::TakeEvent),
            2 => session.clone().prop_map(Step::TakeEarly),
            3 => session.clone().prop_map(Step::Send),
            1 => session.prop_map(Step::Evict),
            12 => both().prop_map(|(session, ino)| Step::Read { session, ino }),
            3 => (0_u64..2500).prop_map(Step::Pass),
            1 => Just(Step::Lead),
        ]
    }

    struct World {
        now: Instant,
        table: Table,
        workers: Vec<Worker>,
        /// Reads that were answered, and operations done in memory: a test checks that there are any.
        reads: u32,
        done: u32,
    }

    impl World {
        fn worker(&mut self, session: u64) -> &mut Worker {
            &mut self.workers[session as usize]
        }

        /// Returns whether no other session has to come first.
        fn is_open_for(&mut self, session: u64, sends: bool) -> bool {
            let others = (0..SESSIONS).filter(|other| *other != session).map(SessionId);
            let dirty = self.table.dirty_before(SessionId(session), sends);
            self.table.grace_until(others, self.now).is_none()
                && self.table.unsettled_until(None, &dirty, self.now).is_none()
        }

        fn push(&mut self, notice: &Notice, inos: &[Ino]) {
            let worker = self.worker(notice.session.0);
            if worker.attached {
                worker.events.push((notice.seq, inos.to_vec()));
            }
        }

        /// Makes a change, if nobody has to be waited for. Returns the delegations that come with it.
        fn change(&mut self, session: u64, inos: &[Ino], sends: bool) -> Option<Vec<Ino>> {
            if !self.is_open_for(session, sends) {
                return None;
            }
            let id = SessionId(session);
            let (notices, waits) = self.table.begin(id, inos, self.now);
            for notice in &notices {
                self.push(notice, inos);
            }
            let settled = self.table.unsettled_until(None, &waits, self.now).is_none();
            let leased = self.table.end(id, inos);
            let given = if leased && settled { self.table.delegate(id, inos, self.now) } else { Vec::new() };
            settled.then_some(given)
        }

        fn send(&mut self, session: u64) -> bool {
            let unsent: BTreeSet<Ino> = self.worker(session).unsent.iter().copied().collect();
            let unsent: Vec<Ino> = unsent.into_iter().collect();
            if unsent.is_empty() {
                return true;
            }
            let sent = self.change(session, &unsent, true).is_some();
            if sent {
                let worker = self.worker(session);
                worker.unsent.clear();
                worker.late = false;
            }
            sent
        }

        fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
            let now = self.now;
            match step {
                Step::Attach(session) => {
                    let worker = self.worker(session);
                    (worker.attached, worker.until) = (true, None);
                    worker.delegated.clear();
                    worker.events.clear();
                    let dirty = !worker.unsent.is_empty();
                    if let Some(seq) = self.table.attach(SessionId(session), 0, dirty, now) {
                        self.push(&Notice { session: SessionId(session), seq }, &[]);
                    }
                }
                Step::Break(session) => {
                    // For metad its leases still hold.
                    self.table.detach(SessionId(session), 0);
                    let worker = self.worker(session);
                    worker.attached = false;
                    worker.delegated.clear();
                    worker.events.clear();
                }
                Step::Extend(session) => {
                    if self.table.extend(SessionId(session), now, false) == Extension::Extended
                        && self.worker(session).attached
                    {
                        let until = Some(now + LEASE / 10 * 9);
                        let worker = self.worker(session);
                        (worker.until, worker.covered) = (until, until);
                    }
                }
                Step::Change { session, ino } => {
                    // What was done before is sent before.
                    if self.send(session)
                        && let Some(given) = self.change(session, &[Ino(ino)], false)
                        && self.worker(session).attached
                    {
                        self.worker(session).delegated.extend(given);
                    }
                }
                Step::Do { session, ino } => {
                    let worker = self.worker(session);
                    let holds = worker.attached && worker.until.is_some_and(|until| until > now);
                    if holds && worker.delegated.contains(&Ino(ino)) {
                        worker.unsent.push(Ino(ino));
                        self.done += 1;
                    }
                }
                Step::TakeEvent(session) => {
                    let Some((seq, inos)) = self.worker(session).events.first().cloned() else { return Ok(()) };
                    for ino in &inos {
                        self.worker(session).delegated.remove(ino);
                    }
                    if self.send(session) {
                        self.worker(session).events.remove(0);
                        self.table.acknowledge(SessionId(session), &[seq]);
                    }
                }
                Step::TakeEarly(session) => {
                    let worker = self.worker(session);
                    let needs_nothing = |(_, inos): &(Seq, Vec<Ino>)| {
                        !inos.is_empty() && inos.iter().all(|ino| !worker.unsent.contains(ino))
                    };
                    let Some(at) = worker.events.iter().position(needs_nothing) else { return Ok(()) };
                    let (seq, inos) = worker.events.remove(at);
                    for ino in &inos {
                        worker.delegated.remove(ino);
                    }
                    self.table.acknowledge(SessionId(session), &[seq]);
                }
                Step::Send(session) => {
                    self.send(session);
                }
                Step::Read { session, ino } => {
                    let ino = Ino(ino);
                    if !self.is_open_for(session, false) {
                        return Ok(());
                    }
                    let (notices, waits) = self.table.share(SessionId(session), &[ino], now);
                    for (notice, inos) in &notices {
                        self.push(notice, inos);
                    }
                    if self.table.unsettled_until(None, &waits, now).is_some() {
                        return Ok(());
                    }
                    self.reads += 1;
                    for (other, worker) in self.workers.iter().enumerate() {
                        let waited_for = worker.covered.is_some_and(|covered| covered > now) && !worker.late;
                        let unsent = other as u64 != session && waited_for && worker.unsent.contains(&ino);
                        prop_assert!(!unsent, "{session} reads {ino:?}, and {other} has not sent what it did");
                    }
                    let stamp = self.table.stamp();
                    if self.table.grant(SessionId(session), &[ino], stamp).0 {
                        let given = self.table.delegate(SessionId(session), &[ino], now);
                        if self.worker(session).attached {
                            self.worker(session).delegated.extend(given);
                        }
                    }
                }
                Step::Evict(session) => {
                    if let Some(notice) = self.table.evict(SessionId(session)) {
                        let all: Vec<Ino> = (0..INODES).map(Ino).collect();
                        self.push(&notice, &all);
                    }
                }
                Step::Pass(ms) => {
                    self.now += Duration::from_millis(ms);
                    for worker in &mut self.workers {
                        let over = worker.covered.is_none_or(|covered| covered <= self.now);
                        worker.late |= over && !worker.unsent.is_empty();
                    }
                }
                Step::Lead => {
                    // Sessions go on as before until they notice the change of leaders.
                    self.table = Table::new(LEASE, now);
                    for worker in &mut self.workers {
                        worker.events.clear();
                    }
                }
            }
            Ok(())
        }
    }

    fn world() -> World {
        let now = Instant::now();
        let workers = (0..SESSIONS).map(|_| Worker::default()).collect();
        World { now: now + LEASE, table: Table::new(LEASE, now), workers, reads: 0, done: 0 }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
        #[test]
        fn nobody_reads_what_is_older_than_what_a_session_has_done_under_a_delegation(
            steps in prop::collection::vec(step(), 1..150)
        ) {
            let mut world = world();
            for step in steps {
                world.take(step)?;
            }
        }
    }

    /// Makes a world in which all sessions are attached and the first has something to send, and takes these steps.
    fn world_at_work<const COUNT: usize>(then: [Step; COUNT]) -> World {
        let mut world = world();
        let begin = [
            Step::Attach(0),
            Step::Attach(1),
            Step::Attach(2),
            Step::Extend(0),
            Step::Change { session: 0, ino: 1 },
            Step::Do { session: 0, ino: 1 },
        ];
        for step in begin.into_iter().chain(then) {
            world.take(step).unwrap();
        }
        world
    }

    #[test]
    fn the_model_does_work_in_memory_and_reads_it() {
        let mut world = world_at_work([Step::Read { session: 1, ino: 1 }]);
        assert_eq!((world.done, world.reads), (1, 0), "it waits");
        world.take(Step::TakeEvent(0)).unwrap();
        world.take(Step::Read { session: 1, ino: 1 }).unwrap();
        assert_eq!((world.workers[0].unsent.len(), world.reads), (0, 1));
    }

    #[test]
    fn a_session_that_is_asked_to_send_waits_neither_for_itself_nor_for_those_that_wait_for_it() {
        let mut world = world_at_work([Step::Change { session: 1, ino: 1 }, Step::TakeEvent(0)]);
        assert!(world.workers[0].unsent.is_empty(), "its own acknowledgement comes later");

        world.now += LEASE.max(CONTENTION_PAUSE);
        for step in [Step::Extend(0), Step::Change { session: 0, ino: 1 }, Step::Do { session: 0, ino: 1 }] {
            world.take(step).unwrap();
        }
        assert_eq!(world.workers[0].unsent.len(), 1);
        // The other session was away, has done something there before, and comes back with that.
        world.workers[1].unsent.push(Ino(1));
        world.take(Step::Attach(1)).unwrap();
        world.take(Step::Send(0)).unwrap();
        assert_eq!(world.workers[0].unsent.len(), 1, "the other session comes first");
        let (notices, waits) = world.table.begin(SessionId(1), &[Ino(1)], world.now);
        world.push(&notices[0], &[Ino(1)]);
        assert!(world.table.unsettled_until(None, &waits, world.now).is_some());
        world.take(Step::TakeEvent(0)).unwrap();
        assert!(world.workers[0].unsent.is_empty(), "the other session waits for it");
        assert_eq!(world.table.unsettled_until(None, &waits, world.now), None);
    }
}

/// A malicious client attaches again and again as if it had something to send.
#[test]
fn a_client_that_always_attaches_dirty_delays_others_once_whatever_sessions_it_uses() {
    let start = Instant::now();
    let mut table = Table::new(LEASE, start);
    let honest = SessionId(1);
    table.attach(honest, 0, false, start);
    let (mut now, mut waited) = (start, Duration::ZERO);
    let step = Duration::from_millis(500);
    let (mut stream, mut liar) = (1, SessionId(2));
    while now < start + 10 * CLIENT_PATIENCE_MAX {
        // It uses a new stream every second and a new session every ten. Sometimes it acknowledges, and extends its
        // leases.
        if stream % 10 == 0 {
            table.remove(liar);
            liar = SessionId(liar.0 + 1);
        }
        table.introduce(liar, 77, true, None);
        let seq = table.attach(liar, stream, true, now);
        for _ in 0..2 {
            let waits = table.dirty_before(honest, false);
            let until = table.unsettled_until(Some(1), &waits, now);
            waited += until.map_or(Duration::ZERO, |until| step.min(until - now));
            now += step;
            table.extend(liar, now, false);
        }
        if stream % 3 == 0 {
            table.acknowledge(liar, &seq.into_iter().collect::<Vec<_>>());
            table.extend(liar, now, false);
        }
        stream += 1;
    }
    assert!(waited >= CLIENT_PATIENCE_MAX / 2, "an honest one is waited for");
    assert!(waited <= 2 * CLIENT_PATIENCE_MAX + LEASE, "{waited:?} of {:?}", now - start);
}

/// Gives a session of a client a delegation on an inode.
fn delegate_to(table: &mut Table, session: SessionId, client: u64, ino: Ino, now: Instant) {
    table.introduce(session, client, true, None);
    table.attach(session, session.0, false, now);
    assert_eq!(table.extend(session, now, false), Extension::Extended);
    assert!(table.grant(session, &[ino], table.stamp()).0);
    assert_eq!(table.delegate(session, &[ino], now), [ino]);
}

/// Lets a session of this client, which has attached or not, read an inode whose holder says each second that it is alive,
/// and acknowledges nothing. Returns when that is over.
fn read_in_vain(table: &mut Table, client: u64, holder: SessionId, ino: Ino, mut now: Instant) -> Instant {
    let (_, waits) = table.share(SessionId(client), &[ino], now);
    assert!(waits.iter().any(|notice| notice.session == holder));
    let second = Duration::from_secs(1);
    while let Some(until) = table.unsettled_until(Some(client), &waits, now) {
        now = until.min(now + second);
        assert_eq!(table.extend(holder, now, false), Extension::Pending);
    }
    now
}

#[test]
fn a_client_that_never_sends_what_it_is_asked_for_delays_others_once_whatever_sessions_it_uses() {
    let start = Instant::now();
    let mut table = Table::new(LEASE, start);
    let honest = 1;
    let (mut now, sessions) = (start, 20);
    for number in 0..sessions {
        let liar = SessionId(100 + number);
        delegate_to(&mut table, liar, 77, Ino(number), now);
        let begun = now;
        now = read_in_vain(&mut table, honest, liar, Ino(number), now);
        if number == 0 {
            assert!(now - begun >= CLIENT_PATIENCE_MAX, "{:?}", now - begun);
        } else {
            assert!(now - begun <= LEASE + Duration::from_secs(2), "{number}: {:?}", now - begun);
        }
        if number % 2 == 0 {
            table.remove(liar);
        }
    }
    // Others of the cluster are waited for as ever.
    let other = SessionId(3);
    delegate_to(&mut table, other, 78, Ino(1_000), now);
    assert!(read_in_vain(&mut table, honest, other, Ino(1_000), now) - now >= CLIENT_PATIENCE_MAX);
}

#[test]
fn mounts_that_share_a_certificate_and_take_long_to_send_leave_the_others_their_time() {
    let start = Instant::now();
    let mut table = Table::new(LEASE, start);
    let (one, two) = (SessionId(1), SessionId(2));
    delegate_to(&mut table, one, 5, Ino(7), start);
    delegate_to(&mut table, two, 5, Ino(8), start);
    let now = read_in_vain(&mut table, 5, one, Ino(7), start);
    assert!(now - start >= CLIENT_PATIENCE_MAX, "another mount waits for one as long as it would for any other");
    assert_eq!(table.extend(two, now, false), Extension::Extended);
    assert!(read_in_vain(&mut table, 6, two, Ino(8), now) - now >= CLIENT_PATIENCE_MAX);
}

#[test]
fn a_client_that_acknowledges_in_time_pays_nothing_however_often_it_is_asked() {
    let start = Instant::now();
    let mut table = Table::new(LEASE, start);
    let (reader, sessions) = (SessionId(1), 50);
    table.introduce(reader, 1, true, None);
    table.attach(reader, 0, false, start);
    let mut now = start;
    for round in 0..1_000 {
        // At any time some mount of the certificate has something to send, and says meanwhile that it is alive.
        let (holder, ino) = (SessionId(100 + round % sessions), Ino(round));
        delegate_to(&mut table, holder, 5, ino, now);
        let (_, waits) = table.share(reader, &[ino], now);
        for _ in 0..4 {
            assert!(table.unsettled_until(Some(1), &waits, now).is_some());
            now += LEASE / 5;
            assert_eq!(table.extend(holder, now, false), Extension::Pending);
        }
        table.acknowledge(holder, &[waits[0].seq]);
        assert!(table.unsettled_until(Some(1), &waits, now).is_none());
        assert_eq!(table.extend(holder, now, false), Extension::Extended);
    }
    let patience = table.clients.get_mut(&5).map(|patience| patience.left_at(now));
    assert_eq!(patience, Some(CLIENT_PATIENCE_MAX));
}

#[test]
fn nobody_waits_for_a_client_that_may_only_read_beyond_its_lease() {
    let now = Instant::now();
    let mut table = Table::new(LEASE, now);
    let (reader, writer, file) = (SessionId(1), SessionId(2), Ino(7));
    table.introduce(reader, 1, false, None);
    table.attach(writer, 0, false, now);
    assert_eq!(table.attach(reader, 1, true, now), None, "it can have nothing to send");
    assert!(table.dirty_before(writer, false).is_empty());
    table.extend(reader, now, false);
    assert!(table.grant(reader, &[file], table.stamp()).0);
    let (_, waits) = table.begin(writer, &[file], now);
    let mut at = now;
    while table.unsettled_until(None, &waits, at).is_some() {
        at += Duration::from_millis(100);
        assert_eq!(table.extend(reader, at, false), Extension::Pending);
        assert!(at <= now + LEASE, "its lease was extended though it does not acknowledge");
    }
}

#[test]
fn each_event_that_is_waited_for_is_listed_once_however_many_inodes_it_concerns() {
    let (now, [one, two, three]) = (Instant::now(), [1, 2, 3].map(SessionId));
    let mut table = Table::new(LEASE, now);
    for session in [one, two, three] {
        table.attach(session, 1, false, now);
    }
    let inos: Vec<Ino> = (0..1_000).map(Ino).collect();
    assert!(table.grant(one, &inos, table.stamp()).0);
    let (notices, waits) = table.begin(two, &inos, now);
    assert_eq!((notices.len(), &waits), (1, &notices));
    let (more, waits) = table.begin(three, &inos, now);
    assert_eq!((more.len(), &waits), (0, &notices));
    assert!(table.acknowledge(one, &[notices[0].seq]), "it is news");
    assert!(!table.acknowledge(one, &[notices[0].seq, 77]), "and once only");
}

#[test]
fn an_evicted_session_gets_no_lease_any_more_and_is_waited_for_no_longer_than_its_last_one() {
    let (first, second, start) = (SessionId(1), SessionId(2), Instant::now());
    let mut table = Table::new(LEASE, start);
    for session in [first, second] {
        table.attach(session, session.0, false, start);
        table.extend(session, start, false);
    }
    assert!(table.grant(first, &[Ino(7)], table.stamp()).0);
    let notice = table.evict(first).unwrap();
    let later = start + LEASE / 2;
    assert_eq!(table.extend(first, later, false), Extension::Pending);
    assert!(!table.grant(first, &[Ino(8)], table.stamp()).0);
    let (recalls, waits) = table.begin(second, &[Ino(7)], later);
    assert_eq!(recalls.len(), 1, "what it still answers from its cache is waited for");
    for waits in [&waits, &vec![notice.clone()]] {
        assert_eq!(table.unsettled_until(None, waits, later), Some(start + LEASE));
        assert_eq!(table.unsettled_until(None, waits, start + LEASE), None);
    }
    assert!(table.acknowledge(first, &[notice.seq]));
    assert_eq!(table.unsettled_until(None, &[notice], later), None, "or until it has dropped everything");
    // Requests of it that began before it had ended.
    table.remove(first);
    table.introduce(first, 1, true, None);
    assert_eq!(table.attach(first, 9, true, later), None);
    assert!(!table.grant(first, &[Ino(9)], table.stamp()).0 && !table.grant_made(first, &[Ino(9)]));
    assert!(table.dirty_before(second, false).is_empty());
    assert!(table.is_small(), "the second is the only one");
}

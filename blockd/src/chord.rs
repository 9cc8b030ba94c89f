//! Chord between block daemons: routing, liveness, and discovery without metad.
//!
//! The protocol is the corrected one of Zave, "Reasoning about Identifier Spaces: How to Make Chord Correct" (IEEE TSE
//! 2017, cited below as *Zave*), on the ring of Stoica et al., "Chord" (SIGCOMM 2001, cited as *Stoica*). As first
//! published, none of Chord's claimed invariants holds.
//!
//! [`Chord`] is a pure machine: events in, actions out, no clock, no socket, no randomness. [`driver`] performs the
//! actions. Property tests run it by the thousand over random joins, failures, losses and orders of messages.
//!
//! State, owned by the machine alone: the successor list ([`successors`]), the predecessor, the fingers ([`fingers`]),
//! and at most one operation under way that may change list or predecessor ([`stabilize`], [`rectify`], [`join`]).
//! While its question is out, questions of others are still answered: answers are read-only.
//!
//! Invariant (Zave §V): every member has a live entry in its successor list, and at least r+1 members are principals,
//! that is, are skipped by no member's list. From these follow one ordered ring that all members reach. It holds as
//! long as no more daemons fail between two rounds than a list has entries to spare, and as long as a daemon that does
//! not answer repeatedly is dead. A daemon that was wrongly given up is found again by stabilize; rings that were cut
//! apart are joined again through the layout ([`Chord::learn`]), which Zave's model does not have.
//!
//! Deliberately different: a ring may start with a single member and grow. With fewer than r+1 members each list holds
//! the whole ring and ends with its owner, so that nobody mistakes a short list for a complete one; such a ring
//! tolerates fewer failures, and its members come back through the layout.

pub mod driver;
pub mod fingers;
mod fix_fingers;
pub mod join;
pub mod lookup;
pub mod rectify;
pub mod stabilize;
pub mod successors;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod scale_tests;

use fingers::Fingers;
use lookup::Lookup;
use std::time::Duration;
use successors::Successors;
use wire::ids::Point;
use wire::message::block::{ChordReply, ChordRequest, Member};

/// Parameters of the ring.
#[derive(Clone, Debug)]
pub struct Options {
    /// Entries of a successor list (Zave's r): one less than this many neighbours may fail at once.
    pub successors: usize,
    /// Time between two stabilizations.
    pub stabilize_every: Duration,
    /// Time between two repairs of a finger.
    pub finger_every: Duration,
    /// A member that leaves this many questions in a row unanswered is dead.
    pub attempts: u32,
}

impl Default for Options {
    /// Four successors survive three neighbouring failures at once, more than any replica count does.
    fn default() -> Self {
        Self {
            successors: 4,
            stabilize_every: Duration::from_millis(500),
            finger_every: Duration::from_secs(1),
            attempts: 2,
        }
    }
}

/// Id of a question, which distinguishes a late answer from the one waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueryId(pub u64);

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time has passed. Comes at least as often as the shortest interval of [`Options`].
    Timer {
        /// Monotonic time since any fixed start.
        now: Duration,
    },
    /// A question was answered.
    Reply {
        /// The question.
        query: QueryId,
        /// The answer.
        reply: ChordReply,
    },
    /// The daemon that was asked is alive, but not a member of a ring.
    Outside {
        /// The question.
        query: QueryId,
    },
    /// The daemon that was asked is alive, and has too much to do for an answer.
    Busy {
        /// The question.
        query: QueryId,
    },
    /// A question was not answered in time.
    Failed {
        /// The question.
        query: QueryId,
    },
}

/// What the machine wants done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Ask, and bring the outcome back as an event.
    Ask {
        /// Name of the question.
        query: QueryId,
        /// Whom to ask.
        to: Member,
        /// The question.
        request: ChordRequest,
    },
    /// This daemon has become a member of the ring.
    Joined,
    /// The first successor has changed.
    NewSuccessor(Member),
}

/// An operation that may change successor list or predecessor. There is never more than one (Zave §IV).
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Looking for the member that is to precede this one.
    JoinFind { asked: Member, hops: u32 },
    /// Fetching that member's whole successor list.
    JoinFetch { predecessor: Member },
    /// Asking the first successor for its list and predecessor.
    Successor { successor: Member, attempt: u32 },
    /// Asking a closer candidate for its list.
    Candidate { candidate: Member },
    /// Asking the present predecessor whether it is alive.
    Predecessor { present: Member, candidate: Member, attempt: u32 },
}

/// One daemon's part of the protocol.
pub struct Chord {
    pub(crate) me: Member,
    pub(crate) options: Options,
    /// `None` while not a member.
    pub(crate) successors: Option<Successors>,
    pub(crate) predecessor: Option<Member>,
    pub(crate) fingers: Fingers,
    /// Other daemons that the layout names; `None` until it is known.
    pub(crate) known: Option<Vec<Member>>,
    pub(crate) operation: Option<(QueryId, Operation)>,
    pub(crate) finger_query: Option<(QueryId, usize, Lookup)>,
    /// A candidate for the predecessor that waits for the operation under way.
    pub(crate) notified: Option<Member>,
    pub(crate) join: join::Progress,
    pub(crate) rounds: u64,
    next_query: u64,
    pub(crate) stabilize_at: Duration,
    finger_at: Duration,
}

impl Chord {
    /// A daemon that is not yet a member. It joins once [`Chord::learn`] has named other daemons, or an empty list.
    #[must_use]
    pub fn new(me: Member, options: Options) -> Self {
        assert!(options.successors > 0 && options.attempts > 0);
        Self {
            me,
            options,
            successors: None,
            predecessor: None,
            fingers: Fingers::new(me.point),
            known: None,
            operation: None,
            finger_query: None,
            notified: None,
            join: join::Progress::default(),
            rounds: 0,
            next_query: 1,
            stabilize_at: Duration::ZERO,
            finger_at: Duration::ZERO,
        }
    }

    /// A member of the ideal ring of `members`: how a ring of r+1 or more members starts at once (Zave §IV).
    #[must_use]
    pub fn start_with(me: Member, members: &[Member], options: Options) -> Self {
        let mut others: Vec<Member> = members.iter().copied().filter(|member| member.point != me.point).collect();
        others.sort_by_key(|member| me.point.distance_to(member.point));
        let mut chord = Self::new(me, options);
        chord.predecessor = others.last().copied();
        others.push(me);
        chord.successors = Some(Successors::build(me, others, chord.options.successors));
        chord
    }

    /// Learns all other daemons in the layout. Joining starts with them, and separate rings meet again through them.
    pub fn learn(&mut self, others: Vec<Member>) {
        self.known = Some(others.into_iter().filter(|other| other.point != self.me.point).collect());
    }

    /// This daemon, in the form that others receive.
    #[must_use]
    pub fn me(&self) -> Member {
        self.me
    }

    /// Whether it is a member of the ring.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.successors.is_some()
    }

    /// Its predecessor, if it knows one.
    #[must_use]
    pub fn predecessor(&self) -> Option<Member> {
        self.predecessor
    }

    /// Its successors, nearest first; ends with itself when the list holds the whole ring.
    #[must_use]
    pub fn successors(&self) -> &[Member] {
        self.successors.as_ref().map_or(&[], Successors::entries)
    }

    /// Handles an event. The actions must be performed in order.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Timer { now } => self.tick(now, &mut actions),
            Event::Reply { query, reply } => self.replied(query, reply, &mut actions),
            Event::Outside { query } => self.failed(query, true, &mut actions),
            Event::Busy { query } => self.is_busy(query, &mut actions),
            Event::Failed { query } => self.failed(query, false, &mut actions),
        }
        self.next_operation(&mut actions);
        actions
    }

    /// Answers a question of another daemon, or `None` when this is not a member and so cannot.
    pub fn answer(&mut self, request: &ChordRequest) -> (Option<ChordReply>, Vec<Action>) {
        let mut actions = Vec::new();
        let reply = match request {
            ChordRequest::Ping => Some(ChordReply::Alive),
            ChordRequest::GetState => self.successors.as_ref().map(|successors| ChordReply::State {
                me: self.me,
                predecessor: self.predecessor,
                successors: successors.entries().to_vec(),
            }),
            ChordRequest::Step { point } => self.step(*point, &[]),
            ChordRequest::Notify { candidate } if self.is_member() => {
                self.notified(*candidate);
                self.next_operation(&mut actions);
                Some(ChordReply::Noted)
            }
            ChordRequest::Notify { .. } => None,
        };
        (reply, actions)
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if now >= self.stabilize_at && self.operation.is_none() {
            self.stabilize_at = now + self.options.stabilize_every;
            if self.is_member() {
                self.rounds += 1;
                self.stabilize(actions);
            } else {
                self.try_join(actions);
            }
        }
        if now >= self.finger_at && self.finger_query.is_none() && self.is_member() {
            self.finger_at = now + self.options.finger_every;
            self.fix_finger(actions);
        }
    }

    fn replied(&mut self, query: QueryId, reply: ChordReply, actions: &mut Vec<Action>) {
        if let Some((_, index, lookup)) = self.finger_query.take_if(|(expected, ..)| *expected == query) {
            self.finger_replied(index, lookup, reply, actions);
            return;
        }
        // Any other answer is to a notification, or is not waited for any more.
        let Some((_, operation)) = self.operation.take_if(|(expected, _)| *expected == query) else { return };
        match operation {
            Operation::JoinFind { asked, hops } => self.join_found(asked, hops, reply, actions),
            Operation::JoinFetch { predecessor } => self.join_fetched(predecessor, reply, actions),
            Operation::Successor { successor, .. } => self.successor_replied(successor, reply, actions),
            Operation::Candidate { candidate } => self.candidate_replied(candidate, reply, actions),
            Operation::Predecessor { .. } => {} // alive: it stays
        }
    }

    /// Ends the operation of this question. Nothing is known, so everything stays as it is, and a later one asks again.
    fn is_busy(&mut self, query: QueryId, actions: &mut Vec<Action>) {
        self.finger_query.take_if(|(expected, ..)| *expected == query);
        let Some((_, operation)) = self.operation.take_if(|(expected, _)| *expected == query) else { return };
        match operation {
            // It may be a member: a ring that it may be in is not begun anew.
            Operation::JoinFind { .. } => self.join.ring_met = true,
            Operation::Candidate { .. } => self.notify_successor(actions),
            Operation::JoinFetch { .. } | Operation::Successor { .. } | Operation::Predecessor { .. } => {}
        }
    }

    fn failed(&mut self, query: QueryId, outside: bool, actions: &mut Vec<Action>) {
        if let Some((_, index, lookup)) = self.finger_query.take_if(|(expected, ..)| *expected == query) {
            self.finger_failed(index, lookup, actions);
            return;
        }
        let Some((_, operation)) = self.operation.take_if(|(expected, _)| *expected == query) else { return };
        match operation {
            Operation::JoinFind { asked, hops } => self.join_failed(asked, hops, outside),
            Operation::JoinFetch { predecessor } => self.join_failed(predecessor, 1, outside),
            Operation::Successor { successor, attempt } => self.successor_failed(successor, attempt, outside, actions),
            Operation::Candidate { candidate } => self.candidate_failed(candidate, actions),
            Operation::Predecessor { present, candidate, attempt } => {
                self.predecessor_failed(present, candidate, attempt, outside, actions);
            }
        }
    }

    /// Begins the operation that waited for the one that has just ended.
    fn next_operation(&mut self, actions: &mut Vec<Action>) {
        if self.operation.is_none() && self.is_member() {
            self.rectify(actions);
        }
    }

    pub(crate) fn begin(&mut self, operation: Operation, to: Member, request: ChordRequest, out: &mut Vec<Action>) {
        assert!(self.operation.is_none(), "one operation at a time");
        let query = self.ask(to, request, out);
        self.operation = Some((query, operation));
    }

    pub(crate) fn ask(&mut self, to: Member, request: ChordRequest, out: &mut Vec<Action>) -> QueryId {
        let query = QueryId(self.next_query);
        self.next_query += 1;
        out.push(Action::Ask { query, to, request });
        query
    }

    /// Replaces the successor list.
    pub(crate) fn adopt(&mut self, entries: impl IntoIterator<Item = Member>, actions: &mut Vec<Action>) {
        let before = self.successors.as_ref().map(Successors::first);
        let list = Successors::build(self.me, entries, self.options.successors);
        if before != Some(list.first()) {
            actions.push(Action::NewSuccessor(list.first()));
        }
        self.successors = Some(list);
    }

    /// Whether `point` lies strictly between `from` and `to`; from a point to itself is the whole ring but that point.
    pub(crate) fn between(from: Point, point: Point, to: Point) -> bool {
        point != to && point != from && point.in_arc(from, to)
    }
}

//! Random joins, failures, losses and orders of messages against the invariant of Zave §V.
//!
//! A loss is limited so that no live member is given up (the protocol assumes a perfect failure detector), also by one
//! that joins. A failure happens only where the protocol claims to survive it: every member still has a live successor,
//! including those in answers under way, and r+1 principals remain.

use super::successors::Successors;
use super::{Action, Chord, Event, Operation, Options, QueryId};
use proptest::prelude::{any, proptest};
use proptest::test_runner::Config;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::ids::{BlockdId, Point};
use wire::message::block::{ChordReply, ChordRequest, Member};

const R: usize = 3;

fn options() -> Options {
    Options { successors: R, ..Options::default() }
}

fn member(point: u128) -> Member {
    Member { point: Point(point), id: BlockdId(point.to_be_bytes()), addr: ([127, 0, 0, 1], 1).into() }
}

enum Message {
    Ask { from: Point, to: Point, query: QueryId, request: ChordRequest },
    Answer { to: Point, event: Event },
}

struct World {
    rng: StdRng,
    nodes: BTreeMap<Point, Chord>,
    messages: Vec<Message>,
    now: Duration,
}

impl World {
    fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, nodes: BTreeMap::new(), messages: Vec::new(), now: Duration::ZERO }
    }

    fn fresh(&mut self) -> Member {
        member(self.rng.random())
    }

    /// An ideal ring of r+1 members or more.
    fn ideal(&mut self, count: usize) {
        let members: Vec<Member> = std::iter::repeat_with(|| self.fresh()).take(count).collect();
        for me in &members {
            self.nodes.insert(me.point, Chord::start_with(*me, &members, options()));
        }
    }

    fn join(&mut self) {
        let me = self.fresh();
        let mut chord = Chord::new(me, options());
        chord.learn(self.nodes.keys().map(|point| member(point.0)).collect());
        self.nodes.insert(me.point, chord);
    }

    fn perform(&mut self, from: Point, actions: Vec<Action>) {
        for action in actions {
            if let Action::Ask { query, to, request } = action {
                self.messages.push(Message::Ask { from, to: to.point, query, request });
            }
        }
    }

    fn tick(&mut self, point: Point) {
        self.now += Duration::from_secs(10); // every timer is due
        let now = self.now;
        let all: Vec<Member> = self.nodes.keys().map(|point| member(point.0)).collect();
        let Some(chord) = self.nodes.get_mut(&point) else { return };
        if !chord.is_member() {
            // One that knows only dead daemons and others that wait would start a ring of its own. The layout names
            // those that live.
            chord.learn(all);
        }
        let actions = chord.handle(Event::Timer { now });
        self.perform(point, actions);
    }

    fn deliver(&mut self, index: usize, lossy: bool) {
        match self.messages.swap_remove(index) {
            Message::Ask { from, to, query, request } => {
                let lost = lossy && self.rng.random_bool(0.1) && self.may_lose(from, query);
                let event = self.outcome(to, query, &request, lost);
                self.messages.push(Message::Answer { to: from, event });
            }
            Message::Answer { to, event } => {
                let Some(chord) = self.nodes.get_mut(&to) else { return };
                let actions = chord.handle(event);
                self.perform(to, actions);
            }
        }
    }

    /// Whether the asker has another attempt: a live member is never given up.
    fn may_lose(&self, from: Point, query: QueryId) -> bool {
        match self.nodes.get(&from).and_then(|chord| chord.operation.as_ref()) {
            Some((id, Operation::Successor { attempt, .. } | Operation::Predecessor { attempt, .. }))
                if *id == query =>
            {
                *attempt < options().attempts
            }
            // Nor does a daemon that joins give all of them up, which would start a ring of its own, too.
            Some((id, Operation::JoinFind { hops: 1, .. })) if *id == query => false,
            _ => true,
        }
    }

    fn outcome(&mut self, to: Point, query: QueryId, request: &ChordRequest, lost: bool) -> Event {
        let Some(chord) = self.nodes.get_mut(&to).filter(|_| !lost) else { return Event::Failed { query } };
        let (reply, actions) = chord.answer(request);
        self.perform(to, actions);
        match reply {
            Some(reply) => Event::Reply { query, reply },
            None => Event::Outside { query },
        }
    }

    fn members(&self) -> impl Iterator<Item = &Chord> {
        self.nodes.values().filter(|chord| chord.is_member())
    }

    fn is_member(&self, point: Point) -> bool {
        self.nodes.get(&point).is_some_and(Chord::is_member)
    }

    /// First live entry of a member's list.
    fn best(&self, chord: &Chord) -> Option<Point> {
        let others = chord.successors().iter().filter(|entry| entry.point != chord.me.point);
        others.map(|entry| entry.point).find(|point| self.is_member(*point))
    }

    /// All lists that members hold or, being on their way to them, may yet adopt; each begins with its owner.
    fn lists(&self, without: Option<Point>) -> Vec<Vec<Point>> {
        let list = |owner: &Member, entries: &[Member]| -> Vec<Point> {
            std::iter::once(owner).chain(entries).map(|entry| entry.point).collect()
        };
        let held = self.members().filter(|chord| Some(chord.me.point) != without);
        let mut lists: Vec<Vec<Point>> = held.map(|chord| list(&chord.me, chord.successors())).collect();
        for message in &self.messages {
            let Message::Answer { event: Event::Reply { reply, .. }, .. } = message else { continue };
            if let ChordReply::State { me, successors, .. } = reply {
                lists.push(list(me, successors));
            }
        }
        lists
    }

    /// Members that no list skips.
    fn principals(&self, without: Option<Point>) -> usize {
        let lists = self.lists(without);
        let skips = |list: &Vec<Point>, point| list.windows(2).any(|pair| Chord::between(pair[0], point, pair[1]));
        let live = self.members().map(|chord| chord.me.point).filter(|point| Some(*point) != without);
        live.filter(|point| !lists.iter().any(|list| skips(list, *point))).count()
    }

    /// Whether the protocol claims to survive the failure of `victim`.
    fn may_fail(&self, victim: Point) -> bool {
        let live = |point: &Point| *point != victim && self.is_member(*point);
        let lists = self
            .members()
            .filter(|chord| chord.me.point != victim)
            .all(|chord| chord.successors().iter().any(|entry| entry.point != chord.me.point && live(&entry.point)));
        // Lists that the asking member may yet make of an answer: behind the one that answers, or, to join, without it.
        let answers = self.messages.iter().all(|message| {
            let Message::Answer { to, event: Event::Reply { reply, .. } } = message else { return true };
            let ChordReply::State { me, successors, .. } = reply else { return true };
            let survives = |entries: Vec<Member>| {
                let list = Successors::build(member(to.0), entries, R);
                list.entries().iter().any(|entry| entry.point != *to && live(&entry.point))
            };
            survives(std::iter::once(me).chain(successors).copied().collect()) && survives(successors.clone())
        });
        lists && answers && self.principals(Some(victim)) > R
    }

    fn fail_one(&mut self) {
        let members: Vec<Point> = self.members().map(|chord| chord.me.point).collect();
        let victim = members[self.rng.random_range(0..members.len())];
        if self.may_fail(victim) {
            self.nodes.remove(&victim);
        }
    }

    /// The invariant, and the one ordered ring that follows from it.
    fn check(&self) {
        let members: Vec<Point> = self.members().map(|chord| chord.me.point).collect();
        for chord in self.members() {
            assert!(self.best(chord).is_some(), "{:?} has no live successor", chord.me.point);
        }
        assert!(self.principals(None) > R, "fewer than r+1 principals");
        // Follow best successors from every member: all must end in the same cycle, which goes around once.
        let mut cycle: Option<Vec<Point>> = None;
        for start in &members {
            let mut at = *start;
            for _ in 0..members.len() {
                at = self.best(&self.nodes[&at]).unwrap();
            }
            let mut round = vec![at];
            let mut next = self.best(&self.nodes[&at]).unwrap();
            while next != at {
                round.push(next);
                next = self.best(&self.nodes[&next]).unwrap();
            }
            let lowest = round.iter().enumerate().min_by_key(|(_, point)| **point).unwrap().0;
            round.rotate_left(lowest);
            assert!(round.is_sorted(), "the ring is not ordered");
            assert_eq!(cycle.get_or_insert_with(|| round.clone()), &round, "there are two rings");
        }
    }

    fn is_ideal(&self) -> bool {
        let points: Vec<Point> = self.nodes.keys().copied().collect();
        points.iter().enumerate().all(|(index, point)| {
            let chord = &self.nodes[point];
            let expected: Vec<Point> =
                (1..=R.min(points.len())).map(|step| points[(index + step) % points.len()]).collect();
            let list: Vec<Point> = chord.successors().iter().map(|entry| entry.point).collect();
            let before = points[(index + points.len() - 1) % points.len()];
            chord.is_member()
                && list == expected
                && (points.len() == 1 || chord.predecessor().map(|member| member.point) == Some(before))
        })
    }

    /// Everyone's timers, and all messages without loss, until the ring is ideal. Returns the rounds.
    fn converge(&mut self, rounds_max: usize) -> usize {
        for round in 0..rounds_max {
            if self.is_ideal() {
                return round;
            }
            for point in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.tick(point);
            }
            while !self.messages.is_empty() {
                let index = self.rng.random_range(0..self.messages.len());
                self.deliver(index, false);
            }
        }
        panic!("no ideal ring after {rounds_max} rounds of {} members", self.nodes.len());
    }

    fn random_step(&mut self) {
        match self.rng.random_range(0..100) {
            0..2 if self.nodes.len() < 24 => self.join(),
            2..5 => self.fail_one(),
            5..30 => {
                let points: Vec<Point> = self.nodes.keys().copied().collect();
                let chosen = self.rng.random_range(0..points.len());
                self.tick(points[chosen]);
            }
            _ if !self.messages.is_empty() => {
                let index = self.rng.random_range(0..self.messages.len());
                self.deliver(index, true);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: 200, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_ring_survives_joins_failures_losses_and_any_order(seed in any::<u64>()) {
        let mut world = World::new(seed);
        world.ideal(R + 1 + (seed % 8) as usize);
        for _ in 0..1500 {
            world.random_step();
            world.check();
        }
        // Daemons that have not joined yet may know only dead ones by now; the layout names others.
        let all: Vec<Member> = world.nodes.keys().map(|point| member(point.0)).collect();
        for chord in world.nodes.values_mut().filter(|chord| !chord.is_member()) {
            chord.learn(all.clone());
        }
        let count = world.nodes.len();
        world.converge(8 * count + 40);
        world.check();
    }

    #[test]
    fn daemons_that_start_together_form_one_ring(seed in any::<u64>(), count in 1_usize..12) {
        let mut world = World::new(seed);
        let members: Vec<Member> = (0..count).map(|_| world.fresh()).collect();
        for me in &members {
            let mut chord = Chord::new(*me, options());
            chord.learn(members.clone());
            world.nodes.insert(me.point, chord);
        }
        world.converge(20 * count + 40);
    }

    #[test]
    fn rings_that_were_cut_apart_are_joined_through_the_layout(seed in any::<u64>(), count in 2_usize..10) {
        let mut world = World::new(seed);
        world.ideal(count);
        world.ideal(count / 2);
        let all: Vec<Member> = world.nodes.keys().map(|point| member(point.0)).collect();
        for chord in world.nodes.values_mut() {
            chord.learn(all.clone());
        }
        world.converge(40 * count + 80);
    }

    #[test]
    fn a_member_that_was_given_up_wrongly_comes_back(seed in any::<u64>(), count in 2_usize..10) {
        let mut world = World::new(seed);
        world.ideal(count);
        let all: Vec<Member> = world.nodes.keys().map(|point| member(point.0)).collect();
        for chord in world.nodes.values_mut() {
            chord.learn(all.clone());
        }
        // A storm in which every question fails.
        for _ in 0..10 * count {
            let points: Vec<Point> = world.nodes.keys().copied().collect();
            let point = points[world.rng.random_range(0..points.len())];
            world.tick(point);
            for message in std::mem::take(&mut world.messages) {
                if let Message::Ask { from, query, .. } = message {
                    let event = Event::Failed { query };
                    world.messages.push(Message::Answer { to: from, event });
                } else {
                    world.messages.push(message);
                    world.deliver(world.messages.len() - 1, false);
                }
            }
        }
        world.converge(60 * count + 80);
    }
}

#[test]
fn a_candidate_that_does_not_answer_is_never_adopted() {
    let members = [member(10), member(20), member(30), member(40)];
    let mut chord = Chord::start_with(members[0], &members, options());
    let asked = |actions: &[Action]| match actions {
        [.., Action::Ask { query, to, .. }] => (*query, to.point.0),
        other => panic!("{other:?}"),
    };
    let (query, to) = asked(&chord.handle(Event::Timer { now: Duration::from_secs(1) })[..1]);
    assert_eq!(to, 20);
    let state = ChordReply::State { me: members[1], predecessor: Some(member(15)), successors: members[2..].to_vec() };
    let (query, to) = asked(&chord.handle(Event::Reply { query, reply: state }));
    assert_eq!(to, 15);
    chord.handle(Event::Failed { query });
    assert_eq!(chord.successors()[0].point.0, 20);
}

#[test]
fn members_that_have_too_much_to_do_stay_and_those_that_do_not_answer_go() {
    let members = [member(10), member(20), member(30), member(40)];
    let mut chord = Chord::start_with(members[0], &members, options());
    let mut now = Duration::from_secs(1);
    let mut stabilize = |chord: &mut Chord, outcome: fn(QueryId) -> Event| {
        now += Duration::from_secs(10);
        let mut actions = chord.handle(Event::Timer { now });
        while let Some(action) = actions.pop() {
            if let Action::Ask { query, .. } = action {
                actions.extend(chord.handle(outcome(query)));
            }
        }
    };
    let points = |chord: &Chord| chord.successors().iter().map(|entry| entry.point.0).collect::<Vec<_>>();
    let before = points(&chord);
    for _ in 0..20 {
        stabilize(&mut chord, |query| Event::Busy { query });
        let (_, actions) = chord.answer(&ChordRequest::Notify { candidate: member(30) });
        let [Action::Ask { query, .. }] = actions[..] else { panic!("{actions:?}") };
        chord.handle(Event::Busy { query });
    }
    assert_eq!(points(&chord), before);
    assert_eq!(chord.predecessor().unwrap().point.0, 40);
    stabilize(&mut chord, |query| Event::Failed { query });
    assert!(points(&chord)[0] != 20, "it is dead");
}

#[test]
fn a_live_predecessor_is_not_replaced_by_one_farther_away() {
    let members = [member(10), member(20), member(30), member(40)];
    let mut chord = Chord::start_with(members[0], &members, options());
    let (_, actions) = chord.answer(&ChordRequest::Notify { candidate: member(30) });
    let [Action::Ask { query, to, .. }] = actions[..] else { panic!("{actions:?}") };
    assert_eq!(to.point.0, 40, "the present one is asked first");
    let reply = ChordReply::State { me: members[3], predecessor: None, successors: members[..3].to_vec() };
    chord.handle(Event::Reply { query, reply });
    assert_eq!(chord.predecessor().unwrap().point.0, 40);
}

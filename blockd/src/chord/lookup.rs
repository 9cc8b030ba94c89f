//! Iterative lookup (Stoica §4.3, "find_successor", in the iterative form of §6): the asker walks from member to
//! member, each naming the closest one before the point that it knows, until one says whose the point is.
//!
//! Iterative rather than recursive: the asker sees which hop is dead, and goes around it with the successor list of
//! the hop before. About half of log2 n hops with good fingers.

use super::Chord;
use wire::ids::Point;
use wire::message::block::{ChordReply, ChordRequest, Member};

/// A longer walk has lost its way: the limit is four times what a ring of 2^16 daemons needs.
const HOPS_MAX: u32 = 64;

/// Next step of a lookup.
#[derive(Debug)]
pub enum Outcome {
    /// This member is responsible.
    Found(Member),
    /// Ask this, and report the outcome by [`Lookup::replied`] or [`Lookup::failed`].
    Ask(Member, ChordRequest),
    /// No way was found: the ring is being repaired, try again later.
    Lost,
}

#[derive(Clone, Debug)]
enum Position {
    /// Use the asker's own knowledge.
    Local,
    /// Ask this member for its step.
    At(Member),
    /// Ask this member for its list, because the step that it named is dead.
    Around(Member),
    Found(Member),
    Lost,
}

/// One lookup.
#[derive(Clone, Debug)]
pub struct Lookup {
    point: Point,
    position: Position,
    /// Members that answered, the last one nearest to the point.
    path: Vec<Member>,
    dead: Vec<Point>,
    hops: u32,
}

impl Lookup {
    /// Looks for the member responsible for `point`.
    #[must_use]
    pub fn new(point: Point) -> Self {
        Self { point, position: Position::Local, path: Vec::new(), dead: Vec::new(), hops: 0 }
    }

    /// How many others were asked.
    #[must_use]
    pub fn hops(&self) -> u32 {
        self.hops
    }

    /// Returns what to do next; `local` is the asker's own state.
    pub fn advance(&mut self, local: &Chord) -> Outcome {
        if matches!(self.position, Position::Local) {
            self.position = match local.step(self.point, &self.dead) {
                Some(ChordReply::Responsible(member)) => Position::Found(member),
                Some(ChordReply::Next(member)) => Position::At(member),
                _ => Position::Lost,
            };
        }
        match self.position {
            Position::Found(member) => Outcome::Found(member),
            Position::At(_) | Position::Around(_) if self.hops >= HOPS_MAX => Outcome::Lost,
            Position::At(member) => Outcome::Ask(member, ChordRequest::Step { point: self.point }),
            Position::Around(member) => Outcome::Ask(member, ChordRequest::GetState),
            Position::Local | Position::Lost => Outcome::Lost,
        }
    }

    /// The member that was asked has answered.
    pub fn replied(&mut self, reply: ChordReply) {
        let (Position::At(asked) | Position::Around(asked)) = self.position else { return };
        self.hops += 1;
        self.position = match reply {
            ChordReply::Responsible(member) if self.dead.contains(&member.point) => Position::Around(asked),
            ChordReply::Responsible(member) => Position::Found(member),
            ChordReply::Next(next) if self.dead.contains(&next.point) => Position::Around(asked),
            // Each hop must come closer, or the walk would go in circles while the ring changes.
            ChordReply::Next(next) if Chord::between(asked.point, next.point, self.point) => Position::At(next),
            ChordReply::State { me, successors, .. } => self.around(me, &successors),
            _ => Position::Lost,
        };
        if matches!(self.position, Position::At(_)) {
            self.path.push(asked);
        }
    }

    /// The member that was asked did not answer; returns it. The walk goes on from the member before.
    pub fn failed(&mut self) -> Option<Member> {
        let (Position::At(asked) | Position::Around(asked)) = self.position else { return None };
        self.hops += 1;
        self.dead.push(asked.point);
        self.position = self.path.pop().map_or(Position::Local, Position::Around);
        Some(asked)
    }

    fn around(&self, at: Member, successors: &[Member]) -> Position {
        let live: Vec<Member> = successors.iter().copied().filter(|entry| !self.dead.contains(&entry.point)).collect();
        match step_among(at.point, self.point, &live, live.iter().copied()) {
            Some(ChordReply::Responsible(member)) => Position::Found(member),
            Some(ChordReply::Next(member)) => Position::At(member),
            _ => Position::Lost,
        }
    }
}

/// One step from the member at `at`: its first successor when the point lies before that, else the closest one before
/// the point of all `hints`.
fn step_among(
    at: Point,
    point: Point,
    successors: &[Member],
    hints: impl Iterator<Item = Member>,
) -> Option<ChordReply> {
    let first = *successors.first()?;
    if point.in_arc(at, first.point) {
        return Some(ChordReply::Responsible(first));
    }
    let next = hints
        .filter(|hint| Chord::between(at, hint.point, point))
        .max_by_key(|hint| at.distance_to(hint.point))
        .unwrap_or(first);
    Some(ChordReply::Next(next))
}

impl Chord {
    /// One step of a lookup from here, past `dead` members; `None` when not a member.
    pub(crate) fn step(&self, point: Point, dead: &[Point]) -> Option<ChordReply> {
        let alive = |member: &Member| !dead.contains(&member.point);
        let live: Vec<Member> = self.successors().iter().copied().filter(alive).collect();
        let hints = live.iter().copied().chain(self.fingers.known().filter(alive));
        step_among(self.me.point, point, &live, hints.filter(|hint| hint.point != self.me.point))
    }
}

//! Chord's timers and questions over the network: performs what the machine asks for.
//!
//! [`Ring`] holds the machine behind a mutex that is never held across an `.await`; the server answers questions of
//! others through it. One task, [`Ring::run`], owns the timers and all questions under way, and ends them when it is
//! cancelled. At most a handful of questions are out: one operation, one finger, and notifications of one per round.

use super::lookup::{Lookup, Outcome};
use super::{Action, Chord, Event, Options, QueryId};
use crate::layouts::Layouts;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::Error;
use wire::ids::{BlockdId, Point};
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest, ChordReply, ChordRequest, Member};
use wire::quic::Endpoint;
use wire::tls::Role;

/// How long one question may take. It is longer than a busy daemon's worst pause, which must not look like death.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often the machine's timers are checked.
const TICK: Duration = Duration::from_millis(100);

/// This daemon's place on the ring.
pub struct Ring {
    me: BlockdId,
    endpoint: Endpoint,
    options: Options,
    started: Instant,
    /// Guarded: the machine, once the layout names this daemon's point.
    state: Mutex<State>,
    /// Wakes the task when a question of another daemon has caused actions.
    wake: Notify,
}

#[derive(Default)]
struct State {
    chord: Option<Chord>,
    /// Actions that wait for the task; bounded by the one operation and the one finger.
    pending: Vec<Action>,
}

/// The member of the ring that a daemon of the layout is. It stands at its first point.
fn member(of: &LayoutMember) -> Option<Member> {
    Some(Member { point: *of.points.first()?, id: of.id, addr: of.addr })
}

impl Ring {
    /// A ring of which this daemon is not yet a member.
    #[must_use]
    pub fn new(me: BlockdId, endpoint: Endpoint, options: Options) -> Self {
        let state = Mutex::new(State::default());
        Self { me, endpoint, options, started: Instant::now(), state, wake: Notify::new() }
    }

    /// Answers a question of another daemon; `None` while this one is not a member.
    #[must_use]
    pub fn answer(&self, request: &ChordRequest) -> Option<ChordReply> {
        if matches!(request, ChordRequest::Ping) {
            return Some(ChordReply::Alive);
        }
        let mut state = self.state.lock();
        let (reply, actions) = state.chord.as_mut()?.answer(request);
        if !actions.is_empty() {
            state.pending.extend(actions);
            self.wake.notify_one();
        }
        reply
    }

    /// Predecessor and successors, for operators.
    #[must_use]
    pub fn neighbours(&self) -> (Option<Member>, Vec<Member>) {
        let state = self.state.lock();
        match &state.chord {
            Some(chord) => (chord.predecessor(), chord.successors().to_vec()),
            None => (None, Vec::new()),
        }
    }

    /// The member responsible for `point`, and how many others were asked. `None` when this daemon is not a member, or
    /// the ring is being repaired. Cancel-safe.
    pub async fn look_up(&self, point: Point) -> Option<(Member, u32)> {
        let mut lookup = Lookup::new(point);
        loop {
            let outcome = lookup.advance(self.state.lock().chord.as_ref()?);
            match outcome {
                Outcome::Found(found) => return Some((found, lookup.hops())),
                Outcome::Lost => return None,
                Outcome::Ask(to, request) => match ask(&self.endpoint, to, request).await {
                    Answer::Reply(reply) => lookup.replied(reply),
                    Answer::Outside | Answer::Busy | Answer::Silence => drop(lookup.failed()),
                },
            }
        }
    }

    /// Maintains the ring until cancelled.
    pub async fn run(self: Arc<Self>, layouts: Arc<Layouts>, stop: CancellationToken) {
        let mut watch = layouts.watch();
        self.learn(&watch.borrow_and_update().clone());
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut questions: JoinSet<Event> = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.feed(Event::Timer { now: self.started.elapsed() }),
                () = self.wake.notified() => {}
                Some(outcome) = questions.join_next() => match outcome {
                    Ok(event) => self.feed(event),
                    Err(error) => tracing::error!(%error, "a question on the ring ended by itself"),
                },
                Ok(()) = watch.changed() => {
                    let layout = watch.borrow_and_update().clone();
                    self.learn(&layout);
                }
            }
            let pending = std::mem::take(&mut self.state.lock().pending);
            for action in pending {
                self.perform(action, &mut questions);
            }
        }
    }

    fn feed(&self, event: Event) {
        let mut state = self.state.lock();
        if let Some(chord) = state.chord.as_mut() {
            let actions = chord.handle(event);
            state.pending.extend(actions);
        }
    }

    fn perform(&self, action: Action, questions: &mut JoinSet<Event>) {
        match action {
            Action::Ask { query, to, request } => {
                let endpoint = self.endpoint.clone();
                questions.spawn(async move { event(query, ask(&endpoint, to, request).await) });
            }
            Action::Joined => tracing::info!(id = %self.me, "joined the ring"),
            Action::NewSuccessor(successor) => {
                tracing::debug!(id = %successor.id, addr = %successor.addr, "new successor")
            }
        }
    }

    /// Takes over the members of a layout. A daemon whose own place has changed joins anew.
    fn learn(&self, layout: &Layout) {
        let Some(me) = layout.member(&self.me).and_then(member) else { return };
        let others: Vec<Member> =
            layout.members.iter().filter(|other| other.id != self.me).filter_map(member).collect();
        let mut state = self.state.lock();
        let chord = match state.chord.take() {
            Some(chord) if chord.me() == me => chord,
            _ => {
                state.pending.clear();
                Chord::new(me, self.options.clone())
            }
        };
        state.chord.insert(chord).learn(others);
    }
}

enum Answer {
    Reply(ChordReply),
    /// Alive, and no member.
    Outside,
    /// Alive, and has too much to do.
    Busy,
    Silence,
}

async fn ask(endpoint: &Endpoint, to: Member, request: ChordRequest) -> Answer {
    let peer = endpoint.peer(to.addr, Role::Blockd);
    let asked = peer.request::<_, BlockReply>(&BlockRequest::Chord(request), &[], ASK_TIMEOUT).await;
    match asked {
        Ok((BlockReply::Chord(reply), _)) => Answer::Reply(reply),
        Ok(_) => Answer::Outside,
        Err(Error::Busy { .. }) => Answer::Busy,
        Err(error) => {
            tracing::debug!(id = %to.id, addr = %to.addr, %error, "no answer on the ring");
            Answer::Silence
        }
    }
}

fn event(query: QueryId, answer: Answer) -> Event {
    match answer {
        Answer::Reply(reply) => Event::Reply { query, reply },
        Answer::Outside => Event::Outside { query },
        Answer::Busy => Event::Busy { query },
        Answer::Silence => Event::Failed { query },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repair::test_peers::{Manner, Peers};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_daemon_that_has_too_much_to_do_answers() {
        let peers = Peers::start([Manner::Busy]);
        let to = member(&peers.layout.members[1]).unwrap();
        assert!(matches!(ask(&peers.endpoint, to, ChordRequest::Ping).await, Answer::Busy));
    }
}

//! Streams of events to sessions. When an event that asks for something cannot be delivered, the stream ends:
//! `KeepAlive` and the empty caches of a session that attaches anew make up for the loss. An event that only informs is
//! left out when the session is too slow: other sessions can cause many of these.
//!
//! A removed file concerns every session, and each answers with a batch. Where files are removed faster than the
//! sessions can be asked, they learn of them with their keep-alives, many at a time.

use crate::in_place::in_place;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::ids::{Ino, SessionId};
use wire::message::event::MetaEvent;
use wire::quic::EventSender;

/// Events that wait for a slow session. With more, its stream ends, and it attaches anew with empty caches.
const QUEUE: usize = 4096;

/// Places in that queue that events which only inform leave free for those that must not be missed.
const QUEUE_RESERVED: usize = QUEUE / 2;

/// Sessions that are asked about removed files in a second, all together. Each that is asked sends a batch.
const ORPHANS_ASKED_PER_SECOND: u32 = 500;
/// Sessions that may be asked at once after a pause: a few removals in a cluster of a few hundred mounts.
const ORPHANS_ASKED_AT_ONCE: u32 = 1_000;

/// Confined sessions, with their roots.
type Bounded = [(SessionId, Ino)];
/// Returns which of some inodes each of these sessions sees.
type SeenBy<'a> = &'a dyn Fn(&Bounded, &[Ino]) -> BTreeMap<SessionId, Vec<Ino>>;

/// The open streams.
#[derive(Default)]
pub struct Events {
    streams: Mutex<BTreeMap<SessionId, Stream>>,
    opened: AtomicU64,
    asked: Mutex<OrphansAsked>,
}

/// How many sessions were asked about removed files lately.
#[derive(Default)]
struct OrphansAsked {
    /// Those not yet made up for by time, as of the last time that any were asked.
    count: f64,
    at: Option<Instant>,
}

impl OrphansAsked {
    /// Counts that so many sessions are asked now. Returns false if that is too much.
    fn may_ask(&mut self, sessions: usize, now: Instant) -> bool {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let left = (self.count - passed.as_secs_f64() * f64::from(ORPHANS_ASKED_PER_SECOND)).max(0.0);
        // One removal is announced after a pause, however many sessions there are.
        if left > 0.0 && left + sessions as f64 > f64::from(ORPHANS_ASKED_AT_ONCE) {
            return false;
        }
        (self.count, self.at) = (left + sessions as f64, Some(now));
        true
    }
}

struct Stream {
    /// If a session has several streams, the last one counts.
    number: u64,
    queue: mpsc::Sender<MetaEvent>,
    /// The root of a confined client: it hears of nothing elsewhere.
    root: Option<Ino>,
}

impl Events {
    /// Opens a new stream for a session, with this number: from now on the session's events are queued for it. A confined
    /// session has a root.
    pub fn open(&self, session: SessionId, root: Option<Ino>) -> (u64, mpsc::Receiver<MetaEvent>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        self.streams.lock().insert(session, Stream { number, queue, root });
        (number, events)
    }

    /// Closes a session's stream, unless a newer one has taken its place.
    pub fn close(&self, session: SessionId, number: u64) {
        let mut streams = self.streams.lock();
        if streams.get(&session).is_some_and(|stream| stream.number == number) {
            streams.remove(&session);
        }
    }

    /// Sends a session's events until they end or the stream does.
    pub async fn serve(mut events: mpsc::Receiver<MetaEvent>, mut stream: EventSender) {
        let mut closed = std::pin::pin!(stream.closed());
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = &mut closed => None,
            };
            let Some(event) = event else { break };
            if stream.send(&event).await.is_err() {
                break;
            }
        }
    }

    /// Sends an event to one session.
    pub fn send(&self, session: SessionId, event: &MetaEvent) {
        let mut streams = self.streams.lock();
        let Some(stream) = streams.get(&session) else { return };
        if only_informs(event) && stream.queue.capacity() <= QUEUE_RESERVED {
            return;
        }
        if stream.queue.try_send(event.clone()).is_err() {
            // The session is too slow, or gone. It would miss an event that it must not miss, so it has to attach anew.
            streams.remove(&session);
        }
    }

    /// Sends an event to every session but `except`.
    pub fn send_to_others(&self, except: SessionId, event: &MetaEvent) {
        for (other, _) in self.others(except) {
            self.send(other, event);
        }
    }

    fn others(&self, except: SessionId) -> Vec<(SessionId, Option<Ino>)> {
        let streams = self.streams.lock();
        streams.iter().filter(|(other, _)| **other != except).map(|(other, stream)| (*other, stream.root)).collect()
    }

    /// Sends events about inodes to every session but `except`, and to confined ones about those that they see. Which these
    /// are is asked once for all of them.
    fn send_about(
        &self,
        except: SessionId,
        inos: &[Ino],
        seen_by: SeenBy<'_>,
        events: impl Fn(&[Ino]) -> Vec<MetaEvent>,
    ) {
        let mut confined = Vec::new();
        let for_all = events(inos);
        for (other, root) in self.others(except) {
            match root {
                Some(root) => confined.push((other, root)),
                None => for_all.iter().for_each(|event| self.send(other, event)),
            }
        }
        if confined.is_empty() {
            return;
        }
        for (other, seen) in in_place(|| seen_by(&confined, inos)) {
            events(&seen).iter().for_each(|event| self.send(other, event));
        }
    }

    /// Asks all other sessions whether they hold these removed files open, unless too many were asked lately: then they
    /// are asked with their keep-alives.
    pub fn send_orphaned(&self, session: SessionId, inos: &[Ino], seen_by: SeenBy<'_>) {
        let others = self.streams.lock().len();
        if !inos.is_empty() && self.asked.lock().may_ask(others, Instant::now()) {
            self.send_about(session, inos, seen_by, |inos| vec![MetaEvent::Orphaned(inos.to_vec())]);
        }
    }

    /// Notifies the sessions that wait for locks that those on these inodes were released.
    pub fn send_unlocked(&self, session: SessionId, inos: &[Ino], seen_by: SeenBy<'_>) {
        if !inos.is_empty() {
            let events = |inos: &[Ino]| inos.iter().copied().map(MetaEvent::LockReleased).collect();
            self.send_about(session, inos, seen_by, events);
        }
    }
}

/// Returns whether an event may be lost: it asks for nothing, and the session also learns otherwise what it says.
fn only_informs(event: &MetaEvent) -> bool {
    matches!(
        event,
        MetaEvent::Orphaned(_) | MetaEvent::LockReleased(_) | MetaEvent::LayoutChanged(_) | MetaEvent::TrustChanged
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unlocks_of_one_session_leave_room_for_events_that_another_must_not_miss() {
        let (events, liar, honest) = (Events::default(), SessionId(1), SessionId(2));
        let (_, mut waiting) = events.open(honest, None);
        let inos: Vec<Ino> = (0..2 * QUEUE as u64).map(Ino).collect();
        events.send_unlocked(liar, &inos, &|_, _| BTreeMap::new());
        events.send(honest, &MetaEvent::RecallAll { seq: 5 });
        let mut last = None;
        while let Ok(event) = waiting.try_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(MetaEvent::RecallAll { seq: 5 })), "the stream lives: {last:?}");
    }

    #[tokio::test]
    async fn what_confined_sessions_see_is_asked_once_for_all_of_them_and_never_without_them() {
        let (events, asked) = (Events::default(), AtomicU64::new(0));
        let seen_by = |confined: &Bounded, inos: &[Ino]| {
            asked.fetch_add(1, Ordering::Relaxed);
            confined.iter().filter(|(_, root)| *root == Ino(7)).map(|(id, _)| (*id, inos[1..].to_vec())).collect()
        };
        let (_, mut free) = events.open(SessionId(1), None);
        events.send_unlocked(SessionId(9), &[Ino(3), Ino(4)], &seen_by);
        assert_eq!((asked.load(Ordering::Relaxed), free.len()), (0, 2));
        let mut confined: Vec<_> = (2..9).map(|id| events.open(SessionId(id), Some(Ino(5 + id % 3)))).collect();
        events.send_unlocked(SessionId(9), &[Ino(3), Ino(4)], &seen_by);
        events.send_orphaned(SessionId(9), &[Ino(3), Ino(4)], &seen_by);
        assert_eq!((asked.load(Ordering::Relaxed), free.len()), (2, 5));
        for (id, (_, stream)) in (2..9).zip(&mut confined) {
            if id % 3 == 2 {
                assert!(matches!(stream.try_recv(), Ok(MetaEvent::LockReleased(Ino(4)))));
                assert!(matches!(stream.try_recv(), Ok(MetaEvent::Orphaned(inos)) if inos == [Ino(4)]));
            }
            assert!(stream.try_recv().is_err());
        }
        assert!(free.try_recv().is_ok());
    }

    #[test]
    fn removals_ask_a_bounded_number_of_sessions_in_a_second_and_are_announced_again_after_a_pause() {
        let (mut asked, mut now) = (OrphansAsked::default(), Instant::now());
        let mut announced = |sessions: usize, removals: u32, seconds: u32| {
            let mut count = 0;
            for _ in 0..removals * seconds {
                count += usize::from(asked.may_ask(sessions, now));
                now += Duration::from_secs(1) / removals;
            }
            count * sessions
        };
        assert_eq!(announced(1, 100, 2), 200, "of few sessions, each removal");
        let of_many = announced(500, 1_000, 10);
        assert!((2_000..7_000).contains(&of_many), "{of_many}");
        let of_very_many = announced(4_096, 1_000, 100);
        assert!((40_000..60_000).contains(&of_very_many), "{of_very_many}");
    }
}

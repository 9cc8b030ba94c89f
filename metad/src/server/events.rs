//! Streams of events to sessions. When an event that asks for something cannot be delivered, the stream ends:
//! `KeepAlive` and the empty caches of a session that attaches anew make up for the loss. An event that only informs is
//! left out when the session is too slow: other sessions can cause many of these.
//!
//! Events that wait are bounded in number and in bytes, for each session and for all of them: a recall may name thousands of
//! inodes. A session that reads nothing loses its own stream, not the memory of the others.
//!
//! A removed file concerns every session, and each answers with a batch. Where files are removed faster than the
//! sessions can be asked, they learn of them with their keep-alives, many at a time.

use crate::in_place::in_place;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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

/// Bytes of memory of the events that wait for one session: some hundred changes of thousands of inodes each. A single
/// event may have more.
const QUEUED_BYTES_MAX: usize = 8 << 20;
/// Bytes of those of all sessions. Beyond it, only sessions with less than an equal share of it get more.
const QUEUED_BYTES_TOTAL: usize = 256 << 20;

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
    /// Bytes of events that wait, of all sessions.
    queued: Arc<AtomicUsize>,
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
    queue: mpsc::Sender<(MetaEvent, QueuedBytes)>,
    /// Bytes of events that wait in it.
    queued: Arc<AtomicUsize>,
    /// The root of a confined client: it hears of nothing elsewhere.
    root: Option<Ino>,
}

/// The events that wait for a session.
pub struct EventQueue(mpsc::Receiver<(MetaEvent, QueuedBytes)>);

impl EventQueue {
    /// Returns the next event, `None` when the stream has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<MetaEvent> {
        self.0.recv().await.map(|(event, _)| event)
    }
}

/// Bytes of an event that waits. They are counted until this is dropped.
struct QueuedBytes {
    bytes: usize,
    of: [Arc<AtomicUsize>; 2],
}

impl QueuedBytes {
    fn count(bytes: usize, of: [Arc<AtomicUsize>; 2]) -> Self {
        for counter in &of {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        Self { bytes, of }
    }
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        for counter in &self.of {
            counter.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Returns the bytes of memory that an event takes in a queue.
fn bytes_of(event: &MetaEvent) -> usize {
    let inos = match event {
        MetaEvent::Orphaned(inos) | MetaEvent::Recall { inos, .. } | MetaEvent::Share { inos, .. } => inos.len(),
        MetaEvent::LockReleased(_)
        | MetaEvent::LayoutChanged(_)
        | MetaEvent::Attached { .. }
        | MetaEvent::RecallAll { .. }
        | MetaEvent::Company { .. }
        | MetaEvent::TrustChanged => 0,
    };
    size_of::<(MetaEvent, QueuedBytes)>() + inos * size_of::<Ino>()
}

/// Returns whether one more event may wait for a session, of which so many bytes wait, and of all sessions so many.
fn has_room(bytes: usize, (own, all): (usize, usize), sessions: usize) -> bool {
    let share = QUEUED_BYTES_TOTAL / sessions.max(1);
    own == 0 || (own + bytes <= QUEUED_BYTES_MAX && (all + bytes <= QUEUED_BYTES_TOTAL || own + bytes <= share))
}

impl Events {
    /// Opens a new stream for a session, with this number: from now on the session's events are queued for it. A confined
    /// session has a root.
    pub fn open(&self, session: SessionId, root: Option<Ino>) -> (u64, EventQueue) {
        let (queue, events) = mpsc::channel(QUEUE);
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        self.streams.lock().insert(session, Stream { number, queue, queued: Arc::default(), root });
        (number, EventQueue(events))
    }

    /// Closes a session's stream, unless a newer one has taken its place.
    pub fn close(&self, session: SessionId, number: u64) {
        let mut streams = self.streams.lock();
        if streams.get(&session).is_some_and(|stream| stream.number == number) {
            streams.remove(&session);
        }
    }

    /// Sends a session's events until they end or the stream does.
    pub async fn serve(mut events: EventQueue, mut stream: EventSender) {
        let mut closed = std::pin::pin!(stream.closed());
        loop {
            let event = tokio::select! {
                event = events.next() => event,
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
        let sessions = streams.len();
        let Some(stream) = streams.get(&session) else { return };
        let bytes = bytes_of(event);
        let (own, all) = (stream.queued.load(Ordering::Relaxed), self.queued.load(Ordering::Relaxed));
        let fits = has_room(bytes, (own, all), sessions);
        let is_slow = stream.queue.capacity() <= QUEUE_RESERVED || own + bytes > QUEUED_BYTES_MAX / 2;
        if only_informs(event) && (is_slow || !fits) {
            return;
        }
        let counted = || QueuedBytes::count(bytes, [stream.queued.clone(), self.queued.clone()]);
        if !fits || stream.queue.try_send((event.clone(), counted())).is_err() {
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
        while let Ok((event, _)) = waiting.0.try_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(MetaEvent::RecallAll { seq: 5 })), "the stream lives: {last:?}");
    }

    fn recall(seq: u64, inodes: usize) -> MetaEvent {
        MetaEvent::Recall { seq, inos: (0..inodes as u64).map(Ino).collect() }
    }

    #[tokio::test]
    async fn a_session_that_reads_no_events_loses_its_stream_by_bytes_and_others_keep_theirs() {
        let (events, silent, honest) = (Events::default(), SessionId(1), SessionId(2));
        let (_, mut unread) = events.open(silent, None);
        let (_, mut read) = events.open(honest, None);
        let (inodes, mut seq) = (10_000, 0);
        // Far fewer than the events that may wait.
        while events.streams.lock().contains_key(&silent) {
            seq += 1;
            assert!(seq < QUEUE as u64 / 4, "the queue has no bound in bytes");
            for session in [silent, honest] {
                events.send(session, &recall(seq, inodes));
            }
            assert!(matches!(read.next().await, Some(MetaEvent::Recall { seq: sent, .. }) if sent == seq));
        }
        let held = events.queued.load(Ordering::Relaxed);
        assert!(held <= QUEUED_BYTES_MAX && held + 2 * 8 * inodes > QUEUED_BYTES_MAX, "{held}");
        assert!(matches!(unread.next().await, Some(MetaEvent::Recall { seq: 1, .. })), "what was sent before arrives");
        drop(unread);
        assert_eq!(events.queued.load(Ordering::Relaxed), 0, "what is gone is not counted");
        // An event that is larger than that is delivered all the same, one at a time.
        let many = QUEUED_BYTES_MAX / 8 + 1;
        events.send(honest, &recall(seq + 1, many));
        assert!(matches!(read.next().await, Some(MetaEvent::Recall { inos, .. }) if inos.len() == many));
    }

    #[test]
    fn sessions_that_read_nothing_leave_those_their_share_that_do() {
        let sessions = 1_000;
        let share = QUEUED_BYTES_TOTAL / sessions;
        assert!(has_room(share * 2, (100, QUEUED_BYTES_TOTAL / 2), sessions), "there is room for all");
        assert!(!has_room(share, (100, QUEUED_BYTES_TOTAL), sessions));
        assert!(has_room(share / 2, (100, QUEUED_BYTES_TOTAL), sessions));
        assert!(has_room(share * 2, (0, QUEUED_BYTES_TOTAL), sessions), "whoever reads gets everything");
        assert!(!has_room(200, (QUEUED_BYTES_MAX - 100, QUEUED_BYTES_MAX), sessions));
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
        assert_eq!((asked.load(Ordering::Relaxed), free.0.len()), (0, 2));
        let mut confined: Vec<_> = (2..9).map(|id| events.open(SessionId(id), Some(Ino(5 + id % 3)))).collect();
        events.send_unlocked(SessionId(9), &[Ino(3), Ino(4)], &seen_by);
        events.send_orphaned(SessionId(9), &[Ino(3), Ino(4)], &seen_by);
        assert_eq!((asked.load(Ordering::Relaxed), free.0.len()), (2, 5));
        for (id, (_, stream)) in (2..9).zip(&mut confined) {
            if id % 3 == 2 {
                assert!(matches!(stream.0.try_recv(), Ok((MetaEvent::LockReleased(Ino(4)), _))));
                assert!(matches!(stream.0.try_recv(), Ok((MetaEvent::Orphaned(inos), _)) if inos == [Ino(4)]));
            }
            assert!(stream.0.try_recv().is_err());
        }
        assert!(free.0.try_recv().is_ok());
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

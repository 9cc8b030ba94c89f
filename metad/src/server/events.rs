//! Streams of events to sessions. An event that asks for something and cannot be delivered ends the stream; what it told,
//! `KeepAlive` and the empty caches of a session that begins anew make up for. One that only says something is left out where
//! the session does not keep up: others can cause many of them.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use wire::ids::SessionId;
use wire::message::event::MetaEvent;
use wire::op::Op;
use wire::quic::EventSender;

/// Events that wait for a slow session. With more, its stream ends, and it begins anew with empty caches.
const QUEUE: usize = 4096;

/// Of these, places that events without a number leave free for those that must not be missed.
const RESERVED: usize = QUEUE / 2;

/// The open streams.
#[derive(Default)]
pub struct Events {
    streams: Mutex<BTreeMap<SessionId, Stream>>,
    opened: AtomicU64,
}

struct Stream {
    /// Of several streams of a session, the last one counts.
    number: u64,
    queue: mpsc::Sender<MetaEvent>,
}

impl Events {
    /// From now on a session's events gather for its new stream, which has this number.
    pub fn open(&self, session: SessionId) -> (u64, mpsc::Receiver<MetaEvent>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        self.streams.lock().insert(session, Stream { number, queue });
        (number, events)
    }

    /// A session's stream has ended, unless a newer one has taken its place.
    pub fn close(&self, session: SessionId, number: u64) {
        let mut streams = self.streams.lock();
        if streams.get(&session).is_some_and(|stream| stream.number == number) {
            streams.remove(&session);
        }
    }

    /// Sends a session's events until they or the stream end.
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

    /// Tells one session.
    pub fn tell(&self, session: SessionId, event: &MetaEvent) {
        let mut streams = self.streams.lock();
        let Some(stream) = streams.get(&session) else { return };
        if says_only(event) && stream.queue.capacity() <= RESERVED {
            return;
        }
        if stream.queue.try_send(event.clone()).is_err() {
            // It does not keep up, or is gone. What it must not miss it would miss: it begins anew.
            streams.remove(&session);
        }
    }

    /// Tells every session but `except`.
    pub fn tell_others(&self, except: SessionId, event: &MetaEvent) {
        let others: Vec<SessionId> = self.streams.lock().keys().copied().filter(|other| *other != except).collect();
        for other in others {
            self.tell(other, event);
        }
    }

    /// Tells those who wait for a lock that it was released.
    pub fn tell_unlocked(&self, session: SessionId, ops: &[Op]) {
        let unlocked = ops.iter().filter_map(|op| if let Op::Unlock { ino, .. } = op { Some(*ino) } else { None });
        for ino in unlocked.collect::<BTreeSet<_>>() {
            self.tell_others(session, &MetaEvent::LockReleased(ino));
        }
    }
}

/// Whether nothing goes wrong without it: it asks for nothing, and what it says is heard otherwise.
fn says_only(event: &MetaEvent) -> bool {
    matches!(event, MetaEvent::Orphaned(_) | MetaEvent::LockReleased(_) | MetaEvent::LayoutChanged(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::Ino;

    #[tokio::test]
    async fn what_one_session_unlocks_leaves_room_for_what_another_must_not_miss() {
        let (events, liar, honest) = (Events::default(), SessionId(1), SessionId(2));
        let (_, mut waiting) = events.open(honest);
        let unlock =
            |ino| Op::Unlock { ino: Ino(ino), family: wire::op::LockFamily::Posix, owner: 1, start: 0, end: 1 };
        events.tell_unlocked(liar, &vec![unlock(7); QUEUE]);
        assert_eq!(waiting.len(), 1, "each file once");
        events.tell_unlocked(liar, &(0..2 * QUEUE as u64).map(unlock).collect::<Vec<_>>());
        events.tell(honest, &MetaEvent::RecallAll { seq: 5 });
        let mut last = None;
        while let Ok(event) = waiting.try_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(MetaEvent::RecallAll { seq: 5 })), "the stream lives: {last:?}");
    }
}

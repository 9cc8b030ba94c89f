//! Streams of events to sessions. When an event that asks for something cannot be delivered, the stream ends:
//! `KeepAlive` and the empty caches of a session that attaches anew make up for the loss. An event that only informs is
//! left out when the session is too slow: other sessions can cause many of these.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use wire::ids::SessionId;
use wire::message::event::MetaEvent;
use wire::op::Op;
use wire::quic::EventSender;

/// Events that wait for a slow session. With more, its stream ends, and it attaches anew with empty caches.
const QUEUE: usize = 4096;

/// Places in that queue that events which only inform leave free for those that must not be missed.
const QUEUE_RESERVED: usize = QUEUE / 2;

/// The open streams.
#[derive(Default)]
pub struct Events {
    streams: Mutex<BTreeMap<SessionId, Stream>>,
    opened: AtomicU64,
}

struct Stream {
    /// If a session has several streams, the last one counts.
    number: u64,
    queue: mpsc::Sender<MetaEvent>,
}

impl Events {
    /// Opens a new stream for a session, with this number: from now on the session's events are queued for it.
    pub fn open(&self, session: SessionId) -> (u64, mpsc::Receiver<MetaEvent>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        self.streams.lock().insert(session, Stream { number, queue });
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
        let others: Vec<SessionId> = self.streams.lock().keys().copied().filter(|other| *other != except).collect();
        for other in others {
            self.send(other, event);
        }
    }

    /// Notifies the sessions that wait for a lock that it was released.
    pub fn send_unlocked(&self, session: SessionId, ops: &[Op]) {
        let unlocked = ops.iter().filter_map(|op| if let Op::Unlock { ino, .. } = op { Some(*ino) } else { None });
        for ino in unlocked.collect::<BTreeSet<_>>() {
            self.send_to_others(session, &MetaEvent::LockReleased(ino));
        }
    }
}

/// Returns whether an event may be lost: it asks for nothing, and the session also learns otherwise what it says.
fn only_informs(event: &MetaEvent) -> bool {
    matches!(event, MetaEvent::Orphaned(_) | MetaEvent::LockReleased(_) | MetaEvent::LayoutChanged(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::Ino;

    #[tokio::test]
    async fn unlocks_of_one_session_leave_room_for_events_that_another_must_not_miss() {
        let (events, liar, honest) = (Events::default(), SessionId(1), SessionId(2));
        let (_, mut waiting) = events.open(honest);
        let unlock =
            |ino| Op::Unlock { ino: Ino(ino), family: wire::op::LockFamily::Posix, owner: 1, start: 0, end: 1 };
        events.send_unlocked(liar, &vec![unlock(7); QUEUE]);
        assert_eq!(waiting.len(), 1, "each file once");
        events.send_unlocked(liar, &(0..2 * QUEUE as u64).map(unlock).collect::<Vec<_>>());
        events.send(honest, &MetaEvent::RecallAll { seq: 5 });
        let mut last = None;
        while let Ok(event) = waiting.try_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(MetaEvent::RecallAll { seq: 5 })), "the stream lives: {last:?}");
    }
}

//! Streams of events to sessions. An event that cannot be delivered ends the stream; what it told, `KeepAlive` and the
//! empty caches of a session that begins anew make up for.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use wire::ids::SessionId;
use wire::message::event::MetaEvent;
use wire::op::Op;
use wire::quic::EventSender;

/// Events that wait for a slow session. With more, its stream ends, and it begins anew with empty caches.
const QUEUE: usize = 4096;

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
        if let Some(stream) = streams.get(&session)
            && stream.queue.try_send(event.clone()).is_err()
        {
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
        for op in ops {
            if let Op::Unlock { ino, .. } = op {
                self.tell_others(session, &MetaEvent::LockReleased(*ino));
            }
        }
    }
}

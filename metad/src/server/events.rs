//! Streams of events to sessions. Best effort: `KeepAlive` tells what an event may have missed.

use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use tokio::sync::mpsc;
use wire::ids::{Ino, SessionId};
use wire::message::event::MetaEvent;
use wire::op::{Name, Op};
use wire::quic::EventSender;

/// Events that wait for a slow session; more are dropped.
const QUEUE: usize = 1024;

/// The open streams.
#[derive(Default)]
pub struct Events {
    streams: Mutex<HashMap<SessionId, mpsc::Sender<MetaEvent>>>,
}

impl Events {
    /// Sends a session's events on its stream until either end closes.
    pub async fn serve(&self, session: SessionId, mut stream: EventSender) {
        let (queue, mut events) = mpsc::channel(QUEUE);
        self.streams.lock().insert(session, queue);
        while let Some(event) = events.recv().await {
            if stream.send(&event).await.is_err() {
                break;
            }
        }
    }

    /// Tells every session but `except`.
    pub fn tell_others(&self, except: SessionId, event: &MetaEvent) {
        let mut streams = self.streams.lock();
        streams.retain(|_, queue| !queue.is_closed());
        for (session, queue) in streams.iter() {
            if *session != except {
                // A full queue drops the event: it is no promise.
                let _ = queue.try_send(event.clone());
            }
        }
    }

    /// Tells other sessions what a batch has changed.
    pub fn tell_changes(&self, session: SessionId, ops: &[Op]) {
        if self.streams.lock().keys().all(|other| *other == session) {
            return;
        }
        for ino in touched(ops) {
            self.tell_others(session, &MetaEvent::Changed(ino));
        }
        for (parent, name) in ops.iter().flat_map(taken_names) {
            self.tell_others(session, &MetaEvent::NameChanged { parent, name: name.clone() });
        }
        for op in ops {
            if let Op::Unlock { ino, .. } = op {
                self.tell_others(session, &MetaEvent::LockReleased(*ino));
            }
        }
    }
}

/// Names that no longer lead where they led. One that led nowhere is believed by nobody.
fn taken_names(op: &Op) -> impl Iterator<Item = (Ino, &Name)> {
    let (one, two) = match op {
        Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name } => (Some((*parent, name)), None),
        Op::Rename { parent, name, new_parent, new_name, .. } => (Some((*parent, name)), Some((*new_parent, new_name))),
        _ => (None, None),
    };
    one.into_iter().chain(two)
}

fn touched(ops: &[Op]) -> BTreeSet<Ino> {
    let mut inos = BTreeSet::new();
    for op in ops {
        match op {
            Op::Create { parent, .. } | Op::Unlink { parent, .. } | Op::Rmdir { parent, .. } => {
                inos.insert(*parent);
            }
            Op::Link { ino, parent, .. } => inos.extend([*ino, *parent]),
            Op::Rename { parent, new_parent, .. } => inos.extend([*parent, *new_parent]),
            Op::SetAttr { ino, .. }
            | Op::Commit { ino, .. }
            | Op::Range { ino, .. }
            | Op::SetXattr { ino, .. }
            | Op::RemoveXattr { ino, .. } => {
                inos.insert(*ino);
            }
            Op::CloneRange { dst, .. } => {
                inos.insert(*dst);
            }
            // When something was read is no reason to read it anew.
            Op::Accessed { .. }
            | Op::ReleaseOrphans { .. }
            | Op::LeaseInos { .. }
            | Op::SetLock { .. }
            | Op::Unlock { .. } => {}
        }
    }
    inos
}

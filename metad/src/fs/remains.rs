//! What ended sessions leave: locks, removed files that they had open, and, once they are forgotten, stored replies and
//! the record of used inode numbers.
//!
//! A session ends in one entry, whatever it holds: from then on nothing of it counts. Its batches are refused, its locks
//! stand in nobody's way, nobody asks it about removed files. What is stored of all that is removed in steps of a bounded
//! size: the first with the entry that ends the session, the others by `Command::Reap`. A step removes what comes first
//! in the order of keys, so all replicas remove the same.

use super::Context;
use super::keys;
use super::lock;
use super::orphan;
use super::session::{self, forget_used};
use super::view::{Kv, KvExt, STEP_BYTES, View, decode_stored};
use serde::{Deserialize, Serialize};
use wire::codec;
use wire::ids::{Ino, SessionId};

/// Sessions of which one step removes something.
const STEP_SESSIONS: usize = 64;
/// Replies removed before the size of the step is looked at again.
const REPLIES_AT_ONCE: usize = 64;

/// The stored record of a session of which something is still to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// The session is forgotten, so its replies go, too.
    is_forgotten: bool,
    /// Inode numbers that it had leased, if it is forgotten: nobody needs to know any more which of them were used.
    inos: Vec<(Ino, Ino)>,
}

/// Removes what a session holds that has ended.
pub(super) fn release(view: &mut View, context: &Context, id: SessionId) {
    go_on(view, context, id, Remains::default());
}

/// Removes all that is stored for a session that is forgotten. Its record is gone.
pub(super) fn forget(view: &mut View, context: &Context, id: SessionId, inos: Vec<(Ino, Ino)>) {
    go_on(view, context, id, Remains { is_forgotten: true, inos });
}

/// Removes some of what ended sessions have left, as much as fits in a step.
pub(super) fn remove_some(view: &mut View, context: &Context) {
    for (key, value) in view.pairs(keys::all_remains(), STEP_SESSIONS) {
        if view.is_step_full() {
            return;
        }
        let id = SessionId(keys::first(&key));
        if session::find(view, id).is_some() {
            // The state is damaged: nothing is taken from a session that lives.
            view.delete(key);
        } else {
            go_on(view, context, id, decode_stored(&key, &value));
        }
    }
}

/// Returns whether anything is left to remove.
pub fn are_left(kv: &dyn Kv) -> bool {
    kv.any(keys::all_remains())
}

/// Returns the record of a session of which nothing but its number is known.
pub(super) fn unknown() -> Vec<u8> {
    codec::encode(&Remains::default())
}

fn go_on(view: &mut View, context: &Context, id: SessionId, mut remains: Remains) {
    let context = Context { session: id, ..context.clone() };
    let is_done = lock::release_session(view, &context)
        && orphan::release_session(view, &context)
        && (!remains.is_forgotten || (forget_replies(view, id) && forget_numbers(view, &mut remains.inos)));
    let key = keys::remains(id);
    if !is_done {
        view.store(key, &remains);
    } else if view.get(&key).is_some() {
        view.delete(key);
    }
}

fn forget_replies(view: &mut View, id: SessionId) -> bool {
    loop {
        if view.is_step_full() {
            return false;
        }
        let replies = view.first_keys(keys::replies(id), REPLIES_AT_ONCE, STEP_BYTES);
        if replies.is_empty() {
            return true;
        }
        replies.into_iter().for_each(|key| view.delete(key));
    }
}

fn forget_numbers(view: &mut View, inos: &mut Vec<(Ino, Ino)>) -> bool {
    while let Some(range) = inos.last() {
        if view.is_step_full() {
            return false;
        }
        forget_used(view, *range);
        inos.pop();
    }
    true
}

//! How sessions begin and end.

use super::keys;
use super::session::{Opening, Session, all_and_ended, find, find_or_ended, forget_used};
use super::settings::take_numbers;
use super::view::{KvExt, View};
use super::{Context, lock, orphan};
use wire::ids::{BatchSeq, Ino, SessionId};

/// Ended sessions whose unacknowledged replies are kept; those that ended before them are forgotten.
const ENDED_MAX: usize = 256;

/// `Command::OpenSession`. Asked again by a client that got no answer, it is the session that was opened the first time:
/// another one would find no inode numbers left to take over. If that one has ended meanwhile, they are taken from there.
pub(super) fn open(view: &mut View, context: &Context, opening: &Opening) -> SessionId {
    let same = |opened: &Opening| opened.token == opening.token && opened.client == opening.client;
    let find = || all_and_ended(view).into_iter().rev().find(|(_, session)| same(&session.opening));
    let first = opening.token.and_then(|_| find());
    if let Some((id, _)) = first.as_ref().filter(|(_, session)| !session.has_ended()) {
        return *id;
    }
    let mut inos = Vec::new();
    for old in [opening.resumes, first.map(|(id, _)| id)].into_iter().flatten() {
        inos.extend(take_over(view, context, old, &opening.client));
    }
    let id = SessionId(take_numbers(view, "next session", 1, 1));
    let session = Session { opening: opening.clone(), acked: BatchSeq::default(), inos, ended: None };
    view.store(keys::session(id), &session);
    id
}

/// Ends a session in favour of another one of the same client, which goes on with its unused inode numbers: what was
/// made with them under a delegation is told by the other one.
fn take_over(view: &mut View, context: &Context, old: SessionId, client: &str) -> Vec<(Ino, Ino)> {
    let Some(session) = find_or_ended(view, old).filter(|session| session.opening.client == client) else {
        return Vec::new();
    };
    if !session.has_ended() {
        close(view, context, old);
    }
    let Some(mut session) = find_or_ended(view, old) else { return Vec::new() };
    let inos = std::mem::take(&mut session.inos);
    view.store(keys::session(old), &session);
    inos
}

/// `Command::CloseSessions`: its locks and orphans go. Its replies stay for a client that was cut off and does not know
/// what became of its last batches (I1), and its inode numbers for the session that goes on in its place.
pub(super) fn close(view: &mut View, context: &Context, id: SessionId) {
    let Some(mut session) = find(view, id) else { return };
    let context = Context { now: context.now, session: id };
    lock::release_session(view, &context);
    orphan::release_session(view, &context);
    session.ended = Some(take_numbers(view, "next ended", 1, 1));
    view.store(keys::session(id), &session);
    let mut ended: Vec<(u64, SessionId)> =
        all_and_ended(view).into_iter().filter_map(|(id, session)| Some((session.ended?, id))).collect();
    // Not by their own numbers: a session that was opened long ago may be one of the last to end.
    ended.sort_unstable();
    for (_, oldest) in &ended[..ended.len().saturating_sub(ENDED_MAX)] {
        for range in find_or_ended(view, *oldest).map(|session| session.inos).unwrap_or_default() {
            forget_used(view, range);
        }
        for (key, _) in view.pairs(keys::replies(*oldest), usize::MAX) {
            view.delete(key);
        }
        view.delete(keys::session(*oldest));
    }
}

//! How sessions begin and end.

use super::keys;
use super::session::{
    Confined, INO_RANGES_MAX, Opening, SESSIONS_MAX, SESSIONS_PER_CLIENT_MAX, Session, find, find_or_ended, forget_used,
};
use super::settings::take_numbers;
use super::view::{Kv, KvExt, View};
use super::{CommandReply, Context, borders, remains};
use std::borrow::Cow;
use wire::FsError;
use wire::ids::{BatchSeq, Ino, SessionId};

/// Ended sessions of one certificate whose unacknowledged replies are retained. Those that ended earlier are forgotten.
/// The limit is per certificate, so no client makes metad forget the replies of others (I1).
const ENDED_MAX: usize = 256;

/// `Command::OpenSession`. When a client that got no answer asks again, this returns the session that was opened the
/// first time: a new one would find no inode numbers left to take over. If the first one has ended meanwhile, its
/// numbers are taken over. Answers `Stale` when the client has, or all clients together have, as many sessions as are
/// allowed.
pub(super) fn open(view: &mut View, context: &Context, opening: &Opening) -> CommandReply {
    let first = opening.token.and_then(|token| find_by_token(view, token, opening));
    if let Some((id, _)) = first.as_ref().filter(|(_, session)| !session.has_ended()) {
        return CommandReply::Session(*id);
    }
    // On the state that this meets: whatever was looked up before may have moved.
    let opening = match resolved(view, opening) {
        Ok(opening) => opening,
        Err(error) => return CommandReply::Failed(error),
    };
    let opening = &*opening;
    let mut inos = Vec::new();
    for old in [opening.resumes, first.map(|(id, _)| id)].into_iter().flatten() {
        inos.extend(take_over(view, context, old, opening));
    }
    // Only as many as one session could have leased: numbers taken over again and again would grow without bound.
    for range in inos.drain(..inos.len().saturating_sub(INO_RANGES_MAX)) {
        forget_used(view, range);
    }
    // Checked after the replaced session has ended: a client that comes back needs no more room.
    let is_full = |range, most| view.pairs(range, most).len() >= most;
    if is_full(keys::living_of(&opening.client), SESSIONS_PER_CLIENT_MAX) || is_full(keys::all_living(), SESSIONS_MAX) {
        return CommandReply::Stale;
    }
    let id = new_number(view, opening.token);
    let session = Session { opening: opening.clone(), acked: BatchSeq::default(), inos, ended: None };
    view.store(keys::session(id), &session);
    view.put(keys::living(&opening.client, id), opening.living_value());
    if let Some(token) = opening.token {
        view.put(keys::token(token, id), Vec::new());
    }
    CommandReply::Session(id)
}

/// Returns the living session that a client has opened with the token of this opening.
pub(crate) fn opened(kv: &dyn Kv, opening: &Opening) -> Option<SessionId> {
    let (id, session) = find_by_token(kv, opening.token?, opening)?;
    (!session.has_ended()).then_some(id)
}

/// Returns an opening with the directory that its path leads to.
fn resolved<'a>(kv: &dyn Kv, opening: &'a Opening) -> Result<Cow<'a, Opening>, FsError> {
    let Some(Confined { subtree: Some(path), squash, root: _ }) = &opening.confined else {
        return Ok(Cow::Borrowed(opening));
    };
    let confined = Confined { subtree: Some(path.clone()), squash: *squash, root: borders::resolve(kv, path)? };
    Ok(Cow::Owned(Opening { confined: Some(confined), ..opening.clone() }))
}

/// Returns the number of a new session. It follows from the token, which only its client knows, and from how many
/// sessions were opened before. Another holder of the same bundle cannot guess it, and so can neither end the session
/// nor acknowledge its recalls.
fn new_number(view: &mut View, token: Option<u64>) -> SessionId {
    loop {
        let id = number_of(take_numbers(view, "next session", 1, 1), token);
        // The first attempt succeeds, but for a chance of one in billions of billions.
        if id != SessionId::default() && find_or_ended(view, id).is_none() {
            return id;
        }
    }
}

fn number_of(count: u64, token: Option<u64>) -> SessionId {
    let mut hasher = blake3::Hasher::new_derive_key("surf 2026-11 number of a session");
    hasher.update(&count.to_le_bytes());
    hasher.update(&token.unwrap_or_default().to_le_bytes());
    let mut number = [0; 8];
    number.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    SessionId(u64::from_le_bytes(number))
}

/// Returns the session that a client has opened with a token: the living one, or the one that ended last.
fn find_by_token(kv: &dyn Kv, token: u64, opening: &Opening) -> Option<(SessionId, Session)> {
    // Tokens are chosen by clients. If others use the same one, there are a few more sessions to look at.
    let found = kv.pairs(keys::tokens(token), SESSIONS_MAX);
    let ids = found.iter().map(|(key, _)| SessionId(keys::second(key)));
    let sessions = ids.filter_map(|id| Some((id, find_or_ended(kv, id)?)));
    let own = sessions.filter(|(_, session)| is_of_same_client(&session.opening, opening));
    own.max_by_key(|(_, session)| session.ended.unwrap_or(u64::MAX))
}

/// Returns whether two sessions are of one certificate, or of those that renewed it. What is confined to another subtree
/// is another client.
fn is_of_same_client(one: &Opening, other: &Opening) -> bool {
    let bounds = |opening: &Opening| opening.confined.as_ref().map(|of| (of.subtree.clone(), of.squash));
    one.client == other.client && bounds(one) == bounds(other)
}

/// Ends a session in favour of another one of the same client, which takes over its unused inode numbers and sends what
/// was made with them under a delegation.
fn take_over(view: &mut View, context: &Context, old: SessionId, opening: &Opening) -> Vec<(Ino, Ino)> {
    let old_one = find_or_ended(view, old).filter(|session| is_of_same_client(&session.opening, opening));
    let Some(session) = old_one else {
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

/// `Command::CloseSessions`: from now on its locks stand in nobody's way, and it holds no file open. Its replies stay for a
/// client that was cut off and does not know the outcome of its last batches (I1), and its inode numbers stay for the
/// session that replaces it.
pub(super) fn close(view: &mut View, context: &Context, id: SessionId) {
    let Some(mut session) = find(view, id) else { return };
    let place = take_numbers(view, "next ended", 1, 1);
    session.ended = Some(place);
    view.store(keys::session(id), &session);
    view.delete(keys::living(&session.opening.client, id));
    view.put(keys::ended(&session.opening.client, place, id), Vec::new());
    remains::release(view, context, id);
    let ended = view.pairs(keys::ended_of(&session.opening.client), ENDED_MAX + 1);
    if let Some((key, _)) = ended.first().filter(|_| ended.len() > ENDED_MAX) {
        view.delete(key.clone());
        forget(view, context, SessionId(keys::third(key)));
    }
}

/// Forgets all about a session that ended long ago.
fn forget(view: &mut View, context: &Context, id: SessionId) {
    let Some(session) = find_or_ended(view, id) else { return };
    if let Some(token) = session.opening.token {
        view.delete(keys::token(token, id));
    }
    view.delete(keys::session(id));
    remains::forget(view, context, id, session.inos);
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_number_of_a_session_follows_from_no_other_one() {
        let token = Some(0x5EC2_E7F0_0D15_EA5E);
        assert_eq!(number_of(1, token), number_of(1, token), "the same on every metad");
        // Another client that opens sessions before and after it learns nothing about it.
        let numbers = |token: Option<u64>| (1..=100).map(move |count| number_of(count, token).0);
        let own: BTreeSet<u64> = numbers(Some(1)).collect();
        for number in numbers(token) {
            let near = |other: &u64| other.abs_diff(number) < 1 << 32;
            assert!(!own.iter().any(near));
        }
    }

    #[test]
    fn no_two_sessions_have_one_number() {
        let state = MemoryKv::default();
        let mut view = View::new(&state);
        let first = new_number(&mut view, Some(7));
        let opening = Opening {
            host: String::new(),
            purpose: String::new(),
            client: "c".to_owned(),
            caches: true,
            resumes: None,
            token: Some(7),
            confined: None,
        };
        let session = Session { opening, acked: BatchSeq::default(), inos: Vec::new(), ended: None };
        view.store(keys::session(first), &session);
        // As if the counter had come round.
        view.store(keys::setting("next session"), &1_u64);
        assert_ne!(new_number(&mut view, Some(7)), first);
    }
}

//! Tables that index other tables: which of their keys must exist.

use super::blockref::BlockRef;
use super::dentry::Target;
use super::inode::Inode;
use super::keys::{self, Key};
use super::session::{self, Session};
use super::view::{Kv, KvExt, View};
use super::{backlinks, hidden, journal_keys, lock, numbered, orphan, remains, token_keys};
use wire::attr::FileKind;
use wire::ids::{BlockHash, Ino, JournalId, SessionId, TokenId};

/// Returns the index keys of a session.
pub(super) fn of_session(id: SessionId, session: &Session) -> Vec<Key> {
    let opening = &session.opening;
    let by_state = match session.ended {
        None => keys::living(&opening.client, id),
        Some(place) => keys::ended(&opening.client, place, id),
    };
    std::iter::once(by_state).chain(opening.token.map(|token| keys::token(token, id))).collect()
}

/// Returns whether an index key must exist. Returns `None` when the key belongs to no index, or what decides about it
/// cannot be decoded.
pub(super) fn belongs(kv: &dyn Kv, key: &[u8]) -> Option<bool> {
    let session_of = |id: u64| match kv.get(&keys::session(SessionId(id))) {
        None => Some(false),
        Some(value) => {
            let session: Session = wire::codec::decode(&value).ok()?;
            Some(of_session(SessionId(id), &session).iter().any(|known| known == key))
        }
    };
    match (key.first()?, key.len()) {
        (b'A' | b'T', 17) => session_of(keys::second(key)),
        (b'W', 25) => session_of(keys::third(key)),
        (b'e', 9) => match kv.get(&keys::session(SessionId(keys::first(key)))) {
            None => Some(true),
            Some(value) => Some(wire::codec::decode::<Session>(&value).ok()?.has_ended()),
        },
        (b'h', 9) => Some(kv.get(&keys::inode(Ino(keys::first(key)))).is_some()),
        (b'Q', 17) => {
            let holders = orphan::holders(kv, Ino(keys::second(key)))?;
            Some(holders.contains(&SessionId(keys::first(key))))
        }
        (b'J', 17) => {
            let holders = match kv.get(&keys::locks(Ino(keys::second(key)))) {
                Some(value) => lock::decode_holders(&value)?,
                None => return Some(false),
            };
            Some(holders.contains(&SessionId(keys::first(key))))
        }
        (b'd', 18..) => {
            let (ino, (parent, name)) = (Ino(keys::first(key)), backlinks::parts(key));
            let Some(value) = kv.get(&keys::inode(ino)) else { return Some(false) };
            let inode: Inode = wire::codec::decode(&value).ok()?;
            let target = kv.get(&keys::dentry(parent, name));
            let leads = target.is_some_and(|value| numbered::decode::<Target>(&value).is_ok_and(|(to, _)| to == ino));
            Some(leads && inode.attr.kind != FileKind::Directory && inode.attr.nlink > 1)
        }
        (b'G', 17) => Some(kv.get(&journal_keys::journal(JournalId(keys::second(key)))).is_some()),
        (b'H', token_keys::ENROLLED_BYTES) => {
            Some(kv.get(&token_keys::join_token(TokenId(keys::first(key)))).is_some())
        }
        (b'Z', keys::UNREFERENCED_BYTES) => {
            let hash: BlockHash = keys::unreferenced_hash(key);
            let block = keys::block_of(keys::unreferenced_policy(key), &hash);
            let Some(value) = kv.get(&block) else { return Some(false) };
            let block: BlockRef = wire::codec::decode(&value).ok()?;
            Some(block.count == 0 && block.zero_since_ms == keys::first(key))
        }
        _ => None,
    }
}

/// Returns the value of an index key that belongs.
fn value_of(kv: &dyn Kv, key: &[u8]) -> Vec<u8> {
    let session = match key.first() {
        Some(b'e') => return remains::unknown(),
        Some(b'h') => return hidden::nothing(),
        Some(b'A') => session::find(kv, SessionId(keys::second(key))),
        _ => None,
    };
    session.map_or_else(Vec::new, |session| session.opening.living_value())
}

/// Adds or removes an index key as needed. Returns false when it was right, or nobody can say.
pub(super) fn set_right(view: &mut View, key: &[u8]) -> bool {
    let (is_there, Some(belongs)) = (view.get(key).is_some(), belongs(view, key)) else { return false };
    match (is_there, belongs) {
        (false, true) => {
            let value = value_of(view, key);
            view.put(key.to_vec(), value);
        }
        (true, false) => view.delete(key.to_vec()),
        _ => return false,
    }
    true
}

/// Deletes up to `limit` replies of a session that is forgotten. Returns whether there were any.
pub(super) fn forget_replies(view: &mut View, id: SessionId, limit: usize) -> bool {
    if view.get(&keys::session(id)).is_some() {
        return false;
    }
    let replies = view.pairs(keys::replies(id), limit);
    let some = !replies.is_empty();
    replies.into_iter().for_each(|(key, _)| view.delete(key));
    some
}

//! Sessions: exactly-once batches (I1), leased inode numbers (I4).

use super::keys;
use super::settings::{NEXT_INO, take_numbers};
use super::view::{Kv, KvExt, View};
use super::{Context, Refused, apply_ops};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use wire::FsError;
use wire::ids::{BatchSeq, Ino, SessionId};
use wire::limits::{BATCH_OPS_MAX, INO_RANGE, SESSION_REPLIES_MAX};
use wire::op::{Batch, BatchReply, OpFailed, OpReply};
use wire::tls::{ClientGrant, Squash};

/// Ranges of inode numbers that a session holds at most. Older ones are used up or forfeited.
pub(super) const INO_RANGES_MAX: usize = 16;

/// Sessions that one certificate has at a time: that many mounts can share a bundle.
pub const SESSIONS_PER_CLIENT_MAX: usize = 1_024;
/// Sessions at a time. Each is asked about every file that is removed.
pub const SESSIONS_MAX: usize = 4_096;

/// Up to this many acknowledged replies are deleted one by one; more are looked up first.
const REPLIES_DELETED_SINGLY: u64 = 64;

/// The parameters of a new session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Host, for people.
    pub host: String,
    /// Mount point or purpose, for people.
    pub purpose: String,
    /// Name in the certificate: only its holder may use the session.
    pub client: String,
    /// Whether it answers from caches, under read leases.
    pub caches: bool,
    /// A session of the same client that it replaces.
    pub resumes: Option<SessionId>,
    /// Distinguishes this opening from others of the same client.
    pub token: Option<u64>,
    /// The bounds of a confined client.
    pub confined: Option<Confined>,
}

/// The bounds of a confined client, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// Path of its subtree when the session was opened, if it has one.
    pub subtree: Option<String>,
    /// The directory that this path led to, or the root of the filesystem: the session stays there, wherever it is moved. It
    /// is looked up when the opening is applied.
    pub root: Ino,
    /// Whose rights its users have.
    pub squash: Squash,
}

impl Opening {
    /// Returns whether the session is one of a client with this grant.
    #[must_use]
    pub fn fits(&self, grant: &ClientGrant) -> bool {
        match &self.confined {
            Some(confined) => confined.subtree == grant.subtree && confined.squash == grant.squash,
            None => grant.subtree.is_none() && grant.squash == Squash::None,
        }
    }

    /// Returns the name under which the client's journals are kept. What is confined to another subtree is another client,
    /// whatever its name: NUL is in no name of a certificate.
    #[must_use]
    pub(super) fn owner_of_journals(&self) -> Cow<'_, str> {
        match &self.confined {
            None => Cow::Borrowed(&self.client),
            Some(Confined { subtree, squash, root: _ }) => {
                let ids = match squash {
                    Squash::None => String::new(),
                    Squash::Root { uid, gid } => format!("root:{uid}:{gid}"),
                    Squash::All { uid, gid } => format!("all:{uid}:{gid}"),
                };
                Cow::Owned(format!("{}\0{ids}\0{}", self.client, subtree.as_deref().unwrap_or_default()))
            }
        }
    }

    /// Returns the directory that is the client's root.
    #[must_use]
    pub fn root(&self) -> Ino {
        self.confined.as_ref().map_or(Ino::ROOT, |confined| confined.root)
    }

    /// Returns whose rights the client's users have.
    #[must_use]
    pub fn squash(&self) -> Squash {
        self.confined.as_ref().map_or(Squash::None, |confined| confined.squash)
    }

    /// Returns the value of the session's key among the living ones.
    #[must_use]
    pub(super) fn living_value(&self) -> Vec<u8> {
        self.confined.as_ref().map_or_else(Vec::new, |confined| confined.root.0.to_be_bytes().to_vec())
    }
}

/// The stored record of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// How it was opened.
    pub opening: Opening,
    /// Replies up to this batch were received, and are forgotten.
    pub acked: BatchSeq,
    /// Leased inode numbers, half-open.
    pub inos: Vec<(Ino, Ino)>,
    /// Its place in the order in which sessions ended; `None` while it lives. An ended session is stored only for its
    /// replies.
    pub ended: Option<u64>,
}

impl Session {
    /// Returns whether it is stored only for its replies.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

/// Returns the session with this number, unless it has ended.
pub fn find(kv: &dyn Kv, id: SessionId) -> Option<Session> {
    find_or_ended(kv, id).filter(|session| !session.has_ended())
}

/// Returns the session with this number, also if it has ended and is stored only for its replies.
pub fn find_or_ended(kv: &dyn Kv, id: SessionId) -> Option<Session> {
    kv.load(&keys::session(id))
}

/// Returns all living sessions.
pub fn all(kv: &dyn Kv) -> Vec<(SessionId, Session)> {
    all_and_ended(kv).into_iter().filter(|(_, session)| !session.has_ended()).collect()
}

/// Returns the numbers of all living sessions, in order.
pub fn living(kv: &dyn Kv) -> BTreeSet<SessionId> {
    let mut ids = BTreeSet::new();
    kv.scan(keys::all_living(), &mut |key, _| {
        ids.insert(SessionId(keys::second(key)));
        true
    });
    ids
}

/// Returns the living sessions of confined clients.
pub fn confined(kv: &dyn Kv) -> BTreeSet<SessionId> {
    let sessions = living_with_roots(kv).into_iter();
    sessions.filter(|(_, root)| root.is_some()).map(|(id, _)| id).collect()
}

/// Returns all living sessions with the roots of the confined ones.
pub(super) fn living_with_roots(kv: &dyn Kv) -> BTreeMap<SessionId, Option<Ino>> {
    let mut sessions = BTreeMap::new();
    kv.scan(keys::all_living(), &mut |key, value| {
        let root = <[u8; 8]>::try_from(value).ok().map(|bytes| Ino(u64::from_be_bytes(bytes)));
        sessions.insert(SessionId(keys::second(key)), root);
        true
    });
    sessions
}

/// Returns whether a batch was applied, and its reply is still stored.
pub fn has_reply(kv: &dyn Kv, id: SessionId, seq: BatchSeq) -> bool {
    kv.get(&keys::reply(id, seq)).is_some()
}

/// Returns all sessions, also those that are stored only for their replies.
pub(super) fn all_and_ended(kv: &dyn Kv) -> Vec<(SessionId, Session)> {
    let load =
        |(key, value): &(Vec<u8>, Vec<u8>)| (SessionId(keys::first(key)), super::view::decode_stored(key, value));
    kv.pairs(keys::sessions(), usize::MAX).iter().map(load).collect()
}

/// Applies a batch unless it was applied before.
///
/// Batches of a session may arrive in any order within a window, so that independent operations of one client need not
/// wait for each other. An operation that depends on an earlier batch is sent once that one is answered.
pub(super) fn apply_batch(
    view: &mut View,
    context: &Context,
    id: SessionId,
    batch: &Batch,
) -> Result<BatchReply, Refused> {
    let mut session = find_or_ended(view, id).ok_or(Refused::NoSession)?;
    let newest = session.acked.0.max(batch.acked.0).saturating_add(SESSION_REPLIES_MAX as u64);
    // A batch does not acknowledge its own reply, nor later ones: otherwise the window would have no end.
    if batch.seq <= session.acked || batch.seq <= batch.acked || batch.seq.0 > newest {
        return Err(Refused::OutOfWindow);
    }
    let key = keys::reply(id, batch.seq);
    // I1: a batch that was applied is answered with its first reply.
    if let Some(reply) = view.load(&key) {
        return Ok(reply);
    }
    // A batch that has no reply now is never applied: the client may send its operations again in another session.
    if session.has_ended() {
        return Err(Refused::NoSession);
    }
    if batch.acked > session.acked {
        if batch.acked.0 - session.acked.0 <= REPLIES_DELETED_SINGLY {
            // Cheaper than to look up which of them exist.
            for seq in session.acked.0 + 1..=batch.acked.0 {
                view.delete(keys::reply(id, BatchSeq(seq)));
            }
        } else {
            for key in view.first_keys(keys::replies_up_to(id, batch.acked), usize::MAX, usize::MAX) {
                view.delete(key);
            }
        }
        session.acked = batch.acked;
        view.store(keys::session(id), &session);
    }
    let reply = if batch.ops.len() > BATCH_OPS_MAX {
        Err(OpFailed { index: 0, error: FsError::Invalid })
    } else {
        apply_ops(
            view,
            &Context { session: id, ..context.clone() },
            batch,
            Some(&session.opening).filter(|opening| opening.confined.is_some()),
        )
    };
    view.store(key, &reply);
    Ok(reply)
}

/// `Op::LeaseInos`.
pub(super) fn lease_inos(view: &mut View, context: &Context, count: u64) -> Result<OpReply, FsError> {
    if count == 0 || count > INO_RANGE {
        return Err(FsError::Invalid);
    }
    let mut session = find(view, context.session).ok_or(FsError::SessionExpired)?;
    // I4: the counter only grows, so no number is leased twice.
    let start = take_numbers(view, NEXT_INO, Ino::FIRST_FREE.0, count);
    session.inos.push((Ino(start), Ino(start + count)));
    if session.inos.len() > INO_RANGES_MAX {
        let oldest = session.inos.remove(0);
        forget_used(view, oldest);
    }
    view.store(keys::session(context.session), &session);
    Ok(OpReply::Inos { start: Ino(start), count })
}

/// Takes a number for a new inode.
///
/// # Errors
/// `Invalid` when the session has not leased it, or has used it before.
pub(super) fn use_ino(view: &mut View, context: &Context, ino: Ino) -> Result<(), FsError> {
    let leased = find(view, context.session)
        .is_some_and(|session| session.inos.iter().any(|(start, end)| (*start..*end).contains(&ino)));
    if !leased || view.get(&keys::inode(ino)).is_some() {
        return Err(FsError::Invalid);
    }
    // I4: it is not enough that no inode has the number now. One may have had it, and its content may even still exist.
    let key = keys::used(ino);
    let before = view.get(&key).map_or(0, |bytes| used_bits(&bytes));
    let bit = 1_u64 << (ino.0 % keys::USED_PER_VALUE);
    if before & bit != 0 {
        return Err(FsError::Invalid);
    }
    view.put(key, (before | bit).to_be_bytes().to_vec());
    Ok(())
}

fn used_bits(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes are stored"))
}

/// Forgets which numbers of a range were used. The range is leased to nobody any more, so none of them can be used. A
/// value that also covers another range stays.
pub(super) fn forget_used(view: &mut View, (start, end): (Ino, Ino)) {
    for (key, _) in view.pairs(keys::used_within(start, end), usize::MAX) {
        view.delete(key);
    }
}

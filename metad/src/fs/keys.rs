//! The key space: one ordered map, a prefix byte per table. Numbers are big endian, so that keys sort like numbers.
//!
//! | prefix | key | value |
//! |---|---|---|
//! | `I` | ino | [`Inode`](super::inode::Inode) |
//! | `L` | ino | symlink target |
//! | `D` | parent, hash of name, name | ino and kind |
//! | `E` | ino, file offset | length, source, version |
//! | `X` | ino, attribute name | value |
//! | `B` | policy, block hash | reference count, stored length, time of the last release |
//! | `Z` | milliseconds, policy, block hash | empty: blocks without references, oldest first |
//! | `h` | ino | [`HiddenContent`](super::hidden::HiddenContent): cut off, and being removed |
//! | `O` | ino | sessions that may still hold a handle on the unlinked inode |
//! | `Q` | session, ino | empty: unlinked inodes by session |
//! | `R` | ino | empty: removed inodes whose content is still being deleted |
//! | `S` | session | [`Session`](super::session::Session) |
//! | `e` | session | [`Remains`](super::remains::Remains): an ended session of which something is still to be removed |
//! | `A` | name in the certificate (hash), session | living sessions: empty, or the root of a confined one, eight bytes |
//! | `W` | name in the certificate (hash), place in the order of ends, session | empty: ended sessions, stored for their replies |
//! | `T` | token, session | empty: sessions by the token of their opening |
//! | `Y` | session, batch number | stored reply (I1) |
//! | `U` | ino / 64 | eight bytes, big endian: which of these 64 leased numbers were used, the lowest first (I4) |
//! | `K` | ino | its locks |
//! | `J` | session, ino | empty: inodes on which the session holds locks |
//! | `P` | journal | [`JournalPosition`](wire::op::JournalPosition): up to where a client's journal was sent |
//! | `G` | name in the certificate (hash), journal | empty: journals by the certificate that reported their position |
//! | `F` | token | [`Token`](super::token::Token): a join token |
//! | `H` | token, hash of a key | name and time of the machine that has used the token with this key |
//! | `M` | key | [`Issued`](super::cert::Issued): an identity that the cluster has issued |
//! | `V` | hash of what is revoked | [`RevokedInfo`](wire::message::cert::RevokedInfo) |
//! | `N` | number | [`AuditRecord`](wire::message::cert::AuditRecord) |
//! | `C` | name | cluster setting or counter |
//! | `d` | ino, parent, name | empty: the entries of an inode that has several |
//!
//! Structured values are coded by `wire::codec` (a version byte, then postcard). Those of the tables `I`, `L`, `D`, `E` and
//! `X` begin with the newest snapshot number at their writing (see [`numbered`](super::numbered)).

use std::ops::Range;
use wire::ids::{BatchSeq, BlockHash, Ino, PolicyId, SessionId};

/// A key, or one end of a range of keys.
pub type Key = Vec<u8>;

pub(super) fn key(prefix: u8, numbers: &[u64], rest: &[u8]) -> Key {
    let mut key = Vec::with_capacity(1 + numbers.len() * 8 + rest.len());
    key.push(prefix);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key.extend_from_slice(rest);
    key
}

/// All keys that begin with `start`.
#[must_use]
pub fn below(start: Key) -> Range<Key> {
    let mut end = start.clone();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return start..end;
        }
    }
    start..vec![u8::MAX; 64]
}

fn number_at(key: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key[at..at + 8]);
    u64::from_be_bytes(bytes)
}

/// An inode.
#[must_use]
pub fn inode(ino: Ino) -> Key {
    key(b'I', &[ino.0], &[])
}

/// All inodes.
#[must_use]
pub fn inodes() -> Range<Key> {
    below(vec![b'I'])
}

/// Target of a symlink.
#[must_use]
pub fn symlink(ino: Ino) -> Key {
    key(b'L', &[ino.0], &[])
}

/// Place of a name in its directory's order, which is also its cookie: above 2 (which stand for the start, `.` and
/// `..`) and below 2^63 (the kernel's offsets are signed).
#[must_use]
pub fn cookie(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    (number_at(hash.as_bytes(), 0) >> 1).clamp(3, i64::MAX as u64 - 1)
}

/// A directory entry.
#[must_use]
pub fn dentry(parent: Ino, name: &[u8]) -> Key {
    dentry_at(parent, cookie(name), name)
}

/// A directory entry at a place that may be another one than its name's.
#[must_use]
pub fn dentry_at(parent: Ino, cookie: u64, name: &[u8]) -> Key {
    key(b'D', &[parent.0, cookie], name)
}

/// Entries of a directory after a cookie.
#[must_use]
pub fn dentries(parent: Ino, after: u64) -> Range<Key> {
    // `after` comes from clients: no cookie is as large as the largest number.
    key(b'D', &[parent.0, after.saturating_add(1)], &[])..below(key(b'D', &[parent.0], &[])).end
}

/// All directory entries.
#[must_use]
pub fn all_dentries() -> Range<Key> {
    below(vec![b'D'])
}

/// Parent, cookie and name of a directory entry's key.
#[must_use]
pub fn dentry_parts(key: &[u8]) -> (Ino, u64, &[u8]) {
    (Ino(number_at(key, 1)), number_at(key, 9), &key[17..])
}

/// An extent.
#[must_use]
pub fn extent(ino: Ino, file_off: u64) -> Key {
    key(b'E', &[ino.0, file_off], &[])
}

/// Extents of a file that start at or after an offset.
#[must_use]
pub fn extents_from(ino: Ino, file_off: u64) -> Range<Key> {
    extent(ino, file_off)..below(key(b'E', &[ino.0], &[])).end
}

/// All extents.
#[must_use]
pub fn all_extents() -> Range<Key> {
    below(vec![b'E'])
}

/// Inode and offset of an extent's key.
#[must_use]
pub fn extent_parts(key: &[u8]) -> (Ino, u64) {
    (Ino(number_at(key, 1)), number_at(key, 9))
}

/// What was cut off a file and is being removed.
#[must_use]
pub fn hidden(ino: Ino) -> Key {
    key(b'h', &[ino.0], &[])
}

/// All files of which something was cut off and is being removed; the inode is the first number.
#[must_use]
pub fn all_hidden() -> Range<Key> {
    below(vec![b'h'])
}

/// An extended attribute.
#[must_use]
pub fn xattr(ino: Ino, name: &[u8]) -> Key {
    key(b'X', &[ino.0], name)
}

/// Extended attributes of an inode; the name follows the first nine bytes of each key.
#[must_use]
pub fn xattrs(ino: Ino) -> Range<Key> {
    below(key(b'X', &[ino.0], &[]))
}

/// The name in the key of an attribute.
#[must_use]
pub fn xattr_name(key: &[u8]) -> &[u8] {
    &key[9..]
}

/// Extended attributes of all inodes.
#[must_use]
pub fn all_xattrs() -> Range<Key> {
    below(vec![b'X'])
}

/// References to a block of the default policy.
#[must_use]
pub fn block(hash: &BlockHash) -> Key {
    block_of(PolicyId::DEFAULT, hash)
}

/// References to a block.
#[must_use]
pub fn block_of(policy: PolicyId, hash: &BlockHash) -> Key {
    key(b'B', &[], &named(policy, hash))
}

/// The name of a block as it stands in keys.
fn named(policy: PolicyId, hash: &BlockHash) -> Vec<u8> {
    [policy.0.to_be_bytes().as_slice(), &hash.0].concat()
}

/// The block of a key, if it is one of the default policy.
#[must_use]
pub fn block_hash(key: &[u8]) -> Option<BlockHash> {
    let hash = key.get(1..)?.strip_prefix(&PolicyId::DEFAULT.0.to_be_bytes())?;
    Some(BlockHash(hash.try_into().ok()?))
}

/// All blocks.
#[must_use]
pub fn blocks() -> Range<Key> {
    below(vec![b'B'])
}

/// A block of the default policy without references since a time.
#[must_use]
pub fn unreferenced(since_ms: u64, hash: &BlockHash) -> Key {
    unreferenced_of(since_ms, PolicyId::DEFAULT, hash)
}

/// A block without references since a time.
#[must_use]
pub fn unreferenced_of(since_ms: u64, policy: PolicyId, hash: &BlockHash) -> Key {
    key(b'Z', &[since_ms], &named(policy, hash))
}

/// Blocks without references since before a time.
#[must_use]
pub fn unreferenced_before(ms: u64) -> Range<Key> {
    vec![b'Z']..key(b'Z', &[ms], &[])
}

/// All blocks without references; the time is the first number.
#[must_use]
pub fn all_unreferenced() -> Range<Key> {
    below(vec![b'Z'])
}

/// The block of an unreferenced key.
#[must_use]
pub fn unreferenced_hash(key: &[u8]) -> BlockHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&key[UNREFERENCED_BYTES - 32..UNREFERENCED_BYTES]);
    BlockHash(hash)
}

/// Bytes of an unreferenced key.
pub const UNREFERENCED_BYTES: usize = 1 + 8 + 2 + 32;

/// The policy of an unreferenced key.
#[must_use]
pub fn unreferenced_policy(key: &[u8]) -> PolicyId {
    PolicyId(u16::from_be_bytes([key[9], key[10]]))
}

/// An unlinked inode that may still be open.
#[must_use]
pub fn orphan(ino: Ino) -> Key {
    key(b'O', &[ino.0], &[])
}

/// An unlinked inode that a session may still hold open.
#[must_use]
pub fn session_orphan(session: SessionId, ino: Ino) -> Key {
    key(b'Q', &[session.0, ino.0], &[])
}

/// Unlinked inodes that a session may still hold open; the inode is the second number.
#[must_use]
pub fn session_orphans(session: SessionId) -> Range<Key> {
    below(key(b'Q', &[session.0], &[]))
}

/// All unlinked inodes that may still be open.
#[must_use]
pub fn all_orphans() -> Range<Key> {
    below(vec![b'O'])
}

/// All unlinked inodes that may still be open, by session; the session is the first number, the inode the second.
#[must_use]
pub fn all_session_orphans() -> Range<Key> {
    below(vec![b'Q'])
}

/// A removed inode whose content is still being deleted.
#[must_use]
pub fn reaping(ino: Ino) -> Key {
    key(b'R', &[ino.0], &[])
}

/// All removed inodes whose content is still being deleted; the inode is the first number.
#[must_use]
pub fn all_reaping() -> Range<Key> {
    below(vec![b'R'])
}

/// A session.
#[must_use]
pub fn session(session: SessionId) -> Key {
    key(b'S', &[session.0], &[])
}

/// All sessions; the session is the first number.
#[must_use]
pub fn sessions() -> Range<Key> {
    below(vec![b'S'])
}

/// What is still to be removed of an ended session.
#[must_use]
pub fn remains(session: SessionId) -> Key {
    key(b'e', &[session.0], &[])
}

/// All ended sessions of which something is still to be removed; the session is the first number.
#[must_use]
pub fn all_remains() -> Range<Key> {
    below(vec![b'e'])
}

/// A session that lives, by the name in its certificate.
#[must_use]
pub fn living(client: &str, session: SessionId) -> Key {
    key(b'A', &[hash_of(client), session.0], &[])
}

/// Sessions that live and were opened by one certificate; the session is the second number.
#[must_use]
pub fn living_of(client: &str) -> Range<Key> {
    below(key(b'A', &[hash_of(client)], &[]))
}

/// All sessions that live; the session is the second number.
#[must_use]
pub fn all_living() -> Range<Key> {
    below(vec![b'A'])
}

pub(super) fn hash_of(client: &str) -> u64 {
    number_at(blake3::hash(client.as_bytes()).as_bytes(), 0)
}

/// A session that has ended, by the name in its certificate.
#[must_use]
pub fn ended(client: &str, place: u64, session: SessionId) -> Key {
    key(b'W', &[hash_of(client), place, session.0], &[])
}

/// Sessions that have ended and were opened by one certificate, in the order in which they ended; the session is the
/// third number.
#[must_use]
pub fn ended_of(client: &str) -> Range<Key> {
    below(key(b'W', &[hash_of(client)], &[]))
}

/// All sessions that have ended.
#[must_use]
pub fn all_ended() -> Range<Key> {
    below(vec![b'W'])
}

/// A session by the token of its opening.
#[must_use]
pub fn token(token: u64, session: SessionId) -> Key {
    key(b'T', &[token, session.0], &[])
}

/// Sessions opened with a token; the session is the second number.
#[must_use]
pub fn tokens(token: u64) -> Range<Key> {
    below(key(b'T', &[token], &[]))
}

/// All sessions that have a token; the session is the second number.
#[must_use]
pub fn all_tokens() -> Range<Key> {
    below(vec![b'T'])
}

/// A stored reply.
#[must_use]
pub fn reply(session: SessionId, seq: BatchSeq) -> Key {
    key(b'Y', &[session.0, seq.0], &[])
}

/// Stored replies of a session, up to and including a batch.
#[must_use]
pub fn replies_up_to(session: SessionId, seq: BatchSeq) -> Range<Key> {
    key(b'Y', &[session.0], &[])..key(b'Y', &[session.0, seq.0.saturating_add(1)], &[])
}

/// All stored replies of a session.
#[must_use]
pub fn replies(session: SessionId) -> Range<Key> {
    below(key(b'Y', &[session.0], &[]))
}

/// Inode numbers in one value of the table of used numbers.
pub const USED_PER_VALUE: u64 = 64;

/// The value that records which of the numbers around this one were used.
#[must_use]
pub fn used(ino: Ino) -> Key {
    key(b'U', &[ino.0 / USED_PER_VALUE], &[])
}

/// The values that record numbers within `start..end` and no others.
#[must_use]
pub fn used_within(start: Ino, end: Ino) -> Range<Key> {
    key(b'U', &[start.0.div_ceil(USED_PER_VALUE)], &[])..key(b'U', &[end.0 / USED_PER_VALUE], &[])
}

/// Locks on an inode.
#[must_use]
pub fn locks(ino: Ino) -> Key {
    key(b'K', &[ino.0], &[])
}

/// An inode on which a session holds locks.
#[must_use]
pub fn session_lock(session: SessionId, ino: Ino) -> Key {
    key(b'J', &[session.0, ino.0], &[])
}

/// Inodes on which a session holds locks; the inode is the second number.
#[must_use]
pub fn session_locks(session: SessionId) -> Range<Key> {
    below(key(b'J', &[session.0], &[]))
}

/// All inodes with locks; the inode is the first number.
#[must_use]
pub fn all_locks() -> Range<Key> {
    below(vec![b'K'])
}

/// All inodes with locks, by session; the session is the first number, the inode the second.
#[must_use]
pub fn all_session_locks() -> Range<Key> {
    below(vec![b'J'])
}

/// Stored replies of all sessions; the session is the first number.
#[must_use]
pub fn all_replies() -> Range<Key> {
    below(vec![b'Y'])
}

/// A setting.
#[must_use]
pub fn setting(name: &str) -> Key {
    key(b'C', &[], name.as_bytes())
}

/// The newest snapshot number.
pub const NEWEST_SNAPSHOT: &[u8] = b"Cnewest snapshot";
/// The version of the rules.
pub const RULES: &[u8] = b"Crules";

/// First number of a key.
#[must_use]
pub fn first(key: &[u8]) -> u64 {
    number_at(key, 1)
}

/// Second number of a key.
#[must_use]
pub fn second(key: &[u8]) -> u64 {
    number_at(key, 9)
}

/// Third number of a key.
#[must_use]
pub fn third(key: &[u8]) -> u64 {
    number_at(key, 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_below_a_key_ends_before_the_next_one() {
        let range = below(key(b'E', &[u64::MAX], &[]));
        assert!(range.contains(&extent(Ino(u64::MAX), u64::MAX)));
        assert!(!range.contains(&key(b'F', &[0], &[])));
    }

    #[test]
    fn blocks_are_ordered_by_policy_then_by_hash() {
        let (low, high, next) = (BlockHash([0; 32]), BlockHash([0xff; 32]), PolicyId(0x0102));
        assert!(block(&low) < block(&high) && block(&high) < block_of(next, &low));
        assert_eq!(block_of(next, &low)[..4], [b'B', 1, 2, 0]);
        assert_eq!((block_hash(&block(&high)), block_hash(&block_of(next, &high))), (Some(high), None));
        let waiting = unreferenced_of(7, next, &high);
        assert_eq!((waiting.len(), unreferenced_policy(&waiting)), (UNREFERENCED_BYTES, next));
        assert_eq!((first(&waiting), unreferenced_hash(&waiting)), (7, high));
    }

    #[test]
    fn a_listing_from_a_cookie_leaves_that_entry_out_and_the_others_in() {
        let name = b"file";
        assert!(dentries(Ino(1), 0).contains(&dentry(Ino(1), name)));
        assert!(!dentries(Ino(1), cookie(name)).contains(&dentry(Ino(1), name)));
        assert!(!dentries(Ino(1), 0).contains(&dentry(Ino(2), name)));
        assert!(!dentries(Ino(1), u64::MAX).contains(&dentry(Ino(1), name)), "no cookie is too large to ask for");
    }
}

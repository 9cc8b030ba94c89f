//! Every bound that both ends of a connection must agree on, with its reason.

/// Bytes of file offset space per chunk, the key under which extents are stored.
pub const CHUNK_BYTES: u64 = 64 << 20;
/// Largest block. Larger ones would make a small random read expensive to verify.
pub const BLOCK_BYTES_MAX: usize = 4 << 20;
/// Largest content kept inline in metadata, per extent: one fsync then costs one round, not two.
pub const INLINE_BYTES_MAX: usize = 4 << 10;
/// Largest file offset, as design and `docs/semantics.md` promise: 16 TiB.
pub const FILE_BYTES_MAX: u64 = 16 << 40;
/// Longest name of a directory entry, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, in bytes (`PATH_MAX` less the terminating NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest extended attribute name (`XATTR_NAME_MAX`).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Largest extended attribute value (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most links to one inode. ext4 stops at 65,000; programs are tested against that.
pub const LINKS_MAX: u32 = 65_000;
/// Most entries that one page of a directory listing carries.
pub const READDIR_PAGE_MAX: u32 = 4096;
/// Most operations in one batch.
pub const BATCH_OPS_MAX: usize = 4096;
/// Largest encoded batch, in bytes: it must fit a payload once it is an entry of the Raft log, and that is what one
/// message brings to a peer.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most extents in one commit; a client splits larger ones.
pub const COMMIT_EXTENTS_MAX: usize = 4096;
/// Versions of a writer's own that one commit names: a client that knows of more drops the oldest.
pub const COMMIT_OWN_MAX: usize = 1024;
/// Names whose targets one deferred operation expects: more than any system call looks at.
pub const EXPECT_MAX: usize = 16;
/// Inodes released by one operation: as many as one `KeepAlive` is answered with.
pub const RELEASED_ORPHANS_MAX: usize = 4096;
/// Files that the stored position of a journal names, because content of them was committed past it.
pub const JOURNALED_FILES_MAX: usize = 256;
/// Directories that a reader of a tree says it comes to next.
pub const WALK_BEHIND_MAX: usize = READDIR_PAGE_MAX as usize;
/// Events that one message acknowledges: more than a session's queue holds.
pub const ACKNOWLEDGED_MAX: usize = 8192;
/// Blocks that one message of or to a block daemon names.
pub const BLOCK_NAMES_MAX: usize = 65_536;
/// Spans of the ring in one request for digests.
pub const BLOCK_SPANS_MAX: usize = 4096;
/// Daemons that a chain of replicas names behind the first: a layout asks for five replicas at most.
pub const CHAIN_BEHIND_MAX: usize = 4;
/// Longest name, and longest zone, of a block daemon, in bytes.
pub const BLOCKD_TEXT_BYTES_MAX: usize = 256;
/// Longest deadline that a server grants a client's or a block daemon's request, in milliseconds: as long as somebody who
/// holds up a change is waited for.
pub const DEADLINE_MAX_MS: u64 = 60_000;
/// The same for metads and operators: installing a snapshot, or checking all of the metadata, takes a while.
pub const DEADLINE_TRUSTED_MAX_MS: u64 = 600_000;
/// Bytes of requests of one client's connection that a server holds at once; of answers, half as many beside them.
pub const CLIENT_BYTES_MAX: usize = 128 << 20;
/// The same for a daemon, which passes on what many clients send.
pub const DAEMON_BYTES_MAX: usize = 1 << 30;
/// Longest host, and longest purpose, by which a session is shown to people, in bytes: a purpose may be a path.
pub const SESSION_TEXT_BYTES_MAX: usize = 4 << 10;
/// Replies that the state machine keeps per session until they are acknowledged (I1).
pub const SESSION_REPLIES_MAX: usize = 1024;
/// Inode numbers handed to a session at once (I4).
pub const INO_RANGE: u64 = 4096;
/// A client that commits a block later than this after its upload uploads it again before, in milliseconds: daemons drop
/// what nobody refers to (I10).
pub const UPLOAD_FRESH_MS: u64 = 120_000;
/// Shortest grace period of blocks without references, in milliseconds: an upload and its commit fit in, and a session's
/// whole life.
pub const GC_GRACE_MIN_MS: u64 = 300_000;
/// A block daemon that is silent for this long is taken out unless an operator says otherwise, in milliseconds: a restart or a
/// short cut of the network is over by then.
pub const DOWN_AFTER_MS: u64 = 600_000;
/// The least that an operator may say: a few heartbeats, and an election between them.
pub const DOWN_AFTER_MIN_MS: u64 = 3_000;
/// Pins at a time: each is looked at with every change of the metadata.
pub const PINS_MAX: usize = 64;
/// Longest name of a pin, in bytes.
pub const PIN_NAME_BYTES_MAX: usize = 128;
/// How long a pin holds at most, in milliseconds: a hundred years, so that times stay far from their end.
pub const PIN_MAX_MS: u64 = 100 * 365 * 86_400_000;
/// How long a session lives without a heartbeat, in milliseconds.
pub const SESSION_TTL_MS: u64 = 30_000;
/// How long read leases hold without being extended, in milliseconds. A change that somebody was told of waits so long for
/// a client that has died.
pub const LEASE_MS: u64 = 5_000;
/// Largest encoded head of a message (not counting payload).
pub const HEAD_BYTES_MAX: usize = 8 << 20;
/// Largest raw payload behind a head: one block and some room.
pub const PAYLOAD_BYTES_MAX: usize = BLOCK_BYTES_MAX + (64 << 10);

const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES_MAX as u64));
const _: () = assert!(FILE_BYTES_MAX / CHUNK_BYTES < u32::MAX as u64);
const _: () = assert!(UPLOAD_FRESH_MS + 2 * SESSION_TTL_MS < GC_GRACE_MIN_MS);
const _: () = assert!(LEASE_MS < SESSION_TTL_MS);
const _: () = assert!(HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX < CLIENT_BYTES_MAX / 2);
const _: () = assert!(INLINE_BYTES_MAX < BLOCK_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX < PAYLOAD_BYTES_MAX && BATCH_BYTES_MAX < HEAD_BYTES_MAX);

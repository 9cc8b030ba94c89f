//! Every bound that both ends of a connection must agree on, with its reason.

/// Bytes of file offset space per chunk, the key under which extents are stored.
pub const CHUNK_BYTES: u64 = 64 << 20;
/// Largest block. Larger ones would make a small random read expensive to verify.
pub const BLOCK_BYTES_MAX: usize = 4 << 20;
/// Largest content stored inline in metadata, per extent: one fsync then costs one round, not two.
pub const INLINE_BYTES_MAX: usize = 4 << 10;
/// Largest file offset, as design and `docs/semantics.md` promise: 16 TiB.
pub const FILE_BYTES_MAX: u64 = 16 << 40;
/// Further groups of a program that a client reports. Of those with more, the first ones count.
pub const CALLER_GROUPS_MAX: usize = 64;
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
/// Largest files of which a listing says where their content is stored, if that is asked for.
pub const LISTED_CONTENT_MAX: u64 = BLOCK_BYTES_MAX as u64;
/// About the most bytes that one listing spends on saying where content is stored; content that is inline counts.
pub const LISTED_CONTENTS_BYTES_MAX: usize = 2 << 20;
/// Most operations in one batch.
pub const BATCH_OPS_MAX: usize = 4096;
/// Largest encoded batch, in bytes. As an entry of the Raft log it must fit a payload, which is what one message brings
/// to a peer.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most extents in one commit; a client splits larger ones.
pub const COMMIT_EXTENTS_MAX: usize = 4096;
/// Most versions of a writer's own that one commit names. A client that knows of more drops the oldest.
pub const COMMIT_OWN_MAX: usize = 1024;
/// Most names whose targets one deferred operation expects: more than any system call looks at.
pub const EXPECT_MAX: usize = 16;
/// Most inodes released by one operation: as many as one `KeepAlive` is answered with.
pub const RELEASED_ORPHANS_MAX: usize = 4096;
/// Most files that the stored position of a journal names, because content of them was committed past it.
pub const JOURNALED_FILES_MAX: usize = 256;
/// Most directories that a reader of a tree says it comes to next.
pub const WALK_BEHIND_MAX: usize = READDIR_PAGE_MAX as usize;
/// Most events that one message acknowledges: more than a session's queue holds.
pub const ACKNOWLEDGED_MAX: usize = 8192;
/// Most blocks that one message of or to a block daemon names.
pub const BLOCK_NAMES_MAX: usize = 65_536;
/// Most spans of the ring in one request for digests.
pub const BLOCK_SPANS_MAX: usize = 4096;
/// Most metads, voters and learners, of a cluster: a redirection names them all. Five vote in a large cluster.
pub const METADS_MAX: usize = 64;
/// A metad that lacks no more entries of the log than this has caught up, and may vote: the others then hardly wait for
/// it.
pub const CAUGHT_UP_ENTRIES: u64 = 1_000;
/// Most daemons that a chain of replicas names behind the first: a layout asks for five replicas at most.
pub const CHAIN_BEHIND_MAX: usize = 4;
/// Longest name, and longest zone, of a block daemon, in bytes.
pub const BLOCKD_TEXT_BYTES_MAX: usize = 256;
/// Largest share of the ring of a block daemon, in GiB of capacity: 1 PiB.
pub const BLOCKD_WEIGHT_MAX: u32 = 1 << 20;
/// Longest time between two heartbeats of a block daemon, in milliseconds.
pub const HEARTBEAT_MAX_MS: u64 = 60_000;
/// Longest deadline that a server grants a client's or a block daemon's request, in milliseconds. It equals the longest
/// wait for a session that holds up a change.
pub const DEADLINE_MAX_MS: u64 = 60_000;
/// Longest deadline of metads and operators, who may install a snapshot or check all of the metadata.
pub const DEADLINE_TRUSTED_MAX_MS: u64 = 600_000;
/// Most bytes of requests that a server holds at once for one client's connection. Answers may take half as many more.
pub const CLIENT_BYTES_MAX: usize = 128 << 20;
/// Most bytes of requests for the connection of a daemon, which passes on what many clients send.
pub const DAEMON_BYTES_MAX: usize = 1 << 30;
/// How many times the budget of a connection all connections of one certificate have together: some mounts that share
/// a bundle are as fast as ever, and thousands of connections hold no more than these.
pub const CERTIFICATE_SHARE: usize = 4;
/// Longest host, and longest purpose, by which a session is shown to people, in bytes: a purpose may be a path.
pub const SESSION_TEXT_BYTES_MAX: usize = 4 << 10;
/// Most replies that the state machine stores per session until they are acknowledged (I1).
pub const SESSION_REPLIES_MAX: usize = 1024;
/// Inode numbers leased to a session at once (I4).
pub const INO_RANGE: u64 = 4096;
/// Longest time between the upload of a block and its commit, in milliseconds. Later, a client uploads the block again
/// before it commits: daemons drop what nobody refers to (I10).
pub const UPLOAD_FRESH_MS: u64 = 120_000;
/// Shortest grace period of blocks without references, in milliseconds: longer than an upload with its commit, and than
/// the life of a silent session.
pub const GC_GRACE_MIN_MS: u64 = 300_000;
/// Default time after which a silent block daemon is taken out, in milliseconds: longer than a restart or a short cut
/// of the network.
pub const DOWN_AFTER_MS: u64 = 600_000;
/// Shortest such time that an operator may set, in milliseconds: a few heartbeats, and an election between them.
pub const DOWN_AFTER_MIN_MS: u64 = 3_000;
/// Most pins at a time: each is looked at with every change of the metadata.
pub const PINS_MAX: usize = 64;
/// Longest name of a pin, in bytes.
pub const PIN_NAME_BYTES_MAX: usize = 128;
/// Longest life of a pin, in milliseconds: a hundred years, so that no time overflows.
pub const PIN_MAX_MS: u64 = 100 * 365 * 86_400_000;
/// Longest name of a cluster that a token carries, in bytes.
pub const CLUSTER_NAME_BYTES_MAX: usize = 256;
/// Most addresses of metads in a token: one that answers leads to the others.
pub const TOKEN_METADS_MAX: usize = 8;
/// Most tokens that a cluster remembers, those that have ended included.
pub const TOKENS_MAX: usize = 64;
/// Most machines that one token is for.
pub const TOKEN_USES_MAX: u32 = 1_000;
/// Longest life of a token, in milliseconds: a week.
pub const TOKEN_VALID_MAX_MS: u64 = 7 * 86_400_000;
/// Longest name in a certificate that a token gives, in bytes.
pub const SUBJECT_NAME_BYTES_MAX: usize = 64;
/// A block ticket is good for this long, in seconds.
pub const TICKET_LIFE_SECS: i64 = 600;
/// Receipts that come with one batch.
pub const RECEIPTS_MAX: usize = 16_384;
/// Longest subtree that a token confines to, in bytes.
pub const SUBTREE_BYTES_MAX: usize = SYMLINK_BYTES_MAX;
/// Longest host name of a newcomer, in bytes.
pub const NEWCOMER_HOST_BYTES_MAX: usize = 256;
/// Largest request of a newcomer, in bytes.
pub const ENROLL_BYTES_MAX: usize = 2 << 10;
/// Largest answer to a newcomer, in bytes: two certificates, which may have a subtree in them, and some addresses.
pub const ENROLL_REPLY_BYTES_MAX: usize = 16 << 10;
/// Most entries of the list of what is revoked: every daemon has the list in memory, and is sent it with each change.
pub const REVOKED_MAX: usize = 4_096;
/// Most issuers that are remembered to have signed for one identity: the last ones.
pub const ISSUERS_MAX: usize = 8;
/// Most CAs that a cluster trusts at a time: the one in use, and the one that takes its place.
pub const AUTHORITIES_MAX: usize = 2;
/// Largest certificate of a CA, in bytes: one has some 500.
pub const AUTHORITY_BYTES_MAX: usize = 2 << 10;
/// Largest encoded list of CAs to trust.
pub const TRUST_BYTES_MAX: usize = 5 << 10;
/// Largest encoded list of CAs to trust with the signatures of operators: two have room in an answer to a newcomer.
pub const TRUST_STEP_BYTES_MAX: usize = 6 << 10;
/// Most steps of a change of the CA that are remembered and told: its beginning and its end.
pub const TRUST_STEPS_MAX: usize = 2;
/// Most of those that are named who have no certificate of a new CA yet.
pub const UNMOVED_MAX: usize = 256;
/// Most identities that a cluster remembers to have issued.
pub const ISSUED_MAX: usize = 16_384;
/// Life of a certificate by token unless an operator sets another one, in milliseconds: 30 days. A machine that is off for
/// a fortnight comes back with half of it left, and a copy of a key that nobody has noticed is good for a month at most.
pub const CERT_LIFE_MS: u64 = 30 * 86_400_000;
/// Shortest such life, in milliseconds: a renewal takes seconds, and is tried several times.
pub const CERT_LIFE_MIN_MS: u64 = 2_000;
/// Longest such life, in milliseconds: ten years.
pub const CERT_LIFE_MAX_MS: u64 = 3_650 * 86_400_000;
/// Longest reason, and longest name of what is revoked, in a request of an operator, in bytes.
pub const CERT_TEXT_BYTES_MAX: usize = 256;
/// Most records of the audit that a cluster keeps, and that each metad keeps of refusals.
pub const AUDIT_MAX: usize = 4_096;
/// How long a session lives without a heartbeat, in milliseconds.
pub const SESSION_TTL_MS: u64 = 30_000;
/// How long read leases hold without being extended, in milliseconds. A change waits this long for a client that has
/// died and does not answer a recall.
pub const LEASE_MS: u64 = 5_000;
/// Largest encoded head of a message (not counting payload).
pub const HEAD_BYTES_MAX: usize = 8 << 20;
/// Bytes of the reason for a refusal, as it is sent, and as the other end keeps it: errors are logged and passed on.
pub const REFUSAL_BYTES_MAX: usize = 1 << 10;
/// Largest raw payload behind a head: one block and some room.
pub const PAYLOAD_BYTES_MAX: usize = BLOCK_BYTES_MAX + (64 << 10);

const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES_MAX as u64));
const _: () = assert!(FILE_BYTES_MAX / CHUNK_BYTES < u32::MAX as u64);
const _: () = assert!(UPLOAD_FRESH_MS + 2 * SESSION_TTL_MS < GC_GRACE_MIN_MS);
const _: () = assert!(LEASE_MS < SESSION_TTL_MS);
const _: () = assert!(HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX < CLIENT_BYTES_MAX / 2);
const _: () = assert!((CERTIFICATE_SHARE * DAEMON_BYTES_MAX) >> 10 <= u32::MAX as usize);
const _: () = assert!(INLINE_BYTES_MAX < BLOCK_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX < PAYLOAD_BYTES_MAX && BATCH_BYTES_MAX < HEAD_BYTES_MAX);

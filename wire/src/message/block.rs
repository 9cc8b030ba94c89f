//! Requests to blockd from clients, from metad, and from its neighbours on the ring.

use crate::attr::Timestamp;
use crate::codec::bounded;
use crate::ids::{BlockHash, BlockdId, LayoutEpoch, PartyId, Point};
use crate::layout::Layout;
use crate::layout::ring::Span;
use crate::limits::{BLOCK_NAMES_MAX, BLOCK_SPANS_MAX, CHAIN_BEHIND_MAX, REFUSAL_BYTES_MAX};
use crate::ticket::{Receipt, Ticket};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// A request to blockd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum BlockRequest {
    /// Store the payload and pass it on along `chain`. The answer comes as soon as `needed` daemons have it on stable
    /// storage (I9); the others follow after that. Also renews the stamp of a block that is there already (I10).
    /// Answers `Stored`, or `OldLayout`.
    Put {
        /// Name of the block.
        hash: BlockHash,
        /// Layout that the sender knows (I11).
        epoch: LayoutEpoch,
        /// Members of the layout that store it after this one, in order.
        #[serde(deserialize_with = "bounded::<_, _, CHAIN_BEHIND_MAX>")]
        chain: Vec<BlockdId>,
        /// Copies that the sender waits for.
        needed: u8,
        /// For whom a daemon of the chain passes the block on: the put takes the turns of this party. Believed from
        /// block daemons alone; `None` for the sender itself.
        origin: Option<PartyId>,
    },
    /// Bytes `offset..offset + len` of a block, verified (I9). Answers `Content`, with the bytes in the payload.
    Get {
        /// Name of the block.
        hash: BlockHash,
        /// Layout that the sender knows (I11).
        epoch: LayoutEpoch,
        /// First byte.
        offset: u32,
        /// Number of bytes; `u32::MAX` for all that follow.
        len: u32,
    },
    /// Drop blocks that metad counts no reference to, unless they were renewed within the grace period (I10). Role
    /// metad. Answers `Dropped`.
    Drop {
        /// The blocks.
        #[serde(deserialize_with = "bounded::<_, _, BLOCK_NAMES_MAX>")]
        hashes: Vec<BlockHash>,
        /// Layout that metad knows. With an outdated one, nothing is dropped.
        epoch: LayoutEpoch,
        /// Blocks renewed less than this long ago stay.
        grace_ms: u64,
    },
    /// Names and lengths of good blocks, in order. Roles blockd, metad, admin. Answers `Blocks`.
    List {
        /// First hash.
        from: BlockHash,
        /// Last hash.
        last: BlockHash,
        /// At most this many.
        limit: u32,
    },
    /// Ask which of these blocks are here to stay, and intact. Roles blockd, metad, admin. Answers `Present`, or
    /// `Behind`.
    Probe {
        /// Layout for which the question holds (I11).
        epoch: LayoutEpoch,
        /// The blocks.
        #[serde(deserialize_with = "bounded::<_, _, BLOCK_NAMES_MAX>")]
        hashes: Vec<BlockHash>,
    },
    /// Digests of the blocks in spans of the ring. Role blockd. Answers `Digests`, or `Behind`.
    Digests {
        /// Layout for which the question holds (I11).
        epoch: LayoutEpoch,
        /// The spans.
        #[serde(deserialize_with = "bounded::<_, _, BLOCK_SPANS_MAX>")]
        spans: Vec<Span>,
    },
    /// A Chord question. Role blockd. Answers `Chord`.
    Chord(ChordRequest),
    /// Find the member responsible for a point, by iterative lookup from here. Any role, but no client that is confined. Answers
    /// `Found`.
    Lookup {
        /// The point.
        point: Point,
    },
    /// State of the daemon. Any role, but no client that is confined. Answers `Status`.
    Status,
    /// Read these blocks, and compare each with its name. Bad copies are quarantined and replaced, as with any read.
    /// Role admin. Answers `Verified`.
    Verify {
        /// The blocks.
        #[serde(deserialize_with = "bounded::<_, _, VERIFIED_MAX>")]
        hashes: Vec<BlockHash>,
    },
    /// Fetch those of these blocks that belong here and are missing, from any other daemon. Role admin. Answers
    /// `Fetching`.
    Fetch {
        /// The blocks.
        #[serde(deserialize_with = "bounded::<_, _, FETCHED_MAX>")]
        hashes: Vec<BlockHash>,
        /// A daemon that has them, though they may not belong there.
        from: BlockdId,
    },
    /// There is another list of what is revoked, which the leader gives with its answer to the next heartbeat. Role metad.
    /// Answers `Done`.
    RevokedChanged {
        /// Its version.
        version: u64,
    },
    /// As `Get`, for what a ticket is for: nothing else of the block is sent. Role client. Answers `Content`, with the bytes
    /// in the payload, or `TicketRefused`.
    GetByTicket {
        /// Name of the block.
        hash: BlockHash,
        /// Layout that the sender knows (I11).
        epoch: LayoutEpoch,
        /// First byte.
        offset: u32,
        /// Number of bytes; `u32::MAX` for all that follow.
        len: u32,
        /// The ticket.
        ticket: Ticket,
    },
}

/// Most blocks that one request has verified.
pub const VERIFIED_MAX: usize = 64;
/// Most blocks that one request has fetched.
pub const FETCHED_MAX: usize = 512;

/// The kind of a request, with which its head begins. In the order of [`BlockRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[allow(missing_docs, reason = "each is the variant of BlockRequest of its name")]
pub enum BlockRequestKind {
    Put,
    Get,
    Drop,
    List,
    Probe,
    Digests,
    Chord,
    Lookup,
    Status,
    Verify,
    Fetch,
    RevokedChanged,
    GetByTicket,
}

impl BlockRequest {
    /// The kind of this request.
    #[must_use]
    pub fn kind(&self) -> BlockRequestKind {
        match self {
            Self::Put { .. } => BlockRequestKind::Put,
            Self::Get { .. } => BlockRequestKind::Get,
            Self::Drop { .. } => BlockRequestKind::Drop,
            Self::List { .. } => BlockRequestKind::List,
            Self::Probe { .. } => BlockRequestKind::Probe,
            Self::Digests { .. } => BlockRequestKind::Digests,
            Self::Chord(_) => BlockRequestKind::Chord,
            Self::Lookup { .. } => BlockRequestKind::Lookup,
            Self::Status => BlockRequestKind::Status,
            Self::Verify { .. } => BlockRequestKind::Verify,
            Self::Fetch { .. } => BlockRequestKind::Fetch,
            Self::RevokedChanged { .. } => BlockRequestKind::RevokedChanged,
            Self::GetByTicket { .. } => BlockRequestKind::GetByTicket,
        }
    }
}

/// Summary of the intact blocks in a part of the ring. Two daemons with the same digests hold the same blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Digest {
    /// Number of blocks.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sum of the second halves of their names, modulo 2^128. Names are hashes: nobody can choose blocks that add up.
    pub sum: u128,
}

impl Digest {
    /// Adds a block.
    pub fn add(&mut self, hash: &BlockHash, len: u32) {
        self.count += 1;
        self.bytes += u64::from(len);
        self.sum = self.sum.wrapping_add(second_half(hash));
    }

    /// Removes a block.
    pub fn remove(&mut self, hash: &BlockHash, len: u32) {
        self.count -= 1;
        self.bytes -= u64::from(len);
        self.sum = self.sum.wrapping_sub(second_half(hash));
    }

    /// Adds the blocks of another part.
    pub fn join(&mut self, other: &Digest) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

fn second_half(hash: &BlockHash) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.0[16..]);
    u128::from_be_bytes(half)
}

/// A member of the ring, as Chord's messages carry it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its place on the ring.
    pub point: Point,
    /// The daemon.
    pub id: BlockdId,
    /// Where it serves.
    pub addr: SocketAddr,
}

/// Messages of the corrected Chord (Zave 2017, "Reasoning about Identifier Spaces: How to Make Chord Correct").
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ChordRequest {
    /// The member's predecessor and successor list (used by join, stabilize and rectify).
    GetState,
    /// `candidate` believes itself to be the receiver's predecessor.
    Notify {
        /// Who says so.
        candidate: Member,
    },
    /// One step of an iterative lookup: the answer, or the closest preceding member that the receiver knows.
    Step {
        /// The point looked for.
        point: Point,
    },
    /// Are you alive?
    Ping,
}

/// Answers to [`ChordRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ChordReply {
    /// Answer to `GetState`.
    State {
        /// The member itself.
        me: Member,
        /// Its predecessor, if it knows one.
        predecessor: Option<Member>,
        /// Its successors, nearest first.
        successors: Vec<Member>,
    },
    /// Answer to `Notify`.
    Noted,
    /// Answer to `Step`: this member is responsible.
    Responsible(Member),
    /// Answer to `Step`: ask this one next.
    Next(Member),
    /// Answer to `Ping`.
    Alive,
}

/// A reply of blockd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum BlockReply {
    /// These daemons hold the block on stable storage; those named as failed do not, and of the rest nothing is known
    /// yet.
    Stored {
        /// Daemons that synced it.
        synced: Vec<BlockdId>,
        /// Daemons that did not, and why.
        #[serde(deserialize_with = "failures")]
        failed: Vec<(BlockdId, String)>,
        /// Daemons that have no room for it: another one may stand in for each.
        full: Vec<BlockdId>,
        /// The layout, when the sender's was old (I11). A client asks metad for it, and believes no other.
        layout: Option<Layout>,
        /// For a client that is confined: that it has sent the whole block.
        receipt: Option<Receipt>,
    },
    /// The bytes are in the payload.
    Content {
        /// Length of the whole block.
        block_len: u32,
    },
    /// These were dropped.
    Dropped(Vec<BlockHash>),
    /// One digest per span asked for.
    Digests(Vec<Digest>),
    /// This daemon knows an older layout than the one it is asked about: ask again.
    Behind,
    /// Nothing is acknowledged: blocks have other owners since the sender's layout (I11). A client asks metad for the newer one.
    OldLayout(Layout),
    /// Blocks in order of their names.
    Blocks(Vec<(BlockHash, u32)>),
    /// One answer per hash asked for.
    Present(Vec<bool>),
    /// Answer of Chord.
    Chord(ChordReply),
    /// The member responsible for a point, and the hops it took to find it.
    Found {
        /// The member.
        member: Member,
        /// How many others were asked.
        hops: u32,
    },
    /// State of the daemon.
    Status(BlockdStatus),
    /// The block is not here, or its copy is bad: ask another replica.
    NotHere {
        /// The copy that is here does not match its hash and was quarantined.
        corrupt: bool,
        /// The layout, when the sender's was old (I11). A client asks metad for it, and believes no other.
        layout: Option<Layout>,
    },
    /// The request failed here for a reason of this daemon's own (disk error, shutting down).
    Failed(#[serde(deserialize_with = "words")] String),
    /// One answer per block: whether its copy is good; `None` where there is none.
    Verified(Vec<Option<bool>>),
    /// This many will be fetched. The others are here, belong elsewhere, or find the queue full.
    Fetching(u32),
    /// The request was carried out.
    Done,
    /// The ticket has ended, or is for somebody else or for something else: ask metad for another one.
    TicketRefused,
}

impl BlockReply {
    /// The reply's kind, for logs and errors: they must not repeat what a peer says at any length.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Stored { .. } => "Stored",
            Self::Content { .. } => "Content",
            Self::Dropped(_) => "Dropped",
            Self::Digests(_) => "Digests",
            Self::Behind => "Behind",
            Self::OldLayout(_) => "OldLayout",
            Self::Blocks(_) => "Blocks",
            Self::Present(_) => "Present",
            Self::Chord(_) => "Chord",
            Self::Found { .. } => "Found",
            Self::Status(_) => "Status",
            Self::NotHere { .. } => "NotHere",
            Self::Failed(_) => "Failed",
            Self::Verified(_) => "Verified",
            Self::Fetching(_) => "Fetching",
            Self::Done => "Done",
            Self::TicketRefused => "TicketRefused",
        }
    }
}

/// Failed daemons that are kept of one reply: twice as many as a chain has.
const FAILURES_MAX: usize = 2 * (CHAIN_BEHIND_MAX + 1);

/// Reads a reason for people, and keeps as much of it as of a refusal: errors are logged and passed on.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Words)
}

/// Takes the start of a text.
struct Words;

impl Visitor<'_> for Words {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        let mut end = text.len().min(REFUSAL_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Ok(text[..end].to_owned())
    }
}

/// Reads which daemons failed, and keeps the first of them.
fn failures<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(BlockdId, String)>, D::Error> {
    deserializer.deserialize_seq(Failures)
}

/// Takes the start of a list of daemons that failed.
struct Failures;

impl<'de> Visitor<'de> for Failures {
    type Value = Vec<(BlockdId, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of daemons and reasons")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        struct Failure(BlockdId, #[serde(deserialize_with = "words")] String);
        let mut failures = Vec::new();
        while let Some(Failure(id, reason)) = elements.next_element()? {
            if failures.len() < FAILURES_MAX {
                failures.push((id, reason));
            }
        }
        Ok(failures)
    }
}

/// State of a block daemon, for operators.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockdStatus {
    /// The daemon.
    pub id: BlockdId,
    /// Bytes its disk can hold.
    pub capacity_bytes: u64,
    /// Bytes its disk has left.
    pub free_bytes: u64,
    /// Blocks it holds.
    pub block_count: u64,
    /// Layout that it knows.
    pub epoch: LayoutEpoch,
    /// Its predecessor on the ring.
    pub predecessor: Option<Member>,
    /// Its successors, nearest first.
    pub successors: Vec<Member>,
}

/// What a block daemon found by comparing with others, the progress of its repair, and the state of its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RepairReport {
    /// It holds all blocks that it owes under the owners of this epoch and that any daemon has.
    pub done: LayoutEpoch,
    /// Blocks that it owes and lacks, and that others have: they are under-replicated, or about to move here.
    pub lacking_blocks: u64,
    /// Their bytes.
    pub lacking_bytes: u64,
    /// Damaged copies here that are not replaced yet.
    pub damaged_blocks: u64,
    /// Blocks that are here and belong elsewhere.
    pub misplaced_blocks: u64,
    /// Their bytes.
    pub misplaced_bytes: u64,
    /// Bytes per second that it copied lately.
    pub bytes_per_s: u64,
    /// No block that is referred to, or was stored a moment ago, is here without belonging here.
    pub empty: bool,
    /// Blocks that this daemon owes, that something refers to, and of which no daemon that can be reached has a
    /// copy. Of the owners of a block that can be reached, the first counts it.
    pub missing_blocks: u64,
    /// When its disk was last read whole, every copy compared with its name; `None` if it never was.
    pub scrubbed: Option<Timestamp>,
    /// Microseconds within which 99 of 100 writes with their syncs ended lately; `None` when they were too few.
    pub sync_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn reasons_of_a_peer_are_cut_while_they_are_decoded() {
        let decoded = |reply: &BlockReply| codec::decode::<BlockReply>(&codec::encode(reply)).unwrap();
        // The last character that begins within the bound ends beyond it.
        let long = format!("x{}", "\u{e9}".repeat(REFUSAL_BYTES_MAX));
        let BlockReply::Failed(reason) = decoded(&BlockReply::Failed(long.clone())) else { panic!("another reply") };
        assert_eq!(reason, long[..REFUSAL_BYTES_MAX - 1]);
        let failed = vec![(BlockdId([1; 16]), long); 1000];
        let (synced, full) = (vec![BlockdId([2; 16])], vec![BlockdId([3; 16])]);
        let stored =
            BlockReply::Stored { synced: synced.clone(), failed, full: full.clone(), layout: None, receipt: None };
        match decoded(&stored) {
            BlockReply::Stored { synced: one, failed, full: other, layout: None, receipt: None } => {
                assert_eq!((one, other, failed.len()), (synced, full, FAILURES_MAX));
                assert!(failed.iter().all(|(_, reason)| reason.len() == REFUSAL_BYTES_MAX - 1));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_head_of_each_request_begins_with_its_kind() {
        let (hash, epoch) = (BlockHash([0; 32]), LayoutEpoch(1));
        for request in [
            BlockRequest::Put { hash, epoch, chain: Vec::new(), needed: 1, origin: None },
            BlockRequest::Get { hash, epoch, offset: 0, len: 1 },
            BlockRequest::Drop { hashes: Vec::new(), epoch, grace_ms: 1 },
            BlockRequest::List { from: hash, last: hash, limit: 1 },
            BlockRequest::Probe { epoch, hashes: Vec::new() },
            BlockRequest::Digests { epoch, spans: Vec::new() },
            BlockRequest::Chord(ChordRequest::Ping),
            BlockRequest::Lookup { point: Point(1) },
            BlockRequest::Status,
            BlockRequest::Verify { hashes: Vec::new() },
            BlockRequest::Fetch { hashes: Vec::new(), from: BlockdId([0; 16]) },
        ] {
            assert_eq!(codec::decode_start::<BlockRequestKind>(&codec::encode(&request)).unwrap(), request.kind());
        }
    }
}

//! What blockd is asked, by clients, by metad, and by its neighbours on the ring.

use crate::codec::bounded;
use crate::ids::{BlockHash, BlockdId, LayoutEpoch, Point};
use crate::layout::Layout;
use crate::limits::{BLOCK_NAMES_MAX, CHAIN_BEHIND_MAX};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A request to blockd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum BlockRequest {
    /// Store the payload, pass it on to the next of `chain`, answer when it is on stable storage (I9). Also renews the
    /// stamp of a block that is there already (I10). Answers `Stored`.
    Put {
        /// Name of the block.
        hash: BlockHash,
        /// Layout that the sender knows (I11).
        epoch: LayoutEpoch,
        /// Members of the layout that store it after this one, in order.
        #[serde(deserialize_with = "bounded::<_, _, CHAIN_BEHIND_MAX>")]
        chain: Vec<BlockdId>,
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
        /// Blocks renewed less than this long ago stay.
        grace_ms: u64,
    },
    /// Names and lengths of blocks in an arc of the ring, in order. Roles blockd, metad, admin. Answers `Blocks`.
    List {
        /// First hash.
        from: BlockHash,
        /// At most this many.
        limit: u32,
    },
    /// Which of these blocks are here, in good order? Roles blockd, metad, admin. Answers `Present`.
    Probe {
        /// The blocks.
        #[serde(deserialize_with = "bounded::<_, _, BLOCK_NAMES_MAX>")]
        hashes: Vec<BlockHash>,
    },
    /// A Chord question. Role blockd. Answers `Chord`.
    Chord(ChordRequest),
    /// Find the member responsible for a point, by iterative lookup from here. Any role. Answers `Found`.
    Lookup {
        /// The point.
        point: Point,
    },
    /// State of the daemon. Any role. Answers `Status`.
    Status,
}

/// Which request a message is: what its head begins with. In the order of [`BlockRequest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[allow(missing_docs, reason = "each is the variant of BlockRequest of its name")]
pub enum BlockRequestKind {
    Put,
    Get,
    Drop,
    List,
    Probe,
    Chord,
    Lookup,
    Status,
}

impl BlockRequest {
    /// Which request it is.
    #[must_use]
    pub fn kind(&self) -> BlockRequestKind {
        match self {
            Self::Put { .. } => BlockRequestKind::Put,
            Self::Get { .. } => BlockRequestKind::Get,
            Self::Drop { .. } => BlockRequestKind::Drop,
            Self::List { .. } => BlockRequestKind::List,
            Self::Probe { .. } => BlockRequestKind::Probe,
            Self::Chord(_) => BlockRequestKind::Chord,
            Self::Lookup { .. } => BlockRequestKind::Lookup,
            Self::Status => BlockRequestKind::Status,
        }
    }
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
    /// These daemons hold the block on stable storage; the others of the chain failed.
    Stored {
        /// Daemons that synced it.
        synced: Vec<BlockdId>,
        /// Daemons that did not, and why.
        failed: Vec<(BlockdId, String)>,
        /// The layout, when the sender's was old (I11).
        layout: Option<Layout>,
    },
    /// The bytes are in the payload.
    Content {
        /// Length of the whole block.
        block_len: u32,
    },
    /// These were dropped.
    Dropped(Vec<BlockHash>),
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
        /// The layout, when the sender's was old (I11).
        layout: Option<Layout>,
    },
    /// No space is left.
    NoSpace,
    /// The request failed here for a reason of this daemon's own (disk error, shutting down).
    Failed(String),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn the_head_of_each_request_begins_with_its_kind() {
        let (hash, epoch) = (BlockHash([0; 32]), LayoutEpoch(1));
        for request in [
            BlockRequest::Put { hash, epoch, chain: Vec::new() },
            BlockRequest::Get { hash, epoch, offset: 0, len: 1 },
            BlockRequest::Drop { hashes: Vec::new(), grace_ms: 1 },
            BlockRequest::List { from: hash, limit: 1 },
            BlockRequest::Probe { hashes: Vec::new() },
            BlockRequest::Chord(ChordRequest::Ping),
            BlockRequest::Lookup { point: Point(1) },
            BlockRequest::Status,
        ] {
            assert_eq!(codec::decode_start::<BlockRequestKind>(&codec::encode(&request)).unwrap(), request.kind());
        }
    }
}

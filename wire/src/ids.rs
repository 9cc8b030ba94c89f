//! Names of things: newtypes for every number that travels, so that one can never stand for another.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        number!($(#[$doc])* $name: u64);
    };
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $type);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Inode number. Never used twice in the life of a cluster (I4); 1 is the root directory.
    Ino
);
number!(
    /// A client session, given out by metad and never used twice.
    SessionId
);
number!(
    /// Number of a batch within its session; starts at 1 and grows by one (I1).
    BatchSeq
);
number!(
    /// Content version of an inode: grows by one with each change of its content (I6).
    Version
);
number!(
    /// Epoch of the block layout: grows by one with each change of members, points, weights or zones (I11).
    LayoutEpoch
);
number!(
    /// A metadata node in the Raft cluster.
    MetadId
);
number!(
    /// A client's journal: chosen at random when it is made.
    JournalId
);
number!(
    /// A join token: chosen at random when it is made.
    TokenId
);
number!(
    /// Number of a snapshot of the tree; 0 before the first one. Stored values carry the newest number at their writing.
    SnapshotNumber
);
number!(
    /// Version of the rules by which entries of the Raft log are applied; it is part of the state that they make.
    RulesVersion
);
number!(
    /// A policy of redundancy, which never changes. A block is named by its policy and its hash.
    PolicyId: u16
);
number!(
    /// Generation of the keys that encrypt content; 0 for content that is not encrypted.
    KeyGeneration: u32
);

impl PolicyId {
    /// Plain replicas, as many as the layout says.
    pub const DEFAULT: PolicyId = PolicyId(0);
}

impl Ino {
    /// The root directory of the filesystem, as FUSE numbers it.
    pub const ROOT: Ino = Ino(1);
    /// The first number that is given out to sessions.
    pub const FIRST_FREE: Ino = Ino(1024);
}

/// Index of a chunk: `file_offset / CHUNK_BYTES`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkIndex(pub u32);

impl ChunkIndex {
    /// The chunk that holds byte `offset` of a file.
    #[must_use]
    pub fn of(offset: u64) -> Self {
        Self(u32::try_from(offset / crate::limits::CHUNK_BYTES).unwrap_or(u32::MAX))
    }

    /// File offset of the chunk's first byte.
    #[must_use]
    pub fn start(self) -> u64 {
        u64::from(self.0) * crate::limits::CHUNK_BYTES
    }
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let wrong = || crate::Error::Malformed(format!(
                    "{text:?} is not {} hexadecimal digits", $len * 2
                ));
                if text.len() != $len * 2 || !text.is_ascii() {
                    return Err(wrong());
                }
                let mut bytes = [0_u8; $len];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).map_err(|_| wrong())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

byte_id!(
    /// BLAKE3-256 hash of a block's content, which is the block's name.
    BlockHash,
    32
);
byte_id!(
    /// Identity of a block daemon: 128 random bits, stored in its data directory.
    BlockdId,
    16
);
byte_id!(
    /// The holder of a certificate as one that takes turns with others: a hash of its role and name.
    PartyId,
    16
);
byte_id!(
    /// Identity of a cluster: the first 16 bytes of the BLAKE3 hash of its CA certificate (DER).
    ClusterId,
    16
);

impl BlockHash {
    /// Names `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// Where the block lies on the ring: its hash's first 128 bits, big endian.
    #[must_use]
    pub fn point(&self) -> Point {
        let mut first = [0_u8; 16];
        first.copy_from_slice(&self.0[..16]);
        Point(u128::from_be_bytes(first))
    }

    /// The name that follows in order; none after the last possible one.
    #[must_use]
    pub fn next(&self) -> Option<Self> {
        let mut next = *self;
        for byte in next.0.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return Some(next);
            }
        }
        None
    }
}

/// A place on the Chord ring: identifiers modulo 2^128 (Stoica et al. 2001, §4.2, with m = 128).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Point(pub u128);

impl Point {
    /// Clockwise distance from `self` to `other`.
    #[must_use]
    pub fn distance_to(self, other: Point) -> u128 {
        other.0.wrapping_sub(self.0)
    }

    /// Whether `self` lies in the half-open arc `(from, to]`. The arc from a point to itself is the whole ring.
    #[must_use]
    pub fn in_arc(self, from: Point, to: Point) -> bool {
        if from == to {
            return true;
        }
        let offset = from.distance_to(self);
        offset != 0 && offset <= from.distance_to(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_walked_in_order_to_the_very_last() {
        let mut hash = BlockHash([0; 32]);
        hash.0[31] = 0xff;
        assert_eq!(hash.next().unwrap().0[30..], [1, 0]);
        assert_eq!(BlockHash([0xff; 32]).next(), None);
    }

    #[test]
    fn an_arc_is_open_at_its_start_and_closed_at_its_end() {
        let (a, b) = (Point(10), Point(20));
        assert!(!a.in_arc(a, b));
        assert!(b.in_arc(a, b));
        assert!(Point(15).in_arc(a, b));
        assert!(Point(5).in_arc(b, a), "the arc wraps around zero");
        assert!(!Point(15).in_arc(b, a));
    }

    #[test]
    fn ids_read_back_what_they_print() {
        let hash = BlockHash::of(b"surf");
        assert_eq!(hash.to_string().parse::<BlockHash>().unwrap(), hash);
        assert!("xyz".parse::<BlockHash>().is_err());
    }
}

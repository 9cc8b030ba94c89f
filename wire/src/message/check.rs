//! Requests of `surf fsck` to metad: a check of all metadata at one position of the log, and repairs.
//!
//! A check belongs to the metad that began it. That metad holds the state of that moment until the check is ended, or
//! receives no request for two minutes. Answers come in pages. One check is under way at a time.

use crate::attr::Timestamp;
use crate::codec::bounded;
use crate::ids::{BlockHash, Ino, SessionId};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Most blocks that one request names.
pub const CHECKED_HASHES_MAX: usize = 1024;
/// Most repairs that one request asks for.
pub const REPAIRS_MAX: usize = 64;
/// Longest key of an index that a repair names, in bytes.
pub const INDEX_KEY_BYTES_MAX: usize = 64;

/// A check, by a number that was chosen at random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct CheckId(pub u64);

/// A step of a check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CheckRequest {
    /// Take the state as it is now, and begin to read it. Answers `Begun`.
    Begin,
    /// Findings since the last such request. Waits for up to a second. Answers `Findings`.
    Findings(CheckId),
    /// Blocks that the state of the check knows, in the order of their names. Answers `Blocks`.
    Blocks {
        /// The check.
        check: CheckId,
        /// Behind this one.
        after: Option<BlockHash>,
    },
    /// Which files have bytes in these blocks. Looks through all extents. Answers `Uses`.
    Uses {
        /// The check.
        check: CheckId,
        /// The blocks.
        #[serde(deserialize_with = "bounded::<_, _, CHECKED_HASHES_MAX>")]
        hashes: Vec<BlockHash>,
        /// Behind the extent at this offset of this file.
        after: Option<(Ino, u64)>,
    },
    /// Which of these blocks are referred to now, not when the check began. Answers `Referenced`.
    Referenced(#[serde(deserialize_with = "bounded::<_, _, CHECKED_HASHES_MAX>")] Vec<BlockHash>),
    /// Mend what the check has found. Answers `Repaired`.
    Repair {
        /// The check.
        check: CheckId,
        /// Grows with each such request of the check: a request that comes twice is carried out once.
        seq: u64,
        /// What to mend.
        #[serde(deserialize_with = "bounded::<_, _, REPAIRS_MAX>")]
        repairs: Vec<Repair>,
    },
    /// The check is not needed any more. Answers `Ended`.
    End(CheckId),
    /// The check is still needed, though nothing is asked of it now. Answers `Extended`.
    Extend(CheckId),
    /// How far is this metad with the digest of its state at the mark of this check? The first such request has the
    /// metad wait for the mark: one that was not asked before does no work. Any metad answers, and answers `Digest`.
    Digest(CheckId),
    /// Put the mark of this check into the log: each metad that waits for it reads its state as it is there. Answers
    /// `Marked`.
    Mark(CheckId),
}

/// Answer to a [`CheckRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CheckReply {
    /// The check has begun.
    Begun {
        /// Its number.
        check: CheckId,
        /// Position of the log at which the state is read.
        applied: u64,
        /// Pairs of keys and values in the state.
        pairs: u64,
    },
    /// A page of findings.
    Findings {
        /// What was found.
        findings: Vec<Finding>,
        /// Pairs that were read so far; some are read several times.
        looked: u64,
        /// Nothing more will come.
        ended: bool,
    },
    /// A page of blocks.
    Blocks {
        /// The blocks.
        blocks: Vec<CheckedBlock>,
        /// They are the last ones.
        last: bool,
    },
    /// Where blocks are used.
    Uses {
        /// A page of it, in the order of inodes and offsets.
        uses: Vec<BlockUse>,
        /// Where the next page begins; `None` when there is none.
        after: Option<(Ino, u64)>,
    },
    /// One answer per block asked for.
    Referenced(Vec<bool>),
    /// One answer per repair: whether it was made. A repair is not made when the state has changed since the check.
    Repaired(Vec<bool>),
    /// The check has ended.
    Ended,
    /// The check goes on.
    Extended,
    /// How far the digest is.
    Digest(DigestState),
    /// The mark is in the log.
    Marked,
}

/// How far a metad is with the digest of its state at a mark in the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DigestState {
    /// It has not applied the mark yet.
    Awaited,
    /// It reads its state.
    Reading {
        /// Pairs of keys and values read so far.
        pairs: u64,
    },
    /// It has read all.
    Done(StateDigest),
    /// There will be no digest, for this reason.
    GivenUp(String),
}

/// A metad's state at one position of the log: the same at every metad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct StateDigest {
    /// The position.
    pub applied: u64,
    /// Pairs of keys and values.
    pub pairs: u64,
    /// BLAKE3 of all of them in the order of their keys.
    pub hash: [u8; 32],
}

/// A block that metad knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckedBlock {
    /// Its name.
    pub hash: BlockHash,
    /// Its length in bytes.
    pub len: u32,
    /// Whether an extent refers to it.
    pub referenced: bool,
    /// Nothing has referred to it for longer than the grace period: it is about to be deleted.
    pub overdue: bool,
}

/// Bytes of a file that lie in a block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockUse {
    /// The block.
    pub hash: BlockHash,
    /// The file.
    pub ino: Ino,
    /// Where it was found, for people.
    pub path: String,
    /// Which of its bytes.
    pub range: Range<u64>,
}

/// A contradiction in the metadata.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Which kind it is.
    pub kind: FindingKind,
    /// Where it is, for people: a path, or another description.
    pub place: String,
    /// What is wrong, for people.
    pub what: String,
    /// The repair, if there is a safe one.
    pub repair: Option<Repair>,
}

/// Kinds of findings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum FindingKind {
    /// A key or a value that no program of this version has stored.
    Undecodable,
    /// A directory entry leads to an inode that is not there.
    DanglingEntry,
    /// A directory entry stands in a directory that is not there.
    EntryWithoutDirectory,
    /// A directory entry and its inode are of different kinds.
    WrongKind,
    /// A directory entry is not stored where its name is looked for.
    MisplacedEntry,
    /// A directory has another parent or name than its entry says, or several entries.
    WrongParent,
    /// A directory lies below itself.
    Circle,
    /// An inode has no entry, and no session is left that may hold it open.
    Nameless,
    /// An inode counts its links wrongly.
    LinkCount,
    /// A directory counts its entries or its subdirectories wrongly.
    DirectoryCount,
    /// A file counts its bytes wrongly.
    AllocatedCount,
    /// Extents overlap, are empty, or cross the border of a chunk.
    BadExtent,
    /// Content, attributes, or marks of an inode that is not there.
    Leftover,
    /// Attributes or the target of a symlink contradict the inode.
    WrongAttributes,
    /// A block's references are counted wrongly.
    ReferenceCount,
    /// An unlinked inode waits for sessions that have ended, or has a name.
    StaleOrphan,
    /// Locks of sessions that have ended, or on inodes that are not there.
    StaleLock,
    /// An index contradicts what it is an index of.
    WrongIndex,
    /// The number of inodes, or the next number to be given out, is wrong.
    WrongCounter,
    /// The state of sessions contradicts itself.
    WrongSession,
}

impl FindingKind {
    /// Its name in output for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::DanglingEntry => "dangling-entry",
            Self::EntryWithoutDirectory => "entry-without-directory",
            Self::WrongKind => "wrong-kind",
            Self::MisplacedEntry => "misplaced-entry",
            Self::WrongParent => "wrong-parent",
            Self::Circle => "circle",
            Self::Nameless => "nameless",
            Self::LinkCount => "link-count",
            Self::DirectoryCount => "directory-count",
            Self::AllocatedCount => "allocated-count",
            Self::BadExtent => "bad-extent",
            Self::Leftover => "leftover",
            Self::WrongAttributes => "wrong-attributes",
            Self::ReferenceCount => "reference-count",
            Self::StaleOrphan => "stale-orphan",
            Self::StaleLock => "stale-lock",
            Self::WrongIndex => "wrong-index",
            Self::WrongCounter => "wrong-counter",
            Self::WrongSession => "wrong-session",
        }
    }
}

/// The links of an inode when it was checked. Every change of the links changes this, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Links that it counts.
    pub nlink: u32,
    /// When it was changed last.
    pub ctime: Timestamp,
}

/// Repair of a finding. It is checked again when it is applied, and does nothing where the state has changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Repair {
    /// Set the link count of an inode that is not a directory.
    Links {
        /// The inode.
        ino: Ino,
        /// As it was found.
        seen: Seen,
        /// Entries that lead to it.
        found: u32,
    },
    /// Count a directory's entries and subdirectories anew.
    Directory(Ino),
    /// Remove an entry that leads nowhere, stands in no directory, or is a surplus entry of a directory.
    Entry {
        /// The directory.
        parent: Ino,
        /// Its place in the directory's order.
        cookie: u64,
        /// The name.
        name: Vec<u8>,
        /// Where it leads.
        ino: Ino,
    },
    /// Put an entry where its name is looked for, or correct the kind that it says.
    Rewrite {
        /// The directory.
        parent: Ino,
        /// Its place in the directory's order.
        cookie: u64,
        /// The name.
        name: Vec<u8>,
        /// Where it leads.
        ino: Ino,
    },
    /// Record in a directory which entry leads to it.
    Parent {
        /// The directory.
        ino: Ino,
        /// Where its entry stands.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// Give an inode a name in `/lost+found`. A directory that lies below itself loses the entry that makes it so.
    Attach {
        /// The inode.
        ino: Ino,
        /// As it was found.
        seen: Seen,
    },
    /// Count a file's bytes anew.
    Allocated(Ino),
    /// Correct the mark that an inode has attributes, or remove the attributes of a missing inode.
    Attributes(Ino),
    /// Give the content of a missing inode a name in `/lost+found`, or take the mark for removal from an existing inode.
    Content(Ino),
    /// Set the references that a block counts.
    References {
        /// The block.
        hash: BlockHash,
        /// References counted when it was checked; `None` when it was not known.
        seen: Option<u64>,
        /// Extents that refer to it.
        found: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// Release an unlinked inode from sessions that have ended; forget the mark of one that has a name or is missing.
    Orphan {
        /// The inode.
        ino: Ino,
        /// As it was found, if it is there.
        seen: Option<Seen>,
        /// An entry leads to it.
        named: bool,
    },
    /// Release locks of sessions that have ended, and those on an inode that is not there.
    Locks(Ino),
    /// Add or remove a key of an index, as the indexed data requires.
    Index(Vec<u8>),
    /// Set the number of inodes.
    InodeCount {
        /// As it was counted.
        seen: u64,
        /// As many as there are.
        found: u64,
    },
    /// Give out no inode number below this one any more.
    NextIno(Ino),
    /// Remove the replies of a session that no longer exists.
    Replies(SessionId),
}

//! Metadata operations, the batches they travel in, and their replies.

use crate::FsError;
use crate::attr::{AttrChange, FileKind, InodeAttr, Timestamp};
use crate::caller::Caller;
use crate::codec::bounded;
use crate::extent::{Extent, ExtentWrite};
use crate::ids::{BatchSeq, Ino, JournalId, Version};
use crate::limits::{
    BATCH_OPS_MAX, COMMIT_EXTENTS_MAX, COMMIT_OWN_MAX, EXPECT_MAX, JOURNALED_FILES_MAX, NAME_BYTES_MAX,
    RELEASED_ORPHANS_MAX, WALK_BEHIND_MAX,
};
use serde::{Deserialize, Deserializer, Serialize};

/// Name of a directory entry: 1 to 255 bytes, any but `/` and NUL.
pub type Name = Vec<u8>;

/// What a new inode is to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NewInode {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link to this target.
    Symlink(Vec<u8>),
    /// Fifo, socket or device node.
    Special {
        /// Which of them.
        kind: FileKind,
        /// Device number, as `makedev(3)` packs it.
        rdev: u32,
    },
}

impl NewInode {
    /// What it is.
    ///
    /// # Errors
    /// `Invalid` when the kind of a special inode is not a special one.
    pub fn kind(&self) -> Result<FileKind, FsError> {
        match self {
            Self::Regular => Ok(FileKind::Regular),
            Self::Directory => Ok(FileKind::Directory),
            Self::Symlink(_) => Ok(FileKind::Symlink),
            Self::Special { kind, .. } => match kind {
                FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => Ok(*kind),
                FileKind::Regular | FileKind::Directory | FileKind::Symlink => Err(FsError::Invalid),
            },
        }
    }

    /// Its device number; 0 for what has none.
    #[must_use]
    pub fn rdev(&self) -> u32 {
        if let Self::Special { rdev, .. } = self { *rdev } else { 0 }
    }
}

/// Checks that an entry may have this name.
///
/// # Errors
/// `NameTooLong`; `Invalid` for an empty name, `.`, `..`, and one with `/` or NUL.
pub fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    let special = name.is_empty() || name == b"." || name == b"..";
    if special || name.contains(&b'/') || name.contains(&0) { Err(FsError::Invalid) } else { Ok(()) }
}

/// What `rename` does when the new name exists: the flags of `renameat2(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it.
    #[default]
    Replace,
    /// Fail with `Exists`.
    NoReplace,
    /// Swap the two; both must exist.
    Exchange,
}

/// What becomes of a range of a file: the modes of `fallocate(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RangeAction {
    /// Allocate what is a hole; existing content stays. Extends the file unless `keep_size`.
    Allocate {
        /// Do not extend the file.
        keep_size: bool,
    },
    /// Make it a hole; the size stays.
    Punch,
    /// Make it allocated zeros. Extends the file unless `keep_size`.
    Zero {
        /// Do not extend the file.
        keep_size: bool,
    },
    /// Remove the range, what follows moves down. Offsets must be multiples of 4,096.
    Collapse,
    /// Insert a hole, what follows moves up. Offsets must be multiples of 4,096.
    Insert,
}

/// What a commit does when another session changed the same bytes since the base version (I6).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ConflictPolicy {
    /// The committed content stays under the name, and this content becomes a sibling of it.
    Copy {
        /// Inode number for the copy, from the session's range.
        ino: Ino,
        /// What is appended to the file's name, up to 244 bytes: `.conflict-HOST-TIME`.
        suffix: Name,
    },
    /// Refuse the commit.
    Fail,
    /// This one wins.
    LastWriter,
}

/// How extended attributes are set: the flags of `setxattr(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// Fail with `Exists` when there is one.
    Create,
    /// Fail with `NoAttribute` when there is none.
    Replace,
}

/// Kind of an advisory lock; the two kinds do not see each other, as on Linux.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub enum LockFamily {
    /// `fcntl(2)` byte ranges.
    Posix,
    /// `flock(2)`, always the whole file.
    Flock,
}

/// An advisory lock, held or asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// Which kind.
    pub family: LockFamily,
    /// Owner within the session: the kernel's lock owner.
    pub owner: u64,
    /// Process that asked, shown by `F_GETLK`.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// One past the last byte; `u64::MAX` means up to the end of the file, however it grows.
    pub end: u64,
    /// Whether it excludes readers too.
    pub exclusive: bool,
}

/// Defines [`Op`], and a type of its own for the operations that a deferred one may hold. So no decoded type is
/// recursive, and a peer cannot make the stack overflow by nesting.
macro_rules! operations {
    (
        $(#[$meta:meta])*
        pub enum Op {
            plain {
                $( $(#[$plain_meta:meta])* $plain:ident { $( $(#[$field_meta:meta])* $field:ident: $type:ty, )* }, )*
            }
            outer {
                $( $(#[$outer_meta:meta])* $outer:ident {
                    $( $(#[$outer_field_meta:meta])* $outer_field:ident: $outer_type:ty, )*
                }, )*
            }
        }
    ) => {
        $(#[$meta])*
        pub enum Op {
            $( $(#[$plain_meta])* $plain { $( $(#[$field_meta])* $field: $type, )* }, )*
            $( $(#[$outer_meta])* $outer { $( $(#[$outer_field_meta])* $outer_field: $outer_type, )* }, )*
        }

        /// The first variants of [`Op`], in their order: encoded, they are the same.
        #[derive(Deserialize)]
        enum PlainOp {
            $( $plain { $( $(#[$field_meta])* $field: $type, )* }, )*
        }

        impl From<PlainOp> for Op {
            fn from(op: PlainOp) -> Self {
                match op {
                    $( PlainOp::$plain { $( $field, )* } => Self::$plain { $( $field, )* }, )*
                }
            }
        }
    };
}

fn plain_op<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<Op>, D::Error> {
    PlainOp::deserialize(deserializer).map(|op| Box::new(op.into()))
}

operations! {
    /// One change of metadata. Preconditions are checked when it is applied (I3).
    #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
    pub enum Op {
        plain {
            /// Make an inode and its entry. Answers `Attr`.
            Create {
                /// Directory.
                parent: Ino,
                /// Name within it.
                name: Name,
                /// Number for the inode, from a range leased by the session (I4).
                ino: Ino,
                /// What to make.
                node: NewInode,
                /// Permission bits before the umask.
                mode: u32,
                /// The caller's umask; ignored where the parent has a default ACL (`acl(5)`).
                umask: u32,
                /// Owner.
                uid: u32,
                /// Group, unless the parent is setgid.
                gid: u32,
            },
            /// Make another entry for an inode. Answers `Attr`.
            Link {
                /// The inode; not a directory.
                ino: Ino,
                /// Directory of the new entry.
                parent: Ino,
                /// Name of the new entry.
                name: Name,
            },
            /// Remove an entry that is not a directory. Answers `Removed`.
            Unlink {
                /// Directory.
                parent: Ino,
                /// Name within it.
                name: Name,
                /// An inode on which the session holds no handle, as it vouches. If the removed entry was the last one
                /// to it, its content goes at once; in all other cases the inode stays as an orphan until the session
                /// releases it.
                released: Option<Ino>,
            },
            /// Remove an empty directory. Answers `Removed`.
            Rmdir {
                /// Directory that holds the entry.
                parent: Ino,
                /// Name within it.
                name: Name,
                /// The directory that the caller has found there, and takes for removed afterwards: if the name leads
                /// elsewhere by now, this fails with `Stale`.
                seen: Option<Ino>,
            },
            /// Move an entry. Answers `Renamed`, or `Done` if both names lead to one inode: then both stay, as rename(2)
            /// says.
            Rename {
                /// Old directory.
                parent: Ino,
                /// Old name.
                name: Name,
                /// New directory.
                new_parent: Ino,
                /// New name.
                new_name: Name,
                /// What to do when the new name exists.
                mode: RenameMode,
                /// As in `Unlink`, for the inode that is replaced.
                released: Option<Ino>,
                /// As in `Rmdir`, for a directory at the new name.
                seen: Option<Ino>,
            },
            /// Change attributes. Answers `Attr`.
            SetAttr {
                /// The inode.
                ino: Ino,
                /// What to change.
                change: AttrChange,
            },
            /// Make written content part of the file (I6). Answers `Committed`.
            Commit {
                /// The file.
                ino: Ino,
                /// Content version on which the writes are based.
                base: Version,
                /// Later versions that the writer's own commits have made, between those of others: the writes are
                /// based on these, too.
                #[serde(deserialize_with = "bounded::<_, _, COMMIT_OWN_MAX>")]
                own: Vec<Version>,
                /// The writes, disjoint and ordered by offset.
                #[serde(deserialize_with = "bounded::<_, _, COMMIT_EXTENTS_MAX>")]
                writes: Vec<ExtentWrite>,
                /// The writes were appended, starting at this offset: they move to the end the file has when applied.
                append_from: Option<u64>,
                /// Modification time, when the application set none: the time of the last write by the client's clock,
                /// or the leader's when absent.
                mtime: Option<Timestamp>,
                /// Clear setuid and setgid, as writing by an unprivileged process does.
                clear_privileges: bool,
                /// What to do when others wrote the same bytes since `base`.
                policy: ConflictPolicy,
            },
            /// Allocate, punch, zero, collapse or insert. Answers `Attr`.
            Range {
                /// The file.
                ino: Ino,
                /// First byte.
                off: u64,
                /// Number of bytes, at least 1.
                len: u64,
                /// What to do.
                action: RangeAction,
            },
            /// Share `len` bytes of one file with another (or itself, not overlapping), without copying. Answers `Attr`
            /// of the target. The range is cut at the source's end.
            CloneRange {
                /// Source file.
                src: Ino,
                /// First byte in the source.
                src_off: u64,
                /// Target file.
                dst: Ino,
                /// First byte in the target.
                dst_off: u64,
                /// Number of bytes.
                len: u64,
            },
            /// Set an extended attribute. Answers `Done`.
            SetXattr {
                /// The inode.
                ino: Ino,
                /// Name with its namespace.
                name: Name,
                /// Value, at most 64 KiB.
                value: Vec<u8>,
                /// Whether it must or must not exist.
                mode: XattrMode,
                /// Clear setgid with it: `posix_acl_access` set by a caller outside of the group.
                clear_sgid: bool,
            },
            /// Remove an extended attribute. Answers `Done`.
            RemoveXattr {
                /// The inode.
                ino: Ino,
                /// Name with its namespace.
                name: Name,
            },
            /// The session holds no handle any more on these unlinked inodes. Answers `Done`.
            ReleaseOrphans {
                /// The inodes; unknown ones are passed over.
                #[serde(deserialize_with = "bounded::<_, _, RELEASED_ORPHANS_MAX>")]
                inos: Vec<Ino>,
            },
            /// Lease a range of inode numbers (I4). Answers `Inos`.
            LeaseInos {
                /// How many, at most `INO_RANGE`.
                count: u64,
            },
            /// Take or change a lock, not waiting. Answers `Done`, or fails with `WouldBlock`.
            SetLock {
                /// The inode.
                ino: Ino,
                /// The lock; replaces what its owner held in that range.
                lock: Lock,
            },
            /// Give up what an owner holds in a range. Answers `Done`.
            Unlock {
                /// The inode.
                ino: Ino,
                /// Which kind.
                family: LockFamily,
                /// Owner within the session.
                owner: u64,
                /// First byte.
                start: u64,
                /// One past the last byte.
                end: u64,
            },
            /// The inode was read: its access time moves by the rule of `relatime` (mount(8)), and nothing else does. Answers
            /// `Done`, also for an inode that is gone.
            Accessed {
                /// The inode.
                ino: Ino,
                /// When.
                at: Timestamp,
            },
        }
        outer {
            /// A change that a session made under a delegation and sends only now. Answers as the operation within.
            /// `Stale` when a name has changed: the session was away for longer than its leases, and others went on
            /// without it.
            Deferred {
                /// When, by the session's estimate of the leader's clock.
                at: Timestamp,
                /// Names as they were.
                #[serde(deserialize_with = "bounded::<_, _, EXPECT_MAX>")]
                expect: Vec<Expect>,
                /// The operation; not one of this kind, nor of those below.
                #[serde(deserialize_with = "plain_op")]
                op: Box<Op>,
            },
            /// Records how much of a client's journal is applied with this batch, of which it is the last operation, or
            /// was before. A later replay of the journal skips that part. Answers `Done`.
            Journaled {
                /// The journal.
                journal: JournalId,
                /// The position; `None` when the journal is gone, and nobody will ask.
                position: Option<JournalPosition>,
            },
            /// Records that content was committed that may be in the journal, too, wherever the position is. Answers
            /// `Done`.
            JournaledContent {
                /// The journal.
                journal: JournalId,
                /// The file.
                file: JournaledFile,
            },
        }
    }
}

/// How much of a journal has been applied.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct JournalPosition {
    /// Its entries up to this number are applied, and acknowledged to the client.
    pub acknowledged: u64,
    /// The next entry is content of which so many pieces, the last ones, are left to be sent; 0 when all are.
    pub left: u64,
    /// Files whose content was committed: more of it may be in the journal.
    #[serde(deserialize_with = "bounded::<_, _, JOURNALED_FILES_MAX>")]
    pub files: Vec<JournaledFile>,
}

/// A file of which more may be in a journal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JournaledFile {
    /// The file.
    pub ino: Ino,
    /// Version that the rest is based on. In an operation that follows a commit of its batch: what that was based on.
    pub base: Version,
    /// An earlier operation of the same batch committed to it: the rest is based on the version that this has made, if
    /// nobody else had changed the file since.
    pub committed: bool,
}

impl Op {
    /// The operation itself, whether it was deferred or not.
    #[must_use]
    pub fn plain(&self) -> &Self {
        match self {
            Self::Deferred { op, .. } => op,
            op => op,
        }
    }

    /// The inodes named by the operation whose attributes it changes.
    pub fn attrs_changed(&self) -> impl Iterator<Item = Ino> + use<> {
        let (one, two) = match self.plain() {
            // The new inode, too: its session receives the attributes, and caches them.
            Self::Create { parent, ino, .. } | Self::Link { parent, ino, .. } => (Some(*parent), Some(*ino)),
            Self::Unlink { parent, released, .. } => (Some(*parent), *released),
            Self::Rmdir { parent, .. } => (Some(*parent), None),
            Self::Rename { parent, new_parent, .. } => (Some(*parent), Some(*new_parent)),
            Self::SetAttr { ino, .. }
            | Self::Commit { ino, .. }
            | Self::Range { ino, .. }
            | Self::SetXattr { ino, .. }
            | Self::RemoveXattr { ino, .. }
            | Self::Accessed { ino, .. } => (Some(*ino), None),
            Self::CloneRange { dst, .. } => (Some(*dst), None),
            Self::ReleaseOrphans { .. }
            | Self::LeaseInos { .. }
            | Self::SetLock { .. }
            | Self::Unlock { .. }
            | Self::Deferred { .. }
            | Self::Journaled { .. }
            | Self::JournaledContent { .. } => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// Names that it makes, removes or points elsewhere.
    pub fn names_changed(&self) -> impl Iterator<Item = (Ino, &Name)> {
        let (one, two) = match self.plain() {
            Self::Create { parent, name, .. }
            | Self::Link { parent, name, .. }
            | Self::Unlink { parent, name, .. }
            | Self::Rmdir { parent, name, .. } => (Some((*parent, name)), None),
            Self::Rename { parent, name, new_parent, new_name, .. } => {
                (Some((*parent, name)), Some((*new_parent, new_name)))
            }
            _ => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// The inode that it makes.
    #[must_use]
    pub fn made(&self) -> Option<Ino> {
        if let Self::Create { ino, .. } = self.plain() { Some(*ino) } else { None }
    }
}

/// Where a name leads, as its session knew it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Expect {
    /// Directory.
    pub parent: Ino,
    /// Name within it.
    pub name: Name,
    /// The inode that it leads to; `None` when it is absent.
    pub ino: Option<Ino>,
    /// The newest version that the session knows, if the operation removes the content: newer content of others must
    /// stay.
    pub version: Option<Version>,
}

/// Operations that apply together or not at all (I3), numbered within their session (I1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Number of the batch: the session's previous one plus one.
    pub seq: BatchSeq,
    /// The session has received the replies of all batches up to this one; they may be forgotten.
    pub acked: BatchSeq,
    /// Whom it is for, if the client is confined and knows it.
    pub caller: Option<Caller>,
    /// The operations, applied in order.
    #[serde(deserialize_with = "bounded::<_, _, BATCH_OPS_MAX>")]
    pub ops: Vec<Op>,
}

/// A conflict copy that a commit made (I6).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConflictCopy {
    /// Inode of the copy.
    pub ino: Ino,
    /// Directory it stands in.
    pub parent: Ino,
    /// Its name there.
    pub name: Name,
}

/// Reply to an operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OpReply {
    /// The operation was applied.
    Done,
    /// Attributes of the inode after the operation.
    Attr(InodeAttr),
    /// A removed entry.
    Removed {
        /// Attributes of the inode after the removal.
        attr: InodeAttr,
        /// The inode has no entry left but stays for the session until it sends `ReleaseOrphans`.
        orphaned: bool,
    },
    /// A moved entry.
    Renamed {
        /// The moved inode.
        moved: InodeAttr,
        /// The inode that was replaced or exchanged, after the operation.
        replaced: Option<InodeAttr>,
        /// The replaced inode stays for the session until it sends `ReleaseOrphans`.
        orphaned: bool,
    },
    /// A commit.
    Committed {
        /// Attributes of the file (not of a conflict copy) after it.
        attr: InodeAttr,
        /// Where appended writes landed, when the commit asked for it.
        appended_at: Option<u64>,
        /// The copy that was made because others wrote the same bytes.
        conflict: Option<ConflictCopy>,
        /// Number of extents in the last written chunk, if they were counted, otherwise 0. A large number asks for
        /// compaction.
        chunk_extents: u32,
    },
    /// Numbers `start..start + count` belong to the session.
    Inos {
        /// First number.
        start: Ino,
        /// How many.
        count: u64,
    },
}

/// Why a batch was not applied: the first operation that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpFailed {
    /// Index of the operation in the batch.
    pub index: u32,
    /// Why.
    pub error: FsError,
}

/// Outcome of a batch: one reply per operation, or the one failure.
pub type BatchReply = Result<Vec<OpReply>, OpFailed>;

/// A read of the metadata, answered by the leader from applied state (I2).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Read {
    /// The inode behind a name. `.` and `..` are resolved too. Answers `Attr`.
    Lookup {
        /// Directory.
        parent: Ino,
        /// Name within it.
        name: Name,
    },
    /// Attributes. Answers `Attr`.
    GetAttr {
        /// The inode.
        ino: Ino,
    },
    /// Attributes and the first extents, to begin reading at once. Answers `Opened`.
    Open {
        /// The inode.
        ino: Ino,
    },
    /// Target of a symlink. Answers `Bytes`.
    ReadLink {
        /// The symlink.
        ino: Ino,
    },
    /// A page of a directory, without `.` and `..`. Answers `Page`.
    ReadDir {
        /// The directory.
        ino: Ino,
        /// Entries behind this cookie; 0 for the start.
        after: u64,
        /// At most this many, `READDIR_PAGE_MAX` at the most.
        limit: u32,
        /// What comes with each.
        with: With,
    },
    /// Extents that overlap `off..off + len`. Answers `Extents`.
    Extents {
        /// The file.
        ino: Ino,
        /// First byte.
        off: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Value of an extended attribute. Answers `Bytes`.
    GetXattr {
        /// The inode.
        ino: Ino,
        /// Name with its namespace.
        name: Name,
    },
    /// Names of the extended attributes. Answers `Names`.
    ListXattr {
        /// The inode.
        ino: Ino,
    },
    /// The first lock that conflicts with this one. Answers `Lock`.
    GetLock {
        /// The inode.
        ino: Ino,
        /// The lock asked about.
        lock: Lock,
    },
    /// Capacity and use of the filesystem. Answers `StatFs`.
    StatFs,
    /// How much of a client's journal has been applied. Answers `Journaled`.
    Journaled {
        /// The journal.
        journal: JournalId,
    },
    /// A directory from its start, with attributes at least, and those below and behind it in the order of a walk. Each
    /// of them is complete, and there are as many as the limit allows. Answers `Tree`, or `Page`, of the directory alone,
    /// where other sessions are at work ahead.
    ReadTree {
        /// The directory.
        ino: Ino,
        /// What comes with each entry.
        with: With,
        /// Its siblings that the walk comes to next; those that are gone are passed over.
        #[serde(deserialize_with = "bounded::<_, _, WALK_BEHIND_MAX>")]
        behind: Vec<Ino>,
        /// At most this many entries, `READDIR_PAGE_MAX` at the most.
        limit: u32,
    },
}

impl Read {
    /// The inode that the read is about, if there is one.
    #[must_use]
    pub fn ino(&self) -> Option<Ino> {
        match self {
            Self::Lookup { parent: ino, .. }
            | Self::GetAttr { ino }
            | Self::Open { ino }
            | Self::ReadLink { ino }
            | Self::ReadDir { ino, .. }
            | Self::ReadTree { ino, .. }
            | Self::Extents { ino, .. }
            | Self::GetXattr { ino, .. }
            | Self::ListXattr { ino }
            | Self::GetLock { ino, .. } => Some(*ino),
            Self::StatFs | Self::Journaled { .. } => None,
        }
    }

    /// Returns whether clients cache the answer, if they hold leases on what it is about.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        matches!(
            self,
            Self::Lookup { .. }
                | Self::GetAttr { .. }
                | Self::Open { .. }
                | Self::ReadDir { .. }
                | Self::ReadTree { .. }
        )
    }
}

/// What comes with each entry of a listing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum With {
    /// Only its name, inode and kind.
    Names,
    /// Attributes, too.
    Attributes,
    /// Attributes, and where the content of a small file is stored: what `Open` answers.
    Contents,
}

/// An entry of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirEntry {
    /// Name.
    pub name: Name,
    /// Inode.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// A listing goes on from here behind this entry. Stable while entries come and go; above 2, below 2^63.
    pub cookie: u64,
    /// Attributes, when asked for.
    pub attr: Option<InodeAttr>,
    /// All extents of a small file, when asked for. `None` means that `Open` has to be asked: there are many files, or this
    /// one is not small, or in many pieces.
    pub content: Option<ExtentPage>,
}

/// A directory from its start.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListedDir {
    /// The directory.
    pub ino: Ino,
    /// Its parent; the root's is the root.
    pub parent: Ino,
    /// Its entries, with attributes.
    pub entries: Vec<DirEntry>,
    /// No entries follow.
    pub end: bool,
}

/// Extents of a part of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExtentPage {
    /// Content version they belong to.
    pub version: Version,
    /// Length of the file at that version.
    pub size: u64,
    /// Ordered by offset, disjoint; what they leave out is a hole.
    pub extents: Vec<Extent>,
    /// The list was cut here because it was long: ask again from this offset.
    pub more_from: Option<u64>,
}

impl ExtentPage {
    /// Returns the number of its bytes that are inline.
    #[must_use]
    pub fn inline_bytes(&self) -> usize {
        self.extents.iter().map(Extent::inline_bytes).sum()
    }

    /// Returns about how many bytes of memory it takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.extents.len() * size_of::<Extent>() + self.inline_bytes()
    }
}

/// Capacity and use, in bytes and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StatFs {
    /// Bytes that fit, replicas taken into account.
    pub total_bytes: u64,
    /// Bytes still free, replicas taken into account.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// Reply to a read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReadReply {
    /// Attributes.
    Attr(InodeAttr),
    /// Attributes and first extents.
    Opened {
        /// Attributes.
        attr: InodeAttr,
        /// Extents from offset 0.
        page: ExtentPage,
    },
    /// Target of a symlink, or value of an attribute.
    Bytes(Vec<u8>),
    /// A page of a directory.
    Page {
        /// The directory's parent; the root's is the root.
        parent: Ino,
        /// The entries.
        entries: Vec<DirEntry>,
        /// No entries follow.
        end: bool,
    },
    /// Extents.
    Extents(ExtentPage),
    /// Names of attributes.
    Names(Vec<Name>),
    /// A lock in the way, if any.
    Lock(Option<Lock>),
    /// Capacity and use.
    StatFs(StatFs),
    /// How much of the journal has been applied; `None` when nothing has.
    Journaled(Option<JournalPosition>),
    /// The directory that was asked for, and whole ones below and behind it.
    Tree(Vec<ListedDir>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn deferred(op: Op) -> Op {
        Op::Deferred { at: Timestamp::default(), expect: Vec::new(), op: Box::new(op) }
    }

    #[test]
    fn a_deferred_operation_reads_back_as_it_was() {
        for op in [
            Op::Rmdir { parent: Ino(1), name: b"d".to_vec(), seen: None },
            Op::Accessed { ino: Ino(1), at: Timestamp::default() },
            Op::Create {
                parent: Ino(1),
                name: b"f".to_vec(),
                ino: Ino(9),
                node: NewInode::Regular,
                mode: 1,
                umask: 2,
                uid: 3,
                gid: 4,
            },
        ] {
            let op = deferred(op);
            assert_eq!(codec::decode::<Op>(&codec::encode(&op)).unwrap(), op);
        }
    }

    #[test]
    fn a_deferred_operation_within_another_is_refused_however_deep() {
        let nested = deferred(deferred(Op::LeaseInos { count: 1 }));
        assert!(codec::decode::<Op>(&codec::encode(&nested)).is_err());
        // What a hostile peer sends: a hundred thousand levels, made of the bytes of one.
        let (outer, inner) = (codec::encode(&nested), codec::encode(&deferred(Op::LeaseInos { count: 1 })));
        let level = &outer[1..1 + outer.len() - inner.len()];
        let mut bytes = vec![outer[0]];
        (0..100_000).for_each(|_| bytes.extend_from_slice(level));
        bytes.extend_from_slice(&inner[1..]);
        assert!(codec::decode::<Op>(&bytes).is_err());
    }
}

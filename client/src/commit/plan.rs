//! What one commit carries. Pure: no lock, no clock, no network.
//!
//! A commit names the version that its content is based on, and later versions that are this client's own: metad judges
//! conflicts by these (I6). Appended content carries the offset that it was written for, and lands at the end. After a
//! conflict, later content goes into the copy that has the earlier content.

use crate::file::dirty::Packed;
use crate::file::sealed::{Stored, writes_of};
use crate::file::state::Basis;
use std::collections::BTreeMap;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::ExtentWrite;
use wire::ids::{Ino, Version};
use wire::limits::COMMIT_EXTENTS_MAX;
use wire::op::{ConflictPolicy, JournaledFile, NewInode, Op};

/// One commit.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Disjoint, by file offset.
    writes: Vec<ExtentWrite>,
    basis: Basis,
    /// The number of sealed pieces of the file that it covers, from the first on.
    pieces: usize,
}

/// A commit that sealed pieces are added to, one after the other.
#[derive(Default)]
pub(crate) struct Draft {
    writes: Vec<ExtentWrite>,
    /// Ranges in `writes`: start to end.
    taken: BTreeMap<u64, u64>,
    pieces: usize,
}

impl Draft {
    /// Returns whether a piece may be added. The writes of one commit are disjoint, so what was overwritten between two
    /// seals goes into a commit of its own.
    pub fn takes(&self, packed: &Packed) -> bool {
        // A part may cross a chunk's border, and is split into two writes then.
        let fits = self.writes.len() + packed.pieces.len() * 2 <= COMMIT_EXTENTS_MAX;
        let overlaps = |(at, _, len): &(u64, usize, usize)| {
            self.taken.range(..at + *len as u64).next_back().is_some_and(|(_, end)| end > at)
        };
        self.pieces == 0 || (fits && !packed.pieces.iter().any(overlaps))
    }

    /// Adds the next sealed piece and where it is stored; `None` for inline content.
    pub fn add(&mut self, packed: &Packed, stored: Option<&Stored>) {
        self.writes.extend(writes_of(packed, stored));
        self.taken.extend(packed.pieces.iter().map(|(at, _, len)| (*at, *at + *len as u64)));
        self.pieces += 1;
    }

    /// Returns how many pieces it has.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// Returns the commit.
    pub fn finish(mut self, basis: Basis) -> Plan {
        self.writes.sort_by_key(|write| write.file_off);
        Plan { writes: self.writes, basis, pieces: self.pieces }
    }
}

impl Plan {
    /// Creates a commit of the same content in fewer pieces, with the same time.
    pub fn compaction(attr: &InodeAttr, writes: Vec<ExtentWrite>) -> Self {
        Self { writes, basis: basis(attr.version, Some(attr.mtime)), pieces: 0 }
    }

    /// Returns whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.pieces == 0
    }

    /// Returns how many sealed pieces it covers.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// Returns the commit with these writes in place of its own.
    pub fn with_writes(self, writes: Vec<ExtentWrite>) -> Self {
        Self { writes, ..self }
    }

    /// Returns the writes.
    pub fn writes(&self) -> &[ExtentWrite] {
        &self.writes
    }

    /// Returns what the commit is based on.
    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Returns whether it goes into the conflict copy that has the earlier content.
    pub fn is_diverted(&self) -> bool {
        self.basis.diverted.is_some()
    }

    /// Returns what the rest of this file's content in the journal is based on, once this is committed.
    pub fn journaled(&self, ino: Ino) -> JournaledFile {
        JournaledFile { ino, base: self.basis.base, committed: !self.is_diverted() }
    }

    /// Returns the operation that commits to this inode, or to the conflict copy that the content goes into.
    pub fn op(&self, ino: Ino, policy: ConflictPolicy) -> Op {
        let Basis { base, own, append_from, mtime, clear_privileges, diverted } = &self.basis;
        let (ino, base, own, append_from, policy) = match diverted {
            // The copy is written whatever it holds.
            Some(copy) => (*copy, Version(0), Vec::new(), None, ConflictPolicy::LastWriter),
            None => (ino, *base, own.clone(), *append_from, policy),
        };
        let (writes, mtime, clear_privileges) = (self.writes.clone(), *mtime, *clear_privileges);
        Op::Commit { ino, base, own, writes, append_from, mtime, clear_privileges, policy }
    }
}

fn basis(base: Version, mtime: Option<Timestamp>) -> Basis {
    Basis { base, own: Vec::new(), append_from: None, mtime, clear_privileges: false, diverted: None }
}

/// Returns the operations that make, in one batch, the file that takes the content written to a removed one: under this
/// name, with these writes.
pub(crate) fn beside((parent, name): (Ino, &[u8]), ino: Ino, like: &InodeAttr, writes: &[ExtentWrite]) -> [Op; 2] {
    // With an access list, the group bits are not the group's rights but the mask: the most that anybody else had by
    // the list.
    let mode = if like.has_xattrs { like.mode & !0o070 } else { like.mode };
    let (name, node) = (name.to_vec(), NewInode::Regular);
    let create = Op::Create { parent, name, ino, node, mode, umask: 0, uid: like.uid, gid: like.gid };
    let content = Plan { writes: writes.to_vec(), basis: basis(FIRST_VERSION, None), pieces: 0 };
    [create, content.op(ino, ConflictPolicy::LastWriter)]
}

/// Content version of a new file.
const FIRST_VERSION: Version = Version(1);

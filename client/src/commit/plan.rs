//! What one commit carries. Pure: no lock, no clock, no network.
//!
//! Content that others may have changed meanwhile goes with the version that it is based on, and with the versions behind
//! that which are this client's own: metad judges by these (I6). What is appended goes with the offset that it was written
//! for, and lands at the end. After a conflict, what follows goes into the copy that has what was written before.

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
    /// Sealed pieces of the file that it covers, the first ones.
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
    /// Whether a piece may go along. What was overwritten between two seals goes into a commit of its own: the writes of
    /// one are disjoint.
    pub fn takes(&self, packed: &Packed) -> bool {
        // A part may cross a chunk's border, and becomes two writes then.
        let fits = self.writes.len() + packed.pieces.len() * 2 <= COMMIT_EXTENTS_MAX;
        let overlaps = |(at, _, len): &(u64, usize, usize)| {
            self.taken.range(..at + *len as u64).next_back().is_some_and(|(_, end)| end > at)
        };
        self.pieces == 0 || (fits && !packed.pieces.iter().any(overlaps))
    }

    /// Adds the next sealed piece, which is stored there; nowhere for what goes inline.
    pub fn add(&mut self, packed: &Packed, stored: Option<&Stored>) {
        self.writes.extend(writes_of(packed, stored));
        self.taken.extend(packed.pieces.iter().map(|(at, _, len)| (*at, *at + *len as u64)));
        self.pieces += 1;
    }

    /// How many pieces it has.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The commit.
    pub fn finish(mut self, basis: Basis) -> Plan {
        self.writes.sort_by_key(|write| write.file_off);
        Plan { writes: self.writes, basis, pieces: self.pieces }
    }
}

impl Plan {
    /// The same content in fewer pieces, and with the same time.
    pub fn compaction(attr: &InodeAttr, writes: Vec<ExtentWrite>) -> Self {
        Self { writes, basis: basis(attr.version, Some(attr.mtime)), pieces: 0 }
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.pieces == 0
    }

    /// Sealed pieces that it covers.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// What it writes.
    pub fn writes(&self) -> &[ExtentWrite] {
        &self.writes
    }

    /// What it is based on.
    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Whether it goes into the conflict copy that has what was written before.
    pub fn is_diverted(&self) -> bool {
        self.basis.diverted.is_some()
    }

    /// What the rest of the journal's content of this file follows, once this is committed.
    pub fn journaled(&self, ino: Ino) -> JournaledFile {
        JournaledFile { ino, base: self.basis.base, committed: !self.is_diverted() }
    }

    /// The operation that commits it to this inode, or to the copy that it goes into.
    pub fn op(&self, ino: Ino, policy: ConflictPolicy) -> Op {
        let Basis { base, own, append_from, mtime, clear_privileges, diverted } = &self.basis;
        let (ino, base, own, append_from, policy) = match diverted {
            // Whatever is there.
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

/// The file that takes up what was written to one that others have removed: under this name, with these writes, made in
/// one batch.
pub(crate) fn beside((parent, name): (Ino, &[u8]), ino: Ino, like: &InodeAttr, writes: &[ExtentWrite]) -> [Op; 2] {
    // With an access list, these were not the group's rights but the most that anybody else had by it.
    let mode = if like.has_xattrs { like.mode & !0o070 } else { like.mode };
    let (name, node) = (name.to_vec(), NewInode::Regular);
    let create = Op::Create { parent, name, ino, node, mode, umask: 0, uid: like.uid, gid: like.gid };
    let content = Plan { writes: writes.to_vec(), basis: basis(FIRST_VERSION, None), pieces: 0 };
    [create, content.op(ino, ConflictPolicy::LastWriter)]
}

/// Content version of a file that was just made.
const FIRST_VERSION: Version = Version(1);

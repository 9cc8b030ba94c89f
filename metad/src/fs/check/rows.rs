//! What is remembered of the inodes of a window, and compared at its end.

use super::{Check, WINDOW, places};
use crate::fs::inode::Inode;
use crate::fs::keys;
use std::collections::BTreeSet;
use std::ops::Range;
use wire::attr::{Creator, FileKind, InodeAttr, Timestamp};
use wire::ids::Ino;
use wire::message::check::{FindingKind, Repair, Seen};

/// An inode: what its record says, and what was found.
#[derive(Debug)]
pub(super) struct Row {
    pub ino: Ino,
    /// Its record cannot be decoded: the inode exists, and nothing more is known.
    pub is_damaged: bool,
    pub kind: FileKind,
    /// The parent of a directory, or of the recorded entry of another inode.
    pub parent: Ino,
    /// Place in the order of that directory that follows from the recorded name.
    pub cookie: u64,
    pub seen: Seen,
    size: u64,
    allocated: u64,
    has_xattrs: bool,
    /// Entries that lead to it.
    pub links: u32,
    /// Entries in it, and how many of them lead to directories.
    pub entries: u64,
    pub subdirs: u32,
    /// Bytes of its extents, and where the last one ends.
    pub bytes: u64,
    pub end: u64,
    pub found_xattrs: bool,
    pub found_target: bool,
    pub is_orphan: bool,
}

impl Row {
    /// Makes the row of an inode whose record cannot be decoded.
    pub(super) fn damaged(ino: Ino) -> Self {
        let creator = Creator { mode: 0, uid: 0, gid: 0 };
        let attr = InodeAttr::new(ino, FileKind::Regular, creator, Timestamp::default());
        let inode = Inode::new(attr, Ino::ROOT, Vec::new());
        Self { is_damaged: true, ..Self::new(&inode) }
    }

    pub(super) fn new(inode: &Inode) -> Self {
        let attr = &inode.attr;
        Self {
            ino: attr.ino,
            is_damaged: false,
            kind: attr.kind,
            parent: inode.parent,
            cookie: keys::cookie(&inode.name),
            seen: Seen { nlink: attr.nlink, ctime: attr.ctime },
            size: attr.size,
            allocated: attr.allocated,
            has_xattrs: attr.has_xattrs,
            links: 0,
            entries: 0,
            subdirs: 0,
            bytes: 0,
            end: 0,
            found_xattrs: false,
            found_target: false,
            is_orphan: false,
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Returns whether no entry leads to it, and no session may hold it open.
    fn is_nameless(&self) -> bool {
        self.links == 0 && !self.is_orphan && self.ino != Ino::ROOT
    }

    /// Reports contradictions.
    pub(super) fn compare(&self, check: &mut Check) {
        let (ino, seen) = (self.ino, self.seen);
        let place = |check: &Check| places::of(check.kv, ino);
        if self.is_damaged {
            return;
        }
        if self.is_nameless() {
            let what = format!("inode {ino} has no entry, counts {} links, and waits for no session", seen.nlink);
            check.found(FindingKind::Nameless, format!("inode {ino}"), what, Some(Repair::Attach { ino, seen }));
        } else if self.is_dir() {
            self.compare_dir(check);
        } else if self.links != seen.nlink {
            let what = format!("has {} entries and counts {} links", self.links, seen.nlink);
            let repair = Repair::Links { ino, seen, found: self.links };
            check.found(FindingKind::LinkCount, place(check), what, Some(repair));
        }
        if self.allocated != self.bytes {
            let what = format!("has {} allocated bytes and counts {}", self.bytes, self.allocated);
            check.found(FindingKind::AllocatedCount, place(check), what, Some(Repair::Allocated(ino)));
        }
        if self.has_xattrs != self.found_xattrs {
            let what =
                if self.found_xattrs { "has attributes and does not say so" } else { "has none of its attributes" };
            check.found(FindingKind::WrongAttributes, place(check), what.to_owned(), Some(Repair::Attributes(ino)));
        }
        let is_symlink = self.kind == FileKind::Symlink;
        if is_symlink && !self.found_target {
            check.found(FindingKind::WrongAttributes, place(check), "is a symlink without a target".to_owned(), None);
        } else if self.found_target && !is_symlink {
            let what = "has the target of a symlink and is none".to_owned();
            check.found(FindingKind::WrongAttributes, place(check), what, Some(Repair::Attributes(ino)));
        }
    }

    fn compare_dir(&self, check: &mut Check) {
        let nlink = 2 + self.subdirs;
        if self.seen.nlink == nlink && self.size == self.entries {
            return;
        }
        let what = format!(
            "has {} entries, {} of them directories, and counts {} and {} links",
            self.entries, self.subdirs, self.size, self.seen.nlink
        );
        let place = places::of(check.kv, self.ino);
        check.found(FindingKind::DirectoryCount, place, what, Some(Repair::Directory(self.ino)));
    }
}

// `docs/operations.md` says how much memory a check needs.
const _: () = assert!(size_of::<Row>() * WINDOW <= 64 << 20);

/// The rows of all inodes with numbers from `first` up to, but not including, `end`; without an end, up to the last
/// possible one.
pub(super) struct Rows {
    pub rows: Vec<Row>,
    pub first: Ino,
    pub end: Option<Ino>,
    /// Missing inodes that have content and to which a name leads: an operator has to decide about them.
    pub lost: BTreeSet<Ino>,
}

impl Rows {
    pub(super) fn covers(&self, ino: Ino) -> bool {
        ino >= self.first && self.end.is_none_or(|end| ino < end)
    }

    pub(super) fn get(&mut self, ino: Ino) -> Option<&mut Row> {
        let at = self.rows.binary_search_by_key(&ino, |row| row.ino).ok()?;
        self.rows.get_mut(at)
    }

    /// Returns the keys of a table that begin with the number of an inode of this window.
    pub(super) fn keys(&self, table: u8) -> Range<Vec<u8>> {
        let at = |ino: Ino| [&[table][..], &ino.0.to_be_bytes()].concat();
        at(self.first)..self.end.map_or_else(|| vec![table + 1], at)
    }
}

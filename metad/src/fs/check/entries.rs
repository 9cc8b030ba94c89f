//! Directory entries, compared with the inodes of one window: those that they lead to, and the directories that hold
//! them.

use super::rows::Rows;
use super::{Check, places};
use crate::fs::view::KvExt;
use crate::fs::{backlinks, dentry, keys, numbered};
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::message::check::{FindingKind, Repair};

/// An entry as it is stored.
struct Entry<'a> {
    parent: Ino,
    cookie: u64,
    name: &'a [u8],
    ino: Ino,
    kind: FileKind,
}

impl Entry<'_> {
    fn removal(&self) -> Repair {
        Repair::Entry { parent: self.parent, cookie: self.cookie, name: self.name.to_vec(), ino: self.ino }
    }

    fn rewriting(&self) -> Repair {
        Repair::Rewrite { parent: self.parent, cookie: self.cookie, name: self.name.to_vec(), ino: self.ino }
    }

    fn report(&self, check: &mut Check, kind: FindingKind, what: String, repair: Repair) {
        let place = places::entry(check.kv, self.parent, self.name);
        check.found(kind, place, what, Some(repair));
    }
}

pub(super) fn check(check: &mut Check, rows: &mut Rows) {
    check.scan(keys::all_dentries(), 16, |check, key, value| {
        let (parent, cookie, name) = keys::dentry_parts(key);
        let Ok((ino, kind)) = numbered::decode::<dentry::Target>(value) else {
            // Reported once, not for each window.
            if rows.covers(parent) {
                check.undecodable(key);
            }
            return;
        };
        let entry = Entry { parent, cookie, name, ino, kind };
        if rows.covers(ino) {
            lead(check, rows, &entry);
        }
        if rows.covers(parent) {
            stand(check, rows, &entry);
        }
    });
}

/// Checks where an entry leads.
fn lead(check: &mut Check, rows: &mut Rows, entry: &Entry) {
    let ino = entry.ino;
    let Some(row) = rows.get(ino) else {
        let what = format!("leads to inode {ino}, which is not there");
        if check.kv.any(keys::extents_from(ino, 0)) && check.kv.get(&keys::reaping(ino)).is_none() {
            rows.lost.insert(ino);
            let place = places::entry(check.kv, entry.parent, entry.name);
            return check.found(FindingKind::DanglingEntry, place, format!("{what}, though its content is"), None);
        }
        return entry.report(check, FindingKind::DanglingEntry, what, entry.removal());
    };
    row.links = row.links.saturating_add(1);
    if row.is_damaged {
        return;
    }
    if row.kind != entry.kind {
        let what = format!("says {:?}, and inode {ino} says {:?}", entry.kind, row.kind);
        return entry.report(check, FindingKind::WrongKind, what, entry.rewriting());
    }
    if !row.is_dir() {
        let recorded = (row.parent, row.cookie);
        return record(check, recorded, row.seen.nlink, entry);
    }
    let is_second = row.links > 1;
    let known = row.parent;
    let inode = check.load::<crate::fs::inode::Inode>(&keys::inode(ino));
    if inode.is_some_and(|inode| inode.parent == entry.parent && inode.name == entry.name) {
        return;
    }
    // The directory may be recorded under another entry.
    let own = check.load::<crate::fs::inode::Inode>(&keys::inode(ino)).and_then(|inode| {
        let own = check.kv.get(&keys::dentry(inode.parent, &inode.name));
        // One that cannot be decoded is reported where it stands.
        let own = own.and_then(|stored| numbered::decode::<dentry::Target>(&stored).ok());
        own.filter(|(target, _)| *target == ino)
    });
    if own.is_some() || is_second {
        let what = format!("is a further entry of directory {ino}");
        return entry.report(check, FindingKind::WrongParent, what, entry.removal());
    }
    let what = format!("directory {ino} says that it stands in directory {known}, or by another name");
    let repair = Repair::Parent { ino, parent: entry.parent, name: entry.name.to_vec() };
    entry.report(check, FindingKind::WrongParent, what, repair);
}

/// Checks that an inode that is no directory knows an entry of it.
fn record(check: &mut Check, recorded: (Ino, u64), nlink: u32, entry: &Entry) {
    let ino = entry.ino;
    if nlink == 1 && recorded != (entry.parent, keys::cookie(entry.name)) {
        let what = format!("inode {ino} says that it stands in directory {}, or by another name", recorded.0);
        let repair = Repair::Parent { ino, parent: entry.parent, name: entry.name.to_vec() };
        return entry.report(check, FindingKind::WrongParent, what, repair);
    }
    let key = backlinks::key_of(ino, entry.parent, entry.name);
    if nlink > 1 && check.kv.get(&key).is_none() {
        let what = format!("is not among the entries of inode {ino}");
        entry.report(check, FindingKind::WrongIndex, what, Repair::Index(key));
    }
}

/// Checks the directory that holds an entry.
fn stand(check: &mut Check, rows: &mut Rows, entry: &Entry) {
    let parent = entry.parent;
    let Some(row) = rows.get(parent).filter(|row| row.is_dir() || row.is_damaged) else {
        let what = format!("stands in inode {parent}, which is no directory, or not there");
        return entry.report(check, FindingKind::EntryWithoutDirectory, what, entry.removal());
    };
    row.entries += 1;
    row.subdirs += u32::from(entry.kind == FileKind::Directory);
    if entry.cookie != keys::cookie(entry.name) {
        let what = "is not stored where its name is looked for".to_owned();
        entry.report(check, FindingKind::MisplacedEntry, what, entry.rewriting());
    }
}

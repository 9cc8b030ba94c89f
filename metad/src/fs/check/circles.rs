//! Directories that lie below themselves. Each directory has an entry in its parent (see `rows`), so the root reaches
//! all of them unless some lead in a circle, or to a missing directory.

use super::{Check, places};
use crate::fs::inode::Inode;
use crate::fs::keys;
use std::collections::HashSet;
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::message::check::{FindingKind, Repair, Seen};

pub(super) fn check(check: &mut Check) {
    let mut judged: HashSet<Ino> = HashSet::new();
    check.scan(keys::inodes(), 8, |check, key, value| {
        let Ok(inode) = wire::codec::decode::<Inode>(value) else { return };
        if inode.attr.kind == FileKind::Directory {
            judge(check, &mut judged, (Ino(keys::first(key)), inode));
        }
    });
}

/// Goes up to the root, or to a directory that was judged before.
fn judge(check: &mut Check, judged: &mut HashSet<Ino>, (ino, inode): (Ino, Inode)) {
    if judged.len() > check.window {
        judged.clear();
    }
    let (mut way, mut on_way) = (vec![ino], HashSet::from([ino]));
    let (mut at, mut here) = (ino, inode);
    while at != Ino::ROOT && !judged.contains(&at) {
        let above = here.parent;
        if !on_way.insert(above) {
            report(check, &way, above);
            break;
        }
        // A directory without a parent is reported elsewhere.
        let Some(next) = check.kv.get(&keys::inode(above)).and_then(|value| wire::codec::decode(&value).ok()) else {
            break;
        };
        (at, here) = (above, next);
        way.push(at);
    }
    judged.extend(way);
}

/// Reports a circle: the part of the way that begins at the directory that was reached twice.
fn report(check: &mut Check, way: &[Ino], again: Ino) {
    let circle = way.iter().skip_while(|ino| **ino != again);
    // The directory named is always the same one, wherever the circle was entered. Each circle is reported once,
    // because its directories are judged then.
    let Some(least) = circle.copied().min() else { return };
    let Some(inode) = check.load::<Inode>(&keys::inode(least)) else { return };
    let seen = Seen { nlink: inode.attr.nlink, ctime: inode.attr.ctime };
    let what = format!("directory {least}, {:?}, lies below itself", places::printable(&inode.name));
    let repair = Some(Repair::Attach { ino: least, seen });
    check.found(FindingKind::Circle, format!("inode {least}"), what, repair);
}

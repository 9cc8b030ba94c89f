//! Directories that lie below themselves. Each directory has an entry in its parent (see `rows`), so the root reaches
//! all of them unless some lead in a circle, or to a missing directory.
//!
//! The way up from each directory ends at the first one that is known to be judged. Memory is bounded, so with more
//! directories than fit in a window only every second, fourth, … one is remembered, evenly spread. A way then goes on
//! for two, four, … more directories before it meets one of them: the work stays near linear, however deep the
//! directories are. Which ones are remembered depends on a random key of this check: clients choose the numbers of
//! their directories, and could otherwise build a deep tree of which none is. The findings do not depend on it.

use super::{Check, places};
use crate::fs::inode::Inode;
use crate::fs::keys;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use wire::attr::FileKind;
use wire::ids::Ino;
use wire::message::check::{FindingKind, Repair, Seen};

/// Directories that were judged: those of which the number, hashed, begins with `skipped` zeros.
struct Judged {
    inos: HashSet<Ino>,
    /// Has a random key.
    hashing: RandomState,
    skipped: u32,
    most: usize,
    /// The least directory of each circle that was reported. There are no more of them than findings.
    circles: HashSet<Ino>,
}

impl Judged {
    fn contains(&self, ino: Ino) -> bool {
        self.inos.contains(&ino) || self.circles.contains(&ino)
    }

    fn is_sampled(&self, ino: Ino) -> bool {
        self.hashing.hash_one(ino).leading_zeros() >= self.skipped
    }

    fn add(&mut self, ino: Ino) {
        if self.is_sampled(ino) {
            self.inos.insert(ino);
        }
        while self.inos.len() > self.most.max(1) {
            self.skipped += 1;
            let mut inos = std::mem::take(&mut self.inos);
            inos.retain(|ino| self.is_sampled(*ino));
            self.inos = inos;
        }
    }
}

pub(super) fn check(check: &mut Check) {
    let mut judged = Judged {
        inos: HashSet::new(),
        hashing: RandomState::new(),
        skipped: 0,
        most: check.window,
        circles: HashSet::new(),
    };
    check.scan(keys::inodes(), 8, |check, key, value| {
        let Ok(inode) = wire::codec::decode::<Inode>(value) else { return };
        if inode.attr.kind == FileKind::Directory {
            judge(check, &mut judged, Ino(keys::first(key)), inode.parent);
        }
    });
}

/// Goes up to the root, or to a directory that was judged before, and remembers the way.
fn judge(check: &mut Check, judged: &mut Judged, ino: Ino, parent: Ino) {
    let (mut at, mut above) = (ino, parent);
    // Brent's algorithm finds a circle without remembering the way: a mark stays behind, and moves up at steps that are
    // powers of two.
    let (mut mark, mut steps, mut power) = (at, 0_u64, 1_u64);
    let mut circle = None;
    while at != Ino::ROOT && !judged.contains(at) {
        if above == mark {
            circle = Some(at);
            break;
        }
        steps += 1;
        if steps == power {
            (mark, steps, power) = (above, 0, power * 2);
        }
        if above == Ino::ROOT || judged.contains(above) {
            break;
        }
        // A directory without a parent is reported elsewhere.
        let Some(next) = parent_of(check, above) else { break };
        (at, above) = (above, next);
    }
    if let Some(on_circle) = circle {
        report(check, judged, on_circle);
    }
    remember(check, judged, ino, parent);
}

/// Remembers the directories from one up to the first that is judged.
fn remember(check: &Check, judged: &mut Judged, ino: Ino, parent: Ino) {
    let (mut at, mut above) = (ino, parent);
    while at != Ino::ROOT && !judged.contains(at) {
        judged.add(at);
        if above == Ino::ROOT || judged.contains(above) {
            break;
        }
        let Some(next) = parent_of(check, above) else { break };
        (at, above) = (above, next);
    }
}

fn parent_of(check: &Check, ino: Ino) -> Option<Ino> {
    let value = check.kv.get(&keys::inode(ino))?;
    wire::codec::decode::<Inode>(&value).ok().map(|inode| inode.parent)
}

/// Reports the circle that a directory is in, and marks it as judged. The directory named is always the same one,
/// wherever the circle was entered.
fn report(check: &mut Check, judged: &mut Judged, on_circle: Ino) {
    let (mut least, mut at) = (on_circle, on_circle);
    while let Some(above) = parent_of(check, at).filter(|above| *above != on_circle) {
        at = above;
        least = least.min(at);
    }
    judged.circles.insert(least);
    let Some(inode) = check.load::<Inode>(&keys::inode(least)) else { return };
    let seen = Seen { nlink: inode.attr.nlink, ctime: inode.attr.ctime };
    let what = format!("directory {least}, {:?}, lies below itself", places::printable(&inode.name));
    let repair = Some(Repair::Attach { ino: least, seen });
    check.found(FindingKind::Circle, format!("inode {least}"), what, repair);
}

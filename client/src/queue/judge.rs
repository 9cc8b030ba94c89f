//! Decides what to do about an entry that metad has refused: others were first, while this session was away. Their
//! changes stay, and those made here go beside them (I6). Pure.

use super::core::{Core, Work};
use crate::known::Place;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Expect, Name, Op};

/// An entry that was refused.
pub(crate) struct Refused<'a> {
    pub(crate) op: Option<&'a Op>,
    pub(crate) has_content: bool,
    pub(crate) error: FsError,
    /// Whether nothing may be left out.
    pub(crate) strict: bool,
    /// The client's root.
    pub(crate) root: Ino,
}

/// What to do about a refused entry.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Nothing: the cause will pass, and the entry is sent again later.
    Wait,
    /// The new inode gets another name, because its own is taken or its directory is gone.
    MakeElsewhere { parent: Ino, name: Name, ino: Ino },
    /// The moved inode gets another name, if its old name still leads where this session believed. Otherwise, the entry
    /// is left out.
    MoveElsewhere { from: Place, to: Place },
    /// The content goes into another file, or stays with this one.
    Content { ino: Ino },
    /// The entry has no effect.
    LeaveOut,
}

/// Decides what to do about an entry that others' changes preceded.
pub(crate) fn decide(refused: &Refused<'_>) -> Verdict {
    let Refused { op, has_content, error, strict, root } = *refused;
    let passes = matches!(error, FsError::NoSpace | FsError::QuotaExceeded | FsError::SessionExpired | FsError::Busy);
    if passes && (!has_content || strict) {
        return Verdict::Wait;
    }
    match op.map(Op::plain) {
        Some(Op::Create { parent, name, ino, .. }) if matches!(error, FsError::Exists | FsError::NotFound) => {
            let parent = if error == FsError::NotFound { root } else { *parent };
            Verdict::MakeElsewhere { parent, name: name.clone(), ino: *ino }
        }
        Some(Op::Rename { new_parent, new_name, name, parent, .. }) if error == FsError::Stale => {
            Verdict::MoveElsewhere { from: (*parent, name.clone()), to: (*new_parent, new_name.clone()) }
        }
        Some(Op::Commit { ino, .. }) => Verdict::Content { ino: *ino },
        _ => Verdict::LeaveOut,
    }
}

/// Returns where a refused rename expected the name to lead that it removes.
pub(crate) fn expected_at(op: &Op, (parent, name): &Place) -> Option<Ino> {
    let Op::Deferred { expect, .. } = op else { return None };
    expect.iter().find(|expect| expect.parent == *parent && expect.name == *name)?.ino
}

/// A pin that follows a renamed entry.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Repin {
    pub(crate) number: u64,
    /// The pin of this name is undone.
    pub(crate) undo: Place,
    /// The name that is pinned instead.
    pub(crate) pin: Option<(Place, Ino)>,
}

impl<F> Core<F> {
    /// Gives `ino` the name `new` instead of `old` from this entry on, until something else gets `new`. An entry that
    /// was to replace `ino` at `old` finds something else there, and is refused in its turn.
    pub(crate) fn rename_entries(&mut self, from: u64, old: &Place, new: &Place, ino: Ino) -> Vec<Repin> {
        let mut repins = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.number >= from) {
            let first = entry.number == from;
            let Work::Change { op, expect } = &mut entry.work else { continue };
            let is_old = |expect: &Expect| (expect.parent, &expect.name) == (old.0, &old.1);
            let follows = name_taken(op).is_some_and(|(parent, name)| (parent, name) == (old.0, &old.1))
                && expect.iter().any(|expect| is_old(expect) && expect.ino == Some(ino));
            if !first && !follows {
                continue;
            }
            rename_in(op, old, new, first);
            expect.retain(|expect| !(first && is_old(expect)));
            if first && matches!(op, Op::Rename { .. }) {
                // The entry must not replace what has that name by now.
                expect.push(Expect { parent: new.0, name: new.1.clone(), ino: None, version: None });
            }
            for expect in expect.iter_mut().filter(|expect| is_old(expect)) {
                (expect.parent, expect.name) = new.clone();
            }
            for name in entry.names.iter_mut().filter(|name| *name == old) {
                *name = new.clone();
            }
            let pin = first.then(|| (new.clone(), ino));
            repins.push(Repin { number: entry.number, undo: old.clone(), pin });
        }
        repins
    }
}

/// Returns the name that an operation removes, which leads to the inode that it works on.
fn name_taken(op: &Op) -> Option<(Ino, &Name)> {
    match op {
        Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name, .. } | Op::Rename { parent, name, .. } => {
            Some((*parent, name))
        }
        _ => None,
    }
}

/// Replaces one name by another: in the `first` entry that has the new name, the name of what is made or moved; in
/// later ones, the name of what is removed or moved away.
fn rename_in(op: &mut Op, old: &Place, new: &Place, first: bool) {
    match op {
        Op::Create { parent, name, .. } if first => (*parent, *name) = new.clone(),
        Op::Rename { new_parent, new_name, released, .. } if first => {
            (*new_parent, *new_name) = new.clone();
            *released = None;
        }
        Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name, .. } | Op::Rename { parent, name, .. }
            if (*parent, &*name) == (old.0, &old.1) =>
        {
            (*parent, *name) = new.clone();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;
    use wire::attr::Timestamp;
    use wire::op::{NewInode, RenameMode};

    const DIR: Ino = Ino(1);

    fn create(name: &[u8], ino: u64) -> Op {
        let node = NewInode::Regular;
        Op::Create { parent: DIR, name: name.to_vec(), ino: Ino(ino), node, mode: 0o644, umask: 0, uid: 0, gid: 0 }
    }

    fn rename(name: &[u8], new_name: &[u8]) -> Op {
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        Op::Rename {
            parent: DIR,
            name,
            new_parent: DIR,
            new_name,
            mode: RenameMode::Replace,
            released: None,
            seen: None,
        }
    }

    fn verdict(op: &Op, error: FsError) -> Verdict {
        let has_content = matches!(op, Op::Commit { .. });
        decide(&Refused { op: Some(op), has_content, error, strict: false, root: Ino::ROOT })
    }

    #[test]
    fn new_and_moved_inodes_go_beside_those_of_others_and_other_entries_are_left_out() {
        let made = |parent| Verdict::MakeElsewhere { parent, name: b"a".to_vec(), ino: Ino(7) };
        assert_eq!(verdict(&create(b"a", 7), FsError::Exists), made(DIR));
        assert_eq!(verdict(&create(b"a", 7), FsError::NotFound), made(Ino::ROOT), "its directory is gone");
        let moved = Verdict::MoveElsewhere { from: (DIR, b"a".to_vec()), to: (DIR, b"b".to_vec()) };
        assert_eq!(verdict(&rename(b"a", b"b"), FsError::Stale), moved);
        assert_eq!(verdict(&rename(b"a", b"b"), FsError::NotFound), Verdict::LeaveOut);
        assert_eq!(verdict(&create(b"a", 7), FsError::NoSpace), Verdict::Wait, "room is made again");
        let unlink = Op::Unlink { parent: DIR, name: b"a".to_vec(), released: None };
        assert_eq!(verdict(&unlink, FsError::Stale), Verdict::LeaveOut);
    }
    #[test]
    fn entries_by_a_name_follow_the_inode_that_gets_another_one() {
        let mut core = Core::<()>::default();
        let now = Instant::now();
        let old = (DIR, b"a".to_vec());
        let mut enter = |op: Op, expect: Vec<Expect>| {
            let touched = (Vec::new(), vec![old.clone()]);
            core.enter(Timestamp::default(), touched, Work::Change { op, expect }, 0, now);
        };
        let leads = |ino| vec![Expect { parent: DIR, name: b"a".to_vec(), ino, version: None }];
        let unlink = || Op::Unlink { parent: DIR, name: b"a".to_vec(), released: Some(Ino(7)) };
        enter(create(b"a", 7), Vec::new());
        enter(unlink(), leads(Some(Ino(8))));
        enter(unlink(), leads(Some(Ino(7))));
        let new = (DIR, b"a.conflict".to_vec());
        let repins = core.rename_entries(1, &old, &new, Ino(7));
        assert_eq!(repins.iter().map(|repin| repin.number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(repins[0].pin, Some((new.clone(), Ino(7))));
        let names: Vec<&[u8]> = core
            .entries
            .iter()
            .map(|entry| match &entry.work {
                Work::Change { op: Op::Create { name, .. } | Op::Unlink { name, .. }, .. } => name.as_slice(),
                _ => unreachable!("nothing else is entered"),
            })
            .collect();
        assert_eq!(names, [&b"a.conflict"[..], b"a", b"a.conflict"]);
    }
}

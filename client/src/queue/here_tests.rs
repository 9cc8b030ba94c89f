use super::*;
use crate::known::Known;
use proptest::prelude::*;
use std::collections::BTreeMap;
use wire::op::Name;

const DIR: Ino = Ino(50);

fn attr(ino: Ino, kind: FileKind) -> InodeAttr {
    InodeAttr::new(ino, kind, Creator { mode: 0o755, uid: 1, gid: 1 }, Timestamp::default())
}

/// Returns a session that has made an empty directory, on which no other session has leases.
fn known() -> Known {
    let known = Known::default();
    known.attached();
    let made = Pinned { attrs: vec![attr(DIR, FileKind::Directory)], made: Some(DIR), names: Vec::new() };
    known.with(|state, _| state.pin(1, made));
    known
}

fn new(node: NewInode) -> NewNode {
    NewNode { node, mode: 0o666, umask: 0o022, uid: 7, gid: 8 }
}

fn doomed(ino: Ino) -> Doomed {
    Doomed { ino, newest: None }
}

/// Decides an operation from what is known, and pins it as the entry of this number.
fn decide<R>(known: &Known, number: u64, decide: impl FnOnce(Here<'_>) -> Option<(Decided, R)>) -> Option<R> {
    known.with(|state, now| {
        let (decided, answer) = decide(Here { state, now, at: Timestamp::default() })?;
        state.pin(number, decided.pinned);
        Some(answer)
    })
}

#[test]
fn a_new_inode_has_the_masked_mode_and_counts_in_its_directory() {
    let known = known();
    let node = new(NewInode::Regular);
    let made = decide(&known, 2, |here| here.make((DIR, b"f"), Ino(60), &node)).unwrap();
    assert_eq!((made.mode & 0o7777, made.uid, made.nlink), (0o644, 7, 1));
    assert_eq!(known.attr(DIR).unwrap().size, 1);
    assert_eq!(known.name(DIR, b"f").unwrap().unwrap().ino, Ino(60));
    assert!(decide(&known, 3, |here| here.make((DIR, b"f"), Ino(61), &node)).is_none(), "the name is taken");
    assert!(!may_make(b"..", &node) && !may_make(b"l", &new(NewInode::Symlink(Vec::new()))));
}

#[test]
fn operations_on_unknown_inodes_are_left_to_metad() {
    let known = Known::default();
    known.attached();
    let node = new(NewInode::Regular);
    assert!(decide(&known, 1, |here| here.make((DIR, b"f"), Ino(60), &node)).is_none(), "the directory is not known");
    known.extend(Now::here().boot, known.mark(), false);
    known.learn_attr(&attr(DIR, FileKind::Directory), known.mark());
    assert!(decide(&known, 1, |here| here.make((DIR, b"f"), Ino(60), &node)).is_none(), "nor whether the name is free");
}

#[test]
fn a_removal_expects_the_newest_content_that_is_known() {
    let known = known();
    let node = new(NewInode::Regular);
    let made = decide(&known, 2, |here| here.make((DIR, b"f"), Ino(60), &node)).unwrap();
    let expected = |newest| {
        known.with(|state, now| {
            let here = Here { state, now, at: Timestamp::default() };
            here.unlink((DIR, b"f"), Doomed { ino: Ino(60), newest }).unwrap().expect[0].version
        })
    };
    assert_eq!(expected(None), Some(made.version));
    assert_eq!(expected(Some(Some(Version(9)))), Some(Version(9)), "an open file knows more");
    assert_eq!(expected(Some(None)), None, "the next one is ours");
}

#[derive(Clone, Debug)]
enum Step {
    Make(u8, bool),
    Unlink(u8),
    Rmdir(u8),
    Rename(u8, u8, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0_u8..5;
    let step = prop_oneof![
        (name.clone(), any::<bool>()).prop_map(|(name, dir)| Step::Make(name, dir)),
        name.clone().prop_map(Step::Unlink),
        name.clone().prop_map(Step::Rmdir),
        (name.clone(), name, any::<bool>()).prop_map(|(from, to, replace)| Step::Rename(from, to, replace)),
    ];
    prop::collection::vec(step, 0..40)
}

/// The expected directory: names, what they lead to, and whether that is a directory.
type Model = BTreeMap<Name, (Ino, bool)>;

/// Carries out a step in the model and here. What the model refuses must be refused here, too.
fn carry_out(known: &Known, model: &mut Model, number: u64, step: &Step) {
    match step {
        Step::Make(name, dir) => {
            let (name, ino) = (vec![b'a' + name], Ino(1000 + number));
            let node = new(if *dir { NewInode::Directory } else { NewInode::Regular });
            let made = decide(known, number, |here| here.make((DIR, &name), ino, &node));
            assert_eq!(made.is_some(), !model.contains_key(&name));
            model.entry(name).or_insert((ino, *dir));
        }
        Step::Unlink(name) => {
            let name = vec![b'a' + name];
            let ino = model.get(&name).map_or(Ino(1), |(ino, _)| *ino);
            let done = decide(known, number, |here| Some((here.unlink((DIR, &name), doomed(ino))?, ())));
            assert_eq!(done.is_some(), model.get(&name).is_some_and(|(_, dir)| !dir));
            model.retain(|other, (_, dir)| *other != name || *dir);
        }
        Step::Rmdir(name) => {
            let name = vec![b'a' + name];
            let ino = model.get(&name).map_or(Ino(1), |(ino, _)| *ino);
            let done = decide(known, number, |here| here.rmdir((DIR, &name), ino));
            assert_eq!(done.is_some(), model.get(&name).is_some_and(|(_, dir)| *dir));
            model.retain(|other, (_, dir)| *other != name || !*dir);
        }
        Step::Rename(from, to, replace) => {
            let (from, to) = (vec![b'a' + from], vec![b'a' + to]);
            let Some((source, dir)) = model.get(&from).copied().filter(|_| from != to) else { return };
            let mode = if *replace { RenameMode::Replace } else { RenameMode::NoReplace };
            let target = model.get(&to).copied();
            let lost = target.map(|(ino, _)| doomed(ino));
            let places = ((DIR, from.as_slice()), (DIR, to.as_slice()));
            let done = decide(known, number, |here| Some((here.rename(places, mode, source, lost)?, ())));
            let may = target.is_none_or(|(_, target_is_dir)| *replace && !dir && !target_is_dir);
            assert_eq!(done.is_some(), may);
            if may {
                model.remove(&from);
                model.insert(to, (source, dir));
            }
        }
    }
}

fn agrees(known: &Known, model: &Model) {
    let dir = known.attr(DIR).unwrap();
    assert_eq!(dir.size, model.len() as u64);
    for name in 0..5 {
        let name = vec![b'a' + name];
        let leads = known.name_state(DIR, &name);
        assert_eq!(leads, model.get(&name).map_or(NameState::Absent, |(ino, _)| NameState::Leads(*ino)));
    }
}

proptest! {
    #[test]
    fn operations_here_leave_the_directory_as_a_filesystem_would(steps in steps()) {
        let (known, mut model) = (known(), Model::new());
        for (number, step) in (2..).zip(&steps) {
            carry_out(&known, &mut model, number, step);
            agrees(&known, &model);
        }
    }
}

//! What is synced survives, and what is not synced is one of what it was.

use super::entries::{Entries, NameModel, ROOT};
use super::sectors::{SECTOR, Unsynced};
use super::volume::{Kind, Node, Volume};
use crate::chance::Chance;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Resize(u64),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..5_000_u64, 1..3_000_usize, 1..=255_u8).prop_map(|(offset, len, byte)| Step::Write(offset, len, byte)),
        1 => (0..6_000_u64).prop_map(Step::Resize),
        2 => Just(Step::Sync),
    ]
}

fn file(volume: &mut Volume, name: &str) -> u64 {
    let node = Node::new(Kind::File(Unsynced::new(0)), 0o600, (0, 0));
    volume.make(ROOT, OsStr::new(name), node).unwrap()
}

fn content(volume: &Volume, ino: u64) -> Vec<u8> {
    volume.read(ino, 0, 10_000).unwrap()
}

/// The byte at a place, or zero beyond the end.
fn at(content: &[u8], place: usize) -> u8 {
    content.get(place).copied().unwrap_or(0)
}

proptest! {
    #[test]
    fn a_file_has_all_synced_bytes_and_each_sector_is_one_that_it_was(steps in vec(step(), 1..30), seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let mut volume = Volume::new(dir.path(), NameModel::Strict);
        let ino = file(&mut volume, "file");
        volume.sync(ROOT).unwrap();
        // All contents since the last sync.
        let mut history = vec![Vec::new()];
        for step in &steps {
            let mut now: Vec<u8> = history.last().unwrap().clone();
            match *step {
                Step::Write(offset, len, byte) => {
                    let end = offset as usize + len;
                    now.resize(now.len().max(end), 0);
                    now[offset as usize..end].fill(byte);
                    volume.write(ino, offset, &vec![byte; len]).unwrap();
                }
                Step::Resize(size) => {
                    now.resize(size as usize, 0);
                    volume.resize(ino, size).unwrap();
                }
                Step::Sync => {
                    volume.sync(ino).unwrap();
                    history.clear();
                }
            }
            prop_assert_eq!(&content(&volume, ino), &now);
            history.push(now);
        }
        volume.lose(seed).unwrap();
        let left = content(&volume, ino);
        prop_assert!(history.iter().any(|was| was.len() == left.len()), "a length that it never had");
        for start in (0..left.len()).step_by(SECTOR) {
            let range = start..left.len().min(start + SECTOR);
            let matches = |was: &Vec<u8>| range.clone().all(|place| left[place] == at(was, place));
            prop_assert!(history.iter().any(matches), "sector at {}", start);
        }
        // The state that is left is durable.
        volume.lose(seed + 1).unwrap();
        prop_assert_eq!(content(&volume, ino), left);
    }

    #[test]
    fn names_are_as_at_the_last_sync_of_their_directory_or_as_a_later_change_made_them(
        changes in vec((0..4_u8, 0..3_u8, 0..3_u8, 0..2_u8, 0..2_u8), 1..40),
        is_strict: bool,
        seed: u64,
    ) {
        let model = if is_strict { NameModel::Strict } else { NameModel::Journaled };
        let mut entries = Entries::new(model);
        let dirs = [ROOT, 2];
        entries.add_dir(2);
        entries.link(ROOT, OsStr::new("dir"), 2);
        entries.sync(ROOT);
        let names = ["a", "b", "c"].map(OsString::from);
        // What each name may lead to after a power loss.
        let mut possible: BTreeMap<(u64, usize), Vec<Option<u64>>> =
            dirs.iter().flat_map(|dir| (0..3).map(|name| ((*dir, name), vec![None]))).collect();
        let mut next = 100;
        for (kind, name, new_name, dir, new_dir) in changes {
            let (name, new_name) = (name as usize, new_name as usize);
            let (dir, new_dir) = (dirs[dir as usize], dirs[new_dir as usize]);
            match kind {
                0 if entries.get(dir, &names[name]).is_none() => {
                    next += 1;
                    entries.link(dir, &names[name], next);
                }
                1 => entries.unlink(dir, &names[name]),
                2 => drop(entries.rename((dir, &names[name]), (new_dir, &names[new_name]))),
                _ => {
                    entries.sync(dir);
                    for (name, bytes) in names.iter().enumerate() {
                        possible.insert((dir, name), vec![entries.get(dir, bytes)]);
                    }
                }
            }
            for ((dir, name), values) in &mut possible {
                values.push(entries.get(*dir, &names[*name]));
            }
        }
        entries.lose(&mut Chance::new(seed));
        for ((dir, name), values) in possible {
            let found = entries.get(dir, &names[name]);
            prop_assert!(values.contains(&found), "{} of {} leads to {:?}, not {:?}", name, dir, found, values);
        }
    }
}

#[test]
fn a_rename_happens_whole_or_not_at_all_and_needs_a_sync_of_its_directory() {
    let (mut replaced, mut kept) = (0, 0);
    for seed in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        let mut volume = Volume::new(dir.path(), NameModel::Strict);
        let old = file(&mut volume, "name");
        volume.sync(ROOT).unwrap();
        let new = file(&mut volume, "name.partial");
        volume.write(new, 0, b"new").unwrap();
        volume.sync(new).unwrap();
        volume.rename((ROOT, OsStr::new("name.partial")), (ROOT, OsStr::new("name"))).unwrap();
        volume.lose(seed).unwrap();
        let found = volume.lookup(ROOT, OsStr::new("name")).unwrap();
        if found == new {
            replaced += 1;
            assert!(volume.lookup(ROOT, OsStr::new("name.partial")).is_err());
            assert_eq!(content(&volume, new), b"new");
        } else {
            kept += 1;
            assert_eq!(found, old);
        }
    }
    assert!(replaced > 10 && kept > 10, "{replaced} and {kept}");
}

#[test]
fn only_the_journal_makes_the_name_of_a_synced_file_durable() {
    let lost = |model, seed| {
        let dir = tempfile::tempdir().unwrap();
        let mut volume = Volume::new(dir.path(), model);
        let ino = file(&mut volume, "name");
        volume.sync(ino).unwrap();
        volume.lose(seed).unwrap();
        volume.lookup(ROOT, OsStr::new("name")).is_err()
    };
    assert!((0..100).any(|seed| lost(NameModel::Strict, seed)));
    assert!(!(0..100).any(|seed| lost(NameModel::Journaled, seed)));
}

#[test]
fn losses_tear_writes_and_let_later_ones_survive_earlier_ones() {
    let (mut torn, mut reordered) = (0, 0);
    for seed in 0..200 {
        let dir = tempfile::tempdir().unwrap();
        let mut volume = Volume::new(dir.path(), NameModel::Strict);
        let ino = file(&mut volume, "file");
        volume.write(ino, 0, &[1; 8 * SECTOR]).unwrap();
        volume.sync(ino).unwrap();
        volume.sync(ROOT).unwrap();
        volume.write(ino, 0, &[2; 4 * SECTOR]).unwrap();
        volume.write(ino, 4 * SECTOR as u64, &[3; 4 * SECTOR]).unwrap();
        volume.lose(seed).unwrap();
        let left = content(&volume, ino);
        let (first, second) = left.split_at(4 * SECTOR);
        torn += usize::from(first.contains(&1) && first.contains(&2));
        reordered += usize::from(!first.contains(&2) && !second.contains(&1));
    }
    assert!(torn > 20 && reordered > 5, "{torn} and {reordered}");
}

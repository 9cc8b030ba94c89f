//! Damage that a check finds and a repair mends.

use super::*;
use crate::fs::repair::Repairing;
use crate::fs::view::KvExt;
use crate::fs::{journal_keys, keys};
use wire::message::check::{CheckId, Repair};

/// Runs a check. Repairs what can be repaired, and returns the findings.
fn repaired(world: &mut World, number: u64) -> Vec<String> {
    let mut findings = check::FirstFindings { findings: Vec::new(), most: usize::MAX };
    check::check_all(&world.kv, &mut findings);
    let (mut texts, mut repairs): (Vec<String>, Vec<Repair>) = Default::default();
    for finding in findings.findings {
        texts.push(format!("{}: {}", finding.place, finding.what));
        repairs.extend(finding.repair);
    }
    let repairing = Repairing { check: CheckId(number), base: number - 1, seq: 1, repairs };
    let repaired = world.apply(Command::Repair(repairing));
    assert!(matches!(repaired, CommandReply::Repaired(_)), "{repaired:?}");
    texts
}

#[test]
fn a_check_finds_journals_without_a_client_or_a_position_and_wrong_counts_of_them() {
    let mut world = World::new();
    let id = world.session();
    let journals = [7, 8, 9].map(JournalId);
    for journal in journals {
        world.one(id, Op::Journaled { journal, position: Some(JournalPosition::default()) }).unwrap();
    }
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
    let counted: u64 = world.kv.load(&journal_keys::journals_count("c")).unwrap();
    assert_eq!(counted, 3);
    let mut damage = View::new(&world.kv);
    damage.delete(journal_keys::journal(journals[0]));
    damage.delete(journal_keys::journal_of("c", journals[1]));
    damage.store(journal_keys::journals_count("c"), &5_u64);
    damage.store(journal_keys::journals_count("nobody"), &1_u64);
    let damage = damage.into_changes();
    world.kv.absorb(damage);
    let mut found = repaired(&mut world, 1);
    found.sort();
    assert_eq!(
        found,
        [
            "journal 0000000000000007: is one of a client, and it is not known up to where it was sent",
            "journal 0000000000000008: belongs to no client: what its mount has not sent is refused",
            "journals of a client: 1 are counted, and there are 0",
            "journals of a client: 5 are counted, and there are 2",
        ]
    );
    assert_eq!(repaired(&mut world, 2).len(), 1, "nobody can tell whose journal it is");
    let counted: u64 = world.kv.load(&journal_keys::journals_count("c")).unwrap();
    assert_eq!(counted, 1);
}

#[test]
fn content_of_an_inode_that_is_lost_becomes_a_file() {
    let mut world = World::new();
    let id = world.session();
    let ino = Ino(1500);
    world.one(id, create(Ino::ROOT, "file", ino.0, NewInode::Regular)).unwrap();
    world.one(id, write(ino, world.attr(ino).version, 0, b"first", ConflictPolicy::Fail)).unwrap();
    world.one(id, write(ino, world.attr(ino).version, 10, b"behind a hole", ConflictPolicy::Fail)).unwrap();
    let (before, bytes) = (world.attr(ino), world.bytes(ino));
    let mut damage = View::new(&world.kv);
    damage.delete(keys::inode(ino));
    damage.delete(keys::dentry(Ino::ROOT, b"file"));
    let damage = damage.into_changes();
    world.kv.absorb(damage);
    let found = repaired(&mut world, 1);
    assert!(found.contains(&format!("inode {ino}: has content, and is not there")), "{found:?}");
    // Counts are set only where nothing else was repaired meanwhile.
    repaired(&mut world, 2);
    assert_eq!(repaired(&mut world, 3), Vec::<String>::new());
    let dir = world.lookup(Ino::ROOT, "lost+found").unwrap();
    assert_eq!(world.lookup(dir, &format!("#{ino}")), Ok(ino));
    let after = world.attr(ino);
    assert_eq!((after.size, after.allocated, after.mode), (before.size, before.allocated, 0o600));
    assert_eq!(world.bytes(ino), bytes);
    // It is a file like others.
    world.one(id, write(ino, after.version, 0, b"First", ConflictPolicy::Fail)).unwrap();
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

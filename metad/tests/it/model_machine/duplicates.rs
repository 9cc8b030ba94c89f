//! Batches that arrive twice, late or in another order, and inode numbers that are used twice.

use super::world::{World, config, create};
use metad::fs::{Command, Refused};
use proptest::prelude::*;
use std::collections::BTreeMap;
use wire::FsError;
use wire::ids::{BatchSeq, Ino, SessionId};
use wire::op::{Batch, NewInode, Op};

/// Makes a batch of a session that creates and removes a few names. Some of these operations fail.
fn batch(world: &mut World, id: SessionId, names: &[(u8, bool)]) -> Batch {
    let ops = names
        .iter()
        .map(|(name, make)| {
            let name = format!("n{name}");
            if *make {
                let ino = world.number(id);
                create(Ino::ROOT, &name, ino, NewInode::Regular)
            } else {
                Op::Unlink { parent: Ino::ROOT, name: name.into_bytes(), released: None }
            }
        })
        .collect();
    Batch { acked: BatchSeq(0), ..world.batch(id, ops) }
}

proptest! {
    #![proptest_config(config(128))]

    /// Guards I1.
    #[test]
    fn a_batch_is_applied_once_however_often_and_in_whatever_order_it_arrives(
        contents in proptest::collection::vec(
            (0_usize..2, proptest::collection::vec((0_u8..4, any::<bool>()), 1..3)), 1..12),
        arrivals in proptest::collection::vec(any::<prop::sample::Index>(), 1..60),
    ) {
        let mut world = World::new();
        let sessions = [world.session(), world.session()];
        let batches: Vec<(SessionId, Batch)> = contents
            .iter()
            .map(|(session, names)| (sessions[*session], batch(&mut world, sessions[*session], names)))
            .collect();
        let mut first = BTreeMap::new();
        for arrival in &arrivals {
            let index = arrival.index(batches.len());
            let (id, batch) = &batches[index];
            let before = world.kv.clone();
            let reply = world.submit(*id, batch).unwrap();
            if let Some(expected) = first.get(&index) {
                prop_assert_eq!(&reply, expected);
                prop_assert_eq!(&world.kv, &before, "nothing changes the second time");
            }
            first.insert(index, reply);
            world.assert_sound();
        }
    }
}

/// Guards I1.
#[test]
fn a_window_at_the_end_of_all_numbers_is_refused_and_harms_nothing() {
    let mut world = World::new();
    let id = world.session();
    let before = world.kv.clone();
    for (seq, acked) in [(u64::MAX, u64::MAX), (7, u64::MAX), (7, 7), (7, 8)] {
        let batch = Batch { seq: BatchSeq(seq), acked: BatchSeq(acked), caller: None, ops: Vec::new() };
        assert_eq!(world.submit(id, &batch), Err(Refused::OutOfWindow), "nobody has a reply before it is sent");
    }
    assert_eq!(world.kv, before);
    let batch = Batch { seq: BatchSeq(5000), acked: BatchSeq(0), caller: None, ops: Vec::new() };
    assert_eq!(world.submit(id, &batch), Err(Refused::OutOfWindow));
    world.assert_sound();
}

/// Guards I4.
#[test]
fn a_number_is_not_used_again_after_its_inode_was_removed() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "a", NewInode::Regular);
    let unlink = Op::Unlink { parent: Ino::ROOT, name: b"a".to_vec(), released: Some(ino) };
    world.one(id, unlink).unwrap();
    assert_eq!(world.attr(ino), None);
    assert_eq!(world.one(id, create(Ino::ROOT, "b", ino, NewInode::Regular)), Err(FsError::Invalid));
    world.apply(Command::CloseSessions(vec![id]));
    let next = world.session();
    assert_eq!(world.one(next, create(Ino::ROOT, "b", ino, NewInode::Regular)), Err(FsError::Invalid));
    world.assert_sound();
}

/// Guards I4.
#[test]
fn a_number_of_a_creation_that_failed_may_be_used() {
    let mut world = World::new();
    let id = world.session();
    world.create(id, Ino::ROOT, "a", NewInode::Regular);
    let ino = world.number(id);
    assert_eq!(world.one(id, create(Ino::ROOT, "a", ino, NewInode::Regular)), Err(FsError::Exists));
    assert!(world.one(id, create(Ino::ROOT, "b", ino, NewInode::Regular)).is_ok());
}

/// Guards I4.
#[test]
fn the_record_of_used_numbers_goes_with_their_lease() {
    let mut world = World::new();
    let id = world.session();
    world.create(id, Ino::ROOT, "a", NewInode::Directory);
    let used = |world: &World| world.kv.0.keys().filter(|key| key[0] == b'U').count();
    assert_eq!(used(&world), 1);
    world.apply(Command::CloseSessions(vec![id]));
    assert_eq!(used(&world), 1, "a session that replaces it goes on with its numbers");
    for _ in 0..300 {
        let id = world.session();
        world.apply(Command::CloseSessions(vec![id]));
    }
    assert_eq!(used(&world), 0, "it was forgotten together with the ended session");
}

/// Guards I4.
#[test]
fn a_session_that_replaces_another_of_the_same_client_goes_on_with_its_numbers_and_nobody_else_does() {
    let mut world = World::new();
    let id = world.session();
    let used = world.create(id, Ino::ROOT, "a", NewInode::Regular);
    let unused = world.number(id);
    let stranger = world.resume(id, "another");
    assert_eq!(world.one(stranger, create(Ino::ROOT, "b", unused, NewInode::Regular)), Err(FsError::Invalid));
    let next = world.resume(id, "c");
    assert_eq!(world.one(next, create(Ino::ROOT, "b", used, NewInode::Regular)), Err(FsError::Invalid), "it was used");
    assert!(world.one(next, create(Ino::ROOT, "b", unused, NewInode::Regular)).is_ok());
    let late = batch(&mut world, id, &[(2, true)]);
    assert_eq!(world.submit(id, &late), Err(Refused::NoSession), "the old one has ended");
    world.assert_sound();
}

/// Guards I1.
#[test]
fn a_client_that_was_cut_off_learns_the_outcome_of_its_last_batches() {
    let mut world = World::new();
    let id = world.session();
    let applied = batch(&mut world, id, &[(1, true)]);
    let late = batch(&mut world, id, &[(2, true)]);
    let first = world.submit(id, &applied).unwrap();
    world.apply(Command::CloseSessions(vec![id]));
    let ended = world.kv.clone();
    assert_eq!(world.submit(id, &applied), Ok(first), "it was applied, and is not sent again in another session");
    assert_eq!(world.submit(id, &late), Err(Refused::NoSession), "it was not, and never will be");
    assert_eq!(world.kv, ended);
    world.assert_sound();
}

#[test]
fn replies_of_long_ended_sessions_are_forgotten() {
    let mut world = World::new();
    for _ in 0..600 {
        let id = world.session();
        let made = batch(&mut world, id, &[(1, true), (1, false)]);
        world.submit(id, &made).unwrap().unwrap();
        world.apply(Command::CloseSessions(vec![id]));
    }
    let before = world.kv.0.len();
    let id = world.session();
    let made = batch(&mut world, id, &[(1, true), (1, false)]);
    world.submit(id, &made).unwrap().unwrap();
    world.apply(Command::CloseSessions(vec![id]));
    assert_eq!(world.kv.0.len(), before, "one came, one went");
    world.assert_sound();
}

/// Guards I1.
#[test]
fn a_session_that_was_open_for_long_is_remembered_when_it_ends_though_many_came_and_went_meanwhile() {
    let mut world = World::new();
    let id = world.session();
    let applied = batch(&mut world, id, &[(1, true)]);
    let first = world.submit(id, &applied).unwrap();
    let unused = world.number(id);
    for _ in 0..300 {
        let other = world.session();
        world.apply(Command::CloseSessions(vec![other]));
    }
    world.apply(Command::CloseSessions(vec![id]));
    assert_eq!(world.submit(id, &applied), Ok(first));
    let next = world.resume(id, "c");
    assert!(world.one(next, create(Ino::ROOT, "b", unused, NewInode::Regular)).is_ok());
    world.assert_sound();
}

/// Guards I4.
#[test]
fn an_opening_that_is_asked_for_again_is_the_same_session_with_the_numbers_it_took_over() {
    let mut world = World::new();
    let id = world.session();
    let (one, two) = (world.number(id), world.number(id));
    let first = world.open_by("c", Some(id), Some(77));
    assert_eq!(world.open_by("c", Some(id), Some(77)), first);
    assert_ne!(world.open_by("another", None, Some(77)), first, "a token is a client's own");
    assert!(world.one(first, create(Ino::ROOT, "a", one, NewInode::Regular)).is_ok());
    world.apply(Command::CloseSessions(vec![first]));
    let again = world.open_by("c", Some(id), Some(77));
    assert_ne!(again, first, "that one has ended before its answer arrived");
    assert!(world.one(again, create(Ino::ROOT, "b", two, NewInode::Regular)).is_ok());
    world.assert_sound();
}

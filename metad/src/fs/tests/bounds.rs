//! What a malicious client may ask for: it is refused in the same way on every replica, or costs no more than it
//! should.

use super::*;
use crate::fs::blockref;
use crate::fs::session::{SESSIONS_PER_CLIENT_MAX, living};
use crate::fs::view::{Kv, KvExt};
use std::time::{Duration, Instant};
use wire::ids::BlockHash;
use wire::limits::{BATCH_OPS_MAX, HEAD_BYTES_MAX, JOURNALED_FILES_MAX};
use wire::op::XattrMode;

fn opening(client: &str, token: Option<u64>) -> Command {
    let (host, purpose, client) = ("h".to_owned(), "test".to_owned(), client.to_owned());
    Command::OpenSession(Opening { host, purpose, client, caches: false, resumes: None, token, confined: None })
}

fn assert_sound(world: &World) {
    assert_eq!(check::check(&world.kv), Vec::<String>::new());
}

#[test]
fn the_sessions_of_one_certificate_are_limited_and_leave_room_for_others() {
    let mut world = World::new();
    let ids: Vec<SessionId> = (0..SESSIONS_PER_CLIENT_MAX as u64)
        .map(|token| match world.apply(opening("greedy", Some(token))) {
            CommandReply::Session(id) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(world.apply(opening("greedy", Some(u64::MAX))), CommandReply::Stale);
    assert_eq!(world.apply(opening("greedy", Some(0))), CommandReply::Session(ids[0]), "asked again");
    assert!(matches!(world.apply(opening("other", None)), CommandReply::Session(_)));
    world.apply(Command::CloseSessions(vec![ids[0]]));
    assert!(matches!(world.apply(opening("greedy", Some(u64::MAX))), CommandReply::Session(_)));
    assert_eq!(living(&world.kv).len(), SESSIONS_PER_CLIENT_MAX + 1);
    assert_sound(&world);
}

#[test]
fn thousands_of_sessions_end_at_once_and_the_last_ones_are_remembered() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for client in ["a", "b", "c"] {
        for token in 0..1_000 {
            let CommandReply::Session(id) = world.apply(opening(client, Some(token))) else { panic!("refused") };
            ids.push(id);
        }
    }
    let started = Instant::now();
    for step in ids.chunks(16) {
        world.apply(Command::CloseSessions(step.to_vec()));
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(living(&world.kv).is_empty());
    assert_eq!(crate::fs::session::all_and_ended(&world.kv).len(), 3 * 256);
    assert_sound(&world);
}

#[test]
fn the_position_of_a_journal_does_not_grow_with_what_is_sent_of_it() {
    let mut world = World::new();
    let (id, journal) = (world.session(), JournalId(7));
    let file = |ino| JournaledFile { ino: Ino(ino), base: Version(u64::MAX), committed: true };
    let ops = (0..BATCH_OPS_MAX as u64).map(|ino| Op::JournaledContent { journal, file: file(ino) }).collect();
    world.run(id, ops).unwrap();
    match read::read(&world.kv, id, &Read::Journaled { journal }) {
        Ok(ReadReply::Journaled(Some(position))) => assert_eq!(position.files.len(), JOURNALED_FILES_MAX),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_removal_dated_back_does_not_shorten_the_grace_of_its_blocks() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let hash = BlockHash([3; 32]);
    let source = Source::block(hash, 10, 0);
    let commit = Op::Commit {
        ino: Ino(2000),
        base: Version(1),
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 0, len: 10, source }],
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    };
    world.one(id, commit).unwrap();
    let unlink = Op::Unlink { parent: Ino::ROOT, name: b"f".to_vec(), released: Some(Ino(2000)) };
    let long_ago = Timestamp { secs: i64::MIN, nanos: 0 };
    world.one(id, Op::Deferred { at: long_ago, expect: Vec::new(), op: Box::new(unlink) }).unwrap();
    let now_ms = world.clock as u64 * 1_000;
    assert!(blockref::next_unreferenced(&world.kv, &mut None, now_ms, 10).is_empty(), "it may still be referred to");
    assert_eq!(blockref::next_unreferenced(&world.kv, &mut None, now_ms + 1, 10), [hash]);
    assert_sound(&world);
}

#[test]
fn a_directory_is_not_moved_about_in_a_tree_without_end() {
    let mut world = World::new();
    let id = world.session();
    for _ in 0..2 {
        world.one(id, Op::LeaseInos { count: 4096 }).unwrap();
    }
    let mut parent = Ino::ROOT;
    for depth in 0..9_000 {
        let ino = 2_000 + depth;
        world.one(id, create(parent, "d", ino, NewInode::Directory)).unwrap();
        parent = Ino(ino);
    }
    world.one(id, create(Ino::ROOT, "moved", 1_999, NewInode::Directory)).unwrap();
    let into = |dir| Op::Rename {
        parent: Ino::ROOT,
        name: b"moved".to_vec(),
        new_parent: dir,
        new_name: b"here".to_vec(),
        mode: RenameMode::Replace,
        released: None,
        seen: None,
    };
    assert_eq!(world.one(id, into(parent)), Err(FsError::NameTooLong));
    world.one(id, into(Ino(2_100))).unwrap();
}

#[test]
fn a_conflict_copy_finds_a_name_among_many() {
    let mut world = World::new();
    let id = world.session();
    for number in 0..40 {
        let name = if number == 0 { "f.x".to_owned() } else { format!("f.x.{number}") };
        world.one(id, create(Ino::ROOT, &name, 2_000 + number, NewInode::Regular)).unwrap();
    }
    world.one(id, create(Ino::ROOT, "f", 3000, NewInode::Regular)).unwrap();
    world.one(id, write(Ino(3000), Version(1), 0, b"theirs", ConflictPolicy::Fail)).unwrap();
    let copy = ConflictPolicy::Copy { ino: Ino(3001), suffix: b".x".to_vec() };
    match world.one(id, write(Ino(3000), Version(1), 0, b"mine", copy)) {
        Ok(OpReply::Committed { conflict: Some(copy), .. }) => assert!(copy.name.starts_with(b"f.x."), "{copy:?}"),
        other => panic!("{other:?}"),
    }
    assert_sound(&world);
}

/// Guards I6.
#[test]
fn the_copy_of_a_file_with_very_many_extents_has_what_was_written_and_its_name_says_so() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let range = |off, action| Op::Range { ino: Ino(2000), off, len: 1 << 40, action };
    for terabyte in 0..16_u64 {
        world.one(id, range(terabyte << 40, RangeAction::Allocate { keep_size: false })).unwrap();
    }
    let base = world.attr(Ino(2000)).version;
    world.one(id, write(Ino(2000), base, 0, b"theirs", ConflictPolicy::Fail)).unwrap();
    let copy = |world: &mut World, ino: u64| {
        let policy = ConflictPolicy::Copy { ino: Ino(ino), suffix: b".x".to_vec() };
        match world.one(id, write(Ino(2000), base, 3, b"mine", policy)) {
            Ok(OpReply::Committed { conflict: Some(copy), .. }) => (copy.name, world.attr(copy.ino)),
            other => panic!("{other:?}"),
        }
    };
    let (name, attr) = copy(&mut world, 2001);
    assert_eq!((name, attr.size, attr.allocated), (b"f.x.part".to_vec(), 16_u64 << 40, 4));
    world.one(id, range(1 << 40, RangeAction::Punch)).unwrap();
    let (name, attr) = copy(&mut world, 2002);
    assert_eq!((name, attr.size, attr.allocated), (b"f.x".to_vec(), 16_u64 << 40, 15_u64 << 40));
    assert_sound(&world);
}

#[test]
fn one_operation_allocates_a_terabyte_and_no_more() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let allocate = |len| Op::Range { ino: Ino(2000), off: 0, len, action: RangeAction::Allocate { keep_size: false } };
    assert_eq!(world.one(id, allocate((1 << 40) + 1)), Err(FsError::TooLarge));
    world.one(id, allocate(1 << 40)).unwrap();
    let rest = Op::Range { ino: Ino(2000), off: 1 << 40, len: 1 << 40, action: RangeAction::Zero { keep_size: false } };
    world.one(id, rest).unwrap();
    assert_eq!(world.attr(Ino(2000)).allocated, 2 << 40);
}

#[test]
fn a_value_that_could_not_be_read_back_is_never_stored() {
    let kv = MemoryKv::default();
    let mut view = View::new(&kv);
    view.savepoint();
    view.store(vec![1], &vec![0_u8; HEAD_BYTES_MAX]);
    assert!(view.is_oversized() && view.get(&[1]).is_none());
    view.savepoint();
    view.store(vec![1], &vec![0_u8; HEAD_BYTES_MAX - 16]);
    assert!(!view.is_oversized());
    assert_eq!(view.load::<Vec<u8>>(&[1]).unwrap().len(), HEAD_BYTES_MAX - 16);
}

#[test]
fn work_without_end_is_noticed_even_if_nothing_changes() {
    let kv = MemoryKv((0..1_000_u32).map(|key| (key.to_be_bytes().to_vec(), Vec::new())).collect());
    let mut view = View::new(&kv);
    view.savepoint();
    let mut rounds = 0;
    while !view.is_exhausted() {
        view.scan(vec![0]..vec![255], &mut |_, _| true);
        rounds += 1;
        assert!(rounds < 10_000, "nobody counts");
    }
    view.savepoint();
    assert!(!view.is_exhausted());
}

/// Opens a session of this certificate.
fn session_of(world: &mut World, client: &str, token: u64) -> SessionId {
    let CommandReply::Session(id) = world.apply(opening(client, Some(token))) else { panic!("refused") };
    world.seqs.insert(id, 0);
    id
}

#[test]
fn no_client_makes_metad_forget_the_journals_of_others() {
    let mut world = World::new();
    let (honest, liar) = (session_of(&mut world, "honest", 1), session_of(&mut world, "liar", 2));
    let journaled = |journal| Op::Journaled { journal: JournalId(journal), position: Some(Default::default()) };
    world.one(honest, journaled(7)).unwrap();
    for batch in 0..4 {
        let first = u64::MAX - batch * BATCH_OPS_MAX as u64;
        world.run(liar, (0..BATCH_OPS_MAX as u64).map(|number| journaled(first - number)).collect()).unwrap();
    }
    let known = |world: &World, journal| match read::read(&world.kv, honest, &Read::Journaled { journal }) {
        Ok(ReadReply::Journaled(position)) => position.is_some(),
        other => panic!("{other:?}"),
    };
    assert!(known(&world, JournalId(7)));
    let left = world.kv.pairs(super::super::journal_keys::journals_of("liar"), usize::MAX).len();
    assert_eq!(left, 1024);
    // A client cannot forget the journals of others, either.
    world.one(liar, Op::Journaled { journal: JournalId(7), position: None }).unwrap();
    assert!(known(&world, JournalId(7)));
    world.one(honest, Op::Journaled { journal: JournalId(7), position: None }).unwrap();
    assert!(!known(&world, JournalId(7)));
    assert_sound(&world);
}

/// I1.
#[test]
fn an_ended_session_is_remembered_whatever_number_of_sessions_others_open() {
    let mut world = World::new();
    let honest = session_of(&mut world, "honest", 1);
    let batch = Batch { seq: BatchSeq(1), acked: BatchSeq(0), caller: None, ops: vec![Op::LeaseInos { count: 5 }] };
    let first = world.submit(honest, &batch).unwrap();
    world.apply(Command::CloseSessions(vec![honest]));
    for token in 0..600 {
        let id = session_of(&mut world, "liar", 1000 + token);
        world.apply(Command::CloseSessions(vec![id]));
    }
    assert_eq!(world.submit(honest, &batch), Ok(first));
    assert_sound(&world);
}

#[test]
fn a_session_that_takes_over_again_and_again_has_no_more_inode_numbers_than_another() {
    let mut world = World::new();
    let mut last = None;
    for round in 0..4 {
        let (host, purpose, client) = ("h".to_owned(), "test".to_owned(), "liar".to_owned());
        let opening =
            Opening { host, purpose, client, caches: false, resumes: last, token: Some(round), confined: None };
        let CommandReply::Session(id) = world.apply(Command::OpenSession(opening)) else { panic!("refused") };
        world.seqs.insert(id, 0);
        for _ in 0..16 {
            world.one(id, Op::LeaseInos { count: 1 }).unwrap();
        }
        last = Some(id);
    }
    let found = crate::fs::session::find(&world.kv, last.unwrap()).unwrap();
    assert_eq!(found.inos.len(), 16);
    let opening = Opening { resumes: last, token: None, ..found.opening };
    let CommandReply::Session(id) = world.apply(Command::OpenSession(opening)) else { panic!("refused") };
    assert_eq!(crate::fs::session::find(&world.kv, id).unwrap().inos, found.inos);
    assert_sound(&world);
}

/// Returns operations that cut a file of a terabyte, and then a byte of it again and again.
fn cuts(world: &mut World, id: SessionId) -> Vec<Op> {
    world.one(id, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let allocate =
        Op::Range { ino: Ino(2000), off: 0, len: 1 << 40, action: RangeAction::Allocate { keep_size: false } };
    world.one(id, allocate).unwrap();
    let punch = |off, len| Op::Range { ino: Ino(2000), off, len, action: RangeAction::Punch };
    let again = (2..BATCH_OPS_MAX as u64).map(|number| punch((1 << 40) - number, 1));
    [punch(0, 1 << 40)].into_iter().chain(again).collect()
}

#[test]
fn the_position_of_a_journal_is_not_refused_after_an_operation_that_exhausts_its_batch() {
    let mut world = World::new();
    let id = world.session();
    let mut ops = cuts(&mut world, id);
    let refused = world.run(id, ops.clone()).expect_err("it is too much").index;
    ops.truncate(refused as usize);
    ops.push(Op::Journaled { journal: JournalId(7), position: Some(Default::default()) });
    assert!(world.run(id, ops).is_ok());
}

/// Each cut looks for the last extent before a place, and steps over all that the first one has removed.
#[test]
fn cutting_again_and_again_what_was_cut_in_the_same_batch_is_refused() {
    let mut world = World::new();
    let id = world.session();
    let ops = cuts(&mut world, id);
    let started = Instant::now();
    assert_eq!(world.run(id, ops).map_err(|failed| failed.error), Err(FsError::ArgumentTooLarge));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn attributes_of_one_inode_have_a_bound_together() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let set = |number: u32, len| Op::SetXattr {
        ino: Ino(2000),
        name: format!("user.{number}").into_bytes(),
        value: vec![0; len],
        mode: XattrMode::Set,
        clear_sgid: false,
    };
    for number in 0..15 {
        world.one(id, set(number, 64 << 10)).unwrap();
    }
    assert_eq!(world.one(id, set(15, 64 << 10)), Err(FsError::NoSpace));
    world.one(id, set(15, 32 << 10)).unwrap();
    assert_eq!(world.one(id, set(15, 64 << 10)), Err(FsError::NoSpace), "nor by growing");
    world.one(id, set(3, 10)).unwrap();
    world.one(id, set(15, 64 << 10)).unwrap();
    world.one(id, Op::Unlink { parent: Ino::ROOT, name: b"f".to_vec(), released: Some(Ino(2000)) }).unwrap();
    assert_sound(&world);
    assert!(!world.kv.any(crate::fs::keys::xattrs(Ino(2000))));
}

#[test]
fn keys_that_an_entry_has_removed_count_as_work_wherever_a_scan_steps_over_them() {
    let pair = |key: u32| (key.to_be_bytes().to_vec(), Vec::new());
    let rules = (crate::fs::keys::RULES.to_vec(), wire::codec::encode(&crate::fs::rules::KNOWN));
    let kv = MemoryKv((0..20_000).map(pair).chain([rules]).collect());
    let at = |key: u32| key.to_be_bytes().to_vec();
    let mut view = View::new(&kv);
    view.begin_entry();
    view.savepoint();
    kv.0.keys().take(20_000).for_each(|key| view.delete(key.clone()));
    view.rollback();
    assert!(view.any(at(0)..at(30_000)) && !view.is_exhausted(), "what was taken back is not stepped over");
    kv.0.keys().take(20_000).for_each(|key| view.delete(key.clone()));
    // Another batch of the same entry.
    view.savepoint();
    let mut rounds = 0;
    while !view.is_exhausted() {
        assert!(!view.any(at(0)..at(30_000)));
        rounds += 1;
        assert!(rounds < 1_000, "nobody counts");
    }
    assert!(rounds > 100 && view.is_entry_full(), "{rounds}");
    view.begin_entry();
    for _ in 0..100 {
        assert!(!view.any(at(0)..at(30_000)));
    }
    assert_eq!(view.last(at(0)..at(200)), None);
    assert!(!view.is_exhausted() && !view.is_entry_full(), "what other entries have removed is no work of this one");
}

#[test]
fn an_entry_that_has_done_as_much_as_it_may_refuses_the_batches_behind_and_they_may_be_sent_again() {
    let mut world = World::new();
    let (greedy, honest) = (world.session(), world.session());
    world.one(greedy, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let set = |name: String, len| Op::SetXattr {
        ino: Ino(2000),
        name: name.into_bytes(),
        value: vec![0; len],
        mode: XattrMode::Set,
        clear_sgid: false,
    };
    for number in 0..15 {
        world.one(greedy, set(format!("user.{number}"), 64 << 10)).unwrap();
    }
    let next = |world: &World, id: SessionId, further: u64, ops| {
        let seq = world.seqs[&id] + further;
        Batch { seq: BatchSeq(seq), acked: BatchSeq(world.seqs[&id]), caller: None, ops }
    };
    // Each looks at all of these attributes.
    let much = || (0..300).map(|_| set("user.small".to_owned(), 1)).collect::<Vec<_>>();
    let late = next(&world, honest, 1, vec![create(Ino::ROOT, "late", 5120, NewInode::Regular)]);
    let mut batches: Vec<_> = (1..=3).map(|further| (greedy, next(&world, greedy, further, much()))).collect();
    batches.push((honest, late.clone()));
    let before = world.kv.clone();
    let CommandReply::Batches(outcomes) = world.apply(Command::Batches(batches.clone())) else { panic!("no outcomes") };
    assert!(matches!(outcomes[..], [Ok(Ok(_)), Ok(Ok(_)), Err(Refused::EntryFull), Err(Refused::EntryFull)]));
    assert_eq!(world.lookup(Ino::ROOT, "late"), Err(FsError::NotFound));
    assert_sound(&world);

    // Elsewhere it is applied together with other entries.
    let mut view = View::new(&before);
    let at = |secs| Timestamp { secs, nanos: 0 };
    let mark = Command::Mark(wire::message::check::CheckId(1));
    apply(&mut view, &Stamped { now: at(world.clock), command: mark.clone() });
    let same = apply(&mut view, &Stamped { now: at(world.clock), command: Command::Batches(batches) });
    assert_eq!(same, CommandReply::Batches(outcomes));
    apply(&mut view, &Stamped { now: at(world.clock), command: mark });
    let mut elsewhere = before.clone();
    elsewhere.absorb(view.into_changes());
    assert!(elsewhere == world.kv);

    assert!(matches!(world.submit(honest, &late), Ok(Ok(_))));
    world.lookup(Ino::ROOT, "late").unwrap();
}

#[test]
fn one_write_replaces_no_more_extents_than_an_operation_may_touch() {
    let mut world = World::new();
    let id = world.session();
    world.one(id, create(Ino::ROOT, "f", 2000, NewInode::Regular)).unwrap();
    let range = |off, len, action| Op::Range { ino: Ino(2000), off, len, action };
    for terabyte in 0..16_u64 {
        let action = RangeAction::Allocate { keep_size: false };
        world.one(id, range(terabyte << 40, 1 << 40, action)).unwrap();
    }
    let zeros = |world: &World, len| Op::Commit {
        ino: Ino(2000),
        base: world.attr(Ino(2000)).version,
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 0, len, source: Source::Zero }],
        append_from: None,
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    };
    // Splits an extent.
    world.one(id, range(1 << 20, 10, RangeAction::Punch)).unwrap();
    let all = zeros(&world, 16 << 40);
    let before = world.attr(Ino(2000));
    assert_eq!(world.one(id, all), Err(FsError::TooLarge));
    assert_eq!(world.attr(Ino(2000)), before);
    let part = zeros(&world, 1 << 40);
    world.one(id, part).unwrap();
    assert_sound(&world);
}

//! The state after a recovery.

use super::*;
use crate::fs::recovery::{self, Jump};
use crate::fs::session;
use crate::fs::view::KvExt;
use crate::fs::{journal_keys, tickets, trust};
use wire::ids::BlockHash;
use wire::message::admin::DeletionStop;
use wire::op::{Lock, LockFamily};
use wire::ticket::TicketKey;

const NOW: Timestamp = Timestamp { secs: 1_700_000_000, nanos: 0 };

/// Returns the state as a backup would hold it.
fn exported(kv: &MemoryKv) -> MemoryKv {
    let export = |(key, value): (&Vec<u8>, &Vec<u8>)| Some((key.clone(), recovery::exported(key, value.clone())?));
    MemoryKv(kv.0.iter().filter_map(export).collect())
}

/// Takes a step of a recovery.
fn change<T>(kv: &mut MemoryKv, step: impl FnOnce(&mut View) -> T) -> T {
    let before = kv.clone();
    let mut view = View::new(&before);
    let done = step(&mut view);
    kv.absorb(view.into_changes());
    done
}

fn recover(kv: &mut MemoryKv, now: Timestamp) {
    let jump = Jump::at(now).unwrap();
    while change(kv, |view| recovery::end_sessions(view, now, 1)) > 0 {}
    while change(kv, |view| recovery::release_remains(view, now)) > 0 {}
    while change(kv, |view| recovery::drop_orphans(view, now, 1)) > 0 {}
    for range in recovery::versioned() {
        let mut after = None;
        while change(kv, |view| recovery::shift_versions(view, jump, &range, &mut after, 2).unwrap()) > 0 {}
    }
    let stop = DeletionStop { reason: "test".to_owned(), since: now };
    change(kv, |view| recovery::begin_anew(view, jump, &stop).unwrap());
}

/// Makes a world with files, one of them removed while open, locks, journals and sessions. Also returns its session.
fn lived_in() -> (World, SessionId) {
    let mut world = World::new();
    let id = world.session();
    world.session();
    world.run(id, vec![create(Ino::ROOT, "kept", 1024, NewInode::Regular)]).unwrap();
    world.run(id, vec![create(Ino::ROOT, "open", 1025, NewInode::Regular)]).unwrap();
    world.run(id, vec![write(Ino(1024), Version(1), 0, b"kept", ConflictPolicy::Fail)]).unwrap();
    let mut commit = write(Ino(1025), Version(1), 0, b"", ConflictPolicy::Fail);
    let Op::Commit { writes, .. } = &mut commit else { panic!("it is a commit") };
    let source = Source::block(BlockHash([3; 32]), 9, 0);
    *writes = vec![ExtentWrite { file_off: 0, len: 9, source }];
    world.run(id, vec![commit]).unwrap();
    let lock = Lock { family: LockFamily::Posix, owner: 1, pid: 1, start: 0, end: 10, exclusive: true };
    world.run(id, vec![Op::SetLock { ino: Ino(1024), lock }]).unwrap();
    let file = JournaledFile { ino: Ino(1024), base: world.attr(Ino(1024)).version, committed: false };
    let position = JournalPosition { acknowledged: 5, left: 0, files: vec![file] };
    world.run(id, vec![Op::Journaled { journal: JournalId(7), position: Some(position) }]).unwrap();
    world.run(id, vec![Op::Unlink { parent: Ino::ROOT, name: "open".into(), released: None }]).unwrap();
    assert_eq!(session::all(&world.kv).len(), 2);
    (world, id)
}

/// Guards I4 and I6.
#[test]
fn a_recovered_state_is_whole_and_gives_out_nothing_a_second_time() {
    let (world, id) = lived_in();
    let version = world.attr(Ino(1024)).version;
    for from in [exported(&world.kv), world.kv.clone()] {
        let mut world = World { kv: from, clock: NOW.secs, seqs: world.seqs.clone() };
        recover(&mut world.kv, NOW);
        assert_eq!(check::check(&world.kv), Vec::<String>::new());
        assert!(session::all(&world.kv).is_empty());
        assert_eq!(world.bytes(Ino(1024)), b"kept");
        assert_eq!(world.lookup(Ino::ROOT, "open"), Err(FsError::NotFound));
        assert!(read::read(&world.kv, id, &Read::GetAttr { ino: Ino(1025) }).is_err(), "its last session has ended");
        let jumped = world.attr(Ino(1024)).version;
        assert!(jumped > Version(version.0 + (1 << 40)), "{jumped}");
        let position: JournalPosition = world.kv.load(&journal_keys::journal(JournalId(7))).unwrap();
        assert_eq!((position.acknowledged, position.files[0].base), (5, jumped), "the rest is based on what is there");
        let layout = settings::layout(&world.kv);
        assert!(layout.epoch.0 > 1 << 40 && layout.placement == layout.epoch);
        assert_eq!(trust::version(&world.kv), NOW.secs as u64, "nodes may have followed steps of the lost time");

        let new = world.session();
        assert_ne!(new, id);
        let taken = world.run(new, vec![create(Ino::ROOT, "new", 1026, NewInode::Regular)]);
        assert_eq!(taken.unwrap_err().error, FsError::Invalid, "the number may have been used since");
        // A client that saw a version of the lost time has not seen what is there now.
        for lost in [version, Version(version.0 + 3)] {
            let commit = write(Ino(1024), lost, 0, b"lost", ConflictPolicy::Fail);
            assert_eq!(world.one(new, commit).unwrap_err(), FsError::Stale);
        }
        world.one(new, write(Ino(1024), jumped, 0, b"next", ConflictPolicy::Fail)).unwrap();
        assert_eq!(check::check(&world.kv), Vec::<String>::new());
    }
}

#[test]
fn no_secret_of_a_client_is_in_a_backup() {
    let (mut world, id) = lived_in();
    world.apply(Command::AddTicketKey(TicketKey::make(1, Timestamp::default())));
    assert!(tickets::keys(&world.kv).knows(1));
    let exported = exported(&world.kv);
    assert!(!exported.0.contains_key(&tickets::key()));
    let has = |kv: &MemoryKv, table: u8| kv.0.keys().any(|key| key[0] == table);
    for table in *b"SAYUQKJ" {
        assert!(has(&world.kv, table) && !has(&exported, table), "{}", char::from(table));
    }
    for table in *b"IDEBOPGC" {
        assert!(has(&exported, table), "{}", char::from(table));
    }
    let number = id.0.to_be_bytes();
    assert!(!exported.0.keys().any(|key| key.windows(8).any(|part| part == number)));
    let coded = wire::codec::encode(&id);
    assert!(!exported.0.values().any(|value| value.windows(coded.len() - 1).any(|part| part == &coded[1..])));
}

#[test]
fn two_recoveries_from_one_state_give_out_different_numbers() {
    let (world, _) = lived_in();
    let recovered = |now: Timestamp| {
        let mut kv = exported(&world.kv);
        recover(&mut kv, now);
        let world = World { kv, clock: now.secs, seqs: BTreeMap::new() };
        (world.attr(Ino(1024)).version, settings::layout(&world.kv).epoch, settings::next_ino(&world.kv))
    };
    let (first, second) = (recovered(NOW), recovered(Timestamp { secs: NOW.secs + 1, nanos: 0 }));
    assert!(
        second.0.0 - first.0.0 >= 1 << 24 && second.1.0 - first.1.0 >= 1 << 24 && second.2.0 - first.2.0 >= 1 << 24
    );
    // A backup of a recovered cluster is recovered like any other.
    let mut kv = exported(&world.kv);
    recover(&mut kv, NOW);
    let once = settings::layout(&kv).epoch;
    recover(&mut kv, NOW);
    assert!(settings::layout(&kv).epoch > once, "the clock has stood still");
    assert!(
        Jump::at(Timestamp { secs: 0, nanos: 0 }).is_none() && Jump::at(Timestamp { secs: -5, nanos: 0 }).is_none()
    );
}

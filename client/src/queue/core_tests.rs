use super::*;
use wire::op::{NewInode, RenameMode};

const DIR: Ino = Ino(1);

fn enter(core: &mut Core<()>, op: Op, ino: u64, now: Instant) -> bool {
    let touched = (vec![Ino(ino)], vec![(DIR, vec![ino as u8])]);
    core.enter(Timestamp::default(), touched, Work::Change { op, expect: Vec::new() }, 0, now)
}

fn create(parent: Ino, ino: u64) -> Op {
    let node = NewInode::Regular;
    Op::Create { parent, name: vec![ino as u8], ino: Ino(ino), node, mode: 0, umask: 0, uid: 0, gid: 0 }
}

#[test]
fn an_entry_waits_a_moment_unless_somebody_waits_or_many_are_there() {
    let (mut core, now) = (Core::default(), Instant::now());
    assert_eq!(core.due(), Due::Never);
    assert!(enter(&mut core, create(DIR, 7), 7, now), "the sender sleeps");
    assert!(!enter(&mut core, create(DIR, 8), 8, now + SEND_DELAY));
    assert_eq!(core.due(), Due::At(now + SEND_DELAY));
    core.hurry(2);
    assert_eq!(core.due(), Due::Now);
    core.pop(1);
    core.pop(2);
    assert_eq!((core.due(), core.acknowledged(), core.tail()), (Due::Never, 2, None));
    for ino in 0..SEND_ENTRIES as u64 {
        enter(&mut core, create(DIR, ino), ino, now);
    }
    assert_eq!(core.due(), Due::Now);
}

#[test]
fn inodes_made_below_another_are_looked_for_with_it() {
    let (mut core, now) = (Core::default(), Instant::now());
    enter(&mut core, create(Ino(5), 6), 6, now);
    enter(&mut core, create(Ino(6), 7), 7, now);
    enter(&mut core, create(Ino(8), 9), 9, now);
    assert_eq!(core.with_made_in(vec![Ino(5)]), [Ino(5), Ino(6), Ino(7)]);
    assert_eq!(core.tail_on(&[Ino(7)]), Some(2));
    assert_eq!(core.tail_on(&[Ino(70)]), None);
    core.be_strict(true);
    assert_eq!(core.tail_on(&[Ino(7)]), None, "nobody waits for what is replayed");
}

#[test]
fn a_file_that_cannot_be_stored_replaces_nothing() {
    let (mut core, now) = (Core::<()>::default(), Instant::now());
    let (name, new_name) = (b"new".to_vec(), b"old".to_vec());
    let mode = RenameMode::Replace;
    let op = Op::Rename { parent: DIR, name, new_parent: DIR, new_name, mode, released: None, seen: None };
    let leads = |name: &[u8], ino| Expect { parent: DIR, name: name.to_vec(), ino: Some(Ino(ino)), version: None };
    let expect = vec![leads(b"new", 7), leads(b"old", 8)];
    core.enter(Timestamp::default(), (vec![Ino(7)], Vec::new()), Work::Change { op, expect }, 0, now);
    assert!(core.undo_replacing(Ino(8), FsError::NoSpace, now).is_empty());
    assert_eq!(core.undo_replacing(Ino(7), FsError::NoSpace, now).len(), 1);
    assert_eq!(core.undone(), [1]);
    assert_eq!(core.losses_reported(now), 0, "a handle that is opened now gets it reported");
    assert_eq!(core.losses_reported(now + LOSS_REPORTED_FOR), 1);
    assert_eq!(core.report_loss(), Err(FsError::NoSpace));
    assert_eq!(core.losses_reported(now), 1, "it is reported already");
    core.pop(1);
    assert!(core.undone().is_empty(), "metad was never sent it");
}

#[test]
fn content_that_waits_for_the_journal_holds_up_what_follows() {
    let (mut core, now) = (Core::default(), Instant::now());
    core.enter(Timestamp::default(), (vec![Ino(7)], Vec::new()), Work::Content { file: (), upto: 1 }, 0, now);
    let later = now + CONTENT_WAIT_MAX * 2;
    assert!(core.has_room(later), "there is no journal");
    core.note_journal_works(true);
    assert!(core.has_room(now) && !core.has_room(later));
    assert_eq!(core.unjournaled_since(), Some(now));
    core.note_journaled(1);
    assert!(core.has_room(later) && core.unjournaled_since().is_none());
}

#[test]
fn an_entry_that_nobody_could_precede_is_sent_again_without_the_expected_version() {
    let (mut core, now) = (Core::<()>::default(), Instant::now());
    let expect = vec![Expect { parent: DIR, name: b"f".to_vec(), ino: Some(Ino(7)), version: Some(Version(3)) }];
    let op = Op::Unlink { parent: DIR, name: b"f".to_vec(), released: None };
    core.enter(Timestamp::default(), (Vec::new(), Vec::new()), Work::Change { op, expect }, 2, now);
    assert!(!core.is_in_time(1, 3, now), "leases have lapsed since");
    assert!(!core.is_in_time(1, 2, now + METAD_WAIT_MIN), "metad has not waited");
    assert!(core.is_in_time(1, 2, now));
    assert!(!core.is_in_time(1, 2, now), "the second refusal is meant");
}

/// Guards I6: content that was not committed when its file was removed makes a version that the removal expects.
#[test]
fn a_removal_of_uncommitted_content_expects_the_version_that_its_commit_makes() {
    let (mut core, now) = (Core::<()>::default(), Instant::now());
    let remove = |core: &mut Core<()>, ino, version| {
        let (name, released) = (b"f".to_vec(), Some(Ino(ino)));
        let expect = vec![Expect { parent: DIR, name: name.clone(), ino: released, version }];
        let op = Op::Unlink { parent: DIR, name, released };
        core.enter(Timestamp::default(), (vec![Ino(ino)], Vec::new()), Work::Change { op, expect }, 0, now);
    };
    remove(&mut core, 7, None);
    remove(&mut core, 8, Some(Version(5)));
    for ino in [7, 8, 9] {
        core.note_content(Ino(ino), Version(3));
    }
    assert_eq!([7, 8, 9].map(|ino| core.content_before(Ino(ino))), [Some(Version(3)), None, None]);
    assert!(!core.is_in_time(1, 1, now), "others went on meanwhile");
    assert!(core.is_in_time(1, 0, now), "it is sent once more, whatever the version is");
    assert!(core.content_before(Ino(7)).is_none() && !core.is_in_time(1, 0, now));
    remove(&mut core, 9, None);
    core.note_content(Ino(9), Version(3));
    (1..=3).for_each(|number| core.pop(number));
    assert_eq!(core.content_before(Ino(9)), None);
}

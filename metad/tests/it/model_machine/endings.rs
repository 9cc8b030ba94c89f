//! The end of sessions that hold very much: one entry ends them, and bounded ones remove what they leave.

use super::world::{World, config, create};
use metad::fs::view::{MemoryKv, View};
use metad::fs::{Command, Stamped, apply, check, keys, remains, rules, session};
use proptest::prelude::*;
use wire::codec;
use wire::ids::{BatchSeq, Ino, RulesVersion, SessionId};
use wire::op::{Batch, Lock, LockFamily, NewInode, Op};

/// Keys that one entry changes at most here: those of a step, and those that belong to the last file or session of it.
pub(super) const ENTRY_CHANGES_MAX: usize = 1024 + 512;

fn lock(ino: Ino, start: u64) -> Op {
    let family = LockFamily::Posix;
    Op::SetLock { ino, lock: Lock { family, owner: 1, pid: 1, start, end: start + 10, exclusive: true } }
}

/// Applies commands in groups, each with one write. Returns how many keys a group changed at most.
pub(super) fn replay(kv: &mut MemoryKv, commands: &[Stamped], group: usize) -> usize {
    let mut most = 0;
    for commands in commands.chunks(group) {
        let mut view = View::new(kv);
        for command in commands {
            apply(&mut view, command);
        }
        most = most.max(view.changes_count());
        let changes = view.into_changes();
        kv.absorb(changes);
    }
    most
}

/// A file of which one or two sessions have something, by bits: the first has locked it, the second has locked it, it is
/// removed, the second has no handle on it.
#[derive(Clone, Copy, Debug)]
struct Held(u8);

impl Held {
    fn has(self, bit: u8) -> bool {
        self.0 & (1 << bit) != 0
    }
}

/// Makes files, of which the two sessions have what is said.
fn make(world: &mut World, (first, second): (SessionId, SessionId), held: &[Held]) -> Vec<Ino> {
    let inos: Vec<Ino> = held.iter().map(|_| world.number(first)).collect();
    let all = || inos.iter().copied().zip(held.iter().copied());
    let name = |ino: Ino| format!("f{ino}");
    let run = |world: &mut World, id, ops: Vec<Op>| world.run(id, ops).unwrap();
    run(world, first, inos.iter().map(|ino| create(Ino::ROOT, &name(*ino), *ino, NewInode::Regular)).collect());
    run(world, first, all().filter(|(_, held)| held.has(0)).map(|(ino, _)| lock(ino, 0)).collect());
    run(world, second, all().filter(|(_, held)| held.has(1)).map(|(ino, _)| lock(ino, 10)).collect());
    let removed = || all().filter(|(_, held)| held.has(2));
    let unlink = |ino| Op::Unlink { parent: Ino::ROOT, name: name(ino).into_bytes(), released: None };
    run(world, second, removed().map(|(ino, _)| unlink(ino)).collect());
    let inos_released = removed().filter(|(_, held)| held.has(3)).map(|(ino, _)| ino).collect();
    run(world, second, vec![Op::ReleaseOrphans { inos: inos_released }]);
    inos
}

#[test]
fn a_session_that_holds_very_much_ends_at_once_and_is_taken_apart_in_bounded_entries() {
    let mut world = World::new();
    let (first, second) = (world.session(), world.session());
    let bits = |number: u32| if number.is_multiple_of(2) { 0b0001 } else { 0b1101 };
    let held: Vec<Held> = (0..1_200).map(|number| Held(bits(number))).collect();
    let inos = make(&mut world, (first, second), &held);
    let (kv, begun) = (world.kv.clone(), world.log.len());
    let mut locked = inos.iter().step_by(2).rev();
    world.apply(Command::CloseSessions(vec![first]));
    let mut rounds = 0;
    while remains::are_left(&world.kv) {
        assert!(session::find(&world.kv, first).is_none(), "it does not seem to live");
        let ino = *locked.next().expect("few rounds");
        world.one(second, lock(ino, 0)).expect("what the session has locked stands in nobody's way");
        world.apply(Command::Reap);
        world.assert_sound();
        rounds += 1;
    }
    assert!((4..=20).contains(&rounds), "{rounds}");
    let of_first = |key: &[u8]| matches!(key[0], b'J' | b'Q') && keys::first(key) == first.0;
    assert!(!world.kv.0.keys().any(|key| of_first(key)));
    assert_eq!(inos.iter().filter(|ino| world.attr(**ino).is_some()).count(), 600, "nobody has the others open");
    let most = replay(&mut kv.clone(), &world.log[begun..], 1);
    assert!(most <= ENTRY_CHANGES_MAX, "{most}");
}

/// Guards I1 and I4.
#[test]
fn sessions_with_many_replies_are_forgotten_in_bounded_entries() {
    let mut world = World::new();
    let many = |world: &mut World, count| (0..count).map(|_| world.session()).collect::<Vec<_>>();
    let heavy = many(&mut world, 16);
    for id in &heavy {
        for seq in 2..=1_000 {
            let batch = Batch { seq: BatchSeq(seq), acked: BatchSeq(0), caller: None, ops: Vec::new() };
            world.submit(*id, &batch).unwrap().unwrap();
        }
    }
    world.apply(Command::CloseSessions(heavy.clone()));
    let replies = |world: &World| world.kv.0.keys().filter(|key| key[0] == b'Y').count();
    assert_eq!(replies(&world), 16_000, "they are kept while others end");
    for _ in 0..15 {
        let light = many(&mut world, 16);
        world.apply(Command::CloseSessions(light));
    }
    let last = many(&mut world, 16);
    let (kv, begun) = (world.kv.clone(), world.log.len());
    world.apply(Command::CloseSessions(last));
    let batch = Batch { seq: BatchSeq(1_000), acked: BatchSeq(0), caller: None, ops: Vec::new() };
    for id in &heavy {
        assert!(session::find_or_ended(&world.kv, *id).is_none());
        assert!(world.submit(*id, &batch).is_err(), "a session is forgotten with all of its replies, or with none");
    }
    assert!(replies(&world) > 10_000);
    while remains::are_left(&world.kv) {
        world.apply(Command::Reap);
        world.assert_sound();
    }
    assert_eq!(replies(&world), 256, "those of the sessions that were forgotten are gone");
    let most = replay(&mut kv.clone(), &world.log[begun..], 1);
    assert!(most <= ENTRY_CHANGES_MAX, "{most}");
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn what_a_session_leaves_is_removed_in_steps_as_it_would_be_at_once(
        held in proptest::collection::vec((0_u8..16).prop_map(Held), 1..400),
        group in 2_usize..6,
    ) {
        let mut world = World::new();
        let (first, second) = (world.session(), world.session());
        make(&mut world, (first, second), &held);
        let before = world.kv.clone();
        let begun = world.log.len();
        world.apply(Command::CloseSessions(vec![first]));
        while remains::are_left(&world.kv) {
            // A check reads any state between two steps.
            world.assert_sound();
            world.apply(Command::Reap);
        }
        world.assert_sound();

        let mut grouped = before.clone();
        replay(&mut grouped, &world.log[begun..], group);
        prop_assert!(grouped == world.kv, "the same, whatever is applied together");

        // Under the first rules a session ends with all that it has.
        let mut at_once = before;
        at_once.0.insert(keys::RULES.to_vec(), codec::encode(&RulesVersion(1)));
        replay(&mut at_once, &world.log[begun..=begun], 1);
        prop_assert!(!remains::are_left(&at_once));
        at_once.0.insert(keys::RULES.to_vec(), codec::encode(&rules::KNOWN));
        prop_assert!(at_once == world.kv, "as if it had been removed at once");
        prop_assert_eq!(check::check(&at_once), Vec::<String>::new());
    }
}

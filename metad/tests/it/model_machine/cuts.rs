//! Cuts of very many extents: they are hidden in one entry, and removed in bounded ones.

use super::endings::{ENTRY_CHANGES_MAX, replay};
use super::world::{World, commit, config};
use metad::fs::view::MemoryKv;
use metad::fs::{Command, check, hidden, keys, orphan, read, rules};
use proptest::prelude::*;
use wire::attr::{AttrChange, InodeAttr};
use wire::codec;
use wire::extent::Source;
use wire::ids::{Ino, RulesVersion, SessionId};
use wire::limits::CHUNK_BYTES;
use wire::op::{ConflictPolicy, NewInode, Op, RangeAction, Read, ReadReply};

/// An extent for each chunk: more than are cut at once.
const CHUNKS: u64 = 32_768;
/// Chunks in which something happens.
const PLACES: [u64; 8] = [0, 1, 5_000, 9_999, 10_000, 20_000, 32_000, CHUNKS - 1];

fn truncate(ino: Ino, size: u64) -> Op {
    Op::SetAttr { ino, change: AttrChange { size: Some(size), ..AttrChange::default() } }
}

fn range(ino: Ino, off: u64, len: u64, action: RangeAction) -> Op {
    Op::Range { ino, off, len, action }
}

/// A terabyte from a place on.
fn allocate(ino: Ino, chunk: u64) -> Op {
    range(ino, chunk * CHUNK_BYTES, 1 << 40, RangeAction::Allocate { keep_size: true })
}

/// Returns a world with a huge file.
fn huge() -> (World, SessionId, Ino) {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
    world.one(id, truncate(ino, CHUNKS * CHUNK_BYTES)).unwrap();
    for half in 0..2 {
        world.one(id, allocate(ino, half * CHUNKS / 2)).unwrap();
    }
    (world, id, ino)
}

/// Removes what is cut off, and settles. Returns how many steps that took.
fn finish(world: &mut World) -> usize {
    let mut steps = 0;
    while !hidden::unfinished(&world.kv, 1).is_empty() {
        world.apply(Command::Reap);
        steps += 1;
    }
    let finished = hidden::finished(&world.kv, 10);
    world.apply(Command::SettleCuts(finished));
    assert!(!world.kv.0.keys().any(|key| key[0] == b'h'));
    steps
}

fn extents(world: &World) -> usize {
    world.kv.0.keys().filter(|key| key[0] == b'E').count()
}

#[test]
fn truncating_a_huge_file_is_a_small_entry_and_what_is_cut_goes_in_bounded_ones() {
    let (mut world, id, ino) = huge();
    let (kv, begun) = (world.kv.clone(), world.log.len());
    world.one(id, truncate(ino, 7)).unwrap();
    world.assert_sound();
    let attr = world.attr(ino).unwrap();
    assert_eq!(attr.size, 7);
    assert!(attr.allocated > 1 << 40, "it is deducted when all of it is removed");
    assert_eq!(extents(&world), CHUNKS as usize);
    // It grows again: what was cut off does not come back.
    world.one(id, truncate(ino, 1 << 30)).unwrap();
    let base = world.version(ino);
    world.one(id, commit(ino, base, 100, 5, Source::Inline(vec![9; 5]), ConflictPolicy::Fail)).unwrap();
    let page = read::read(&world.kv, id, &Read::Extents { ino, off: 0, len: 1 << 30 });
    let Ok(ReadReply::Extents(page)) = page else { panic!("{page:?}") };
    let seen: Vec<(u64, u64)> = page.extents.iter().map(|extent| (extent.file_off, extent.len)).collect();
    assert_eq!(seen, [(0, 7), (100, 5)]);
    let steps = finish(&mut world);
    assert!(steps > 20, "{steps}");
    world.assert_sound();
    assert_eq!((extents(&world), world.attr(ino).unwrap().allocated), (2, 12));
    let most = replay(&mut kv.clone(), &world.log[begun..], 1);
    assert!(most <= ENTRY_CHANGES_MAX, "{most}");
}

#[test]
fn a_huge_file_that_is_removed_while_it_is_cut_leaves_nothing() {
    let (mut world, id, ino) = huge();
    world.one(id, range(ino, CHUNK_BYTES / 2, 20_000 * CHUNK_BYTES, RangeAction::Punch)).unwrap();
    world.apply(Command::Reap);
    world.assert_sound();
    world.one(id, Op::Unlink { parent: Ino::ROOT, name: b"f".to_vec(), released: Some(ino) }).unwrap();
    world.assert_sound();
    while orphan::has_reaping(&world.kv) {
        world.apply(Command::Reap);
    }
    world.apply(Command::SettleCuts(vec![ino]));
    world.assert_sound();
    assert_eq!(extents(&world), 0);
    assert!(!world.kv.0.keys().any(|key| key[0] == b'h'));
}

#[derive(Clone, Debug)]
enum Step {
    Write { place: usize, at: u64, len: u64 },
    Truncate { place: usize, at: u64 },
    Punch { places: (usize, usize), at: (u64, u64) },
    Allocate { place: usize },
    Reap,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let (place, at) = (0..PLACES.len(), 0_u64..100);
    prop_oneof![
        3 => (place.clone(), at.clone(), 1_u64..40).prop_map(|(place, at, len)| Step::Write { place, at, len }),
        2 => (place.clone(), at.clone()).prop_map(|(place, at)| Step::Truncate { place, at }),
        2 => ((place.clone(), place.clone()), (at.clone(), at))
            .prop_map(|(places, at)| Step::Punch { places, at }),
        1 => (0_usize..4).prop_map(|place| Step::Allocate { place }),
        3 => Just(Step::Reap),
        1 => Just(Step::Settle),
    ]
}

/// Returns what is read at the places, and the attributes without the space that the file takes.
fn seen(kv: &MemoryKv, id: SessionId, ino: Ino) -> (Vec<ReadReply>, InodeAttr) {
    let page = |chunk: &u64| read::read(kv, id, &Read::Extents { ino, off: chunk * CHUNK_BYTES, len: 1_000 }).unwrap();
    let pages = PLACES.iter().map(page).collect();
    let Ok(ReadReply::Attr(attr)) = read::read(kv, id, &Read::GetAttr { ino }) else { panic!("it is there") };
    (pages, InodeAttr { allocated: 0, ..attr })
}

/// Returns the state without stored replies, which show how much space the file took at the time.
fn without_replies(mut kv: MemoryKv) -> MemoryKv {
    kv.0.retain(|key, _| key[0] != b'Y');
    kv.0.insert(keys::RULES.to_vec(), codec::encode(&rules::KNOWN));
    kv
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn what_is_cut_in_steps_is_as_if_it_had_been_cut_at_once(
        steps in proptest::collection::vec(step(), 1..14),
        cut in any::<prop::sample::Index>(),
        group in 1_usize..5,
    ) {
        let (mut world, id, ino) = huge();
        // Under the first rules everything is cut at once.
        let mut at_once = world.kv.clone();
        at_once.0.insert(keys::RULES.to_vec(), codec::encode(&RulesVersion(1)));
        let (cut, mut snapshot) = (cut.index(steps.len()), None);
        for (index, step) in steps.iter().enumerate() {
            if index == cut {
                snapshot = Some((world.kv.clone(), world.log.len()));
            }
            let place = |place: &usize| PLACES[*place] * CHUNK_BYTES;
            let op = match step {
                Step::Write { place: chunk, at, len } => {
                    let source = Source::Inline(vec![1 + index as u8; *len as usize]);
                    commit(ino, world.version(ino), place(chunk) + at, *len, source, ConflictPolicy::Fail)
                }
                Step::Truncate { place: chunk, at } => truncate(ino, place(chunk) + at),
                Step::Punch { places, at } => {
                    let (one, other) = (place(&places.0) + at.0, place(&places.1) + at.1);
                    range(ino, one.min(other), one.abs_diff(other).max(1), RangeAction::Punch)
                }
                Step::Allocate { place: chunk } => allocate(ino, PLACES[*chunk]),
                Step::Reap | Step::Settle => {
                    let finished = hidden::finished(&world.kv, 10);
                    let is_reap = matches!(step, Step::Reap);
                    world.apply(if is_reap { Command::Reap } else { Command::SettleCuts(finished) });
                    prop_assert_eq!(seen(&world.kv, id, ino), seen(&at_once, id, ino), "{:?}", step);
                    continue;
                }
            };
            prop_assert!(world.one(id, op).is_ok(), "{:?}", step);
            replay(&mut at_once, &world.log[world.log.len() - 1..], 1);
            prop_assert_eq!(seen(&world.kv, id, ino), seen(&at_once, id, ino), "{:?}", step);
        }
        prop_assert_eq!(check::check(&world.kv), Vec::<String>::new(), "also between two steps");
        finish(&mut world);
        prop_assert_eq!(check::check(&world.kv), Vec::<String>::new());
        prop_assert!(without_replies(world.kv.clone()) == without_replies(at_once), "not one key differs");

        // A metad that goes on from a snapshot in the middle, and applies other entries together.
        let (mut restored, applied) = snapshot.expect("there is a step");
        replay(&mut restored, &world.log[applied..], group);
        prop_assert!(restored == world.kv);
    }
}

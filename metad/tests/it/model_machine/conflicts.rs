//! Writers on old versions (I6), compared with a model that remembers when each byte was last changed.

use super::world::{World, commit, config, source};
use proptest::prelude::*;
use wire::FsError;
use wire::attr::{AttrChange, TimeChange, Timestamp};
use wire::extent::{ExtentWrite, Source};
use wire::ids::{Ino, SessionId, Version};
use wire::op::{ConflictPolicy, NewInode, Op, OpReply, RangeAction};

/// The bytes that the model covers; everything happens within them.
const SPAN: usize = 200;
/// With more cuts than this, some are joined, so there may be conflicts that the model does not see.
const CUTS_DISTINGUISHED: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    /// A writer learns the newest version.
    Refresh {
        writer: usize,
    },
    Write {
        writer: usize,
        at: usize,
        len: usize,
    },
    Truncate {
        size: usize,
    },
    Punch {
        at: usize,
        len: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_usize..2).prop_map(|writer| Step::Refresh { writer }),
        5 => (0_usize..2, 0_usize..140, 1_usize..50)
            .prop_map(|(writer, at, len)| Step::Write { writer, at, len }),
        1 => (0_usize..150).prop_map(|size| Step::Truncate { size }),
        1 => (0_usize..140, 1_usize..50).prop_map(|(at, len)| Step::Punch { at, len }),
    ]
}

struct Run {
    world: World,
    id: SessionId,
    ino: Ino,
    bases: [Version; 2],
    changed: Vec<Version>,
    cuts: usize,
    /// Each write has a byte of its own.
    byte: u8,
}

impl Run {
    fn new() -> Self {
        let mut world = World::new();
        let id = world.session();
        let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
        Self { world, id, ino, bases: [Version(1); 2], changed: vec![Version(0); SPAN], cuts: 0, byte: 0 }
    }

    fn touch(&mut self, from: usize, to: usize) {
        let version = self.world.version(self.ino);
        self.changed[from..to.min(SPAN)].fill(version);
    }

    fn write(&mut self, writer: usize, at: usize, len: usize) {
        let (base, copy) = (self.bases[writer], self.world.number(self.id));
        self.byte += 1;
        let (byte, before) = (self.byte, self.world.bytes(self.ino));
        let expected = self.changed[at..at + len].iter().any(|version| *version > base);
        let policy = ConflictPolicy::Copy { ino: copy, suffix: b".conflict".to_vec() };
        let op = commit(self.ino, base, at as u64, len as u64, source(byte, len as u64, true), policy);
        let reply = self.world.one(self.id, op).unwrap();
        let OpReply::Committed { conflict, .. } = reply else { panic!("{reply:?}") };
        if expected || self.cuts <= CUTS_DISTINGUISHED {
            assert_eq!(conflict.is_some(), expected, "a write of {at}..{} on {base}", at + len);
        }
        let target = conflict.as_ref().map_or(self.ino, |conflict| conflict.ino);
        assert_eq!(self.world.bytes(target)[at..at + len], vec![byte; len], "what was written is found somewhere");
        match conflict {
            Some(_) => assert_eq!(self.world.bytes(self.ino), before, "the first to commit keeps the name"),
            None => self.touch(at, at + len),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Refresh { writer } => self.bases[*writer] = self.world.version(self.ino),
            Step::Write { writer, at, len } => self.write(*writer, *at, *len),
            Step::Truncate { size } => {
                let shrinks = (*size as u64) < self.world.attr(self.ino).unwrap().size;
                let change = AttrChange { size: Some(*size as u64), ..AttrChange::default() };
                self.world.one(self.id, Op::SetAttr { ino: self.ino, change }).unwrap();
                if shrinks {
                    self.cuts += 1;
                    self.touch(*size, SPAN);
                }
            }
            Step::Punch { at, len } => {
                let (off, length) = (*at as u64, *len as u64);
                let op = Op::Range { ino: self.ino, off, len: length, action: RangeAction::Punch };
                self.world.one(self.id, op).unwrap();
                self.cuts += 1;
                self.touch(*at, at + len);
            }
        }
        self.world.assert_sound();
    }
}

proptest! {
    #![proptest_config(config(192))]

    /// Guards I6.
    #[test]
    fn a_write_conflicts_exactly_with_later_changes_of_its_bytes_and_is_never_lost(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
    }
}

fn append(ino: Ino, base: Version, bytes: &[u8]) -> Op {
    let source = Source::Inline(bytes.to_vec());
    Op::Commit {
        ino,
        base,
        own: Vec::new(),
        writes: vec![ExtentWrite { file_off: 100, len: bytes.len() as u64, source }],
        append_from: Some(100),
        mtime: None,
        clear_privileges: false,
        policy: ConflictPolicy::Fail,
    }
}

/// Guards I6.
#[test]
fn appended_content_lands_at_the_end_even_after_the_file_was_truncated() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "log", NewInode::Regular);
    world.one(id, append(ino, Version(1), b"old line")).unwrap();
    let base = world.version(ino);
    let change = AttrChange { size: Some(0), ..AttrChange::default() };
    world.one(id, Op::SetAttr { ino, change }).unwrap();
    world.one(id, append(ino, base, b"new")).unwrap();
    world.one(id, append(ino, base, b" line")).unwrap();
    assert_eq!(world.bytes(ino), b"new line");
}

fn at(secs: i64) -> Timestamp {
    Timestamp { secs, nanos: 0 }
}

#[test]
fn mtime_follows_the_writers_clock_but_never_backwards() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
    let write = |world: &mut World, mtime| {
        let base = world.version(ino);
        let writes = vec![ExtentWrite { file_off: 0, len: 1, source: source(1, 1, true) }];
        let policy = ConflictPolicy::Fail;
        let (append_from, clear_privileges) = (None, false);
        let op = Op::Commit {
            ino,
            base,
            own: Vec::new(),
            writes,
            append_from,
            mtime: Some(mtime),
            clear_privileges,
            policy,
        };
        world.one(id, op).unwrap();
        world.attr(ino).unwrap().mtime
    };
    let made = world.attr(ino).unwrap().mtime;
    assert_eq!(write(&mut world, at(5000)), at(5000));
    assert!(write(&mut world, at(3)) >= made, "a clock that is behind");
    let change = AttrChange { mtime: Some(TimeChange::To(at(7))), ..AttrChange::default() };
    world.one(id, Op::SetAttr { ino, change }).unwrap();
    assert_eq!(world.attr(ino).unwrap().mtime, at(7), "an application may set any time");
    assert_eq!(write(&mut world, at(9)), at(9));
}

#[test]
fn every_change_of_attributes_is_seen_in_ctime() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
    let before = world.attr(ino).unwrap().ctime;
    let change = AttrChange { atime: Some(TimeChange::To(at(1))), ..AttrChange::default() };
    world.one(id, Op::SetAttr { ino, change }).unwrap();
    assert!(world.attr(ino).unwrap().ctime > before, "utimensat(2)");
}

#[test]
fn writes_that_no_file_can_hold_are_refused() {
    let mut world = World::new();
    let id = world.session();
    let ino = world.create(id, Ino::ROOT, "f", NewInode::Regular);
    for (off, len, expected) in
        [(0, u64::MAX - 10, FsError::Invalid), (0, 0, FsError::Invalid), (u64::MAX, 1, FsError::TooLarge)]
    {
        let source = source(1, 20, false);
        assert_eq!(world.one(id, commit(ino, Version(1), off, len, source, ConflictPolicy::Fail)), Err(expected));
    }
}

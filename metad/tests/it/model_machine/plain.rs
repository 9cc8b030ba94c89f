//! Batches of several sessions do what a plain filesystem does, with its errors, or nothing at all.

use super::model::{Model, Node};
use super::world::{World, commit, config, create, source};
use metad::fs::{Command, settings};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use wire::FsError;
use wire::attr::AttrChange;
use wire::extent::ExtentWrite;
use wire::ids::{Ino, SessionId, Version};
use wire::op::{ConflictPolicy, NewInode, Op, RangeAction, RenameMode};

#[derive(Clone, Debug)]
pub enum Act {
    Create { dir: usize, name: u8, directory: bool },
    Link { node: usize, dir: usize, name: u8 },
    Unlink { dir: usize, name: u8, vouch: bool },
    Rmdir { dir: usize, name: u8 },
    Rename { dir: usize, name: u8, to: usize, new: u8, mode: RenameMode },
    Write { node: usize, at: u8, len: u8, byte: u8, inline: bool },
    Append { node: usize, len: u8, byte: u8 },
    Truncate { node: usize, size: u8 },
    Range { node: usize, at: u8, len: u8, punch: bool },
    Clone { node: usize, from: u8, to: usize, at: u8, len: u8 },
}

#[derive(Clone, Debug)]
pub enum Step {
    Batch { session: usize, acts: Vec<Act> },
    Release { session: usize },
    Reopen { session: usize },
}

fn act() -> impl Strategy<Value = Act> {
    let (dir, name, node, at, len) = (0_usize..5, 0_u8..5, 0_usize..8, 0_u8..90, 1_u8..40);
    let mode = prop_oneof![Just(RenameMode::Replace), Just(RenameMode::NoReplace), Just(RenameMode::Exchange)];
    prop_oneof![
        4 => (dir.clone(), name.clone(), any::<bool>())
            .prop_map(|(dir, name, directory)| Act::Create { dir, name, directory }),
        1 => (node.clone(), dir.clone(), name.clone()).prop_map(|(node, dir, name)| Act::Link { node, dir, name }),
        2 => (dir.clone(), name.clone(), any::<bool>()).prop_map(|(dir, name, vouch)| Act::Unlink { dir, name, vouch }),
        1 => (dir.clone(), name.clone()).prop_map(|(dir, name)| Act::Rmdir { dir, name }),
        3 => (dir.clone(), name.clone(), dir, name, mode)
            .prop_map(|(dir, name, to, new, mode)| Act::Rename { dir, name, to, new, mode }),
        3 => (node.clone(), at.clone(), len.clone(), 1_u8.., any::<bool>())
            .prop_map(|(node, at, len, byte, inline)| Act::Write { node, at, len, byte, inline }),
        1 => (node.clone(), len.clone(), 1_u8..).prop_map(|(node, len, byte)| Act::Append { node, len, byte }),
        1 => (node.clone(), at.clone()).prop_map(|(node, size)| Act::Truncate { node, size }),
        1 => (node.clone(), at.clone(), len.clone(), any::<bool>())
            .prop_map(|(node, at, len, punch)| Act::Range { node, at, len, punch }),
        1 => (node.clone(), at.clone(), node, at, len)
            .prop_map(|(node, from, to, at, len)| Act::Clone { node, from, to, at, len }),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_usize..3, proptest::collection::vec(act(), 1..4))
            .prop_map(|(session, acts)| Step::Batch { session, acts }),
        1 => (0_usize..3).prop_map(|session| Step::Release { session }),
        1 => (0_usize..3).prop_map(|session| Step::Reopen { session }),
    ]
}

/// The model, and which sessions hold which unlinked files.
#[derive(Clone)]
struct Expected {
    model: Model,
    orphans: BTreeMap<u64, BTreeSet<SessionId>>,
}

impl Expected {
    fn unlinked(&mut self, ino: u64, by: SessionId, vouched: bool, sessions: &[SessionId]) {
        if self.model.links(ino) == 0 {
            let holders = sessions.iter().copied().filter(|id| !vouched || *id != by).collect();
            self.orphans.insert(ino, holders);
            self.drop_released();
        }
    }

    fn release(&mut self, id: SessionId) {
        for holders in self.orphans.values_mut() {
            holders.remove(&id);
        }
        self.drop_released();
    }

    fn drop_released(&mut self) {
        let nodes = &mut self.model.nodes;
        self.orphans.retain(|ino, holders| !holders.is_empty() || nodes.remove(ino).is_none());
    }
}

struct Run {
    world: World,
    expected: Expected,
    sessions: Vec<SessionId>,
}

fn name(name: u8) -> String {
    format!("n{name}")
}

impl Run {
    /// Returns the operation, and its outcome in the model. `versions` counts what the batch has done to files before.
    fn plan(
        &mut self,
        act: &Act,
        id: SessionId,
        after: &mut Expected,
        versions: &mut BTreeMap<u64, u64>,
    ) -> Option<(Op, Result<(), FsError>)> {
        let model = &mut after.model;
        let dir = |model: &Model, index: &usize| model.pick(true, *index).unwrap();
        Some(match act {
            Act::Create { dir: at, name: n, directory } => {
                let (at, ino) = (dir(model, at), self.world.number(id));
                let (node, new) = if *directory {
                    (Node::Dir(BTreeMap::new()), NewInode::Directory)
                } else {
                    (Node::File(Vec::new()), NewInode::Regular)
                };
                (create(Ino(at), &name(*n), ino, new), model.create(at, &name(*n), ino.0, node))
            }
            Act::Link { node, dir: at, name: n } => {
                let (ino, at) = (model.pick(false, *node)?, dir(model, at));
                let op = Op::Link { ino: Ino(ino), parent: Ino(at), name: name(*n).into() };
                (op, model.link(ino, at, &name(*n)))
            }
            Act::Unlink { dir: at, name: n, vouch } => {
                let at = dir(model, at);
                let released = model.find(at, &name(*n)).ok().filter(|_| *vouch).map(Ino);
                let outcome = model.unlink(at, &name(*n));
                let outcome = outcome.map(|ino| after.unlinked(ino, id, *vouch, &self.sessions));
                (Op::Unlink { parent: Ino(at), name: name(*n).into(), released }, outcome)
            }
            Act::Rmdir { dir: at, name: n } => {
                let at = dir(model, at);
                (Op::Rmdir { parent: Ino(at), name: name(*n).into(), seen: None }, model.rmdir(at, &name(*n)))
            }
            Act::Rename { dir: at, name: n, to, new, mode } => {
                let (parent, new_parent) = (dir(model, at), dir(model, to));
                let outcome = model.rename((parent, &name(*n)), (new_parent, &name(*new)), *mode);
                if let Ok(Some(replaced)) = outcome {
                    after.unlinked(replaced, id, false, &self.sessions);
                }
                let op = Op::Rename {
                    parent: Ino(parent),
                    name: name(*n).into(),
                    new_parent: Ino(new_parent),
                    new_name: name(*new).into(),
                    mode: *mode,
                    released: None,
                    seen: None,
                };
                (op, outcome.map(|_| ()))
            }
            Act::Write { .. } | Act::Append { .. } | Act::Truncate { .. } | Act::Range { .. } | Act::Clone { .. } => {
                return self.plan_content(act, model, versions);
            }
        })
    }

    fn plan_content(
        &mut self,
        act: &Act,
        model: &mut Model,
        versions: &mut BTreeMap<u64, u64>,
    ) -> Option<(Op, Result<(), FsError>)> {
        let index = match act {
            Act::Write { node, .. } | Act::Append { node, .. } | Act::Truncate { node, .. } => node,
            Act::Range { node, .. } | Act::Clone { to: node, .. } => node,
            _ => return None,
        };
        let ino = model.pick(false, *index)?;
        let done = versions.entry(ino).or_default();
        let base = Version(self.world.version(Ino(ino)).0 + *done);
        *done += 1;
        let size = model.file(ino).ok()?.len();
        Some(match act {
            Act::Write { at, len, byte, inline, .. } => {
                let from = source(*byte, u64::from(*len), *inline);
                let op = commit(Ino(ino), base, u64::from(*at), u64::from(*len), from, ConflictPolicy::Fail);
                (op, model.write(ino, usize::from(*at), &vec![*byte; usize::from(*len)]))
            }
            Act::Append { len, byte, .. } => {
                // Written as if for another place, and on the oldest version of all: appends always fit.
                let writes = vec![ExtentWrite {
                    file_off: 7,
                    len: u64::from(*len),
                    source: source(*byte, u64::from(*len), false),
                }];
                let op = Op::Commit {
                    ino: Ino(ino),
                    base: Version(1),
                    own: Vec::new(),
                    writes,
                    append_from: Some(7),
                    mtime: None,
                    clear_privileges: false,
                    policy: ConflictPolicy::Fail,
                };
                (op, model.write(ino, size, &vec![*byte; usize::from(*len)]))
            }
            Act::Truncate { size, .. } => {
                model.file(ino).unwrap().resize(usize::from(*size), 0);
                let change = AttrChange { size: Some(u64::from(*size)), ..AttrChange::default() };
                (Op::SetAttr { ino: Ino(ino), change }, Ok(()))
            }
            Act::Range { at, len, punch, .. } => {
                let (start, end) = (usize::from(*at), usize::from(*at) + usize::from(*len));
                let bytes = model.file(ino).unwrap();
                bytes.resize(if *punch { size } else { size.max(end) }, 0);
                let until = end.min(bytes.len());
                bytes[start.min(until)..until].fill(0);
                let action = if *punch { RangeAction::Punch } else { RangeAction::Zero { keep_size: false } };
                (Op::Range { ino: Ino(ino), off: u64::from(*at), len: u64::from(*len), action }, Ok(()))
            }
            Act::Clone { node, from, at, len, .. } => {
                let src = model.pick(false, *node)?;
                let content = model.file(src).unwrap().clone();
                let from_to =
                    usize::from(*from).min(content.len())..(usize::from(*from) + usize::from(*len)).min(content.len());
                let part = content[from_to].to_vec();
                let apart = part.is_empty() || src != ino || {
                    let (a, b, l) = (usize::from(*from), usize::from(*at), part.len());
                    a + l <= b || b + l <= a
                };
                // An empty clone changes nothing, not even the version.
                if !apart || part.is_empty() {
                    *versions.get_mut(&ino).unwrap() -= 1;
                }
                let outcome = match (apart, part.is_empty()) {
                    (false, _) => Err(FsError::Invalid),
                    (true, true) => Ok(()),
                    (true, false) => model.write(ino, usize::from(*at), &part),
                };
                let op = Op::CloneRange {
                    src: Ino(src),
                    src_off: u64::from(*from),
                    dst: Ino(ino),
                    dst_off: u64::from(*at),
                    len: u64::from(*len),
                };
                (op, outcome)
            }
            _ => return None,
        })
    }

    fn batch(&mut self, session: usize, acts: &[Act]) {
        let id = self.sessions[session % self.sessions.len()];
        let (mut after, mut versions) = (self.expected.clone(), BTreeMap::new());
        let (mut ops, mut failure) = (Vec::new(), None);
        for act in acts {
            let Some((op, outcome)) = self.plan(act, id, &mut after, &mut versions) else { continue };
            ops.push(op);
            if let Err(error) = outcome {
                failure = Some((ops.len() as u32 - 1, error));
                break;
            }
        }
        let reply = self.world.run(id, ops.clone());
        assert_eq!(reply.err().map(|failed| (failed.index, failed.error)), failure, "{ops:?}");
        if failure.is_none() {
            self.expected = after;
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Batch { session, acts } => self.batch(*session, acts),
            Step::Release { session } => {
                let id = self.sessions[session % self.sessions.len()];
                let inos = self.expected.orphans.keys().map(|ino| Ino(*ino)).collect();
                self.world.one(id, Op::ReleaseOrphans { inos }).unwrap();
                self.expected.release(id);
            }
            Step::Reopen { session } => {
                let index = session % self.sessions.len();
                let old = self.sessions[index];
                self.world.apply(Command::CloseSessions(vec![old]));
                self.expected.release(old);
                self.sessions[index] = self.world.session();
            }
        }
    }

    fn assert_equal(&self) {
        for (ino, node) in &self.expected.model.nodes {
            let attr = self.world.attr(Ino(*ino)).expect("an inode of the model");
            match node {
                Node::File(bytes) => {
                    assert_eq!(&self.world.bytes(Ino(*ino)), bytes);
                    assert_eq!(attr.nlink as usize, self.expected.model.links(*ino));
                }
                Node::Dir(entries) => {
                    assert_eq!(&self.world.entries(Ino(*ino)), entries);
                    assert_eq!(attr.size as usize, entries.len());
                }
            }
        }
        assert_eq!(settings::inode_count(&self.world.kv) as usize, self.expected.model.nodes.len());
    }
}

/// Takes the steps, and compares their outcomes with the model.
pub fn run(steps: &[Step]) -> World {
    let mut world = World::new();
    let sessions = (0..3).map(|_| world.session()).collect();
    let expected = Expected { model: Model::new(), orphans: BTreeMap::new() };
    let mut run = Run { world, expected, sessions };
    for step in steps {
        run.step(step);
        run.world.assert_sound();
    }
    run.assert_equal();
    run.world
}

proptest! {
    #![proptest_config(config(128))]

    /// Guards I3.
    #[test]
    fn batches_of_several_sessions_do_what_a_plain_filesystem_does(
        steps in proptest::collection::vec(step(), 1..50),
    ) {
        run(&steps);
    }
}

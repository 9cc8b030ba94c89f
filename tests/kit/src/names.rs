//! A directory as a [`Model`]: names, links, modes and whole contents, with one level of directories below it.
//!
//! A system call on a path is not one operation of a filesystem: the kernel looks up one name after the other, and then
//! acts on what it has found, while others rename and remove. So each call has several steps, and *holds* the inodes
//! that it has found: they stay, without a name if need be, until the call has ended. Some things the kernel decides by
//! itself, by what it has looked up (that the target of a rename is a directory); the rest is decided when the call
//! acts.
//!
//! A name that a call removes is *going* until that call returns: the kernel removes it from its own cache last, so a
//! look-up on the same mount may still find what the name led to, as on any filesystem of Linux. On other mounts, no
//! look-up may.

mod tree;

pub use tree::Tree;

use crate::linear::{Model, Next};
use libc::{EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, ESTALE};
use std::collections::{BTreeMap, BTreeSet};
use tree::{Kind, TOP};

/// `NAME`, or `DIR/NAME`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// Directory, if it is not the top.
    pub dir: Option<char>,
    /// Last name.
    pub name: char,
}

/// A system call, or a few calls that count as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `open` with `O_CREAT` and `O_EXCL`, `close`.
    Create(Path, u16),
    /// `mkdir`.
    Mkdir(Path, u16),
    /// `unlink`.
    Unlink(Path),
    /// `rmdir`.
    Rmdir(Path),
    /// `rename`.
    Rename(Path, Path),
    /// `link`.
    Link(Path, Path),
    /// `stat`.
    Stat(Path),
    /// `chmod`.
    Chmod(Path, u16),
    /// `readdir` of the top, to its end.
    List,
    /// `open`, `read` of everything, `close`.
    Read(Path),
    /// `open` without truncation, `write` over everything, `close`. The content is the number of the operation.
    Write(Path),
}

/// What a call returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It succeeded.
    Done,
    /// It made a file, with this number if numbers are recorded.
    Made(Option<u64>),
    /// `stat` returned this.
    Attributes {
        /// Number of the inode, if numbers are recorded.
        ino: Option<u64>,
        /// Whether it is a directory.
        is_dir: bool,
        /// Permissions.
        mode: u16,
        /// Number of links, if it is a file.
        links: u16,
    },
    /// The names that were listed.
    Names(BTreeSet<char>),
    /// Number of the write whose content was read; 0 for an empty file.
    Content(u32),
    /// It failed with this error.
    Failed(i32),
    /// It may have happened, or may happen later.
    Unknown,
}

/// A call and its outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Number of the call, from 1; each call has its own.
    pub number: u32,
    /// The mount on which it was called.
    pub mount: u32,
    /// The call.
    pub call: Call,
    /// Its outcome.
    pub outcome: Outcome,
}

/// Errors for an inode that is gone. Which one comes depends on the call.
const GONE_ERRORS: &[i32] = &[ENOENT, ESTALE];

/// The progress of a call.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Progress {
    /// The inodes that were looked up.
    held: Vec<Option<u32>>,
    /// Names that were listed and did not exist at first.
    later: BTreeSet<char>,
    /// It has acted, and has not returned.
    acted: bool,
}

/// A look-up of a call.
#[derive(Clone, Copy)]
enum Look {
    /// The directory of a path.
    Dir(Path),
    /// A last name, in the directory at that place among the inodes that were looked up.
    Name { dir: usize, name: char, must_be: bool },
}

fn looks(call: Call) -> Vec<Look> {
    let name = |path: Path| Look::Name { dir: 0, name: path.name, must_be: true };
    match call {
        Call::Create(path, _) | Call::Mkdir(path, _) | Call::Unlink(path) | Call::Rmdir(path) => vec![Look::Dir(path)],
        Call::Stat(path) | Call::Chmod(path, _) | Call::Read(path) | Call::Write(path) => {
            vec![Look::Dir(path), name(path)]
        }
        Call::Link(from, to) => vec![Look::Dir(from), name(from), Look::Dir(to)],
        Call::Rename(from, to) => {
            let target = Look::Name { dir: 1, name: to.name, must_be: false };
            vec![Look::Dir(from), Look::Dir(to), name(from), target]
        }
        Call::List => Vec::new(),
    }
}

/// What the state answers to a call, before this is compared with the call's outcome.
enum Answer {
    /// One of these errors; nothing has changed.
    Errors(&'static [i32]),
    /// This outcome; nothing has changed.
    Saw(Outcome),
    /// Success; the state has changed.
    Did(Tree),
}

/// The model. All of its state is in [`Tree`].
pub struct Names;

type Nexts = Vec<Next<Tree, Progress>>;

impl Model for Names {
    type State = Tree;
    type Op = Op;
    type Progress = Progress;

    fn step(&self, tree: &Tree, op: &Op, progress: &Progress) -> Nexts {
        if op.call == Call::List {
            return list(tree, op, progress);
        }
        let mut held = progress.held.clone();
        if progress.acted {
            let mut after = tree.clone();
            after.let_go(op.number);
            return vec![Next::Changed(release(after, &held))];
        }
        let looks = looks(op.call);
        while let Some(look) = looks.get(held.len()) {
            let (dir, name) = match *look {
                Look::Dir(Path { dir: None, .. }) => {
                    held.push(Some(TOP));
                    continue;
                }
                Look::Dir(Path { dir: Some(name), .. }) => (TOP, name),
                Look::Name { dir, name, .. } => (held[dir].unwrap_or(TOP), name),
            };
            let found = tree.looked_up(op.mount, dir, name);
            return found.into_iter().flat_map(|found| look_up(tree, op, &held, (*look, dir), found)).collect();
        }
        let led: Vec<_> = names_changed(op.call, &held)
            .into_iter()
            .filter_map(|(dir, name)| Some((dir, name, tree.find(dir, name)?)))
            .collect();
        let mut before = tree.clone();
        for (_, _, inode) in &led {
            before.change(*inode, |inode| inode.held += 1);
        }
        let mut answers = act(&before, op, &held);
        for answer in &mut answers {
            if let Answer::Did(after) = answer {
                after.note_going(op, &led);
            }
        }
        end(tree, op, &held, answers)
    }
}

/// Returns the results of a look-up in a directory that led to `found`.
fn look_up(tree: &Tree, op: &Op, held: &[Option<u32>], (look, dir): (Look, u32), found: Option<u32>) -> Nexts {
    let errors = match (look, found) {
        (Look::Dir(_), Some(found)) if !tree.is_dir(found) => Some([ENOTDIR].as_slice()),
        (Look::Dir(_), None) => Some([ENOENT].as_slice()),
        (Look::Name { .. }, None) if tree.is_gone(dir) => Some(GONE_ERRORS),
        (Look::Name { must_be: true, .. }, None) => Some([ENOENT].as_slice()),
        _ => None,
    };
    if let Some(errors) = errors {
        return end(tree, op, held, vec![Answer::Errors(errors)]);
    }
    let mut nexts = Vec::new();
    if let Call::Rename(..) = op.call
        && held.len() == 3
    {
        nexts.extend(end(tree, op, held, refused_by_the_kernel(tree, held, found)));
    }
    let mut after = tree.clone();
    if let Some(found) = found {
        after.change(found, |inode| inode.held += 1);
    }
    let held = [held, &[found]].concat();
    nexts.push(Next::On(after, Progress { held, ..Progress::default() }));
    nexts
}

/// Returns the names that a call removes, or makes lead elsewhere.
fn names_changed(call: Call, held: &[Option<u32>]) -> Vec<(u32, char)> {
    let dir = |index: usize| held[index].unwrap_or(TOP);
    match call {
        Call::Unlink(path) | Call::Rmdir(path) => vec![(dir(0), path.name)],
        Call::Rename(from, to) => vec![(dir(0), from.name), (dir(1), to.name)],
        _ => Vec::new(),
    }
}

/// Records that a call has ended: it holds nothing any more.
fn release(mut tree: Tree, held: &[Option<u32>]) -> Tree {
    for inode in held.iter().flatten().filter(|inode| **inode != TOP) {
        tree.change(*inode, |inode| inode.held -= 1);
    }
    tree
}

/// Returns the ends of a call with those of these answers that agree with its outcome.
fn end(tree: &Tree, op: &Op, held: &[Option<u32>], answers: Vec<Answer>) -> Nexts {
    let release = |tree: Tree| release(tree, held);
    let unknown = op.outcome == Outcome::Unknown;
    let compare = |answer| match (answer, &op.outcome) {
        (Answer::Errors(_) | Answer::Saw(_), Outcome::Unknown) => Some(Next::Seen(release(tree.clone()))),
        (Answer::Errors(errors), Outcome::Failed(error)) if errors.contains(error) => {
            Some(Next::Seen(release(tree.clone())))
        }
        (Answer::Saw(saw), outcome) if is_same(&saw, outcome) => {
            let mut after = tree.clone();
            let ino = if let Outcome::Attributes { ino, .. } = outcome { *ino } else { None };
            let inode = held.last().copied().flatten();
            inode.is_none_or(|inode| after.is_seen_as(inode, ino)).then(|| Next::Seen(release(after)))
        }
        (Answer::Did(mut after), Outcome::Made(ino)) => {
            after.is_seen_as(op.number, *ino).then(|| Next::Changed(release(after)))
        }
        (Answer::Did(after), Outcome::Done) if after.going.contains_key(&op.number) => {
            Some(Next::On(after, Progress { held: held.to_vec(), acted: true, ..Progress::default() }))
        }
        (Answer::Did(after), Outcome::Done) => Some(Next::Changed(release(after))),
        (Answer::Did(mut after), _) if unknown => {
            after.let_go(op.number);
            Some(Next::Changed(release(after)))
        }
        _ => None,
    };
    answers.into_iter().filter_map(compare).collect()
}

/// Returns whether an outcome agrees with what was seen; numbers of inodes are compared elsewhere.
fn is_same(saw: &Outcome, outcome: &Outcome) -> bool {
    match (saw, outcome) {
        (
            Outcome::Attributes { is_dir, mode, links, .. },
            Outcome::Attributes { is_dir: dir_too, mode: same_mode, links: same_links, .. },
        ) => (is_dir, mode) == (dir_too, same_mode) && (*is_dir || links == same_links),
        (saw, outcome) => saw == outcome,
    }
}

/// Returns what the kernel answers to a rename by itself, by what it has looked up.
fn refused_by_the_kernel(tree: &Tree, held: &[Option<u32>], target: Option<u32>) -> Vec<Answer> {
    let (Some(source), Some(target)) = (held[2], target) else { return Vec::new() };
    if source == target {
        return vec![Answer::Saw(Outcome::Done)];
    }
    if held[0] == Some(target) {
        return vec![Answer::Errors(&[ENOTEMPTY])];
    }
    match (tree.is_dir(source), tree.is_dir(target)) {
        (true, false) => vec![Answer::Errors(&[ENOTDIR])],
        (false, true) => vec![Answer::Errors(&[EISDIR])],
        _ => Vec::new(),
    }
}

/// Takes the last step of a call, on the inodes that it holds.
fn act(tree: &Tree, op: &Op, held: &[Option<u32>]) -> Vec<Answer> {
    let at = |index: usize| held.get(index).copied().flatten().unwrap_or(TOP);
    let did = |change: &dyn Fn(&mut Tree)| {
        let mut after = tree.clone();
        change(&mut after);
        vec![Answer::Did(after)]
    };
    let errors = |errors: &'static [i32]| vec![Answer::Errors(errors)];
    match op.call {
        Call::Create(path, mode) | Call::Mkdir(path, mode) => {
            if tree.is_gone(at(0)) {
                return errors(GONE_ERRORS);
            }
            if tree.find(at(0), path.name).is_some() {
                return errors(&[EEXIST]);
            }
            let is_file = matches!(op.call, Call::Create(..));
            let kind = || if is_file { Kind::File(0) } else { Kind::Dir(BTreeMap::new()) };
            did(&|tree| tree.make(at(0), path.name, op.number, mode, kind()))
        }
        Call::Unlink(path) => match tree.find(at(0), path.name) {
            None => errors(GONE_ERRORS),
            Some(inode) if tree.is_dir(inode) => errors(&[EISDIR]),
            Some(_) => did(&|tree| tree.unlink(at(0), path.name)),
        },
        Call::Rmdir(path) => match tree.find(at(0), path.name) {
            None => errors(GONE_ERRORS),
            Some(inode) if !tree.is_dir(inode) => errors(&[ENOTDIR]),
            Some(inode) if !tree.entries(inode).is_empty() => errors(&[ENOTEMPTY]),
            Some(_) => did(&|tree| tree.unlink(at(0), path.name)),
        },
        Call::Rename(from, to) => rename(tree, (at(0), from.name), (at(1), to.name)),
        Call::Link(_, to) => {
            let (inode, dir) = (at(1), at(2));
            match (tree.find(dir, to.name).is_some(), tree.is_gone(inode) || tree.is_gone(dir)) {
                (true, true) => errors(&[EEXIST, ENOENT, ESTALE]),
                (true, false) => errors(&[EEXIST]),
                (false, _) if tree.is_dir(inode) => errors(&[EPERM]),
                (false, true) => errors(GONE_ERRORS),
                (false, false) => did(&|tree| {
                    tree.set(dir, to.name, Some(inode));
                    tree.change(inode, |inode| inode.links += 1);
                }),
            }
        }
        Call::Stat(_) => {
            let inode = &tree.inodes[&at(1)];
            let (is_dir, mode, links) = (tree.is_dir(at(1)), inode.mode, inode.links);
            let saw = Answer::Saw(Outcome::Attributes { ino: None, is_dir, mode, links });
            if links == 0 { vec![saw, Answer::Errors(GONE_ERRORS)] } else { vec![saw] }
        }
        Call::Chmod(_, mode) => {
            let mut answers = did(&|tree| tree.change(at(1), |inode| inode.mode = mode));
            if tree.is_gone(at(1)) {
                answers.push(Answer::Errors(GONE_ERRORS));
            }
            answers
        }
        Call::Read(_) => match tree.inodes[&at(1)].kind {
            Kind::Dir(_) if tree.is_gone(at(1)) => errors(&[EISDIR, ENOENT, ESTALE]),
            Kind::Dir(_) => errors(&[EISDIR]),
            Kind::File(content) if tree.is_gone(at(1)) => {
                vec![Answer::Saw(Outcome::Content(content)), Answer::Errors(GONE_ERRORS)]
            }
            Kind::File(content) => vec![Answer::Saw(Outcome::Content(content))],
        },
        Call::Write(_) => {
            if tree.is_dir(at(1)) {
                return errors(&[EISDIR, ENOENT, ESTALE]);
            }
            let mut answers = did(&|tree| tree.change(at(1), |inode| inode.kind = Kind::File(op.number)));
            // Others have written the file meanwhile, and the content of this call is in a conflict copy.
            answers.push(Answer::Errors(GONE_ERRORS));
            answers
        }
        Call::List => Vec::new(),
    }
}

/// A rename as the filesystem carries it out: by what the names lead to then, whatever was looked up.
fn rename(tree: &Tree, from: (u32, char), to: (u32, char)) -> Vec<Answer> {
    let Some(source) = tree.find(from.0, from.1) else { return vec![Answer::Errors(GONE_ERRORS)] };
    if tree.is_gone(to.0) {
        return vec![Answer::Errors(GONE_ERRORS)];
    }
    if let Some(target) = tree.find(to.0, to.1) {
        if source == target {
            return vec![Answer::Saw(Outcome::Done)];
        }
        let refused: &'static [i32] = match (tree.is_dir(source), tree.is_dir(target)) {
            (true, false) => &[ENOTDIR],
            // A directory that holds the source is not empty either.
            (false, true) if tree.entries(target).is_empty() => &[EISDIR],
            (false, true) => &[EISDIR, ENOTEMPTY],
            (true, true) if !tree.entries(target).is_empty() => &[ENOTEMPTY],
            _ => &[],
        };
        if !refused.is_empty() {
            return vec![Answer::Errors(refused)];
        }
    }
    let mut after = tree.clone();
    after.unlink(to.0, to.1);
    after.set(from.0, from.1, None);
    after.set(to.0, to.1, Some(source));
    vec![Answer::Did(after)]
}

/// A listing asks twice: for the entries, and whether there are more. Entries that exist at first are listed; entries
/// that are added meanwhile may be.
fn list(tree: &Tree, op: &Op, progress: &Progress) -> Nexts {
    let Outcome::Names(listed) = &op.outcome else {
        return if op.outcome == Outcome::Unknown { vec![Next::Seen(tree.clone())] } else { Vec::new() };
    };
    let present: BTreeSet<char> = tree.entries(TOP).keys().copied().collect();
    if !progress.later.is_empty() {
        return if progress.later.is_subset(&present) { vec![Next::Seen(tree.clone())] } else { Vec::new() };
    }
    if !present.is_subset(listed) {
        return Vec::new();
    }
    let later: BTreeSet<char> = listed.difference(&present).copied().collect();
    if later.is_empty() {
        return vec![Next::Seen(tree.clone())];
    }
    vec![Next::On(tree.clone(), Progress { later, ..Progress::default() })]
}

#[cfg(test)]
mod tests;

//! The steps of a batch: the first entries of the queue, as they are sent.

use crate::commit::plan::Plan;
use crate::file::state::{FileState, Flushing};
use crate::known::Place;
use crate::meta::session::SpareIno;
use crate::writeback::{Entry, Work, WriteBack};
use std::collections::HashSet;
use std::sync::Arc;
use wire::attr::Timestamp;
use wire::ids::Ino;
use wire::limits::JOURNALED_FILES_MAX;
use wire::op::{Expect, JournaledFile, Op};

/// Operations in one batch.
const OPS_MAX: usize = 512;

/// An entry that is being sent.
pub(super) struct Step {
    pub number: u64,
    pub inos: Vec<Ino>,
    pub names: Vec<Place>,
    pub op: Option<Op>,
    pub content: Option<Content>,
}

/// Content that is being sent; nobody else commits to the file meanwhile.
pub(super) struct Content {
    pub file: Arc<FileState>,
    pub plan: Plan,
    pub copy: Option<SpareIno>,
    /// How many sealed blocks of the entry are left for the next batch.
    pub left: usize,
    pub _one: Flushing,
}

/// The next entry, in a form that does not lock the queue.
pub(super) enum Next {
    Change(Step),
    Content { step: Step, at: Timestamp, file: Arc<FileState>, upto: u64 },
}

/// Returns the first entries, as many as fit into a batch.
pub(super) fn next_entries(queue: &WriteBack) -> Vec<Next> {
    queue.with(|core| {
        let (mut next, mut files) = (Vec::new(), HashSet::new());
        for Entry { number, at, inos, names, work, .. } in core.entries().take(OPS_MAX) {
            let step = Step { number: *number, inos: inos.clone(), names: names.clone(), op: None, content: None };
            next.push(match work {
                Work::Change { op, expect } => Next::Change(Step { op: Some(deferred(*at, expect, op)), ..step }),
                // Its base is the version that the commit before it makes. And metad remembers only this many files of
                // a journal.
                Work::Content { file, .. } if files.len() == JOURNALED_FILES_MAX || !files.insert(file.ino()) => break,
                Work::Content { file, upto } => Next::Content { step, at: *at, file: file.clone(), upto: *upto },
                Work::Undone => Next::Change(step),
            });
        }
        next
    })
}

/// Adds later files whose content in the journal is based on an older version than metad has by now. After a crash,
/// files that metad has no room to remember are judged by the base in the journal, as if others had written meanwhile.
pub(super) fn add_journaled_files(queue: &WriteBack, behind: u64, files: &mut Vec<JournaledFile>) {
    let mut seen: HashSet<Ino> = files.iter().map(|file| file.ino).collect();
    queue.with(|core| {
        for entry in core.entries().filter(|entry| entry.number > behind) {
            if files.len() >= JOURNALED_FILES_MAX {
                break;
            }
            let (Work::Content { file, .. }, Some(journal_base)) = (&entry.work, entry.journal_base) else { continue };
            let base = file.base();
            if base > journal_base && seen.insert(file.ino()) {
                files.push(JournaledFile { ino: file.ino(), base, committed: false });
            }
        }
    });
}

pub(super) fn deferred(at: Timestamp, expect: &[Expect], op: &Op) -> Op {
    Op::Deferred { at, expect: expect.to_vec(), op: Box::new(op.clone()) }
}

/// Returns the step of the operation with this index in the batch; `None` for the last one, which is about the journal.
pub(super) fn place_of(steps: &[Step], index: usize) -> Option<usize> {
    let mut ops = steps.iter().enumerate().filter(|(_, step)| step.op.is_some());
    ops.nth(index).map(|(place, _)| place)
}

/// Returns the inode that loses its last name by an operation, if its session knows.
fn released(op: &Op) -> Option<Ino> {
    match op.plain() {
        Op::Unlink { released, .. } | Op::Rename { released, .. } => *released,
        _ => None,
    }
}

/// Returns whether an operation removes a file whose content goes before it in the same batch: only the answer shows
/// which version that makes. A file that the batch itself makes cannot have been written by others.
pub(super) fn must_wait(op: &Op, steps: &[Step]) -> bool {
    let Some(ino) = released(op) else { return false };
    let is_made = |step: &Step| step.op.as_ref().and_then(Op::made) == Some(ino);
    let has_content = |step: &Step| step.content.as_ref().is_some_and(|content| content.file.ino() == ino);
    steps.iter().any(has_content) && !steps.iter().any(is_made)
}

/// I6: an operation that removed or replaced a file with uncommitted content named no version. It may remove the
/// version that the commit has made, and nothing that others have written beside it.
pub(super) fn expect_own(queue: &WriteBack, op: &mut Op) {
    let Some(ino) = released(op) else { return };
    let (Op::Deferred { expect, .. }, Some(version)) = (op, queue.with(|core| core.content_before(ino))) else {
        return;
    };
    for expect in expect.iter_mut().filter(|expect| expect.ino == Some(ino)) {
        expect.version.get_or_insert(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::plan::Draft;
    use crate::known::Known;
    use crate::queue::Touched;
    use crate::testing;
    use tokio::time::Instant;
    use wire::attr::InodeAttr;
    use wire::ids::Version;
    use wire::op::NewInode;

    /// Returns a queue with content of this many files, and nothing else.
    fn contents(count: u64) -> WriteBack {
        let queue = WriteBack::new(Arc::<Known>::default());
        let file = |ino| {
            let attr = InodeAttr { ino: Ino(ino), ..testing::attr() };
            FileState::new(attr, None, Arc::default(), 4 << 20)
        };
        let work = |number| Work::Content { file: file(2000 + number), upto: 1 };
        let entry = |number| (number, Timestamp::default(), Touched::default(), work(number));
        queue.with(|core| core.start_behind(0, count));
        queue.enter_again((1..=count).map(entry).collect());
        queue
    }

    /// With more files, metad would refuse the whole batch, and each later one.
    #[test]
    fn a_batch_has_content_of_no_more_files_than_metad_remembers_of_a_journal() {
        let queue = contents(2 * JOURNALED_FILES_MAX as u64);
        assert_eq!(next_entries(&queue).len(), JOURNALED_FILES_MAX);
    }

    #[test]
    fn the_operation_behind_all_steps_belongs_to_none_of_them() {
        let step = |op| Step { number: 1, inos: Vec::new(), names: Vec::new(), op, content: None };
        let op = || Some(Op::LeaseInos { count: 1 });
        let steps = [step(op()), step(None), step(op())];
        assert_eq!([0, 1, 2].map(|index| place_of(&steps, index)), [Some(0), Some(2), None]);
    }

    /// Guards I6.
    #[tokio::test]
    async fn a_removal_of_a_file_waits_for_the_version_of_the_content_before_it() {
        let content = async |ino| {
            let attr = InodeAttr { ino: Ino(ino), ..testing::attr() };
            let file = FileState::new(attr, None, Arc::default(), 4 << 20);
            let (plan, one) = (Draft::default().finish(file.basis(Instant::now())), file.begin_flush().await);
            Some(Content { file, plan, copy: None, left: 0, _one: one })
        };
        let step = |op, content| Step { number: 1, inos: Vec::new(), names: Vec::new(), op, content };
        let (parent, name, released) = (Ino::ROOT, b"f".to_vec(), Some(Ino(7)));
        let op = Op::Unlink { parent, name: name.clone(), released };
        let expect = [Expect { parent, name: name.clone(), ino: released, version: None }];
        let mut removal = deferred(Timestamp::default(), &expect, &op);
        assert!(must_wait(&removal, &[step(None, content(7).await)]));
        assert!(!must_wait(&removal, &[step(None, content(8).await)]));
        let (node, mode) = (NewInode::Regular, 0o644);
        let made = Op::Create { parent, name, ino: Ino(7), node, mode, umask: 0, uid: 0, gid: 0 };
        assert!(!must_wait(&removal, &[step(Some(made), None), step(None, content(7).await)]), "nobody else knows it");

        let queue = WriteBack::new(Arc::<Known>::default());
        let work = Work::Change { op, expect: expect.to_vec() };
        queue.enter_again(vec![(1, Timestamp::default(), Touched::default(), work)]);
        let version = |removal: &Op| match removal {
            Op::Deferred { expect, .. } => expect[0].version,
            _ => None,
        };
        expect_own(&queue, &mut removal);
        assert_eq!(version(&removal), None, "no content was before it");
        queue.with(|core| core.note_content(Ino(7), Version(3)));
        expect_own(&queue, &mut removal);
        assert_eq!(version(&removal), Some(Version(3)));
    }
}

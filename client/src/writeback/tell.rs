//! Telling metad what was done: batches in the order of the queue, one after the other.
//!
//! Nothing of it can be refused while the delegations hold. A session that was away for longer than its leases has lost
//! them, and others went on without it: then each operation is judged by what it expected to find. What others did stays,
//! what was done here goes beside it (`NAME.conflict-HOST-TIME`), and no content is lost (I6).

use super::{Client, Entry, Work, WriteBack};
use crate::commit::outcome::{Outcome, Way, judge};
use crate::commit::plan::{self, Plan};
use crate::file::flush::is_full;
use crate::file::state::{FileState, Flushing};
use crate::known::Local;
use crate::meta::session::{BatchFailed, SpareIno};
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::extent::ExtentWrite;
use wire::ids::Ino;
use wire::limits::NAME_BYTES_MAX;
use wire::op::{Expect, JournalPosition, JournaledFile, Name, Op, OpReply};
use wire::retry::Backoff;

/// Operations in one batch.
const OPS_MAX: usize = 512;
/// Writes in one batch: what it may grow to.
const WRITES_MAX: usize = 4096;
/// Changes wait so long for content that goes behind them in one batch.
const UPLOADS_WAITED: Duration = Duration::from_millis(250);
/// Pauses after an attempt that failed.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// An entry on its way.
struct Step {
    number: u64,
    inos: Vec<Ino>,
    names: Vec<(Ino, Name)>,
    op: Option<Op>,
    content: Option<Content>,
}

/// Content on its way; nobody else commits to the file meanwhile.
struct Content {
    file: Arc<FileState>,
    plan: Plan,
    copy: Option<SpareIno>,
    /// So many sealed blocks of the entry are left for the next batch.
    left: usize,
    _one: Flushing,
}

/// What the next entry says, without holding the queue.
enum Next {
    Change(Step),
    Content { step: Step, at: Timestamp, file: Arc<FileState>, upto: u64 },
}

/// Tells metad what there is to tell, until the client is gone.
pub(crate) async fn run(weak: Weak<Client>, queue: Arc<WriteBack>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    loop {
        queue.wait_due().await;
        let Some(client) = weak.upgrade() else { return };
        match client.tell_some().await {
            Ok(()) => backoff = Backoff::new(RETRY_FIRST, RETRY_MOST),
            // There is another one by now.
            Err(FsError::SessionExpired) => {}
            Err(error) => {
                tracing::warn!(%error, "what was done is not told to metad yet; it is tried again");
                queue.note_failure(error);
                drop(client);
                tokio::time::sleep(backoff.delay()).await;
            }
        }
    }
}

impl WriteBack {
    fn note_failure(&self, error: FsError) {
        let mut inner = self.inner.lock();
        inner.failures += 1;
        inner.failure = Some(error);
        drop(inner);
        self.progress.notify_waiters();
    }

    /// What the first entries say, as many as fit into a batch.
    fn next_entries(&self) -> Vec<Next> {
        let inner = self.inner.lock();
        let (mut next, mut files) = (Vec::new(), HashSet::new());
        for Entry { number, at, inos, names, work, .. } in inner.entries.iter().take(OPS_MAX) {
            let step = Step { number: *number, inos: inos.clone(), names: names.clone(), op: None, content: None };
            next.push(match work {
                Work::Change { op, expect } => Next::Change(Step { op: Some(deferred(*at, expect, op)), ..step }),
                // Its base is what the commit before it makes.
                Work::Content { file, .. } if !files.insert(file.ino()) => break,
                Work::Content { file, upto } => Next::Content { step, at: *at, file: file.clone(), upto: *upto },
                Work::Undone => Next::Change(step),
            });
        }
        next
    }

    /// Whether this entry is in the journal.
    fn is_kept(&self, number: u64) -> bool {
        self.inner.lock().kept >= number
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.inner.lock().strict
    }

    /// Adds the files behind this entry whose content in the journal is based on less than what metad has of them by now.
    fn add_kept_files(&self, behind: u64, files: &mut Vec<JournaledFile>) {
        let mut seen: HashSet<Ino> = files.iter().map(|file| file.ino).collect();
        let inner = self.inner.lock();
        let from = inner.entries.partition_point(|entry| entry.number <= behind);
        for entry in inner.entries.range(from..) {
            let (Work::Content { file, .. }, Some(kept_base)) = (&entry.work, entry.kept_base) else { continue };
            let base = file.base();
            if base > kept_base && seen.insert(file.ino()) {
                files.push(JournaledFile { ino: file.ino(), base, committed: false });
            }
        }
    }

    /// The first entry is done.
    fn pop(&self, number: u64) {
        let mut inner = self.inner.lock();
        debug_assert_eq!(inner.entries.front().map(|entry| entry.number), Some(number), "told in order");
        inner.pop(number);
        drop(inner);
        self.progress.notify_waiters();
    }
}

fn deferred(at: Timestamp, expect: &[Expect], op: &Op) -> Op {
    Op::Deferred { at, expect: expect.to_vec(), op: Box::new(op.clone()) }
}

impl Client {
    /// Tells what waits, as far as one batch holds it.
    async fn tell_some(self: &Arc<Self>) -> Result<(), FsError> {
        self.note_session().await;
        let mut steps = self.gather_steps().await?;
        while !steps.is_empty() {
            let mut ops: Vec<Op> = steps.iter().filter_map(|step| step.op.clone()).collect();
            ops.extend(self.journal_position(&steps));
            let told = if ops.is_empty() { Ok(Vec::new()) } else { self.session.submit_batch(ops).await };
            match told {
                Ok(replies) => {
                    self.told(steps, replies).await;
                    return Ok(());
                }
                Err(BatchFailed { error, index: None }) => return Err(error),
                Err(BatchFailed { error, index: Some(index) }) => {
                    let refused = place_of(&steps, index);
                    let behind = steps.split_off(refused);
                    if refused == 0 {
                        let Some(step) = behind.into_iter().next() else { return Err(error) };
                        // What is behind it may have to be told otherwise now.
                        return self.judge(step, error).await;
                    }
                    // Nothing was done of the batch: first what comes before the refused one.
                }
            }
        }
        Ok(())
    }

    /// Whoever finds the journal must end the session by which it was told last, before it tells the rest.
    async fn note_session(&self) {
        let Some(journal) = self.journal.as_ref().filter(|journal| journal.last() > 0) else { return };
        let session = self.session.id();
        if journal.session() != Some(session)
            && let Err(error) = journal.note_session(session).await
        {
            tracing::warn!(%error, "the journal cannot be written: after a crash, some of it may be told twice");
        }
    }

    /// What metad is to remember of the journal with these entries.
    fn journal_position(&self, steps: &[Step]) -> Option<Op> {
        let journal = self.journal.as_ref()?.id();
        let last = steps.last()?;
        // Entries without an operation are remembered if the journal has them.
        if steps.iter().all(|step| step.op.is_none()) && !self.writeback.is_kept(steps.first()?.number) {
            return None;
        }
        let left = last.content.as_ref().map_or(0, |content| content.left);
        let contents = steps.iter().filter_map(|step| step.content.as_ref());
        let mut files: Vec<JournaledFile> =
            contents.map(|content| content.plan.journaled(content.file.ino())).collect();
        self.writeback.add_kept_files(last.number, &mut files);
        let position = Some(JournalPosition { told: last.number - u64::from(left > 0), left: left as u64, files });
        Some(Op::Journaled { journal, position })
    }

    async fn gather_steps(self: &Arc<Self>) -> Result<Vec<Step>, FsError> {
        let entries = self.writeback.next_entries();
        // What these wait for must be on its way, and what is further behind may be, while they are told.
        self.upload_gathered();
        let (mut steps, mut writes) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            match entry {
                Next::Change(step) => steps.push(step),
                Next::Content { step, at, file, upto } => {
                    // What comes before it need not wait for daemons that are away.
                    if !steps.is_empty() && timeout(UPLOADS_WAITED, uploads(&file, upto)).await.is_err() {
                        break;
                    }
                    let (step, failed) = match self.gather_content(step, at, file, upto).await {
                        // Nor for a failure.
                        Err(_) if !steps.is_empty() => break,
                        gathered => gathered?,
                    };
                    let partial = step.content.as_ref().is_some_and(|content| content.left > 0);
                    writes += step.content.as_ref().map_or(0, |content| content.plan.writes().len());
                    steps.push(step);
                    // What comes behind content that failed may have been undone with it.
                    if failed || partial || writes >= WRITES_MAX {
                        break;
                    }
                }
            }
        }
        Ok(steps)
    }

    /// Content as one commit, and whether that failed.
    ///
    /// # Errors
    /// The same, when nothing may be left out.
    async fn gather_content(
        self: &Arc<Self>,
        mut step: Step,
        at: Timestamp,
        file: Arc<FileState>,
        upto: u64,
    ) -> Result<(Step, bool), FsError> {
        let ino = file.ino();
        if self.is_unlinked_and_closed(&file) && !self.writeback.is_moved(ino) {
            // Nobody can read it any more. Where it was renamed, or is to be replaced, that may still be undone.
            self.discard(&file).await;
            self.forget_if_idle(&file);
            return Ok((step, false));
        }
        let one = file.begin_flush().await;
        let gathered = match self.gather(&file, upto).await {
            Ok(plan) => self.policy(&file, true).await.map(|policy| (plan, policy)),
            Err(error) => Err(error),
        };
        match gathered {
            Ok((plan, (_, copy))) if plan.is_empty() => {
                if let Some(unused) = copy {
                    self.session.keep_spare(unused);
                }
            }
            Ok((plan, (policy, copy))) => {
                let left = file.sealed_behind(plan.pieces(), upto);
                step.op = Some(deferred(at, &[], &plan.op(ino, policy)));
                step.content = Some(Content { file, plan, copy, left, _one: one });
            }
            // What is away comes back.
            Err(error) if self.writeback.is_strict() || !is_full(error) => return Err(error),
            Err(error) => {
                self.content_failed(&file, error);
                // It must not be told before the journal knows it.
                self.keep_undone().await;
                return Ok((step, true));
            }
        }
        Ok((step, false))
    }

    fn is_unlinked_and_closed(&self, file: &FileState) -> bool {
        let gone = self.known.attr(file.ino()).is_some_and(|attr| attr.nlink == 0);
        gone && !file.is_open()
    }

    /// Takes in that metad knows these entries now.
    async fn told(self: &Arc<Self>, steps: Vec<Step>, replies: Vec<OpReply>) {
        let mut replies = replies.into_iter();
        for step in steps {
            let reply = step.op.as_ref().and_then(|_| replies.next());
            let (inos, names) = (step.inos, step.names);
            match (step.content, reply) {
                (Some(content), Some(reply)) => {
                    let partial = content.left > 0;
                    let (file, plan, nameless) = self.content_told(content, reply);
                    if nameless && !file.is_open() {
                        // Others have removed it, and metad keeps it only until we say that it is not open here.
                        self.keep_beside(&file, plan.writes(), None).await;
                    }
                    if partial {
                        return;
                    }
                }
                (_, Some(OpReply::Removed { attr, orphaned })) => self.removed(&attr, orphaned),
                (_, Some(OpReply::Renamed { replaced: Some(attr), orphaned, .. })) => self.removed(&attr, orphaned),
                _ => {}
            }
            self.done(step.number, &inos, &names);
        }
    }

    /// The first entry is told.
    fn done(&self, number: u64, inos: &[Ino], names: &[(Ino, Name)]) {
        self.known.unpin(number, inos, names);
        self.writeback.pop(number);
    }

    /// An inode has lost a name, maybe its last one.
    fn removed(self: &Arc<Self>, attr: &InodeAttr, orphaned: bool) {
        let (client, ino) = (self.clone(), attr.ino);
        if orphaned {
            self.in_background(async move { client.keep_or_release(&[ino]).await });
        } else if attr.nlink == 0 {
            // What could not be stored of it would be tried for ever.
            self.drop_unread(ino);
        }
    }

    /// Takes in the answer to a commit. Returns what was committed, and whether that has no name any more.
    fn content_told(self: &Arc<Self>, content: Content, reply: OpReply) -> (Arc<FileState>, Plan, bool) {
        let Content { file, plan, copy, .. } = content;
        if let OpReply::Committed { attr, .. } = &reply {
            self.known.repin(attr);
        }
        let outcome = judge(&plan, Ok(reply), Way::Queued);
        let (report, nameless) = (outcome.report(), outcome.is_nameless());
        self.take_outcome(&file, &plan, outcome, copy);
        file.note_committed(report);
        self.forget_if_idle(&file);
        (file, plan, nameless)
    }

    /// Decides what becomes of what metad has refused: others were there first, while this session was away.
    async fn judge(self: &Arc<Self>, step: Step, error: FsError) -> Result<(), FsError> {
        let passes = matches!(error, FsError::NoSpace | FsError::QuotaExceeded | FsError::SessionExpired);
        if passes && (step.content.is_none() || self.writeback.is_strict()) {
            return Err(error);
        }
        if error == FsError::Stale && self.writeback.is_in_time(step.number, self.known.lapses()) {
            return Ok(());
        }
        let op = step.op.as_ref().map(Op::plain).cloned();
        match op {
            Some(Op::Create { parent, name, ino, .. }) if error == FsError::Exists || error == FsError::NotFound => {
                let parent = if error == FsError::NotFound { Ino::ROOT } else { parent };
                self.make_elsewhere(&step, (parent, &name), ino);
                return Ok(());
            }
            Some(Op::Rename { new_parent, new_name, name, parent, .. }) if error == FsError::Stale => {
                if self.leads_still(parent, &name, &step).await {
                    self.move_elsewhere(&step, new_parent, &new_name);
                    return Ok(());
                }
                tracing::warn!(
                    name = %String::from_utf8_lossy(&name),
                    "a file was renamed here while this mount was away from the cluster, and elsewhere too: that stays"
                );
                self.leave_out(step);
                return Ok(());
            }
            Some(Op::Commit { ino, .. }) => {
                tracing::debug!(%ino, %error, "a commit was refused");
                let told = self.journal_position(std::slice::from_ref(&step));
                let Some(content) = step.content else { return Ok(()) };
                let Content { file, plan, left, .. } = &content;
                match judge(plan, Err(error), Way::Queued) {
                    Outcome::Stays(error) if self.writeback.is_strict() => return Err(error),
                    Outcome::Stays(error) => {
                        self.content_failed(file, error);
                        self.keep_undone().await;
                    }
                    Outcome::Beside => {
                        self.take_outcome(file, plan, Outcome::Beside, None);
                        self.keep_beside(file, plan.writes(), told).await;
                        if *left > 0 {
                            return Ok(());
                        }
                    }
                    // It is sent once more, and gets another copy.
                    outcome => {
                        self.take_outcome(file, plan, outcome, None);
                        return Ok(());
                    }
                }
            }
            other => {
                tracing::warn!(op = ?other, %error, "what was done here while this mount was away is left out: others were first");
                self.leave_out(step);
                return Ok(());
            }
        }
        self.done(step.number, &step.inos, &step.names);
        Ok(())
    }

    /// The first entry was refused, and nothing comes of it.
    fn leave_out(&self, step: Step) {
        self.known.undo(step.number, &step.inos, &step.names);
        self.writeback.note_lost(FsError::Stale);
        self.writeback.pop(step.number);
        self.kernel_unlearns((step.inos, step.names));
    }

    /// Whether the name still leads where this session knew it to lead.
    async fn leads_still(&self, parent: Ino, name: &[u8], step: &Step) -> bool {
        let Some(Op::Deferred { expect, .. }) = &step.op else { return false };
        let Some(known) = expect.iter().find(|expect| expect.parent == parent && expect.name == name) else {
            return false;
        };
        let read = wire::op::Read::Lookup { parent, name: name.to_vec() };
        match self.session.read_to_send(read).await {
            Ok(wire::op::ReadReply::Attr(attr)) => Some(attr.ino) == known.ino,
            _ => false,
        }
    }

    fn conflict_name(&self, name: &[u8]) -> Name {
        let mut suffix = self.conflict_suffix();
        suffix.truncate(NAME_BYTES_MAX);
        // Once more with the same name: others have that one, too.
        let name = match name.windows(suffix.len()).position(|part| part == suffix.as_slice()) {
            Some(at) => {
                let (copy, number) = name.split_at(at + suffix.len());
                let number = std::str::from_utf8(number).ok().and_then(|number| number.strip_prefix('.')?.parse().ok());
                [copy, format!(".{}", number.map_or(1, |number: u32| number.saturating_add(1))).as_bytes()].concat()
            }
            None => {
                let mut name = name[..name.len().min(NAME_BYTES_MAX - suffix.len())].to_vec();
                name.extend_from_slice(&suffix);
                name
            }
        };
        let from = name.len().saturating_sub(NAME_BYTES_MAX);
        name[from..].to_vec()
    }

    /// What was made here gets another name, because others have made something of the same one, or taken its directory
    /// away. What was done to it by its name follows.
    fn make_elsewhere(&self, step: &Step, (parent, name): (Ino, &[u8]), made: Ino) {
        let new_name = self.conflict_name(name);
        tracing::warn!(
            name = %String::from_utf8_lossy(name),
            conflict = %String::from_utf8_lossy(&new_name),
            "another session made the same name first; what was made here is kept beside it"
        );
        let Some(old) = step.names.first().cloned() else { return };
        self.rename_entries(step.number, &old, &(parent, new_name), made);
    }

    /// What was moved here goes to another name, because others have put something else at the one it was to get.
    fn move_elsewhere(&self, step: &Step, parent: Ino, name: &[u8]) {
        let new_name = self.conflict_name(name);
        tracing::warn!(
            name = %String::from_utf8_lossy(name),
            conflict = %String::from_utf8_lossy(&new_name),
            "another session put something else under this name first; what was moved here is kept beside it"
        );
        let Some(moved) = step.inos.last().copied() else { return };
        self.rename_entries(step.number, &(parent, name.to_vec()), &(parent, new_name), moved);
    }

    /// From this entry on, `ino` has the name `new` instead of `old`, until something else gets that. What was to take its
    /// place at `old` finds something else there, and is refused in its turn.
    fn rename_entries(&self, from: u64, old: &(Ino, Name), new: &(Ino, Name), ino: Ino) {
        let cache = &self.known;
        let mut inner = self.writeback.inner.lock();
        for entry in inner.entries.iter_mut().filter(|entry| entry.number >= from) {
            let first = entry.number == from;
            let Work::Change { op, expect } = &mut entry.work else { continue };
            let is_old = |expect: &Expect| (expect.parent, &expect.name) == (old.0, &old.1);
            let follows = name_taken(op).is_some_and(|(parent, name)| (parent, name) == (old.0, &old.1))
                && expect.iter().any(|expect| is_old(expect) && expect.ino == Some(ino));
            if !first && !follows {
                continue;
            }
            rename_in(op, old, new, first);
            expect.retain(|expect| !(first && is_old(expect)));
            if first && matches!(op, Op::Rename { .. }) {
                // Nor may it replace what has that name by now.
                expect.push(Expect { parent: new.0, name: new.1.clone(), ino: None, version: None });
            }
            for expect in expect.iter_mut().filter(|expect| is_old(expect)) {
                (expect.parent, expect.name) = new.clone();
            }
            cache.undo(entry.number, &[], std::slice::from_ref(old));
            if first {
                let names = vec![(new.0, new.1.clone(), Some(ino))];
                cache.pin(entry.number, Local { names, ..Local::default() });
            }
            for name in entry.names.iter_mut().filter(|name| *name == old) {
                *name = new.clone();
            }
        }
    }

    /// Content of a file that others have removed goes into a new one beside where it was, and with it what metad is to
    /// remember of the journal.
    async fn keep_beside(self: &Arc<Self>, file: &Arc<FileState>, writes: &[ExtentWrite], told: Option<Op>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        while let Err(error) = self.make_beside(file, writes, told.as_ref()).await {
            tracing::warn!(ino = %file.ino(), %error, "what was written to a file that was removed elsewhere is not kept yet");
            tokio::time::sleep(backoff.delay()).await;
        }
        file.report_later(FsError::Stale);
        self.forget_if_idle(file);
        self.release_closed_orphan(file.ino()).await;
    }

    /// One attempt at it. What is written after that goes there, too.
    pub(crate) async fn make_beside(
        self: &Arc<Self>,
        file: &FileState,
        writes: &[ExtentWrite],
        told: Option<&Op>,
    ) -> Result<(), FsError> {
        let place = self.names.lock().iter().find(|(_, ino)| **ino == file.ino()).map(|(place, _)| place.clone());
        let (mut parent, name) = place.unwrap_or((Ino::ROOT, format!("inode-{}", file.ino()).into_bytes()));
        let mut name = self.conflict_name(&name);
        let attr = file.attr();
        loop {
            let ino = self.session.next_ino().await?;
            let made = plan::beside((parent, &name), ino, &attr, writes);
            // As everything that is told: it waits for no other session that has to tell something, too.
            let at = self.session.stamp();
            let told = told.cloned();
            let ops = made.iter().map(|op| deferred(at, &[], op)).chain(told).collect();
            match self.session.submit_batch(ops).await {
                Ok(_) => {
                    tracing::warn!(
                        ino = %file.ino(),
                        copy = %String::from_utf8_lossy(&name),
                        "the file was removed elsewhere while it was written here; what was written is kept"
                    );
                    file.divert(ino, Instant::now());
                    return Ok(());
                }
                Err(BatchFailed { error: FsError::Exists, .. }) => name = self.conflict_name(&name),
                // There is another one by now.
                Err(BatchFailed { error: FsError::SessionExpired, .. }) => {}
                Err(BatchFailed { error: FsError::NotFound | FsError::NotADirectory, .. }) if parent != Ino::ROOT => {
                    parent = Ino::ROOT;
                }
                Err(BatchFailed { error, .. }) => return Err(error),
            }
        }
    }
}

/// Waits until all uploads of a file up to this one have come to an end.
async fn uploads(file: &FileState, upto: u64) {
    for mut outcome in file.uploads(upto) {
        // What has ended without an outcome is tried again by who needs it.
        let _ = outcome.wait_for(Option::is_some).await;
    }
}

/// The step of the operation with this number in the batch.
fn place_of(steps: &[Step], index: usize) -> usize {
    let mut ops = steps.iter().enumerate().filter(|(_, step)| step.op.is_some());
    ops.nth(index).map_or(0, |(place, _)| place)
}

/// The name that an operation takes away: what it is done to.
fn name_taken(op: &Op) -> Option<(Ino, &Name)> {
    match op {
        Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name } | Op::Rename { parent, name, .. } => {
            Some((*parent, name))
        }
        _ => None,
    }
}

/// Puts one name in place of another: of what is made or where something is moved to if it is the `first` one that has the
/// new name, of what is removed or moved away else.
fn rename_in(op: &mut Op, old: &(Ino, Name), new: &(Ino, Name), first: bool) {
    match op {
        Op::Create { parent, name, .. } if first => (*parent, *name) = new.clone(),
        Op::Rename { new_parent, new_name, released, .. } if first => {
            (*new_parent, *new_name) = new.clone();
            *released = None;
        }
        Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name } | Op::Rename { parent, name, .. }
            if (*parent, &*name) == (old.0, &old.1) =>
        {
            (*parent, *name) = new.clone();
        }
        _ => {}
    }
}

//! Sending operations under delegations: batches in the order of the queue, one after the other.
//!
//! None of them can be refused while the delegations hold. A session that was away for longer than its leases has lost
//! them, and others went on without it. Then each operation is judged by what it expected to find: what others did
//! stays, what was done here goes beside it (`NAME.conflict-HOST-TIME`), and no content is lost (I6).

mod steps;

use crate::commit::committer::{Committer, committed, is_full};
use crate::commit::outcome::{Outcome, Way, judge};
use crate::commit::plan::Plan;
use crate::error::note_unexpected_reply;
use crate::file::state::FileState;
use crate::flusher::Flusher;
use crate::journal::Journal;
use crate::kernel::Kernel;
use crate::known::leased::LeasedSession;
use crate::known::{Known, Place};
use crate::meta::session::BatchFailed;
use crate::open::OpenFiles;
use crate::queue::judge::{Refused, Verdict, decide, expected_at};
use crate::work::Work as Tasks;
use crate::writeback::WriteBack;
use std::sync::Arc;
use std::time::Duration;
use steps::{Content, Next, Step, add_journaled_files, deferred, expect_own, must_wait, next_entries, place_of};
use tokio::time::timeout;
use wire::FsError;
use wire::attr::{InodeAttr, Timestamp};
use wire::ids::Ino;
use wire::op::{JournalPosition, JournaledFile, Op, OpReply, Read, ReadReply};
use wire::retry::Backoff;

/// The most writes in one batch.
const WRITES_MAX: usize = 4096;
/// How long changes wait for content that follows them in the same batch.
const UPLOADS_WAITED: Duration = Duration::from_millis(250);
/// The first and the longest pause after an attempt that failed.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// Sends what is in the queue.
pub(crate) struct Sender {
    pub session: Arc<LeasedSession>,
    pub known: Arc<Known>,
    pub writeback: Arc<WriteBack>,
    pub journal: Option<Arc<Journal>>,
    pub committer: Arc<Committer>,
    pub flusher: Arc<Flusher>,
    pub open_files: Arc<OpenFiles>,
    pub kernel: Arc<Kernel>,
    pub work: Tasks,
}

impl Sender {
    /// Sends what is in the queue.
    pub async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            self.writeback.wait_due().await;
            match self.send_batch().await {
                Ok(()) => backoff = Backoff::new(RETRY_FIRST, RETRY_MOST),
                // There is a new session by now.
                Err(FsError::SessionExpired) => {}
                Err(error) => {
                    tracing::warn!(%error, "what was done is not sent to metad yet; it is tried again");
                    self.writeback.note_failure(error);
                    tokio::time::sleep(backoff.delay()).await;
                }
            }
        }
    }

    /// Sends the first entries, as many as one batch holds.
    async fn send_batch(&self) -> Result<(), FsError> {
        self.note_session().await;
        let mut steps = self.gather_steps().await?;
        while !steps.is_empty() {
            let mut ops: Vec<Op> = steps.iter().filter_map(|step| step.op.clone()).collect();
            ops.extend(self.journal_position(&steps));
            let sent = if ops.is_empty() { Ok(Vec::new()) } else { self.session.submit_batch(ops).await };
            match sent {
                Ok(replies) => {
                    self.take_replies(steps, replies).await;
                    return Ok(());
                }
                Err(BatchFailed { error, index: None }) => return Err(error),
                Err(BatchFailed { error, index: Some(index) }) => {
                    let Some(refused) = place_of(&steps, index) else {
                        // metad refused none of them, but the position in the journal. With fewer entries, that is
                        // smaller.
                        if steps.len() < 2 {
                            return Err(error);
                        }
                        steps.truncate(steps.len() / 2);
                        continue;
                    };
                    let behind = steps.split_off(refused);
                    if refused == 0 {
                        let Some(step) = behind.into_iter().next() else { return Err(error) };
                        // Later entries may have to be sent differently now.
                        return self.judge(step, error).await;
                    }
                    // Nothing of the batch was done: what comes before the refused one is sent first.
                }
            }
        }
        Ok(())
    }

    /// Notes the session in the journal: a client that finds it must end the session by which it was sent last, before
    /// it sends the rest.
    async fn note_session(&self) {
        let Some(journal) = self.journal.as_ref().filter(|journal| journal.last() > 0) else { return };
        let session = self.session.id();
        if journal.session() != Some(session)
            && let Err(error) = journal.note_session(session).await
        {
            tracing::warn!(%error, "the journal cannot be written: after a crash, some of it may be sent twice");
        }
    }

    /// Returns what metad is to remember of the journal with these entries.
    fn journal_position(&self, steps: &[Step]) -> Option<Op> {
        let journal = self.journal.as_ref()?.id();
        let (first, last) = (steps.first()?.number, steps.last()?);
        // Entries without an operation are remembered if the journal has them.
        if steps.iter().all(|step| step.op.is_none()) && !self.writeback.with(|core| core.is_journaled(first)) {
            return None;
        }
        let left = last.content.as_ref().map_or(0, |content| content.left);
        let contents = steps.iter().filter_map(|step| step.content.as_ref());
        let mut files: Vec<JournaledFile> =
            contents.map(|content| content.plan.journaled(content.file.ino())).collect();
        add_journaled_files(&self.writeback, last.number, &mut files);
        let position =
            Some(JournalPosition { acknowledged: last.number - u64::from(left > 0), left: left as u64, files });
        Some(Op::Journaled { journal, position })
    }

    async fn gather_steps(&self) -> Result<Vec<Step>, FsError> {
        let entries = next_entries(&self.writeback);
        // Content that these entries wait for must be uploading, and later content may be, while they are sent.
        self.committer.uploader().upload_gathered();
        let (mut steps, mut writes) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            match entry {
                Next::Change(step) if step.op.as_ref().is_some_and(|op| must_wait(op, &steps)) => break,
                Next::Change(mut step) => {
                    step.op.as_mut().into_iter().for_each(|op| expect_own(&self.writeback, op));
                    steps.push(step);
                }
                Next::Content { step, at, file, upto } => {
                    // Earlier entries need not wait for daemons that are away.
                    if !steps.is_empty() && timeout(UPLOADS_WAITED, uploads(&file, upto)).await.is_err() {
                        break;
                    }
                    let (step, failed) = match self.gather_content(step, at, file, upto).await {
                        // Nor must a failure hold them up.
                        Err(_) if !steps.is_empty() => break,
                        gathered => gathered?,
                    };
                    let partial = step.content.as_ref().is_some_and(|content| content.left > 0);
                    writes += step.content.as_ref().map_or(0, |content| content.plan.writes().len());
                    steps.push(step);
                    // Entries behind content that failed may have been undone with it.
                    if failed || partial || writes >= WRITES_MAX {
                        break;
                    }
                }
            }
        }
        Ok(steps)
    }

    /// Gathers content as one commit. Returns also whether that failed.
    ///
    /// # Errors
    /// Returns the failure itself when nothing may be left out.
    async fn gather_content(
        &self,
        mut step: Step,
        at: Timestamp,
        file: Arc<FileState>,
        upto: u64,
    ) -> Result<(Step, bool), FsError> {
        let ino = file.ino();
        if self.is_unlinked_and_closed(&file) && !self.writeback.is_moved(ino) {
            // Nobody can read it any more. A rename or a replacement by it may still be undone.
            self.writeback.with(|core| {
                // I6: once it is dropped, the base moves with what others do. When the batch is sent again, what was noted
                // before counts.
                if file.is_dirty() || core.content_before(ino).is_none() {
                    core.note_content(ino, file.base());
                }
            });
            self.committer.discard(&file).await;
            self.open_files.forget_if_idle(&file);
            return Ok((step, false));
        }
        let one = file.begin_flush().await;
        let gathered = match self.committer.gather(&file, upto).await {
            Ok(plan) => self.committer.policy(&file, true).await.map(|policy| (plan, policy)),
            Err(error) => Err(error),
        };
        match gathered {
            Ok((plan, (_, copy))) if plan.is_empty() => {
                if let Some(unused) = copy {
                    self.session.return_spare(unused);
                }
            }
            Ok((plan, (policy, copy))) => {
                let left = file.sealed_behind(plan.pieces(), upto);
                step.op = Some(deferred(at, &[], &plan.op(ino, policy)));
                step.content = Some(Content { file, plan, copy, left, _one: one });
            }
            // Servers that are away will come back.
            Err(error) if self.writeback.is_strict() || !is_full(error) => return Err(error),
            Err(error) => {
                self.flusher.content_failed(&file, error);
                // It must not be sent before the undoing is in the journal.
                self.flusher.write_undone().await;
                return Ok((step, true));
            }
        }
        Ok((step, false))
    }

    fn is_unlinked_and_closed(&self, file: &FileState) -> bool {
        let gone = self.known.attr(file.ino()).is_some_and(|attr| attr.nlink == 0);
        gone && !file.is_open()
    }

    /// Applies the answers to these entries.
    async fn take_replies(&self, steps: Vec<Step>, replies: Vec<OpReply>) {
        let mut replies = replies.into_iter();
        for step in steps {
            let reply = step.op.as_ref().and_then(|_| replies.next());
            if step.op.is_some() && reply.is_none() {
                // Content stays with its file, which commits it again.
                note_unexpected_reply();
            }
            let (inos, names) = (step.inos, step.names);
            match (step.content, reply) {
                (Some(content), Some(reply)) => {
                    let partial = content.left > 0;
                    let (file, plan, nameless) = self.take_content_reply(content, reply);
                    if nameless && !file.is_open() {
                        // Others have removed it, and metad retains it only until this session reports that it is not
                        // open here.
                        self.put_beside(&file, &plan, None).await;
                    }
                    if partial {
                        return;
                    }
                }
                (_, Some(OpReply::Removed { attr, orphaned })) => self.removed(&attr, orphaned),
                (_, Some(OpReply::Renamed { replaced: Some(attr), orphaned, .. })) => self.removed(&attr, orphaned),
                _ => {}
            }
            self.writeback.done(step.number, &inos, &names);
        }
    }

    /// Handles that an inode has lost a name, perhaps its last one.
    fn removed(&self, attr: &InodeAttr, orphaned: bool) {
        let (open_files, ino) = (self.open_files.clone(), attr.ino);
        if orphaned {
            self.work.spawn_until_stopped(async move { open_files.retain_or_release(&[ino]).await });
        } else if attr.nlink == 0 {
            // Content that could not be stored would otherwise be tried for ever.
            self.open_files.drop_unread(ino);
        }
    }

    /// Applies the answer to a commit. Returns what was committed, and whether the file has no name any more.
    fn take_content_reply(&self, content: Content, reply: OpReply) -> (Arc<FileState>, Plan, bool) {
        let Content { file, plan, copy, .. } = content;
        if let OpReply::Committed { attr, .. } = &reply {
            self.known.follow_commit(attr);
        }
        let outcome = judge(&plan, committed(reply), Way::Queued);
        self.writeback.with(|core| core.note_content(file.ino(), outcome.own_version(&plan)));
        let (report, nameless) = (outcome.report(), outcome.is_nameless());
        self.committer.take_outcome(&file, &plan, outcome, copy);
        file.note_committed(report);
        self.open_files.forget_if_idle(&file);
        (file, plan, nameless)
    }

    /// Decides what to do about an entry that metad has refused: others were first, while this session was away.
    async fn judge(&self, step: Step, error: FsError) -> Result<(), FsError> {
        if error == FsError::Stale && self.writeback.is_in_time(step.number) {
            return Ok(());
        }
        let (op, has_content, strict) = (step.op.as_ref(), step.content.is_some(), self.writeback.is_strict());
        let root = self.session.root();
        match decide(&Refused { op, has_content, error, strict, root }) {
            Verdict::Wait => return Err(error),
            Verdict::MakeElsewhere { parent, name, ino } => {
                self.make_elsewhere(&step, (parent, &name), ino);
                return Ok(());
            }
            Verdict::MoveElsewhere { from, to } => {
                if self.leads_still(&from, &step).await {
                    self.move_elsewhere(&step, to);
                    return Ok(());
                }
                tracing::warn!(
                    name = %String::from_utf8_lossy(&from.1),
                    "a file was renamed here while this mount was away from the cluster, and elsewhere too: that stays"
                );
                self.leave_out(step);
                return Ok(());
            }
            Verdict::Content { ino } => {
                tracing::debug!(%ino, %error, "a commit was refused");
                let position = self.journal_position(std::slice::from_ref(&step));
                let Some(content) = step.content else { return Ok(()) };
                let Content { file, plan, left, .. } = &content;
                match judge(plan, Err(error), Way::Queued) {
                    Outcome::Stays(error) if self.writeback.is_strict() => return Err(error),
                    Outcome::Stays(error) => {
                        self.flusher.content_failed(file, error);
                        self.flusher.write_undone().await;
                    }
                    Outcome::Beside => {
                        self.committer.take_outcome(file, plan, Outcome::Beside, None);
                        self.put_beside(file, plan, position).await;
                        if *left > 0 {
                            return Ok(());
                        }
                    }
                    // It is sent once more, with another copy.
                    outcome => {
                        self.committer.take_outcome(file, plan, outcome, None);
                        return Ok(());
                    }
                }
            }
            Verdict::LeaveOut => {
                tracing::warn!(op = ?step.op, %error, "what was done here while this mount was away is left out: others were first");
                self.leave_out(step);
                return Ok(());
            }
        }
        self.writeback.done(step.number, &step.inos, &step.names);
        Ok(())
    }

    /// Leaves out the first entry, which was refused.
    fn leave_out(&self, step: Step) {
        self.writeback.leave_out(step.number, &step.inos, &step.names);
        self.kernel.unlearns(step.inos, step.names);
    }

    /// Returns whether the name still leads where this session believed.
    async fn leads_still(&self, place: &Place, step: &Step) -> bool {
        let Some(known) = step.op.as_ref().and_then(|op| expected_at(op, place)) else { return false };
        let read = Read::Lookup { parent: place.0, name: place.1.clone() };
        match self.session.read_to_send(read).await {
            Ok(ReadReply::Attr(attr)) => attr.ino == known,
            Ok(_) => {
                note_unexpected_reply();
                false
            }
            Err(_) => false,
        }
    }

    /// Gives what was made here another name, because others have made something of the same name, or removed its
    /// directory. Later operations by its name follow.
    fn make_elsewhere(&self, step: &Step, (parent, name): (Ino, &[u8]), made: Ino) {
        let new_name = self.committer.conflict_name(name);
        tracing::warn!(
            name = %String::from_utf8_lossy(name),
            conflict = %String::from_utf8_lossy(&new_name),
            "another session made the same name first; what was made here is kept beside it"
        );
        let Some(old) = step.names.first().cloned() else { return };
        self.writeback.rename_entries(step.number, &old, &(parent, new_name), made);
    }

    /// Moves what was moved here to another name, because others have put something else at its new one.
    fn move_elsewhere(&self, step: &Step, to: Place) {
        let new_name = self.committer.conflict_name(&to.1);
        tracing::warn!(
            name = %String::from_utf8_lossy(&to.1),
            conflict = %String::from_utf8_lossy(&new_name),
            "another session put something else under this name first; what was moved here is kept beside it"
        );
        let Some(moved) = step.inos.last().copied() else { return };
        let beside = (to.0, new_name);
        self.writeback.rename_entries(step.number, &to, &beside, moved);
    }

    /// Puts content of a file that others have removed into a new file beside it, together with what metad is to
    /// remember of the journal.
    async fn put_beside(&self, file: &Arc<FileState>, plan: &Plan, position: Option<Op>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        while let Err(error) = self.committer.make_beside(file, plan, position.as_ref()).await {
            tracing::warn!(ino = %file.ino(), %error, "what was written to a file that was removed elsewhere is not kept yet");
            tokio::time::sleep(backoff.delay()).await;
        }
        file.report_later(FsError::Stale);
        self.open_files.forget_if_idle(file);
        self.open_files.release_closed_orphan(file.ino()).await;
    }
}

/// Waits until all uploads of a file up to this piece have ended.
async fn uploads(file: &FileState, upto: u64) {
    for mut outcome in file.uploads(upto) {
        // An upload that ended without an outcome is tried again when it is needed.
        let _ = outcome.wait_for(Option::is_some).await;
    }
}

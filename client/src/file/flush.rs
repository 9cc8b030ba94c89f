//! From written bytes to committed content: seal, upload, commit.
//!
//! *Sealing* cuts written bytes into blocks, which are uploaded at once in the background while the application writes
//! on. *Committing* makes everything that was sealed part of the file, in the order of sealing (I7), with the version it
//! is based on (I6). What fails stays, and is tried again by the next flush.
//!
//! A flush runs in a task of its own: a commit whose answer nobody takes in would look like another session's change, and
//! the next one would be in conflict with it.

use super::dirty::Packed;
use super::sealed::{Stored, To, Upload, Uploading};
use super::state::{FileState, Next, Unsaved};
use crate::commit::outcome::{Outcome, Pages, Way, judge};
use crate::commit::plan::{Draft, Plan};
use crate::meta::session::SpareIno;
use crate::queue::Touched;
use crate::{Client, Notice, OnConflict};
use bytes::Bytes;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use wire::FsError;
use wire::attr::Timestamp;
use wire::ids::{BlockHash, ChunkIndex};
use wire::limits::UPLOAD_FRESH_MS;
use wire::op::{ConflictPolicy, Name, Op};

/// Blocks up to this size are remembered after writing: small files are often read soon.
const REMEMBER_BYTES: usize = 1 << 20;
/// Blocks up to this size are hashed where they are; larger ones on a thread for that.
const HASH_INLINE: usize = 64 << 10;
/// A flush waits so often for what others put into the queue while it did.
const QUEUED_ROUNDS: u32 = 4;
/// A chunk in more pieces than this is compacted.
const COMPACT_EXTENTS: u32 = 1024;

/// Whether an error says that there is no room, and there will be none until something is removed.
pub(crate) fn is_full(error: FsError) -> bool {
    matches!(error, FsError::NoSpace | FsError::QuotaExceeded)
}

impl Client {
    /// Uploads what is written from end to end of a block: called after each write.
    pub(crate) fn seal_full(self: &Arc<Self>, file: &Arc<FileState>) {
        file.seal_full(|packed, to| self.begin_upload(packed, to));
    }

    /// Begins to upload content, to where it goes.
    pub(crate) fn begin_upload(self: &Arc<Self>, packed: &Packed, to: To) -> Uploading {
        let (report, outcome) = watch::channel(None);
        match to {
            To::Metadata => {
                let _ = report.send(Some(Ok(None)));
            }
            To::OwnBlock => self.spawn_upload(packed.clone(), report),
            To::SharedBlock => self.upload_together(packed.bytes.clone(), report),
        }
        Uploading { outcome, since: SystemTime::now() }
    }

    fn spawn_upload(self: &Arc<Self>, packed: Packed, report: watch::Sender<Upload>) {
        let client = self.clone();
        let upload = async move {
            let stored = client.upload(packed.bytes.clone()).await;
            let _ = report.send(Some(stored.map(|hash| Some(Stored { hash, block: packed.bytes, base: 0 }))));
        };
        self.work.spawn_on(self.stop.clone().run_until_cancelled_owned(upload), &self.runtime);
    }

    pub(crate) async fn upload(&self, block: Bytes) -> Result<BlockHash, FsError> {
        let bytes = block.clone();
        let hash = if bytes.len() <= HASH_INLINE {
            BlockHash::of(&bytes)
        } else {
            tokio::task::spawn_blocking(move || BlockHash::of(&bytes)).await.map_err(|_| FsError::Io)?
        };
        if block.len() <= REMEMBER_BYTES {
            self.fetcher.remember(hash, block.clone());
        }
        self.putter.put(hash, block).await?;
        Ok(hash)
    }

    /// Commits what is written so far, all of it (`whole`) or only what was sealed already. On return it is durable (I7).
    /// Goes on to its end though the caller is dropped.
    ///
    /// # Errors
    /// `Stale` when others wrote the same bytes: the content is in a conflict copy, or still here under the policy
    /// `Fail`. `NoSpace` and `Io` as they say; the content is still here. What is returned is also left with the file.
    pub(crate) async fn flush_file(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let (client, file) = (self.clone(), file.clone());
        self.to_its_end(async move {
            if whole {
                // It goes along with what it depends on.
                client.defer_content(&file);
            }
            client.send_all().await?;
            client.flush_here(&file, whole).await
        })
        .await
    }

    /// Does something that goes on to its end though the caller is dropped, or a soft mount's patience ends.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
    ) -> Result<T, FsError> {
        self.patiently(self.work.spawn_on(work, &self.runtime)).await?.unwrap_or(Err(FsError::Io))
    }

    async fn flush_here(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let mut rounds = 0;
        let (_one, last) = loop {
            let one = self.patiently(file.begin_flush()).await?;
            if whole {
                self.seal_rest(file, To::OwnBlock);
            }
            self.upload_gathered();
            rounds += 1;
            if !file.next_is_queued() || rounds == QUEUED_ROUNDS {
                break (one, file.last_sealed());
            }
            // What got into the queue meanwhile goes by the queue, which the journal follows.
            drop(one);
            self.send_all().await?;
        };
        file.note_committing(true);
        let committed = self.commit_upto(file, last).await;
        file.note_committing(false);
        committed
    }

    async fn commit_upto(self: &Arc<Self>, file: &Arc<FileState>, last: Option<u64>) -> Result<(), FsError> {
        let mut result = Ok(());
        while let Some(last) = last {
            if !file.has_sealed_upto(last) {
                break;
            }
            match self.commit_next(file, last).await {
                Ok(Ok(())) => {}
                // The rest is committed all the same.
                Ok(elsewhere) => result = elsewhere,
                // It was removed meanwhile, and is about to be dropped.
                Err(_) if file.is_unreadable() => return Ok(()),
                Err(error) => {
                    self.content_failed(file, error);
                    return Err(error);
                }
            }
        }
        file.note_committed(result);
        result
    }

    /// Content could not be committed: it stays with the file, whoever asks next is told, and the background tries again.
    pub(crate) fn content_failed(self: &Arc<Self>, file: &Arc<FileState>, error: FsError) {
        if is_full(error) {
            self.window.fail(error);
        }
        let Unsaved { released, unheard } = file.note_unsaved(error);
        if released > 0 {
            self.window.release(released);
        }
        if unheard {
            self.drop_refused(file);
        }
        // Servers that are away come back.
        if error != FsError::Io {
            let undone = self.writeback.undo_replacing(file.ino(), error);
            self.kernel_unlearns(undone);
        }
    }

    /// Drops what the policy refuses, and what nobody is left to be told of.
    fn drop_refused(self: &Arc<Self>, file: &Arc<FileState>) {
        tracing::warn!(ino = %file.ino(), "content that was in conflict is dropped: its writer has closed the file");
        let (client, file) = (self.clone(), file.clone());
        let dropping = async move {
            client.discard(&file).await;
            client.forget_if_idle(&file);
        };
        self.work.spawn_on(dropping, &self.runtime);
    }

    /// What was done to these inodes and names was undone, and the kernel believes what it has seen.
    pub(crate) fn kernel_unlearns(&self, (inos, names): Touched) {
        self.kernel.unlearns(inos, names);
    }

    /// Seals everything that is written. What is small may share a block with others' content, if `to` says so. Returns
    /// the number of what was sealed last, whenever that was.
    pub(crate) fn seal_rest(self: &Arc<Self>, file: &FileState, to: To) -> Option<u64> {
        file.seal_rest(to, |packed, to| self.begin_upload(packed, to))
    }

    /// Waits for the uploads of the next blocks and commits them together. Returns what their writer is to hear of that.
    ///
    /// # Errors
    /// Why they stay.
    async fn commit_next(self: &Arc<Self>, file: &Arc<FileState>, last: u64) -> Result<Result<(), FsError>, FsError> {
        let plan = self.gather(file, last).await?;
        let (answer, copy) = loop {
            let session = self.session.id();
            let (policy, copy) = self.policy(file, false).await?;
            let mut ops = vec![plan.op(file.ino(), policy)];
            ops.extend(self.journaled_content(file, &plan));
            match self.session.first_until_answered(ops).await {
                // I4: the session ended meanwhile, and with it the number for a copy.
                Err(FsError::Invalid) if self.session.id() != session => {}
                answer => break (answer, copy),
            }
        };
        let outcome = judge(&plan, answer, Way::AtOnce { unlinked: file.attr().nlink == 0 });
        match &outcome {
            Outcome::Stays(error) => return Err(*error),
            Outcome::Beside => self.make_beside(file, plan.writes(), None).await?,
            Outcome::Dropped => {
                tracing::warn!(ino = %file.ino(), "the file has no name, and was given up with the session: the content is dropped");
            }
            _ => {}
        }
        let report = outcome.report();
        self.take_outcome(file, &plan, outcome, copy);
        Ok(report)
    }

    /// What metad is to remember of the journal with a commit that it knows nothing of, if the rest of the content may get
    /// there.
    fn journaled_content(&self, file: &FileState, plan: &Plan) -> Option<Op> {
        let journal = self.journal.as_ref()?;
        file.has_more_than(plan.pieces()).then(|| {
            journal.note_content();
            Op::JournaledContent { journal: journal.id(), file: plan.journaled(file.ino()) }
        })
    }

    /// What is appended to a name when others were first.
    pub(crate) fn conflict_suffix(&self) -> Name {
        format!(".conflict-{}-{}", self.host, Timestamp::now().secs).into_bytes()
    }

    /// What to do on a conflict, with a number for the copy. Of what is told `late` the writer may have been answered that
    /// all is well: that is never refused.
    pub(crate) async fn policy(
        &self,
        file: &FileState,
        late: bool,
    ) -> Result<(ConflictPolicy, Option<SpareIno>), FsError> {
        Ok(match self.config.on_conflict {
            OnConflict::Fail if !late => (ConflictPolicy::Fail, None),
            OnConflict::LastWriter => (ConflictPolicy::LastWriter, None),
            OnConflict::Copy | OnConflict::Fail => {
                let spare = self.session.spare_ino().await?;
                let suffix = self.conflict_suffix();
                debug_assert_ne!(spare.ino, file.ino(), "numbers are never used twice");
                (ConflictPolicy::Copy { ino: spare.ino, suffix }, Some(spare))
            }
        })
    }

    /// The next blocks up to number `last`, once they are stored, as one commit.
    pub(crate) async fn gather(self: &Arc<Self>, file: &Arc<FileState>, last: u64) -> Result<Plan, FsError> {
        let mut draft = Draft::default();
        while let Some(Next { packed, uploading }) = file.sealed_at(draft.pieces(), last) {
            if !draft.takes(&packed) {
                break;
            }
            let Uploading { mut outcome, since } = uploading;
            let stored = outcome.wait_for(Option::is_some).await.map_err(|_| FsError::Io)?.clone();
            let stored = match stored.unwrap_or(Err(FsError::Io)) {
                // I10: it may have been dropped since, when this machine slept or metad was away for long.
                Ok(Some(stored)) if is_stale(since) => {
                    self.putter.put(stored.hash, stored.block.clone()).await.map(|()| Some(stored))
                }
                stored => stored,
            };
            match stored {
                Ok(stored) => draft.add(&packed, stored.as_ref()),
                Err(error) => {
                    self.retry_upload(file, draft.pieces(), packed);
                    return Err(error);
                }
            }
        }
        Ok(draft.finish(file.basis(Instant::now())))
    }

    /// The next flush finds a new attempt under way.
    fn retry_upload(self: &Arc<Self>, file: &FileState, index: usize, packed: Packed) {
        let (report, outcome) = watch::channel(None);
        file.upload_again(index, Uploading { outcome, since: SystemTime::now() });
        self.spawn_upload(packed, report);
    }

    /// Drops what is not committed: nobody can read it any more, or its writer was told that it is refused.
    pub(crate) async fn discard(&self, file: &FileState) {
        let _one = file.begin_flush().await;
        self.window.release(file.drop_uncommitted());
    }

    /// Takes in what has become of a commit; what goes beside must be there.
    pub(crate) fn take_outcome(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        plan: &Plan,
        outcome: Outcome,
        copy: Option<SpareIno>,
    ) {
        let (ino, pages, chunk_extents) = (file.ino(), outcome.pages(plan), outcome.chunk_extents());
        if let Some(unused) = copy.filter(|_| outcome.leaves_spare()) {
            self.session.keep_spare(unused);
        }
        if let Some(copy) = outcome.new_copy() {
            tracing::warn!(
                %ino,
                copy = %String::from_utf8_lossy(&copy.name),
                "another session wrote the same bytes first; this content was kept as a conflict copy"
            );
        }
        if let Pages::Follow(from, to) = pages {
            self.kernel_follows(ino, from, to);
        }
        if let Some(released) = outcome.take(file, plan, Instant::now()) {
            self.window.release(released);
        }
        if pages == Pages::Old {
            self.notify(Notice::Changed(ino));
        }
        if chunk_extents > COMPACT_EXTENTS
            && let Some(write) = plan.writes().last()
        {
            self.compact_later(ino, ChunkIndex::of(write.file_off), chunk_extents);
        }
    }
}

/// Whether an upload was so long ago that daemons may have given up the block.
fn is_stale(sealed_at: SystemTime) -> bool {
    // A clock that was set back tells nothing.
    sealed_at.elapsed().map_or(true, |age| age > Duration::from_millis(UPLOAD_FRESH_MS))
}

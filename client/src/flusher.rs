//! Flushing files: written content goes into the queue where that is allowed, and is committed at once elsewhere.

use crate::commit::committer::{Committer, Stopped};
use crate::file::sealed::To;
use crate::file::state::FileState;
use crate::journal::writer::Writer;
use crate::kernel::Kernel;
use crate::known::Known;
use crate::known::leased::LeasedSession;
use crate::open::OpenFiles;
use crate::work::Work;
use crate::writeback::{LockedQueue, Order, WriteBack};
use std::sync::Arc;
use wire::FsError;

/// Files that are flushed at once when many are.
pub(crate) const FLUSHES_MAX: usize = 32;
/// How many times a flush waits for what others put into the queue meanwhile.
const QUEUED_ROUNDS_MAX: u32 = 4;

/// Flushes files.
pub(crate) struct Flusher {
    /// Whether anything may wait in the queue.
    pub write_back: bool,
    pub session: Arc<LeasedSession>,
    pub known: Arc<Known>,
    pub writeback: Arc<WriteBack>,
    pub order: Arc<Order>,
    pub journal_writer: Option<Arc<Writer>>,
    pub committer: Arc<Committer>,
    pub open_files: Arc<OpenFiles>,
    pub kernel: Arc<Kernel>,
    pub work: Work,
}

impl Flusher {
    /// Returns the files whose uncommitted content somebody may still read, and which is not in the queue.
    pub fn unqueued_files(&self) -> Vec<Arc<FileState>> {
        self.open_files.filtered(|file| file.is_wanted() && !file.is_queued())
    }

    /// Puts a file's present content into the queue. False when it must be committed at once, or not at all.
    pub fn defer_content(&self, file: &Arc<FileState>) -> bool {
        // On a full disk, `close` must report the error.
        if !self.write_back || self.committer.window().is_failing() {
            return false;
        }
        let inos = [file.ino()];
        self.queue_content(file, || self.writeback.begin(&inos).filter(|_| self.known.is_delegated(&inos)))
    }

    /// Puts content into the queue that others may use too, when the mount ends and the servers are away, so that the
    /// journal has it.
    pub fn leave_content(&self, file: &Arc<FileState>) -> bool {
        self.queue_content(file, || Some(self.writeback.begin_leaving()))
    }

    fn queue_content<'a>(&'a self, file: &Arc<FileState>, begin: impl FnOnce() -> Option<LockedQueue<'a>>) -> bool {
        let ino = file.ino();
        let Some(written_at) = file.may_queue() else { return false };
        let at = written_at.unwrap_or_else(|| self.session.stamp());
        let Some(doing) = begin() else { return false };
        if self.known.attr(ino).is_some_and(|attr| attr.nlink == 0) {
            return false;
        }
        let Some(upto) = self.committer.seal_rest(file, To::SharedBlock) else { return true };
        if !file.enter_queue(upto) {
            return true;
        }
        doing.enter_content(at, ino, file.clone(), upto);
        true
    }

    /// Commits what is written so far, all of it (`whole`) or only what was sealed already, behind everything that was
    /// done before. On return it is durable (I7). Runs to its end though the caller is dropped: a commit whose answer
    /// is not taken in would look like another session's change, and the next one would be in conflict with it.
    ///
    /// # Errors
    /// `Stale` when others wrote the same bytes: the content is in a conflict copy, or still here under the policy
    /// `Fail`. `NoSpace` and `Io` as usual, with the content still here. The error is also left with the file.
    pub async fn flush(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let (flusher, file) = (self.clone(), file.clone());
        let flush = async move {
            if whole {
                // It goes along with what it depends on.
                flusher.defer_content(&file);
            }
            flusher.order.wait_all().await?;
            flusher.flush_here(&file, whole).await
        };
        self.work.to_its_end(flush).await
    }

    async fn flush_here(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let mut rounds = 0;
        let (_one, last) = loop {
            let one = self.work.patiently(file.begin_flush()).await?;
            if whole {
                self.committer.seal_rest(file, To::OwnBlock);
            }
            self.committer.uploader().upload_gathered();
            rounds += 1;
            let (next_is_queued, last) = file.commit_target();
            if !next_is_queued || rounds == QUEUED_ROUNDS_MAX {
                break (one, last);
            }
            // What got into the queue meanwhile is sent by the queue, which the journal follows.
            drop(one);
            self.order.wait_all().await?;
        };
        file.note_committing(true);
        let committed = self.committer.commit_upto(file, last.unwrap_or(0)).await;
        if let Err(Stopped::Stays(error)) = committed {
            self.content_failed(file, error);
        }
        file.note_committing(false);
        committed.map_err(|(Stopped::Elsewhere(error) | Stopped::Stays(error))| error)
    }

    /// Writes to the journal at once what was undone, before metad learns of it.
    pub async fn write_undone(&self) {
        if let Some(writer) = &self.journal_writer {
            writer.write_undone().await;
        }
    }

    /// Notes that content could not be committed. It stays with the file, the next `fsync` or `close` gets the error,
    /// and the background tries again. It does not replace anything else.
    pub fn content_failed(&self, file: &Arc<FileState>, error: FsError) {
        self.open_files.content_failed(file, error);
        // Servers that are away will come back.
        if error != FsError::Io {
            let (inos, names) = self.writeback.undo_replacing(file.ino(), error);
            self.kernel.unlearns(inos, names);
        }
    }
}

//! Flushing: what was done before is sent, then what was written is committed.

use crate::Client;
use crate::commit::committer::Stopped;
use crate::file::sealed::To;
use crate::file::state::FileState;
use futures::StreamExt;
use std::sync::Arc;
use wire::FsError;

/// Files that are flushed at once when all are.
pub(crate) const FLUSHES_MAX: usize = 32;
/// A flush waits so often for what others put into the queue while it did.
const QUEUED_ROUNDS_MAX: u32 = 4;

impl Client {
    /// Commits everything that is uncommitted in any file.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        let files = self.open_files.filtered(FileState::is_dirty);
        let client = self.arc();
        let flushes = files.into_iter().map(|file| {
            let client = client.clone();
            async move { client.flush_file(&file, true).await }
        });
        let flushed: Vec<_> = futures::stream::iter(flushes).buffer_unordered(FLUSHES_MAX).collect().await;
        let sent = self.send_all().await;
        flushed.into_iter().collect::<Result<(), FsError>>().and(sent)
    }

    /// Commits what is written so far, all of it (`whole`) or only what was sealed already, behind everything that was done
    /// before. On return it is durable (I7). Goes on to its end though the caller is dropped: a commit whose answer nobody
    /// takes in would look like another session's change, and the next one would be in conflict with it.
    ///
    /// # Errors
    /// `Stale` when others wrote the same bytes: the content is in a conflict copy, or still here under the policy
    /// `Fail`. `NoSpace` and `Io` as they say; the content is still here. What is returned is also left with the file.
    pub(crate) async fn flush_file(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let (client, file) = (self.clone(), file.clone());
        let flush = async move {
            if whole {
                // It goes along with what it depends on.
                client.defer_content(&file);
            }
            client.send_all().await?;
            client.flush_here(&file, whole).await
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
            // What got into the queue meanwhile goes by the queue, which the journal follows.
            drop(one);
            self.send_all().await?;
        };
        file.note_committing(true);
        let committed = self.committer.commit_upto(file, last.unwrap_or(0)).await;
        if let Err(Stopped::Stays(error)) = committed {
            self.content_failed(file, error);
        }
        file.note_committing(false);
        committed.map_err(|(Stopped::Elsewhere(error) | Stopped::Stays(error))| error)
    }

    /// Writes at once what was undone, before metad hears of it.
    pub(crate) async fn write_undone(&self) {
        if let Some(writer) = &self.journal_writer {
            writer.write_undone().await;
        }
    }

    /// Content could not be committed: it stays with the file, whoever asks next hears of it, and the background tries again.
    /// Nothing is put in place of anything else by it.
    pub(crate) fn content_failed(&self, file: &Arc<FileState>, error: FsError) {
        self.open_files.content_failed(file, error);
        // Servers that are away come back.
        if error != FsError::Io {
            let (inos, names) = self.writeback.undo_replacing(file.ino(), error);
            self.kernel.unlearns(inos, names);
        }
    }
}

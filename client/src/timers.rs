//! What goes on by the clock: commits of what has been written for a while, the journal's picture of it, access times, and
//! questions to block daemons that have failed.

use crate::accessed::Accessed;
use crate::block::layout::Layouts;
use crate::buffers::Buffers;
use crate::commit::committer::Committer;
use crate::file::sealed::To;
use crate::file::state::FileState;
use crate::flusher::{FLUSHES_MAX, Flusher};
use crate::journal::Picture;
use crate::journal::writer::Writer;
use crate::network::Network;
use crate::open::OpenFiles;
use crate::writeback::WriteBack;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Between two rounds of storing access times.
const ACCESS_TIMES_EVERY: Duration = Duration::from_secs(1);
/// Between two questions to block daemons that have failed.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// After so many rounds without anything to commit, memory for writing is given back.
const IDLE_ROUNDS_MAX: u32 = 10;
/// When nothing was committed for so long, servers are away, or as good as that.
const STANDSTILL: Duration = Duration::from_secs(2);
/// Who has more than this uncommitted in one file, and goes on writing, is committed block by block: cut in the midst, it
/// would be written twice, here and into the journal.
const STREAMED_BYTES: u64 = 1 << 20;

/// What goes on by the clock.
pub(crate) struct Timers {
    /// What was written is committed after this time.
    pub dirty_age: Duration,
    /// It is time to commit what was written.
    pub overdue: Notify,
    pub network: Arc<dyn Network>,
    pub layouts: Arc<Layouts>,
    pub writeback: Arc<WriteBack>,
    pub journal_writer: Option<Arc<Writer>>,
    pub committer: Arc<Committer>,
    pub flusher: Arc<Flusher>,
    pub open_files: Arc<OpenFiles>,
    pub buffers: Arc<Buffers>,
    pub accessed: Arc<Accessed>,
}

impl Timers {
    /// Starts all of it; it ends with the set.
    pub fn start(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.clone().queue_in_background());
        tasks.spawn(self.clone().commit_in_background());
        tasks.spawn(store_access_times(self.accessed.clone()));
        tasks.spawn(ask_suspects(self.layouts.clone(), self.network.clone()));
    }

    /// Says when it is time to commit what was written, and lets the journal have it when commits have come to a stand.
    async fn queue_in_background(self: Arc<Self>) {
        let (mut commits, mut since) = (0, Instant::now());
        let mut picture = Picture::new();
        loop {
            self.overdue.notify_one();
            let now = self.committer.window().releases();
            if now != commits || self.committer.window().is_empty() {
                (commits, since) = (now, Instant::now());
            }
            let stands = since.elapsed() > STANDSTILL;
            self.queue_files(if stands { u64::MAX } else { STREAMED_BYTES });
            self.update_picture(stands, &mut picture).await;
            tokio::time::sleep(self.dirty_age).await;
        }
    }

    async fn commit_in_background(self: Arc<Self>) {
        let mut idle = 0_u32;
        loop {
            let pressed = tokio::select! {
                biased;
                () = self.committer.window().wait_for_pressure() => true,
                () = self.overdue.notified() => false,
            };
            // Without room even after what was sealed, scattered small writes are what fills the window.
            let whole = !pressed || !self.committer.window().has_room();
            if pressed && let Some(tail) = self.writeback.tail() {
                self.writeback.hurry(tail);
            }
            self.commit_pending(whole).await;
            idle = if self.committer.window().is_empty() { idle + 1 } else { 0 };
            if idle == IDLE_ROUNDS_MAX {
                self.buffers.clear();
            }
        }
    }

    /// Puts what has been written to files into the queue, where it can go there and is at most so much of one: servers are
    /// not waited for.
    fn queue_files(&self, bytes_max: u64) {
        for file in self.open_files.filtered(|file| file.is_to_be_queued(bytes_max)) {
            if !self.writeback.has_room() {
                return;
            }
            self.flusher.defer_content(&file);
        }
    }

    /// Lets the journal have what cannot go into the queue, too, while commits have come to a stand.
    async fn update_picture(&self, stands: bool, picture: &mut Picture) {
        let Some(writer) = &self.journal_writer else { return };
        // On a full disk whoever wrote it knows.
        let shown = if stands && !self.committer.window().is_failing() {
            let seal = |file: &FileState| self.committer.seal_rest(file, To::OwnBlock);
            writer.write_picture(self.flusher.unqueued_files(), seal, picture).await
        } else if picture.is_empty() {
            return;
        } else {
            writer.drop_picture().await.map(|()| Picture::new())
        };
        match shown {
            Ok(shown) => *picture = shown,
            Err(error) => tracing::error!(
                dir = %writer.journal().dir().display(), %error,
                "the journal cannot be written: what was written to files that others use too would not survive this process"
            ),
        }
    }

    async fn commit_one(&self, file: Arc<FileState>, whole: bool) {
        if whole && self.flusher.defer_content(&file) {
            return;
        }
        if let Err(error) = self.flusher.flush(&file, whole).await {
            tracing::warn!(ino = %file.ino(), %error, "content was not committed as it was written");
        }
        self.open_files.forget_if_idle(&file);
    }

    /// Commits what has waited; only what is uploading already when memory is what matters.
    async fn commit_pending(&self, whole: bool) {
        let files = self.open_files.filtered(|file| file.is_to_be_committed(!whole));
        let commits = files.into_iter().map(|file| self.commit_one(file, whole));
        futures::stream::iter(commits).buffer_unordered(FLUSHES_MAX).collect::<()>().await;
    }
}

async fn store_access_times(accessed: Arc<Accessed>) {
    loop {
        tokio::time::sleep(ACCESS_TIMES_EVERY).await;
        accessed.store().await;
    }
}

async fn ask_suspects(layouts: Arc<Layouts>, network: Arc<dyn Network>) {
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        layouts.probe(&*network).await;
    }
}

//! Periodic work: commits of content that was written a while ago, its picture in the journal, access times, and probes
//! of block daemons that have failed.

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

/// Time between two rounds of storing access times.
const ACCESS_TIMES_EVERY: Duration = Duration::from_secs(1);
/// Time between two probes of block daemons that have failed.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// After this many rounds without anything to commit, memory for writing is given back.
const IDLE_ROUNDS_MAX: u32 = 10;
/// When nothing was committed for this long, servers are away or hardly work.
const STANDSTILL: Duration = Duration::from_secs(2);
/// A program that has more than this uncommitted in one file, and goes on writing, is committed block by block: a block
/// that is cut early would be written twice, here and into the journal.
const STREAMED_BYTES: u64 = 1 << 20;

/// The periodic work.
pub(crate) struct Timers {
    /// Written content is committed after this time.
    pub dirty_age: Duration,
    /// Notified when it is time to commit written content.
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
    /// Starts all periodic work; it ends with the set.
    pub fn start(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.clone().queue_in_background());
        tasks.spawn(self.clone().commit_in_background());
        tasks.spawn(store_access_times(self.accessed.clone()));
        tasks.spawn(ask_suspects(self.layouts.clone(), self.network.clone()));
    }

    /// Notifies when it is time to commit written content, and writes it into the journal when commits have stalled.
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
            // If there is no room even after sealed content was committed, scattered small writes fill the window.
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

    /// Puts written content of files into the queue, where it may go there and is at most `bytes_max` per file. Does
    /// not wait for servers.
    fn queue_files(&self, bytes_max: u64) {
        for file in self.open_files.filtered(|file| file.is_to_be_queued(bytes_max)) {
            if !self.writeback.has_room() {
                return;
            }
            self.flusher.defer_content(&file);
        }
    }

    /// Writes content that cannot go into the queue into the journal, too, while commits have stalled.
    async fn update_picture(&self, stands: bool, picture: &mut Picture) {
        let Some(writer) = &self.journal_writer else { return };
        // On a full disk, the writer has got the error.
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

    /// Commits content that has waited. If memory is short, commits only what is being uploaded already.
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

//! What goes on in the background: signs of life, and commits of what has been written for a while.

use crate::file::state::FileState;
use crate::handle::FLUSHES;
use crate::journal::Picture;
use crate::meta::session::Alive;
use crate::{Client, accessed, compact, events, writeback};
use futures::StreamExt;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use wire::limits::LEASE_MS;
use wire::message::meta::LeaseState;

/// Signs of life while leases are held.
const EXTENSION: Duration = Duration::from_millis(LEASE_MS / 4);
/// After so many rounds without anything to commit, memory for writing is given back.
const IDLE_ROUNDS: u32 = 10;
/// When nothing was committed for so long, servers are away, or as good as that.
const STANDSTILL: Duration = Duration::from_secs(2);
/// Who has more than this uncommitted in one file, and goes on writing, is committed block by block: cut in the midst, it
/// would be written twice, here and into the journal.
const STREAMED: u64 = 1 << 20;
/// Signs of life per lifetime of a session.
const BEATS: u32 = 8;

impl Client {
    pub(crate) fn start_upkeep(self: &Arc<Self>, ttl: Duration) {
        let mut tasks = self.tasks.lock();
        tasks.spawn(keep_alive(self.me.clone(), (ttl / BEATS).min(EXTENSION)));
        tasks.spawn(events::run(self.me.clone()));
        tasks.spawn(defer_in_background(self.me.clone()));
        tasks.spawn(commit_in_background(self.me.clone()));
        tasks.spawn(compact::run(self.me.clone()));
        tasks.spawn(accessed::run(self.me.clone()));
        tasks.spawn(writeback::run(self.me.clone(), self.writeback.clone()));
    }

    /// Shows that the session lives, and takes in what the leader says of it.
    pub(crate) async fn beat(&self, limit: Duration) {
        let layout = self.layouts.newest();
        match self.session.keep_alive(&layout, limit).await {
            Ok(Alive::Yes { orphans, layout, leases, .. }) => {
                if let Some(layout) = layout {
                    self.layouts.learn(layout);
                }
                if leases == LeaseState::None {
                    self.detached.notify_waiters();
                }
                self.keep_or_release(&orphans).await;
            }
            Ok(Alive::No(expired)) => {
                if let Err(error) = self.session.renew(expired).await {
                    tracing::warn!(%error, "no new session yet");
                }
            }
            Err(error) => tracing::debug!(%error, "no sign of life from metad"),
        }
    }

    pub(crate) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let work = self.stop.clone().run_until_cancelled_owned(work);
        self.work.spawn_on(work, &self.runtime);
    }

    /// Puts what has been written to files into the queue, where it can go there and is at most so much of one: servers are
    /// not waited for.
    fn defer_files(&self, most: u64) {
        let due: Vec<_> = self.files.lock().values().filter(|file| file.is_to_be_queued(most)).cloned().collect();
        for file in due {
            if !self.writeback.has_room() {
                return;
            }
            self.defer_content(&file);
        }
    }

    /// Lets the journal have what cannot go into the queue, too, while commits have come to a stand.
    async fn keep_picture(self: &Arc<Self>, stands: bool, picture: &mut Picture) {
        let Some(journal) = &self.journal else { return };
        // On a full disk whoever wrote it was told.
        let kept = if stands && !self.window.is_failing() {
            self.keep_shared(journal, picture).await
        } else if picture.is_empty() {
            return;
        } else {
            self.drop_shared(journal).await.map(|()| Picture::new())
        };
        match kept {
            Ok(kept) => *picture = kept,
            Err(error) => tracing::error!(
                dir = %journal.dir().display(), %error,
                "the journal cannot be written: what was written to files that others use too would not survive this process"
            ),
        }
    }

    async fn commit_one(self: Arc<Self>, file: Arc<FileState>, whole: bool) {
        if whole && self.defer_content(&file) {
            return;
        }
        if let Err(error) = self.flush_file(&file, whole).await {
            tracing::warn!(ino = %file.ino(), %error, "content was not committed as it was written");
        }
        self.forget_if_idle(&file);
    }

    /// Commits what has waited; only what is uploading already when memory is what matters.
    async fn commit_some(self: &Arc<Self>, whole: bool) {
        let files: Vec<_> =
            self.files.lock().values().filter(|file| file.is_to_be_committed(!whole)).cloned().collect();
        let commits = files.into_iter().map(|file| self.clone().commit_one(file, whole));
        futures::stream::iter(commits).buffer_unordered(FLUSHES).collect::<()>().await;
    }
}

async fn keep_alive(client: Weak<Client>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(client) = client.upgrade() else { return };
        client.beat(every).await;
    }
}

/// Says when it is time to commit what was written, and lets the journal have it when commits have come to a stand.
async fn defer_in_background(weak: Weak<Client>) {
    let (mut commits, mut since) = (0, Instant::now());
    let mut picture = Picture::new();
    loop {
        let Some(client) = weak.upgrade() else { return };
        let age = client.config.dirty_age;
        client.overdue.notify_one();
        let now = client.window.releases();
        if now != commits || client.window.is_empty() {
            (commits, since) = (now, Instant::now());
        }
        let stands = since.elapsed() > STANDSTILL;
        client.defer_files(if stands { u64::MAX } else { STREAMED });
        client.keep_picture(stands, &mut picture).await;
        drop(client);
        tokio::time::sleep(age).await;
    }
}

async fn commit_in_background(weak: Weak<Client>) {
    let mut idle = 0_u32;
    loop {
        let Some(client) = weak.upgrade() else { return };
        let pressed = tokio::select! {
            biased;
            () = client.window.pressure.notified() => true,
            () = client.overdue.notified() => false,
        };
        // Without room even after what was sealed, scattered small writes are what fills the window.
        let whole = !pressed || !client.window.has_room();
        if pressed && let Some(tail) = client.writeback.tail() {
            client.writeback.hurry(tail);
        }
        client.commit_some(whole).await;
        idle = if client.window.is_empty() { idle + 1 } else { 0 };
        if idle == IDLE_ROUNDS {
            client.buffers.clear();
        }
    }
}

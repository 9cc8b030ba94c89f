//! What goes on by the clock: commits of what has been written for a while, the journal's picture of it, access times,
//! compaction, and questions to block daemons that have failed.

use crate::file::sealed::To;
use crate::file::state::FileState;
use crate::journal::Picture;
use crate::ops::flushing::FLUSHES_MAX;
use crate::{Client, compact};
use futures::StreamExt;
use std::sync::{Arc, Weak};
use std::time::Duration;
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

/// Starts all of it; each goes on until the client is gone.
pub(crate) fn start(client: &Weak<Client>, tasks: &mut JoinSet<()>) {
    tasks.spawn(queue_in_background(client.clone()));
    tasks.spawn(commit_in_background(client.clone()));
    tasks.spawn(store_access_times(client.clone()));
    tasks.spawn(compact::run(client.clone()));
    tasks.spawn(ask_suspects(client.clone()));
}

async fn ask_suspects(weak: Weak<Client>) {
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        let Some(client) = weak.upgrade() else { return };
        client.layouts.probe(&*client.network).await;
    }
}

async fn store_access_times(weak: Weak<Client>) {
    loop {
        tokio::time::sleep(ACCESS_TIMES_EVERY).await;
        let Some(client) = weak.upgrade() else { return };
        client.accessed.store().await;
    }
}

/// Says when it is time to commit what was written, and lets the journal have it when commits have come to a stand.
async fn queue_in_background(weak: Weak<Client>) {
    let (mut commits, mut since) = (0, Instant::now());
    let mut picture = Picture::new();
    loop {
        let Some(client) = weak.upgrade() else { return };
        let age = client.config.dirty_age;
        client.overdue.notify_one();
        let now = client.committer.window().releases();
        if now != commits || client.committer.window().is_empty() {
            (commits, since) = (now, Instant::now());
        }
        let stands = since.elapsed() > STANDSTILL;
        queue_files(&client, if stands { u64::MAX } else { STREAMED_BYTES });
        keep_picture(&client, stands, &mut picture).await;
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
            () = client.committer.window().wait_for_pressure() => true,
            () = client.overdue.notified() => false,
        };
        // Without room even after what was sealed, scattered small writes are what fills the window.
        let whole = !pressed || !client.committer.window().has_room();
        if pressed && let Some(tail) = client.writeback.tail() {
            client.writeback.hurry(tail);
        }
        commit_some(&client, whole).await;
        idle = if client.committer.window().is_empty() { idle + 1 } else { 0 };
        if idle == IDLE_ROUNDS_MAX {
            client.buffers.clear();
        }
    }
}

/// Puts what has been written to files into the queue, where it can go there and is at most so much of one: servers are
/// not waited for.
fn queue_files(client: &Client, bytes_max: u64) {
    for file in client.open_files.filtered(|file| file.is_to_be_queued(bytes_max)) {
        if !client.writeback.has_room() {
            return;
        }
        client.defer_content(&file);
    }
}

/// Lets the journal have what cannot go into the queue, too, while commits have come to a stand.
async fn keep_picture(client: &Arc<Client>, stands: bool, picture: &mut Picture) {
    let Some(writer) = &client.journal_writer else { return };
    // On a full disk whoever wrote it knows.
    let shown = if stands && !client.committer.window().is_failing() {
        let seal = |file: &FileState| client.committer.seal_rest(file, To::OwnBlock);
        writer.write_picture(client.unqueued_files(), seal, picture).await
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

async fn commit_one(client: Arc<Client>, file: Arc<FileState>, whole: bool) {
    if whole && client.defer_content(&file) {
        return;
    }
    if let Err(error) = client.flush_file(&file, whole).await {
        tracing::warn!(ino = %file.ino(), %error, "content was not committed as it was written");
    }
    client.open_files.forget_if_idle(&file);
}

/// Commits what has waited; only what is uploading already when memory is what matters.
async fn commit_some(client: &Arc<Client>, whole: bool) {
    let files = client.open_files.filtered(|file| file.is_to_be_committed(!whole));
    let commits = files.into_iter().map(|file| commit_one(client.clone(), file, whole));
    futures::stream::iter(commits).buffer_unordered(FLUSHES_MAX).collect::<()>().await;
}

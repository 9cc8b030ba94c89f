//! Telling the kernel what others have changed.
//!
//! From threads that answer no requests: a notification can wait for a request on the same inode, which must not wait for
//! us. Pages are dropped once the reads under way are answered: while the kernel waits for a page that is being read,
//! nothing ends the thread, not even the death of this process, which is what would end the read.

use client::{Client, Notice};
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::ids::Ino;

/// What the kernel does not know needs no notice, and is not an error.
fn pass_on(notifier: &Notifier, notice: &Notice) -> io::Result<()> {
    match notice {
        // Pages, and attributes with them.
        Notice::Changed(ino) | Notice::Recalled(ino, _) => notifier.inval_inode(INodeNo(ino.0), 0, 0),
        // Attributes alone: a negative offset spares the pages.
        Notice::Accessed(ino) => notifier.inval_inode(INodeNo(ino.0), -1, 0),
        Notice::Moved(parent, name) => notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name)),
    }
}

/// Tells the kernel of a change; it knows on return.
pub(crate) async fn tell(notifier: &Notifier, notice: Notice) {
    let notifier = notifier.clone();
    let told = move || {
        let passed_on = pass_on(&notifier, &notice);
        if let Notice::Recalled(_, dropped) = notice {
            dropped.report();
        }
        passed_on
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(told).await {
        tracing::debug!(%error, "the kernel was not told of a change");
    }
}

/// Drops the kernel's pages of a part of a file, all of it when `len` is 0; they are gone on return. Pages that are being
/// read now are waited for, so what answers reads must not wait for this.
pub(crate) async fn drop_pages(notifier: &Notifier, ino: Ino, offset: u64, len: u64) {
    let notifier = notifier.clone();
    let drop = move || notifier.inval_inode(INodeNo(ino.0), offset as i64, len as i64);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(drop).await {
        tracing::debug!(%error, "the kernel has no pages to drop");
    }
}

/// Notices that wait for reads.
const WAITING_MAX: usize = 1024;

/// Passes notices on until it is told to stop, or the client ends.
pub(crate) async fn run(client: Arc<Client>, notifier: Notifier, stop: CancellationToken) {
    let mut notices = client.notices();
    let mut waiting = JoinSet::new();
    loop {
        let notice = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(_) = waiting.join_next() => continue,
            notice = notices.recv(), if waiting.len() < WAITING_MAX => notice,
        };
        match notice {
            Ok(notice @ (Notice::Changed(ino) | Notice::Recalled(ino, _))) => {
                let (client, notifier) = (client.clone(), notifier.clone());
                waiting.spawn(async move {
                    client.wait_reads(ino).await;
                    tell(&notifier, notice).await;
                });
            }
            Ok(notice) => tell(&notifier, notice).await,
            // What was missed is believed until its time is over.
            Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "notices were missed"),
            Err(RecvError::Closed) => return,
        }
    }
}

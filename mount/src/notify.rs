//! Telling the kernel what others have changed.
//!
//! On a thread of its own: a notification can wait for a request on the same inode, which must not wait for us.

use client::{Client, Notice};
use fuser::{INodeNo, Notifier};
use std::sync::{Arc, mpsc};
use tokio::sync::broadcast::error::RecvError;

/// Passes notices on until the client ends.
pub(crate) fn start(client: &Arc<Client>, notifier: Notifier) -> std::io::Result<()> {
    let (queue, work) = mpsc::channel();
    std::thread::Builder::new().name("kernel-notify".to_owned()).spawn(move || {
        for Notice::Changed(ino) in work {
            // An inode that the kernel does not know needs no notice.
            let _ = notifier.inval_inode(INodeNo(ino.0), 0, 0);
        }
    })?;
    let mut notices = client.notices();
    tokio::spawn(async move {
        loop {
            match notices.recv().await {
                Ok(notice) => {
                    if queue.send(notice).is_err() {
                        return;
                    }
                }
                // What was missed is believed until its time is over.
                Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "notices were missed"),
                Err(RecvError::Closed) => return,
            }
        }
    });
    Ok(())
}

//! Notifies the kernel of what others have changed.
//!
//! Notices are sent from threads that answer no requests: a notice can wait for a request on the same inode, which must
//! not wait for us. Pages are dropped once the reads under way are answered, however long that takes. While the kernel
//! waits for a page that is being read, nothing ends the thread, not even the death of this process, which would end the
//! read. Those who wait for a drop have a limit of their own.

use crate::nodes::Nodes;
use client::{Client, Dropped, Notice};
use fuser::Notifier;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::ids::Ino;

/// The way to the kernel.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// The channel of the mount.
    pub(crate) notifier: Notifier,
    /// The kernel's numbers of inodes.
    pub(crate) nodes: Nodes,
}

/// A notice of an inode that the kernel does not know is not an error.
fn pass_on(kernel: &Kernel, notice: &Notice) -> io::Result<()> {
    match notice {
        // Drops pages, and attributes with them.
        Notice::Changed(ino) | Notice::Recalled(ino, _) => kernel.notifier.inval_inode(kernel.nodes.number(*ino), 0, 0),
        // Drops attributes alone: a negative offset spares the pages.
        Notice::Accessed(ino) => kernel.notifier.inval_inode(kernel.nodes.number(*ino), -1, 0),
        Notice::Moved(parent, name) => {
            kernel.notifier.inval_entry(kernel.nodes.number(*parent), OsStr::from_bytes(name))
        }
    }
}

/// Notifies the kernel of a change. Returns whether the kernel knows it, or does not know the inode.
pub(crate) async fn notify_kernel(kernel: &Kernel, notice: Notice) -> bool {
    let kernel = kernel.clone();
    match tokio::task::spawn_blocking(move || pass_on(&kernel, &notice)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the kernel has not taken the notice of a change");
            error.kind() == io::ErrorKind::NotFound
        }
        Err(_) => false,
    }
}

/// Drops the kernel's pages of a part of a file, all of it when `len` is 0; they are gone on return. It waits for pages
/// that are being read now, so an answer to a read must not wait for it.
pub(crate) async fn drop_pages(kernel: &Kernel, ino: Ino, offset: u64, len: u64) {
    let kernel = kernel.clone();
    let drop = move || kernel.notifier.inval_inode(kernel.nodes.number(ino), offset as i64, len as i64);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(drop).await {
        tracing::debug!(%error, "the kernel has no pages to drop");
    }
}

/// Most calls into the kernel for dropping pages at once.
const CALLS_AT_ONCE: usize = 16;

/// Inodes whose pages are to be dropped, each with those who wait for that. One drop of an inode runs at a time: it
/// waits for the reads that were under way when it began, and the next one for those that began since. A read may wait
/// for servers that are away, so drops that wait for reads are not counted: they keep no drop of another inode waiting.
struct Drops {
    waiting: BTreeMap<Ino, Vec<Dropped>>,
    running: BTreeSet<Ino>,
    tasks: JoinSet<Ino>,
    /// Calls that may be made.
    calls: Arc<Semaphore>,
}

impl Default for Drops {
    fn default() -> Self {
        let (waiting, running) = (BTreeMap::new(), BTreeSet::new());
        Self { waiting, running, tasks: JoinSet::new(), calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)) }
    }
}

impl Drops {
    fn put(&mut self, ino: Ino, dropped: Option<Dropped>) {
        self.waiting.entry(ino).or_default().extend(dropped);
    }

    /// Begins all drops but those of inodes of which one is under way. `drop` does the work, and calls the kernel with a
    /// permit.
    fn go_on<D>(&mut self, drop: impl Fn(Ino, Arc<Semaphore>) -> D)
    where
        D: Future<Output = ()> + Send + 'static,
    {
        let begun: Vec<Ino> = self.waiting.keys().filter(|ino| !self.running.contains(ino)).copied().collect();
        for ino in begun {
            let dropped = self.waiting.remove(&ino).unwrap_or_default();
            self.running.insert(ino);
            let drop = drop(ino, self.calls.clone());
            self.tasks.spawn(async move {
                drop.await;
                dropped.iter().for_each(Dropped::report);
                ino
            });
        }
    }

    /// Notes that a drop has ended.
    fn ended(&mut self, ino: Ino) {
        self.running.remove(&ino);
    }
}

/// Drops the kernel's pages of an inode.
async fn drop_all_pages(client: Arc<Client>, kernel: Kernel, ino: Ino, calls: Arc<Semaphore>) {
    let under_way = client.begin_drop(ino).await;
    let _call = calls.acquire().await;
    if notify_kernel(&kernel, Notice::Changed(ino)).await
        && let Some(under_way) = under_way
    {
        under_way.done();
    }
}

/// Passes notices on until it is stopped, or the client ends.
pub(crate) async fn run(client: Arc<Client>, kernel: Kernel, stop: CancellationToken) {
    let mut notices = client.notices();
    let mut drops = Drops::default();
    loop {
        drops.go_on(|ino, calls| drop_all_pages(client.clone(), kernel.clone(), ino, calls));
        let notice = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(ended) = drops.tasks.join_next() => {
                if let Ok(ino) = ended {
                    drops.ended(ino);
                }
                continue;
            }
            notice = notices.recv() => notice,
        };
        match notice {
            Ok(Notice::Changed(ino)) => drops.put(ino, None),
            Ok(Notice::Recalled(ino, dropped)) => drops.put(ino, Some(dropped)),
            Ok(notice) => {
                notify_kernel(&kernel, notice).await;
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "notices were missed: all open files are looked at anew");
                client.open_inodes().into_iter().for_each(|ino| drops.put(ino, None));
            }
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drops_that_wait_for_reads_keep_no_other_waiting_and_one_of_an_inode_runs_at_a_time() {
        const HANGING: u64 = 2 * CALLS_AT_ONCE as u64;
        let mut drops = Drops::default();
        (0..=HANGING).for_each(|ino| drops.put(Ino(ino), None));
        let drop = |ino, _calls| async move {
            if ino != Ino(HANGING) {
                std::future::pending().await
            }
        };
        drops.go_on(drop);
        assert_eq!(drops.tasks.join_next().await.unwrap().unwrap(), Ino(HANGING));
        drops.ended(Ino(HANGING));
        [Ino(0), Ino(HANGING)].into_iter().for_each(|ino| drops.put(ino, None));
        drops.go_on(drop);
        assert_eq!(drops.waiting.keys().copied().collect::<Vec<_>>(), [Ino(0)]);
        assert_eq!(drops.tasks.join_next().await.unwrap().unwrap(), Ino(HANGING));
    }
}

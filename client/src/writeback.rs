//! The queue of this client, with its files as content, and the order between what is in it and what goes to metad at
//! once.

use crate::file::state::FileState;
use crate::known::Known;
use crate::queue::{self, Queue};
use crate::work::Work as Tasks;
use std::sync::Arc;
use wire::FsError;
use wire::ids::Ino;

/// The queue of this client.
pub(crate) type WriteBack = Queue<Arc<FileState>>;
/// An entry's work.
pub(crate) type Work = queue::Work<Arc<FileState>>;
pub(crate) type Entry = queue::Entry<Arc<FileState>>;
pub(crate) type LockedQueue<'a> = queue::LockedQueue<'a, Arc<FileState>>;
pub(crate) type Barred<'a> = queue::Barred<'a, Arc<FileState>>;

/// Waits until metad knows earlier operations before something is asked or done at once: on a soft mount at most for
/// its patience. All methods are cancel-safe, and fail with `Io` when the patience ends.
pub(crate) struct Order {
    queue: Arc<WriteBack>,
    known: Arc<Known>,
    work: Tasks,
}

impl Order {
    /// Creates the order for this queue.
    pub fn new(queue: Arc<WriteBack>, known: Arc<Known>, work: Tasks) -> Self {
        Self { queue, known, work }
    }

    /// Waits until metad knows everything that was done before.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn wait_all(&self) -> Result<(), FsError> {
        self.wait_upto(self.queue.tail()).await
    }

    /// Waits until metad knows everything that was done to an inode here, before metad is asked about it.
    pub async fn wait_of(&self, ino: Ino) -> Result<(), FsError> {
        self.wait_upto(self.queue.tail_on(&[ino])).await
    }

    /// Waits for an inode that metad may not know yet, before metad is asked about it.
    pub async fn wait_if_new(&self, ino: Ino) -> Result<(), FsError> {
        if self.known.is_made_here(ino) { self.wait_of(ino).await } else { Ok(()) }
    }

    /// Keeps later operations on these inodes out of the queue, and waits until everything in it is acknowledged: metad
    /// carries out what follows, in order with the rest.
    pub async fn bar(&self, inos: impl IntoIterator<Item = Ino>) -> Result<Barred<'_>, FsError> {
        let barred = self.queue.bar(inos);
        self.wait_all().await?;
        Ok(barred)
    }

    async fn wait_upto(&self, tail: Option<u64>) -> Result<(), FsError> {
        match tail {
            Some(tail) => self.work.until_stopped(self.queue.wait_acknowledged(tail)).await?,
            None => Ok(()),
        }
    }
}

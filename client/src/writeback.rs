//! The queue of this client, whose content is that of its files, and the order between what is in it and what goes to metad
//! at once.

use crate::file::state::FileState;
use crate::known::Known;
use crate::queue::{self, Queue};
use crate::work::Work as Tasks;
use std::sync::Arc;
use wire::FsError;
use wire::ids::Ino;

/// The queue of this client.
pub(crate) type WriteBack = Queue<Arc<FileState>>;
/// What is in it.
pub(crate) type Work = queue::Work<Arc<FileState>>;
pub(crate) type Entry = queue::Entry<Arc<FileState>>;
pub(crate) type Doing<'a> = queue::Doing<'a, Arc<FileState>>;
pub(crate) type Barred<'a> = queue::Barred<'a, Arc<FileState>>;

/// Waits until metad knows what was done before something is asked or done at once: on a soft mount as long as its patience
/// lasts. All of it is cancel-safe, and fails with `Io` when the patience ends.
pub(crate) struct Order {
    queue: Arc<WriteBack>,
    known: Arc<Known>,
    work: Tasks,
}

impl Order {
    /// Of what is in this queue.
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

    /// Waits until metad knows all that was done to an inode here: before it is asked about it.
    pub async fn wait_of(&self, ino: Ino) -> Result<(), FsError> {
        self.wait_upto(self.queue.tail_on(&[ino])).await
    }

    /// Before metad is asked about an inode that it may not know yet.
    pub async fn wait_if_new(&self, ino: Ino) -> Result<(), FsError> {
        if self.known.is_made_here(ino) { self.wait_of(ino).await } else { Ok(()) }
    }

    /// Lets nothing that is done to these inodes into the queue any more, and waits until everything that is there is sent:
    /// what follows is done by metad, and its order with the rest is kept.
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

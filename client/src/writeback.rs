//! Sending what is in the queue ([`crate::queue`]), and waiting for it.

mod send;

pub(crate) use send::run;

use crate::Client;
use crate::file::state::FileState;
use crate::queue::{self, Heard, Queue};
use std::sync::Arc;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Op, OpReply};

/// The queue of this client.
pub(crate) type WriteBack = Queue<Arc<FileState>>;
/// What is in it.
pub(crate) type Work = queue::Work<Arc<FileState>>;
pub(crate) type Entry = queue::Entry<Arc<FileState>>;
pub(crate) type Doing<'a> = queue::Doing<'a, Arc<FileState>>;
pub(crate) type Barred<'a> = queue::Barred<'a, Arc<FileState>>;

impl Client {
    /// Waits until metad knows everything that was done before.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn send_all(&self) -> Result<(), FsError> {
        match self.writeback.tail() {
            Some(tail) => self.work.patiently(self.writeback.wait_sent(tail)).await?,
            None => Ok(()),
        }
    }

    /// From now on [`Client::fsync_names`] reports what comes to nothing.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.writeback.heard()
    }

    /// Everything that was done before is known to metad on return: what `fsync(2)` of a directory asks for.
    ///
    /// # Errors
    /// As [`Client::send_all`]; `NoSpace` or `Stale`, once for each `heard`, when something that was done came to nothing:
    /// a rename by which a file would be replaced by what could not be stored, or what others were first with.
    pub async fn fsync_names(&self, heard: &Heard) -> Result<(), FsError> {
        self.send_all().await?;
        self.writeback.report_lost(heard)
    }

    /// Waits until metad knows all that was done to an inode here: before it is asked about it.
    pub(crate) async fn send_of(&self, ino: Ino) -> Result<(), FsError> {
        match self.writeback.tail_on(&[ino]) {
            Some(tail) => self.work.patiently(self.writeback.wait_sent(tail)).await?,
            None => Ok(()),
        }
    }

    /// Lets nothing that is done to these inodes into the queue any more, and waits until everything that is there is sent:
    /// what follows is done by metad, and its order with the rest is kept.
    pub(crate) async fn in_order(&self, inos: impl IntoIterator<Item = Ino>) -> Result<Barred<'_>, FsError> {
        let barred = self.writeback.bar(inos);
        self.send_all().await?;
        Ok(barred)
    }

    /// Carries out an operation at once, behind everything that was done before.
    pub(crate) async fn at_once(&self, op: Op) -> Result<OpReply, FsError> {
        let inos: Vec<Ino> = op.attrs_changed().collect();
        let _barred = self.in_order(inos).await?;
        self.session.one(op).await
    }

    /// Before metad is asked about an inode that it may not know yet.
    pub(crate) async fn send_if_new(&self, ino: Ino) -> Result<(), FsError> {
        if self.known.is_made_here(ino) { self.send_of(ino).await } else { Ok(()) }
    }
}

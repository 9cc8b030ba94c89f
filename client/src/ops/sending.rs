//! Waiting for what was done before, and hearing what came to nothing.

use crate::Client;
use crate::queue::Heard;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Op, OpReply};

impl Client {
    /// Waits until metad knows everything that was done before.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn send_all(&self) -> Result<(), FsError> {
        self.order.wait_all().await
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

    /// Carries out an operation at once, behind everything that was done before.
    pub(crate) async fn at_once(&self, op: Op) -> Result<OpReply, FsError> {
        let inos: Vec<Ino> = op.attrs_changed().collect();
        let _barred = self.order.keep(inos).await?;
        self.session.one(op).await
    }
}

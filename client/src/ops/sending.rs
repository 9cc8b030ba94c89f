//! Waiting for earlier operations, and reporting those that failed.

use crate::Client;
use crate::queue::LossesReported;
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

    /// Returns a position from which [`Client::fsync_names`] reports failed operations.
    #[must_use]
    pub fn losses_reported(&self) -> LossesReported {
        self.writeback.losses_reported()
    }

    /// Waits until metad knows everything that was done before, as `fsync(2)` of a directory requires.
    ///
    /// # Errors
    /// As [`Client::send_all`]; `NoSpace` or `Stale`, once for each `reported`, when an operation failed later: a
    /// rename that would have replaced a file by content that could not be stored, or an operation that conflicted with
    /// others'.
    pub async fn fsync_names(&self, reported: &LossesReported) -> Result<(), FsError> {
        self.send_all().await?;
        self.writeback.report_lost(reported)
    }

    /// Carries out an operation at once, behind everything that was done before.
    pub(crate) async fn at_once(&self, op: Op) -> Result<OpReply, FsError> {
        let inos: Vec<Ino> = op.attrs_changed().collect();
        let _barred = self.order.bar(inos).await?;
        self.session.one(op).await
    }
}

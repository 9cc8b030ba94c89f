//! What a leader refuses while its disk has little space left: batches that take more. All else goes on, so that clients can
//! make room.

use super::{Server, validate};
use crate::error::ProposeError;
use crate::fs::session;
use wire::ids::SessionId;
use wire::op::{Batch, OpFailed};

impl Server {
    /// Returns the operation for which a batch is refused, if it takes space and there is little.
    ///
    /// I1: a batch that was sent before is answered as the first time. It may be stored under an earlier leader, or be under
    /// way here; both are waited for. An attempt that arrives still later, when there is room again, is applied only if the
    /// session has not gone on since.
    pub(super) async fn lacks_space(&self, id: SessionId, batch: &Batch) -> Result<Option<OpFailed>, ProposeError> {
        if !self.shared.consensus.is_short_of_space() {
            return Ok(None);
        }
        let Some(failed) = validate::taking_space(batch) else { return Ok(None) };
        self.shared.under_way.end_of((id, batch.seq)).await;
        self.shared.consensus.read_barrier().await?;
        let state = &**self.shared.consensus.state();
        Ok((!session::has_reply(state, id, batch.seq)).then_some(failed))
    }
}

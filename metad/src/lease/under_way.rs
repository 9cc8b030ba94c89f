//! Batches that are being carried out. One of a confined client that comes again is not answered before all that it has
//! changed is known to others; and none that comes again is refused for lack of space while the first may still be applied.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;
use wire::ids::{BatchSeq, SessionId};

/// Batches that are being carried out.
#[derive(Default)]
pub(crate) struct UnderWay {
    batches: Mutex<BTreeMap<(SessionId, BatchSeq), usize>>,
    ended: Notify,
}

/// A batch that is being carried out, until this is dropped.
pub(crate) struct CarryingOut {
    under_way: Arc<UnderWay>,
    batch: (SessionId, BatchSeq),
}

impl UnderWay {
    /// Notes that a batch is being carried out.
    pub fn begin(self: &Arc<Self>, batch: (SessionId, BatchSeq)) -> CarryingOut {
        *self.batches.lock().entry(batch).or_default() += 1;
        CarryingOut { under_way: self.clone(), batch }
    }

    /// Waits until nobody carries a batch out.
    pub async fn end_of(&self, batch: (SessionId, BatchSeq)) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Enabled before looking: an end in between must not be missed.
            ended.as_mut().enable();
            if !self.batches.lock().contains_key(&batch) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for CarryingOut {
    fn drop(&mut self) {
        let mut batches = self.under_way.batches.lock();
        if let Some(count) = batches.get_mut(&self.batch) {
            *count -= 1;
            if *count == 0 {
                batches.remove(&self.batch);
                self.under_way.ended.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::pin::pin;

    #[tokio::test]
    async fn a_batch_is_waited_for_until_all_that_carry_it_out_have_ended() {
        let under_way = Arc::new(UnderWay::default());
        let (one, other) = ((SessionId(1), BatchSeq(1)), (SessionId(1), BatchSeq(2)));
        let (first, second) = (under_way.begin(one), under_way.begin(one));
        under_way.end_of(other).await;
        let mut end = pin!(under_way.end_of(one));
        assert!(end.as_mut().now_or_never().is_none());
        drop(first);
        assert!(end.as_mut().now_or_never().is_none());
        drop(second);
        end.await;
        assert!(under_way.batches.lock().is_empty());
    }
}

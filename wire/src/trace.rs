//! The id of the request that a task works for. It travels in the header of every request sent meanwhile, so that the
//! spans of mount, metad and blockd join.

use crate::caller::{self, on_behalf};
use crate::chance;
use std::future::Future;
use tracing::Instrument;

tokio::task_local! {
    static REQUEST_ID: u64;
}

/// An id for a new request.
#[must_use]
pub fn fresh_id() -> u64 {
    chance::number()
}

/// The request that the running task works for, if it is known.
#[must_use]
pub fn current_id() -> Option<u64> {
    REQUEST_ID.try_with(|id| *id).ok()
}

/// Does work for the request `id`.
pub fn within<F: Future>(id: u64, work: F) -> impl Future<Output = F::Output> {
    REQUEST_ID.scope(id, work)
}

/// Carries the current request into another task, which then works for the same request and the same caller, in the same
/// span.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let (id, caller, work) = (current_id(), caller::current(), work.in_current_span());
    async move {
        match (id, caller) {
            (Some(id), None) => within(id, work).await,
            (None, None) => work.await,
            (Some(id), caller) => within(id, on_behalf(caller, work)).await,
            (None, caller) => on_behalf(caller, work).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_id_goes_along_into_another_task_only_when_it_is_carried() {
        assert_eq!(current_id(), None);
        within(7, async {
            assert_eq!(tokio::spawn(carried(async { current_id() })).await.unwrap(), Some(7));
            assert_eq!(tokio::spawn(async { current_id() }).await.unwrap(), None);
        })
        .await;
        assert_eq!(tokio::spawn(carried(async { current_id() })).await.unwrap(), None);
    }
}

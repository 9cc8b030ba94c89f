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
    let caller = caller::current();
    carried_id(async move {
        match caller {
            Some(caller) => on_behalf(Some(caller), work).await,
            None => work.await,
        }
    })
}

/// Carries the current request into another task, which then works for the same request in the same span, but on nobody's
/// behalf.
pub fn carried_id<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let (id, work) = (current_id(), work.in_current_span());
    async move {
        match id {
            Some(id) => within(id, work).await,
            None => work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Caller;

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

    #[tokio::test]
    async fn a_caller_goes_along_with_the_request_and_not_with_its_id_alone() {
        let caller = Some(Caller { uid: 7, gid: 8, groups: vec![9] });
        let seen = || async { (current_id(), caller::current()) };
        let asking = async {
            assert_eq!(tokio::spawn(carried(seen())).await.unwrap(), (Some(7), caller.clone()));
            assert_eq!(tokio::spawn(carried_id(seen())).await.unwrap(), (Some(7), None));
        };
        within(7, on_behalf(caller.clone(), asking)).await;
        let without_id = on_behalf(caller.clone(), async { tokio::spawn(carried(seen())).await.unwrap() });
        assert_eq!(without_id.await, (None, caller));
    }
}

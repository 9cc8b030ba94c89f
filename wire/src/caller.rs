//! Who a request is made for. metad judges the requests of confined clients by it; requests of others do not carry it.

use crate::codec::bounded;
use crate::limits::CALLER_GROUPS_MAX;
use serde::{Deserialize, Serialize};
use std::future::Future;

/// The ids of a program on a client's machine, as the client reports them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    #[serde(deserialize_with = "bounded::<_, _, CALLER_GROUPS_MAX>")]
    pub groups: Vec<u32>,
}

tokio::task_local! {
    static CALLER: Option<Caller>;
}

/// Returns whom the running task works for, if that is to be reported.
#[must_use]
pub fn current() -> Option<Caller> {
    CALLER.try_with(Clone::clone).ok().flatten()
}

/// Does work for a program; with `None`, for whoever may do it.
pub fn on_behalf<F: Future>(caller: Option<Caller>, work: F) -> impl Future<Output = F::Output> {
    CALLER.scope(caller, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_within_work_is_for_the_inner_caller() {
        assert_eq!(current(), None);
        let caller = Some(Caller { uid: 7, gid: 8, groups: vec![9] });
        on_behalf(caller.clone(), async {
            assert_eq!(current(), caller);
            on_behalf(None, async { assert_eq!(current(), None) }).await;
            assert_eq!(current(), caller);
        })
        .await;
    }
}

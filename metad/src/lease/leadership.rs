//! The leases that one leadership has granted.

use super::table::Table;
use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use wire::limits::LEASE_MS;

/// How long leases hold without being extended.
const LEASE: Duration = Duration::from_millis(LEASE_MS);

/// The leases of the current leadership.
#[derive(Default)]
pub struct Leases {
    /// With the term in which this node leads.
    current: Mutex<Option<(u64, Table)>>,
    /// Notified when a session has acknowledged or attached, or is asked to send something.
    pub(super) changed: Notify,
}

impl Leases {
    /// Works on the table of this leadership. Returns `None` when this node does not lead, or a later leadership has
    /// begun.
    pub(super) fn with<R>(&self, leadership: Option<u64>, work: impl FnOnce(&mut Table) -> R) -> Option<R> {
        let mut current = self.current.lock();
        let Some(term) = leadership else {
            *current = None;
            return None;
        };
        match &mut *current {
            Some((of, table)) if *of == term => Some(work(table)),
            Some((of, _)) if *of > term => None,
            other => Some(work(&mut other.insert((term, Table::new(LEASE, Instant::now()))).1)),
        }
    }
}

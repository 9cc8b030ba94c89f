//! The block daemons as the leader knows them: which are alive, which are in the layout, what may be deleted.

pub mod gc;
pub mod liveness;
pub mod met;
pub mod placement;
pub mod revocations;
pub mod watch;

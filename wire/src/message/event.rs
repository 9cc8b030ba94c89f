//! What metad pushes to a session without being asked.

use crate::ids::{Ino, LayoutEpoch};
use serde::{Deserialize, Serialize};

/// An event on a session's stream. Those with a number are answered by `Acknowledge`, and hold up a change until then;
/// losing another one costs time, never truth: `KeepAlive` tells the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MetaEvent {
    /// These inodes lost their last entry: the session releases those that it holds no handle on.
    Orphaned(Vec<Ino>),
    /// A lock on this inode was released: waiters may try again.
    LockReleased(Ino),
    /// A newer layout is there.
    LayoutChanged(LayoutEpoch),
    /// The first event for a session that keeps caches: what it asks from now on may be leased, and what it asked before
    /// is not.
    Attached {
        /// To be acknowledged when a session that was dirty has told everything.
        seq: Option<u64>,
    },
    /// Another session is about to change these inodes: what is cached of them, and of names in them, must not be used
    /// any more.
    Recall {
        /// To be acknowledged.
        seq: u64,
        /// The inodes.
        inos: Vec<Ino>,
    },
    /// Another session is about to read of these inodes: what was done under delegations on them must be told, and they
    /// end. What is cached stays right.
    Share {
        /// To be acknowledged.
        seq: u64,
        /// The inodes.
        inos: Vec<Ino>,
    },
    /// The session holds too many leases: nothing that is cached must be used any more.
    RecallAll {
        /// To be acknowledged.
        seq: u64,
    },
    /// Another session that keeps caches is being opened: from now on nothing may be believed without a lease on it.
    Company {
        /// To be acknowledged.
        seq: u64,
    },
}

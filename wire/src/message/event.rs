//! Events that metad pushes to a session.

use crate::ids::{Ino, LayoutEpoch};
use serde::{Deserialize, Serialize};

/// An event on a session's stream. Numbered events are answered by `Acknowledge`, and hold up a change until then. The
/// loss of any other event costs time, never correctness: `KeepAlive` reports the same, or, of CAs, `Trust`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MetaEvent {
    /// These inodes lost their last entry: the session releases those that it holds no handle on.
    Orphaned(Vec<Ino>),
    /// A lock on this inode was released: waiters may try again.
    LockReleased(Ino),
    /// There is a newer layout.
    LayoutChanged(LayoutEpoch),
    /// The first event for a session with caches: what it asks from now on may be leased, what it asked before is not.
    Attached {
        /// To be acknowledged when a session that was dirty has sent everything.
        seq: Option<u64>,
    },
    /// Another session is about to change these inodes: nothing cached of them, or of names in them, may be used any
    /// more.
    Recall {
        /// To be acknowledged.
        seq: u64,
        /// The inodes.
        inos: Vec<Ino>,
    },
    /// Another session is about to read these inodes: what was done under delegations on them must be sent, and the
    /// delegations end. Caches stay valid.
    Share {
        /// To be acknowledged.
        seq: u64,
        /// The inodes.
        inos: Vec<Ino>,
    },
    /// The session holds too many leases: nothing cached may be used any more.
    RecallAll {
        /// To be acknowledged.
        seq: u64,
    },
    /// Another session with caches is being opened: from now on, cached data may be used only under a lease.
    Company {
        /// To be acknowledged.
        seq: u64,
    },
    /// Other CAs are trusted from now on: the client asks which.
    TrustChanged,
}

//! What metad pushes to a session without being asked.

use crate::ids::{Ino, LayoutEpoch};
use crate::op::Name;
use serde::{Deserialize, Serialize};

/// An event on a session's stream. Losing one costs time, never truth: `KeepAlive` tells the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MetaEvent {
    /// These inodes lost their last entry: the session releases those that it holds no handle on.
    Orphaned(Vec<Ino>),
    /// A lock on this inode was released: waiters may try again.
    LockReleased(Ino),
    /// A newer layout is there.
    LayoutChanged(LayoutEpoch),
    /// Another session changed this inode: what is cached of it is old.
    Changed(Ino),
    /// Another session removed this name, or gave it to another inode.
    NameChanged {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Name,
    },
}

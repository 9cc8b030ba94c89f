//! A client of a Surf cluster: the filesystem's operations, free of FUSE.
//!
//! [`Client`] is one mount's session, put together from rooms that each own a part of its state. From the top down:
//!
//! - `ops` are the operations by family; `events` gives back what metad asks for, `upkeep` shows that the session lives,
//!   `timers` and `compact` are what goes on by the clock;
//! - `open` is what is open, `file` one file's content and how it is read, `accessed` the access times;
//! - `queue` holds what was done under delegations and is sent later, `journal` what of it would be lost with the process;
//!   `commit` makes content part of its file;
//! - `known` answers in metad's place under leases, `kernel` remembers what the kernel was given, `meta` talks to metad,
//!   `block` to the block daemons, both by `network`. `work` is what goes on though its caller is gone; the lock order stands in `ordered`.
//!
//! Every operation can be called from any thread of a multi-threaded tokio runtime. What an operation has accepted runs
//! to its end though its caller is dropped, unless it says otherwise.

#![forbid(unsafe_code)]

mod accessed;
pub mod block;
mod buffers;
mod commit;
mod compact;
mod config;
mod error;
mod events;
pub mod file;
mod journal;
mod kernel;
mod known;
mod local;
pub mod meta;
pub mod network;
mod open;
mod ops;
mod ordered;
mod queue;
mod timers;
mod upkeep;
mod work;
mod writeback;

pub use config::{ClientConfig, DISK_CACHE_BYTES_MIN, OnConflict};
pub use error::Error;
pub use journal::disk;
pub use kernel::Notice;
pub use known::Listed;
pub use local::LocalDir;
pub use ops::files::{Handle, OpenFlags, Opened};
pub use ops::locks::Wait;
pub use queue::{Heard, NewNode};

use accessed::Accessed;
use block::fetch::Fetcher;
use block::layout::Layouts;
use buffers::Buffers;
use commit::committer::Committer;
use commit::fragments::Fragments;
use file::reader::Reader;
use journal::Journal;
use journal::writer::Writer;
use kernel::Kernel;
use known::Known;
use known::held_locks::HeldLocks;
use known::leased::LeasedSession;
use network::Network;
use open::OpenFiles;
use ops::locks::Waits;
use ordered::Ordered;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use wire::ids::Ino;
use work::Work;
use writeback::WriteBack;

/// Closing takes no longer, once everything is flushed.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// One session with a cluster.
pub struct Client {
    config: ClientConfig,
    network: Arc<dyn Network>,
    session: Arc<LeasedSession>,
    known: Arc<Known>,
    held_locks: Arc<HeldLocks>,
    layouts: Arc<Layouts>,
    fetcher: Arc<Fetcher>,
    /// Memory of blocks being written.
    buffers: Arc<Buffers>,
    kernel: Arc<Kernel>,
    /// Makes content part of its file.
    committer: Arc<Committer>,
    /// Chunks in many pieces, to be compacted.
    fragments: Arc<Fragments>,
    reader: Arc<Reader>,
    /// Open inodes.
    open_files: Arc<OpenFiles>,
    accessed: Accessed,
    /// What was done under delegations and is sent later.
    writeback: Arc<WriteBack>,
    /// What of it has waited for long.
    journal: Option<Arc<Journal>>,
    /// Writes the journal.
    journal_writer: Option<Arc<Writer>>,
    /// The mount ends, and what is not sent is left in it.
    left: AtomicBool,
    /// Open files that are being looked at because another session changed them.
    refreshing: Ordered<HashSet<Ino>>,
    /// It is time to commit what was written.
    overdue: Notify,
    lock_released: Notify,
    /// metad sends us no events, though we have asked for them.
    detached: Arc<Notify>,
    /// Waits for locks.
    waits: Waits,
    /// What goes on as long as the client lives.
    tasks: Mutex<JoinSet<()>>,
    /// Flushes, uploads and fetches under way.
    work: Work,
    me: Weak<Client>,
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::LocalDir;
    use std::sync::Arc;
    use tempfile::TempDir;
    use wire::attr::{Creator, FileKind, InodeAttr, Timestamp};
    use wire::bundle::Bundle;
    use wire::ids::{BlockdId, Ino, Point};
    use wire::layout::LayoutMember;
    use wire::tls::{ClusterCa, Role, Subject};

    /// A bundle of the cluster that this CA makes, for a client of that name.
    pub(crate) fn bundle(ca: &ClusterCa, name: &str) -> Bundle {
        let identity = ca.issue(&Subject::new(Role::Client, name)).unwrap();
        Bundle { cluster: "test".to_owned(), metads: vec![([127, 0, 0, 1], 1).into()], identity }
    }

    /// An owner of the ring, whose place on it goes by its number.
    pub(crate) fn blockd(id: u8) -> LayoutMember {
        let (name, addr) = (format!("blockd-{id}"), ([127, 0, 0, 1], u16::from(id)).into());
        let points = vec![Point(u128::from(id) << 120)];
        LayoutMember { points, ..LayoutMember::new(BlockdId([id; 16]), name, addr, id.to_string()) }
    }

    /// Attributes of an empty file.
    pub(crate) fn attr() -> InodeAttr {
        let creator = Creator { mode: 0o644, uid: 0, gid: 0 };
        InodeAttr::new(Ino(2000), FileKind::Regular, creator, Timestamp::default())
    }

    /// Where clients keep their directories, and the cluster that these are of.
    pub(crate) struct Place {
        pub dir: TempDir,
        pub ca: ClusterCa,
    }

    impl Place {
        pub(crate) fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), ca: ClusterCa::create("t").unwrap() }
        }

        /// The directory of the client `c` for `/mnt`.
        pub(crate) fn local(&self) -> Arc<LocalDir> {
            Arc::new(LocalDir::open(self.dir.path(), &bundle(&self.ca, "c"), "/mnt").unwrap())
        }
    }
}

//! A client of a Surf cluster: the filesystem's operations, free of FUSE.
//!
//! [`Client`] is one mount's session, composed of rooms that each own a part of its state. From the top down:
//!
//! - `ops` are the operations by family, and the only `impl Client`; `events` gives back what metad recalls, `timers`
//!   and `compact` are the periodic work, `replay` sends what an earlier client has left;
//! - `sending` sends operations under delegations, `flusher` brings written content into the queue or to metad, `view`
//!   shows inodes with uncommitted content, `upkeep` keeps the session alive;
//! - `open` are the open inodes, `file` is one file's content, `reader` reads it, `accessed` are the access times;
//! - `queue` holds operations under delegations, `writeback` is that queue with files as content, and the order between
//!   it and direct requests to metad; `journal` has those that would be lost with the process; `commit` makes content
//!   part of its file;
//! - `known` answers in metad's place under leases, `kernel` remembers what the kernel was given, `meta` talks to
//!   metad, `block` to the block daemons, both through `network`. `work` runs on when its caller is gone; `ordered` has
//!   the lock order, and `recent` makes caches with a bound.
//!
//! Every operation can be called from any thread of a multi-threaded tokio runtime. An operation that has begun runs to
//! its end though its caller is dropped, unless its documentation says otherwise; it ends when the client itself is
//! dropped.

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
mod flusher;
mod journal;
mod kernel;
mod known;
mod local_dir;
pub mod meta;
pub mod network;
mod open;
mod ops;
mod ordered;
mod queue;
mod reader;
mod recent;
mod renewal;
mod replay;
mod sending;
mod tickets;
mod timers;
mod upkeep;
mod view;
mod waits;
mod work;
mod writeback;

pub use config::{ClientConfig, DISK_CACHE_BYTES_MIN, OnConflict};
pub use error::Error;
pub use journal::disk;
#[cfg(feature = "fuzzing")]
pub use journal::fuzzing;
pub use kernel::{Dropped, Notice};
pub use known::Listed;
pub use local_dir::LocalDir;
pub use ops::files::{Handle, OpenFlags};
pub use ops::locks::Wait;
pub use ops::mapped::{DropUnderWay, Taking};
pub use ops::opening::Opened;
pub use queue::{LossesReported, NewNode};

use accessed::Accessed;
use block::disk::DiskCache;
use block::fetch::Fetcher;
use block::layout::Layouts;
use block::put::Putter;
use buffers::Buffers;
use commit::committer::{self, Committer};
use commit::fragments::Fragments;
use commit::uploader::Uploader;
use compact::Compactor;
use events::Events;
use flusher::Flusher;
use journal::Journal;
use journal::writer::Writer;
use kernel::Kernel;
use known::Known;
use known::held_locks::HeldLocks;
use known::leased::LeasedSession;
use network::Network;
use open::OpenFiles;
use ordered::{Ordered, Rank};
use reader::Reader;
use replay::Replayer;
use sending::Sender;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;
use timers::Timers;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use upkeep::Upkeep;
use view::View;
use waits::Waits;
use work::Work;
use writeback::{Order, WriteBack};

/// Closing takes no longer than this once everything is flushed.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// One session with a cluster.
pub struct Client {
    config: ClientConfig,
    network: Arc<dyn Network>,
    session: Arc<LeasedSession>,
    known: Arc<Known>,
    held_locks: Arc<HeldLocks>,
    fetcher: Arc<Fetcher>,
    /// Memory of blocks being written.
    buffers: Arc<Buffers>,
    kernel: Arc<Kernel>,
    /// Makes content part of its file.
    committer: Arc<Committer>,
    reader: Arc<Reader>,
    /// Open inodes.
    open_files: Arc<OpenFiles>,
    view: Arc<View>,
    accessed: Arc<Accessed>,
    /// Operations under delegations that are sent later.
    writeback: Arc<WriteBack>,
    /// Makes requests to metad wait for the queue.
    order: Arc<Order>,
    flusher: Arc<Flusher>,
    /// Writes the journal.
    journal_writer: Option<Arc<Writer>>,
    /// The mount ends, and unsent operations are left in the journal.
    left: AtomicBool,
    lock_released: Arc<Notify>,
    /// Waits for locks.
    waits: Waits,
    /// Tasks that run as long as the client lives.
    tasks: Ordered<JoinSet<()>>,
    /// Flushes, uploads and fetches under way.
    work: Work,
    me: Weak<Client>,
}

/// Work beside the operations, as long as the client lives.
struct Parts {
    upkeep: Arc<Upkeep>,
    events: Arc<Events>,
    timers: Arc<Timers>,
    compactor: Arc<Compactor>,
    sender: Arc<Sender>,
    /// Sends what is left in the journal, if there is one.
    replayer: Option<Replayer>,
}

impl Parts {
    /// Starts everything but the replay, for a session of this lifetime.
    fn start(&self, ttl: Duration, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.upkeep.clone().run(ttl));
        tasks.spawn(self.events.clone().run());
        self.timers.start(tasks);
        tasks.spawn(self.compactor.clone().run());
        tasks.spawn(self.sender.clone().run());
    }
}

/// Composes the client, from the bottom up.
fn compose(
    config: ClientConfig,
    (host, work): (String, Work),
    network: Arc<dyn Network>,
    (session, layouts): (Arc<LeasedSession>, Arc<Layouts>),
    (known, held_locks): (Arc<Known>, Arc<HeldLocks>),
    (journal, cache): (Option<Arc<Journal>>, Option<DiskCache>),
) -> (Arc<Client>, Parts) {
    let (kernel, writeback) = (Arc::<Kernel>::default(), Arc::new(WriteBack::new(known.clone())));
    let (fragments, buffers) = (Arc::<Fragments>::default(), Arc::<Buffers>::default());
    let caches = (config.cache_bytes, cache);
    let tickets = session.tickets();
    let soft = (config.soft_timeout, tickets.clone());
    let fetcher = Arc::new(Fetcher::new(network.clone(), layouts.clone(), caches, soft, work.parts()));
    let putter = Putter::new(network.clone(), layouts.clone(), config.soft_timeout, tickets.clone());
    let parts = committer::Parts {
        session: session.clone(),
        uploader: Arc::new(Uploader::new(putter, fetcher.clone(), work.clone())),
        journal: journal.clone(),
        kernel: kernel.clone(),
        fragments: fragments.clone(),
        known: known.clone(),
    };
    let committer = Arc::new(Committer::new(parts, config.window_bytes, config.on_conflict, host));
    let order = Arc::new(Order::new(writeback.clone(), known.clone(), work.clone()));
    let writer = |journal| Writer::new(journal, session.clone(), writeback.clone(), known.clone());
    let journal_writer = journal.clone().map(|journal| Arc::new(writer(journal)));
    let asked = ((session.clone(), order.clone()), (fetcher.clone(), kernel.clone()));
    let reader = Arc::new(Reader::new(asked.0, asked.1, work.clone(), config.readahead_bytes));
    let learned = (session.clone(), known.clone());
    let open_files = Arc::new(OpenFiles::new(learned, committer.clone(), kernel.clone(), work.clone()));
    let view = View::new((session.clone(), known.clone()), open_files.clone(), kernel.clone(), work.clone());
    let (view, lock_released) = (Arc::new(view), Arc::<Notify>::default());
    let accessed = Arc::new(Accessed::new(session.clone(), kernel.clone(), config.access_times));
    let flusher = Arc::new(Flusher {
        write_back: config.write_back,
        session: session.clone(),
        known: known.clone(),
        writeback: writeback.clone(),
        order: order.clone(),
        journal_writer: journal_writer.clone(),
        committer: committer.clone(),
        open_files: open_files.clone(),
        kernel: kernel.clone(),
        work: work.clone(),
    });
    let upkeep = Arc::new(Upkeep::new(session.clone(), layouts.clone(), open_files.clone(), work.clone()));
    let events = Events {
        session: session.clone(),
        upkeep: upkeep.clone(),
        known: known.clone(),
        held_locks: held_locks.clone(),
        writeback: writeback.clone(),
        open_files: open_files.clone(),
        view: view.clone(),
        flusher: flusher.clone(),
        kernel: kernel.clone(),
        lock_released: lock_released.clone(),
        work: work.clone(),
    };
    let timers = Timers {
        dirty_age: config.dirty_age,
        overdue: Notify::new(),
        network: network.clone(),
        layouts: layouts.clone(),
        writeback: writeback.clone(),
        journal_writer: journal_writer.clone(),
        committer: committer.clone(),
        flusher: flusher.clone(),
        open_files: open_files.clone(),
        buffers: buffers.clone(),
        accessed: accessed.clone(),
    };
    let compactor = Compactor {
        session: session.clone(),
        view: view.clone(),
        order: order.clone(),
        open_files: open_files.clone(),
        fragments,
        committer: committer.clone(),
        fetcher: fetcher.clone(),
        kernel: kernel.clone(),
        buffers: buffers.clone(),
    };
    let sender = Sender {
        session: session.clone(),
        known: known.clone(),
        writeback: writeback.clone(),
        journal: journal.clone(),
        committer: committer.clone(),
        flusher: flusher.clone(),
        open_files: open_files.clone(),
        kernel: kernel.clone(),
        work: work.clone(),
    };
    let replayer = journal.map(|journal| Replayer {
        journal,
        session: session.clone(),
        known: known.clone(),
        writeback: writeback.clone(),
        committer: committer.clone(),
        buffers: buffers.clone(),
        block_bytes: config.block_bytes,
    });
    let client = Arc::new_cyclic(|me| Client {
        config,
        network,
        session,
        known,
        held_locks,
        fetcher,
        buffers,
        kernel,
        committer,
        reader,
        open_files,
        view,
        accessed,
        writeback,
        order,
        flusher,
        journal_writer,
        left: AtomicBool::new(false),
        lock_released,
        waits: Waits::default(),
        tasks: Ordered::new(Rank::Tasks, JoinSet::new()),
        work,
        me: me.clone(),
    });
    let parts = Parts {
        upkeep,
        events: Arc::new(events),
        timers: Arc::new(timers),
        compactor: Arc::new(compactor),
        sender: Arc::new(sender),
        replayer,
    };
    (client, parts)
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::LocalDir;
    use crate::network::Blockd;
    use bytes::Bytes;
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;
    use tempfile::TempDir;
    use wire::attr::{Creator, FileKind, InodeAttr, Timestamp};
    use wire::bundle::Bundle;
    use wire::ids::{BlockdId, Ino, Point};
    use wire::layout::LayoutMember;
    use wire::message::block::{BlockReply, BlockRequest};
    use wire::tls::{ClusterCa, Role, Subject};

    /// Returns a bundle of the cluster that this CA makes, for a client of that name.
    pub(crate) fn bundle(ca: &ClusterCa, name: &str) -> Bundle {
        let identity = ca.issue(&Subject::new(Role::Client, name)).unwrap();
        Bundle { cluster: "test".to_owned(), metads: vec![([127, 0, 0, 1], 1).into()], identity }
    }

    /// Returns a daemon whose place on the ring follows from its number.
    pub(crate) fn blockd(id: u8) -> LayoutMember {
        let (name, addr) = (format!("blockd-{id}"), ([127, 0, 0, 1], u16::from(id)).into());
        let points = vec![Point(u128::from(id) << 120)];
        LayoutMember { points, ..LayoutMember::new(BlockdId([id; 16]), name, addr, id.to_string()) }
    }

    /// Block daemons that answer as this function says for their address.
    pub(crate) struct Answering<F>(pub F);

    impl<F, R> Blockd for Answering<F>
    where
        F: Fn(SocketAddr) -> R + Send + Sync,
        R: Future<Output = Result<BlockReply, wire::Error>> + Send + 'static,
    {
        fn ask<'a>(
            &'a self,
            blockd: SocketAddr,
            _: &'a BlockRequest,
            _: &'a [Bytes],
            _: Duration,
        ) -> BoxFuture<'a, Result<(BlockReply, Bytes), wire::Error>> {
            let answer = (self.0)(blockd);
            async { Ok((answer.await?, Bytes::new())) }.boxed()
        }
    }

    /// Returns the attributes of an empty file.
    pub(crate) fn attr() -> InodeAttr {
        let creator = Creator { mode: 0o644, uid: 0, gid: 0 };
        InodeAttr::new(Ino(2000), FileKind::Regular, creator, Timestamp::default())
    }

    /// A place for clients' directories, and the cluster that they belong to.
    pub(crate) struct Place {
        pub dir: TempDir,
        pub ca: ClusterCa,
    }

    impl Place {
        pub(crate) fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), ca: ClusterCa::create("t").unwrap() }
        }

        /// Opens the directory of the client `c` for `/mnt`.
        pub(crate) fn local(&self) -> Arc<LocalDir> {
            Arc::new(LocalDir::open(self.dir.path(), &bundle(&self.ca, "c"), "/mnt").unwrap())
        }
    }
}

//! A client of a Surf cluster: the filesystem's operations, free of FUSE.
//!
//! [`Client`] is one mount's session. `meta` talks to metad, `known` answers in its place under leases, `block` talks to
//! the block daemons, both by `network`, `file` holds what is open, `namespace` and `handle` are the operations by family,
//! `writeback` what is done under delegations and told later, `journal` what of it would be lost with the process, `upkeep`
//! what goes on in the background.
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
pub mod file;
mod handle;
mod journal;
mod known;
mod local;
mod locks;
pub mod meta;
pub mod namespace;
pub mod network;
mod opens;
mod ordered;
mod upkeep;
mod walks;
mod window;
mod writeback;

pub use config::{ClientConfig, DISK_CACHE_BYTES_MIN, OnConflict};
pub use error::Error;
pub use handle::{Handle, OpenFlags, Opened};
pub use journal::disk;
pub use local::LocalDir;
pub use locks::Wait;
pub use writeback::Heard;

use accessed::Accessed;
use block::disk::DiskCache;
use block::fetch::Fetcher;
use block::layout::Layouts;
use block::put::Putter;
use buffers::Buffers;
use file::state::FileState;
use file::together::Gathering;
use futures::future::BoxFuture;
use journal::Journal;
use journal::disk::{Disk, LocalDisk};
use known::Known;
use known::held_locks::HeldLocks;
use known::leased::LeasedSession;
use locks::Waits;
use lru::LruCache;
use meta::rpc::Rpc;
use network::Network;
use opens::Opens;
use ordered::{Ordered, Rank};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use walks::Walks;
use window::Window;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::{Ino, Version};
use wire::op::{ExtentPage, Name};
use wire::quic::Endpoint;
use writeback::WriteBack;

/// The first session must be open by then.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Closing takes no longer, once everything is flushed.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// Notices that wait for the kernel to be told; older ones are forgotten. Access times leave half of it to the others.
const NOTICES: usize = 1024;
/// Names whose inode is remembered.
const NAMES: usize = 65_536;
/// Inodes whose version in the kernel's page cache is remembered.
const VERSIONS: usize = 65_536;
/// Small files of which it is remembered where their content lies; a part of it may be within.
const CONTENTS: usize = 8192;
/// Removed directories whose attributes are remembered.
const REMOVED_DIRS: usize = 4096;

/// What others did, for the kernel's caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The content of this open file was changed by another session.
    Changed(Ino),
    /// This inode's access time has moved, or other attributes without its content.
    Accessed(Ino),
    /// This name in this directory leads elsewhere than it did a moment ago.
    Moved(Ino, Name),
}

/// One session with a cluster.
pub struct Client {
    config: ClientConfig,
    host: String,
    runtime: tokio::runtime::Handle,
    network: Arc<dyn Network>,
    session: Arc<LeasedSession>,
    known: Arc<Known>,
    held_locks: Arc<HeldLocks>,
    layouts: Arc<Layouts>,
    fetcher: Fetcher,
    putter: Putter,
    window: Window,
    /// Memory of blocks being written.
    buffers: Arc<Buffers>,
    /// Open inodes. They are here as long as a handle is open or content waits to be committed.
    files: Ordered<BTreeMap<Ino, Arc<FileState>>>,
    /// Inodes being opened and removed.
    opens: Opens,
    /// Unlinked inodes that metad keeps for our handles.
    orphans: Ordered<HashSet<Ino>>,
    /// Where names led when they were last looked up: a hint, never an answer.
    names: Mutex<LruCache<(Ino, Name), Ino>>,
    /// Versions that the kernel's page cache may hold.
    versions: Mutex<LruCache<Ino, Version>>,
    /// Where the content of small files lies that were open lately: good as long as its version is theirs.
    contents: Mutex<LruCache<Ino, ExtentPage>>,
    /// Directories that were removed here: somebody may still be in one, or have it open.
    removed_dirs: Mutex<LruCache<Ino, InodeAttr>>,
    /// What metad is told later.
    writeback: Arc<WriteBack>,
    /// What of it has waited for long.
    journal: Option<Arc<Journal>>,
    /// The mount ends, and what is not told is left in it.
    left: AtomicBool,
    /// Small content that is uploaded together.
    gathering: Gathering,
    accessed: Accessed,
    /// Who walks through the tree.
    walks: Walks,
    /// Chunks in many pieces, to be compacted.
    fragmented: compact::Queue,
    /// Open files that are being looked at because another session changed them.
    refreshing: Ordered<HashSet<Ino>>,
    notices: broadcast::Sender<Notice>,
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
    work: TaskTracker,
    /// Ends what may wait for servers that are away.
    stop: CancellationToken,
    me: Weak<Client>,
}

impl Client {
    /// Opens a session.
    ///
    /// # Errors
    /// [`Error`]: an option makes no sense, the identity is refused, or nobody answers.
    pub fn connect(config: ClientConfig) -> BoxFuture<'static, Result<Arc<Self>, Error>> {
        // Boxed: what goes on in the background is compiled in this crate, and not again in each program.
        Box::pin(Self::join_cluster(config))
    }

    async fn join_cluster(config: ClientConfig) -> Result<Arc<Self>, Error> {
        config.check()?;
        // First of all: a directory that is in use is told before a session is opened.
        let local = LocalDir::of(&config).await?;
        let journal = match local.clone().filter(|_| config.journal) {
            Some(local) => journal_in(local).await?,
            None => None,
        };
        let cache = local.filter(|_| config.disk_cache_bytes > 0).and_then(|local| {
            let started = DiskCache::start(local, config.disk_cache_bytes);
            started.inspect_err(|error| tracing::warn!(%error, "mounting without a cache of blocks on disk")).ok()
        });
        let local: SocketAddr = match config.bundle.metads.first() {
            Some(SocketAddr::V6(addr)) if addr.ip().is_loopback() => ([0, 0, 0, 0, 0, 0, 0, 1], 0).into(),
            Some(SocketAddr::V6(_)) => ([0_u16; 8], 0).into(),
            Some(addr) if addr.ip().is_loopback() => ([127, 0, 0, 1], 0).into(),
            _ => ([0, 0, 0, 0], 0).into(),
        };
        let endpoint = Endpoint::bind(local, &config.bundle.identity).map_err(Error::Refused)?;
        Self::start(config, Arc::new(endpoint), journal, cache).await
    }

    /// Opens a session over another network than QUIC, with a journal on this disk if there is one, and without a cache of
    /// blocks on disk.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_over(
        config: ClientConfig,
        network: Arc<dyn Network>,
        journal: Option<Arc<dyn Disk>>,
    ) -> Result<Arc<Self>, Error> {
        config.check()?;
        let journal = journal.map(Journal::open).transpose()?.map(Arc::new);
        Self::start(config, network, journal, None).await
    }

    async fn start(
        config: ClientConfig,
        network: Arc<dyn Network>,
        journal: Option<Arc<Journal>>,
        disk: Option<DiskCache>,
    ) -> Result<Arc<Self>, Error> {
        let host = hostname();
        // A client that used this directory is dead: what it had sent must not arrive any more.
        let resumes = journal.as_ref().and_then(|journal| journal.session());
        let rpc = Rpc::new(network.clone(), config.bundle.metads.clone(), config.soft_timeout);
        let (work, stop) = (TaskTracker::new(), CancellationToken::new());
        let tasks = (work.clone(), stop.clone());
        let (known, held_locks) = (Arc::<Known>::default(), Arc::<HeldLocks>::default());
        let kept = (known.clone(), held_locks.clone());
        let names = (host.as_str(), config.purpose.as_str());
        let opened = LeasedSession::open(rpc, names, resumes, kept, tasks.clone(), CONNECT_LIMIT).await;
        let (session, opened) = opened.map_err(|error| connect_error(&config, error))?;
        let session = Arc::new(session);
        let layouts = Arc::new(Layouts::new(opened.layout));
        let client = Arc::new_cyclic(|me| Self {
            fetcher: Fetcher::new(
                network.clone(),
                layouts.clone(),
                (config.cache_bytes, disk),
                config.soft_timeout,
                tasks,
            ),
            putter: Putter::new(network.clone(), layouts.clone(), config.soft_timeout),
            window: Window::new(config.window_bytes),
            host,
            runtime: tokio::runtime::Handle::current(),
            network,
            session,
            known,
            held_locks,
            layouts,
            buffers: Arc::default(),
            files: Ordered::new(Rank::Files, BTreeMap::new()),
            opens: Opens::default(),
            orphans: Ordered::new(Rank::Orphans, HashSet::new()),
            names: Mutex::new(LruCache::new(NonZeroUsize::new(NAMES).expect("not zero"))),
            versions: Mutex::new(LruCache::new(NonZeroUsize::new(VERSIONS).expect("not zero"))),
            contents: Mutex::new(LruCache::new(NonZeroUsize::new(CONTENTS).expect("not zero"))),
            removed_dirs: Mutex::new(LruCache::new(NonZeroUsize::new(REMOVED_DIRS).expect("not zero"))),
            writeback: Arc::default(),
            journal,
            left: AtomicBool::new(false),
            gathering: Gathering::default(),
            accessed: Accessed::default(),
            walks: Walks::default(),
            fragmented: compact::Queue::default(),
            refreshing: Ordered::new(Rank::Refreshing, HashSet::new()),
            notices: broadcast::channel(NOTICES).0,
            overdue: Notify::new(),
            lock_released: Notify::new(),
            detached: Arc::default(),
            waits: Waits::default(),
            tasks: Mutex::new(JoinSet::new()),
            work,
            stop,
            me: me.clone(),
            config,
        });
        client.start_upkeep(opened.ttl);
        if let Some(journal) = &client.journal {
            if let Err(error) = client.replay(journal).await {
                client.end().await;
                return Err(error);
            }
            if client.config.write_back {
                client.start_journal(journal);
            }
        }
        Ok(client)
    }

    /// The runtime that drives the client's socket: for operations on metadata, which wait for messages and do little else.
    #[must_use]
    pub fn network(&self) -> tokio::runtime::Handle {
        self.network.runtime()
    }

    /// How many questions and changes have gone to metad.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.session.requests()
    }

    /// What other sessions change from now on. Best effort: a slow receiver misses some, and is told so.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Commits everything and ends the session. When the servers are away, what is in the journal is left to the next
    /// client with the same directory.
    ///
    /// # Errors
    /// What could not be committed; the session is ended all the same.
    pub fn shutdown(&self) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(self.leave_cluster())
    }

    async fn leave_cluster(&self) -> Result<(), FsError> {
        let stored = self.store_all().await;
        // Not waited for when the servers are away.
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.store_access_times()).await;
        self.end_journal().await;
        self.end().await;
        stored
    }

    /// Ends everything at once, as the death of its process would: nothing is stored, and nobody is told.
    pub fn abandon(&self) {
        self.stop.cancel();
        self.tasks.lock().abort_all();
    }

    async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        // What has been committed already waits for nobody; what could not be is given up.
        self.work.close();
        if tokio::time::timeout(CLOSE_LIMIT, self.work.wait()).await.is_err() {
            self.stop.cancel();
            let _ = tokio::time::timeout(CLOSE_LIMIT, self.work.wait()).await;
        }
        self.fetcher.close().await;
        self.session.close(CLOSE_LIMIT).await;
        self.network.close().await;
    }

    /// This client, as its own tasks hold it.
    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("a method runs only while the client lives")
    }

    /// Waits, on a soft mount for as long as its patience lasts.
    ///
    /// # Errors
    /// `Io` when it ends.
    async fn patiently<T>(&self, waiting: impl Future<Output = T>) -> Result<T, FsError> {
        match self.config.soft_timeout {
            None => Ok(waiting.await),
            Some(limit) => tokio::time::timeout(limit, waiting).await.map_err(|_| FsError::Io),
        }
    }

    /// Has the kernel told, soon.
    fn notify(&self, notice: Notice) {
        // Nobody listens while there is no mount.
        let _ = self.notices.send(notice);
    }

    /// The kernel's page cache took part in a change of ours: what it held of `from` is good for `to`.
    fn kernel_follows(&self, ino: Ino, from: Version, to: Version) {
        let mut versions = self.versions.lock();
        if versions.peek(&ino) == Some(&from) {
            versions.put(ino, to);
        }
    }
}

/// The journal in this directory; `None`, with a warning, where the disk refuses to keep one.
async fn journal_in(local: Arc<LocalDir>) -> Result<Option<Arc<Journal>>, Error> {
    let path = local.path().to_owned();
    let ended = |error| Error::Local { path, source: std::io::Error::other(error) };
    let open = move || {
        let dir = local.path().to_owned();
        let disk = LocalDisk::open(local).map_err(|source| Error::Local { path: dir, source })?;
        Journal::open(Arc::new(disk))
    };
    match tokio::task::spawn_blocking(open).await.map_err(ended)? {
        Ok(journal) => Ok(Some(Arc::new(journal))),
        Err(error @ Error::Local { .. }) => {
            tracing::warn!(%error, "mounting without a journal");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn connect_error(config: &ClientConfig, error: wire::Error) -> Error {
    match error {
        wire::Error::NotSent { reason, .. } => {
            let tried: Vec<String> = config.bundle.metads.iter().map(ToString::to_string).collect();
            Error::Unreachable { tried: tried.join(", "), last: reason }
        }
        error => Error::Refused(error),
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::LocalDir;
    use std::sync::Arc;
    use tempfile::TempDir;
    use wire::attr::{Creator, FileKind, InodeAttr, Timestamp};
    use wire::bundle::Bundle;
    use wire::ids::Ino;
    use wire::tls::{ClusterCa, Role, Subject};

    /// A bundle of the cluster that this CA makes, for a client of that name.
    pub(crate) fn bundle(ca: &ClusterCa, name: &str) -> Bundle {
        let identity = ca.issue(&Subject::new(Role::Client, name)).unwrap();
        Bundle { cluster: "test".to_owned(), metads: vec![([127, 0, 0, 1], 1).into()], identity }
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

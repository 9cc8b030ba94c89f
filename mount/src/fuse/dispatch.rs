//! Handing requests over: what can be answered on the spot is, in the kernel's event loop; the rest becomes tasks.

use super::dir::{Listing, Pages};
use super::file::OpenFile;
use super::lock::Locked;
use super::reply::Answer;
use crate::handles::Handles;
use crate::inodes::{Inodes, Trust};
use crate::interrupt::{Patience, unless_signalled};
use crate::notify::{drop_pages, tell};
use client::namespace::NewNode;
use client::{Client, Notice};
use fuser::{FileHandle, INodeNo, InitFlags, KernelConfig, Notifier, ReplyEntry, Request};
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle as Runtime;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};
use wire::FsError;
use wire::ids::Ino;
use wire::op::StatFs;

/// Requests that the kernel keeps on their way in the background (reading ahead, mostly). Its default of 12 starves
/// several readers.
const BACKGROUND: u16 = 128;
/// What the kernel may read ahead: a few blocks, so that several are fetched at once.
pub(crate) const READAHEAD_BYTES: u32 = 8 << 20;
/// Largest write at once: what `fs.fuse.max_pages_limit` allows unless it is raised.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// `umount(8)` asks for the filesystem's statistics before it unmounts, and must not wait for servers that are away.
const STATFS_PATIENCE: Duration = Duration::from_secs(2);

/// What all requests share.
pub(crate) struct Shared {
    pub(super) client: Arc<Client>,
    pub(crate) inodes: Inodes,
    pub(super) files: Handles<OpenFile>,
    pub(super) dirs: Handles<Listing>,
    pub(super) pages: Pages,
    pub(super) locked: Locked,
    /// The last answer to `statfs`.
    statfs: Mutex<Option<StatFs>>,
    /// The way to tell the kernel something, once it is there.
    notifier: OnceLock<Notifier>,
}

impl Shared {
    /// What a mount needs besides the client.
    pub(crate) fn new(client: Arc<Client>, trust: Trust) -> Arc<Self> {
        let (files, dirs) = (Handles::default(), Handles::default());
        let (locked, pages) = (Locked::default(), Pages::default());
        let (statfs, notifier) = (Mutex::default(), OnceLock::new());
        Arc::new(Self { client, inodes: Inodes::new(trust), files, dirs, pages, locked, statfs, notifier })
    }

    /// From now on the kernel can be told something.
    pub(crate) fn connected(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Drops what the kernel has of a file's content: on return, who reads it asks for it.
    pub(super) async fn drop_pages(&self, ino: Ino) {
        if let Some(notifier) = self.notifier.get() {
            tell(notifier, Notice::Changed(ino)).await;
        }
    }

    /// Drops what the kernel has of a part of a file's content.
    pub(super) async fn drop_pages_in(&self, ino: Ino, offset: u64, len: u64) {
        if let Some(notifier) = self.notifier.get() {
            drop_pages(notifier, ino, offset, len).await;
        }
    }

    /// Capacity and use; what was last known of them when no server answers.
    pub(super) async fn statfs(&self) -> Result<StatFs, FsError> {
        match tokio::time::timeout(STATFS_PATIENCE, self.client.statfs()).await {
            Ok(Ok(stats)) => {
                *self.statfs.lock() = Some(stats);
                Ok(stats)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => self.statfs.lock().ok_or(FsError::Io),
        }
    }

    /// Gives back what the kernel left open: it need not release everything when the mount goes.
    pub(crate) async fn release_all(&self) {
        for file in self.files.drain() {
            // Without waiting for requests under way: the kernel is gone.
            if let Ok(file) = Arc::try_unwrap(file) {
                self.client.release(file.handle).await;
            }
        }
    }
}

/// The filesystem as fuser calls it.
pub(crate) struct Surf {
    pub(super) shared: Arc<Shared>,
    /// Drives the client's socket.
    network: Runtime,
    workers: Runtime,
    requests: TaskTracker,
}

/// The span of a request: what it is, who asks, and what for.
macro_rules! span {
    ($op:literal, $request:expr, $ino:expr $(, $field:ident = $value:expr)*) => {
        tracing::debug_span!("fuse", op = $op, req = $request.unique().0, pid = $request.pid(), ino = $ino.0 $(, $field = $value)*)
    };
}

pub(super) use span;

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

pub(super) fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

impl Surf {
    /// Requests become tasks on `workers`, or where the client's socket is driven, counted by `requests`.
    pub(crate) fn new(shared: Arc<Shared>, workers: Runtime, requests: TaskTracker) -> Self {
        let network = shared.client.network();
        Self { shared, network, workers, requests }
    }

    /// Begins a request on the spot: what needs nobody else, because it is known here or done under a delegation, is
    /// answered without waking another thread. The rest of it runs where the network's answers arrive.
    pub(super) fn begin(&self, span: Span, work: impl Future<Output = ()> + Send + 'static) {
        // Counted from here on: the end of the mount waits for it.
        let _counted = self.requests.token();
        let mut work = Box::pin(work.instrument(span));
        let begun = {
            let _in_runtime = self.network.enter();
            // Nobody is to be woken: what is not ready is polled again by its task.
            let poll = || work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // As in a task: a bug costs this request, which is answered with EIO when it is dropped, and not the mount.
            catch_unwind(AssertUnwindSafe(poll))
        };
        if let Ok(Poll::Pending) = begun {
            self.requests.spawn_on(work, &self.network);
        }
    }

    /// Hands over a request that asks metad and does nothing else.
    pub(super) fn ask<T: 'static, R, F>(
        &self,
        request: &Request,
        span: Span,
        reply: R,
        work: impl FnOnce(Arc<Shared>) -> F,
    ) where
        R: Answer<T>,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        self.begin(span, task(request, Patience::UntilEnding, reply, work(self.shared.clone())));
    }

    /// The same for a request that makes a handle: that must reach the kernel, or nobody would release it, so it is not
    /// given up half-way.
    pub(super) fn ask_for_handle<T: 'static, R, F>(
        &self,
        request: &Request,
        span: Span,
        reply: R,
        work: impl FnOnce(Arc<Shared>) -> F,
    ) where
        R: Answer<T>,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        self.begin(span, task(request, Patience::Endless, reply, work(self.shared.clone())));
    }

    /// Hands a request over, with how far a signal may end its wait.
    pub(super) fn wait<T: 'static, R, F>(
        &self,
        request: &Request,
        patience: Patience,
        span: Span,
        reply: R,
        work: impl FnOnce(Arc<Shared>) -> F,
    ) where
        R: Answer<T>,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let task = task(request, patience, reply, work(self.shared.clone()));
        self.requests.spawn_on(task.instrument(span), &self.workers);
    }

    /// Hands over a request that ends early only when its caller is asked to end.
    pub(super) fn answer<T: 'static, R, F>(
        &self,
        request: &Request,
        span: Span,
        reply: R,
        work: impl FnOnce(Arc<Shared>) -> F,
    ) where
        R: Answer<T>,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        self.wait(request, Patience::UntilEnding, span, reply, work);
    }

    /// The file behind a handle. The kernel never sends a wrong one, short of a bug here or there.
    pub(super) fn file(&self, fh: FileHandle) -> Result<Arc<OpenFile>, FsError> {
        self.shared.files.get(fh.0).ok_or(FsError::Stale)
    }

    /// The same for whoever is going to use its content: not while it relies on a lock that is lost.
    pub(super) fn usable_file(&self, fh: FileHandle) -> Result<Arc<OpenFile>, FsError> {
        let file = self.file(fh)?;
        self.shared.check_locks(&file).map(|()| file)
    }

    /// Makes an inode and answers with its entry.
    pub(super) fn make(&self, request: &Request, span: Span, reply: ReplyEntry, at: (INodeNo, &OsStr), new: NewNode) {
        let (parent, name) = (ino(at.0), bytes(at.1));
        self.ask(request, span, reply, |fs| async move {
            fs.entry((parent, &name), fs.client.make_node(parent, &name, new)).await
        });
    }
}

/// A request's work, and its answer.
fn task<T, R, F>(
    request: &Request,
    patience: Patience,
    reply: R,
    work: F,
) -> impl Future<Output = ()> + Send + use<T, R, F>
where
    R: Answer<T>,
    F: Future<Output = Result<T, FsError>> + Send + 'static,
{
    let tid = request.pid();
    async move { reply.answer(unless_signalled(tid, patience, work).await) }
}

/// What is asked of the kernel. Left out on purpose: `WRITEBACK_CACHE`, which would let it invent sizes and times that
/// other clients do not see; `AUTO_INVAL_DATA`, which drops its cache after each of our own commits (`open` and notices say
/// when it is old); and what fuser accepts but cannot honour (`OVER_IO_URING`, `SETXATTR_EXT`, `HANDLE_KILLPRIV_V2`).
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_POSIX_LOCKS)
    .union(InitFlags::FUSE_FLOCK_LOCKS)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_CACHE_SYMLINKS);

/// Agrees with the kernel on what the connection can do.
pub(super) fn configure(config: &mut KernelConfig) {
    for flag in WANTED.iter() {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "not offered by this kernel");
        }
    }
    // Each of these names the nearest value that is allowed.
    if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
        let _ = config.set_max_readahead(most);
    }
    if let Err(most) = config.set_max_write(WRITE_BYTES_MAX) {
        let _ = config.set_max_write(most);
    }
    let _ = config.set_max_background(BACKGROUND);
}

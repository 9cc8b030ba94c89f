//! Dispatch of requests: those that need no wait are answered in the kernel's event loop, the others become tasks.

use super::open_file::OpenFile;
use super::reply::Answer;
use super::shared::Shared;
use crate::interrupt::{Patience, unless_signalled};
use crate::spool::PLACE_BYTES;
use client::NewNode;
use fuser::{FileHandle, INodeNo, InitFlags, KernelConfig, ReplyEntry, Request};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle as Runtime;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};
use wire::FsError;
use wire::caller::{Caller, on_behalf};
use wire::ids::Ino;
use wire::limits::CALLER_GROUPS_MAX;
use wire::tls::Squash;
use wire::trace;

/// Largest read that is answered on the thread where its block arrives.
pub(super) const SMALL_READ: u32 = 64 << 10;
/// `copy_file_range` answers in 32 bits; programs ask again for the rest.
pub(super) const COPY_BYTES_MAX: u64 = 1 << 30;
/// Requests that the kernel has under way in the background (reading ahead, mostly). Its default of 12 starves several
/// readers.
const BACKGROUND: u16 = 128;
/// What the kernel may read ahead: a few blocks, so that several are fetched at once.
pub(crate) const READAHEAD_BYTES: u32 = 8 << 20;
/// Largest write at once: what `fs.fuse.max_pages_limit` allows unless it is raised.
const WRITE_BYTES_MAX: u32 = 1 << 20;
const _: () = assert!(WRITE_BYTES_MAX as u64 <= PLACE_BYTES);

/// The filesystem as fuser calls it.
pub(crate) struct Surf {
    pub(super) shared: Arc<Shared>,
    /// Drives the client's socket.
    network: Runtime,
    workers: Runtime,
    requests: TaskTracker,
}

/// The span of a request: its id in the logs of all daemons, what it is, who asks, and what for.
macro_rules! span {
    ($op:literal, $request:expr, $ino:expr $(, $field:ident = $value:expr)*) => {
        tracing::debug_span!("fuse", id = tracing::field::Empty, op = $op, req = $request.unique().0, pid = $request.pid(), ino = $ino.0 $(, $field = $value)*)
    };
}

pub(super) use span;

pub(super) fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

impl Surf {
    /// Returns the inode that the kernel means.
    pub(super) fn ino(&self, number: INodeNo) -> Ino {
        self.shared.nodes.ino(number)
    }

    /// Returns who makes a request, if metad is to judge it.
    pub(super) fn caller(&self, request: &Request) -> Option<Caller> {
        if !self.shared.client.is_confined() {
            return None;
        }
        let groups = match self.shared.client.squash() {
            Squash::All { .. } => Vec::new(),
            Squash::None | Squash::Root { .. } => groups_of(request.pid()),
        };
        Some(Caller { uid: request.uid(), gid: request.gid(), groups })
    }

    /// Requests become tasks on `workers`, or where the client's socket is driven, counted by `requests`.
    pub(crate) fn new(shared: Arc<Shared>, workers: Runtime, requests: TaskTracker) -> Self {
        let network = shared.client.network();
        Self { shared, network, workers, requests }
    }

    /// Begins a request on the spot. A request that needs nobody else, because its answer is known here or it is done
    /// under a delegation, is answered without waking another thread. Others continue where the network's answers
    /// arrive.
    pub(super) fn begin(&self, span: Span, work: impl Future<Output = ()> + Send + 'static) {
        // The request counts from here on: the end of the mount waits for it.
        let _counted = self.requests.token();
        let mut work = Box::pin(traced(span, work));
        let begun = {
            let _in_runtime = self.network.enter();
            // There is nobody to wake: a request that is not ready is polled again by its task.
            let poll = || work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // As in a task, a bug costs this request, which is answered with EIO when it is dropped, but not the mount.
            catch_unwind(AssertUnwindSafe(poll))
        };
        if let Ok(Poll::Pending) = begun {
            self.requests.spawn_on(work, &self.network);
        }
    }

    /// Starts a request that asks metad and does nothing else.
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
        let work = on_behalf(self.caller(request), work(self.shared.clone()));
        self.begin(span, task(request, Patience::UntilEnding, reply, work));
    }

    /// Starts a request that makes a handle. The handle must reach the kernel, or nobody would release it, so the
    /// request is not given up half-way.
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
        let work = on_behalf(self.caller(request), work(self.shared.clone()));
        self.begin(span, task(request, Patience::Endless, reply, work));
    }

    /// Starts a request whose wait ends early by the signals that `patience` names.
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
        self.requests.spawn_on(traced(span, task), &self.workers);
    }

    /// Starts a request that ends early only when its caller is asked to end.
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

    /// Returns the file behind a handle. The kernel never sends a wrong handle, short of a bug.
    pub(super) fn file(&self, fh: FileHandle) -> Result<Arc<OpenFile>, FsError> {
        self.shared.files.get(fh.0).ok_or(FsError::Stale)
    }

    /// Returns the file for a caller that uses its content, unless the file relies on a lock that is lost.
    pub(super) fn usable_file(&self, fh: FileHandle) -> Result<Arc<OpenFile>, FsError> {
        let file = self.file(fh)?;
        self.shared.check_locks(&file).map(|()| file)
    }

    /// Makes an inode and answers with its entry.
    pub(super) fn make(&self, request: &Request, span: Span, reply: ReplyEntry, at: (INodeNo, &OsStr), new: NewNode) {
        let (parent, name) = (self.ino(at.0), bytes(at.1));
        self.ask(request, span, reply, |fs| async move {
            fs.entry((parent, &name), fs.client.make_node(parent, &name, new)).await
        });
    }
}

/// A request's work in its span, under an id that the daemons log, too.
fn traced<T>(span: Span, work: impl Future<Output = T>) -> impl Future<Output = T> {
    let id = trace::fresh_id();
    span.record("id", tracing::field::display(format_args!("{id:016x}")));
    trace::within(id, work.instrument(span))
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

/// Returns whether metad alone checks permissions, because the kernel does not know whose rights its users have.
pub(crate) fn is_left_to_metad(squash: Squash) -> bool {
    matches!(squash, Squash::All { .. })
}

/// Returns the groups of a thread by `proc_pid_status(5)`.
fn groups_of(tid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|group| group.parse().ok()).take(CALLER_GROUPS_MAX).collect()
}

/// The flags requested from the kernel. Left out on purpose: `WRITEBACK_CACHE`, which would let it invent sizes and
/// times that other clients do not see; `AUTO_INVAL_DATA`, which drops its cache after each of our own commits (`open`
/// and notices invalidate it when needed); and what fuser accepts but cannot honour (`OVER_IO_URING`, `SETXATTR_EXT`,
/// `HANDLE_KILLPRIV_V2`).
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
pub(super) fn configure(config: &mut KernelConfig, squash: Squash) {
    // With access lists, the kernel checks permissions, and it does not know whose rights its users have.
    let unwanted = if is_left_to_metad(squash) { InitFlags::FUSE_POSIX_ACL } else { InitFlags::empty() };
    for flag in WANTED.difference(unwanted).iter() {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "not offered by this kernel");
        }
    }
    // Each error names the nearest value that is allowed.
    if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
        let _ = config.set_max_readahead(most);
    }
    if let Err(most) = config.set_max_write(WRITE_BYTES_MAX) {
        let _ = config.set_max_write(most);
    }
    let _ = config.set_max_background(BACKGROUND);
}

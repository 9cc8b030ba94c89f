//! Work that runs on when its caller is gone: flushes, uploads and fetches under way, tracked by one owner.
//!
//! It carries the id of the request that began it, so that the logs of the daemons show the same id. It does not carry the
//! caller: one flush commits what many programs wrote, and is sent on nobody's behalf. Work on somebody's behalf carries
//! both by itself ([`wire::trace::carried`]).

use std::future::Future;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::{FsError, trace};

/// The place where such work runs, and how it is ended. Clones share it.
#[derive(Clone)]
pub(crate) struct Work {
    runtime: Handle,
    under_way: TaskTracker,
    /// Cancels work that may wait for servers that are away.
    stop: CancellationToken,
    /// How long a soft mount waits.
    patience: Option<Duration>,
}

impl Work {
    /// Starts with nothing under way, on this runtime.
    pub fn new(runtime: Handle, patience: Option<Duration>) -> Self {
        Self { runtime, under_way: TaskTracker::new(), stop: CancellationToken::new(), patience }
    }

    /// Returns the tasks under way, and the token that ends those that may wait for long.
    pub fn parts(&self) -> (TaskTracker, CancellationToken) {
        (self.under_way.clone(), self.stop.clone())
    }

    /// Spawns work for the current request that runs to its end.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.under_way.spawn_on(trace::carried_id(work), &self.runtime)
    }

    /// Spawns work that is given up when the mount ends.
    pub fn spawn_until_stopped(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    /// Waits; on a soft mount at most for its patience. As cancel-safe as `waiting`.
    ///
    /// # Errors
    /// `Io` when the patience ends.
    pub async fn patiently<T>(&self, waiting: impl Future<Output = T>) -> Result<T, FsError> {
        match self.patience {
            None => Ok(waiting.await),
            Some(limit) => tokio::time::timeout(limit, waiting).await.map_err(|_| FsError::Io),
        }
    }

    /// Waits in the same way for work in the background, which nobody does any more when the mount ends. As cancel-safe
    /// as `waiting`.
    ///
    /// # Errors
    /// `Io` when the patience or the mount ends.
    pub async fn until_stopped<T>(&self, waiting: impl Future<Output = T>) -> Result<T, FsError> {
        tokio::select! {
            // In a fixed order, so that a run can be repeated.
            biased;
            done = self.patiently(waiting) => done,
            () = self.stop.cancelled() => Err(FsError::Io),
        }
    }

    /// Runs work to its end though the caller is dropped, or a soft mount's patience ends.
    ///
    /// # Errors
    /// The error of the work; `Io` when the patience ends.
    pub async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
    ) -> Result<T, FsError> {
        self.patiently(self.spawn(work)).await?.unwrap_or(Err(FsError::Io))
    }

    /// Gives up at once all work that may wait for servers.
    pub fn abandon(&self) {
        self.stop.cancel();
    }

    /// Waits for work under way; what takes longer is given up.
    pub async fn end(&self, limit: Duration) {
        self.under_way.close();
        if tokio::time::timeout(limit, self.under_way.wait()).await.is_err() {
            self.stop.cancel();
            let _ = tokio::time::timeout(limit, self.under_way.wait()).await;
        }
    }
}

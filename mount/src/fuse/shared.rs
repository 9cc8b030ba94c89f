//! State that all requests of a mount share.

use super::locked::Locked;
use super::open_file::OpenFile;
use super::pages::{Listing, Pages};
use super::seen::Seen;
use crate::handles::Handles;
use crate::inodes::{Inodes, Trust};
use crate::nodes::Nodes;
use crate::notify::{Kernel, drop_pages, notify_kernel};
use crate::payloads::Payloads;
use client::{Client, Notice};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wire::FsError;
use wire::ids::Ino;
use wire::op::StatFs;

/// `umount(8)` asks for the filesystem's statistics before it unmounts, and must not wait for servers that are away.
const STATFS_PATIENCE: Duration = Duration::from_secs(2);
/// The first answer is waited for longer: a new leader hears all block daemons before it gives one.
const FIRST_STATFS_PATIENCE: Duration = Duration::from_secs(8);

/// The state of a mount.
pub(crate) struct Shared {
    pub(super) client: Arc<Client>,
    pub(crate) inodes: Inodes,
    pub(crate) nodes: Nodes,
    pub(super) files: Handles<OpenFile>,
    pub(super) dirs: Handles<Listing>,
    pub(super) pages: Pages,
    pub(super) locked: Locked,
    pub(super) seen: Seen,
    /// Content of writes that wait.
    pub(super) payloads: Payloads,
    /// The last answer to `statfs`.
    statfs: Mutex<Option<StatFs>>,
    /// The channel for notices to the kernel, once the mount is connected.
    notifier: OnceLock<Kernel>,
}

impl Shared {
    /// Makes the state of a mount beside its client.
    pub(crate) fn new(client: Arc<Client>, trust: Trust, payloads: Payloads) -> Arc<Self> {
        let (files, dirs) = (Handles::default(), Handles::default());
        let (locked, pages, seen) = (Locked::default(), Pages::default(), Seen::default());
        let (statfs, notifier) = (Mutex::default(), OnceLock::new());
        let (inodes, nodes) = (Inodes::new(trust), Nodes::new(client.root()));
        Arc::new(Self { client, inodes, nodes, files, dirs, pages, locked, seen, payloads, statfs, notifier })
    }

    /// From now on the kernel can be notified.
    pub(crate) fn connected(&self, notifier: Kernel) {
        let _ = self.notifier.set(notifier);
    }

    /// Drops the kernel's pages of a file. On return, readers ask for them again.
    pub(super) async fn drop_pages(&self, ino: Ino) {
        if let Some(notifier) = self.notifier.get() {
            notify_kernel(notifier, Notice::Changed(ino)).await;
        }
    }

    /// Drops the kernel's pages of a part of a file.
    pub(super) async fn drop_pages_in(&self, ino: Ino, offset: u64, len: u64) {
        if let Some(notifier) = self.notifier.get() {
            drop_pages(notifier, ino, offset, len).await;
        }
    }

    /// Capacity and use. When no server answers, the last known values.
    pub(super) async fn statfs(&self) -> Result<StatFs, FsError> {
        let known = *self.statfs.lock();
        let patience = if known.is_some() { STATFS_PATIENCE } else { FIRST_STATFS_PATIENCE };
        match tokio::time::timeout(patience, self.client.statfs()).await {
            Ok(Ok(stats)) => {
                *self.statfs.lock() = Some(stats);
                Ok(stats)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => known.ok_or(FsError::Io),
        }
    }

    /// Releases what the kernel left open: it need not release everything when the mount goes.
    pub(crate) async fn release_all(&self) {
        for file in self.files.drain() {
            // Without waiting for requests under way: the kernel is gone.
            if let Ok(file) = Arc::try_unwrap(file) {
                self.client.release(file.handle).await;
            }
        }
    }
}

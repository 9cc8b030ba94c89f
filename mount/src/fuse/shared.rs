//! What all requests share.

use super::locked::Locked;
use super::open_file::OpenFile;
use super::pages::{Listing, Pages};
use crate::handles::Handles;
use crate::inodes::{Inodes, Trust};
use crate::notify::{drop_pages, tell};
use client::{Client, Notice};
use fuser::Notifier;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use wire::FsError;
use wire::ids::Ino;
use wire::op::StatFs;

/// `umount(8)` asks for the filesystem's statistics before it unmounts, and must not wait for servers that are away.
const STATFS_PATIENCE: Duration = Duration::from_secs(2);

/// One for each mount.
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

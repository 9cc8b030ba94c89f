//! Uploading sealed content in the background: large content in blocks of its own, small content of many files in
//! shared blocks.

use super::gathering::Gathering;
use crate::block::fetch::Fetcher;
use crate::block::put::Putter;
use crate::file::dirty::Packed;
use crate::file::sealed::{Stored, To, Upload, Uploading};
use crate::work::Work;
use bytes::Bytes;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use wire::FsError;
use wire::ids::BlockHash;

/// Blocks up to this size are cached after writing: small files are often read soon.
const REMEMBER_BYTES_MAX: usize = 1 << 20;
/// Blocks up to this size are hashed on the same thread; larger ones on a thread of their own.
const HASH_HERE_BYTES_MAX: usize = 64 << 10;

/// Uploads blocks.
pub(crate) struct Uploader {
    putter: Putter,
    fetcher: Arc<Fetcher>,
    /// Small content that waits for a shared block.
    gathering: Gathering,
    work: Work,
}

impl Uploader {
    /// Creates an uploader that stores blocks with `putter` and gives the small ones to `fetcher` for readers.
    pub fn new(putter: Putter, fetcher: Arc<Fetcher>, work: Work) -> Self {
        Self { putter, fetcher, gathering: Gathering::default(), work }
    }

    /// Begins to upload content, to where it goes. Does not wait.
    pub fn begin(self: &Arc<Self>, packed: &Packed, to: To) -> Uploading {
        let (report, outcome) = watch::channel(None);
        match to {
            To::Metadata => {
                let _ = report.send(Some(Ok(None)));
            }
            To::OwnBlock => self.spawn(packed.bytes.clone(), report),
            To::SharedBlock => {
                if self.gathering.add(packed.bytes.clone(), report) {
                    self.upload_gathered();
                }
            }
        }
        Uploading { outcome, since: SystemTime::now() }
    }

    fn spawn(self: &Arc<Self>, block: Bytes, report: watch::Sender<Upload>) {
        let uploader = self.clone();
        self.work.spawn_until_stopped(async move {
            let stored = uploader.upload(block.clone()).await;
            let _ = report.send(Some(stored.map(|hash| Some(Stored { hash, block, base: 0 }))));
        });
    }

    /// Begins to upload the small content that was gathered.
    pub fn upload_gathered(self: &Arc<Self>) {
        let Some(waiting) = self.gathering.take() else { return };
        let uploader = self.clone();
        self.work.spawn_until_stopped(async move {
            let block = waiting.block();
            let hash = uploader.upload(block.clone()).await;
            waiting.report(&block, hash);
        });
    }

    /// Stores a block. On return it is on stable storage of at least `min_sync` daemons (I9).
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub async fn upload(&self, block: Bytes) -> Result<BlockHash, FsError> {
        let bytes = block.clone();
        let hash = if bytes.len() <= HASH_HERE_BYTES_MAX {
            BlockHash::of(&bytes)
        } else {
            tokio::task::spawn_blocking(move || BlockHash::of(&bytes)).await.map_err(|_| FsError::Io)?
        };
        if block.len() <= REMEMBER_BYTES_MAX {
            self.fetcher.remember(hash, block.clone());
        }
        self.putter.put(hash, block).await?;
        Ok(hash)
    }

    /// Returns whether a block must be stored again before it is committed, because this client could not show that it has it.
    pub fn lacks_receipt(&self, stored: &Stored) -> bool {
        self.putter.lacks_receipt(&stored.hash)
    }

    /// Stores a block again that daemons are known to have had.
    ///
    /// # Errors
    /// As [`Uploader::upload`].
    pub async fn renew(&self, stored: &Stored) -> Result<(), FsError> {
        self.putter.put(stored.hash, stored.block.clone()).await
    }
}

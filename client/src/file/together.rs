//! Small content of many files in one block: a tree of small files costs one upload per half a megabyte, not per file, and
//! whoever reads the tree later fetches it in the same portions.

use super::state::{Outcome, Stored};
use crate::Client;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::watch;

/// Content up to this size may share a block.
pub(crate) const SHARED_BLOCK_PART: usize = 128 << 10;
/// A shared block is uploaded when it has reached this size. Larger ones would make reading a single small file dearer.
const SHARED_BLOCK: usize = 512 << 10;

/// Content that waits for company.
#[derive(Default)]
pub(crate) struct Gathering {
    inner: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    parts: Vec<(Bytes, watch::Sender<Outcome>)>,
    bytes: usize,
}

impl Gathering {
    /// Adds content; true when there is enough for a block.
    fn add(&self, bytes: Bytes, report: watch::Sender<Outcome>) -> bool {
        let mut waiting = self.inner.lock();
        waiting.bytes += bytes.len();
        waiting.parts.push((bytes, report));
        waiting.bytes >= SHARED_BLOCK
    }

    fn take(&self) -> Waiting {
        std::mem::take(&mut *self.inner.lock())
    }
}

impl Client {
    /// Uploads content in a block with other content, soon: see [`Client::upload_gathered`].
    pub(crate) fn upload_together(self: &Arc<Self>, bytes: Bytes, report: watch::Sender<Outcome>) {
        if self.gathering.add(bytes, report) {
            self.upload_gathered();
        }
    }

    /// Begins to upload what waits for company.
    pub(crate) fn upload_gathered(self: &Arc<Self>) {
        let Waiting { parts, bytes } = self.gathering.take();
        if parts.is_empty() {
            return;
        }
        let client = self.clone();
        let upload = async move {
            let block = match parts.as_slice() {
                [(single, _)] => single.clone(),
                several => {
                    let mut block = Vec::with_capacity(bytes);
                    several.iter().for_each(|(part, _)| block.extend_from_slice(part));
                    Bytes::from(block)
                }
            };
            let hash = client.upload(block.clone()).await;
            let mut base = 0;
            for (part, report) in parts {
                let stored = hash.map(|hash| Some(Stored { hash, block: block.clone(), base }));
                base += part.len();
                // Nobody waits for content that was given up meanwhile.
                let _ = report.send(Some(stored));
            }
        };
        self.work.spawn_on(self.stop.clone().run_until_cancelled_owned(upload), &self.runtime);
    }
}

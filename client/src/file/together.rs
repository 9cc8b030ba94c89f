//! Small content of many files in one block: a tree of small files costs one upload per half a megabyte, not per file, and
//! whoever reads the tree later fetches it in the same portions.

use super::sealed::{Stored, Upload};
use crate::Client;
use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::watch;

/// A shared block is uploaded when it has reached this size. Larger ones would make reading a single small file dearer.
const SHARED_BLOCK: usize = 512 << 10;

/// Content that waits for company.
pub(crate) struct Gathering {
    waiting: Ordered<Waiting>,
}

impl Default for Gathering {
    fn default() -> Self {
        Self { waiting: Ordered::new(Rank::Gathering, Waiting::default()) }
    }
}

#[derive(Default)]
struct Waiting {
    parts: Vec<(Bytes, watch::Sender<Upload>)>,
    bytes: usize,
}

impl Gathering {
    /// Adds content; true when there is enough for a block.
    fn add(&self, bytes: Bytes, report: watch::Sender<Upload>) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.bytes += bytes.len();
        waiting.parts.push((bytes, report));
        waiting.bytes >= SHARED_BLOCK
    }

    fn take(&self) -> Waiting {
        std::mem::take(&mut *self.waiting.lock())
    }
}

impl Client {
    /// Uploads content in a block with other content, soon: see [`Client::upload_gathered`].
    pub(crate) fn upload_together(self: &Arc<Self>, bytes: Bytes, report: watch::Sender<Upload>) {
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

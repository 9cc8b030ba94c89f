//! A block daemon that stores everything, and may be away or full for a while.

use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;
use wire::ids::{BlockHash, BlockdId, Point};
use wire::layout::{Layout, LayoutMember};
use wire::message::block::{BlockReply, BlockRequest};

/// Time of a disk's sync.
const SYNC: Duration = Duration::from_micros(500);

const ID: BlockdId = BlockdId([7; 16]);

/// The daemon.
#[derive(Default)]
pub struct Blocks {
    held: Mutex<HashMap<BlockHash, Bytes>>,
    away: AtomicBool,
}

impl Blocks {
    /// Returns a layout with this daemon alone.
    #[must_use]
    pub fn layout(before: &Layout) -> Layout {
        let addr = SocketAddr::from(([10, 0, 1, 1], 1));
        let member = LayoutMember { points: vec![Point(1)], ..LayoutMember::new(ID, "blockd-1", addr, "zone") };
        let epoch = before.epoch.next();
        Layout { epoch, placement: epoch, members: vec![member], older: Vec::new(), ..before.clone() }
    }

    /// Sets whether it is away from now on.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Returns a block's content.
    #[must_use]
    pub fn content(&self, hash: &BlockHash) -> Option<Bytes> {
        self.held.lock().get(hash).cloned()
    }

    /// Carries out a request. There is no answer while the daemon is away.
    pub async fn ask(&self, request: &BlockRequest, content: Bytes) -> Option<(BlockReply, Bytes)> {
        if self.away.load(Ordering::Relaxed) {
            return None;
        }
        sleep(SYNC).await;
        Some(match request {
            BlockRequest::Put { hash, .. } => {
                self.held.lock().insert(*hash, content);
                (
                    BlockReply::Stored {
                        synced: vec![ID],
                        failed: Vec::new(),
                        full: Vec::new(),
                        layout: None,
                        receipt: None,
                    },
                    Bytes::new(),
                )
            }
            BlockRequest::Get { hash, offset, len, .. } => match self.content(hash) {
                Some(block) => {
                    let block_len = block.len() as u32;
                    let start = (*offset).min(block_len);
                    let end = offset.saturating_add(*len).min(block_len).max(start);
                    (BlockReply::Content { block_len }, block.slice(start as usize..end as usize))
                }
                None => (BlockReply::NotHere { corrupt: false, layout: None }, Bytes::new()),
            },
            other => (BlockReply::Failed(format!("not simulated: {other:?}")), Bytes::new()),
        })
    }
}

//! Waiting until written content can be taken.

use crate::Client;
use crate::commit::window::Reserved;
use crate::file::state::FileState;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use wire::FsError;

/// A write keeps its room in the window this long while it waits for something else, at first.
const HOLDS_ROOM: Duration = Duration::from_secs(2);

impl Client {
    /// Waits until a write can go on: it has room, its content is here, and what others did to the file is known.
    ///
    /// Room comes first, so that those who wait get it in their order, and content is in memory only when its turn has
    /// come. But a local disk or servers that hang must not keep others waiting for room: after a while it is given
    /// back, and asked for again when the wait is over. It is kept for longer each time, so that a write beside slow
    /// servers goes on at last. Nothing that is waited for here needs room: commits only give some back.
    ///
    /// What others did is of no interest to `mapped` pages, which are compared with what the program has seen, and metad
    /// may have the answer wait until the kernel has dropped them.
    pub(super) async fn admit<D>(
        &self,
        file: &Arc<FileState>,
        len: usize,
        content: impl Future<Output = Result<D, FsError>>,
        mapped: bool,
    ) -> Result<(D, Reserved<'_>), FsError> {
        let (mut content, mut here, mut holds) = (pin!(content), None, HOLDS_ROOM);
        loop {
            let reserved = self.committer.window().reserve(len as u64).await?;
            let before = here.take();
            let mut ready = pin!(async {
                let content = match before {
                    Some(content) => content,
                    None => content.as_mut().await?,
                };
                if file.is_scattered() {
                    // `fsync` and `close` report what failed, as for writing in the background.
                    let _ = self.flusher.flush(file, true).await;
                }
                if !mapped {
                    self.view.catch_up(file).await?;
                }
                Ok(content)
            });
            match timeout(holds, ready.as_mut()).await {
                Ok(content) => return Ok((content?, reserved)),
                Err(_) => drop(reserved),
            }
            here = Some(ready.await?);
            holds = holds.saturating_mul(2);
        }
    }
}

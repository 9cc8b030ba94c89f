//! Waiting until written content can be taken.

use crate::Client;
use crate::commit::window::Reserved;
use crate::file::state::FileState;
use futures::poll;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
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
    /// What others did is asked for before the content is: with servers that hang, the content stays where it waits. If
    /// the content takes time, it is asked for again.
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
            let mut reserved = Some(self.committer.window().reserve(len as u64).await?);
            let until = Instant::now() + holds;
            hold_while(&mut reserved, until, self.get_ready(file, mapped)).await?;
            if here.is_none() && reserved.is_some() {
                here = Some(match poll!(content.as_mut()) {
                    // Nothing lies between.
                    Poll::Ready(content) => content?,
                    Poll::Pending => {
                        let content = hold_while(&mut reserved, until, content.as_mut()).await?;
                        if reserved.is_some() {
                            hold_while(&mut reserved, until, self.get_ready(file, mapped)).await?;
                        }
                        content
                    }
                });
            }
            here = match (here, reserved) {
                (Some(content), Some(reserved)) => return Ok((content, reserved)),
                (here, _) => here,
            };
            holds = holds.saturating_mul(2);
        }
    }

    /// Waits until a write may be added to a file: its ranges are few, and what others did to it is known.
    async fn get_ready(&self, file: &Arc<FileState>, mapped: bool) -> Result<(), FsError> {
        if file.is_scattered() {
            // `fsync` and `close` report what failed, as for writing in the background.
            let _ = Box::pin(self.flusher.flush(file, true)).await;
        }
        if mapped { Ok(()) } else { self.view.catch_up(file).await }
    }
}

/// Waits for something, and gives the room back if that is not over in time.
async fn hold_while<T>(reserved: &mut Option<Reserved<'_>>, until: Instant, what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    match timeout_at(until, what.as_mut()).await {
        Ok(outcome) => outcome,
        Err(_) => {
            drop(reserved.take());
            what.await
        }
    }
}

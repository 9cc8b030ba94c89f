//! Flushing everything.

use crate::Client;
use crate::file::state::FileState;
use crate::flusher::FLUSHES_MAX;
use futures::StreamExt;
use wire::FsError;

impl Client {
    /// Commits everything that is uncommitted in any file.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        let files = self.open_files.filtered(FileState::is_dirty);
        let flushes = files.into_iter().map(|file| {
            let flusher = self.flusher.clone();
            async move { flusher.flush(&file, true).await }
        });
        let flushed: Vec<_> = futures::stream::iter(flushes).buffer_unordered(FLUSHES_MAX).collect().await;
        let sent = self.send_all().await;
        flushed.into_iter().collect::<Result<(), FsError>>().and(sent)
    }
}

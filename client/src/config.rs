//! How a client behaves.

use std::time::Duration;
use wire::bundle::Bundle;

/// What happens to content when another session has changed the same bytes meanwhile (I6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnConflict {
    /// Keep it as `NAME.conflict-HOST-TIME` beside the file.
    #[default]
    Copy,
    /// Refuse the commit: `fsync` and `close` fail with ESTALE, and the content stays with the open file.
    Fail,
    /// The later commit wins.
    LastWriter,
}

/// Options of a client, with their defaults.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the cluster is, and who we are.
    pub bundle: Bundle,
    /// What the session is for, shown to operators: the mount point.
    pub purpose: String,
    /// Written bytes kept in memory until they are committed; writers wait beyond it. 96 MiB.
    pub window_bytes: u64,
    /// Blocks kept in memory for reading. 96 MiB.
    pub cache_bytes: usize,
    /// How far to read ahead of a sequential reader. 16 MiB.
    pub readahead_bytes: u64,
    /// Written content is committed in the background after this time at the latest. 1 s.
    pub dirty_age: Duration,
    /// Give up on servers that are away after this time, with EIO; `None` waits as long as it takes (a hard mount).
    pub soft_timeout: Option<Duration>,
    /// What to do on conflicts.
    pub on_conflict: OnConflict,
}

impl ClientConfig {
    /// The defaults.
    #[must_use]
    pub fn new(bundle: Bundle, purpose: &str) -> Self {
        Self {
            bundle,
            purpose: purpose.to_owned(),
            window_bytes: 96 << 20,
            cache_bytes: 96 << 20,
            readahead_bytes: 16 << 20,
            dirty_age: Duration::from_secs(1),
            soft_timeout: None,
            on_conflict: OnConflict::Copy,
        }
    }
}

//! The options of a client.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use wire::bundle::Bundle;
use wire::limits::BLOCK_BYTES_MAX;

/// See [`ClientConfig::block_bytes`].
const BLOCK_BYTES: RangeInclusive<u64> = 4096..=BLOCK_BYTES_MAX as u64;

/// See [`ClientConfig::window_bytes`].
const WINDOW_BYTES_MIN: u64 = 8 << 20;
/// See [`ClientConfig::cache_bytes`].
const CACHE_BYTES_MIN: usize = 8 << 20;
/// See [`ClientConfig::disk_cache_bytes`].
pub const DISK_CACHE_BYTES_MIN: u64 = 16 << 20;

/// What happens to content when another session has changed the same bytes meanwhile (I6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnConflict {
    /// Store it as `NAME.conflict-HOST-TIME` beside the file.
    #[default]
    Copy,
    /// Refuse the commit: `fsync` and `close` fail with ESTALE, and the content stays with the open file.
    Fail,
    /// The later commit wins.
    LastWriter,
}

/// Options of a client. [`ClientConfig::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the cluster is, and who we are.
    pub bundle: Bundle,
    /// The file that the bundle came from: renewed certificates are written there.
    pub bundle_file: Option<PathBuf>,
    /// What the session is for, shown to operators: the mount point.
    pub purpose: String,
    /// Most bytes of uncommitted content in memory; writers wait beyond it. 8 MiB at least, 96 MiB by default.
    pub window_bytes: u64,
    /// Most bytes of blocks cached in memory for reading. 8 MiB at least, 96 MiB by default.
    pub cache_bytes: usize,
    /// Where mounts have their directories on the local disk, if this one is to have any: see
    /// [`LocalDir`](crate::LocalDir).
    pub cache_dir: Option<PathBuf>,
    /// Which directory below `cache_dir` is this mount's; `None` for that of `purpose`.
    pub cache_key: Option<String>,
    /// `cache_dir` is a default. If it cannot be made, the mount goes on without it, with a warning.
    pub cache_dir_is_default: bool,
    /// Write unsent operations to a journal below `cache_dir`, for the next client in case this one is killed; and send
    /// what the last client left there, before anything else.
    pub journal: bool,
    /// Room for blocks on the local disk below `cache_dir`, in bytes: 0, the default, for none, or 16 MiB at least.
    /// Takes up to 32 MiB of memory for blocks that wait to be written, and 100 bytes for each block on disk.
    pub disk_cache_bytes: u64,
    /// How far to read ahead of a sequential reader, at most half of `cache_bytes`. 32 MiB: eight blocks
    /// keep daemons and network busy.
    pub readahead_bytes: u64,
    /// Written content is committed in the background after this time at the latest. 0.5 s.
    pub dirty_age: Duration,
    /// Give up on servers that are away after this time, with EIO; `None` waits for ever (a hard mount).
    pub soft_timeout: Option<Duration>,
    /// What to do on conflicts.
    pub on_conflict: OnConflict,
    /// Written content is cut into blocks of this size, in bytes: a power of two from 4 KiB to 4 MiB, the default.
    /// Smaller ones make small reads of large files cheaper, and everything else dearer.
    pub block_bytes: u64,
    /// Update access times, as `relatime` asks.
    pub access_times: bool,
    /// Do under delegations what can be done there, and send it to metad a moment later.
    pub write_back: bool,
    /// `close` waits until everything that was written is durable, as `fsync` does.
    pub flush_on_close: bool,
}

impl ClientConfig {
    /// The defaults.
    #[must_use]
    pub fn new(bundle: Bundle, purpose: &str) -> Self {
        Self {
            bundle,
            bundle_file: None,
            purpose: purpose.to_owned(),
            window_bytes: 96 << 20,
            cache_bytes: 96 << 20,
            cache_dir: None,
            cache_key: None,
            cache_dir_is_default: false,
            journal: true,
            disk_cache_bytes: 0,
            readahead_bytes: 32 << 20,
            dirty_age: Duration::from_millis(500),
            soft_timeout: None,
            on_conflict: OnConflict::Copy,
            block_bytes: BLOCK_BYTES_MAX as u64,
            access_times: true,
            write_back: true,
            flush_on_close: false,
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the option.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        let wrong = if self.bundle.metads.is_empty() {
            "the bundle names no metad"
        } else if self.window_bytes < WINDOW_BYTES_MIN {
            "window_bytes must be at least 8 MiB: two blocks being written"
        } else if self.cache_bytes < CACHE_BYTES_MIN {
            "cache_bytes must be at least 8 MiB: two blocks being read"
        } else if self.disk_cache_bytes != 0 && self.disk_cache_bytes < DISK_CACHE_BYTES_MIN {
            "disk_cache_bytes must be 0 or at least 16 MiB: less holds next to nothing"
        } else if self.disk_cache_bytes != 0 && self.cache_dir.is_none() {
            "disk_cache_bytes needs a cache_dir"
        } else if self.readahead_bytes > self.cache_bytes as u64 / 2 {
            "readahead_bytes must be at most half of cache_bytes: what is read ahead must stay until it is read"
        } else if !self.block_bytes.is_power_of_two() || !BLOCK_BYTES.contains(&self.block_bytes) {
            "block_bytes must be a power of two from 4 KiB to 4 MiB"
        } else if self.dirty_age.is_zero() {
            "dirty_age must not be zero"
        } else {
            return Ok(());
        };
        Err(crate::Error::Config(wrong.to_owned()))
    }
}

//! Outcomes to replies. The only place that turns errors into what the kernel sees.

use super::{Shared, attr as attrs};
use fuser::{Errno, Generation, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, ReplyXattr};
use wire::FsError;
use wire::attr::InodeAttr;
use wire::limits::NAME_BYTES_MAX;
use wire::op::StatFs;

/// Unit in which `statfs` counts.
const STATFS_BLOCK: u64 = 4096;

pub(super) fn errno(error: FsError) -> Errno {
    if error == FsError::Io || error == FsError::Stale {
        tracing::warn!(%error, "request failed");
    } else {
        tracing::debug!(%error, "request failed");
    }
    Errno::from_i32(error.errno())
}

/// A reply that can be given an outcome.
pub(super) trait Answer<T> {
    fn answer(self, outcome: Result<T, FsError>);
}

impl Answer<()> for ReplyEmpty {
    fn answer(self, outcome: Result<(), FsError>) {
        match outcome {
            Ok(()) => self.ok(),
            Err(error) => self.error(errno(error)),
        }
    }
}

impl<B: AsRef<[u8]>> Answer<B> for ReplyData {
    fn answer(self, outcome: Result<B, FsError>) {
        match outcome {
            Ok(bytes) => self.data(bytes.as_ref()),
            Err(error) => self.error(errno(error)),
        }
    }
}

impl Answer<usize> for ReplyWrite {
    fn answer(self, outcome: Result<usize, FsError>) {
        match outcome {
            Ok(count) => self.written(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) => self.error(errno(error)),
        }
    }
}

impl Answer<StatFs> for ReplyStatfs {
    fn answer(self, outcome: Result<StatFs, FsError>) {
        match outcome {
            Ok(stats) => {
                let free = stats.free_bytes / STATFS_BLOCK;
                // Inodes are not limited by number: as many are free as blocks could hold the smallest files.
                self.statfs(
                    stats.total_bytes / STATFS_BLOCK,
                    free,
                    free,
                    stats.inodes + free,
                    free,
                    STATFS_BLOCK as u32,
                    NAME_BYTES_MAX as u32,
                    STATFS_BLOCK as u32,
                );
            }
            Err(error) => self.error(errno(error)),
        }
    }
}

pub(super) fn entry(shared: &Shared, reply: ReplyEntry, found: Result<InodeAttr, FsError>) {
    match found {
        Ok(attr) => reply.entry(&shared.ttl, &attrs::file_attr(&attr), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn attr(shared: &Shared, reply: ReplyAttr, found: Result<InodeAttr, FsError>) {
    match found {
        Ok(attr) => reply.attr(&shared.ttl, &attrs::file_attr(&attr)),
        Err(error) => reply.error(errno(error)),
    }
}

/// Answers a question for a value or, with a size of 0, for its length.
pub(super) fn sized(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(errno(FsError::Range)),
        Err(error) => reply.error(errno(error)),
    }
}

//! Why a client cannot start.

use std::io;
use std::panic::Location;
use std::path::PathBuf;
use thiserror::Error;
use wire::FsError;

/// Why no session could be opened.
#[derive(Debug, Error)]
pub enum Error {
    /// The cluster refuses this identity, or is another one; waiting would not help.
    #[error(transparent)]
    Refused(wire::Error),
    /// An option makes no sense.
    #[error("{0}")]
    Config(String),
    /// No metad answered in time.
    #[error("no metad of the cluster answers ({tried}; the last one: {last}): check that they run and can be reached")]
    Unreachable {
        /// Addresses that were tried.
        tried: String,
        /// Why the last attempt failed.
        last: String,
    },
    /// Another mount uses this mount's own directory on the local disk.
    #[error("{}: another mount uses this cache directory: stop that one, or choose another", dir.display())]
    LocalInUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory was made for another cluster, identity or mount point.
    #[error("{}: belongs to {owner}, not to {me}: choose another cache directory, or remove this one", dir.display())]
    LocalForeign {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: String,
        /// The mount that asks for it.
        me: String,
    },
    /// The journal of an earlier mount cannot be read.
    #[error(
        "{}: this journal is damaged at byte {at}: what the last mount had not sent to the cluster when it ended cannot be \
         read; move its directory away to mount without it",
        path.display()
    )]
    JournalDamaged {
        /// The damaged file.
        path: PathBuf,
        /// The byte at which it is damaged.
        at: usize,
    },
    /// What an earlier mount has left in the journal could not be sent.
    #[error(
        "what the last mount had not sent to the cluster when it ended could not be sent now ({reason}); it stays in {}, and \
         the next mount tries again",
        dir.display()
    )]
    Replay {
        /// The directory of the journal.
        dir: PathBuf,
        /// Why it could not be sent.
        reason: String,
    },
    /// What an earlier mount has left in the journal could not be sent, because the cluster is full.
    #[error(
        "what the last mount had not sent to the cluster when it ended finds no room there; it stays in {}: remove files, wait \
         until their space is free again (gc_grace_s), then mount again",
        dir.display()
    )]
    ReplayFull {
        /// The directory of the journal.
        dir: PathBuf,
    },
    /// The directory cannot be made or used.
    #[error("{}: cannot be used as cache directory: {source}", path.display())]
    Local {
        /// The file or directory.
        path: PathBuf,
        /// The error of the disk.
        source: io::Error,
    },
}

/// Returns the error for an answer of metad that is of another kind than the question. That is a fault of a program, so
/// it is logged with the place that asked.
#[track_caller]
pub(crate) fn unexpected_reply() -> FsError {
    note_unexpected_reply();
    FsError::Io
}

/// Logs such an answer where no error is returned.
#[track_caller]
pub(crate) fn note_unexpected_reply() {
    tracing::error!(asked_at = %Location::caller(), "metad answered something else than was asked");
}

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
    /// Nobody answered in time.
    #[error("no metad of the cluster answers ({tried}; the last one: {last}): check that they run and can be reached")]
    Unreachable {
        /// Addresses that were tried.
        tried: String,
        /// What became of the last attempt.
        last: String,
    },
    /// Another mount uses this mount's own directory on the local disk.
    #[error("{}: another mount uses this cache directory: stop that one, or choose another", dir.display())]
    LocalInUse {
        /// Which.
        dir: PathBuf,
    },
    /// The directory was made for another cluster, identity or mount point.
    #[error("{}: belongs to {owner}, not to {me}: choose another cache directory, or remove this one", dir.display())]
    LocalForeign {
        /// Which.
        dir: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who asks for it.
        me: String,
    },
    /// The journal of an earlier mount cannot be read.
    #[error(
        "{}: this journal is damaged at byte {at}: what the last mount had not told to the cluster when it ended cannot be \
         read; move its directory away to mount without it",
        path.display()
    )]
    JournalDamaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        at: usize,
    },
    /// What an earlier mount has left in the journal could not be told.
    #[error(
        "what the last mount had not told to the cluster when it ended could not be told now ({reason}); it stays in {}, and \
         the next mount tries again",
        dir.display()
    )]
    Replay {
        /// Where it is.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// What an earlier mount has left in the journal could not be told: the cluster is full.
    #[error(
        "what the last mount had not told to the cluster when it ended finds no room there; it stays in {}: remove files, wait \
         until their space is free again (gc_grace_s), then mount again",
        dir.display()
    )]
    ReplayFull {
        /// Where it is.
        dir: PathBuf,
    },
    /// The directory cannot be made or used.
    #[error("{}: cannot be used as cache directory: {source}", path.display())]
    Local {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The outcome when metad's answer is of another kind than the question: a fault of a program, shown with the place that
/// asked.
#[track_caller]
pub(crate) fn unexpected_reply() -> FsError {
    tracing::error!(asked_at = %Location::caller(), "metad answered something else than was asked");
    FsError::Io
}

//! Reasons why an embedded cluster does not start, or ends.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// The reason, in one line.
#[derive(Debug, Error)]
pub enum Error {
    /// The data directory is in use.
    #[error(
        "{}: another process uses this data directory: unmount that one first, or choose another with --data-dir",
        dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds a cluster of another shape.
    #[error("{}: holds a cluster of {found}, not of {wanted}: choose another with --data-dir", dir.display())]
    Shape {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The data directory cannot be made or written.
    #[error("{}: cannot hold data ({source}): choose another directory with --data-dir", dir.display())]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory cannot be used.
    #[error("{}: {source}", path.display())]
    Disk {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that this program wrote is damaged.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemons run, but do not serve.
    #[error("the embedded cluster did not come to serve within {limit_s} s: {reason}")]
    NotServing {
        /// How long was waited.
        limit_s: u64,
        /// What was missing last.
        reason: String,
    },
    /// The metadata daemon.
    #[error("metad: {0}")]
    Metad(#[from] metad::error::Error),
    /// The block daemon.
    #[error("blockd: {0}")]
    Blockd(#[from] blockd::Error),
    /// Identities and connections.
    #[error(transparent)]
    Wire(#[from] wire::Error),
}

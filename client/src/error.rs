//! Why a client cannot start.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

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
    /// The directory cannot be made or used.
    #[error("{}: cannot be used as cache directory: {source}", path.display())]
    Local {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

//! Why a client cannot start.

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
}

//! Errors of the store, by what the caller can do.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use wire::ids::BlockHash;

/// Why the store did not carry out an operation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The copy here does not match its name; copies elsewhere may.
    #[error("the copy of block {hash} is damaged")]
    Corrupt {
        /// The block.
        hash: BlockHash,
    },
    /// Only the reserve is left.
    #[error("no space is left on the disk of this daemon")]
    NoSpace,
    /// An earlier write failed: nothing is written any more.
    #[error("the disk failed earlier; see `surf status`, and replace it when others have what is here")]
    Failed,
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// Reports whether more room would help.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Error::NoSpace => true,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Error::Corrupt { .. } | Error::Failed => false,
        }
    }
}

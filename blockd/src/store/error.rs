//! Errors of the store, by what the caller can do.

use super::record::OtherVersion;
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
    /// An earlier version of Surf has written a segment, which stays as it is.
    #[error(
        "{}: an earlier version of Surf has written it, and it stays as it is: use the release that wrote it, or set the \
         cluster up anew in empty directories",
        path.display()
    )]
    Earlier {
        /// The segment.
        path: PathBuf,
    },
    /// A newer release of Surf has written a record, and the segment stays as it is.
    #[error("{}: a newer release of Surf has written it, and it stays as it is: use that release", path.display())]
    Newer {
        /// The segment.
        path: PathBuf,
    },
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

    pub(super) fn other_version(path: &Path, version: OtherVersion) -> Self {
        let path = path.to_owned();
        match version {
            OtherVersion::Earlier => Self::Earlier { path },
            OtherVersion::Newer => Self::Newer { path },
        }
    }

    /// Reports whether more room would help.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Error::NoSpace => true,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Error::Corrupt { .. } | Error::Failed | Error::Earlier { .. } | Error::Newer { .. } => false,
        }
    }
}

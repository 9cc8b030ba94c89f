//! Reasons why surfmount does not mount, or ends: one line each, which says what to do.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use wire::FsError;

/// What is wrong.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The command line contradicts itself.
    #[error("{0}; see `surfmount --help`")]
    Usage(String),
    /// The mount point cannot be used.
    #[error("{}: {reason}", path.display())]
    MountPoint {
        /// Where.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The kernel or its helper refuses to mount.
    #[error("{}: cannot be mounted: {reason}", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A step that needs the system fails.
    #[error("{what}: {source}")]
    System {
        /// Which step.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The background process has ended before it had mounted.
    #[error("{0}")]
    Background(String),
    /// The embedded cluster does not start, or has failed.
    #[error(transparent)]
    Embedded(#[from] embed::Error),
    /// The cluster refuses us, or nobody answers.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The bundle cannot be used.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// Written content could not be stored before the end.
    #[error("not everything that was written could be stored ({0}); see the log")]
    Unsaved(FsError),
    /// A signal came before it was mounted.
    #[error("ended by a signal before anything was mounted")]
    Interrupted,
    /// A second signal ended the wait for content to be stored.
    #[error("ended by a second signal while content was still being stored: some of it is lost")]
    GaveUp,
}

impl Error {
    pub(crate) fn system(what: &str) -> impl FnOnce(io::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::System { what, source }
    }

    pub(crate) fn mount_point(path: &Path, reason: impl Into<String>) -> Self {
        Self::MountPoint { path: path.to_owned(), reason: reason.into() }
    }

    /// Returns 2 for a wrong command line, as shells expect, and 1 for every other error.
    pub(crate) fn exit_code(&self) -> u8 {
        if matches!(self, Self::Usage(_)) { 2 } else { 1 }
    }
}

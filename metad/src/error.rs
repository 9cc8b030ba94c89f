//! The errors of metad, worded so that an operator knows what to do.

use crate::fs::rules::TooNew;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use thiserror::Error;
use wire::ids::MetadId;

/// What to do about a node that cannot go on with its data.
pub(crate) const REPLACE: &str = "put a new one in its place (`surf metad replace`) and then remove its data; if it is the \
                                  only one, restore a backup into an empty directory";

/// Runs work on a stored state. A broken invariant panics (`fs`), which is right where the program is wrong. Here the
/// state may be damaged, and the panic's message is returned as a reason.
///
/// # Errors
/// The message of the panic.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // What the work has changed is given up by the caller.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// Why metad does not start, or stops.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or directory cannot be used.
    #[error("{file}: {source}")]
    Disk {
        /// The file or directory.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// The applied state does not open; it is rebuilt.
    #[error("metadata store: {0}")]
    Store(String),
    /// The Raft log does not open, or Raft ended.
    #[error("Raft: {0}")]
    Raft(String),
    /// The data directory belongs to another node, or a process uses it.
    #[error("{0}")]
    DataDir(String),
    /// The state was made under newer rules.
    #[error(transparent)]
    Rules(#[from] TooNew),
    /// A recovery cannot go on from this state.
    #[error("{0}")]
    Recovery(String),
    /// The configuration contradicts itself or the certificate.
    #[error("configuration: {0}")]
    Config(String),
    /// Connections cannot be made.
    #[error(transparent)]
    Wire(#[from] wire::Error),
}

impl Error {
    /// Makes an error about a file.
    pub fn disk(file: &Path, source: io::Error) -> Self {
        Self::Disk { file: file.display().to_string(), source }
    }
}

/// Why a command was not carried out here.
#[derive(Debug, Clone, Error)]
pub enum ProposeError {
    /// Another node leads, or no node that this one knows.
    #[error("this node does not lead")]
    NotLeader(Option<MetadId>),
    /// It is unknown whether it will be carried out: leadership changed meanwhile. Batches may be sent again (I1).
    #[error("leadership changed")]
    Unknown,
    /// It cannot be carried out.
    #[error("{0}")]
    Refused(String),
}

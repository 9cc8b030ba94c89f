//! Reasons why a daemon does not start, or does not go on.

use crate::store;
use std::path::PathBuf;
use thiserror::Error;
use wire::tls::Role;

/// Answer to questions about the ring before this daemon has joined it.
pub(crate) const NOT_A_MEMBER: &str = "not a member of the ring yet";

/// Reason why a daemon does not start, or does not go on: a line for the operator.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The address cannot be used, or the identity is unusable.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// The certificate is not one of a block daemon.
    #[error("the identity is for {name} with the role {role}, blockd needs one with the role blockd: check `identity`")]
    WrongRole {
        /// Name in the certificate.
        name: String,
        /// Its role.
        role: Role,
    },
    /// The data directory cannot be made or written.
    #[error("{} cannot be used ({source}): check `data_dir`", dir.display())]
    UnusableDirectory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory was made by another daemon.
    #[error("{} belongs to {owner}, this is {me}: check `data_dir` and `identity`", dir.display())]
    ForeignDirectory {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: String,
        /// This daemon.
        me: String,
    },
    /// Another process uses the data directory.
    #[error("{} is in use by another blockd: stop that one, or check `data_dir`", dir.display())]
    DirectoryInUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A file of the data directory cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the data directory is damaged.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The store does not open, or has failed for good.
    #[error(transparent)]
    Store(#[from] store::Error),
}

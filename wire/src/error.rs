//! What can go wrong: [`FsError`], the outcomes of filesystem operations that travel in replies, and
//! [`enum@Error`], what happens to messages themselves.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The outcome of a filesystem operation that did not succeed.
///
/// Closed on purpose: every crate folds its failures into these, and only `errno.rs` knows numbers.
/// Variants are only ever appended, because they travel by position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FsError {
    /// No such file, directory or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name exists already.
    #[error("file exists")]
    Exists,
    /// A component that must be a directory is not one.
    #[error("not a directory")]
    NotADirectory,
    /// The object is a directory, and must not be one.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The caller's rights do not suffice.
    #[error("permission denied")]
    AccessDenied,
    /// Only the owner or a privileged user may do this.
    #[error("operation not permitted")]
    NotPermitted,
    /// An argument makes no sense, such as moving a directory into its own subtree.
    #[error("invalid argument")]
    Invalid,
    /// A name is longer than a directory entry or a symlink target may be.
    #[error("file name too long")]
    NameTooLong,
    /// A file would grow beyond the largest offset.
    #[error("file too large")]
    TooLarge,
    /// No space is left on the block daemons or in the metadata store.
    #[error("no space left")]
    NoSpace,
    /// A quota is used up.
    #[error("quota exceeded")]
    QuotaExceeded,
    /// The inode has as many links as it may have.
    #[error("too many links")]
    TooManyLinks,
    /// The handle's inode is gone, or its content was changed by another session in a conflicting way.
    #[error("stale file handle")]
    Stale,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// An extended attribute does not fit.
    #[error("result or value too large for the buffer")]
    Range,
    /// An extended attribute value or list is larger than may be stored.
    #[error("argument too large")]
    ArgumentTooLarge,
    /// The operation is not offered for this object.
    #[error("operation not supported")]
    NotSupported,
    /// Another holder's lock is in the way.
    #[error("resource temporarily unavailable")]
    WouldBlock,
    /// Waiting for the lock would never end.
    #[error("resource deadlock avoided")]
    Deadlock,
    /// The filesystem, or this client's view of it, is read-only.
    #[error("read-only file system")]
    ReadOnly,
    /// Source and target lie on different filesystems or exports.
    #[error("cross-device link")]
    CrossDevice,
    /// The object is in use in a way that forbids the operation.
    #[error("device or resource busy")]
    Busy,
    /// Seeking found no such data or hole.
    #[error("no such device or address")]
    NoSuchDataOrHole,
    /// Stored data could not be read, or a server did not answer in time on a soft mount.
    #[error("input/output error")]
    Io,
    /// The wait was interrupted by a signal.
    #[error("interrupted")]
    Interrupted,
    /// The session is unknown or has expired; the client opens a new one.
    #[error("session expired")]
    SessionExpired,
}

/// What can go wrong with a message, a connection or an identity.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that do not decode, or exceed a limit.
    #[error("malformed message: {0}")]
    Malformed(String),

    // --- transport ---
    /// Nothing reached the peer: any request may be sent again.
    #[error("{peer} could not be reached: {reason}")]
    NotSent {
        /// Address of the peer.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The request may or may not have been carried out: only what is idempotent, or numbered (I1), may be sent again.
    #[error("no answer from {peer}: {reason}")]
    Unanswered {
        /// Address of the peer.
        peer: String,
        /// Why.
        reason: String,
    },
    /// The peer refused the request as a whole (malformed, unauthorised, shutting down).
    #[error("{peer} refused: {reason}")]
    Refused {
        /// Address of the peer.
        peer: String,
        /// The peer's words.
        reason: String,
    },
    /// The peer has too much to do for this connection: nothing was carried out, and the same request may be sent
    /// again.
    #[error("{peer} has too much to do: {reason}")]
    Busy {
        /// Address of the peer.
        peer: String,
        /// The peer's words.
        reason: String,
    },
    /// The peer's certificate has another role than the one asked for.
    #[error("{peer} has the role {actual}, expected {expected}: check the address and the certificate")]
    WrongRole {
        /// Address of the peer.
        peer: String,
        /// Role that was asked for.
        expected: String,
        /// Role in the certificate.
        actual: String,
    },
    /// A certificate has a restriction that daemons of this version do not enforce, so they do not serve its holder.
    #[error(
        "the certificate of {name} has {restriction}, which this version does not enforce: have one issued without"
    )]
    NotEnforced {
        /// Whom the certificate is for.
        name: String,
        /// The restriction.
        restriction: String,
    },
    /// The peer belongs to another cluster.
    #[error(
        "{peer} belongs to another cluster, or to another CA of this one: use the bundle that `surf` made for it; if its CA \
         was replaced while this machine was off, get a new identity by a token"
    )]
    WrongCluster {
        /// Address of the peer.
        peer: String,
    },
    /// The peer refuses our certificate, because an operator has revoked it.
    #[error(
        "{peer} refuses this identity: it was revoked. If that was a mistake, an operator lets it in again with `surf cert \
         allow`; otherwise get a new one by a token"
    )]
    Revoked {
        /// Address of the peer.
        peer: String,
    },
    /// The peer refuses our certificate, because its time is over.
    #[error(
        "{peer} refuses this identity: its certificate has ended, by the clock there. Check the clocks; it is renewed as soon as \
         a metad with an issuer is reached"
    )]
    Ended {
        /// Address of the peer.
        peer: String,
    },
    /// No protocol version is spoken by both.
    #[error("{peer} speaks protocol versions {theirs}, this program {ours}: upgrade the older one")]
    ProtocolVersion {
        /// Address of the peer.
        peer: String,
        /// Our range of versions.
        ours: String,
        /// Theirs.
        theirs: String,
    },
    /// An identity, key or bundle file is unusable.
    #[error("{file}: {reason}")]
    Identity {
        /// The file.
        file: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A local socket could not be set up.
    #[error("cannot use address {addr}: {reason}")]
    Bind {
        /// Local address.
        addr: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The endpoint was closed on this side.
    #[error("the endpoint is closed")]
    Closed,
}

/// Formats an error with all of its sources in one line, each of them once.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, Error)]
    enum Nested {
        #[error("a file: {source}")]
        Shows { source: io::Error },
        #[error("a step failed")]
        Hides { source: io::Error },
    }

    #[test]
    fn each_reason_is_stated_once() {
        assert_eq!(describe(&Nested::Shows { source: io::Error::other("no\nroom") }), "a file: no room");
        assert_eq!(describe(&Nested::Hides { source: io::Error::other("no room") }), "a step failed: no room");
    }
}

//! What happens to content with each answer to its commit. Pure: no lock, no clock, no network.
//!
//! I6: this client drops content only when it is in the file, in a conflict copy, in a new file beside one that others
//! have removed, or when nobody can read it any more. With every other answer the content stays.

use super::plan::Plan;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::Version;
use wire::op::{ConflictCopy, OpReply};

/// How content was committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// At once, by a flush. If this client knows that the file has lost its last name, content that is written is for
    /// those that have the file open, and not needed any more once metad has removed the file.
    AtOnce {
        /// The file has no name any more.
        unlinked: bool,
    },
    /// From the write-back queue: the content was written before anybody here knew of a removal.
    Queued,
}

/// What happens to the content.
#[derive(PartialEq, Debug)]
pub(crate) enum Outcome {
    /// It is in the file.
    InFile {
        attr: InodeAttr,
        /// Where appended content is.
        appended_at: Option<u64>,
        /// Nobody else has changed the file since the version that the content is based on.
        only_ours: bool,
        /// Extents of the last chunk that was written, if metad has counted them.
        chunk_extents: u32,
    },
    /// Others wrote the same bytes first: it is in a conflict copy.
    InNewCopy { attr: InodeAttr, copy: ConflictCopy, chunk_extents: u32 },
    /// It is in the conflict copy that has the earlier content.
    InSameCopy { copy: InodeAttr },
    /// The conflict copy that it was to go into is gone. It stays, and gets a copy of its own with the next commit.
    CopyGone,
    /// The file is gone, and nobody can read it any more: the content is dropped.
    Dropped,
    /// Others have removed the file: the content goes into a new file beside it.
    Beside,
    /// It could not be committed, and stays.
    Stays(FsError),
}

/// Judges the answer to a commit.
pub(crate) fn judge(plan: &Plan, answer: Result<OpReply, FsError>, way: Way) -> Outcome {
    match answer {
        Ok(OpReply::Committed { attr, .. }) if plan.is_diverted() => Outcome::InSameCopy { copy: attr },
        Ok(OpReply::Committed { attr, conflict: Some(copy), chunk_extents, .. }) => {
            Outcome::InNewCopy { attr, copy, chunk_extents }
        }
        Ok(OpReply::Committed { attr, appended_at, conflict: None, chunk_extents }) => {
            let only_ours = attr.version == plan.basis().base.next();
            Outcome::InFile { attr, appended_at, only_ours, chunk_extents }
        }
        Ok(_) => Outcome::Stays(FsError::Io),
        Err(FsError::NotFound) if plan.is_diverted() => Outcome::CopyGone,
        Err(FsError::NotFound) if way == (Way::AtOnce { unlinked: true }) => Outcome::Dropped,
        Err(FsError::NotFound) => Outcome::Beside,
        Err(error) => Outcome::Stays(error),
    }
}

/// What an outcome means for the kernel's pages of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pages {
    /// Pages of the first version are valid for the second: they took part in the change.
    Follow(Version, Version),
    /// They are not the file's content any more.
    Old,
    /// They are as valid as before.
    Same,
}

impl Outcome {
    /// Returns what to report to the writer: success when the content is in the file, `Stale` when it is elsewhere, and
    /// otherwise why it stays.
    pub fn report(&self) -> Result<(), FsError> {
        match self {
            Self::InFile { .. } => Ok(()),
            Self::InNewCopy { .. } | Self::InSameCopy { .. } | Self::CopyGone | Self::Dropped | Self::Beside => {
                Err(FsError::Stale)
            }
            Self::Stays(error) => Err(*error),
        }
    }

    /// Returns the newest version of the file that holds nothing but what its writer has seen or written.
    pub fn own_version(&self, plan: &Plan) -> Version {
        match self {
            Self::InFile { attr, only_ours: true, .. } => attr.version,
            _ => plan.basis().base,
        }
    }

    /// Returns whether the content went into a file that has no name any more: then it is lost with the last handle.
    pub fn is_nameless(&self) -> bool {
        match self {
            Self::InFile { attr, .. } | Self::InNewCopy { attr, .. } | Self::InSameCopy { copy: attr } => {
                attr.nlink == 0
            }
            _ => false,
        }
    }

    /// Returns whether the commit left the inode number for a conflict copy unused.
    pub fn leaves_spare(&self) -> bool {
        matches!(self, Self::InFile { .. } | Self::InSameCopy { .. })
    }

    /// Returns what the outcome means for the kernel's pages.
    pub fn pages(&self, plan: &Plan) -> Pages {
        let basis = plan.basis();
        match self {
            Self::InFile { attr, appended_at, only_ours: true, .. } if *appended_at == basis.append_from => {
                Pages::Follow(basis.base, attr.version)
            }
            Self::InFile { .. } | Self::InNewCopy { .. } | Self::InSameCopy { .. } | Self::Beside => Pages::Old,
            // Of content that is dropped, no second copy can be made.
            Self::CopyGone | Self::Dropped | Self::Stays(_) => Pages::Same,
        }
    }

    /// Returns the version of the file that has the content. If others have made a newer one before the answer came, pages
    /// may have the content over what they wrote, whatever [`Outcome::pages`] says.
    pub fn made(&self) -> Option<Version> {
        if let Self::InFile { attr, .. } = self { Some(attr.version) } else { None }
    }

    /// Returns the extents of the last chunk that was written; 0 if metad has not counted them.
    pub fn chunk_extents(&self) -> u32 {
        match self {
            Self::InFile { chunk_extents, .. } | Self::InNewCopy { chunk_extents, .. } => *chunk_extents,
            _ => 0,
        }
    }

    /// Returns the conflict copy that was made.
    pub fn new_copy(&self) -> Option<&ConflictCopy> {
        if let Self::InNewCopy { copy, .. } = self { Some(copy) } else { None }
    }
}

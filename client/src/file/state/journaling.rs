//! Methods for the journal: uncommitted content, as it is written there and as it comes back.

use super::{Content, FileState};
use crate::file::dirty::Packed;
use crate::file::pending::Restored;
use crate::file::sealed::Uploading;
use wire::attr::{InodeAttr, Timestamp};
use wire::ids::Version;

/// Sealed content as it is now.
pub(crate) struct Snapshot {
    /// Attributes as committed.
    pub attr: InodeAttr,
    /// Version that the content is based on.
    pub base: Version,
    /// Mapped pages among it are based on an older version than earlier content.
    pub late: bool,
    /// Everything uncommitted was appended, from this offset on, and none of it can have arrived.
    pub append_from: Option<u64>,
    /// Time of the last change of content.
    pub mtime: Option<Timestamp>,
    /// Writing clears setuid and setgid.
    pub clear_privileges: bool,
    /// Numbers and content.
    pub pieces: Vec<(u64, Packed)>,
}

impl Snapshot {
    fn of(content: &Content, wanted: impl Fn(u64) -> bool) -> Self {
        let sealed = content.pending.sealed().iter().filter(|sealed| wanted(sealed.number));
        Self {
            attr: content.attr.clone(),
            base: content.base,
            late: content.late,
            // What has arrived must not be appended again.
            append_from: content.pending.appended_from().filter(|_| !content.committing),
            mtime: content.pending.mtime(),
            clear_privileges: content.pending.clear_privileges(),
            pieces: sealed.map(|sealed| (sealed.number, sealed.packed.clone())).collect(),
        }
    }
}

impl FileState {
    /// Returns the content sealed behind `after` up to `upto` that is not in the journal.
    pub(crate) fn unjournaled(&self, after: u64, upto: u64) -> Snapshot {
        let content = self.content.lock();
        let after = after.max(content.pending.journaled());
        Snapshot::of(&content, |number| number > after && number <= upto)
    }

    /// Returns everything that was sealed up to `upto`, for a picture of all of it. It must not be appended again,
    /// because a commit of it may begin and arrive before the next picture.
    pub(crate) fn picture(&self, upto: u64) -> Snapshot {
        let content = self.content.lock();
        Snapshot { append_from: None, ..Snapshot::of(&content, |number| number <= upto) }
    }

    /// Notes that pieces up to this number are in the journal.
    pub(crate) fn note_journaled(&self, upto: u64) {
        self.content.lock().pending.note_journaled(upto);
    }

    /// Notes that mapped pages are among the content which an earlier client left in the journal, based on the version of
    /// the file's attributes.
    pub(crate) fn restore_late(&self) {
        self.content.lock().late = true;
    }

    /// Adds a piece that an earlier client left in the journal; its upload has begun. Returns its number.
    pub(crate) fn restore(&self, piece: Restored, uploading: Uploading) -> u64 {
        let mut content = self.content.lock();
        let number = content.pending.restore(piece, uploading);
        content.size = content.pending.end();
        number
    }
}

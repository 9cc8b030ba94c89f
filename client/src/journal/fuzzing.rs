//! Reads journals from bytes that nobody has checked, for `tests/fuzzing`.

use super::disk::Disk;
use super::picture::{NAME, SHARED};
use super::record::{Change, Group, Piece, Record, SegmentId};
use super::{ID, Journal, id_text, segment_name};
use crate::Error;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use wire::attr::Timestamp;
use wire::ids::{Ino, JournalId, SessionId, Version};
use wire::op::Op;

/// The journal of all inputs, and the session that works with it.
const JOURNAL: (JournalId, SessionId) = (JournalId(7), SessionId(5));

/// What a journal holds.
#[derive(PartialEq, Debug)]
pub struct Content {
    numbers: (JournalId, Option<SessionId>),
    records: Vec<(Record, Bytes)>,
    picture: Vec<(Record, Bytes)>,
}

impl Content {
    /// Reads a journal as a mount does that finds it.
    ///
    /// # Errors
    /// [`Error::JournalDamaged`], or [`Error::Local`] when the disk fails.
    ///
    /// # Panics
    /// When a piece could not be sent.
    pub fn read(disk: Arc<dyn Disk>) -> Result<Self, Error> {
        let journal = Journal::open(disk)?;
        let records = journal.unacknowledged(0)?;
        let (picture, _) = journal.read_shared(journal.last())?;
        for (record, content) in records.iter().chain(&picture) {
            let Record::Piece(Piece { parts, .. }) = record else { continue };
            for (at, from, len) in parts {
                let part = content.slice(*from as usize..(from + len) as usize);
                assert!(at.checked_add(part.len() as u64).is_some(), "a part ends behind all offsets");
            }
        }
        Ok(Self { numbers: (journal.id(), journal.session()), records, picture })
    }

    /// Writes all of it as a new journal on an empty disk.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub fn write(&self, disk: Arc<dyn Disk>) -> io::Result<()> {
        if let (journal, Some(session)) = self.numbers {
            put(&*disk, ID, id_text(journal, session).as_bytes())?;
        }
        let journal = Journal::open(disk).map_err(io::Error::other)?;
        if !self.records.is_empty() {
            let last = self.records.iter().map(|(record, _)| record.number()).max().unwrap_or(0);
            journal.append(&self.records, last)?;
        }
        if self.picture.is_empty() { Ok(()) } else { journal.write_shared(&self.picture) }
    }

    /// Returns how many records it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.records.len() + self.picture.len()
    }
}

fn put(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    disk.create(name)?.write_at(content, 0)
}

/// Makes a journal with these bytes as its only segment, or, behind `is_picture`, as its picture.
///
/// # Errors
/// Fails when the disk does.
pub fn put_segment(disk: &dyn Disk, bytes: &[u8], is_picture: bool) -> io::Result<()> {
    put(disk, ID, id_text(JOURNAL.0, JOURNAL.1).as_bytes())?;
    let name = segment_name(1);
    put(disk, if is_picture { NAME } else { &name }, bytes)
}

/// Puts the head of a group before these bytes, with the checksum that makes them its records.
#[must_use]
pub fn sealed(records: &[u8], is_picture: bool) -> Vec<u8> {
    let number = if is_picture { SHARED } else { 1 };
    Group::of(records).finish(SegmentId { journal: JOURNAL.0, number }, 0)
}

/// Returns records as in a group: a change, a piece of content, and notes about them.
#[must_use]
pub fn samples() -> Vec<u8> {
    let mut group = Group::default();
    let at = Timestamp::default();
    let op = Op::Rmdir { parent: Ino(1), name: b"name".to_vec(), seen: None };
    group.add(&Record::Change(Change { number: 1, at, expect: Vec::new(), op }), &[]);
    let piece = Piece {
        number: 2,
        at,
        ino: Ino(2000),
        place: Some((Ino(1), b"file".to_vec())),
        owner: (0o644, 1000, 1000),
        sealed: 1,
        parts: vec![(4096, 0, 3), (0, 3, 4)],
        base: Version(3),
        append_from: None,
        mtime: Some(at),
        clear_privileges: true,
    };
    group.add(&Record::Piece(piece), b"content");
    group.add(&Record::Undone { number: 1 }, &[]);
    group.add(&Record::Renumbered { number: 2, inos: vec![(Ino(2000), Ino(3000))] }, &[]);
    group.records().to_vec()
}

/// Returns the content of the file that says whose journal it is.
#[must_use]
pub fn sample_id() -> Vec<u8> {
    id_text(JOURNAL.0, JOURNAL.1).into_bytes()
}

//! Content of files that other mounts use, too. It does not go into the queue, where everything behind it would wait,
//! but is committed at once, in the background. While commits have stalled, because servers are away, a picture of all
//! of it is in one file of the journal. Each picture replaces the one before, and it is removed when commits go on.
//!
//! A commit that is under way then may have arrived, but a client that finds the picture cannot know. So content may be
//! sent twice: the second time it becomes a conflict copy beside the first.

use super::disk::remove_if_there;
use super::record::{self, Group, Record, pieces_of};
use super::writer::Writer;
use super::{Journal, failed};
use crate::Error;
use crate::file::state::FileState;
use bytes::Bytes;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::timeout;
use wire::ids::Ino;
use wire::op::Op;

pub(super) const NAME: &str = "shared";
/// Segments have numbers from 1.
pub(crate) const SHARED: u64 = 0;

/// What a picture shows: files, and the last sealed piece of each.
pub(crate) type Picture = Vec<(Ino, u64)>;

/// Methods that block: not for a runtime thread.
impl Journal {
    /// Returns whether there is a picture.
    ///
    /// # Errors
    /// [`Error::Local`].
    pub(super) fn has_shared(&self) -> Result<bool, Error> {
        let names = self.disk.list().map_err(failed(self.disk.path()))?;
        Ok(names.iter().any(|name| name == NAME))
    }

    pub(super) fn write_shared(&self, records: &[(Record, Bytes)]) -> io::Result<()> {
        let mut group = Group::default();
        records.iter().for_each(|(record, content)| group.add(record, content));
        self.replace(NAME, &group.finish(self.segment_id(SHARED), 0))
    }

    /// Removes the picture, if there is one.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub(crate) fn remove_shared(&self) -> io::Result<()> {
        if remove_if_there(&*self.disk, NAME)? { self.disk.sync() } else { Ok(()) }
    }

    /// Reads the pieces of the picture. Each file's get a number behind `last`. Returns the last of these numbers, too.
    ///
    /// # Errors
    /// [`Error::Local`], [`Error::JournalDamaged`].
    pub(crate) fn read_shared(&self, last: u64) -> Result<(Vec<(Record, Bytes)>, u64), Error> {
        let path = self.path_of(NAME);
        let bytes = match self.disk.read(NAME) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), last)),
            Err(error) => return Err(failed(&path)(error)),
        };
        let parsed = record::parse(&bytes, self.segment_id(SHARED))
            .map_err(|at| Error::JournalDamaged { path: path.clone(), at })?;
        if parsed.torn > 0 || parsed.records.is_empty() {
            // The file got its name when it was complete, and there is no picture of nothing.
            return Err(Error::JournalDamaged { path, at: bytes.len() - parsed.torn });
        }
        let mut number = last;
        let mut of = None;
        let mut records = parsed.records;
        for (record, _) in &mut records {
            let (ino, its_number) = match record {
                Record::Piece(piece) => (piece.ino, &mut piece.number),
                Record::Late { ino, number, .. } => (*ino, number),
                _ => continue,
            };
            if of.replace(ino) != Some(ino) {
                number = number.checked_add(1).ok_or_else(|| Error::JournalDamaged { path: path.clone(), at: 0 })?;
            }
            *its_number = number;
        }
        Ok((records, number))
    }
}

impl Writer {
    /// Writes the picture of the uncommitted content of these files while commits have stalled. `seal` seals the
    /// content. Does nothing if the picture would be the same as the `last` one. Returns what it shows.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub(crate) async fn write_picture(
        &self,
        files: Vec<Arc<FileState>>,
        seal: impl Fn(&FileState) -> Option<u64>,
        last: &Picture,
    ) -> io::Result<Picture> {
        let (mut picture, mut records) = (Picture::new(), Vec::new());
        for file in files {
            let Some(upto) = seal(&file) else { continue };
            picture.push((file.ino(), upto));
            records.extend(pieces_of(&file.picture(upto), 0, self.session().stamp()));
        }
        picture.sort_unstable();
        if picture == *last {
            return Ok(picture);
        }
        self.name_pieces(&mut records);
        let session = self.session().id();
        let write = move |journal: &Journal| {
            if records.is_empty() {
                return journal.remove_shared();
            }
            if journal.session() != Some(session) {
                journal.write_session(session)?;
            }
            journal.write_shared(&records)
        };
        self.journal().change(write).await?;
        Ok(picture)
    }

    /// Removes the picture, because commits go on.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub(crate) async fn drop_picture(&self) -> io::Result<()> {
        self.journal().change(Journal::remove_shared).await
    }

    /// Ends the journal: everything up to this number is acknowledged, and metad need not remember it any more.
    pub(crate) async fn end(&self, acknowledged: u64, limit: Duration) {
        let journal = self.journal();
        // In this order: metad must not forget what it has acknowledged of something that is still in the journal.
        let dropped = journal
            .change(move |journal| journal.remove_shared().and_then(|()| journal.drop_acknowledged(acknowledged)));
        if let Err(error) = dropped.await {
            tracing::warn!(%error, "files of the journal of which nothing is needed stay behind");
            return;
        }
        if acknowledged > 0 || journal.content_noted.load(Ordering::Relaxed) {
            let forget = self.session().one(Op::Journaled { journal: journal.id(), position: None });
            if !matches!(timeout(limit, forget).await, Ok(Ok(_))) {
                tracing::debug!("metad remembers a journal for nothing");
            }
        }
    }
}
